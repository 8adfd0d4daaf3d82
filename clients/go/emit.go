// Emitting: send, publish, broadcast, request.
//
// What is emitted with the context of a handler is caused by its message. Who sends waits while the peer is full, for
// as long as the context lets him, 30 s at most; a link that is broken is full when enough waits on it.

package exchange

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
)

// Send emits a message to one exchange that handles name (here, next to here, or found by asking), or to the one in
// [To]. value is what encoding/json can say, or [Data], or []byte. It returns the id of the message once that was
// taken here or is on its way. It fails with [Unhandled] if nobody takes it. What goes wrong later is told by the event
// [NotHandled].
func (x *Exchange) Send(ctx context.Context, name string, value any, options ...CallOption) (id string, err error) {
	return x.send(ctx, KindSend, name, value, options)
}

// Publish emits a message to every exchange of the mesh that subscribes to name, once each.
func (x *Exchange) Publish(ctx context.Context, name string, value any, options ...CallOption) (id string, err error) {
	return x.send(ctx, KindPublish, name, value, options)
}

// Broadcast emits a message to every direct peer, one hop, interested or not.
func (x *Exchange) Broadcast(ctx context.Context, name string, value any, options ...CallOption) (id string, err error) {
	return x.send(ctx, KindBroadcast, name, value, options)
}

// Request emits a request to one exchange that handles name, or to the one in [To], and returns the reply. It waits
// until ctx ends, 30 s if that has no deadline; then the handler is cancelled. It fails with one of the kinds of
// [RequestError], or [InvalidMessage] for what cannot be sent.
func (x *Exchange) Request(ctx context.Context, name string, value any, options ...CallOption) (*Message, error) {
	c := callOf(options)
	ctx, cancel := c.bound(ctx)
	defer cancel()
	m, err := x.compose(ctx, KindRequest, name, value, c)
	if err != nil {
		return nil, err
	}
	m.emit = &emission{reply: make(chan *Message, 1)}
	if err := x.waitForRoom(ctx, m, c.via); err != nil {
		return nil, err
	}
	if err := x.route(m, c.via); err != nil {
		return nil, err
	}
	select {
	case reply := <-m.emit.reply:
		return x.taken(ctx, reply)
	case <-ctx.Done():
	}
	x.withdrawOwn(ctx, m)
	select { // it may have come in the same moment
	case reply := <-m.emit.reply:
		return x.taken(ctx, reply)
	default:
		return nil, x.over(ctx, m)
	}
}

// Ask is [Exchange.Request] for an answer of a Go type.
func Ask[Out any](ctx context.Context, x *Exchange, name string, value any, options ...CallOption) (out Out, err error) {
	reply, err := x.Request(ctx, name, value, options...)
	if err != nil {
		return out, err
	}
	return out, reply.Decode(&out)
}

func (x *Exchange) taken(ctx context.Context, reply *Message) (*Message, error) {
	if inv := invocationOf(ctx); inv != nil { // a further cause of what the handler does next
		inv.after(reply)
	}
	if err := reply.readable(); err != nil {
		return nil, err
	}
	return reply, nil
}

// readable is why there is nothing to read in a reply: the request failed, or it is no JSON and says it was.
func (m *Message) readable() error {
	if m.Err == nil && m.end == nil && m.ContentType == jsonType {
		return checkJSON(m.Payload)
	}
	return m.Err
}

// over is why a context ended, for who waited with it for a message of ours.
func (x *Exchange) over(ctx context.Context, m *Message) error {
	if ctx.Err() == context.DeadlineExceeded {
		return typed(x.router.tooLate(m))
	}
	return typed(RequestError{Code: codes.Canceled, Reason: "CANCELLED", Text: "the caller withdrew it", At: x.id})
}

func (x *Exchange) withdrawOwn(ctx context.Context, m *Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.router.open[m.ID]; o != nil && o.from == here {
		if ctx.Err() == context.DeadlineExceeded {
			x.router.abandon(o, OutcomeExpired, "its time was over")
		} else {
			x.router.abandon(o, OutcomeCancelled, "the caller withdrew it")
		}
	}
}

func callOf(options []CallOption) call {
	var c call
	for _, option := range options {
		option(&c)
	}
	return c
}

// bound gives ctx a deadline, if it has none.
func (c *call) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has || c.forever {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, requestLife)
}

// compose checks and writes a message, outside of the mutex.
func (x *Exchange) compose(ctx context.Context, kind Kind, name string, value any, c call) (*Message, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if c.to != "" {
		if err := checkID(c.to); err != nil {
			return nil, err
		}
	}
	if err := checkHeaders(c.headers); err != nil {
		return nil, err
	}
	payload, contentType, err := encode(value)
	if err != nil {
		return nil, err
	}
	life := messageLife
	if kind == KindRequest {
		life = longestLife
		if deadline, has := ctx.Deadline(); has {
			life = time.Until(deadline)
		}
	}
	m := x.make(kind, name, behindContext(ctx), life)
	m.To, m.Payload, m.ContentType, m.Headers = c.to, payload, contentType, c.headers
	m.packed, err = pack(m, false)
	return m, err
}

func (x *Exchange) send(ctx context.Context, kind Kind, name string, value any, options []CallOption) (string, error) {
	c := callOf(options)
	m, err := x.compose(ctx, kind, name, value, c)
	if err != nil {
		return "", err
	}
	m.emit = &emission{sent: make(chan error, 1)}
	if err := x.waitForRoom(ctx, m, c.via); err != nil {
		return "", err
	}
	if err := x.route(m, c.via); err != nil {
		return "", err
	}
	select {
	case err = <-m.emit.sent:
		return m.ID, err
	case <-ctx.Done():
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case err = <-m.emit.sent: // it has left in the same moment
	default:
		m.withdrawn = true
		err = x.over(ctx, m)
	}
	return m.ID, err
}

func (x *Exchange) route(m *Message, via string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return &Closed{x.id}
	}
	x.router.emit(m, via)
	return nil
}

// waitForRoom waits while every link that the message may take is full. What goes to many does not wait for the
// slowest of them, but for the only one.
func (x *Exchange) waitForRoom(ctx context.Context, m *Message, via string) error {
	return x.waitRoom(ctx, m, func() *link {
		if via != "" {
			return x.byPeer[via]
		}
		var ways []string
		if m.Kind == KindSend || m.Kind == KindRequest {
			t := targetOf(m)
			if ways = x.router.nextTo(t); len(ways) == 0 {
				ways = x.router.behind(t)
			}
		} else if len(x.router.peers) == 1 {
			ways = slices.Collect(maps.Keys(x.router.peers))
		}
		var full *link
		for _, id := range ways {
			if full = x.byPeer[id]; full == nil || full.mustWait() == nil {
				return nil
			}
		}
		return full
	})
}

// waitRoom waits while the link that find gives for a message is full.
func (x *Exchange) waitRoom(ctx context.Context, m *Message, find func() *link) error {
	var limit <-chan time.Time
	for {
		x.mu.Lock()
		l := find()
		var room <-chan struct{}
		if l != nil {
			room = l.mustWait()
		}
		x.mu.Unlock()
		if room == nil {
			return nil
		}
		if _, bound := ctx.Deadline(); !bound && limit == nil {
			limit = time.After(messageLife)
		}
		select {
		case <-room:
		case <-ctx.Done():
			return x.over(ctx, m)
		case <-limit:
			return typed(x.router.full("the link has had no room for too long"))
		}
	}
}
