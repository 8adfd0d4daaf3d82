// What comes in to a session.

package exchange

import (
	"errors"
	"fmt"
	"strings"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/grpc/codes"
)

// receive is what one frame means. A frame that breaks the protocol ends the session.
func (s *session) receive(in incoming, now time.Time) []event {
	if s.phase == closed || s.phase == away {
		return nil
	}
	s.heard, s.contested = now, time.Time{}
	if in.err != nil {
		return s.breach(in.err.Error())
	}
	if s.met {
		return s.understand(in, now)
	}
	return s.introduced(in.frame)
}

func (s *session) introduced(frame *pb.Frame) []event {
	if goodbye := frame.GetGoodbye(); goodbye != nil {
		return s.heardGoodbye(goodbye)
	}
	if s.phase == closing { // we have said goodbye already: who it was does not matter any more
		return nil
	}
	var peer *introduction
	switch {
	case s.dialled && frame.GetWelcome() != nil:
		peer = readWelcome(frame.GetWelcome())
	case !s.dialled && frame.GetHello() != nil:
		peer = readHello(frame.GetHello())
	case s.dialled:
		return s.breach("the first frame is a Welcome")
	default:
		return s.breach("the first frame is a Hello")
	}
	if peer.exchange == s.me.exchange {
		return s.refuse(codes.AlreadyExists, "both ends of this link call themselves "+peer.exchange)
	}
	if max(len(peer.handles), len(peer.subscribes), len(peer.exports)) > namesPerPeer {
		return s.breach(fmt.Sprintf("more than %d names or patterns are declared", namesPerPeer))
	}
	if !s.dialled || s.peer == nil {
		s.meet(peer, false)
		return []event{opened{peer}}
	}
	return s.welcomedBack(peer)
}

// welcomedBack: we have dialled again.
func (s *session) welcomedBack(peer *introduction) []event {
	if !peer.recovered {
		uncertain, unsent := s.lost()
		s.into.begin(true)
		s.meet(peer, false)
		return []event{resumed{peer, false, uncertain, unsent}}
	}
	known := s.peer
	if s.id == "" || peer.exchange != known.exchange || peer.epoch != known.epoch || peer.session != s.id {
		return s.breach("a session is resumed that is none of ours")
	}
	if err := s.out.resumed(peer.received, peer.receivedBytes); err != nil {
		return s.breach(err.Error())
	}
	s.meet(peer, true)
	return []event{resumed{peer: peer, recovered: true}}
}

func (s *session) understand(in incoming, now time.Time) []event {
	switch kind := in.frame.GetKind().(type) {
	case *pb.Frame_Batch:
		if s.parting {
			return nil
		}
		return s.batch(kind.Batch.GetSeq(), in, now)
	case *pb.Frame_Interest: // this and the next two may be said before our Welcome is heard
		return s.interest(kind.Interest)
	case *pb.Frame_Query:
		return []event{kind.Query}
	case *pb.Frame_Answer:
		return []event{kind.Answer}
	}
	s.formerToken = nil
	switch kind := in.frame.GetKind().(type) {
	case *pb.Frame_Ack:
		if err := s.out.acknowledged(kind.Ack.GetSeq()); err != nil {
			return s.breach(err.Error())
		}
		s.out.settled(kind.Ack.GetSettled())
	case *pb.Frame_Credit:
		s.out.credited(*creditOf(kind.Credit))
	case *pb.Frame_Ping:
		nonce := kind.Ping.GetNonce()
		s.pong = &nonce
	case *pb.Frame_Reject:
		return []event{rejected{or(kind.Reject.GetId(), s.out.idOf(kind.Reject.GetSeq())), readStatus(kind.Reject.GetStatus())}}
	case *pb.Frame_Goodbye:
		return s.heardGoodbye(kind.Goodbye)
	case *pb.Frame_Hello, *pb.Frame_Welcome:
		return s.breach("an introduction comes once, as the first frame")
	}
	return nil
}

func (s *session) batch(seq uint64, in incoming, now time.Time) []event {
	s.formerToken = nil
	first, skip, err := s.into.take(seq, len(in.messages), in.size, now)
	if missed := (*gap)(nil); errors.As(err, &missed) {
		return s.gap(err.Error(), now)
	} else if err != nil {
		return s.breach(err.Error())
	}
	taken := make([]*Message, 0, len(in.messages)-skip)
	counted := uint64(0) // the last one that needs credit
	for i, one := range in.messages[skip:] {
		number := first + uint64(i)
		m, problem := one.message, one.err
		if problem == nil {
			s.asValue = s.asValue || m.usedValue
			if m.Kind != KindCancel {
				counted = number
			}
			problem = s.admit(m, number)
			one.id = m.ID
		}
		if problem == nil {
			m.keeper, m.seq = &s.into, s.into.before+number
			taken = append(taken, m)
			continue
		}
		s.into.settle(s.into.before + number)
		s.reject(number, one.id, problem)
	}
	if counted > 0 && s.peer.credit != nil {
		if err := s.into.checkCredit(counted); err != nil {
			return s.refuse(codes.ResourceExhausted, err.Error())
		}
	}
	if len(taken) == 0 {
		return nil
	}
	return []event{arrived{taken}}
}

// gap: once, the peer may send again what is missing.
func (s *session) gap(reason string, now time.Time) []event {
	at := s.into.received + 1
	if s.gapAt == at || len(s.token) == 0 || s.phase != open {
		return s.refuse(codes.DataLoss, reason)
	}
	s.gapAt = at
	s.leave(now)
	return []event{broken{reason: reason}}
}

// admit confirms who sent a message, and fills in what a simple peer leaves out.
func (s *session) admit(m *Message, seq uint64) error {
	peer := s.peer
	if len(m.Hops) == 0 {
		m.Hops = append(m.Hops, Hop{peer.exchange, m.Timestamp})
	}
	first, last := m.Hops[0].Exchange, m.Hops[len(m.Hops)-1].Exchange
	if m.From == "" {
		m.From = first
	}
	if m.ID == "" && m.From != peer.exchange {
		return invalid("it is passed on, and has no id")
	}
	if m.ID == "" {
		m.ID = fmt.Sprintf("%s.%d.%d", m.From, peer.epoch, seq)
	}
	switch {
	case last != peer.exchange:
		return invalid("its last hop is %s, but it came from %s", last, peer.exchange)
	case first != m.From || !strings.HasPrefix(m.ID, m.From+"."):
		return invalid("its id, its `from` and its first hop do not agree")
	case len(m.Hops) > 1 && !peer.relay:
		return invalid("%s does not relay, so it cannot pass on a message of %s", peer.exchange, m.From)
	}
	return nil
}

func (s *session) interest(change *pb.Interest) []event {
	if change.GetRevision() != s.expected+1 && change.GetRevision() != 0 {
		return s.breach(fmt.Sprintf("interest revision %d came after %d", change.GetRevision(), s.expected))
	}
	s.expected = change.GetRevision()
	apply(s.handles, change.GetRemoved().GetHandles(), change.GetAdded().GetHandles())
	apply(s.subscribes, change.GetRemoved().GetSubscribes(), change.GetAdded().GetSubscribes())
	if len(s.handles) > namesPerPeer || len(s.subscribes) > namesPerPeer {
		return s.breach(fmt.Sprintf("more than %d names or patterns are declared", namesPerPeer))
	}
	if change.Relay != nil {
		peer := *s.peer
		peer.relay = change.GetRelay()
		s.peer = &peer
	}
	return []event{change}
}

func apply(set map[string]bool, removed, added []string) {
	for _, text := range removed {
		delete(set, text)
	}
	for _, text := range added {
		set[text] = true
	}
}

func (s *session) heardGoodbye(goodbye *pb.Goodbye) []event {
	why := readStatus(goodbye.GetStatus())
	pause := time.Duration(goodbye.GetRetryAfterMs()) * time.Millisecond
	if s.phase == opening && !s.met && s.peer != nil && !goodbye.GetStayAway() {
		s.phase = away // not now: we have dialled too soon
		return []event{broken{why.Text, pause}}
	}
	if s.met && s.out.keeps {
		if err := s.out.refusedAfter(goodbye.GetReceived()); err != nil && goodbye.GetReceived() > 0 {
			return s.breach(err.Error())
		}
		if !s.parting {
			s.farewell = &farewell{}
		}
	}
	return s.end(ended{why.Code, why.Text, cutTo(goodbye.GetExchange(), idLength), pause, goodbye.GetStayAway()})
}

// breach: the peer has broken the protocol.
func (s *session) breach(reason string) []event { return s.refuse(codes.InvalidArgument, reason) }

func (s *session) refuse(code codes.Code, reason string) []event {
	stayAway := code == codes.InvalidArgument
	s.farewell = &farewell{code: code, reason: reason, stayAway: stayAway}
	return s.end(ended{code: code, reason: reason, by: s.me.exchange, stayAway: stayAway})
}

func (s *session) end(e ended) []event {
	s.phase = closed
	return []event{e}
}
