// The outgoing half of a session: what waits, what has left, and what must leave again.
//
// Law: no I/O. A message waits in the queue until credit lets it go; then it gets the next number. If the peer
// acknowledges what it takes, a message is kept until then. After a break, what the peer has not taken leaves again,
// under its number and before anything new. So the numbers have no gap, whatever breaks.
//
//	queue --credit--> (numbered) flight --Ack--> unsettled --settled--> gone
//	  ^                  |
//	  |                  +--break, then resumed--> again --> flight
//	  +-- unsent: never numbered, so surely not delivered; uncertain: numbered and not settled
//
// What is acknowledged is not sent again in this session. But if the peer loses its memory, what had not been
// settled there is lost with it; so the ids are kept until then.

package exchange

import (
	"time"
)

// entry is a message ready to leave.
type entry struct {
	message *Message
	data    []byte // without its time left
	size    int    // within a batch, at most
}

type numbered struct {
	seq uint64
	id  string
}

type outbox struct {
	keeps  bool    // the peer acknowledges: what has left is kept until then
	credit *credit // nil: no limit

	queue       deque[entry]
	queuedBytes int
	cancels     int // in the queue
	flight      deque[entry]
	flightBytes int
	again       deque[entry]
	sent        uint64          // the number of the last message that ever left; again and flight end there
	sentBytes   uint64          // of Batch frames, as the receiver counts them
	lastIDs     deque[numbered] // for a Reject, if nothing is kept
	unsettled   deque[numbered] // acknowledged
}

// full says that so much waits that whoever can wait should.
func (o *outbox) full() bool {
	return o.queue.len() > linkHighWater || o.queuedBytes > linkHighWaterBytes
}

// waits says whether something has yet to leave.
func (o *outbox) waits() bool { return o.queue.len() > 0 || o.again.len() > 0 }

func (o *outbox) unacknowledged() int { return o.again.len() + o.flight.len() }

func (o *outbox) put(e entry) error {
	if o.queue.len() >= linkQueueMessages || o.queuedBytes+e.size > linkQueueBytes {
		return tooMuch("more than %d messages or %d bytes wait on the link", linkQueueMessages, linkQueueBytes)
	}
	o.queue.pushBack(e)
	o.queuedBytes += e.size
	if e.message.Kind == KindCancel {
		o.cancels++
	}
	return nil
}

func (o *outbox) left(e entry) {
	o.queuedBytes -= e.size
	if e.message.Kind == KindCancel {
		o.cancels--
	}
}

// batch is a Batch frame of about room bytes at most, or nil; and messages whose time ended in the queue.
func (o *outbox) batch(room int, now time.Time) (frame []byte, expired []*Message) {
	room = min(room, batchBytes)
	if o.again.len() > 0 {
		return o.resend(room, now), nil
	}
	batch, expired := o.take(room, now)
	if len(batch) == 0 && o.cancels > 0 {
		batch = o.takeCancels(room)
	}
	if len(batch) == 0 {
		return nil, expired
	}
	return o.frame(batch, o.sent-uint64(len(batch))+1, now), expired
}

// take numbers the next messages that credit lets go.
func (o *outbox) take(room int, now time.Time) (batch []entry, expired []*Message) {
	size := 0
	for o.queue.len() > 0 && len(batch) < batchMessages {
		e := *o.queue.at(0)
		alive := e.message.deadline.After(now)
		if alive && (len(batch) > 0 && size+e.size > room || !o.mayLeave(size+e.size)) {
			break
		}
		o.queue.popFront()
		o.left(e)
		if alive {
			size += e.size
			o.number(e)
			batch = append(batch, e)
		} else {
			expired = append(expired, e.message)
		}
	}
	return batch, expired
}

func (o *outbox) mayLeave(size int) bool {
	if c := o.credit; c != nil && (o.sent >= c.seq || o.sentBytes+uint64(size+around) > c.bytes) {
		return false
	}
	return o.flight.len() < unackedMessages && o.flightBytes < unackedBytes
}

func (o *outbox) number(e entry) {
	o.sent++
	if o.keeps {
		o.flight.pushBack(e)
		o.flightBytes += e.size
		return
	}
	remember(&o.lastIDs, numbered{o.sent, e.message.ID}, batchMessages)
}

func remember(ids *deque[numbered], id numbered, most int) {
	if ids.len() >= most {
		ids.popFront()
	}
	ids.pushBack(id)
}

// takeCancels: a cancel needs no credit. One whose request waits here as well takes that with it, and neither leaves.
func (o *outbox) takeCancels(room int) (batch []entry) {
	cancelled, waiting := map[string]bool{}, map[string]bool{}
	for i := range o.queue.len() {
		m := o.queue.at(i).message
		waiting[m.ID] = true
		if m.Kind == KindCancel {
			cancelled[m.ReplyTo] = true
		}
	}
	size := 0
	for _, e := range o.queue.takeAll() {
		isCancel := e.message.Kind == KindCancel
		leaves := isCancel && !waiting[e.message.ReplyTo]
		later := leaves && len(batch) > 0 && (size+e.size > room || len(batch) >= batchMessages)
		if later || !isCancel && !cancelled[e.message.ID] {
			o.queue.pushBack(e)
			continue
		}
		o.left(e)
		if leaves {
			size += e.size
			o.number(e)
			batch = append(batch, e)
		}
	}
	return batch
}

// resend: what has left before leaves again. What has expired meanwhile does too: its number is taken.
func (o *outbox) resend(room int, now time.Time) []byte {
	first := o.sent - uint64(o.again.len()) + 1
	var batch []entry
	size := 0
	for o.again.len() > 0 && len(batch) < batchMessages {
		e := *o.again.at(0)
		// A cancel may have left without credit: what needs credit shall not be counted together with it.
		free := e.message.Kind == KindCancel
		if len(batch) > 0 && (size+e.size > room || free && batch[len(batch)-1].message.Kind != KindCancel) {
			break
		}
		o.again.popFront()
		size += e.size
		batch = append(batch, e)
		o.flight.pushBack(e)
		o.flightBytes += e.size
	}
	return o.frame(batch, first, now)
}

func (o *outbox) frame(batch []entry, seq uint64, now time.Time) []byte {
	frame := encodeBatch(seq, batch, now)
	o.sentBytes += uint64(len(frame))
	return frame
}

// acknowledged: the peer has taken all up to this number.
func (o *outbox) acknowledged(seq uint64) error {
	if seq > o.sent {
		return invalid("message %d is acknowledged, and %d were sent", seq, o.sent)
	}
	for number := o.sent - uint64(o.unacknowledged()) + 1; number <= seq && o.unacknowledged() > 0; number++ {
		var e entry
		if o.flight.len() > 0 {
			e = o.flight.popFront()
			o.flightBytes -= e.size
		} else {
			e = o.again.popFront()
		}
		remember(&o.unsettled, numbered{number, e.message.ID}, unsettledIDs)
	}
	return nil
}

// settled: what the peer has of the messages up to this number would not be lost with it.
func (o *outbox) settled(seq uint64) {
	for o.unsettled.len() > 0 && o.unsettled.at(0).seq <= seq {
		o.unsettled.popFront()
	}
}

// credited: the peer takes so much. It never becomes less.
func (o *outbox) credited(c credit) {
	if o.credit != nil {
		o.credit = &credit{max(c.seq, o.credit.seq), max(c.bytes, o.credit.bytes)}
	}
}

// idOf is the id of the message with this number, as far as it is remembered.
func (o *outbox) idOf(seq uint64) string {
	first := o.sent - uint64(o.unacknowledged()) + 1
	if o.keeps && first <= seq && seq <= o.sent {
		at := int(seq - first)
		if at < o.flight.len() {
			return o.flight.at(at).message.ID
		}
		return o.again.at(at - o.flight.len()).message.ID
	}
	for i := range o.lastIDs.len() {
		if id := o.lastIDs.at(i); id.seq == seq {
			return id.id
		}
	}
	return ""
}

// resumed: the session goes on, and the peer has taken so much.
func (o *outbox) resumed(received, receivedBytes uint64) error {
	if received < o.sent-uint64(o.unacknowledged()) {
		return invalid("the peer has taken %d messages, and had acknowledged more", received)
	}
	if err := o.acknowledged(received); err != nil {
		return err
	}
	flight := o.flight.takeAll()
	for i := len(flight) - 1; i >= 0; i-- {
		o.again.pushFront(flight[i])
	}
	o.flightBytes = 0
	o.sentBytes = receivedBytes
	return nil
}

// refusedAfter: the peer has taken so much and takes no more. What was sent after that counts as never sent.
func (o *outbox) refusedAfter(received uint64) error {
	if err := o.resumed(received, 0); err != nil {
		return err
	}
	again := o.again.takeAll()
	for i := len(again) - 1; i >= 0; i-- {
		o.queue.pushFront(again[i])
		o.queuedBytes += again[i].size
		if again[i].message.Kind == KindCancel {
			o.cancels++
		}
	}
	o.unsettled.takeAll()
	return nil
}

// takeUnsent takes the messages that never left.
func (o *outbox) takeUnsent() []*Message {
	queue := o.queue.takeAll()
	messages := make([]*Message, len(queue))
	for i, e := range queue {
		o.left(e)
		messages[i] = e.message
	}
	return messages
}

// takeUncertain takes the ids of those that have left, and would be lost if the peer's memory was.
func (o *outbox) takeUncertain() []string {
	var ids []string
	for _, id := range o.unsettled.takeAll() {
		ids = append(ids, id.id)
	}
	for _, e := range append(o.flight.takeAll(), o.again.takeAll()...) {
		ids = append(ids, e.message.ID)
	}
	o.flightBytes = 0
	return ids
}

// begin starts a new session: the numbers begin anew.
func (o *outbox) begin() {
	o.lastIDs.takeAll()
	o.sent, o.sentBytes = 0, 0
}
