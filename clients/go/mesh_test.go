package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// made is an exchange that is closed when the test ends.
func made(t *testing.T, id string, options ...exchange.Option) *exchange.Exchange {
	t.Helper()
	x, err := exchange.New(id, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func listening(t *testing.T, x *exchange.Exchange, options ...exchange.LinkOption) string {
	t.Helper()
	url, err := x.Listen("grpc://127.0.0.1:0", options...)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func linked(t *testing.T, x *exchange.Exchange, url string, options ...exchange.LinkOption) *exchange.Peer {
	t.Helper()
	peer, err := x.Connect(t.Context(), url, options...)
	if err != nil {
		t.Fatal(err)
	}
	return peer
}

func handled(t *testing.T, x *exchange.Exchange, name string, h exchange.Handler, options ...exchange.HandlerOption) {
	t.Helper()
	if _, err := x.Handle(name, h, options...); err != nil {
		t.Fatal(err)
	}
}

// pairOf is a shop that listens and a till that has dialled.
func pairOf(t *testing.T) (shop, till *exchange.Exchange) {
	shop, till = made(t, "shop"), made(t, "till")
	linked(t, till, listening(t, shop))
	return shop, till
}

func echo(_ context.Context, msg *exchange.Message) (any, error) { return msg.Value(), nil }

// events are those of an exchange, as they come.
func events(x *exchange.Exchange) <-chan exchange.Event {
	all := make(chan exchange.Event, 1_000)
	x.Notify(func(e exchange.Event) { all <- e })
	return all
}

func next[E exchange.Event](t *testing.T, all <-chan exchange.Event) E {
	t.Helper()
	for {
		select {
		case e := <-all:
			if wanted, ok := e.(E); ok {
				return wanted
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("there is no %T", *new(E))
		}
	}
}

func TestHowRequestsEnd(t *testing.T) {
	shop, till := pairOf(t)
	begun := make(chan context.Context, 1)
	handled(t, shop, "wait", func(ctx context.Context, _ *exchange.Message) (any, error) {
		begun <- ctx
		<-ctx.Done()
		return nil, ctx.Err()
	})
	handled(t, shop, "fail", func(context.Context, *exchange.Message) (any, error) { return nil, errors.New("secret") })
	handled(t, shop, "panic", func(context.Context, *exchange.Message) (any, error) { panic("secret") })
	handled(t, shop, "nan", func(context.Context, *exchange.Message) (any, error) { return func() {}, nil })
	handled(t, shop, "large", func(context.Context, *exchange.Message) (any, error) { return make([]byte, 5<<20), nil })
	settled(shop, "till")
	ctx := t.Context()

	_, err := till.Request(ctx, "nobody.home", nil)
	if !errors.As(err, new(*exchange.Unhandled)) || err.Error() != "nobody handles nobody.home within reach of till" {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"fail": "the handler of fail failed", "panic": "the handler of panic failed",
		"nan": "the answer of the handler of nan cannot be said in JSON",
	} {
		var failed *exchange.HandlerFailed
		if _, err := till.Request(ctx, name, nil); !errors.As(err, &failed) || err.Error() != want || failed.At != "shop" {
			t.Error(name, err)
		}
	}
	var refused *exchange.Refused
	if _, err := till.Request(ctx, "large", nil); !errors.As(err, &refused) || refused.Reason != "ANSWER" || refused.Code != codes.ResourceExhausted {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = till.Request(short, "wait", nil)
	if !errors.As(err, new(*exchange.DeadlineExceeded)) || err.Error() != "wait was not answered in time" {
		t.Error(err)
	}
	<-(<-begun).Done()
	withdrawn, cancel := context.WithCancel(ctx)
	go func() {
		there := <-begun
		cancel()
		<-there.Done()
		begun <- there
	}()
	if _, err := till.Request(withdrawn, "wait", nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-begun
	if _, err := till.Request(ctx, "wait", make([]byte, 5<<20)); !errors.As(err, new(*exchange.LimitExceeded)) {
		t.Error(err)
	}
}

func TestWhoIsLinkedToNobodyIsToldSo(t *testing.T) {
	lone := made(t, "lone")
	_, err := lone.Request(t.Context(), "a.b", nil)
	if fmt.Sprint(err) != "nobody handles a.b within reach of lone (it is linked to nobody)" {
		t.Error(err)
	}
	_, err = lone.Send(t.Context(), "a.b", nil, exchange.To("shop"))
	if fmt.Sprint(err) != "there is no exchange shop within reach of lone (it is linked to nobody)" {
		t.Error(err)
	}
	replies, err := lone.RequestMany(t.Context(), "a.b", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range replies.All() {
		if fmt.Sprint(err) != "nobody handles a.b within reach of lone (it is linked to nobody)" {
			t.Error(err)
		}
	}
}

func TestALeafDoesNotPassOn(t *testing.T) {
	shop, till := pairOf(t)
	other := made(t, "other")
	for _, peer := range till.Peers() {
		t.Log(peer, peer.Agent())
	}
	linked(t, other, listening(t, shop))
	handled(t, other, "there", echo)
	settled(other, "shop")
	if _, err := till.Request(t.Context(), "there", nil); !errors.As(err, new(*exchange.Unhandled)) {
		t.Error(err)
	}
	if _, err := till.Request(t.Context(), "there", nil, exchange.Via("shop")); !strings.Contains(fmt.Sprint(err), "does not relay") {
		t.Error(err)
	}
	if answer, err := exchange.Ask[int](t.Context(), shop, "there", 7); answer != 7 {
		t.Error(err)
	}
}

func TestCausesGoAcrossExchanges(t *testing.T) {
	shop, till := pairOf(t)
	seen := make(chan *exchange.Message, 1)
	handled(t, till, "price", func(context.Context, *exchange.Message) (any, error) { return 3, nil })
	if _, err := till.On("done", func(_ context.Context, m *exchange.Message) { seen <- m }); err != nil {
		t.Fatal(err)
	}
	settled(till, "shop")
	handled(t, shop, "order", func(ctx context.Context, _ *exchange.Message) (any, error) {
		if _, err := shop.Request(ctx, "price", nil); err != nil {
			return nil, err
		}
		return shop.Send(ctx, "done", nil)
	})
	settled(shop, "till")
	reply, err := till.Request(t.Context(), "order", nil)
	if err != nil {
		t.Fatal(err)
	}
	done := <-seen
	if done.Root() != reply.ReplyTo || len(done.Causes) != 2 || done.Causes[0] != reply.ReplyTo {
		t.Errorf("%+v", done)
	}
	if way := done.Trace(); !slices.Equal(way, []string{"till", "shop", "till", "shop", "till"}) {
		t.Error(way)
	}
	trace, err := shop.Trace(t.Context(), done.ID)
	if err != nil || len(trace.Spans) != 5 || len(trace.Missing) != 0 {
		t.Errorf("%+v %v", trace, err)
	}
}

func TestManyRequestsAtOnce(t *testing.T) {
	shop, till := pairOf(t)
	handled(t, shop, "echo", echo)
	settled(shop, "till")
	var all sync.WaitGroup
	for worker := range 50 {
		all.Go(func() {
			for i := range 50 {
				if answer, err := exchange.Ask[int](t.Context(), till, "echo", worker*100+i); answer != worker*100+i {
					t.Error(answer, err)
				}
			}
		})
	}
	all.Wait()
}

func TestARunThatBlocksHoldsUpNobody(t *testing.T) {
	shop, till := pairOf(t)
	const count = 500
	var all sync.WaitGroup
	all.Add(count)
	handled(t, shop, "meet", func(context.Context, *exchange.Message) (any, error) {
		all.Done()
		all.Wait() // so none ends before all have begun
		return nil, nil
	})
	settled(shop, "till")
	for range count {
		if _, err := till.Send(t.Context(), "meet", nil); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
}

func TestClosingEndsWhatWaits(t *testing.T) {
	shop, till := pairOf(t)
	begun := make(chan struct{})
	handled(t, shop, "slow", func(context.Context, *exchange.Message) (any, error) {
		close(begun)
		time.Sleep(100 * time.Millisecond)
		return "done", nil
	})
	settled(shop, "till")
	answered := make(chan error, 1)
	go func() {
		_, err := till.Request(t.Context(), "slow", nil)
		answered <- err
	}()
	<-begun
	if err := shop.Close(); err != nil {
		t.Error(err)
	}
	if err := <-answered; err != nil {
		t.Error("a handler that ran was not let end:", err)
	}
	if err := shop.Close(); err != nil {
		t.Error(err)
	}
}

func TestNothingComesOfWhatWasClosed(t *testing.T) {
	shop, till := made(t, "shop"), made(t, "till")
	url := listening(t, till)
	if err := shop.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for what, try := range map[string]func() error{
		"Send":        func() error { _, err := shop.Send(ctx, "x", nil); return err },
		"Publish":     func() error { _, err := shop.Publish(ctx, "x", nil); return err },
		"Request":     func() error { _, err := shop.Request(ctx, "x", nil); return err },
		"RequestMany": func() error { _, err := shop.RequestMany(ctx, "x", nil); return err },
		"Connect":     func() error { _, err := shop.Connect(ctx, url); return err },
		"Listen":      func() error { _, err := shop.Listen("grpc://127.0.0.1:0"); return err },
	} {
		var closed *exchange.Closed
		err := try()
		if !errors.As(err, &closed) || closed.Exchange != "shop" || err.Error() != "the exchange shop is closed" {
			t.Errorf("%s: %v", what, err)
		}
		if errors.As(err, new(*exchange.RequestError)) || status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: asking again is of no use, and it says %v", what, status.Code(err))
		}
	}
}
