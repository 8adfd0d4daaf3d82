// Request and reply: ask for a sum.
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
	if _, err := app.Connect(ctx, cmp.Or(os.Getenv("EXCHANGE_URL"), "grpc://127.0.0.1:50051")); err != nil {
		log.Fatal(err)
	}
	sum, err := exchange.Ask[int](ctx, app, "compute.sum", map[string]int{"a": 5, "b": 3})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("compute.sum:", sum)
}
