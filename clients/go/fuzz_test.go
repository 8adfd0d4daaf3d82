package exchange

import (
	"testing"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/protobuf/proto"
)

// FuzzReceive: whatever a peer says, a session ends or goes on, and what it takes has an id, a name and a way.
func FuzzReceive(f *testing.F) {
	for _, frame := range []*pb.Frame{
		{Kind: &pb.Frame_Batch{Batch: &pb.Batch{Messages: []*pb.Message{
			{Name: "a.b", Payload: &pb.Message_Json{Json: []byte(`"\ud800"`)}}, {Name: "a b"},
			{Id: "a.7.1", From: "a", Name: "x", Kind: pb.Kind_KIND_REPLY, ReplyTo: "b.7.1", End: &pb.End{Lost: []string{"c"}}},
		}}}},
		{Kind: &pb.Frame_Ack{Ack: &pb.Ack{Seq: 1, Settled: 2}}},
		{Kind: &pb.Frame_Goodbye{Goodbye: &pb.Goodbye{Received: 9}}},
		{Kind: &pb.Frame_Interest{Interest: &pb.Interest{Revision: 1, Added: &pb.InterestSet{Handles: []string{"a"}}}}},
	} {
		data, err := proto.Marshal(frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w := newWired(t, Limits{})
		for range 2 {
			for _, e := range w.b.receive(decodeFrame(data, w.now), w.now) {
				batch, ok := e.(arrived)
				if !ok {
					continue
				}
				for _, m := range batch.messages {
					if _, ok := originOf(m.ID); !ok || checkName(m.Name) != nil || len(m.Hops) == 0 {
						t.Errorf("%+v", m)
					}
					if checkJSON(m.Payload) == nil {
						_, _ = jsonToValue(m.Payload) // it may be refused, and must not panic
					}
				}
			}
			w.run()
		}
	})
}
