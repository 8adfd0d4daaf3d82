// The incoming half of a session: what was taken, what is told of it, and how much more is welcome.
//
// Law: no I/O. Messages are taken in the order of their numbers, each once. What was taken is acknowledged now and
// then, and so is what of it is settled: what would not be lost with us. A message that waits here for a handler
// is retained; the credit that we give is always so much that no more than the limits say can wait.

package exchange

import (
	"fmt"
	"math"
	"time"
)

// gap says that a message is missing.
type gap struct{ text string }

func (g *gap) Error() string { return g.text }

type inbox struct {
	received      uint64  // the number of the last message that was taken
	receivedBytes uint64  // of Batch frames
	given         *credit // that was told
	acknowledges  bool    // the peer wants to hear what was taken
	before        uint64  // how many were taken in former sessions: numbers are settled beyond that
	moreIsWelcome func()  // called when there is credit to tell

	limits        Limits
	retained      uint64
	retainedBytes uint64
	told          [2]uint64 // acknowledged, and settled
	unsettled     window
	ackDue        time.Time // zero: none is
}

// take counts a Batch of so many messages and bytes, whose first has the number seq (0: the sender does not
// count). What is left of it is new: the messages from skip on, the first of which has the number first.
func (b *inbox) take(seq uint64, count, size int, now time.Time) (first uint64, skip int, err error) {
	if seq == 0 {
		seq = b.received + 1
	}
	if seq > b.received+1 {
		return 0, 0, &gap{fmt.Sprintf("message %d came after %d", seq, b.received)}
	}
	if seq-1 > math.MaxUint64-uint64(count) {
		return 0, 0, invalid("the sequence numbers ran over")
	}
	skip = int(min(b.received+1-seq, uint64(count)))
	fresh := uint64(count - skip)
	first = b.received + 1
	b.received += fresh
	if fresh == 0 { // a frame that comes twice was counted once by who sent it
		return first, skip, nil
	}
	b.receivedBytes += uint64(size)
	if b.acknowledges {
		b.unsettled.add(b.before+first, fresh)
		if b.ackDue.IsZero() {
			b.ackDue = now.Add(ackTime)
		}
	}
	return first, skip, nil
}

// checkCredit refuses the message with this number, or all bytes so far, if they are more than was welcome.
func (b *inbox) checkCredit(seq uint64) error {
	if g := b.given; g != nil && (seq > g.seq || b.receivedBytes > g.bytes) {
		return tooMuch("more was sent than there was credit for: %d messages, %d bytes", g.seq, g.bytes)
	}
	return nil
}

// retain notes that a message that was taken waits here.
func (b *inbox) retain(size int) {
	b.retained++
	b.retainedBytes += uint64(size)
}

// release notes that it does not any more.
func (b *inbox) release(size int) {
	b.retained--
	b.retainedBytes -= uint64(size)
	if b.grown() && b.moreIsWelcome != nil {
		b.moreIsWelcome()
	}
}

// settle notes that the message with this number, counted from the first session on, is not lost if we are.
func (b *inbox) settle(seq uint64) { b.unsettled.remove(seq) }

// crowded says that no more should be read from a peer that does not keep to credit.
func (b *inbox) crowded() bool {
	return b.retained >= b.limits.CreditMessages || b.retainedBytes >= b.limits.CreditBytes
}

// now is what is welcome.
func (b *inbox) now() credit {
	return credit{
		b.received + b.limits.CreditMessages - min(b.retained, b.limits.CreditMessages),
		b.receivedBytes + b.limits.CreditBytes - min(b.retainedBytes, b.limits.CreditBytes),
	}
}

// give is the credit to tell. It never becomes less.
func (b *inbox) give() *credit {
	c := b.now()
	if b.given != nil {
		c = credit{max(c.seq, b.given.seq), max(c.bytes, b.given.bytes)}
	}
	b.given = &c
	return &c
}

// grown says that the credit has grown by a quarter of the window since it was told.
func (b *inbox) grown() bool {
	if b.given == nil {
		return false
	}
	c := b.now()
	return c.seq > b.given.seq && 4*(c.seq-b.given.seq) >= b.limits.CreditMessages ||
		c.bytes > b.given.bytes && 4*(c.bytes-b.given.bytes) >= b.limits.CreditBytes
}

// ack is what to acknowledge, if that is due and new.
func (b *inbox) ack(now time.Time) (seq, settled uint64, due bool) {
	if b.ackDue.IsZero() || now.Before(b.ackDue) && b.received-b.told[0] < ackMessages {
		return 0, 0, false
	}
	settled = b.unsettled.first(b.before+b.received+1) - 1 - b.before
	b.ackDue = time.Time{}
	if settled != b.received {
		b.ackDue = now.Add(ackTime)
	}
	if b.told == [2]uint64{b.received, settled} {
		return 0, 0, false
	}
	b.told = [2]uint64{b.received, settled}
	return b.received, settled, true
}

// begin starts a new session: the numbers begin anew. What waits here still waits. told: the peer knows the credit,
// and counts what it was given beyond what was taken.
func (b *inbox) begin(told bool) {
	if b.given != nil && told {
		rest := b.given.beyond(b.received, b.receivedBytes)
		b.given = &rest
	} else {
		b.given = nil
	}
	b.before += b.received
	b.received, b.receivedBytes = 0, 0
	b.told = [2]uint64{}
	b.unsettled = window{}
	b.ackDue = time.Time{}
}

// window is a set of numbers that are added in order and removed in any.
type window struct {
	start uint64 // the number of gone[0]
	gone  deque[bool]
}

func (w *window) add(first, count uint64) {
	if w.gone.len() == 0 {
		w.start = first
	}
	for range count {
		w.gone.pushBack(false)
	}
}

func (w *window) remove(number uint64) {
	if number < w.start || number-w.start >= uint64(w.gone.len()) {
		return
	}
	*w.gone.at(int(number - w.start)) = true
	for w.gone.len() > 0 && *w.gone.at(0) {
		w.gone.popFront()
		w.start++
	}
}

// first is the smallest number in it, or otherwise.
func (w *window) first(otherwise uint64) uint64 {
	if w.gone.len() == 0 {
		return otherwise
	}
	return w.start
}
