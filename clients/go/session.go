// The session of two exchanges, from Hello to Goodbye, over as many connections as it takes.
//
// Law: a pure state machine. Frames that came in go into receive, which returns what they mean; what shall be said
// goes into send, announce, control and goodbye, and comes out of next as bytes; tick is told the time, at deadline
// at the latest. No I/O, clock or randomness: the same input gives the same output.
//
//	opening --Hello, Welcome--> open --goodbye--> closing --queue empty, Goodbye, Goodbye--> closed
//	   ^                         |
//	   +--dial / rejoin-- away <-+ the connection broke: what has left and was not acknowledged is kept
//
// A session is resumed by who has its token, which changes each time. If that succeeds nothing was lost and nothing
// will be taken twice. Otherwise a new one has begun, and what is uncertain is told. away for Limits.Away, the peer
// is missing: nobody should wait for it. away for Limits.Resume, the session is forgotten.
//
// A link is never trusted about who it is: a message counts only if its last hop is the peer, and from a peer that
// does not relay only if the peer made it.
//
// The session is in three files: what comes in is in session_in.go, time and what goes out in session_out.go.

package exchange

import (
	"crypto/hmac"
	"encoding/hex"
	"time"

	"google.golang.org/grpc/codes"
)

type phase int

const (
	opening phase = iota
	open
	away
	closing
	closed
)

// What a session tells of. One of these is an event.
type (
	event any

	opened  struct{ peer *introduction }
	resumed struct {
		peer      *introduction
		recovered bool
		uncertain []string
		unsent    []*Message
	}
	arrived  struct{ messages []*Message }
	rejected struct {
		id  string
		err RequestError
	}
	broken struct {
		reason string
		pause  time.Duration // before it is of use to come back
	}
	missing   struct{ unsent []*Message }
	forgotten struct{ uncertain []string }
	ended     struct {
		code     codes.Code
		reason   string
		by       string // the id of who ended it
		pause    time.Duration
		stayAway bool
	}
)

type farewell struct {
	code     codes.Code
	reason   string
	pause    time.Duration
	stayAway bool
}

type session struct {
	me      introduction
	dialled bool
	phase   phase
	peer    *introduction
	asValue bool
	leaves  bool // by our own wish
	out     outbox
	into    inbox

	limits      Limits
	draw        func(int) []byte // so many random bytes
	met         bool             // the peer has introduced itself on this connection
	since       time.Time        // this connection began
	leftAt      time.Time        // the last one that was open broke
	isMissing   bool             // ... so long ago that this was told
	isForgotten bool
	id          string
	token       []byte
	formerToken []byte // counts until the peer is known to have the other
	gapAt       uint64
	heard       time.Time
	pinged      time.Time
	ticked      time.Time
	contested   time.Time // another connection claims the id of the peer; zero: none does
	ping, pong  *uint64
	control     deque[[]byte]
	rejects     deque[[]byte]
	revision    uint64
	farewell    *farewell
	parting     bool   // our Goodbye has left: nothing more is taken, and theirs is awaited
	expected    uint64 // revision of the peer's interest
	handles     map[string]bool
	subscribes  map[string]bool
}

func newSession(me introduction, dialled bool, limits Limits, draw func(int) []byte, now time.Time) *session {
	s := &session{
		me: me, dialled: dialled, limits: limits, draw: draw, since: now, leftAt: now, heard: now, pinged: now, ticked: now,
		revision: me.revision,
	}
	s.into.limits = limits
	if dialled {
		hello := s.introduce()
		s.control.pushBack(hello.hello())
	}
	return s
}

// introduce is what Hello and Welcome say, with the session in it.
func (s *session) introduce() *introduction {
	me := s.me
	me.session, me.token = s.id, s.token
	me.received, me.receivedBytes, me.credit = s.into.received, s.into.receivedBytes, s.into.give()
	return &me
}

// dial: we who dialled have a new connection. Hello again.
func (s *session) dial(me introduction, now time.Time) {
	s.me, s.revision = me, me.revision
	s.phase, s.met, s.since, s.heard, s.ticked = opening, false, now, now, now
	s.control.takeAll() // of an attempt that came to nothing
	if s.id == "" {
		s.into.begin(false)
	}
	s.control.pushBack(s.introduce().hello())
}

// disconnected: the connection is gone. Whether it is worth while to wait for the peer.
func (s *session) disconnected(now time.Time) bool {
	switch {
	case s.phase == open && (s.dialled || len(s.token) > 0):
		s.leave(now)
	case s.phase == opening && s.peer != nil && s.dialled:
		s.phase = away
	case s.phase != away:
		s.phase = closed
	}
	return s.phase == away
}

func (s *session) leave(now time.Time) {
	s.phase, s.met, s.leftAt = away, false, now
	s.isMissing, s.isForgotten = false, false
	s.contested, s.ping, s.pong = time.Time{}, nil, nil
	s.control.takeAll() // said anew in Hello and Welcome, but for what was refused
}

// revive: after its end, we who dialled may dial again for a new session.
func (s *session) revive(now time.Time) {
	s.leave(now)
	s.farewell, s.parting = nil, false
	s.isMissing, s.isForgotten = true, true
}

// rejoin: the peer has dialled again, and says this. Not ok if the connection that we have may be alive: then
// whoever dialled is to be refused. If both dial at the same time, the attempt of the smaller id counts.
func (s *session) rejoin(peer *introduction, me introduction, now time.Time) (events []event, ok bool) {
	if s.phase == closing || s.phase == closed || s.phase == opening && s.dialled && s.me.exchange < peer.exchange {
		return nil, false
	}
	if s.provesItself(peer) {
		if s.out.resumed(peer.received, peer.receivedBytes) != nil {
			return s.beginAnew(peer, me, now), true
		}
		s.formerToken = peer.token
		s.present(peer, me, true, now)
		return []event{resumed{peer: peer, recovered: true}}, true
	}
	if s.phase != away && !s.contestLost(now) {
		if s.contested.IsZero() && s.answersPings() {
			s.contested = now
			s.ask(now)
		}
		return nil, false
	}
	return s.beginAnew(peer, me, now), true
}

func (s *session) contestLost(now time.Time) bool {
	return !s.contested.IsZero() && !now.Before(s.contested.Add(contestTime))
}

func (s *session) provesItself(peer *introduction) bool {
	known := s.peer
	if known == nil || known.exchange != peer.exchange || known.epoch != peer.epoch {
		return false
	}
	if len(s.token) == 0 || s.isForgotten || peer.session != s.id {
		return false
	}
	return hmac.Equal(peer.token, s.token) || len(s.formerToken) > 0 && hmac.Equal(peer.token, s.formerToken)
}

func (s *session) beginAnew(peer *introduction, me introduction, now time.Time) []event {
	uncertain, unsent := s.lost()
	s.into.begin(false)
	s.present(peer, me, false, now)
	return []event{resumed{peer, false, uncertain, unsent}}
}

// lost: the session is over. The ids of what is uncertain, and what never left.
func (s *session) lost() (uncertain []string, unsent []*Message) {
	return s.forget(), s.out.takeUnsent()
}

func (s *session) forget() []string {
	s.id, s.token, s.formerToken = "", nil, nil
	s.gapAt = 0
	s.rejects.takeAll()
	s.parting = s.phase == closing // if its Goodbye has not left yet
	s.out.keeps = false
	return s.out.takeUncertain()
}

// present welcomes the peer, whom we know, on a new connection.
func (s *session) present(peer *introduction, me introduction, recovered bool, now time.Time) {
	s.control.takeAll()
	s.contested, s.ping, s.pong, s.farewell = time.Time{}, nil, nil, nil
	s.since, s.heard, s.ticked = now, now, now
	s.meet(peer, recovered)
	s.welcome(me, recovered)
}

// welcome answers the Hello: the link is open.
func (s *session) welcome(me introduction, recovered bool) {
	s.me, s.revision = me, me.revision
	s.phase = open
	if s.into.acknowledges {
		if !recovered {
			s.id = hex.EncodeToString(s.draw(8))
		}
		s.token = s.draw(16)
	}
	said := s.introduce()
	said.recovered = recovered
	s.control.pushBack(said.welcome())
}

// meet: this is the peer, and what it has said of itself.
func (s *session) meet(peer *introduction, recovered bool) {
	s.peer, s.met = peer, true
	s.isMissing, s.isForgotten = false, false
	s.asValue = s.asValue || peer.has(featureValue)
	s.expected = peer.revision
	s.handles, s.subscribes = setOf(peer.handles), setOf(peer.subscribes)
	resumes := peer.has(featureResume)
	s.out.keeps, s.into.acknowledges = resumes, resumes
	s.out.credit = peer.credit
	if !recovered {
		s.out.begin()
		if peer.credit != nil { // said for the session that could have gone on
			rest := peer.credit.beyond(peer.received, peer.receivedBytes)
			s.out.credit = &rest
		}
	}
	if s.dialled {
		s.id, s.token = "", nil
		if resumes {
			s.id, s.token = peer.session, peer.token
		}
		s.phase = open
	}
}

func setOf(texts []string) map[string]bool {
	set := make(map[string]bool, len(texts))
	for _, text := range texts {
		set[text] = true
	}
	return set
}
