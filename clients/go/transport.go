// A transport moves frames, and knows nothing of what is in them.

package exchange

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"strings"

	"google.golang.org/grpc"
)

// transport is one connection, while it lasts. One goroutine sends, one receives.
type transport interface {
	// send writes a frame, and waits while the other side does not read.
	send(frame []byte) error
	// receive is the next frame; io.EOF if the other side will send no more.
	receive() ([]byte, error)
	// end says that nothing more will be sent.
	end()
	// abort ends everything at once, whatever waits.
	abort()
}

// dialer makes a transport that is connected.
type dialer func(ctx context.Context) (transport, error)

// address is a URL that was understood.
type address struct {
	url    string
	target string // as gRPC calls it
	unix   bool
	secure bool
}

func parseAddress(text string) (address, error) {
	scheme, rest, _ := strings.Cut(text, ":")
	a := address{url: text, unix: scheme == "unix", secure: scheme == "grpcs"}
	switch scheme {
	case "unix":
		path := strings.TrimPrefix(rest, "//")
		if path == "" || len(path) > 107 { // sizeof sockaddr_un.sun_path, less the zero at its end
			return a, &AddressError{shown(text) + " has no path that the system takes: unix:/run/exchange.sock"}
		}
		a.target = "unix:" + path
		return a, nil
	case "grpc", "grpcs":
		u, err := url.Parse(strings.TrimSuffix(text, "/"))
		if err == nil && u.Host != "" && u.Path == "" {
			if host, port, err := net.SplitHostPort(u.Host); err == nil && host != "" && isNumber(port) && len(port) <= 5 {
				a.target = "passthrough:///" + u.Host
				return a, nil
			}
		}
		return a, &AddressError{shown(text) + " is no address: grpc://HOST:PORT"}
	}
	return a, &AddressError{"no transport takes " + shown(text) + ": a URL begins with one of grpc, grpcs, unix"}
}

// listenOn opens the socket of an address.
func (a address) listenOn() (net.Listener, error) {
	network, place := "tcp", strings.TrimPrefix(a.target, "passthrough:///")
	if a.unix {
		network, place = "unix", strings.TrimPrefix(a.target, "unix:")
	}
	listener, err := net.Listen(network, place)
	if err != nil {
		return nil, &AddressError{"cannot listen at " + a.url + ": the address is taken, or not one of this machine"}
	}
	return listener, nil
}

// LinkOption says how a link is made, or listened for.
type LinkOption func(*linkOptions)

type linkOptions struct {
	retry *retry
	dial  []grpc.DialOption
	tls   *tls.Config
}
