// How functions run. Each starts in order of arrival, and has so many runs at once at most; what comes meanwhile waits,
// within a bound. A message costs no goroutine of its own: a worker runs a function for one waiting message after
// another. Only where messages still wait after a moment there come more workers, twice as many each time: so short runs
// begin one after another, and a run that blocks holds up nobody. A worker that finds nothing to do ends.

package exchange

import (
	"context"
	"errors"
	"runtime/debug"
	"time"
)

// errPanicked is how a handler ended that panicked, which is in the log by then.
var errPanicked = errors.New("it panicked")

// run is one message for one function.
type run struct {
	message   *Message
	from      string
	function  *registered
	open      *openRequest // that it answers; nil: none
	ctx       context.Context
	cancel    context.CancelFunc
	stop      func() bool // nobody need look at its time
	inv       *invocation
	started   time.Time
	answered  bool
	withdrawn bool
}

// deliver lets what is registered for a message run soon; false if nothing is.
func (x *Exchange) deliver(m *Message, from string, o *openRequest) (taken bool, err error) {
	handler, beside := x.registeredFor(m, from)
	if handler != nil {
		r := x.newRun(m, from, handler)
		if r.open = o; o != nil {
			x.watchTime(r)
		}
		if err := x.queue(r); err != nil {
			return true, err
		}
	}
	for _, l := range beside {
		if err := x.queue(x.newRun(m, from, l.function)); err != nil {
			x.missed(l.function)
		}
	}
	if handler == nil && len(beside) > 0 {
		x.onlyHeard(m, o)
	}
	return handler != nil || len(beside) > 0, nil
}

// missed: a listener is too slow, and one more message will never reach it.
func (x *Exchange) missed(f *registered) {
	if f.missed++; f.missed&(f.missed-1) == 0 { // at 1, 2, 4, 8, ...
		x.logger().Warn("a listener is too slow", "name", f.label, "missed", f.missed)
	}
}

// registeredFor is the handler of a message, and those who listen beside it.
func (x *Exchange) registeredFor(m *Message, from string) (handler *registered, beside []*listening) {
	if m.Kind == KindPublish {
		for _, l := range x.subscribers {
			if Fits(l.pattern, m.Name) {
				beside = append(beside, l)
			}
		}
		return nil, beside
	}
	for _, l := range x.listeners[m.Name] {
		if l.peer == "" || l.peer == from {
			beside = append(beside, l)
		}
	}
	return x.handlers[m.Name], beside
}

// watchTime ends the context of the run of a request with the time of that.
func (x *Exchange) watchTime(r *run) {
	r.open.run = r
	r.ctx, r.cancel = context.WithDeadline(x.base, r.message.deadline)
	r.stop = context.AfterFunc(r.ctx, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.overdue(r)
	})
}

// onlyHeard: where all only listen, a request has an empty reply.
func (x *Exchange) onlyHeard(m *Message, o *openRequest) {
	if o != nil {
		reply := x.make(KindReply, m.Name, behindOf(m), messageLife)
		reply.To, reply.ReplyTo, reply.Last = m.From, m.ID, true
		if m.Many {
			reply.end = &[]string{}
		}
		x.reply(reply)
	}
	if m.Kind != KindPublish {
		x.ledger.record(m.ID, eventEntry{at: time.Now(), outcome: OutcomeHandled, by: "listeners"})
	}
}

func (x *Exchange) newRun(m *Message, from string, f *registered) *run {
	return &run{message: m, from: from, function: f, inv: &invocation{message: m}}
}

func (x *Exchange) queue(r *run) error {
	f := r.function
	if x.closed || f.running+f.waiting.len() >= f.most+handlerQueue {
		if r.cancel != nil {
			r.cancel()
		}
		if x.closed {
			return tooMuch("%s is closed", x.id)
		}
		return tooMuch("more than %d messages wait for %s", handlerQueue, f.label)
	}
	f.waiting.pushBack(r)
	if f.handler != nil || f.stream != nil { // it waits here: whoever sent it may send the less meanwhile
		r.message.waits++
		if r.message.keeper != nil {
			r.message.keeper.retain(len(r.message.Payload))
		}
	}
	x.moreWorkers(f)
	return nil
}

// moreWorkers sees that somebody takes what waits: at once if nobody works, else after a moment.
func (x *Exchange) moreWorkers(f *registered) {
	switch {
	case f.waiting.len() == 0:
		f.step = 1
	case f.ready > 0 || f.pausing || f.running >= f.most:
	case f.running == 0:
		x.startWorkers(f, 1)
	default:
		f.pausing = true
		time.AfterFunc(handlerTurn, func() {
			x.mu.Lock()
			defer x.mu.Unlock()
			f.pausing = false
			x.startWorkers(f, f.step)
			f.step = min(2*f.step, handlerConcurrency)
		})
	}
}

func (x *Exchange) startWorkers(f *registered, count int) {
	for range min(count, f.waiting.len()-f.ready, f.most-f.running-f.ready) {
		f.ready++
		x.working++
		go x.work(f)
	}
}

func (x *Exchange) work(f *registered) {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.rest()
	for f.waiting.len() > 0 && f.running < f.most {
		r := f.waiting.popFront()
		x.released(r)
		if r.withdrawn {
			continue
		}
		f.ready--
		f.running++
		x.moreWorkers(f)
		x.mu.Unlock()
		x.execute(r)
		x.mu.Lock()
		f.running--
		f.ready++
	}
	f.ready--
}

// rest: a worker has found nothing to do.
func (x *Exchange) rest() {
	x.working--
	if x.working == 0 && x.quiet != nil {
		close(x.quiet)
		x.quiet = nil
	}
}

func (x *Exchange) released(r *run) {
	m := r.message
	if r.function.listener != nil {
		return
	}
	if m.keeper != nil {
		m.keeper.release(len(m.Payload))
	}
	if m.waits--; m.waits == 0 {
		m.settle()
	}
}

// withdraw: nobody waits for the answer of this handler.
func (x *Exchange) withdraw(o *openRequest) {
	if r := o.run; r != nil {
		r.withdrawn, r.answered = true, true
		r.cancel()
	}
}

// overdue: the context of a handler has ended, be it by its time.
func (x *Exchange) overdue(r *run) {
	o := r.open
	if o == nil || o.scatter != nil || r.ctx.Err() != context.DeadlineExceeded || x.router.open[o.request.ID] != o {
		return
	}
	x.router.abandon(o, OutcomeExpired, "its time was over")
	request := *o.request
	request.emit = o.emit
	if o.request.Many && o.request.To == "" {
		x.router.answerError(&request, o.from, RequestError{}, []string{x.id})
	} else {
		x.router.answerError(&request, o.from, x.router.tooLate(&request), nil)
	}
	x.answeredTo(o.from)
}

// execute runs a function, outside of the mutex.
func (x *Exchange) execute(r *run) {
	if r.ctx == nil {
		r.ctx, r.cancel = context.WithCancel(x.base)
	}
	r.started = time.Now()
	ctx := context.WithValue(r.ctx, invocationKey{}, r.inv)
	value, err := x.call(ctx, r)
	if r.function.listener == nil {
		x.concluded(r, value, err)
	}
	if r.stop != nil {
		r.stop()
	}
	r.cancel()
}

func (x *Exchange) call(ctx context.Context, r *run) (value any, err error) {
	m, f := r.message, r.function
	defer func() {
		if problem := recover(); problem != nil {
			x.logger().Error("a handler panicked", "name", m.Name, "id", m.ID, "panic", problem, "stack", string(debug.Stack()))
			err = errPanicked
		}
	}()
	if m.ContentType == jsonType { // what cannot be read never reaches a function
		if err := checkJSON(m.Payload); err != nil {
			e := refusal(err)
			return nil, &Refused{e}
		}
	}
	switch {
	case f.handler != nil:
		return f.handler(ctx, m)
	case f.stream != nil:
		err := f.stream(ctx, m, func(value any) error { return x.replyMore(ctx, r, value) })
		if errors.Is(err, ErrAnswered) && r.answered {
			err = nil
		}
		return nil, err
	default:
		f.listener(ctx, m)
		return nil, nil
	}
}
