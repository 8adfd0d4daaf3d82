// Messages and frames -> bytes. A message is written once; its time left comes last, for it is known only then.

package exchange

import (
	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"math"
	"time"
)

// pack is the bytes of a message, without the time it has left.
func pack(m *Message, asValue bool) ([]byte, error) {
	packed := &pb.Message{
		Id: m.ID, Name: m.Name, From: m.From, To: m.To, Kind: pb.Kind(m.Kind), Headers: m.Headers,
		TimestampUs: m.Timestamp.UnixMicro(), ReplyTo: m.ReplyTo, Last: m.Last, Many: m.Many, Outcome: pb.Outcome(m.outcome),
		Trace: &pb.Trace{Causes: m.Causes, Root: m.root, Path: m.Path, Cut: m.cut, Traceparent: m.traceparent},
	}
	for _, hop := range m.Hops {
		packed.Trace.Hops = append(packed.Trace.Hops, &pb.Hop{Exchange: hop.Exchange, AtUs: hop.At.UnixMicro()})
	}
	switch {
	case m.ContentType != jsonType:
		packed.Payload = &pb.Message_Data{Data: &pb.Data{ContentType: m.ContentType, Content: m.Payload}}
	case asValue:
		value, err := jsonToValue(m.Payload)
		if err != nil {
			return nil, err
		}
		packed.Payload = &pb.Message_Value{Value: value}
	default:
		packed.Payload = &pb.Message_Json{Json: m.Payload}
	}
	if m.Err != nil {
		packed.Error = packStatus(m.Err)
	}
	if m.end != nil {
		packed.End = &pb.End{Lost: *m.end}
	}
	data, err := proto.Marshal(packed)
	if err != nil {
		return nil, invalid("the message cannot be written: %v", err)
	}
	if len(data)+timeLeftBytes > messageBytes {
		return nil, tooMuch("the message is larger than %d bytes", messageBytes)
	}
	return data, nil
}

// encodeBatch is the bytes of a Batch frame.
func encodeBatch(seq uint64, entries []entry, now time.Time) []byte {
	var left [timeLeftBytes]byte
	size := protowire.SizeTag(fieldSeq) + protowire.SizeVarint(seq)
	for _, e := range entries {
		one := len(e.data) + len(appendTimeLeft(left[:0], e.message, now))
		size += protowire.SizeTag(fieldMessages) + protowire.SizeBytes(one)
	}
	frame := make([]byte, 0, size+2*timeLeftBytes)
	frame = protowire.AppendTag(frame, fieldBatch, protowire.BytesType)
	frame = protowire.AppendVarint(frame, uint64(size))
	frame = protowire.AppendTag(frame, fieldSeq, protowire.VarintType)
	frame = protowire.AppendVarint(frame, seq)
	for _, e := range entries {
		rest := appendTimeLeft(left[:0], e.message, now)
		frame = protowire.AppendTag(frame, fieldMessages, protowire.BytesType)
		frame = protowire.AppendVarint(frame, uint64(len(e.data)+len(rest)))
		frame = append(append(frame, e.data...), rest...)
	}
	return frame
}

func appendTimeLeft(to []byte, m *Message, now time.Time) []byte {
	us := max(1, min(int64(m.deadline.Sub(now)/time.Microsecond), math.MaxInt64>>1))
	return protowire.AppendVarint(protowire.AppendTag(to, fieldTimeLeft, protowire.VarintType), uint64(us))
}

// encodeFrame is the bytes of any frame but a Batch.
func encodeFrame(frame *pb.Frame) []byte {
	data, err := proto.Marshal(frame)
	if err != nil {
		panic(err) // of a frame that was made here, of texts that were checked
	}
	return data
}
