// Hello: connect, say hello, and tell whom it met.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

func main() {
	ctx := context.Background()
	app, err := exchange.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer app.Close()
	peer, err := app.Connect(ctx, cmp.Or(os.Getenv("EXCHANGE_URL"), "grpc://127.0.0.1:50051"))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := app.Send(ctx, "echo", "hello"); err != nil {
		log.Fatal(err)
	}
	fmt.Println("hello from", peer.ID())
}
