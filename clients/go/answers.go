// What a handler's end means: its answer, what became of the message, and what its caller hears.

package exchange

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
)

// answer makes an answer to the request of a run.
func (x *Exchange) answer(r *run, value any, failure error) (*Message, error) {
	payload, contentType, err := encode(value)
	if err != nil {
		return nil, err
	}
	m := x.make(KindReply, r.message.Name, r.inv.behind(), messageLife)
	m.To, m.ReplyTo, m.Payload, m.ContentType, m.Err = r.message.From, r.message.ID, payload, contentType, failure
	return m, nil
}

// reply routes an answer of ours.
func (x *Exchange) reply(m *Message) {
	o := x.router.open[m.ReplyTo]
	x.router.emit(m, "")
	if o != nil {
		x.answeredTo(o.from)
	}
}

// answeredTo ends a link that waited for nothing but our answers.
func (x *Exchange) answeredTo(peer string) {
	if l := x.byPeer[peer]; l != nil && l.readAll {
		l.endIfAnswered()
	}
}

// owes says whether a peer still waits for an answer of ours.
func (x *Exchange) owes(peer string) bool {
	n := x.router.peers[peer]
	return n != nil && len(n.came) > 0
}

// replyMore is one of many replies; it returns when there is room for the next.
func (x *Exchange) replyMore(ctx context.Context, r *run, value any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, err := x.answer(r, value, nil)
	if err != nil {
		return err
	}
	m.Last = !r.message.Many
	m.prepare()
	x.mu.Lock()
	if r.answered || r.message.Kind != KindRequest {
		x.mu.Unlock()
		return ErrAnswered
	}
	r.answered = m.Last
	x.reply(m)
	l := x.byPeer[r.from]
	x.mu.Unlock()
	if l != nil {
		return x.waitRoom(ctx, m, func() *link { return l })
	}
	if o := r.open; o != nil && o.emit != nil && o.emit.replies != nil {
		return o.emit.replies.room(ctx)
	}
	return nil
}

// concluded: a handler has ended. It is recorded, and what it left unanswered is answered.
func (x *Exchange) concluded(r *run, value any, err error) {
	outcome, failure := x.judge(r, err)
	var reply *Message
	if r.message.Kind == KindRequest {
		reply, outcome, failure = x.lastAnswer(r, value, outcome, failure)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.overdue(r) // it may be so in this very moment
	reason := ""
	if failure != nil {
		reason = failure.Error()
	}
	switch {
	case r.message.Kind == KindSend && failure != nil:
		x.router.report(r.message, r.from, outcome, requestErrorOf(failure))
	case reply != nil && !r.answered:
		r.answered = true
		x.reply(reply)
	case reply != nil && value != nil && r.withdrawn:
		x.ledger.record(r.message.ID, x.entry(r, OutcomeDropped, "a second answer: the first had gone"))
	}
	x.ledger.record(r.message.ID, x.entry(r, outcome, reason))
}

func (x *Exchange) entry(r *run, outcome Outcome, reason string) eventEntry {
	now := time.Now()
	return eventEntry{at: now, outcome: outcome, by: r.function.label, duration: now.Sub(r.started), reason: reason}
}

// judge is what became of a message whose handler ended so, and what its caller hears.
func (x *Exchange) judge(r *run, err error) (Outcome, error) {
	var no *Refused
	switch {
	case err == nil:
		return OutcomeHandled, nil
	case r.ctx.Err() != nil && !errors.As(err, &no):
		return OutcomeCancelled, x.failed("HANDLER_FAILED", "the handler was stopped")
	case errors.As(err, &no):
		told := *no
		told.At = x.id
		if told.Code == codes.Internal {
			return OutcomeFailed, &told
		}
		return OutcomeDenied, &told
	default:
		if err != errPanicked {
			x.logger().Error("a handler failed", "name", r.message.Name, "id", r.message.ID, "error", err)
		}
		return OutcomeFailed, x.failed("HANDLER_FAILED", "the handler of "+r.message.Name+" failed")
	}
}

func (x *Exchange) failed(reason, text string) error {
	return &HandlerFailed{RequestError{Code: codes.Internal, Reason: reason, Text: text, At: x.id}}
}

func (x *Exchange) lastAnswer(r *run, value any, outcome Outcome, failure error) (*Message, Outcome, error) {
	reply, err := x.answer(r, value, failure)
	if err != nil {
		x.logger().Error("the answer of a handler cannot be sent", "name", r.message.Name, "id", r.message.ID, "error", err)
		failure = x.failed("ANSWER", "the answer of the handler of "+r.message.Name+" cannot be said in JSON")
		outcome = OutcomeFailed
		if reply, err = x.answer(r, nil, failure); err != nil {
			panic(err) // of no value
		}
	}
	reply.Last = true
	if r.message.Many && failure == nil && value == nil { // to many, who returned nothing has said all by now
		reply.end = &[]string{}
	}
	reply.prepare()
	return reply, outcome, failure
}
