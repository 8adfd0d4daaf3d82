# The verbs of this project, for people and for CI alike. `make` alone lists them.
# What they need they make: .venv (the project and its tools), .tools (protoc, grpcurl, nats-server), .build.

PYTHON ?= python3
ADDR ?= 127.0.0.1:50051
ARGS ?=

# The oldest generator whose code imports on everything that pyproject.toml permits: code imports on
# the grpcio and the protobuf it was generated with and on newer ones, never on older ones. It wants
# an older protobuf than users get, so it lives in an environment of its own.
PROTOC := grpcio-tools==1.81.1 mypy-protobuf==5.1.0
GRPCURL := v1.9.4
NATS_SERVER := v2.15.3

BIN := .venv/bin
RELEASED := proto/released.binpb
BUF_BUILD := $(BIN)/buf build proto --exclude-source-info -o
GENERATE := PROTOC_PYTHON=.tools/protoc/bin/python GOOGLEAPIS=.build/googleapis \
	PROTOC_GEN_ES=.tools/protoc-gen-es/node_modules/.bin/protoc-gen-es scripts/generate

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help run test drill conformance check generate freeze bench

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/.made ## an exchange with demo handlers on ADDR (127.0.0.1:50051)
	$(BIN)/exchange serve --demo --grpc $(ADDR)

test: .venv/.made .tools/.grpcurl-$(GRPCURL) ## the tests, but for the drills; ARGS='-k name' goes to pytest
	$(BIN)/pytest -m "not drill" -n auto --dist loadgroup $(ARGS)

drill: .venv/.made .tools/.grpcurl-$(GRPCURL) ## the slow, loud and long tests
	$(BIN)/pytest -m drill $(ARGS)

conformance: .venv/.made ## every client against every case; ARGS='--only Go --case "*resume*"' plays some
	cd tests && ../$(BIN)/python -m conformance $(ARGS)

check: .venv/.made .tools/protoc/.made .build/googleapis/.made ## style, types, the contract, no drift of generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint proto
	$(BIN)/buf format proto --diff --exit-code
	$(BIN)/buf breaking proto --against $(RELEASED) --exclude-imports
	@rm -rf .build/generated
	$(GENERATE) .build/generated
	@diff -r -x __pycache__ generated .build/generated || { echo "generated/ is not what proto/ says: make generate" >&2; exit 1; }

generate: .tools/protoc/.made .build/googleapis/.made ## generated/, anew from proto/
	$(GENERATE) generated

freeze: .venv/.made .build/googleapis/.made ## at a release: the contract as it is, for later ones not to break
	$(BUF_BUILD) $(RELEASED)

bench: .venv/.made .tools/.nats-server-$(NATS_SERVER) ## the benchmarks; ARGS='nats kernel' runs those
	$(BIN)/python -m benchmarks $(ARGS)

# ---- TypeScript: the plugin that generates it, and its client. Without Node.js 20 or newer a line says that it is skipped.

TYPESCRIPT := clients/typescript
PROTOC_GEN_ES := 2.13.0
# $(call with_node,COMMAND,WHAT IS SKIPPED): what only prepares says nothing when it is skipped.
with_node = @if command -v npm >/dev/null; then $(1); \
	elif [ -n "$(2)" ]; then echo "There is no Node.js: $(2)."; [ -z "$$EXCHANGE_REQUIRE_ALL" ]; fi

.PHONY: test-typescript check-typescript
conformance test: $(TYPESCRIPT)/node_modules/.made
test: test-typescript
check: check-typescript
generate check: .tools/protoc-gen-es/.made

test-typescript: .venv/.made $(TYPESCRIPT)/node_modules/.made
	$(call with_node,cd $(TYPESCRIPT) && npm run --silent build && npm test --silent,the tests of $(TYPESCRIPT) are skipped)

check-typescript: $(TYPESCRIPT)/node_modules/.made
	$(call with_node,cd $(TYPESCRIPT) && npm run --silent check,$(TYPESCRIPT) is not checked)

.tools/protoc-gen-es/.made: Makefile
	$(call with_node,mkdir -p $(@D) && npm install --loglevel=error --no-save --prefix $(@D) \
		@bufbuild/protoc-gen-es@$(PROTOC_GEN_ES) && touch $@)

$(TYPESCRIPT)/node_modules/.made: $(TYPESCRIPT)/package-lock.json generated/typescript/index.js
	$(call with_node,cd $(TYPESCRIPT) && npm ci --loglevel=error && touch node_modules/.made)

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

# ---- The Go client. Where there is no Go it is skipped with a line, but for EXCHANGE_REQUIRE_ALL.
.PHONY: test-go check-go
test: $(if $(ARGS),,test-go)
check: check-go

# $(call with_go,COMMANDS), in clients/go
with_go = @if go version >/dev/null 2>&1; then cd clients/go && $(1); elif [ -n "$$EXCHANGE_REQUIRE_ALL" ]; then \
	echo "There is no Go, and EXCHANGE_REQUIRE_ALL wants it." >&2; exit 1; else echo "There is no Go: its client is skipped."; fi

test-go: .venv/.made
	$(call with_go,go test -count=1 $$(test "$$(go env CGO_ENABLED)" = 0 || echo -race) ./...)

check-go:
	$(call with_go,test -z "$$(gofmt -l . | tee /dev/stderr)" && go vet ./... && go tool staticcheck ./...)
# ---- end of Go

# --- Rust: clients/rust. Where there is no cargo there is a line here, and a failure under EXCHANGE_REQUIRE_ALL=1.
.PHONY: rust-test rust-check
test: rust-test
check: rust-check

# $(call cargo,WHAT IS SKIPPED WITHOUT IT,COMMANDS)
define cargo
	@if command -v cargo >/dev/null; then \
		set -ex; cd clients/rust; $(2); \
	else \
		echo "There is no cargo: $(1) skipped."; test "$(EXCHANGE_REQUIRE_ALL)" != 1; \
	fi
endef

rust-test: .venv/.made
	$(call cargo,the tests of the Rust client are,cargo test --locked --quiet --all-features)

rust-check:
	$(call cargo,the checks of the Rust client are,\
		cargo fmt --check; cargo fmt --check --manifest-path ../../scripts/generate-rust/Cargo.toml; \
		cargo clippy --locked --quiet --all-targets --all-features -- -D warnings; \
		RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --no-deps -p exchange-grpc -p exchange-proto)
