// Bytes -> frames and messages. A frame is read at once, and what breaks a rule in one of its messages refuses that
// message alone.

package exchange

import (
	"regexp"
	"strings"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Numbers of fields, for what is written and looked at by hand.
const (
	fieldBatch    protowire.Number = 3 // of Frame
	lastKnown     protowire.Number = 12
	fieldSeq      protowire.Number = 1 // of Batch
	fieldMessages protowire.Number = 2
	fieldTimeLeft protowire.Number = 11 // of Message
)

const (
	timeLeftBytes = 11 // at most, with its tag
)

var errUnparsed = invalid("the frame cannot be parsed")

var wellFormedParent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// incoming is a frame that came, of so many bytes: read, or why it cannot be taken as a whole.
type incoming struct {
	frame    *pb.Frame
	size     int
	messages []received // of a Batch
	err      error
}

// received is one message of a Batch, or why it is refused.
type received struct {
	message *Message
	id      string // as far as it could be read
	err     error
}

// decodeFrame reads a frame.
func decodeFrame(data []byte, now time.Time) incoming {
	in := incoming{frame: new(pb.Frame), size: len(data)}
	if len(data) > frameBytes {
		in.err = tooMuch("the frame is larger than %d bytes", frameBytes)
		return in
	}
	if in.err = checkCount(data); in.err != nil {
		return in
	}
	if err := (proto.UnmarshalOptions{RecursionLimit: protobufDepth}).Unmarshal(data, in.frame); err != nil {
		in.err = errUnparsed
		return in
	}
	batch := in.frame.GetBatch()
	if batch == nil {
		in.err = checkFrame(in.frame)
		return in
	}
	if severalFrames(data) {
		in.err = invalid("the frame is several frames in one")
		return in
	}
	in.messages = make([]received, len(batch.GetMessages()))
	for i, packed := range batch.GetMessages() {
		in.messages[i] = readOne(packed, len(data) > messageBytes, now)
	}
	return in
}

func readOne(packed *pb.Message, mayBeLarge bool, now time.Time) received {
	if mayBeLarge && proto.Size(packed) > messageBytes {
		return received{id: shortID(packed), err: tooMuch("the message is larger than %d bytes", messageBytes)}
	}
	message, err := readMessage(packed, now)
	return received{message, shortID(packed), err}
}

func shortID(packed *pb.Message) string {
	if len(packed.GetId()) > 128 {
		return ""
	}
	return packed.GetId()
}

// severalFrames finds a Batch that stands before another kind and before the Batch that counts: protobuf takes the
// last of several kinds, and so messages would be lost without a word.
func severalFrames(data []byte) bool {
	batches, between := false, false
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return false
		}
		size := protowire.ConsumeFieldValue(number, kind, data[n:])
		if size < 0 {
			return false
		}
		data = data[n+size:]
		if number == fieldBatch {
			if between {
				return true
			}
			batches = true
		} else if batches && number <= lastKnown {
			between = true
		}
	}
	return false
}

// checkFrame refuses names, patterns and ids that are none.
func checkFrame(frame *pb.Frame) error {
	switch kind := frame.GetKind().(type) {
	case *pb.Frame_Hello:
		return checkIntroduction(kind.Hello.GetExchange(), kind.Hello.GetInterest())
	case *pb.Frame_Welcome:
		return checkIntroduction(kind.Welcome.GetExchange(), kind.Welcome.GetInterest())
	case *pb.Frame_Interest:
		if err := checkInterest(kind.Interest.GetAdded()); err != nil {
			return err
		}
		return checkInterest(kind.Interest.GetRemoved())
	case *pb.Frame_Query:
		if kind.Query.GetId() == "" {
			return invalid("a question has an id")
		}
		return checkQuestion(kind.Query.GetId(), kind.Query.GetName(), kind.Query.GetExchange())
	case *pb.Frame_Answer:
		return checkQuestion(kind.Answer.GetId(), kind.Answer.GetName(), kind.Answer.GetExchange())
	}
	return nil
}

func checkIntroduction(id string, interest *pb.InterestSet) error {
	if err := checkID(id); err != nil {
		return err
	}
	return checkInterest(interest)
}

func checkInterest(interest *pb.InterestSet) error {
	if err := checkAll(interest.GetHandles(), checkName); err != nil {
		return err
	}
	if err := checkAll(interest.GetSubscribes(), checkPattern); err != nil {
		return err
	}
	return checkAll(interest.GetExports(), checkName)
}

func checkAll(texts []string, check func(string) error) error {
	for _, text := range texts {
		if err := check(text); err != nil {
			return err
		}
	}
	return nil
}

func checkQuestion(id, name, exchange string) error {
	printable := strings.IndexFunc(id, func(r rune) bool { return r < ' ' || r > '~' }) < 0
	if len(id) > 128 || !printable {
		return invalid("%s is no id of a question", shown(id))
	}
	if exchange != "" {
		return checkID(exchange)
	}
	return checkName(name)
}

// readMessage checks a message. Its id, From and hops may still be empty: whoever knows the peer fills them in.
func readMessage(packed *pb.Message, now time.Time) (*Message, error) {
	if packed.GetKind() < 0 || int(packed.GetKind()) > int(KindBroadcast) {
		return nil, invalid("no such kind of message: %d", packed.GetKind())
	}
	m := &Message{
		ID: packed.GetId(), Name: packed.GetName(), Kind: or(Kind(packed.GetKind()), KindSend),
		From: packed.GetFrom(), To: packed.GetTo(), Headers: packed.GetHeaders(), ReplyTo: packed.GetReplyTo(),
		Timestamp: time.UnixMicro(packed.GetTimestampUs()), root: packed.GetTrace().GetRoot(),
		cut: packed.GetTrace().GetCut(),
	}
	if err := m.checkAddress(); err != nil {
		return nil, err
	}
	if packed.GetTtlUs() < 0 {
		return nil, invalid("the time left (`ttl_us`) is negative")
	}
	m.deadline = now.Add(messageLife)
	if left := packed.GetTtlUs(); left > 0 {
		m.deadline = now.Add(time.Duration(min(left, int64(longestLife/time.Microsecond))) * time.Microsecond)
	}
	if err := m.readPayload(packed); err != nil {
		return nil, err
	}
	if err := m.readTrace(packed.GetTrace()); err != nil {
		return nil, err
	}
	if err := checkHeaders(m.Headers); err != nil {
		return nil, err
	}
	return m, m.readRest(packed)
}

func (m *Message) checkAddress() error {
	if err := checkName(m.Name); err != nil {
		return err
	}
	if m.ID != "" {
		origin, err := checkMessageID(m.ID)
		if err != nil {
			return err
		}
		if m.From != "" && m.From != origin {
			return invalid("%s is no message id of %s", shown(m.ID), shown(m.From))
		}
	} else if m.From != "" {
		if err := checkID(m.From); err != nil {
			return err
		}
	}
	if m.To != "" {
		return checkID(m.To)
	}
	return nil
}

func (m *Message) readPayload(packed *pb.Message) (err error) {
	m.Payload, m.ContentType = null, jsonType
	switch kind := packed.GetPayload().(type) {
	case *pb.Message_Json:
		m.Payload = kind.Json
	case *pb.Message_Data:
		m.Payload, m.ContentType = kind.Data.GetContent(), or(kind.Data.GetContentType(), binaryType)
		if len(m.ContentType) > contentTypeBytes {
			return tooMuch("the content type is longer than %d bytes", contentTypeBytes)
		}
	case *pb.Message_Value:
		m.usedValue = true
		m.Payload, err = valueToJSON(kind.Value)
	}
	return err
}

func (m *Message) readTrace(packed *pb.Trace) error {
	hops, causes, path := packed.GetHops(), packed.GetCauses(), packed.GetPath()
	if proto.Size(packed) > traceBytes {
		return tooMuch("the trace is larger than %d bytes", traceBytes)
	}
	if len(hops) > maxHops || len(causes) > maxCauses || len(path) > maxPath {
		return tooMuch("the trace has more than %d hops, %d causes or %d exchanges in its path", maxHops, maxCauses, maxPath)
	}
	m.Hops = make([]Hop, len(hops), len(hops)+1)
	for i, hop := range hops {
		if err := checkID(hop.GetExchange()); err != nil {
			return err
		}
		m.Hops[i] = Hop{hop.GetExchange(), time.UnixMicro(hop.GetAtUs())}
	}
	if m.root != "" {
		if _, err := checkMessageID(m.root); err != nil {
			return err
		}
	}
	for _, cause := range causes {
		if _, err := checkMessageID(cause); err != nil {
			return err
		}
	}
	if err := checkAll(path, checkID); err != nil {
		return err
	}
	m.Causes, m.Path = causes, path
	parent := packed.GetTraceparent() // W3C: one that cannot be read is not passed on
	if wellFormedParent.MatchString(parent) && strings.Trim(parent[3:35], "0") != "" && strings.Trim(parent[36:52], "0") != "" {
		m.traceparent = parent
	}
	return nil
}

func checkHeaders(headers map[string]string) error {
	size := 0
	for key, value := range headers {
		if key == "" {
			return invalid("headers have keys that are not empty")
		}
		size += len(key) + len(value)
	}
	if size > headersBytes {
		return tooMuch("the headers are larger than %d bytes", headersBytes)
	}
	return nil
}

func (m *Message) readRest(packed *pb.Message) error {
	m.Many = m.Kind == KindRequest && packed.GetMany()
	if m.ReplyTo == "" {
		if m.Kind == KindReply || m.Kind == KindCancel || m.Kind == KindOutcome {
			return invalid("a %s must say what it belongs to (`reply_to`)", strings.ToLower(m.Kind.String()))
		}
		return nil
	}
	if _, err := checkMessageID(m.ReplyTo); err != nil {
		return err
	}
	m.Last = packed.GetLast()
	if packed.GetError() != nil {
		m.Err = typed(readStatus(packed.GetError()))
	}
	if o := packed.GetOutcome(); o > 0 && int(o) <= int(OutcomeFailed) {
		m.outcome = Outcome(o)
	}
	if packed.GetEnd() != nil {
		lost := packed.GetEnd().GetLost()
		lost = lost[:min(len(lost), lostNames)]
		m.end = &lost
		return checkAll(lost, checkID)
	}
	return nil
}
