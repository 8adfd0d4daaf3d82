// Live state: follow a value of another exchange, and set it.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	app, err := exchange.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer app.Close()
	peer, err := app.Connect(ctx, cmp.Or(os.Getenv("EXCHANGE_URL"), "grpc://127.0.0.1:50051"))
	if err != nil {
		log.Fatal(err)
	}
	state := app.State(peer.ID())
	if _, err := state.Set(ctx, "goal", 100); err != nil {
		log.Fatal(err)
	}
	for change, err := range state.Watch(ctx, "goal") {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("goal: %s\n", change.Value)
		if !change.Snapshot {
			break
		}
		if _, err := state.Set(ctx, "goal", 50); err != nil {
			log.Fatal(err)
		}
	}
}
