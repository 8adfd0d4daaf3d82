// Live state: watch a value of another exchange, and set it.
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
	for change, err := range state.Watch(ctx, "goal") {
		if err != nil {
			log.Fatal(err)
		}
		if !change.Snapshot {
			fmt.Printf("goal: %s\n", change.Value)
			break
		}
		wanted := 50 // as it is now, it comes first; then comes every change
		if string(change.Value) == "50" {
			wanted = 100
		}
		if _, err := state.Set(ctx, "goal", wanted); err != nil {
			log.Fatal(err)
		}
	}
}
