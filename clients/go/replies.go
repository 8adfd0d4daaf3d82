// The replies to a request to many, as whoever asked takes them.

package exchange

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
)

const enoughReplies = 64 // that wait while a handler of this process may go on

// Replies are the replies to a request to many, as they come. They end when all who handle the name have ended, or when
// the time is over; then Lost names the exchanges whose replies are lost or did not all come.
type Replies struct {
	x       *Exchange
	ctx     context.Context
	cancel  context.CancelFunc
	request *Message

	mu      sync.Mutex
	waiting []*Message
	bytes   int
	over    bool
	err     error // why nothing more will come
	lost    []string
	changed chan struct{}
}

// RequestMany emits a request to every exchange within reach that handles name, or to the one in [To]. Each may reply
// many times. It waits until ctx ends, 30 s if that has no deadline.
func (x *Exchange) RequestMany(ctx context.Context, name string, value any, options ...CallOption) (*Replies, error) {
	c := callOf(options)
	ctx, cancel := c.bound(ctx)
	m, err := x.compose(ctx, KindRequest, name, value, c)
	if err == nil {
		m.Many = true
		m.packed, err = pack(m, false)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	r := &Replies{x: x, ctx: ctx, cancel: cancel, request: m, changed: make(chan struct{}, 1)}
	m.emit = &emission{replies: r}
	if err := x.waitForRoom(ctx, m, c.via); err != nil {
		cancel()
		return nil, err
	}
	if err := x.route(m, c.via); err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

// All gives each reply, with the error of the handler if that failed. If it all failed, there is an error without a
// message, and no more follows: [Unhandled] if nobody handles the name, [Cancelled] if ctx was cancelled. Leaving the
// loop cancels the handlers.
func (r *Replies) All() iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		defer r.Close()
		for {
			reply, err, more := r.next()
			if !more {
				return
			}
			if !yield(reply, err) || reply == nil {
				return
			}
		}
	}
}

func (r *Replies) next() (reply *Message, err error, more bool) {
	for {
		r.mu.Lock()
		if len(r.waiting) > 0 {
			reply, r.waiting = r.waiting[0], r.waiting[1:]
			r.bytes -= len(reply.Payload)
			r.mu.Unlock()
			r.note()
			if inv := invocationOf(r.ctx); inv != nil {
				inv.after(reply)
			}
			return reply, reply.readable(), true
		}
		err, more, over := r.err, r.err != nil, r.over
		r.err = nil
		r.mu.Unlock()
		if over {
			return nil, err, more
		}
		select {
		case <-r.changed:
		case <-r.ctx.Done():
			r.outOfTime()
		}
	}
}

// outOfTime: what has come so far counts, and whose replies have not come is said.
func (r *Replies) outOfTime() {
	r.x.mu.Lock()
	var late []string
	if o := r.x.router.open[r.request.ID]; o != nil {
		late = o.holders()
		if o.scatter != nil {
			late = append(late, o.scatter.lost...)
		}
	}
	r.x.mu.Unlock()
	r.x.withdrawOwn(r.ctx, r.request)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.over = true
	if r.request.To == "" {
		r.lost = slices.Compact(late)
	}
	if err := r.x.over(r.ctx, r.request); r.request.To != "" || !errors.Is(err, context.DeadlineExceeded) {
		r.err = err
	}
}

// Lost names the exchanges whose replies are lost, or did not all come. It is known when All has ended.
func (r *Replies) Lost() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// Close takes no more of them, and cancels the handlers.
func (r *Replies) Close() {
	r.mu.Lock()
	wasOver := r.over
	r.over, r.waiting, r.bytes = true, nil, 0
	r.mu.Unlock()
	if !wasOver {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r.x.withdrawOwn(ctx, r.request)
	}
	r.note()
	r.cancel()
}

func (r *Replies) note() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// take: one came. It is called under the mutex of the exchange.
func (r *Replies) take(reply *Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.note()
	switch {
	case r.over:
	case reply.end != nil:
		r.over, r.lost, r.err = true, *reply.end, reply.Err
	case len(r.waiting) >= repliesWaiting || r.bytes > repliesBytes:
		r.over = true
		r.err = tooMuch("more than %d replies or %d bytes wait to be taken", repliesWaiting, repliesBytes)
		if o := r.x.router.open[r.request.ID]; o != nil {
			r.x.router.abandon(o, OutcomeCancelled, "too many replies wait to be taken")
		}
	default:
		r.waiting = append(r.waiting, reply)
		r.bytes += len(reply.Payload)
		r.over = reply.Last && r.request.To != ""
	}
}

// room waits until whoever asked has taken some.
func (r *Replies) room(ctx context.Context) error {
	for {
		r.mu.Lock()
		wait := !r.over && (len(r.waiting) >= enoughReplies || r.bytes >= batchBytes)
		r.mu.Unlock()
		if !wait {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.changed:
			r.note() // for whoever takes them
		}
	}
}
