package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	exchange "github.com/exchange-grpc/exchange/clients/go"
	"google.golang.org/grpc/codes"
)

// pair is two exchanges that are linked: the shop listens, the till has dialled.
func pair() (shop, till *exchange.Exchange) {
	shop, err := exchange.New("shop")
	if err != nil {
		log.Fatal(err)
	}
	url, err := shop.Listen("grpc://127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	if till, err = exchange.New("till"); err != nil {
		log.Fatal(err)
	}
	if _, err := till.Connect(context.Background(), url); err != nil {
		log.Fatal(err)
	}
	return shop, till
}

// settled returns when the other side knows all that was registered here so far.
func settled(from *exchange.Exchange, to string) {
	if _, err := from.Request(context.Background(), "exchange.describe", nil, exchange.To(to)); err != nil {
		log.Fatal(err)
	}
}

func ExampleExchange_Handle() {
	shop, till := pair()
	defer shop.Close()
	defer till.Close()
	sum := exchange.Func(func(_ context.Context, in struct{ A, B int }) (int, error) { return in.A + in.B, nil })
	if _, err := shop.Handle("compute.sum", sum); err != nil {
		log.Fatal(err)
	}
	settled(shop, "till")
	answer, err := exchange.Ask[int](context.Background(), till, "compute.sum", map[string]int{"a": 5, "b": 3})
	fmt.Println(answer, err)
	// Output: 8 <nil>
}

func ExampleRefuse() {
	shop, till := pair()
	defer shop.Close()
	defer till.Close()
	_, err := shop.Handle("cake.price", func(context.Context, *exchange.Message) (any, error) {
		return nil, exchange.Refuse(codes.NotFound, "SOLD_OUT", "there is no cake today")
	})
	if err != nil {
		log.Fatal(err)
	}
	settled(shop, "till")
	_, err = till.Request(context.Background(), "cake.price", "sacher")
	var refused *exchange.Refused
	if errors.As(err, &refused) {
		fmt.Println(refused.Code, refused.Reason, refused.At, refused)
	}
	// Output: NotFound SOLD_OUT shop there is no cake today
}

func ExampleExchange_RequestMany() {
	shop, till := pair()
	defer shop.Close()
	defer till.Close()
	_, err := shop.HandleStream("count", func(_ context.Context, _ *exchange.Message, reply func(any) error) error {
		for i := range 3 {
			if err := reply(i + 1); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	settled(shop, "till")
	replies, err := till.RequestMany(context.Background(), "count", nil)
	if err != nil {
		log.Fatal(err)
	}
	for reply, err := range replies.All() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(reply.From, string(reply.Payload))
	}
	fmt.Println("lost:", len(replies.Lost()))
	// Output:
	// shop 1
	// shop 2
	// shop 3
	// lost: 0
}

func ExampleExchange_Subscribe() {
	shop, till := pair()
	defer shop.Close()
	defer till.Close()
	heard := make(chan string)
	_, err := till.Subscribe("bread.**", func(_ context.Context, msg *exchange.Message) {
		heard <- fmt.Sprint(msg.Name, " ", msg.Trace())
	})
	if err != nil {
		log.Fatal(err)
	}
	settled(till, "shop")
	if _, err := shop.Publish(context.Background(), "bread.baked.today", []string{"rye"}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-heard)
	// Output: bread.baked.today [shop till]
}

func ExampleExchange_Trace() {
	ctx := context.Background()
	shop, till := pair()
	defer shop.Close()
	defer till.Close()
	paid := make(chan *exchange.Message)
	_, err := till.On("bill.paid", func(_ context.Context, msg *exchange.Message) { paid <- msg })
	if err != nil {
		log.Fatal(err)
	}
	settled(till, "shop")
	_, err = shop.Handle("bill.pay", func(ctx context.Context, msg *exchange.Message) (any, error) {
		_, err := shop.Send(ctx, "bill.paid", nil) // caused by msg, because of ctx
		return "thanks", err
	})
	if err != nil {
		log.Fatal(err)
	}
	settled(shop, "till")
	if _, err := till.Request(ctx, "bill.pay", 12); err != nil {
		log.Fatal(err)
	}
	trace, err := till.Trace(ctx, (<-paid).ID)
	if err != nil {
		log.Fatal(err)
	}
	for _, span := range trace.Spans {
		fmt.Println(span.Kind, span.Name, len(span.Causes))
	}
	// Output:
	// KIND_REQUEST bill.pay 0
	// KIND_SEND bill.paid 1
	// KIND_REPLY bill.pay 1
}
