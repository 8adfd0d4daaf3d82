# The verbs of this project, for people and for CI alike. `make` alone lists them.
# What they need they make: .venv (the project and its tools), .tools (generators, grpcurl, nats-server), .build.

PYTHON ?= python3
ADDR ?= 127.0.0.1:50051
ARGS ?=

# The oldest generator whose code imports on everything that pyproject.toml permits: code imports on
# the grpcio and the protobuf it was generated with and on newer ones, never on older ones. It wants
# an older protobuf than users get, so it lives in an environment of its own.
PROTOC := grpcio-tools==1.81.1 mypy-protobuf==5.1.0
GRPCURL := v1.9.4
NATS_SERVER := v2.15.3
PROTOC_GEN_ES := 2.13.0

BIN := .venv/bin
RELEASED := proto/released.binpb
BUF_BUILD := $(BIN)/buf build proto --exclude-source-info -o
GENERATE := PROTOC_PYTHON=.tools/protoc/bin/python GOOGLEAPIS=.build/googleapis \
	PROTOC_GEN_ES=.tools/protoc-gen-es/node_modules/.bin/protoc-gen-es scripts/generate
GENERATORS := .tools/protoc/.made .tools/protoc-gen-es/.made .build/googleapis/.made
NODE_MODULES := clients/typescript/node_modules/.made
CLIENTS := go rust typescript

export CARGO_TARGET_DIR := $(CURDIR)/.build/rust
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run test drill conformance check generate freeze bench \
	$(CLIENTS:%=test-%) $(CLIENTS:%=check-%)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/.made ## an exchange with demo handlers on ADDR (127.0.0.1:50051)
	$(BIN)/exchange serve --demo --grpc $(ADDR)

test: .venv/.made .tools/.grpcurl-$(GRPCURL) $(NODE_MODULES) $(if $(ARGS),,$(CLIENTS:%=test-%)) ## the tests, but for the drills; ARGS='-k name' goes to pytest, and is all then
	$(BIN)/pytest -m "not drill" -n auto --dist loadgroup $(ARGS)

drill: .venv/.made .tools/.grpcurl-$(GRPCURL) $(NODE_MODULES) ## the slow, loud and long tests
	$(BIN)/pytest -m drill $(ARGS)

conformance: .venv/.made $(NODE_MODULES) ## every client against every case; ARGS='--only Go --case "*resume*"' plays some
	cd tests && ../$(BIN)/python -m conformance $(ARGS)

check: .venv/.made $(GENERATORS) $(CLIENTS:%=check-%) ## style, types, the contract, no drift of generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint proto
	$(BIN)/buf format proto --diff --exit-code
	$(BIN)/buf breaking proto --against $(RELEASED) --exclude-imports
	@rm -rf .build/generated
	$(GENERATE) .build/generated
	@diff -r -x __pycache__ generated .build/generated || { echo "generated/ is not what proto/ says: make generate" >&2; exit 1; }

generate: $(GENERATORS) ## generated/, anew from proto/
	$(GENERATE) generated

freeze: .venv/.made .build/googleapis/.made ## at a release: the contract as it is, for later ones not to break
	$(BUF_BUILD) $(RELEASED)

bench: .venv/.made .tools/.nats-server-$(NATS_SERVER) $(NODE_MODULES) ## the benchmarks; ARGS='nats kernel' runs those
	$(BIN)/python -m benchmarks $(ARGS)

# ---- the clients: where the tool of a language is missing a line says so, and EXCHANGE_REQUIRE_ALL=1 makes it a failure

# $(call with,TOOL,WHAT IS SKIPPED WITHOUT IT,COMMANDS)
define with
	@if scripts/has $(1); then set -ex; $(3); \
	else echo "There is no $(1) that is new enough: $(2)"; [ "$$EXCHANGE_REQUIRE_ALL" != 1 ]; fi
endef

test-go: .venv/.made
	$(call with,go,the Go client is not tested.,cd clients/go; \
		go test -count=1 $$(test "$$(go env CGO_ENABLED)" = 0 || echo -race) ./...)

check-go:
	$(call with,go,the Go client is not checked.,cd clients/go; \
		test -z "$$(gofmt -l . | tee /dev/stderr)"; go vet ./...; go tool staticcheck ./...)

test-rust: .venv/.made
	$(call with,cargo,the Rust client is not tested.,cd clients/rust; cargo test --locked --quiet --all-features)

check-rust:
	$(call with,cargo,the Rust client is not checked.,cd clients/rust; cargo fmt --check; \
		cargo fmt --check --manifest-path ../../scripts/generate-rust/Cargo.toml; \
		cargo clippy --locked --quiet --all-targets --all-features -- -D warnings; \
		RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --no-deps -p exchange-grpc -p exchange-proto)

test-typescript: .venv/.made $(NODE_MODULES)
	$(call with,npm,the TypeScript client is not tested.,cd clients/typescript; npm run --silent build; npm test --silent)

check-typescript: $(NODE_MODULES)
	$(call with,npm,the TypeScript client is not checked.,cd clients/typescript; npm run --silent check)

$(NODE_MODULES): clients/typescript/package-lock.json generated/typescript/index.js
	$(call with,npm,what needs the packages of the TypeScript client is skipped.,cd clients/typescript; \
		npm ci --loglevel=error; touch node_modules/.made)

.tools/protoc-gen-es/.made: Makefile
	$(call with,npm,generated/typescript stays as it is.,mkdir -p $(@D); \
		npm install --loglevel=error --no-save --prefix $(@D) @bufbuild/protoc-gen-es@$(PROTOC_GEN_ES); touch $@)

# ---- what the others need

.venv/.made: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, and there is no $(PYTHON)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.tools/protoc/.made: Makefile | .venv/.made
	@.tools/protoc/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv --clear .tools/protoc
	.tools/protoc/bin/python -m pip install --quiet $(PROTOC)
	@touch $@

.build/googleapis/.made: .venv/.made
	@rm -rf $(@D) && mkdir -p $(@D)/google
	@$(BIN)/python -c 'import google.rpc, shutil; shutil.copytree(google.rpc.__path__[0], "$(@D)/google/rpc", \
		ignore=lambda _, names: [name for name in names if not name.endswith(".proto")])'
	@touch $@

# Only tests use grpcurl and only a benchmark nats-server, and they say so when they do without: where there is
# no Go, or when it cannot be built, there is a line here and no failure. The next `make` tries again.
# $(call go_install,NAME,PACKAGE@VERSION,WHAT IS DONE WITHOUT IT)
define go_install
	@mkdir -p .tools/bin
	@if ! command -v go >/dev/null; then \
		echo "There is no Go to build $(1) with: $(3)."; \
	elif echo "Building $(1) $(lastword $(subst @, ,$(2))): a minute or two, once." && CGO_ENABLED=0 GOBIN=$(CURDIR)/.tools/bin \
		go install $(2) >.tools/$(1).log 2>&1; then \
		touch $@; \
	else \
		tail -n 3 .tools/$(1).log; echo "$(1) could not be built: $(3)."; \
	fi
endef

.tools/.grpcurl-$(GRPCURL):
	$(call go_install,grpcurl,github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL),the tests that use it will be skipped)

.tools/.nats-server-$(NATS_SERVER):
	$(call go_install,nats-server,github.com/nats-io/nats-server/v2@$(NATS_SERVER),Exchange is measured without it)
