// What Hello and Welcome have in common: who it is, what it offers and wants, and where the session stands.

package exchange

import (
	"slices"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
)

const (
	protocolVersion = 1
	featureValue    = "value"  // payloads are wanted as `value`
	featureResume   = "resume" // it acknowledges, and may resume
	featurePing     = "ping"   // it answers Ping
)

var ourFeatures = []string{featurePing, featureResume}

// credit is so many messages, and bytes of Batch frames, that will be taken in all of the session.
type credit struct{ seq, bytes uint64 }

// beyond is what is left of it once so much was taken.
func (c credit) beyond(seq, bytes uint64) credit {
	return credit{c.seq - min(c.seq, seq), c.bytes - min(c.bytes, bytes)}
}

type introduction struct {
	exchange                     string
	epoch                        uint64
	protocol                     uint32
	features                     []string
	agent                        string
	relay                        bool
	revision                     uint64
	handles, subscribes, exports []string
	messageBytes, frameBytes     uint64
	session                      string
	token                        []byte
	received, receivedBytes      uint64
	credit                       *credit
	recovered                    bool // of a Welcome
}

func (i *introduction) has(feature string) bool { return slices.Contains(i.features, feature) }

func creditOf(c *pb.Credit) *credit {
	if c == nil {
		return nil
	}
	return &credit{c.GetSeq(), c.GetBytes()}
}

func cutTo[T ~string | ~[]byte](of T, most int) T { return of[:min(len(of), most)] }

func readHello(h *pb.Hello) *introduction {
	i := &introduction{
		exchange: h.GetExchange(), epoch: h.GetEpoch(), protocol: h.GetProtocol(), features: h.GetFeatures(),
		agent: h.GetAgent(), relay: h.GetRelay(), session: h.GetSession(), token: h.GetResumeToken(),
		received: h.GetReceived(), receivedBytes: h.GetReceivedBytes(), credit: creditOf(h.GetCredit()),
	}
	return i.read(h.GetInterest(), h.GetLimits())
}

func readWelcome(w *pb.Welcome) *introduction {
	i := &introduction{
		exchange: w.GetExchange(), epoch: w.GetEpoch(), protocol: w.GetProtocol(), features: w.GetFeatures(),
		agent: w.GetAgent(), relay: w.GetRelay(), session: w.GetSession(), token: w.GetResumeToken(),
		received: w.GetReceived(), receivedBytes: w.GetReceivedBytes(), credit: creditOf(w.GetCredit()),
		recovered: w.GetRecovered(),
	}
	return i.read(w.GetInterest(), w.GetLimits())
}

func (i *introduction) read(interest *pb.InterestSet, limits *pb.Limits) *introduction {
	i.protocol = or(i.protocol, protocolVersion)
	i.agent, i.session, i.token = cutTo(i.agent, 200), cutTo(i.session, 64), cutTo(i.token, 64)
	i.revision, i.handles = interest.GetRevision(), interest.GetHandles()
	i.subscribes, i.exports = interest.GetSubscribes(), interest.GetExports()
	i.messageBytes, i.frameBytes = or(limits.GetMessageBytes(), messageBytes), or(limits.GetFrameBytes(), frameBytes)
	return i
}

func (i *introduction) interest() *pb.InterestSet {
	return &pb.InterestSet{Revision: i.revision, Handles: i.handles, Subscribes: i.subscribes, Exports: i.exports}
}

func (i *introduction) limits() *pb.Limits {
	return &pb.Limits{MessageBytes: messageBytes, FrameBytes: frameBytes}
}

func (i *introduction) hello() []byte {
	return encodeFrame(&pb.Frame{Kind: &pb.Frame_Hello{Hello: &pb.Hello{
		Exchange: i.exchange, Epoch: i.epoch, Protocol: i.protocol, Features: i.features, Agent: i.agent, Relay: i.relay,
		Interest: i.interest(), Limits: i.limits(), Session: i.session, ResumeToken: i.token, Received: i.received,
		ReceivedBytes: i.receivedBytes, Credit: &pb.Credit{Seq: i.credit.seq, Bytes: i.credit.bytes},
	}}})
}

func (i *introduction) welcome() []byte {
	return encodeFrame(&pb.Frame{Kind: &pb.Frame_Welcome{Welcome: &pb.Welcome{
		Exchange: i.exchange, Epoch: i.epoch, Protocol: i.protocol, Features: i.features, Agent: i.agent, Relay: i.relay,
		Interest: i.interest(), Limits: i.limits(), Session: i.session, ResumeToken: i.token, Received: i.received,
		ReceivedBytes: i.receivedBytes, Credit: &pb.Credit{Seq: i.credit.seq, Bytes: i.credit.bytes}, Recovered: i.recovered,
	}}})
}
