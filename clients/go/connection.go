// A connection: one transport while it lasts, and the link that it carries.
//
// One goroutine reads, one writes. The writer takes from the session whatever there is, one frame at a time, and
// waits for the transport after each: what is queued meanwhile leaves in the next batch. A lone message is
// written at once. What is guarded here is guarded by the mutex of the exchange.

package exchange

import (
	"io"
	"runtime"
	"time"
)

type connection struct {
	transport transport
	x         *Exchange
	link      *link // it may change hands: see takeOver
	wakeup    chan struct{}
	stop      chan struct{} // closed when it is dropped
	readAll   chan struct{} // closed when nothing more comes
	over      chan struct{}

	dropped bool
	why     string
	writing time.Time // since when the transport has not taken a frame; zero: it has
}

func newConnection(t transport, l *link) *connection {
	return &connection{
		transport: t, x: l.x, link: l, wakeup: make(chan struct{}, 1), stop: make(chan struct{}), readAll: make(chan struct{}),
		over: make(chan struct{}), why: "the link was closed",
	}
}

func (c *connection) start() {
	go c.read()
	go c.write()
	c.wake()
}

func (c *connection) wake() {
	select {
	case c.wakeup <- struct{}{}:
	default: // it will look anyway
	}
}

// drop ends it, whatever the peer does.
func (c *connection) drop(reason string) {
	if c.dropped {
		return
	}
	c.dropped, c.why = true, reason
	close(c.stop)
	if !c.writing.IsZero() {
		c.transport.abort()
	}
}

func (c *connection) read() {
	defer close(c.readAll)
	x := c.x
	for {
		frame, err := c.transport.receive()
		if err != nil {
			x.mu.Lock()
			c.ended(err)
			x.mu.Unlock()
			return
		}
		in := decodeFrame(frame, time.Now())
		x.mu.Lock()
		if l := c.link; l.connection == c {
			l.receive(in)
		}
		for c.link.connection == c && c.link.mustPause() { // while nothing is read, the peer's writer waits
			x.mu.Unlock()
			time.Sleep(crowdedPause)
			x.mu.Lock()
		}
		x.mu.Unlock()
	}
}

func (c *connection) ended(err error) {
	l := c.link
	switch {
	case err != io.EOF && l.session.peer == nil: // there never was a link to lose
		c.drop(said(err))
	case err != io.EOF:
		c.drop("the connection was lost: " + said(err))
	case l.session.dialled || l.session.into.acknowledges: // who resumes says goodbye before he ends
		c.drop("the peer ended the connection")
	case l.connection == c:
		l.halfClosed()
	}
}

func (c *connection) write() {
	reason := ""
	for reason == "" {
		select {
		case <-c.stop:
			reason = c.why
			continue
		case <-c.wakeup:
		}
		runtime.Gosched() // who is about to send gets into the same frame
		reason = c.writeAll()
	}
	c.finish(reason)
}

// writeAll writes until the session has no more to say; the reason if that was the last.
func (c *connection) writeAll() string {
	x := c.x
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		l := c.link
		if c.dropped {
			return c.why
		}
		if l.connection != c {
			return "the link was closed"
		}
		frame, again := l.nextFrame()
		if frame == nil && again {
			continue
		}
		if frame == nil {
			if l.session.phase == closed {
				return l.endReason()
			}
			return ""
		}
		c.writing = time.Now()
		x.mu.Unlock()
		err := c.transport.send(frame)
		x.mu.Lock()
		c.writing = time.Time{}
		if err != nil && !c.dropped {
			return "the peer cannot be written to: " + said(err)
		}
	}
}

func (c *connection) finish(reason string) {
	x := c.x
	x.mu.Lock()
	c.dropped = true
	c.link.disconnected(c, reason)
	x.mu.Unlock()
	c.transport.end()
	select { // let the other side hear what was said last
	case <-c.readAll:
	case <-time.After(closeTime):
	}
	c.transport.abort()
	close(c.over)
	x.mu.Lock()
	c.link.gone(c)
	x.mu.Unlock()
}
