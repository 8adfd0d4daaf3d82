// Worker pool: two workers share a name, and who asks need not know of them.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"os"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

// join makes an exchange that is linked to the hub. Ids are their own in the whole mesh, so each run has others.
func join(name, run string) *exchange.Exchange {
	app, err := exchange.New(name + "-" + run)
	if err != nil {
		log.Fatal(err)
	}
	url := cmp.Or(os.Getenv("EXCHANGE_URL"), "grpc://127.0.0.1:50051")
	if _, err := app.Connect(context.Background(), url); err != nil {
		log.Fatal(err)
	}
	return app
}

func main() {
	ctx, run := context.Background(), rand.Text()[:8]
	for _, name := range []string{"worker-1", "worker-2"} {
		worker := join(name, run)
		defer worker.Close()
		work := func(context.Context, *exchange.Message) (any, error) { return name, nil }
		if _, err := worker.Handle("pool.work", work); err != nil {
			log.Fatal(err)
		}
		// What the hub answers now, it answers after it has heard what is handled here.
		if _, err := worker.Request(ctx, "echo", nil); err != nil {
			log.Fatal(err)
		}
	}
	boss := join("boss", run)
	defer boss.Close()
	done := map[string]int{}
	for i := range 10 {
		name, err := exchange.Ask[string](ctx, boss, "pool.work", i)
		if err != nil {
			log.Fatal(err)
		}
		done[name]++
	}
	fmt.Printf("worker-1: %d\nworker-2: %d\n", done["worker-1"], done["worker-2"])
}
