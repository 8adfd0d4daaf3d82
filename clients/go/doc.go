// Package exchange makes a Go program an exchange: it handles messages, emits them, and is linked to others, wherever
// they run and whatever language they are written in. Names are found across the mesh, a link that breaks is made again
// and loses nothing, and every message knows where it has been and what caused it.
//
// Make an exchange with [New], link it with [Exchange.Connect] (or let others link to it with [Exchange.Listen]), answer
// names with [Exchange.Handle], and emit with [Exchange.Send], [Exchange.Request], [Exchange.Publish] and their
// like. [Dial] and [Ask] are the short way to a first answer.
//
// # Contexts
//
// Whatever waits takes a context.Context, and ends with it: a request that is given up cancels its handler, wherever
// that runs, by the context that the handler was given. The same context carries the cause: what is emitted with it, or
// with one made from it, is caused by the message that is handled, and so are the replies awaited with it. A goroutine
// that outlives its handler keeps the cause with context.WithoutCancel. See [Cause] and [Exchange.Trace].
//
// # Errors
//
// What goes wrong on the way is one of the tree of docs/errors.md, for errors.As: *[Unhandled], *[DeadlineExceeded], *[Unavailable],
// *[Cancelled], *[Refused], *[HandlerFailed], which all are *[RequestError]; *[InvalidMessage], *[LimitExceeded],
// *[AddressError], *[LinkError] and *[Closed]. All are an [Error], and package status of grpc-go knows them.
//
// # Logs
//
// What a handler kept from its caller, and what went wrong with nobody there to be told, is logged: warnings and errors to
// slog.Default(), unless [WithLogger] says otherwise.
//
// # What a client is not
//
// An exchange of this package is a leaf: it may have many links and may be listened at, but does not pass on what its
// peers send each other. It has no state of its own to share, and no doors for those who are no exchange.
package exchange
