package exchange_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
	"google.golang.org/grpc/codes"
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
	if _, err := till.Request(short, "wait", nil); !errors.As(err, new(*exchange.DeadlineExceeded)) {
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

// proxy is a network that fails when it is told to.
type proxy struct {
	socket net.Listener
	mu     sync.Mutex
	open   []net.Conn
}

func newProxy(t *testing.T, url string) *proxy {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{socket: socket}
	t.Cleanup(func() { _ = socket.Close(); p.cut() })
	go func() {
		for {
			in, err := socket.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(url, "grpc://"))
			if err != nil {
				_ = in.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, in, out)
			p.mu.Unlock()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		}
	}()
	return p
}

func (p *proxy) url() string { return "grpc://" + p.socket.Addr().String() }

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, connection := range p.open {
		_ = connection.Close()
	}
	p.open = nil
}

func TestALinkThatIsCutUnderLoadLosesNothing(t *testing.T) {
	shop, till := made(t, "shop"), made(t, "till")
	const count = 5_000
	got := make(chan int, count+1)
	handled(t, shop, "count", func(_ context.Context, m *exchange.Message) (any, error) {
		var number int
		err := m.Decode(&number)
		got <- number
		return nil, err
	}, exchange.Concurrency(1))
	p := newProxy(t, listening(t, shop))
	all := events(till)
	linked(t, till, p.url())
	go func() {
		for number := range count {
			if _, err := till.Send(t.Context(), "count", number); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for number := range count {
		if number%500 == 250 {
			p.cut()
			if r := next[exchange.Resumed](t, all); !r.Recovered {
				t.Fatalf("%+v", r)
			}
		}
		select {
		case came := <-got:
			if came != number {
				t.Fatalf("%d came in place of %d", came, number)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%d never came", number)
		}
	}
}

func TestAPeerThatWasRestartedHasForgotten(t *testing.T) {
	shop := made(t, "shop", exchange.WithLimits(exchange.Limits{Away: 100 * time.Millisecond}))
	url := listening(t, shop)
	p := newProxy(t, url)
	waits := make(chan struct{}, 1)
	handled(t, shop, "wait", func(ctx context.Context, _ *exchange.Message) (any, error) {
		waits <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	till := made(t, "till")
	all := events(till)
	linked(t, till, p.url())
	failed := make(chan error, 1)
	go func() {
		_, err := till.Request(t.Context(), "wait", nil)
		failed <- err
	}()
	<-waits
	again := made(t, "shop") // it is killed, and another takes its place
	_ = p.socket.Close()
	socket, err := net.Listen("tcp", p.socket.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = socket.Close()
	if _, err := again.Listen("grpc://" + p.socket.Addr().String()); err != nil {
		t.Fatal(err)
	}
	p.cut()
	if r := next[exchange.Resumed](t, all); r.Recovered {
		t.Errorf("%+v", r)
	}
	var unavailable *exchange.Unavailable
	if err := <-failed; !errors.As(err, &unavailable) || unavailable.Delivered != exchange.DeliveredUnknown {
		t.Error(err)
	}
}

func TestNobodyThereAndTwiceThere(t *testing.T) {
	till := made(t, "till")
	if _, err := till.Connect(t.Context(), "grpc://127.0.0.1:1"); !errors.As(err, new(*exchange.LinkError)) {
		t.Error(err)
	}
	for _, url := range []string{"", "grpc://", "grpc://host", "ws://127.0.0.1:1", "grpc://127.0.0.1:99999999"} {
		if _, err := till.Connect(t.Context(), url); !errors.As(err, new(*exchange.AddressError)) {
			t.Errorf("%q: %v", url, err)
		}
	}
	shop := made(t, "shop")
	url := listening(t, shop)
	if _, err := till.Listen(url); !errors.As(err, new(*exchange.AddressError)) {
		t.Error(err)
	}
	if first, second := linked(t, till, url), linked(t, till, url); first != second {
		t.Error("the two are linked twice")
	}
}

func TestBothDialAtTheSameTime(t *testing.T) {
	a, b := made(t, "a"), made(t, "b")
	toA, toB := listening(t, a), listening(t, b)
	handled(t, b, "echo", echo)
	var both sync.WaitGroup
	both.Go(func() { linked(t, a, toB) })
	both.Go(func() { linked(t, b, toA) })
	both.Wait()
	if len(a.Peers()) != 1 || len(b.Peers()) != 1 {
		t.Error(a.Peers(), b.Peers())
	}
	if answer, err := exchange.Ask[int](t.Context(), a, "echo", 7); answer != 7 {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	shop, till := made(t, "shop"), made(t, "till")
	handled(t, shop, "echo", echo)
	url := listening(t, shop, exchange.WithTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}))
	if _, err := till.Connect(t.Context(), url); !errors.As(err, new(*exchange.LinkError)) {
		t.Error("it trusts anybody:", err)
	}
	linked(t, till, url, exchange.WithTLS(&tls.Config{RootCAs: roots}))
	if answer, err := exchange.Ask[int](t.Context(), till, "echo", 7); answer != 7 {
		t.Error(err)
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
	if _, err := shop.Send(t.Context(), "x", nil); !errors.As(err, new(*exchange.Unavailable)) {
		t.Error(err)
	}
	if err := shop.Close(); err != nil {
		t.Error(err)
	}
}
