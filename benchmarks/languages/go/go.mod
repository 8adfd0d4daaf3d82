module github.com/exchange-grpc/exchange/benchmarks/languages/go

go 1.26.0

require (
	github.com/exchange-grpc/exchange/clients/go v0.0.0
	github.com/nats-io/nats.go v1.55.0
)

require (
	github.com/exchange-grpc/exchange/generated/go v0.0.0 // indirect
	github.com/klauspost/compress v1.20.0 // indirect
	github.com/nats-io/nkeys v0.4.16 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	golang.org/x/crypto v0.59.0 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.50.0 // indirect
	golang.org/x/text v0.44.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace (
	github.com/exchange-grpc/exchange/clients/go => ../../../clients/go
	github.com/exchange-grpc/exchange/generated/go => ../../../generated/go
)
