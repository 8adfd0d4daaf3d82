package exchange_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

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

func TestNothingIsLeftOfWhatWasClosed(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		shop, err := exchange.New("shop")
		if err != nil {
			t.Fatal(err)
		}
		till, err := exchange.Dial(t.Context(), listening(t, shop))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []*exchange.Exchange{till, shop} {
			if err := x.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for range 100 { // what was told to end takes a moment
		if runtime.NumGoroutine() <= before+5 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	stacks := make([]byte, 1<<16)
	t.Errorf("%d goroutines, and %d before\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
}
