// Message: the one noun that travels, and what it says of its way and its causes. The fields are those of
// proto/exchange/v1/message.proto, whose comments are the reference.

package exchange

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/blake2b"
)

// Kind says who takes a message. The numbers are those of the contract.
type Kind int

// The kinds of messages.
const (
	KindSend Kind = iota + 1
	KindRequest
	KindReply
	KindCancel
	KindOutcome
	KindPublish
	KindBroadcast
)

var kindNames = [...]string{"UNSPECIFIED", "SEND", "REQUEST", "REPLY", "CANCEL", "OUTCOME", "PUBLISH", "BROADCAST"}

// String is the word of the contract, without its prefix: SEND.
func (k Kind) String() string { return kindNames[k] }

// MarshalText is String.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Outcome says what became of a message at one exchange. The numbers are those of the contract.
type Outcome int

// What may become of a message.
const (
	OutcomeHandled Outcome = iota + 1
	OutcomeForwarded
	OutcomeUnhandled
	OutcomeLoop
	OutcomeExpired
	OutcomeCancelled
	OutcomeDenied
	OutcomeDropped
	OutcomeFailed
)

var outcomeNames = [...]string{
	"UNSPECIFIED", "HANDLED", "FORWARDED", "UNHANDLED", "LOOP", "EXPIRED", "CANCELLED", "DENIED", "DROPPED", "FAILED",
}

// String is the word of the contract, without its prefix: HANDLED.
func (o Outcome) String() string { return outcomeNames[o] }

// MarshalText is String.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Hop is one stop of a message: the exchange, and when it got there by its clock.
type Hop struct {
	Exchange string
	At       time.Time
}

// Message is one message. Whoever gets one only reads it.
type Message struct {
	ID          string // <exchange>.<epoch>.<n>
	Name        string
	Kind        Kind
	From        string // the exchange that made it
	To          string // the one it is for, or empty
	Payload     []byte // JSON, unless ContentType says otherwise
	ContentType string
	Headers     map[string]string
	Timestamp   time.Time // when it was made, by the clock of From
	Hops        []Hop     // where it has been, from its origin to here
	Causes      []string  // the ids of what stands directly behind it, the newest last
	Path        []string  // the exchanges that were visited before it along its newest cause
	ReplyTo     string
	Many        bool  // a request to all who handle the name
	Last        bool  // of a reply: its handler will not answer the request again
	Err         error // of a reply: why the request failed

	root, traceparent string
	cut               bool
	outcome           Outcome
	end               *[]string // of the reply that ends those to many: whose replies are lost
	deadline          time.Time
	usedValue         bool // its payload came as `value`

	keeper *inbox // who is told while it waits here; nil: nobody asks
	seq    uint64 // its number there
	waits  int    // for so many handlers
	packed []byte // written, without its time left
	emit   *emission

	left      bool // it was given to a peer
	withdrawn bool // whoever sends it waits no longer for a way
}

// Decode reads the JSON that it carries into a variable, as json.Unmarshal does.
func (m *Message) Decode(into any) error {
	if m.ContentType != jsonType {
		return invalid("the payload is %s, no JSON", m.ContentType)
	}
	return decode(m.Payload, into)
}

// JSON is what it carries, to be put into other JSON; null if it is none.
func (m *Message) JSON() json.RawMessage {
	if m.ContentType != jsonType {
		return null
	}
	return m.Payload
}

// Value is what it carries, as it can be emitted again: json.RawMessage or [Data].
func (m *Message) Value() any {
	if m.ContentType != jsonType {
		return Data{m.ContentType, m.Payload}
	}
	return m.JSON()
}

// Root is the id of the message where it all began: its own if nothing stands behind it.
func (m *Message) Root() string { return or(m.root, m.ID) }

// Trace is the exchanges visited, from the root along the newest cause to here, equal neighbours merged.
func (m *Message) Trace() []string {
	names := make([]string, 0, len(m.Path)+len(m.Hops))
	names = append(names, m.Path...)
	for _, hop := range m.Hops {
		names = append(names, hop.Exchange)
	}
	return slices.Compact(names)
}

// Traceparent is its W3C trace context: what it says itself, or what follows from its root and its id.
func (m *Message) Traceparent() string {
	return or(m.traceparent, traceparent("00-"+digest(m.Root(), 16)+"-", m.ID))
}

// String names it for people.
func (m *Message) String() string {
	return fmt.Sprintf("%s %s %s", strings.ToLower(m.Kind.String()), m.Name, m.ID)
}

// MarshalJSON is the message for people and logs: what it carries is `value`, or `data` in base64 with `content_type`.
func (m *Message) MarshalJSON() ([]byte, error) {
	said := map[string]any{
		"id": m.ID, "name": m.Name, "kind": m.Kind, "from": m.From, "to": m.To, "root": m.Root(), "trace": m.Trace(),
		"causes": append([]string{}, m.Causes...), "timestamp_us": m.Timestamp.UnixMicro(), "headers": m.Headers,
	}
	if m.Headers == nil {
		said["headers"] = map[string]string{}
	}
	if m.ContentType == jsonType {
		said["value"] = m.JSON()
	} else {
		said["data"], said["content_type"] = append([]byte{}, m.Payload...), m.ContentType
	}
	return json.Marshal(said)
}

// header is the message without what it carried.
func (m *Message) header() *Message {
	return &Message{
		ID: m.ID, Name: m.Name, Kind: m.Kind, From: m.From, To: m.To, Hops: m.Hops, Causes: m.Causes, Path: m.Path,
		ReplyTo: m.ReplyTo, Many: m.Many, root: m.root, traceparent: m.traceparent, cut: m.cut, deadline: m.deadline,
	}
}

// settle says that the message would not be lost any more if this process was.
func (m *Message) settle() {
	if m.keeper != nil {
		m.keeper.settle(m.seq)
	}
}

func (m *Message) visited(exchange string) bool {
	return slices.ContainsFunc(m.Hops, func(hop Hop) bool { return hop.Exchange == exchange })
}

// traceparent is of version 00: trace id of 16 bytes, span id of 8, flags. Both ids are digests of message ids, so
// they need no randomness and need not travel. Whether it is sampled was decided where it began.
func traceparent(parent, id string) string {
	flags := "01"
	if len(parent) > 53 {
		flags = parent[53:]
	}
	return parent[:36] + digest(id, 8) + "-" + flags
}

func digest(id string, size int) string {
	hash, err := blake2b.New(size, nil)
	if err != nil {
		panic(err) // of a size that is none
	}
	hash.Write([]byte(id))
	return hex.EncodeToString(hash.Sum(nil))
}
