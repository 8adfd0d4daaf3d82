package exchange_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

// demo is a real `exchange serve --demo`, which ends with the test.
func demo(t *testing.T) (url string) {
	t.Helper()
	program, err := filepath.Abs("../../.venv/bin/exchange")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("EXCHANGE_REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip("there is no .venv with the Python package: make test")
	}
	serve := exec.Command(program, "serve", "--demo", "--id", "demo", "--grpc", "127.0.0.1:0")
	out, err := serve.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = serve.Process.Signal(syscall.SIGTERM)
		_ = serve.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if url := regexp.MustCompile(`grpc://[0-9.:]+`).FindString(lines.Text()); url != "" {
			return url
		}
	}
	t.Fatal("it never was ready")
	return ""
}

// ran is what a program of this module says.
func ran(t *testing.T, url, where string) string {
	t.Helper()
	command := exec.Command("go", "run", where)
	command.Env = append(os.Environ(), "EXCHANGE_URL="+url)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", where, err, out)
	}
	return string(out)
}

func TestSamples(t *testing.T) {
	url := demo(t)
	for _, sample := range []struct{ name, says string }{
		{"hello", `hello from demo\n`},
		{"request_reply", `compute\.sum: 8\n`},
		{"worker_pool", `worker-1: 5\nworker-2: 5\n`},
		{"live_state", `goal: 50\n`},
		{"live_state", `goal: 100\n`},
		{"trace", `compute\.sum: \S+ -> demo\ncompute\.sum: demo -> \S+\n`},
	} {
		if said := ran(t, url, "./samples/"+sample.name); !regexp.MustCompile("^" + sample.says + "$").MatchString(said) {
			t.Errorf("%s says %q", sample.name, said)
		}
	}
}

func TestTheReadmeSaysWhatHappens(t *testing.T) {
	url := demo(t)
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```\n\n```text\n(.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) != strings.Count(string(text), "```go\n") || len(blocks) == 0 {
		t.Fatalf("of the Go blocks %d say what comes out", len(blocks))
	}
	for _, block := range blocks {
		folder, err := os.MkdirTemp(".", "readme-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(folder) })
		code := strings.ReplaceAll(string(block[1]), "grpc://127.0.0.1:50051", url)
		if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(code), 0o600); err != nil {
			t.Fatal(err)
		}
		if said := ran(t, url, "./"+folder); said != string(block[2]) {
			t.Errorf("it says %q, not %q", said, block[2])
		}
	}
}

func TestTheReadmeBeginsInAnEmptyFolder(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	parts := regexp.MustCompile("(?s)```text\n(go mod .*?)```.*?```go\n(.*?)```").FindSubmatch(text)
	if parts == nil {
		t.Fatal("it does not say how to begin")
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "main.go"), parts[2], 0o600); err != nil {
		t.Fatal(err)
	}
	// What go mod tidy would look up is here already, or this would not run.
	begin := strings.ReplaceAll(string(parts[1]), "/path/to/exchange", root) + "go build -mod=mod -o app .\n"
	command := exec.Command("sh", "-ec", begin)
	command.Dir, command.Env = folder, append(os.Environ(), "GOPROXY=off", "GOSUMDB=off", "GOWORK=off")
	if said, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
}

func TestBesideThePythonPackage(t *testing.T) {
	url := demo(t)
	ctx := t.Context()
	app, worker := made(t, "app"), made(t, "worker")
	linked(t, app, url)
	linked(t, worker, url)
	handled(t, worker, "far.echo", echo)
	settled(worker, "demo")

	for range 3 { // found by asking, then known
		if answer, err := exchange.Ask[string](ctx, app, "far.echo", "x"); answer != "x" {
			t.Fatal(err)
		}
	}
	if _, err := app.Request(ctx, "nobody.home", nil); !errors.As(err, new(*exchange.Unhandled)) {
		t.Error(err)
	}
	replies, err := app.RequestMany(ctx, "demo.count", map[string]int{"to": 3})
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, err := range replies.All() {
		if err != nil {
			t.Error(err)
		}
		count++
	}
	if count != 3 || len(replies.Lost()) != 0 {
		t.Error(count, replies.Lost())
	}

	state := app.State("demo")
	was, err := state.Set(ctx, "goal", 7)
	if err != nil {
		t.Fatal(err)
	}
	var refused *exchange.Refused
	if _, err := state.SetIf(ctx, "goal", 8, was.Revision+1); !errors.As(err, &refused) || refused.Reason != "REVISION" {
		t.Error(err)
	}
	if _, err := state.Get(ctx, "secret"); !errors.As(err, &refused) || refused.Reason != "NOT_EXPORTED" {
		t.Error(err)
	}
	why, err := app.Why(ctx, "goal", "demo")
	if err != nil || !strings.Contains(string(why), "goal is 7") {
		t.Errorf("%s %v", why, err)
	}

	reply, err := app.Request(ctx, "far.echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	trace, err := app.Trace(ctx, reply.ReplyTo)
	if err != nil || len(trace.Spans) != 2 || len(trace.Missing) != 0 || len(trace.Spans[0].Hops) != 3 {
		t.Errorf("%+v %v", trace, err)
	}
}

func TestLinksThatAreCutTwentyTimesHurtNobody(t *testing.T) {
	p := newProxy(t, demo(t))
	quick := exchange.WithLimits(exchange.Limits{ReconnectMax: 50 * time.Millisecond, ReconnectMin: 10 * time.Millisecond})
	app, worker := made(t, "app", quick), made(t, "worker", quick)
	linked(t, app, p.url())
	linked(t, worker, p.url())
	handled(t, worker, "far.echo", echo)
	settled(worker, "demo")
	var all sync.WaitGroup
	over := make(chan struct{})
	for range 8 {
		all.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if answer, err := exchange.Ask[int](t.Context(), app, "far.echo", 7); answer != 7 {
					t.Error(err)
					return
				}
			}
		})
	}
	resumed := events(app)
	for range 20 {
		p.cut()
		if r := next[exchange.Resumed](t, resumed); !r.Recovered {
			t.Errorf("%+v", r)
		}
	}
	close(over)
	all.Wait()
}
