// Routing: who takes a message, and the way back. A client is a leaf: it never passes on what others send.
//
// The steps for a send or a request that is emitted here: handle it here; give it to a linked peer that is addressed
// or offers the name; ask the relays (discovery.go); say that nobody takes it. What comes over a link is handled here
// or refused. open remembers each request that awaits its reply, be it one of ours or one that is handled here.
//
// All of it is guarded by the mutex of the exchange. from is the peer that a message came from, or here.

package exchange

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/grpc/codes"
)

const here = ""

// neighbour is what routing knows of one peer.
type neighbour struct {
	id         string
	relay      bool
	handles    map[string]bool
	subscribes map[string]bool
	away       bool                    // the link is broken, and may be there again soon
	out        map[string]*openRequest // that were given to it
	came       map[string]*openRequest // that it gave to us
}

// openRequest is a request that awaits its reply.
type openRequest struct {
	request *Message // without its payload
	from    string   // where the reply goes
	holder  string   // who has it: a peer, this exchange, or nobody yet
	kept    *Message // while it may have to be routed again
	again   bool     // it was
	scatter *scatter // it is to many: then they have it, in place of holder
	run     *run     // its handler
	emit    *emission
}

func (o *openRequest) holders() []string {
	switch {
	case o.scatter != nil:
		return slices.Sorted(maps.Keys(o.scatter.branches))
	case o.holder != "":
		return []string{o.holder}
	}
	return nil
}

func (o *openRequest) isHeldBy(holder string) bool {
	if o.scatter == nil {
		return o.holder == holder
	}
	_, holds := o.scatter.branches[holder]
	return holds
}

// emission is what whoever emitted a message waits for.
type emission struct {
	sent    chan error    // of a send: it has left, or why it could not
	reply   chan *Message // of a request
	replies *Replies      // of a request to many
}

type router struct {
	x             *Exchange
	me            string
	peers         map[string]*neighbour
	offers        map[string]bool
	subscriptions map[string]int
	open          map[string]*openRequest
	expectedBack  map[string]bool // peers that are gone, and may come back
	settledAt     time.Time       // from then on, nobody is expected back with a relay that has come back
	spread        once            // publications and requests to many that were here
	turns         map[string]int
	discovery     *discovery
}

func newRouter(x *Exchange) *router {
	r := &router{
		x: x, me: x.id, peers: map[string]*neighbour{}, offers: map[string]bool{}, subscriptions: map[string]int{},
		open: map[string]*openRequest{}, expectedBack: map[string]bool{}, turns: map[string]int{},
	}
	r.discovery = newDiscovery(r)
	return r
}

// arrived takes messages that came over a link in one frame.
func (r *router) arrived(from string, messages []*Message, now time.Time) {
	for _, m := range messages {
		if r.peers[from] == nil { // one of them may have ended it
			return
		}
		if r.admit(m, from, now) {
			r.takeUp(m, from, "")
		}
		if m.waits == 0 {
			m.settle()
		}
	}
}

// emit routes a message of ours, via a given peer if one is.
func (r *router) emit(m *Message, via string) {
	r.x.ledger.note(m)
	r.x.show(SeenEmitted, m)
	if m.Kind == KindBroadcast {
		for id := range r.peers {
			r.passOn(id, m)
		}
		m.dispatched(nil)
		return
	}
	r.takeUp(m, here, via)
}

// dispatched tells whoever sends that the message has left, or cannot. Only the first time counts: what is lost later
// is told as an event.
func (m *Message) dispatched(err error) {
	if m.emit == nil || m.emit.sent == nil {
		return
	}
	select {
	case m.emit.sent <- err:
	default:
	}
}

func (r *router) takeUp(m *Message, from, via string) {
	switch m.Kind {
	case KindSend:
		r.dispatch(m, from, via)
	case KindRequest:
		if m.Many && m.To == "" {
			r.scatter(m, from, via)
		} else if r.remember(m, from) {
			r.dispatch(m, from, via)
		}
	case KindReply:
		r.reply(m, from)
	case KindCancel:
		if o := r.open[m.ReplyTo]; o != nil && o.from == from {
			r.abandon(o, OutcomeCancelled, "the caller withdrew it")
		} else {
			r.record(m.ID, OutcomeDropped, "", "no such open request")
		}
	case KindOutcome:
		r.outcome(m, from)
	case KindPublish:
		r.publish(m, from)
	case KindBroadcast:
		r.x.show(SeenReceived, m)
		_, _ = r.x.deliver(m, from, nil) // nobody is told if nobody listens
	}
}

// admit says whether a received message may go on; it refuses it otherwise. It writes the hop to here.
func (r *router) admit(m *Message, from string, now time.Time) bool {
	visited, hops := m.visited(r.me), len(m.Hops)
	m.Hops = append(m.Hops, Hop{r.me, now})
	r.x.ledger.note(m)
	switch {
	case visited:
		way := make([]string, len(m.Hops))
		for i, hop := range m.Hops {
			way[i] = hop.Exchange
		}
		text := fmt.Sprintf("it came back to %s: %s", r.me, strings.Join(way, " -> "))
		r.fail(m, from, OutcomeLoop, r.problem(codes.Unimplemented, "LOOP", text))
	case hops >= maxHops && m.Kind != KindReply && m.Kind != KindOutcome: // these tell of just that
		r.fail(m, from, OutcomeDenied, r.problem(codes.OutOfRange, "TOO_MANY_HOPS", fmt.Sprintf("it has made %d hops", maxHops)))
	case !m.deadline.After(now):
		r.fail(m, from, OutcomeExpired, r.tooLate())
	default:
		if hops > 1 { // like a switch: its origin lies behind this link
			r.discovery.learn(target{exchange: m.From}, from, hops)
		}
		return true
	}
	return false
}

// remember opens a request; it refuses it if it is open already, or too many are.
func (r *router) remember(m *Message, from string) bool {
	if r.open[m.ID] != nil {
		text := "a request with this id is open here already"
		r.record(m.ID, OutcomeDenied, "", text)
		r.answerError(m, from, r.problem(codes.AlreadyExists, "DUPLICATE", text), nil)
		return false
	}
	if len(r.open) >= openRequests {
		r.fail(m, from, OutcomeDropped, r.full(fmt.Sprintf("more than %d requests are open", openRequests)))
		return false
	}
	o := &openRequest{request: m.header(), from: from, emit: m.emit}
	r.open[m.ID] = o
	if from != here {
		r.peers[from].came[m.ID] = o
	}
	return true
}

// dispatch is the steps for a send or a request.
func (r *router) dispatch(m *Message, from, via string) {
	switch {
	case via == "" && (m.To == r.me || m.To == "" && r.offers[m.Name]):
		if r.offers[m.Name] {
			r.take(m, from)
		} else {
			r.fail(m, from, OutcomeUnhandled, r.unhandled(r.me+" does not handle it"))
		}
	case from != here:
		r.fail(m, from, OutcomeUnhandled, r.unhandled(r.me+" does not handle it and does not relay"))
	case via != "":
		r.forward(m, via, false)
	default:
		r.findWay(m)
	}
}

func (r *router) findWay(m *Message) {
	t := targetOf(m)
	if next := r.nextTo(t); len(next) > 0 {
		r.forward(m, r.inTurn(next), false)
	} else if behind := r.behind(t); len(behind) > 0 {
		r.forward(m, r.inTurn(behind), true)
	} else if r.discovery.full() {
		r.fail(m, here, OutcomeDropped, r.full("too many messages wait for an answer about who takes them"))
	} else {
		r.discovery.askFor(t, m)
	}
}

// nextTo is the linked peers that are, or offer, the target.
func (r *router) nextTo(t target) (found []string) {
	if t.exchange != "" {
		if r.peers[t.exchange] != nil {
			found = append(found, t.exchange)
		}
		return found
	}
	for id, peer := range r.peers {
		if peer.handles[t.name] {
			found = append(found, id)
		}
	}
	slices.Sort(found)
	return r.present(found)
}

// behind is the linked peers behind which the target is, those with the fewest hops.
func (r *router) behind(t target) (nearest []string) {
	ways := r.discovery.ways[t]
	if len(ways) == 0 {
		return nil
	}
	present := r.present(slices.Sorted(maps.Keys(ways)))
	least := maxHops + 1
	for _, id := range present {
		least = min(least, ways[id])
	}
	for _, id := range present {
		if ways[id] == least {
			nearest = append(nearest, id)
		}
	}
	return nearest
}

// present is those of them that are not away, if there are any.
func (r *router) present(ids []string) []string {
	there := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return r.peers[id] == nil || r.peers[id].away })
	if len(there) == 0 {
		return ids
	}
	return there
}

func (r *router) inTurn(ids []string) string {
	if len(ids) == 1 {
		return ids[0]
	}
	key := strings.Join(ids, " ")
	if len(r.turns) >= turns {
		clear(r.turns)
	}
	turn := r.turns[key] % len(ids)
	r.turns[key] = turn + 1
	return ids[turn]
}

// take: it is handled here.
func (r *router) take(m *Message, from string) {
	o := r.open[m.ID]
	if m.Kind != KindRequest {
		o = nil
	}
	if o != nil {
		o.holder = r.me
	}
	if _, err := r.x.deliver(m, from, o); err != nil {
		r.fail(m, from, OutcomeDropped, r.full(err.Error()))
		return
	}
	if from != here {
		r.x.show(SeenReceived, m)
	} else if o == nil {
		m.dispatched(nil)
	}
}

// forward: a peer takes it.
func (r *router) forward(m *Message, to string, learned bool) {
	peer := r.peers[to]
	if peer == nil {
		r.fail(m, here, OutcomeDropped, r.unavailable(fmt.Sprintf("the link to %s was lost", to), DeliveredNo))
		return
	}
	if err := r.x.transmit(to, m); err != nil {
		if limit := (*LimitExceeded)(nil); errors.As(err, &limit) {
			r.fail(m, here, OutcomeDropped, r.full(err.Error()))
		} else {
			r.fail(m, here, OutcomeDenied, r.problem(codes.InvalidArgument, "INVALID_MESSAGE", err.Error()))
		}
		return
	}
	m.left = true
	r.record(m.ID, OutcomeForwarded, to, "")
	if m.Kind != KindRequest {
		m.dispatched(nil)
		return
	}
	o := r.open[m.ID]
	o.holder = to
	if learned && !o.again {
		o.kept = m
	}
	peer.out[m.ID] = o
}

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

func (r *router) publish(m *Message, from string) {
	if !r.spread.first(m.ID, time.Now()) {
		return
	}
	if from != here {
		r.x.show(SeenReceived, m)
	}
	for pattern := range r.subscriptions {
		if Fits(pattern, m.Name) {
			_, _ = r.x.deliver(m, from, nil) // publications are never answered
			break
		}
	}
	if from != here {
		return
	}
	for id, peer := range r.peers {
		if peer.relay || peer.wants(m.Name) {
			r.passOn(id, m)
		}
	}
	m.dispatched(nil)
}

func (n *neighbour) wants(name string) bool {
	for pattern := range n.subscribes {
		if Fits(pattern, name) {
			return true
		}
	}
	return false
}

// passOn gives one of several copies: what one peer cannot take costs the others nothing.
func (r *router) passOn(to string, m *Message) bool {
	if err := r.x.transmit(to, m); err != nil {
		r.record(m.ID, OutcomeDropped, to, err.Error())
		return false
	}
	r.record(m.ID, OutcomeForwarded, to, "")
	return true
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

// offer: a name is handled here, or no longer.
func (r *router) offer(name string, offered bool) {
	if r.offers[name] == offered {
		return
	}
	if offered {
		r.offers[name] = true
	} else {
		delete(r.offers, name)
	}
	if strings.HasPrefix(name, reserved) { // every exchange has it: it is not announced
		return
	}
	set := &pb.InterestSet{Handles: []string{name}}
	if offered {
		r.x.announce(&pb.Interest{Added: set})
		r.discovery.turnedUp(target{name: name})
	} else {
		r.x.announce(&pb.Interest{Removed: set})
		r.discovery.withdraw(target{name: name})
	}
}

func (r *router) subscribe(pattern string, more int) {
	before := r.subscriptions[pattern]
	r.subscriptions[pattern] = before + more
	set := &pb.InterestSet{Subscribes: []string{pattern}}
	if before == 0 {
		r.x.announce(&pb.Interest{Added: set})
	} else if before+more == 0 {
		delete(r.subscriptions, pattern)
		r.x.announce(&pb.Interest{Removed: set})
	}
}

// astray: the very peer from which we had the way says that it leads nowhere.
func astray(err error, from string) bool {
	var e *RequestError
	return errors.As(err, &e) && (e.Reason == "UNHANDLED" || e.Reason == "LOOP") && e.At == from
}
