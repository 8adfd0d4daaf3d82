// Routing: who takes a message, and the way back. A client is a leaf: it never passes on what others send.
//
// The steps for a send or a request that is emitted here: handle it here; give it to a linked peer that is addressed
// or offers the name; ask the relays (discovery.go); say that nobody takes it. What comes over a link is handled here
// or refused. open remembers each request that awaits its reply, be it one of ours or one that is handled here.
//
// All of it is guarded by the mutex of the exchange. from is the peer that a message came from, or here.

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
		r.fail(m, from, OutcomeExpired, r.tooLate(m))
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
