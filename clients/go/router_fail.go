// How things fail: recorded here, and told to whoever waits or to the origin. And what befalls links, as routing
// hears of it.

package exchange

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/grpc/codes"
)

func (r *router) record(id string, outcome Outcome, by, reason string) {
	r.x.ledger.record(id, eventEntry{at: time.Now(), outcome: outcome, by: by, reason: reason})
}

func (r *router) problem(code codes.Code, reason, text string) RequestError {
	return RequestError{Code: code, Reason: reason, Text: text, At: r.me, Delivered: DeliveredNo}
}

func (r *router) unhandled(text string) RequestError {
	return r.problem(codes.Unimplemented, "UNHANDLED", text)
}

// outOfReach: what is wanted is not there, as far as can be known from here.
func (r *router) outOfReach(what string) RequestError {
	text := fmt.Sprintf("%s within reach of %s", what, r.me)
	if len(r.peers) == 0 {
		text += " (it is linked to nobody)"
	}
	return r.unhandled(text)
}

func (r *router) full(text string) RequestError {
	return r.problem(codes.ResourceExhausted, "FULL", text)
}

func (r *router) unavailable(text string, delivered Delivered) RequestError {
	return RequestError{Code: codes.Unavailable, Reason: "UNAVAILABLE", Text: text, At: r.me, Delivered: delivered}
}

func (r *router) tooLate(m *Message) RequestError {
	text := m.Name + " was not taken in time"
	if m.Kind == KindRequest {
		text = m.Name + " was not answered in time"
	}
	return RequestError{Code: codes.DeadlineExceeded, Reason: "DEADLINE_EXCEEDED", Text: text, At: r.me}
}

// fail is every refusal.
func (r *router) fail(m *Message, from string, outcome Outcome, err RequestError) {
	r.record(m.ID, outcome, "", err.Text)
	if m.Kind == KindSend && from == here && (outcome == OutcomeUnhandled || m.left) {
		r.x.unhandled(m.ID, m.Name, outcome, err)
	}
	if o := r.open[m.ID]; o != nil && m.Kind == KindRequest && o.from == from {
		r.close(o)
	}
	if from != here {
		r.x.show(SeenReceived, m)
	}
	switch {
	case m.Kind == KindRequest:
		r.answerError(m, from, err, nil)
	case from == here:
		m.dispatched(typed(err))
	case m.Kind == KindSend:
		r.report(m, from, outcome, err)
	}
}

// answerError is the reply of this exchange itself to a request that ends here.
func (r *router) answerError(request *Message, from string, err RequestError, lost []string) {
	life := messageLife
	if request.Many {
		life = max(life, time.Until(request.deadline))
	}
	reply := r.x.make(KindReply, request.Name, behindOf(request), life)
	reply.To, reply.ReplyTo, reply.Last = request.From, request.ID, true
	if err.Code != codes.OK {
		reply.Err = typed(err)
	}
	if request.Many {
		reply.end = &lost
	}
	r.x.ledger.note(reply)
	r.x.show(SeenEmitted, reply)
	if from == here {
		(&openRequest{emit: request.emit}).resolve(reply)
	} else {
		r.x.transmitQuietly(from, reply)
	}
}

// report tells the origin of a send, which may be here, what became of it.
func (r *router) report(m *Message, from string, outcome Outcome, err RequestError) {
	if from == here {
		r.x.unhandled(m.ID, m.Name, outcome, err)
		return
	}
	report := r.x.make(KindOutcome, m.Name, behindOf(m), messageLife)
	report.To, report.ReplyTo, report.outcome, report.Err = m.From, m.ID, outcome, typed(err)
	r.x.ledger.note(report)
	r.x.show(SeenEmitted, report)
	r.x.transmitQuietly(from, report)
}

// rejected: the peer refused a message that was given to it.
func (r *router) rejected(from, id string, err RequestError) {
	if o := r.open[id]; o != nil && o.isHeldBy(from) {
		r.loseHolder(o, from, err)
	}
	if span := r.x.ledger.find(id); span != nil && span.kind == KindSend && span.was(OutcomeForwarded, from) &&
		!span.was(OutcomeDenied, from) {
		r.x.unhandled(id, span.name, OutcomeDenied, err)
	}
	r.record(id, OutcomeDenied, from, err.Text)
}

// expired: their time ended while they waited to be written.
func (r *router) expired(messages []*Message) {
	for _, m := range messages {
		r.record(m.ID, OutcomeExpired, "", "it waited too long")
		if m.Kind == KindSend {
			r.x.unhandled(m.ID, m.Name, OutcomeExpired, r.tooLate(m))
		}
	}
}

// uncertain: they have left on a link, and nobody will ever know whether they arrived.
func (r *router) uncertain(peer string, ids []string) {
	err := r.unavailable(fmt.Sprintf("the link to %s was lost: it may have arrived", peer), DeliveredUnknown)
	err.Reason = "UNCERTAIN"
	for _, id := range ids {
		r.record(id, OutcomeDropped, peer, err.Text)
		if span := r.x.ledger.find(id); span != nil && span.kind == KindSend {
			r.x.unhandled(id, span.name, OutcomeDropped, err)
		}
	}
}

// loseHolder: who has a request will not answer (any more).
func (r *router) loseHolder(o *openRequest, holder string, err RequestError) {
	if o.scatter == nil {
		r.close(o)
		request := *o.request
		request.emit = o.emit
		r.answerError(&request, o.from, err, nil)
		return
	}
	r.leftBy(holder, o)
	o.scatter.lose(holder)
	r.endScatter(o)
}

// connect: a link is open, or open again; then the peer says all anew.
func (r *router) connect(peer *introduction, now time.Time) {
	n := r.peers[peer.exchange]
	if n == nil {
		n = &neighbour{id: peer.exchange, out: map[string]*openRequest{}, came: map[string]*openRequest{}}
		r.peers[peer.exchange] = n
	} else {
		n.away = false
		r.discovery.back(n.id)
	}
	n.handles, n.subscribes = setOf(peer.handles), setOf(peer.subscribes)
	r.relays(n, peer.relay)
	if r.expectedBack[n.id] && n.relay {
		r.settledAt = now.Add(settleTime)
	}
	delete(r.expectedBack, n.id)
	r.discovery.changed()
	for _, name := range peer.handles {
		r.discovery.turnedUp(target{name: name})
	}
	r.discovery.turnedUp(target{exchange: n.id})
}

func (r *router) relays(n *neighbour, relay bool) {
	n.relay = relay
	for _, o := range n.out {
		if o.scatter != nil && relay {
			o.scatter.branches[n.id] = true // it passes on what it has not got yet
		}
	}
}

func (r *router) interest(from string, change *pb.Interest) {
	n := r.peers[from]
	if n == nil {
		return
	}
	apply(n.handles, change.GetRemoved().GetHandles(), change.GetAdded().GetHandles())
	apply(n.subscribes, change.GetRemoved().GetSubscribes(), change.GetAdded().GetSubscribes())
	if change.Relay != nil {
		r.relays(n, change.GetRelay())
		r.discovery.changed()
	}
	for _, name := range change.GetAdded().GetHandles() {
		r.discovery.turnedUp(target{name: name})
	}
}

// disconnect: a link is gone, and these messages never left on it. expected: the peer may come back.
func (r *router) disconnect(id string, unsent []*Message, expected bool) {
	if expected {
		r.expectedBack[id] = true
	} else {
		delete(r.expectedBack, id)
	}
	n := r.peers[id]
	if n == nil {
		return
	}
	delete(r.peers, id)
	for _, o := range n.came {
		r.abandon(o, OutcomeCancelled, fmt.Sprintf("the link to %s, which asked, was lost", id))
	}
	waiting := map[string]bool{}
	for _, m := range unsent {
		waiting[m.ID] = true
	}
	for _, key := range slices.Sorted(maps.Keys(n.out)) {
		o := n.out[key]
		if waiting[key] && o.scatter == nil { // it goes another way
			o.holder = ""
			continue
		}
		err := r.unavailable(fmt.Sprintf("the link to %s was lost", id), DeliveredUnknown)
		if waiting[key] {
			err.Delivered = DeliveredNo
		}
		r.record(key, OutcomeDropped, id, err.Text)
		r.loseHolder(o, id, err)
	}
	r.discovery.withdraw(target{exchange: id})
	r.discovery.lost(id)
}

// reroute: what never left on a link goes another way, if it is to anybody else, or fails.
func (r *router) reroute(lost string, unsent []*Message) {
	for _, m := range unsent {
		err := r.unavailable(fmt.Sprintf("the link to %s was lost", lost), DeliveredNo)
		r.record(m.ID, OutcomeDropped, lost, err.Text)
		o := r.open[m.ID]
		switch {
		case m.Kind == KindSend || m.Kind == KindRequest && o != nil && o.holder == "" && o.scatter == nil:
			r.dispatchAgain(m, err)
		case m.Kind != KindRequest && r.peers[lost] != nil:
			r.x.transmitQuietly(lost, m)
		}
	}
}

func (r *router) dispatchAgain(m *Message, err RequestError) {
	t := targetOf(m)
	if len(r.nextTo(t)) > 0 || len(r.behind(t)) > 0 || len(r.relaying()) > 0 {
		r.dispatch(m, here, "")
	} else {
		r.fail(m, here, OutcomeDropped, err)
	}
}

// relaying is the linked peers that relay.
func (r *router) relaying() (ids []string) {
	for id, n := range r.peers {
		if n.relay {
			ids = append(ids, id)
		}
	}
	return ids
}

// patient: somebody is expected back, so that "nobody" may soon be wrong.
func (r *router) patient(now time.Time) bool {
	if now.Before(r.settledAt) {
		return true
	}
	for _, n := range r.peers {
		if n.away && n.relay {
			return true
		}
	}
	return false
}

// resume routes a held message again, if there is a way for it now or nobody waits for it any more.
func (r *router) resume(m *Message) bool {
	if m.withdrawn || m.Kind == KindRequest && r.open[m.ID] == nil { // or its time was over
		return true
	}
	t := targetOf(m)
	if !r.offers[t.name] && len(r.nextTo(t)) == 0 && len(r.behind(t)) == 0 {
		return false
	}
	r.dispatch(m, here, "")
	return true
}

// giveUp: nobody is known to take it.
func (r *router) giveUp(m *Message, incomplete bool) {
	what := "nobody handles " + m.Name
	if m.To != "" {
		what = "there is no exchange " + m.To
	}
	var err RequestError
	switch {
	case len(r.expectedBack) > 0:
		gone := slices.Sorted(maps.Keys(r.expectedBack))
		gone = gone[:min(len(gone), 3)]
		err = r.unavailable(fmt.Sprintf("%s within reach of %s, but the link to %s is lost", what, r.me,
			strings.Join(gone, " and ")), DeliveredNo)
	case incomplete:
		err = r.unavailable(fmt.Sprintf("%s next to %s, and not all others answered within %v", what, r.me, questionTime),
			DeliveredNo)
		err.Reason = "INCOMPLETE"
	default:
		err = r.outOfReach(what)
	}
	r.fail(m, here, OutcomeUnhandled, err)
}
