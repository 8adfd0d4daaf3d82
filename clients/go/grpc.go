// gRPC: the stream Peer, at both ends.
//
// Frames travel as bytes and are parsed by the session, not by gRPC: one that cannot be parsed then ends one session
// with a reason, where gRPC's own parser would end the stream without one.

package exchange

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
)

const (
	serviceName = "exchange.v1.ExchangeService"
	peerMethod  = "/" + serviceName + "/Peer"
	largest     = frameBytes + messageBytes // room around the frame: the limit itself is checked by the session
)

// rawCodec hands frames on as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (rawCodec) Name() string { return "proto" }

// stream is what both ends of a call have in common.
type stream struct {
	call interface {
		SendMsg(m any) error
		RecvMsg(m any) error
	}
	cancel func()
}

func (s *stream) send(frame []byte) error { return s.call.SendMsg(&frame) }

func (s *stream) receive() (frame []byte, err error) {
	err = s.call.RecvMsg(&frame)
	return frame, err
}

func (s *stream) end() {
	if dialled, ok := s.call.(grpc.ClientStream); ok {
		_ = dialled.CloseSend() // never fails
	}
}

func (s *stream) abort() { s.cancel() }

// WithTLS makes a link over TLS, or listens with it, by this configuration. A grpcs:// URL without it trusts the roots
// of the system.
func WithTLS(config *tls.Config) LinkOption {
	return func(o *linkOptions) { o.tls = config }
}

// WithCredentials sends credentials with each call that a link makes, such as a token.
func WithCredentials(c credentials.PerRPCCredentials) LinkOption {
	return WithDialOptions(grpc.WithPerRPCCredentials(c))
}

// WithDialOptions adds options of grpc-go to those that a link is dialled with.
func WithDialOptions(options ...grpc.DialOption) LinkOption {
	return func(o *linkOptions) { o.dial = append(o.dial, options...) }
}

func dialGRPC(a address, o linkOptions) dialer {
	security := insecure.NewCredentials()
	if o.tls != nil || a.secure {
		security = credentials.NewTLS(o.tls)
	}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: grpcSilence, Timeout: grpcPingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(largest), grpc.MaxCallSendMsgSize(largest),
		),
	}, o.dial...)
	return func(ctx context.Context) (transport, error) { return dialStream(ctx, a, options) }
}

func dialStream(ctx context.Context, a address, options []grpc.DialOption) (transport, error) {
	connection, err := grpc.NewClient(a.target, options...)
	if err != nil {
		return nil, &AddressError{fmt.Sprintf("%s cannot be dialled: %v", a.url, err)}
	}
	// The stream lives longer than the dialling: ctx only ends the wait for it.
	streaming, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	description := &grpc.StreamDesc{StreamName: "Peer", ServerStreams: true, ClientStreams: true}
	call, err := connection.NewStream(streaming, description, peerMethod)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		_ = connection.Close()
		if ctx.Err() != nil {
			return nil, &LinkError{"nobody answers at " + a.url + " in time"}
		}
		return nil, &LinkError{"nobody answers at " + a.url + ": " + said(err)}
	}
	return &stream{call, sync.OnceFunc(func() {
		cancel()
		_ = connection.Close()
	})}, nil
}

// listener is a gRPC server that takes links.
type listener struct {
	url    string
	server *grpc.Server
}

// listenGRPC takes links at an address; accept is called for each, and returns when it is over.
func listenGRPC(a address, o linkOptions, accept func(transport) (over <-chan struct{})) (*listener, error) {
	socket, err := a.listenOn()
	if err != nil {
		return nil, err
	}
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(rawCodec{}), grpc.MaxRecvMsgSize(largest), grpc.MaxSendMsgSize(largest),
		grpc.ConnectionTimeout(connectTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: grpcSilence, Timeout: grpcPingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
	if o.tls != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(o.tls)))
	}
	server := grpc.NewServer(options...)
	server.RegisterService(describe(accept), nil)
	go func() { _ = server.Serve(socket) }() // it ends when the server is stopped
	l := &listener{url: a.url, server: server}
	if tcp, ok := socket.Addr().(*net.TCPAddr); ok {
		scheme := "grpc"
		if o.tls != nil {
			scheme = "grpcs"
		}
		host, _, _ := net.SplitHostPort(a.target[len("passthrough:///"):])
		l.url = fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, fmt.Sprint(tcp.Port)))
	}
	return l, nil
}

// describe is the service with its one method, Peer.
func describe(accept func(transport) (over <-chan struct{})) *grpc.ServiceDesc {
	peer := func(_ any, call grpc.ServerStream) error {
		aborted := make(chan struct{})
		over := accept(&stream{call, sync.OnceFunc(func() { close(aborted) })})
		select { // the call ends when this returns
		case <-over:
		case <-aborted:
		}
		return nil
	}
	return &grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "Peer", ServerStreams: true, ClientStreams: true, Handler: peer}},
	}
}

// close ends what is left of it, after a moment for the calls to end by themselves.
func (l *listener) close() {
	done := make(chan struct{})
	go func() {
		l.server.GracefulStop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeTime):
		l.server.Stop()
		<-done
	}
}
