// What belongs to other messages: replies, cancels and reports of what became of a send.

package exchange

import (
	"errors"
	"google.golang.org/grpc/codes"
)

func (r *router) reply(m *Message, from string) {
	o := r.open[m.ReplyTo]
	holder := or(from, r.me)
	if o == nil || !o.isHeldBy(holder) {
		if m.end == nil { // who ended by a last reply may say so once more
			r.record(m.ID, OutcomeDropped, "", "nobody waits for it, or not from there")
		}
		return
	}
	if from != here && o.kept != nil && astray(m.Err, from) {
		r.discovery.forget(targetOf(o.kept), from)
		request := o.kept
		o.kept, o.again, o.holder = nil, true, ""
		delete(r.peers[from].out, request.ID)
		r.dispatch(request, here, "")
		return
	}
	if o.scatter == nil {
		if m.Last || m.end != nil || !o.request.Many {
			r.close(o)
		}
	} else if !o.scatter.heard(holder, m) {
		r.leftBy(holder, o)
		r.endScatter(o)
		return
	}
	if o.from == here {
		if from != here {
			r.x.show(SeenReceived, m)
		}
		o.resolve(m)
	} else {
		r.passBack(o, m)
	}
	if o.scatter != nil && !o.isHeldBy(holder) {
		r.leftBy(holder, o)
		r.endScatter(o)
	}
}

// resolve gives a reply to whoever waits for it here.
func (o *openRequest) resolve(m *Message) {
	switch {
	case o.emit == nil: // nobody waits any more
	case o.emit.replies != nil:
		o.emit.replies.take(m)
	case o.emit.reply != nil:
		select {
		case o.emit.reply <- m:
		default: // it has one: nobody waits for a second
		}
	}
}

// passBack: a reply of ours goes to whoever asked. What cannot be said becomes an error that can.
func (r *router) passBack(o *openRequest, m *Message) {
	err := r.x.transmit(o.from, m)
	if err == nil {
		r.record(m.ID, OutcomeForwarded, o.from, "")
		return
	}
	r.record(m.ID, OutcomeDenied, "", err.Error())
	if m.Err == nil {
		code := codes.OutOfRange
		if limit := (*LimitExceeded)(nil); errors.As(err, &limit) {
			code = codes.ResourceExhausted
		}
		r.answerError(o.request, o.from, r.problem(code, "ANSWER", "the answer cannot be sent: "+err.Error()), nil)
	}
	if r.open[o.request.ID] == o { // whoever asked hears no more: there is no gap
		r.abandon(o, OutcomeDropped, "a reply could not be passed on")
	}
}

// abandon: nobody waits for this request any more. Whoever has it is told.
func (r *router) abandon(o *openRequest, outcome Outcome, reason string) {
	r.close(o)
	r.record(o.request.ID, outcome, "", reason)
	for _, holder := range o.holders() {
		if holder == r.me {
			r.x.withdraw(o)
			continue
		}
		cancel := r.x.make(KindCancel, o.request.Name, behindOf(o.request), messageLife)
		cancel.ReplyTo = o.request.ID
		r.x.ledger.note(cancel)
		r.x.transmitQuietly(holder, cancel)
	}
}

func (r *router) outcome(m *Message, from string) {
	if from != here && astray(m.Err, from) {
		r.discovery.forget(target{name: m.Name}, from)
	}
	if m.To != r.me {
		r.record(m.ID, OutcomeDropped, "", "its addressee is gone")
		return
	}
	r.x.show(SeenReceived, m)
	err := r.unhandled("no reason was given")
	if m.Err != nil {
		err = requestErrorOf(m.Err)
	}
	r.x.unhandled(m.ReplyTo, m.Name, or(m.outcome, OutcomeUnhandled), err)
}

func (r *router) close(o *openRequest) {
	delete(r.open, o.request.ID)
	if peer := r.peers[o.from]; peer != nil {
		delete(peer.came, o.request.ID)
	}
	for _, holder := range o.holders() {
		r.leftBy(holder, o)
	}
}

func (r *router) leftBy(holder string, o *openRequest) {
	if peer := r.peers[holder]; peer != nil {
		delete(peer.out, o.request.ID)
	}
}
