// What a client answers of itself, under names that begin with `exchange.`: describe, peers and trace. The shapes are
// those of docs/system.md. And what it asks others: traces and why.

package exchange

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

const systemVersion = 1 // of the shapes of all answers

type fields = map[string]any

func (x *Exchange) installSystem() {
	for name, h := range map[string]Handler{
		"exchange.describe": func(context.Context, *Message) (any, error) { return x.describe(), nil },
		"exchange.peers":    func(context.Context, *Message) (any, error) { return x.describePeers(), nil },
		"exchange.trace":    x.answerTrace,
	} {
		f := newRegistered(name, nil)
		f.handler = h
		x.handlers[name] = f
		x.router.offers[name] = true
	}
}

func (x *Exchange) describe() fields {
	x.mu.Lock()
	defer x.mu.Unlock()
	me := x.introduction()
	slices.Sort(me.handles)
	slices.Sort(me.subscribes)
	return fields{
		"version": systemVersion, "exchange": x.id, "epoch": x.epoch, "agent": agent, "protocol": protocolVersion,
		"relay": false, "accepts": []string{}, "peers": sortedKeys(x.faces),
		"interest": fields{
			"revision": me.revision, "handles": me.handles, "subscribes": me.subscribes, "exports": []string{},
		},
	}
}

func (x *Exchange) describePeers() fields {
	x.mu.Lock()
	defer x.mu.Unlock()
	peers := []fields{}
	for _, id := range sortedKeys(x.router.peers) {
		n, l := x.router.peers[id], x.byPeer[id]
		if l == nil {
			continue
		}
		s := l.session
		exports := s.peer.exports
		if exports == nil {
			exports = []string{}
		}
		peers = append(peers, fields{
			"id": id, "agent": s.peer.agent, "away": n.away, "relay": n.relay, "handles": sortedKeys(n.handles),
			"subscribes": sortedKeys(n.subscribes), "exports": exports, "pending": len(n.out),
			"queued": s.out.queue.len(), "unacknowledged": s.out.unacknowledged(), "dropped": 0, "slowed": 0,
		})
	}
	return fields{"version": systemVersion, "exchange": x.id, "peers": peers}
}

func (x *Exchange) answerTrace(ctx context.Context, msg *Message) (any, error) {
	var question struct {
		ID   *string `json:"id"`
		Root string  `json:"root"`
		Here bool    `json:"here"`
	}
	if err := msg.Decode(&question); err != nil || question.ID == nil {
		return nil, Refuse(codes.InvalidArgument, "INVALID_MESSAGE", `exchange.trace takes {"id": "..."}`)
	}
	if !question.Here {
		return x.Trace(ctx, *question.ID)
	}
	t := x.known(*question.ID, question.Root)
	if t == nil {
		return nil, x.unknown(*question.ID)
	}
	t.Version, t.Exchange, t.Missing = systemVersion, x.id, []Missing{}
	return t, nil
}

func (x *Exchange) known(id, root string) *Trace {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.ledger.trace(id, root)
}

func (x *Exchange) unknown(id string) error {
	return &Refused{RequestError{Code: codes.NotFound, Reason: "NOT_FOUND", Text: x.id + " knows no message " + shown(id), At: x.id}}
}

// Trace is all that is known of a message and of those with the same root, here and where they have been. The
// others are asked for at most 2 s, and who could not be asked is named. It fails with [Refused] (NOT_FOUND) if nobody
// knows the message.
func (x *Exchange) Trace(ctx context.Context, id string) (*Trace, error) {
	limit := traceTime
	if deadline, has := ctx.Deadline(); has {
		limit = min(limit, time.Until(deadline)*4/5) // the rest is for the answer to arrive
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := &tracing{x: x, id: id, root: id, missing: map[string]string{}, answers: map[string]*Trace{}}
	t.first(ctx)
	for _, answer := range t.answers {
		t.root = answer.Root
	}
	if mine := x.known(id, t.root); mine != nil { // of others with this root
		t.answers[x.id] = mine
	}
	t.gather(ctx)
	return t.result()
}

// tracing is the asking for one trace.
type tracing struct {
	x        *Exchange
	id, root string
	mu       sync.Mutex
	answers  map[string]*Trace
	missing  map[string]string // exchange -> why
}

// first asks whoever knows of the message at all: this exchange, its origin, anybody who relays.
func (t *tracing) first(ctx context.Context) {
	if mine := t.x.known(t.id, ""); mine != nil {
		t.answers[t.x.id] = mine
		return
	}
	origin, ok := originOf(t.id)
	if !ok {
		return
	}
	half, cancel := context.WithTimeout(ctx, traceTime/2)
	defer cancel()
	if origin != t.x.id && t.ask(half, origin, "") {
		return
	}
	replies, err := t.x.RequestMany(half, "exchange.trace", fields{"id": t.id, "here": true})
	if err != nil {
		return
	}
	for reply, err := range replies.All() {
		if err != nil || reply.From == t.x.id {
			continue
		}
		if answer := readTrace(reply.Payload, reply.From); answer != nil {
			t.answers[reply.From] = answer
			return
		}
	}
}

// gather asks whoever may know more, all at once; what one answers may name others.
func (t *tracing) gather(ctx context.Context) {
	asked := map[string]bool{t.x.id: true, "": true}
	for id := range t.answers {
		asked[id] = true
	}
	done := make(chan struct{}, traceExchanges)
	running := 0
	for {
		for _, id := range t.named() {
			if asked[id] {
				continue
			}
			asked[id] = true
			if len(asked) > traceExchanges {
				t.miss(id, "not asked: too many exchanges are named")
				continue
			}
			running++
			go func() {
				t.ask(ctx, id, t.root)
				done <- struct{}{}
			}()
		}
		if running == 0 {
			return
		}
		<-done
		running--
	}
}

func (t *tracing) named() (ids []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range []string{t.id, t.root} {
		if origin, ok := originOf(id); ok {
			ids = append(ids, origin)
		}
	}
	for _, answer := range t.answers {
		ids = append(ids, answer.passed()...)
	}
	return ids
}

func (t *tracing) miss(exchange, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.missing[exchange] = reason
}

// ask asks one exchange what it knows.
func (t *tracing) ask(ctx context.Context, exchange, root string) bool {
	reply, err := t.x.Request(ctx, "exchange.trace", fields{"id": t.id, "here": true, "root": root}, To(exchange))
	if err != nil {
		var e *RequestError
		if errors.As(err, &e) && e.Code != codes.NotFound { // of what is no id nobody can be asked
			t.miss(exchange, e.Text)
		}
		return false
	}
	answer := readTrace(reply.Payload, exchange)
	if answer == nil {
		t.miss(exchange, "its answer is no trace")
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.missing, exchange)
	if root == "" || answer.Root == root {
		t.answers[exchange] = answer
	}
	return true
}

func (t *tracing) result() (*Trace, error) {
	answers := make([]*Trace, 0, len(t.answers))
	for _, answer := range t.answers {
		answers = append(answers, answer)
	}
	merged := mergeTraces(t.root, answers)
	if len(merged.Spans) == 0 {
		return nil, t.x.unknown(t.id)
	}
	merged.Version, merged.Exchange, merged.Missing = systemVersion, t.x.id, []Missing{}
	for exchange, reason := range t.missing {
		merged.Missing = append(merged.Missing, Missing{exchange, reason})
	}
	slices.SortFunc(merged.Missing, func(a, b Missing) int { return strings.Compare(a.Exchange, b.Exchange) })
	return merged, nil
}

// Why is why a state name of an exchange has its value, or what became of a message, as `exchange.why` answers it. For a
// message exchange may be empty: then any relay is asked.
func (x *Exchange) Why(ctx context.Context, key, exchange string) (json.RawMessage, error) {
	var options []CallOption
	if exchange != "" {
		options = append(options, To(exchange))
	}
	reply, err := x.Request(ctx, "exchange.why", fields{"key": key}, options...)
	if err != nil {
		return nil, err
	}
	return reply.JSON(), nil
}
