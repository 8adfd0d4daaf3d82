package exchange_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	exchange "github.com/exchange-grpc/exchange/clients/go"
	"google.golang.org/grpc"
)

// served is the HOST:PORT at which somebody serves until the test ends.
func served(t *testing.T, serve func(net.Listener) error) string {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	go func() { _ = serve(socket) }()
	return socket.Addr().String()
}

func TestWhyThereIsNoLinkIsSaidInPlainWords(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	refused := free.Addr().String()
	old := httptest.NewServer(http.NotFoundHandler())
	defer old.Close()
	web := old.Listener.Addr().String()
	both := new(http.Protocols)
	both.SetUnencryptedHTTP2(true)
	page := served(t, (&http.Server{Handler: http.NotFoundHandler(), Protocols: both}).Serve)
	other := served(t, grpc.NewServer().Serve)
	nowhere := "unix:" + filepath.Join(t.TempDir(), "nowhere")

	till := made(t, "till")
	for url, want := range map[string]string{
		"grpc://" + refused:  "nobody answers at grpc://" + refused + ": connection refused",
		"grpcs://" + refused: "nobody answers at grpcs://" + refused + ": connection refused",
		nowhere:              "nobody answers at " + nowhere + ": no such file or directory",
		"grpc://" + web:      "nobody answers at grpc://" + web + ": it speaks no gRPC",
		"grpcs://" + web:     "nobody answers at grpcs://" + web + ": it speaks no TLS",
		"grpc://" + page:     "the link was refused or lost: it speaks no gRPC (HTTP 404)",
		"grpc://" + other:    "the link was refused or lost: it is no exchange",
	} {
		_, err := till.Connect(t.Context(), url)
		if !errors.As(err, new(*exchange.LinkError)) || err.Error() != want {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestWhyALinkWasLostIsSaidInPlainWords(t *testing.T) {
	shop, till := made(t, "shop"), made(t, "till")
	p, all := newProxy(t, listening(t, shop)), events(till)
	linked(t, till, p.url())
	p.cut()
	if lost := next[exchange.Lost](t, all); lost.Reason != "the connection was lost: the other side closed it" &&
		lost.Reason != "the connection was lost: connection reset by peer" {
		t.Error(lost.Reason)
	}
}
