// Time, and what goes out of a session.

package exchange

import (
	"fmt"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// deadline is when tick is due, if nothing is heard before; zero: never.
func (s *session) deadline() time.Time {
	switch s.phase {
	case away:
		if !s.isMissing {
			return s.leftAt.Add(min(s.limits.Away, s.limits.Resume)) // who is forgotten is missing
		}
		if s.isForgotten {
			return time.Time{}
		}
		return s.leftAt.Add(s.limits.Resume)
	case opening:
		return s.since.Add(s.limits.Handshake)
	case closed:
		return time.Time{}
	}
	// What was due at the last tick is said when there is something to write on: no need to hurry.
	due := s.into.ackDue
	if !due.IsZero() && !due.After(s.ticked) {
		due = s.ticked.Add(ackTime)
	}
	if s.answersPings() {
		due = earlier(due, earlier(later(s.heard, s.pinged).Add(s.limits.Heartbeat), s.silentAt()))
	}
	return due
}

// earlier of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// tick tells the session the time: what takes too long ends.
func (s *session) tick(now time.Time) []event {
	slept := now.Sub(s.ticked) > s.limits.Silence
	s.ticked = now
	switch {
	case s.phase == away:
		return s.wait(now)
	case s.phase == opening:
		return s.hurry(now)
	case s.phase != closed && s.answersPings():
		return s.listen(now, slept)
	}
	return nil
}

func (s *session) answersPings() bool { return s.peer != nil && s.peer.has(featurePing) }

func (s *session) silentAt() time.Time {
	silent := s.heard.Add(s.limits.Silence)
	if !s.contested.IsZero() {
		return earlier(silent, s.contested.Add(contestTime))
	}
	return silent
}

// listen: whether the peer is there. It is asked after a heartbeat of silence, and given up after a long one.
func (s *session) listen(now time.Time, slept bool) []event {
	if slept { // it was we who did not listen: the peer has one more heartbeat to be heard
		s.heard = later(s.heard, now.Add(s.limits.Heartbeat-s.limits.Silence))
	}
	silent := !now.Before(s.silentAt())
	if silent && s.phase == closing {
		return s.end(ended{code: codes.Unavailable, reason: "it did not take leave in time", by: s.me.exchange})
	}
	if silent {
		reason := fmt.Sprintf("nothing was heard of it for %.3g s", now.Sub(s.heard).Seconds())
		if !s.contested.IsZero() {
			reason += ", and another claims its id"
		}
		s.leave(now)
		return append([]event{broken{reason: reason}}, s.giveUpWaiting())
	}
	if !now.Before(later(s.heard, s.pinged).Add(s.limits.Heartbeat)) {
		s.ask(now)
	}
	return nil
}

func (s *session) ask(now time.Time) {
	s.pinged = now
	nonce := uint64(1)
	if s.ping != nil {
		nonce = *s.ping + 1
	}
	s.ping = &nonce
}

// hurry: a handshake that takes too long.
func (s *session) hurry(now time.Time) []event {
	if now.Before(s.since.Add(s.limits.Handshake)) {
		return nil
	}
	reason := fmt.Sprintf("no introduction within %g s", s.limits.Handshake.Seconds())
	if s.peer != nil && s.dialled {
		s.phase = away
		return []event{broken{reason: reason}}
	}
	return s.refuse(codes.DeadlineExceeded, reason)
}

// wait: for how long is it waited for?
func (s *session) wait(now time.Time) (events []event) {
	if !s.isMissing && !now.Before(s.leftAt.Add(min(s.limits.Away, s.limits.Resume))) {
		events = append(events, s.giveUpWaiting())
	}
	if !s.isForgotten && !now.Before(s.leftAt.Add(s.limits.Resume)) {
		s.isForgotten = true
		events = append(events, forgotten{s.forget()})
	}
	return events
}

func (s *session) giveUpWaiting() event {
	s.isMissing = true
	return missing{s.out.takeUnsent()}
}

// send queues a message.
func (s *session) send(m *Message) (err error) {
	data := m.packed
	if data == nil || s.asValue && m.ContentType == jsonType {
		if data, err = pack(m, s.asValue); err != nil {
			return err
		}
	}
	size := len(data) + around
	if peer := s.peer; peer != nil && uint64(size) > min(peer.messageBytes+around, peer.frameBytes-min(peer.frameBytes, around)) {
		return tooMuch("the message is larger than %s takes", peer.exchange)
	}
	return s.out.put(entry{m, data, size})
}

// announce tells the peer that our interest has changed. One who reads none of it is told goodbye instead.
func (s *session) announce(change *pb.Interest) {
	if s.control.len() >= controlFrames {
		s.goodbye(farewell{code: codes.ResourceExhausted, reason: fmt.Sprintf("more than %d frames wait to be read", controlFrames)})
	}
	if s.phase != opening && s.phase != open {
		return
	}
	s.revision++
	s.control.pushBack(encodeFrame(&pb.Frame{Kind: &pb.Frame_Interest{Interest: &pb.Interest{
		Revision: s.revision, Added: change.GetAdded(), Removed: change.GetRemoved(),
	}}}))
}

// say queues a question or an answer: false if the peer cannot be reading.
func (s *session) say(frame *pb.Frame) bool {
	if s.control.len() >= controlFrames || s.phase == away {
		return false
	}
	s.control.pushBack(encodeFrame(frame))
	return true
}

// reject refuses one message that was received; if very many such answers wait, this one is left out.
func (s *session) reject(seq uint64, id string, why error) {
	if s.rejects.len() < controlFrames {
		s.rejects.pushBack(encodeFrame(&pb.Frame{Kind: &pb.Frame_Reject{Reject: &pb.Reject{
			Seq: seq, Id: id, Status: packStatus(why),
		}}}))
	}
}

// goodbye says that the session ends, after what is queued.
func (s *session) goodbye(f farewell) {
	s.leaves = true
	switch s.phase {
	case opening, open:
		s.phase = closing
		s.farewell = &f
	case away:
		s.phase = closed
	}
}

// next is the bytes of the next frame to write, or nil; and messages whose time ended in the queue. Control frames
// never wait behind messages; then comes one Batch with as many messages as one write may carry.
func (s *session) next(now time.Time) (frame []byte, expired []*Message) {
	if s.phase == away {
		return nil, nil
	}
	if frame := s.nextControl(now); frame != nil {
		return frame, nil
	}
	if s.met && (s.phase == open || s.phase == closing) {
		if frame, expired = s.out.batch(int(min(s.peer.frameBytes, frameBytes))-around, now); frame != nil {
			return frame, expired
		}
	}
	if s.farewell != nil && (!s.out.waits() || !s.met || s.phase == closed) {
		return s.takeLeave(), expired
	}
	return nil, expired
}

func (s *session) takeLeave() []byte {
	f := *s.farewell
	s.farewell = nil
	if s.phase == closing && s.met && s.out.keeps {
		s.parting = true
	} else if s.phase == closing {
		s.phase = closed
	}
	goodbye := &pb.Goodbye{
		Status: &status.Status{Code: int32(f.code), Message: sayable(f.reason)}, RetryAfterMs: uint32(f.pause.Milliseconds()),
		StayAway: f.stayAway, Exchange: s.me.exchange,
	}
	if s.into.acknowledges && s.met { // before its Welcome it is not known whether the peer counts on or anew
		goodbye.Received = s.into.received
	}
	return encodeFrame(&pb.Frame{Kind: &pb.Frame_Goodbye{Goodbye: goodbye}})
}

// nextControl is a frame that does not wait behind messages.
func (s *session) nextControl(now time.Time) []byte {
	switch {
	case s.control.len() > 0:
		return s.control.popFront()
	case s.met && s.rejects.len() > 0:
		return s.rejects.popFront()
	case !s.met || s.phase == closed:
		return nil
	case s.pong != nil:
		nonce := *s.pong
		s.pong = nil
		return encodeFrame(&pb.Frame{Kind: &pb.Frame_Pong{Pong: &pb.Pong{Nonce: nonce}}})
	case s.ping != nil:
		nonce := *s.ping
		s.ping = nil
		return encodeFrame(&pb.Frame{Kind: &pb.Frame_Ping{Ping: &pb.Ping{Nonce: nonce}}})
	}
	if seq, settled, due := s.into.ack(now); due {
		return encodeFrame(&pb.Frame{Kind: &pb.Frame_Ack{Ack: &pb.Ack{Seq: seq, Settled: settled}}})
	}
	if s.peer.credit != nil && s.into.grown() {
		given := s.into.give()
		return encodeFrame(&pb.Frame{Kind: &pb.Frame_Credit{Credit: &pb.Credit{Seq: given.seq, Bytes: given.bytes}}})
	}
	return nil
}
