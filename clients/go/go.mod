module github.com/exchange-grpc/exchange/clients/go

go 1.26.0

require (
	github.com/exchange-grpc/exchange/generated/go v0.0.0
	golang.org/x/crypto v0.59.0
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

require (
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.50.0 // indirect
	golang.org/x/text v0.44.0 // indirect
)

replace github.com/exchange-grpc/exchange/generated/go => ../../generated/go
