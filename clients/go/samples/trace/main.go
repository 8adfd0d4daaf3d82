// Trace: ask for a sum, and then for the way that request and reply went.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

func main() {
	ctx := context.Background()
	app, err := exchange.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer app.Close()
	if _, err := app.Connect(ctx, cmp.Or(os.Getenv("EXCHANGE_URL"), "grpc://127.0.0.1:50051")); err != nil {
		log.Fatal(err)
	}
	reply, err := app.Request(ctx, "compute.sum", map[string]int{"a": 5, "b": 3})
	if err != nil {
		log.Fatal(err)
	}
	trace, err := app.Trace(ctx, reply.ReplyTo)
	if err != nil {
		log.Fatal(err)
	}
	for _, span := range trace.Spans {
		var way []string
		for _, hop := range span.Hops {
			way = append(way, hop.Exchange)
		}
		fmt.Printf("%s: %s\n", span.Name, strings.Join(way, " -> "))
	}
}
