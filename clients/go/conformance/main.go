// The process under test of the Go client: what each command does, and each handler. See tests/conformance/README.md.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
	"google.golang.org/grpc/codes"
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
	stdio
}

// as names what a function gave.
func as(name string) func(any, error) (any, error) {
	return func(value any, err error) (any, error) { return object{name: value}, err }
}

func (p *process) run(ctx context.Context, verb string, c command, more func(any, error)) (any, error) {
	x, state, value := p.app, p.app.State(c.Exchange), c.value()
	options := []exchange.CallOption{exchange.To(c.To), exchange.Via(c.Via), exchange.Headers(c.Headers)}
	keep := func(remove func(), err error) (any, error) { p.removes.Store(c.Name, remove); return nil, err }
	hear := func(_ context.Context, m *exchange.Message) {
		data, err := json.Marshal(m)
		must(err)
		p.tell("heard", json.RawMessage(fmt.Sprintf(`{"by":%q,%s`, verb, data[1:])))
	}
	see := func(ctx context.Context, m *exchange.Message, _ exchange.Seen) { hear(ctx, m) }
	do := func(ctx context.Context, m *exchange.Message) (any, error) { return p.handle(ctx, c.Do, c.With, m) }
	peers := func() (infos []exchange.PeerInfo, err error) {
		infos = []exchange.PeerInfo{}
		for _, peer := range x.Peers() {
			if infos = append(infos, peer.Info()); peer.ID() == c.Peer {
				err = peer.Close()
			}
		}
		return infos, err
	}
	type result = func() (any, error)
	return map[string]result{
		"start":        func() (any, error) { return object{"agent": "go/" + exchange.Version}, p.start(c) },
		"listen":       func() (any, error) { return as("url")(x.Listen(c.URL)) },
		"connect":      func() (any, error) { return as("peer")(x.Connect(ctx, c.URL, exchange.WithRetry(seconds(c.Retry)))) },
		"disconnect":   func() (any, error) { return as("peers")(peers()) },
		"peers":        func() (any, error) { return as("peers")(peers()) },
		"close":        func() (any, error) { return nil, x.Close() },
		"handle":       func() (any, error) { return keep(x.Handle(c.Name, do)) },
		"handle many":  func() (any, error) { return keep(x.HandleStream(c.Name, p.many(c.With.Values))) },
		"unhandle":     func() (any, error) { remove, _ := p.removes.Load(c.Name); remove.(func())(); return nil, nil },
		"release":      func() (any, error) { p.released.Range(release); return nil, nil },
		"on":           func() (any, error) { return keep(x.On(c.Name, hear)) },
		"subscribe":    func() (any, error) { return keep(x.Subscribe(c.Pattern, hear)) },
		"observe":      func() (any, error) { return keep(x.Observe(c.Pattern, see)) },
		"send":         func() (any, error) { return as("id")(x.Send(ctx, c.Name, value, options...)) },
		"publish":      func() (any, error) { return as("id")(x.Publish(ctx, c.Name, value, options...)) },
		"broadcast":    func() (any, error) { return as("id")(x.Broadcast(ctx, c.Name, value, options...)) },
		"request":      func() (any, error) { return x.Request(ctx, c.Name, value, options...) },
		"request_many": func() (any, error) { return many(more)(x.RequestMany(ctx, c.Name, value, options...)) },
		"state.get":    func() (any, error) { return state.Get(ctx, c.Name) },
		"state.set":    func() (any, error) { return state.Set(ctx, c.Name, c.Value) },
		"state.setif":  func() (any, error) { return state.SetIf(ctx, c.Name, c.Value, *c.Expected) },
		"state.watch": func() (any, error) {
			for change, err := range state.Watch(ctx, c.Names...) {
				if err != nil {
					return nil, err
				}
				more(change, nil)
			}
			return nil, nil
		},
		"trace": func() (any, error) { return x.Trace(ctx, c.ID) },
		"why":   func() (any, error) { return x.Why(ctx, c.Key, c.Exchange) },
	}[verb]()
}

func release(_, one any) bool { one.(context.CancelFunc)(); return true }

// many tells of each reply to a request to many, and then who is lost.
func many(more func(any, error)) func(*exchange.Replies, error) (any, error) {
	return func(replies *exchange.Replies, err error) (any, error) {
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
	}
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

func (p *process) many(values []json.RawMessage) exchange.StreamHandler {
	return func(_ context.Context, m *exchange.Message, reply func(any) error) error {
		p.tell("handling", m)
		for _, value := range values {
			must(reply(value))
		}
		return nil
	}
}

func (p *process) handle(ctx context.Context, do string, with *command, m *exchange.Message) (answer any, err error) {
	waiting, release := context.WithCancel(ctx)
	p.released.Store(m.ID, release)
	p.tell("handling", m)
	switch do {
	case "echo":
		return m.Value(), nil
	case "see":
		return m, nil
	case "fail":
		err = errors.New("secret")
	case "refuse":
		err = exchange.Refuse(with.Code, with.Reason, "%s", with.Text)
	case "wait":
		if <-waiting.Done(); ctx.Err() == nil {
			return "released", nil
		}
		p.tell("cancelled", object{"id": m.ID})
	case "send":
		_, err = p.app.Send(ctx, with.Name, with.value())
	case "publish":
		_, err = p.app.Publish(ctx, with.Name, with.value())
	case "request":
		return exchange.Ask[any](ctx, p.app, with.Name, with.value())
	}
	return nil, err
}
