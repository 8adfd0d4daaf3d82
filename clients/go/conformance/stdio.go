// How it is driven: commands come over stdin, answers and events go over stdout, each a message after its length.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"sync"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
)

// stdio is stdout, which several write to.
type stdio struct{ sync.Mutex }

func main() {
	p, running := new(process), map[string]context.CancelFunc{}
	in, any := bufio.NewReader(os.Stdin), protodelim.UnmarshalOptions{MaxSize: -1}
	for m := new(pb.Message); any.UnmarshalFrom(in, m) == nil; m = new(pb.Message) {
		ctx, cancel := context.WithCancel(context.Background())
		if withdraw := running[m.GetReplyTo()]; withdraw != nil {
			withdraw()
			continue
		}
		running[m.GetId()] = cancel
		done := make(chan struct{})
		go func() { p.command(ctx, m); close(done) }()
		select { // they begin in order, and one that waits holds up none
		case <-done:
		case <-time.After(10 * time.Millisecond):
		}
	}
	if p.app != nil {
		must(p.app.Close())
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (s *stdio) write(m *pb.Message, value any, err error) {
	data, wrong := json.Marshal(value)
	must(wrong)
	m.Payload = &pb.Message_Json{Json: data}
	if err != nil {
		m.Error = status.Convert(err).Proto()
	}
	s.Lock()
	defer s.Unlock()
	_, wrong = protodelim.MarshalTo(os.Stdout, m)
	must(wrong)
}

func (s *stdio) tell(event string, value any) {
	s.write(&pb.Message{Kind: pb.Kind_KIND_SEND, Name: event}, value, nil)
}

func (p *process) command(ctx context.Context, m *pb.Message) {
	reply := func(value any, err error, last bool) {
		p.write(&pb.Message{Kind: pb.Kind_KIND_REPLY, Name: m.GetName(), ReplyTo: m.GetId(), Last: last}, value, err)
	}
	c := command{With: new(command), Retry: 1e9}
	must(json.Unmarshal(m.GetJson(), &c))
	if c.Timeout != nil {
		timed, cancel := context.WithTimeout(ctx, seconds(*c.Timeout))
		defer cancel()
		ctx = timed
	}
	verb := m.GetName()
	if c.Do == "many" {
		verb = "handle many"
	} else if c.Expected != nil {
		verb = "state.setif"
	}
	value, err := p.run(ctx, verb, c, func(value any, err error) { reply(value, err, false) })
	reply(value, err, true)
}
