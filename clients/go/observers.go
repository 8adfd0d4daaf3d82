// Those who look on: observers of messages, and those who are notified of events. Each sees one after another, in
// order, and misses those for which its queue has no room. Nobody waits for them.

package exchange

import (
	"context"
	"strings"
)

// Seen says why an observer sees a message.
type Seen int

// Why an observer sees a message. The numbers are those of the contract.
const (
	SeenReceived Seen = 1
	SeenEmitted  Seen = 3
)

// Event is what happened to the exchange itself: Connected, Lost, Resumed, GaveUp or NotHandled. As JSON an event has
// the fields that docs/system.md names.
type Event interface {
	// EventName is a word for logs: connected, lost, resumed, gave_up or unhandled.
	EventName() string
}

// Connected: a link was made.
type Connected struct {
	ID    string `json:"id"`
	Agent string `json:"agent"`
	Relay bool   `json:"relay"`
}

// Lost: a link has broken or ended. If it was dialled it is dialled again, unless GaveUp follows.
type Lost struct {
	ID     string `json:"id"`
	Reason string `json:"reason"`
}

// Resumed: a link is there again. If it was not recovered, the peer has lost its memory, and nobody knows
// whether the messages in Uncertain arrived.
type Resumed struct {
	ID        string   `json:"id"`
	Recovered bool     `json:"recovered"`
	Uncertain []string `json:"uncertain"`
	Seconds   float64  `json:"seconds"` // that it was away
}

// GaveUp: a link is not waited for, or dialled, any more.
type GaveUp struct {
	ID     string `json:"id"`
	Reason string `json:"reason"`
}

// NotHandled: a send of ours was not handled.
type NotHandled struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason"` // as in a RequestError
	Err     error   `json:"-"`
}

// EventName is "connected".
func (Connected) EventName() string { return "connected" }

// EventName is "lost".
func (Lost) EventName() string { return "lost" }

// EventName is "resumed".
func (Resumed) EventName() string { return "resumed" }

// EventName is "gave_up".
func (GaveUp) EventName() string { return "gave_up" }

// EventName is "unhandled".
func (NotHandled) EventName() string { return "unhandled" }

// observer is a function with what it has yet to see.
type observer struct {
	pattern string
	see     func(any)
	most    int
	waiting deque[any]
	bytes   int
	missed  int
	running bool
}

type sight struct {
	message *Message
	seen    Seen
}

// Observe calls f for every message that is received or emitted here and whose name fits, one after another, until
// remove is called. It claims nothing. An observer that is too slow misses messages.
func (x *Exchange) Observe(pattern string, f func(ctx context.Context, msg *Message, seen Seen)) (remove func(), err error) {
	if err := checkPattern(pattern); err != nil {
		return nil, err
	}
	o := &observer{pattern: pattern, most: observerQueue, see: func(what any) {
		s := what.(sight)
		f(context.WithValue(x.base, invocationKey{}, &invocation{message: s.message}), s.message, s.seen)
	}}
	return x.watch(&x.observers, o), nil
}

// Notify calls f for every event, one after another, until remove is called.
func (x *Exchange) Notify(f func(Event)) (remove func()) {
	return x.watch(&x.notified, &observer{most: eventQueue, see: func(what any) { f(what.(Event)) }})
}

func (x *Exchange) watch(all *[]*observer, o *observer) (remove func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	*all = append(*all, o)
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		*all = without(*all, o)
	}
}

// show shows a message to those who observe it. The system is not shown.
func (x *Exchange) show(seen Seen, m *Message) {
	if len(x.observers) == 0 || strings.HasPrefix(m.Name, reserved) {
		return
	}
	for _, o := range x.observers {
		if Fits(o.pattern, m.Name) {
			x.put(o, sight{m, seen}, len(m.Payload))
		}
	}
}

func (x *Exchange) notify(e Event) {
	for _, o := range x.notified {
		x.put(o, e, 0)
	}
}

func (x *Exchange) put(o *observer, what any, size int) {
	if o.waiting.len() >= o.most || o.bytes+size > observerQueueBytes && o.waiting.len() > 0 {
		if o.missed++; o.missed&(o.missed-1) == 0 { // at 1, 2, 4, 8, ...
			x.logger().Warn("an observer is too slow", "pattern", o.pattern, "missed", o.missed)
		}
		return
	}
	o.waiting.pushBack(what)
	o.bytes += size
	if !o.running {
		o.running = true
		go x.look(o)
	}
}

func (x *Exchange) look(o *observer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for o.waiting.len() > 0 {
		what := o.waiting.popFront()
		if s, ok := what.(sight); ok {
			o.bytes -= len(s.message.Payload)
		}
		x.mu.Unlock()
		o.see(what)
		x.mu.Lock()
	}
	o.running = false
}
