// The process under test of the Go client, driven over stdin and stdout: see tests/conformance/README.md.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
)

type object = map[string]any

type command struct { // all that a command, or what a handler does, may be told
	ID, URL, Peer, Name, Pattern, Do, To, Via, Exchange, Key, Reason, Text string

	ContentType string `json:"content_type"`
	Data        []byte
	Value       json.RawMessage
	Values      []json.RawMessage
	Headers     map[string]string
	Names       []string
	Limits      map[string]float64
	Retry       float64
	Timeout     *float64
	Code        codes.Code
	Expected    *uint64
	With        *command
}

type process struct {
	app               *exchange.Exchange
	removes, released sync.Map // by name: what takes a handler away; by id: what lets one go that waits
	out               sync.Mutex
}

func main() {
	p, running := new(process), map[string]context.CancelFunc{}
	in, any := bufio.NewReader(os.Stdin), protodelim.UnmarshalOptions{MaxSize: -1}
	for m := new(pb.Message); any.UnmarshalFrom(in, m) == nil; m = new(pb.Message) {
		ctx, cancel := context.WithCancel(context.Background())
		if withdraw := running[m.GetReplyTo()]; withdraw != nil {
			withdraw()
			continue
		}
		running[m.GetId()] = cancel
		done := make(chan struct{})
		go func() { p.command(ctx, m); close(done) }()
		select { // they begin in order, and one that waits holds up none
		case <-done:
		case <-time.After(10 * time.Millisecond):
		}
	}
	if p.app != nil {
		must(p.app.Close())
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (p *process) write(m *pb.Message, value any, err error) {
	data, wrong := json.Marshal(value)
	must(wrong)
	m.Payload = &pb.Message_Json{Json: data}
	if err != nil {
		m.Error = status.Convert(err).Proto()
	}
	p.out.Lock()
	defer p.out.Unlock()
	_, wrong = protodelim.MarshalTo(os.Stdout, m)
	must(wrong)
}

func (p *process) tell(event string, value any) {
	p.write(&pb.Message{Kind: pb.Kind_KIND_SEND, Name: event}, value, nil)
}

func (p *process) command(ctx context.Context, m *pb.Message) {
	reply := func(value any, err error, last bool) {
		p.write(&pb.Message{Kind: pb.Kind_KIND_REPLY, Name: m.GetName(), ReplyTo: m.GetId(), Last: last}, value, err)
	}
	c := command{With: new(command), Retry: 1e9}
	must(json.Unmarshal(m.GetJson(), &c))
	if c.Timeout != nil {
		timed, cancel := context.WithTimeout(ctx, seconds(*c.Timeout))
		defer cancel()
		ctx = timed
	}
	value, err := p.run(ctx, m.GetName(), c, func(value any, err error) { reply(value, err, false) })
	reply(value, err, true)
}

// as names what a function gave.
func as(name string) func(any, error) (any, error) {
	return func(value any, err error) (any, error) { return object{name: value}, err }
}

func (p *process) run(ctx context.Context, verb string, c command, more func(any, error)) (any, error) {
	x, state, value := p.app, p.app.State(c.Exchange), c.value()
	options := []exchange.CallOption{exchange.To(c.To), exchange.Via(c.Via), exchange.Headers(c.Headers)}
	keep := func(remove func(), err error) (any, error) {
		p.removes.Store(c.Name, remove)
		return nil, err
	}
	hear := func(_ context.Context, m *exchange.Message) {
		data, err := json.Marshal(m)
		must(err)
		p.tell("heard", json.RawMessage(fmt.Sprintf(`{"by":%q,%s`, verb, data[1:])))
	}
	switch verb {
	case "start":
		return object{"agent": "go/" + exchange.Version}, p.start(c)
	case "listen":
		return as("url")(x.Listen(c.URL))
	case "connect":
		return as("peer")(x.Connect(ctx, c.URL, exchange.WithRetry(seconds(c.Retry))))
	case "disconnect", "peers":
		peers := []exchange.PeerInfo{}
		for _, peer := range x.Peers() {
			peers = append(peers, peer.Info())
			if peer.ID() == c.Peer {
				must(peer.Close())
			}
		}
		return object{"peers": peers}, nil
	case "close":
		return nil, x.Close()
	case "handle":
		if c.Do == "many" {
			return keep(x.HandleStream(c.Name, func(_ context.Context, m *exchange.Message, reply func(any) error) error {
				p.tell("handling", m)
				for _, value := range c.With.Values {
					must(reply(value))
				}
				return nil
			}))
		}
		return keep(x.Handle(c.Name, func(ctx context.Context, m *exchange.Message) (any, error) { return p.handle(ctx, c, m) }))
	case "unhandle":
		remove, _ := p.removes.Load(c.Name)
		remove.(func())()
	case "release":
		p.released.Range(func(_, release any) bool { release.(context.CancelFunc)(); return true })
	case "on":
		return keep(x.On(c.Name, hear))
	case "subscribe":
		return keep(x.Subscribe(c.Pattern, hear))
	case "observe":
		return keep(x.Observe(c.Pattern, func(ctx context.Context, m *exchange.Message, _ exchange.Seen) { hear(ctx, m) }))
	case "send":
		return as("id")(x.Send(ctx, c.Name, value, options...))
	case "publish":
		return as("id")(x.Publish(ctx, c.Name, value, options...))
	case "broadcast":
		return as("id")(x.Broadcast(ctx, c.Name, value, options...))
	case "request":
		return x.Request(ctx, c.Name, value, options...)
	case "request_many":
		replies, err := x.RequestMany(ctx, c.Name, value, options...)
		if err != nil {
			return nil, err
		}
		for reply, err := range replies.All() {
			if reply == nil {
				return nil, err
			}
			more(reply, err)
		}
		return object{"lost": append([]string{}, replies.Lost()...)}, nil
	case "state.get":
		return state.Get(ctx, c.Name)
	case "state.set":
		if c.Expected != nil {
			return state.SetIf(ctx, c.Name, c.Value, *c.Expected)
		}
		return state.Set(ctx, c.Name, c.Value)
	case "state.watch":
		for change, err := range state.Watch(ctx, c.Names...) {
			if err != nil {
				return nil, err
			}
			more(change, nil)
		}
	case "trace":
		return x.Trace(ctx, c.ID)
	case "why":
		return x.Why(ctx, c.Key, c.Exchange)
	}
	return nil, nil
}

func (c *command) value() any {
	if c.Data != nil {
		return exchange.Data{ContentType: c.ContentType, Content: c.Data}
	}
	return json.RawMessage(cmp.Or(string(c.Value), "null"))
}

func seconds(of float64) time.Duration { return time.Duration(of * float64(time.Second)) }

func (p *process) start(c command) (err error) {
	l := func(name string) time.Duration { return seconds(c.Limits[name+"_seconds"]) }
	p.app, err = exchange.New(c.ID, exchange.WithLogger(slog.Default()), exchange.WithLimits(exchange.Limits{
		Handshake: l("handshake"), Heartbeat: l("heartbeat"), Silence: l("silence"), Away: l("away"), Resume: l("resume"),
		ReconnectMin: l("reconnect_min"), ReconnectMax: l("reconnect_max"),
		CreditMessages: uint64(c.Limits["credit_messages"]), CreditBytes: uint64(c.Limits["credit_bytes"]),
	}))
	if err == nil {
		p.app.Notify(func(e exchange.Event) { p.tell(e.EventName(), e) })
	}
	return err
}

func (p *process) handle(ctx context.Context, c command, m *exchange.Message) (answer any, err error) {
	waiting, release := context.WithCancel(ctx)
	p.released.Store(m.ID, release)
	p.tell("handling", m)
	switch with := c.With; c.Do {
	case "echo":
		return m.Value(), nil
	case "see":
		return m, nil
	case "fail":
		return nil, errors.New("secret")
	case "refuse":
		return nil, exchange.Refuse(with.Code, with.Reason, "%s", with.Text)
	case "wait":
		if <-waiting.Done(); ctx.Err() == nil {
			return "released", nil
		}
		p.tell("cancelled", object{"id": m.ID})
		return nil, ctx.Err()
	case "send":
		_, err = p.app.Send(ctx, with.Name, with.value())
	case "publish":
		_, err = p.app.Publish(ctx, with.Name, with.value())
	case "request":
		return exchange.Ask[any](ctx, p.app, with.Name, with.value())
	}
	return nil, err
}
