package exchange_test

import (
	"testing"

	exchange "github.com/exchange-grpc/exchange/clients/go"
)

var item = map[string]any{"id": 7, "name": "rope, 20 m", "price": 18.5, "stock": 40}

func BenchmarkSend(b *testing.B) {
	shop, till := pair()
	defer shop.Close()
	defer till.Close()
	if _, err := shop.Handle("sink", echo); err != nil {
		b.Fatal(err)
	}
	settled(shop, "till")
	for b.Loop() {
		if _, err := till.Send(b.Context(), "sink", item); err != nil {
			b.Fatal(err)
		}
	}
	settled(till, "shop")
}

func BenchmarkRequest(b *testing.B) {
	shop, till := pair()
	defer shop.Close()
	defer till.Close()
	if _, err := shop.Handle("echo", echo); err != nil {
		b.Fatal(err)
	}
	settled(shop, "till")
	for b.Loop() {
		if _, err := exchange.Ask[map[string]any](b.Context(), till, "echo", item); err != nil {
			b.Fatal(err)
		}
	}
}
