// The links of one exchange: one for each peer, made, broken, resumed and gone. What their sessions understand comes in
// here, and goes to routing and to those who are notified of events.
//
// A peer has a face from its first handshake until it is gone: one whose link is broken keeps it for Limits.Away. A
// link is in byPeer as long as its session may be resumed.

package exchange

import (
	"slices"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/grpc/codes"
)

// transmit puts a message on the link to a peer.
func (x *Exchange) transmit(to string, m *Message) error {
	l := x.byPeer[to]
	if l == nil { // gone, and routing has yet to hear of it
		return tooMuch("the link to %s was lost", to)
	}
	if err := l.session.send(m); err != nil {
		return err
	}
	l.wake()
	return nil
}

// transmitQuietly is for what nobody waits for, or whoever waits has a deadline.
func (x *Exchange) transmitQuietly(to string, m *Message) {
	if err := x.transmit(to, m); err != nil {
		x.logger().Debug("a message could not be sent", "id", m.ID, "to", to, "error", err)
	}
}

// say puts a question or an answer on a link; false if it takes no more.
func (x *Exchange) say(to string, frame *pb.Frame) bool {
	l := x.byPeer[to]
	if l == nil {
		return false
	}
	defer l.wake()
	return l.session.say(frame)
}

// idOf is the peer of a link, if this is the link to it.
func (x *Exchange) idOf(l *link) string {
	if peer := l.session.peer; peer != nil && x.byPeer[peer.exchange] == l {
		return peer.exchange
	}
	return ""
}

// heard is what one frame meant, or the time that has passed.
func (x *Exchange) heard(l *link, e event) {
	now := time.Now()
	switch e := e.(type) {
	case arrived:
		x.router.arrived(x.idOf(l), e.messages, now)
	case opened:
		x.opened(l, e.peer)
	case resumed:
		x.resumed(l, e)
	case *pb.Interest:
		x.router.interest(x.idOf(l), e)
	case *pb.Query:
		x.router.discovery.asked(x.idOf(l), e)
	case *pb.Answer:
		x.router.discovery.answered(x.idOf(l), e)
	case rejected:
		x.router.rejected(x.idOf(l), e.id, e.err)
	case broken:
		x.broke(l, e.reason)
	case missing:
		x.missing(l, e.unsent)
	case forgotten:
		l.uncertain = append(l.uncertain, e.uncertain...)
		x.router.uncertain(x.idOf(l), e.uncertain)
	}
}

func (x *Exchange) expired(messages []*Message) { x.router.expired(messages) }

func (x *Exchange) opened(l *link, peer *introduction) {
	s, known := l.session, x.byPeer[peer.exchange]
	if known != nil && !s.dialled {
		x.dialledAgain(known, l, peer)
		return
	}
	if known != nil {
		// Two who dial each other at the same time keep the link that the smaller id dialled.
		if known.session.phase != away && (known.session.dialled || x.id > peer.exchange) {
			s.goodbye(farewell{code: codes.AlreadyExists, reason: peer.exchange + " is linked to " + x.id + " already"})
			l.settle(peer.exchange)
			return
		}
		reason := "another link to it takes its place"
		known.session.goodbye(farewell{code: codes.AlreadyExists, reason: reason})
		x.sessionEnded(known, reason, false)
		known.wake()
	}
	if !s.dialled {
		s.welcome(x.introduction(), false)
	} else if s.me.revision != x.revision { // what changed since the Hello was written
		x.catchUp(s)
	}
	l.face = &Peer{x: x, link: l, id: peer.exchange}
	x.logger().Debug("linked", "peer", peer.exchange, "agent", peer.agent)
	x.notify(Connected{ID: peer.exchange, Agent: peer.agent, Relay: peer.relay})
	x.present(l, peer)
	l.settle(peer.exchange)
}

// dialledAgain: the peer that we have a link with has dialled, be it after a break.
func (x *Exchange) dialledAgain(known, l *link, peer *introduction) {
	events, ok := known.session.rejoin(peer, x.introduction(), time.Now())
	if ok {
		known.takeOver(l)
		known.understand(events)
		return
	}
	l.session.goodbye(farewell{
		code: codes.AlreadyExists, reason: peer.exchange + " is linked to " + x.id + " already", pause: contestTime,
	})
	known.wake()
	known.arm()
}

// resumed: it was broken, and is there again. If the session was not recovered, another life of the peer begins.
func (x *Exchange) resumed(l *link, e resumed) {
	peer := e.peer
	if !e.recovered {
		x.lose(l, e.unsent, e.uncertain, x.byPeer[peer.exchange] == l) // else it calls itself as somebody else now
	}
	if taken := x.byPeer[peer.exchange]; taken != nil && taken != l {
		x.router.reroute(peer.exchange, e.unsent)
		x.forget(l)
		l.session.goodbye(farewell{code: codes.AlreadyExists, reason: peer.exchange + " is linked to " + x.id + " already"})
		return
	}
	if l.session.me.revision != x.revision {
		x.catchUp(l.session)
	}
	seconds := 0.0
	if !l.brokenAt.IsZero() {
		seconds = time.Since(l.brokenAt).Seconds()
	}
	if l.face == nil {
		l.face = &Peer{x: x, link: l}
	}
	l.face.id = peer.exchange
	x.present(l, peer)
	x.router.reroute(peer.exchange, e.unsent)
	uncertain := l.uncertain
	l.uncertain = nil
	x.logger().Info("the link is there again", "peer", peer.exchange, "recovered", e.recovered, "uncertain", len(uncertain))
	x.notify(Resumed{ID: peer.exchange, Recovered: e.recovered, Uncertain: append([]string{}, uncertain...), Seconds: seconds})
}

// present: the link is open, and routing may use it.
func (x *Exchange) present(l *link, peer *introduction) {
	l.brokenAt = time.Time{}
	x.byPeer[peer.exchange] = l
	x.faces[peer.exchange] = l.face
	x.router.connect(peer, time.Now())
}

func (x *Exchange) catchUp(s *session) {
	said, now := s.me, x.introduction()
	s.announce(&pb.Interest{
		Added:   &pb.InterestSet{Handles: minus(now.handles, said.handles), Subscribes: minus(now.subscribes, said.subscribes)},
		Removed: &pb.InterestSet{Handles: minus(said.handles, now.handles), Subscribes: minus(said.subscribes, now.subscribes)},
	})
}

func minus(all, these []string) []string {
	gone := setOf(these)
	return slices.DeleteFunc(slices.Clone(all), func(text string) bool { return gone[text] })
}

// broke: the connection is gone, and the session is kept: the peer may be back soon.
func (x *Exchange) broke(l *link, reason string) {
	id := x.idOf(l)
	if id == "" || !l.brokenAt.IsZero() {
		return
	}
	l.brokenAt = time.Now()
	if n := x.router.peers[id]; n != nil {
		n.away = true
	}
	x.logger().Info("the link is lost", "peer", id, "reason", reason)
	x.notify(Lost{ID: id, Reason: reason})
}

// missing: it is not back, and nobody should wait.
func (x *Exchange) missing(l *link, unsent []*Message) {
	id := x.idOf(l)
	delete(x.faces, id)
	x.router.disconnect(id, unsent, l.session.dialled)
	x.router.reroute(id, unsent)
	l.giveRoom()
}

// sessionEnded: the session is over. returns: it will be dialled again, for a new one.
func (x *Exchange) sessionEnded(l *link, reason string, returns bool) {
	id := x.idOf(l)
	if id == "" {
		return
	}
	uncertain, unsent := l.session.lost()
	wasBroken := !l.brokenAt.IsZero()
	if returns && !wasBroken {
		l.brokenAt = time.Now()
	}
	x.lose(l, unsent, uncertain, returns)
	x.router.reroute(id, unsent)
	if !returns {
		x.forget(l)
	}
	if !wasBroken {
		x.notify(Lost{ID: id, Reason: reason})
	}
}

// gaveUp: it was broken or ended, and is not waited for any more.
func (x *Exchange) gaveUp(l *link, reason string) {
	peer, known := l.session.peer, l.face != nil
	x.sessionEnded(l, reason, false)
	x.forget(l)
	if peer == nil || !known {
		return
	}
	if x.byPeer[peer.exchange] == nil { // routing still expects it back
		x.router.disconnect(peer.exchange, nil, false)
	}
	x.logger().Info("the link is given up", "peer", peer.exchange, "reason", reason)
	x.notify(GaveUp{ID: peer.exchange, Reason: reason})
}

func (x *Exchange) forget(l *link) {
	l.face, l.uncertain, l.brokenAt = nil, nil, time.Time{}
}

// lose: one life of the peer is over.
func (x *Exchange) lose(l *link, unsent []*Message, uncertain []string, expected bool) {
	for id, known := range x.byPeer {
		if known != l {
			continue
		}
		delete(x.byPeer, id)
		if x.faces[id] == l.face {
			delete(x.faces, id)
		}
		x.router.disconnect(id, unsent, expected)
		l.uncertain = append(l.uncertain, uncertain...)
		x.router.uncertain(id, uncertain)
		l.giveRoom()
		return
	}
}

// unhandled tells of a send of ours that was not handled.
func (x *Exchange) unhandled(id, name string, outcome Outcome, err RequestError) {
	x.logger().Warn("a message was not handled", "name", name, "id", id, "reason", err.Reason, "text", err.Text, "at", or(err.At, x.id))
	x.notify(NotHandled{ID: id, Name: name, Outcome: outcome, Reason: err.Reason, Err: typed(err)})
}

// Peers are the exchanges that are linked to this one, in order of their ids.
func (x *Exchange) Peers() []*Peer {
	x.mu.Lock()
	defer x.mu.Unlock()
	var peers []*Peer
	for _, id := range sortedKeys(x.faces) {
		peers = append(peers, x.faces[id])
	}
	return peers
}

// Peer is another exchange, at the other end of a link.
type Peer struct {
	x    *Exchange
	link *link
	id   string
}

// ID is its id. Where a link is dialled again, somebody else may answer.
func (p *Peer) ID() string {
	p.x.mu.Lock()
	defer p.x.mu.Unlock()
	return p.id
}

// String names it for people.
func (p *Peer) String() string { return "peer " + p.ID() }

// MarshalText is its id.
func (p *Peer) MarshalText() ([]byte, error) { return []byte(p.ID()), nil }

// Agent is its language and the version of its library.
func (p *Peer) Agent() string {
	p.x.mu.Lock()
	defer p.x.mu.Unlock()
	return p.link.session.peer.agent
}

// PeerInfo is what a peer says of itself.
type PeerInfo struct {
	ID         string   `json:"id"`
	Relay      bool     `json:"relay"` // it passes on what others send each other
	Away       bool     `json:"away"`  // the link is broken, and may be made again
	Handles    []string `json:"handles"`
	Subscribes []string `json:"subscribes"`
}

// Info is what the peer says of itself now.
func (p *Peer) Info() PeerInfo {
	p.x.mu.Lock()
	defer p.x.mu.Unlock()
	info := PeerInfo{ID: p.id}
	if n := p.x.router.peers[p.id]; n != nil {
		info.Relay, info.Away = n.relay, n.away
		info.Handles, info.Subscribes = sortedKeys(n.handles), sortedKeys(n.subscribes)
	}
	return info
}

func sortedKeys[V any](of map[string]V) []string {
	keys := make([]string, 0, len(of))
	for key := range of {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// On is [Exchange.On] for what comes over this link only.
func (p *Peer) On(name string, f Listener, options ...HandlerOption) (remove func(), err error) {
	return p.x.on(name, p.ID(), f, options)
}

// Gone is closed when the link is gone for good, and not dialled again either.
func (p *Peer) Gone() <-chan struct{} { return p.link.over }

// Close says goodbye, once what is queued has left, and ends the link for good.
func (p *Peer) Close() error {
	p.link.close(farewell{stayAway: true})
	return nil
}
