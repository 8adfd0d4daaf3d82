// A link: a session and what carries it. It outlives its connections. When one breaks, the side that dialled dials
// again: at once, then after pauses that grow; the other side waits. What the session makes of that is in session.go.
//
// All of it is guarded by the mutex of the exchange.

package exchange

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
)

type link struct {
	x          *Exchange
	session    *session
	connection *connection
	ended      *ended
	readAll    bool          // the other side will send no more
	over       chan struct{} // closed when nothing is left of it
	opening    chan struct{} // closed when openedAs or openErr is known
	openedAs   string
	openErr    error

	face      *Peer     // what stands for it in public; nil before the first handshake and after the end
	brokenAt  time.Time // zero: it is not
	uncertain []string  // ids that were told to routing, and to nobody else so far

	dial        dialer
	retry       retry
	backoff     backoff
	since       time.Time // it is dialled again since; zero: it is not
	redialling  context.CancelFunc
	leaving     bool // by our own wish
	finished    bool
	connections int
	room        chan struct{} // closed when there is room, or nobody should wait; nil: nobody waits
	timer       *time.Timer
	due         time.Time
}

// retry is for how long a link is dialled again.
type retry time.Duration

const forever retry = -1

func (r retry) over(since time.Duration) bool { return r != forever && since > time.Duration(r) }

func newLink(x *Exchange, dial dialer, r retry, dialled bool) *link {
	l := &link{
		x: x, dial: dial, retry: r, over: make(chan struct{}), opening: make(chan struct{}),
		backoff: backoff{limits: x.limits, draw: x.random},
	}
	l.session = newSession(x.introduction(), dialled, x.limits, x.randomBytes, time.Now())
	l.session.into.moreIsWelcome = l.wake
	return l
}

func (l *link) attach(t transport) *connection {
	l.connections++
	return newConnection(t, l)
}

func (l *link) start(c *connection) {
	l.connection, l.readAll = c, false
	c.start()
	l.arm()
}

// takeOver goes on over the connection of another link, of which nothing is left then.
func (l *link) takeOver(other *link) {
	c, former := other.connection, l.connection
	other.connection = nil
	other.connections--
	l.connections++
	c.link, l.connection, l.readAll = l, c, false
	if former != nil {
		former.drop("the peer has come back by another connection")
	}
	l.stopRedialling()
	c.wake()
	l.arm()
	other.finish()
}

// disconnected: the connection carries nothing any more.
func (l *link) disconnected(c *connection, reason string) {
	if l.connection != c {
		return
	}
	l.connection = nil
	if l.session.disconnected(time.Now()) {
		l.x.broke(l, reason)
		l.comeBack(reason, 0)
	} else {
		l.sessionOver(reason)
	}
}

// gone: ... and nothing is left of it.
func (l *link) gone(*connection) {
	l.connections--
	l.checkOver()
}

func (l *link) endReason() string {
	if l.ended != nil && l.ended.reason != "" {
		return l.ended.reason
	}
	return "the link was closed"
}

func (l *link) sessionOver(reason string) {
	e := l.ended
	if e != nil && e.reason != "" {
		reason = e.reason
	}
	planned := e != nil && !l.session.leaves && !e.stayAway && e.code != codes.AlreadyExists && e.by != l.x.id
	select {
	case <-l.opening:
	default:
		l.refused(reason)
		l.x.sessionEnded(l, reason, false)
		l.finish()
		return
	}
	if l.retry != 0 && l.dial != nil && !l.leaving {
		if planned {
			l.x.sessionEnded(l, reason, true)
			l.session.revive(time.Now())
			l.ended = nil
			l.comeBack(reason, e.pause)
			return
		}
		l.x.gaveUp(l, reason)
	}
	l.x.sessionEnded(l, reason, false)
	l.finish()
}

// refused: the first handshake came to nothing.
func (l *link) refused(reason string) {
	if e := l.ended; e != nil && e.code == codes.AlreadyExists && e.by != "" {
		l.settle(e.by) // the two have dialled each other: the other link may be there
		return
	}
	l.openErr = &LinkError{"the link was refused or lost: " + reason}
	close(l.opening)
}

// settle: the handshake is done. Who dialled has a link to that peer now, this one or another.
func (l *link) settle(peer string) {
	select {
	case <-l.opening:
	default:
		l.openedAs = peer
		close(l.opening)
	}
}

func (l *link) finish() {
	if l.finished {
		return
	}
	l.finished = true
	l.stopRedialling()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.giveRoom()
	l.checkOver()
}

func (l *link) checkOver() {
	if l.finished && l.connections == 0 {
		select {
		case <-l.over:
		default:
			close(l.over)
			delete(l.x.links, l)
		}
	}
}

// receive: a frame came in.
func (l *link) receive(in incoming) {
	l.understand(l.session.receive(in, time.Now()))
	l.wake() // an answer, a refusal or a goodbye may wait
	l.arm()
}

// mustPause: so much waits here that no more is read from a peer that does not keep to credit.
func (l *link) mustPause() bool {
	peer := l.session.peer
	return l.session.into.crowded() && (peer == nil || peer.credit == nil)
}

// nextFrame is what to write next, and whether to ask again.
func (l *link) nextFrame() (frame []byte, again bool) {
	frame, expired := l.session.next(time.Now())
	if len(expired) > 0 {
		l.x.expired(expired)
	}
	if !l.session.out.full() {
		l.giveRoom()
	}
	return frame, len(expired) > 0
}

// halfClosed: the other side will send no more, but reads. What it asked is still answered, then the link ends.
func (l *link) halfClosed() {
	l.readAll = true
	l.endIfAnswered()
}

func (l *link) endIfAnswered() {
	if l.readAll && l.session.peer != nil && !l.x.owes(l.session.peer.exchange) {
		l.session.goodbye(farewell{})
		l.wake()
	} else if l.session.peer == nil {
		l.session.goodbye(farewell{})
		l.wake()
	}
}

func (l *link) wake() {
	if l.connection != nil {
		l.connection.wake()
	} else if l.session.phase == closed { // not to be dialled again either
		l.finish()
	}
}

func (l *link) giveRoom() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// mustWait is closed when there may be room; nil if there is.
func (l *link) mustWait() <-chan struct{} {
	if !l.session.out.full() || l.finished || l.session.isMissing && l.session.phase == away {
		return nil
	}
	if l.room == nil {
		l.room = make(chan struct{})
	}
	return l.room
}

// close says goodbye after what is queued, and ends; within a bound, whatever the peer does.
func (l *link) close(f farewell) {
	x := l.x
	x.mu.Lock()
	l.leaving = true
	l.stopRedialling()
	l.session.goodbye(f)
	if l.connection == nil && !l.finished {
		x.sessionEnded(l, or(f.reason, "the link was closed"), false)
		l.finish()
	}
	l.wake()
	x.mu.Unlock()
	select {
	case <-l.over:
		return
	case <-time.After(drainTime):
	}
	x.mu.Lock()
	if l.connection != nil {
		l.connection.drop("the peer did not take what was queued in time")
	}
	x.mu.Unlock()
	<-l.over
}

func (l *link) understand(events []event) {
	for _, e := range events {
		switch e := e.(type) {
		case ended:
			l.ended = &e
		case opened, resumed:
			l.backoff.made(time.Now())
			l.since = time.Time{}
		}
	}
	for _, e := range events {
		l.x.heard(l, e)
	}
	for _, e := range events {
		switch e := e.(type) {
		case broken:
			l.breakOff(e)
		case forgotten:
			if l.dial == nil {
				l.x.gaveUp(l, fmt.Sprintf("it was not back within %v", l.x.limits.Resume))
				l.finish()
			}
		}
	}
	if len(events) > 0 && !l.session.out.full() {
		l.giveRoom()
	}
}

func (l *link) breakOff(b broken) {
	c := l.connection
	l.connection = nil
	if c != nil {
		c.drop(b.reason)
	}
	l.comeBack(b.reason, b.pause)
}

// arm sets the timer for what the session waits for. A peer that does not read is noticed although its session has
// nothing to wait for.
func (l *link) arm() {
	if l.finished {
		return
	}
	due := earlier(l.session.deadline(), time.Now().Add(l.x.limits.Silence))
	switch {
	case l.timer == nil:
		l.timer = time.AfterFunc(time.Until(due), l.tick)
	case l.due.IsZero() || due.Before(l.due):
		l.timer.Reset(time.Until(due))
	default:
		return
	}
	l.due = due
}

func (l *link) tick() {
	l.x.mu.Lock()
	defer l.x.mu.Unlock()
	if l.finished {
		return
	}
	l.due = time.Time{}
	now := time.Now()
	l.understand(l.session.tick(now))
	if c := l.connection; c != nil && !c.writing.IsZero() && now.Sub(c.writing) > l.x.limits.Silence {
		c.drop(fmt.Sprintf("it has read nothing for %v", l.x.limits.Silence))
	}
	l.wake()
	l.arm()
}
