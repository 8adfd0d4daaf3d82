// Hello: connect, say hello, and tell who answered.
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
	word, err := exchange.Ask[string](ctx, app, "echo", "hello")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(word, "from", peer.ID())
}
