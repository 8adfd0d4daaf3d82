// Every limit: a number, a name and a reason. They are those of docs/limits.md, as far as a client has them.

package exchange

import (
	"fmt"
	"time"
)

// What the protocol fixes.
const (
	messageBytes     = 4 << 20  // gRPC's own default for what is received: any stub takes it
	frameBytes       = 16 << 20 // a few of the largest messages
	frameMessages    = 4_096    // in one frame, from whoever writes more at once than we do
	nameBytes        = 255
	idLength         = 64
	contentTypeBytes = 255
	headersBytes     = 8 << 10
	lostNames        = 256 // exchanges named in the end of the replies to many
	payloadDepth     = 30  // protobuf stops at 100 levels, that is 33 of Value
	protobufDepth    = 100
	maxHops          = 16
	maxCauses        = 16
	maxPath          = 32
	traceBytes       = 4 << 10
	traceBaseBytes   = 2_560   // causes and path alone: the rest of traceBytes is kept for the hops
	namesPerPeer     = 10_000  // what one peer may handle, and subscribe to
	batchMessages    = 1_024   // in one write
	batchBytes       = 1 << 20 // larger writes gain nothing and delay control frames
	around           = 32      // bytes: a message's time left, its tag and length; and the frame around a batch
	exact            = 1 << 53 // up to here a double tells every whole number from its neighbours
	longestLife      = 1_000_000_000 * time.Second
	errorText        = 1_000 // characters of an error that are sent
)

// How long things live.
const (
	requestLife     = 30 * time.Second       // the deadline of a request that says none
	messageLife     = 30 * time.Second       // the life of any other message that says none
	seenFor         = 60 * time.Second       // ids of publications are remembered for twice their life
	questionTime    = 500 * time.Millisecond // how long a discovery waits for its answers
	repeatPause     = 100 * time.Millisecond // before a question is asked again, while somebody is expected back
	settleTime      = 3 * time.Second        // so long others are expected back after a relay lost its memory
	nobodyTime      = time.Second            // how long a "nobody" is believed
	contestTime     = 2 * time.Second        // of silence, while another connection claims the id
	ackTime         = 100 * time.Millisecond // before messages are acknowledged, if they are few
	dialTime        = 2 * time.Second        // one attempt to link again
	retryAfter      = 500 * time.Millisecond // of a planned stop: whoever starts again is hardly back before
	drainTime       = 2 * time.Second        // how long a close waits for what was queued to leave
	stopTime        = 10 * time.Second       // how long a close waits for running handlers
	closeTime       = time.Second            // for the other side to end the call after goodbye
	traceTime       = 2 * time.Second        // how long the others are asked about a trace
	connectTime     = 5 * time.Second        // for a connection to be there
	crowdedPause    = 10 * time.Millisecond  // between two looks at whether a peer without credit may send on
	grpcSilence     = 20 * time.Second       // before HTTP/2 asks by itself: our own heartbeat comes first
	grpcPingTimeout = 5 * time.Second
)

// How much is kept.
const (
	seenIDs            = 65_536
	openRequests       = 65_536 // awaiting their reply, ours and those handled here
	openQuestions      = 4_096
	heldMessages       = 10_000 // that wait for a discovery
	routes             = 65_536 // names and exchanges whose way was found out or learned
	ledgerMessages     = 20_000
	ledgerEvents       = 64 // of one message
	ledgerReason       = 200
	traceExchanges     = 64 // asked about one trace
	traceAnswerBytes   = 1 << 20
	repliesWaiting     = 4_096 // of a request to many; beyond that it is withdrawn
	repliesBytes       = 64 << 20
	observerQueue      = 1_024 // beyond that, what an observer is too slow for is counted, not kept
	observerQueueBytes = 8 << 20
	eventQueue         = 65_536
	turns              = 4_096 // sets of candidates whose turn is remembered
	linkQueueMessages  = 65_536
	linkQueueBytes     = 32 << 20
	linkHighWater      = 1_024 // beyond this many, sends wait
	linkHighWaterBytes = 2 << 20
	unackedMessages    = 4_096 // sent and not acknowledged: kept for a resume
	unackedBytes       = 16 << 20
	unsettledIDs       = 65_536
	ackMessages        = 256 // taken before they are acknowledged: a quarter of the credit
	controlFrames      = 16_384
	handlerConcurrency = 1_024 // one handler, running at once
	handlerQueue       = 65_536
	handlerTurn        = 500 * time.Microsecond // that messages wait for a busy handler, before it runs more than once
)

// Limits are the limits of one exchange that can be set, by [WithLimits]. What is zero has its default.
type Limits struct {
	Handshake      time.Duration // from connection to Hello or Welcome: 5 s
	Heartbeat      time.Duration // of silence, before a peer is asked whether it is there: 5 s
	Silence        time.Duration // of silence, before it is taken for gone: 15 s
	Away           time.Duration // a broken link is waited for; then what waits for it fails or goes elsewhere: 5 s
	Resume         time.Duration // a session is kept after a break: 30 s
	ReconnectMin   time.Duration // dialled at once, then within this, then twice that: 100 ms
	ReconnectMax   time.Duration // ... up to this: 1 s
	CreditMessages uint64        // that one peer may have waiting here: 1,024
	CreditBytes    uint64        // the same in bytes: 8 MiB
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// complete fills in the defaults, and refuses what cannot work.
func (l Limits) complete() (Limits, error) {
	l.Handshake = or(l.Handshake, 5*time.Second)
	l.Heartbeat = or(l.Heartbeat, 5*time.Second)
	l.Silence = or(l.Silence, 15*time.Second)
	l.Away = or(l.Away, 5*time.Second)
	l.Resume = or(l.Resume, 30*time.Second)
	l.ReconnectMin = or(l.ReconnectMin, 100*time.Millisecond)
	l.ReconnectMax = or(l.ReconnectMax, time.Second)
	l.CreditMessages = or(l.CreditMessages, 1_024)
	l.CreditBytes = or(l.CreditBytes, 8<<20)
	for _, d := range []time.Duration{l.Handshake, l.Heartbeat, l.Silence, l.Away, l.Resume, l.ReconnectMin, l.ReconnectMax} {
		if d < 0 {
			return l, fmt.Errorf("exchange: a limit is negative: %v", d)
		}
	}
	if 2*l.Heartbeat > l.Silence {
		return l, fmt.Errorf("exchange: Silence is at least two heartbeats, for one may be late: %v", l.Silence)
	}
	if least := uint64(messageBytes + 2<<20); l.CreditBytes < least {
		return l, fmt.Errorf("exchange: CreditBytes is at least %d: the largest message must fit", least)
	}
	return l, nil
}
