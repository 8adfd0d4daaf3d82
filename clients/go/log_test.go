package exchange_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

// logged is what a logger was told, for whoever asks meanwhile.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

func (l *logged) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.text.String()), "\n")
}

// byDefault is what goes to slog.Default() until the test ends.
func byDefault(t *testing.T) *logged {
	l, former := new(logged), slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(func() { slog.SetDefault(former) })
	return l
}

// troubled is a shop some handlers of which fail, and who asks them all.
func troubled(t *testing.T, shop, till *exchange.Exchange) {
	handled(t, shop, "fail", func(context.Context, *exchange.Message) (any, error) { return nil, errors.New("no flour") })
	handled(t, shop, "panic", func(context.Context, *exchange.Message) (any, error) { panic("no oven") })
	linked(t, till, listening(t, shop))
	for _, name := range []string{"fail", "panic"} {
		if _, err := till.Request(t.Context(), name, nil); !errors.As(err, new(*exchange.HandlerFailed)) {
			t.Error(err)
		}
	}
}

func TestWarningsAndErrorsAreLoggedByDefault(t *testing.T) {
	shop, till := made(t, "shop"), made(t, "till")
	log := byDefault(t) // whatever it is when there is something to say
	troubled(t, shop, till)
	lines := log.lines()
	if len(lines) != 2 || !strings.Contains(lines[0], "no flour") || !strings.Contains(lines[1], "no oven") {
		t.Error("not one line for each failure, and nothing else: ", strings.Join(lines, "\n"))
	}
	for _, line := range lines {
		if !strings.Contains(line, "level=ERROR") || !strings.Contains(line, "exchange=shop") {
			t.Error(line)
		}
	}
	if _, err := till.Send(t.Context(), "nobody.home", nil); err == nil {
		t.Error("somebody took it")
	}
	if line := log.lines()[2]; !strings.Contains(line, "level=WARN") || !strings.Contains(line, "exchange=till") {
		t.Error(line)
	}
}

func TestALoggerTakesTheLogElsewhere(t *testing.T) {
	elsewhere, log := new(logged), byDefault(t)
	shop := made(t, "shop", exchange.WithLogger(slog.New(slog.NewTextHandler(elsewhere, nil))))
	troubled(t, shop, made(t, "till"))
	if said := log.lines(); said[0] != "" {
		t.Error(said)
	}
	if said := elsewhere.lines(); len(said) != 2 {
		t.Error(said)
	}
}

func TestASlowListenerIsToldOfNowAndThen(t *testing.T) {
	log := byDefault(t)
	shop, till := pairOf(t)
	over := make(chan struct{})
	_, err := till.Subscribe("bread.**", func(context.Context, *exchange.Message) { <-over }, exchange.Concurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	settled(till, "shop")
	defer close(over)
	const most = 65_537 // that run or wait
	for range most + 600 {
		if _, err := shop.Publish(t.Context(), "bread.baked", nil); err != nil {
			t.Fatal(err)
		}
	}
	settled(till, "shop")
	for range 1_000 { // of 600 that are missed it hears at 1, 2, 4, ... 512
		if len(log.lines()) >= 10 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if lines := log.lines(); len(lines) != 10 || !strings.Contains(lines[9], "missed=512") {
		t.Error(len(lines), lines[len(lines)-1])
	}
}
