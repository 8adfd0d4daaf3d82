// The Go program of benchmarks.languages; program.py says what it is told and what it says.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
	"github.com/nats-io/nats.go"
)

const (
	atOnce   = 64
	patience = 20 * time.Second
)

type order struct {
	Order    int    `json:"order"`
	Customer string `json:"customer"`
	Items    []int  `json:"items"`
	Paid     bool   `json:"paid"`
	Note     string `json:"note"`
}

var value = order{4711, "c-20230513", []int{3, 1, 4, 1, 5}, true, strings.Repeat("x", 22)}

// client is one side of a benchmark: how to send, to ask, and to hear how many were taken.
type client struct {
	send  func() error
	ask   func() error
	count func() (int64, error)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func say(what any) {
	line, err := json.Marshal(what)
	must(err)
	fmt.Println(string(line))
}

func untilTheEnd() { _, _ = io.Copy(io.Discard, os.Stdin) }

func (c client) oneWay(last time.Duration) (float64, error) {
	before, err := c.count()
	if err != nil {
		return 0, err
	}
	start, sent := time.Now(), int64(0)
	for ; time.Since(start) < last; sent++ {
		if err := c.send(); err != nil {
			return 0, err
		}
	}
	for taken := before; taken < before+sent; {
		if taken, err = c.count(); err != nil {
			return 0, err
		}
		if time.Since(start) > last+patience {
			return 0, fmt.Errorf("%d of %d arrived", taken-before, sent)
		}
		time.Sleep(time.Millisecond)
	}
	return float64(sent) / time.Since(start).Seconds(), nil
}

func (c client) atOnce(last time.Duration) (float64, error) {
	var answered atomic.Int64
	var failed atomic.Value
	var group sync.WaitGroup
	start := time.Now()
	for range atOnce {
		group.Go(func() {
			for time.Since(start) < last {
				if err := c.ask(); err != nil {
					failed.Store(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	group.Wait()
	if err, ok := failed.Load().(error); ok {
		return 0, err
	}
	return float64(answered.Load()) / time.Since(start).Seconds(), nil
}

func (c client) p50(last time.Duration) (float64, error) {
	var took []time.Duration
	for start := time.Now(); time.Since(start) < last; {
		begin := time.Now()
		if err := c.ask(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds()) / 1e3, nil
}

func (c client) obey() {
	say(nil)
	loads := map[string]func(time.Duration) (float64, error){"one way": c.oneWay, "at once": c.atOnce, "p50": c.p50}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var wanted struct {
			Load    string
			Seconds float64
		}
		must(json.Unmarshal(lines.Bytes(), &wanted))
		figure, err := loads[wanted.Load](time.Duration(wanted.Seconds * float64(time.Second)))
		if err != nil {
			say(map[string]string{"error": err.Error()})
			continue
		}
		say(map[string]float64{"figure": figure})
	}
}

func exchangeSink(url string) {
	ctx := context.Background()
	app, err := exchange.New("sink")
	must(err)
	defer app.Close()
	var taken atomic.Int64
	handle := func(name string, handler exchange.Handler) {
		_, err := app.Handle(name, handler)
		must(err)
	}
	handle("bench.take", func(context.Context, *exchange.Message) (any, error) {
		taken.Add(1)
		return nil, nil
	})
	handle("bench.count", func(context.Context, *exchange.Message) (any, error) { return taken.Load(), nil })
	handle("bench.echo", func(_ context.Context, msg *exchange.Message) (any, error) {
		var asked order
		err := msg.Decode(&asked)
		return asked, err
	})
	if strings.HasSuffix(url, ":0") {
		listens, err := app.Listen(url)
		must(err)
		say(listens)
	} else {
		_, err := app.Connect(ctx, url)
		must(err)
		say(nil)
	}
	untilTheEnd()
}

func exchangeSource(url string) {
	ctx := context.Background()
	app, err := exchange.New("source")
	must(err)
	defer app.Close()
	_, err = app.Connect(ctx, url)
	must(err)
	client{
		send: func() error {
			_, err := app.Send(ctx, "bench.take", value)
			return err
		},
		ask: func() error {
			_, err := exchange.Ask[order](ctx, app, "bench.echo", value)
			return err
		},
		count: func() (int64, error) { return exchange.Ask[int64](ctx, app, "bench.count", nil) },
	}.obey()
}

func natsSink(url string) {
	conn, err := nats.Connect(url)
	must(err)
	defer conn.Close()
	var taken atomic.Int64
	subscribe := func(name string, handle func(*nats.Msg)) {
		subscription, err := conn.Subscribe(name, handle)
		must(err)
		must(subscription.SetPendingLimits(-1, -1))
	}
	subscribe("bench.take", func(*nats.Msg) { taken.Add(1) })
	subscribe("bench.count", func(msg *nats.Msg) { must(msg.Respond(fmt.Append(nil, taken.Load()))) })
	subscribe("bench.echo", func(msg *nats.Msg) {
		var asked order
		must(json.Unmarshal(msg.Data, &asked))
		answer, err := json.Marshal(asked)
		must(err)
		must(msg.Respond(answer))
	})
	must(conn.Flush())
	say(nil)
	untilTheEnd()
}

func natsSource(url string) {
	conn, err := nats.Connect(url)
	must(err)
	defer conn.Close()
	client{
		send: func() error {
			data, err := json.Marshal(value)
			if err != nil {
				return err
			}
			return conn.Publish("bench.take", data)
		},
		ask: func() error {
			data, err := json.Marshal(value)
			if err != nil {
				return err
			}
			msg, err := conn.Request("bench.echo", data, patience)
			if err != nil {
				return err
			}
			var answer order
			return json.Unmarshal(msg.Data, &answer)
		},
		count: func() (taken int64, err error) {
			msg, err := conn.Request("bench.count", nil, patience)
			if err != nil {
				return 0, err
			}
			return taken, json.Unmarshal(msg.Data, &taken)
		},
	}.obey()
}

func main() {
	roles := map[string]func(string){
		"exchange sink": exchangeSink, "exchange source": exchangeSource,
		"nats sink": natsSink, "nats source": natsSource,
	}
	roles[os.Args[1]+" "+os.Args[2]](os.Args[3])
}
