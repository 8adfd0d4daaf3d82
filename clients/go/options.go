// How an exchange is made, and how a call is.

package exchange

import (
	"log/slog"
	"maps"
	"time"
)

// Option says how an exchange is made.
type Option func(*Exchange)

// WithLogger logs to l, at all levels: slog.New(slog.DiscardHandler) logs nothing. By default warnings and errors go to
// slog.Default().
func WithLogger(l *slog.Logger) Option { return func(x *Exchange) { x.log = l } }

// WithLimits sets limits; what is zero in l has its default.
func WithLimits(l Limits) Option { return func(x *Exchange) { x.limits = l } }

// WithRetry says for how long after a break a link is dialled again: by default for ever. Zero: it is gone then.
func WithRetry(d time.Duration) LinkOption {
	return func(o *linkOptions) {
		r := retry(max(d, 0))
		o.retry = &r
	}
}

// CallOption says how a message is emitted.
type CallOption func(*call)

type call struct {
	to, via string
	headers map[string]string
	forever bool
}

// To addresses one exchange, anywhere in the mesh, and nobody else.
func To(exchange string) CallOption { return func(c *call) { c.to = exchange } }

// Via fixes the first link, to the peer with this id; it handles the message or passes it on.
func Via(peer string) CallOption { return func(c *call) { c.via = peer } }

// Header adds a header.
func Header(key, value string) CallOption {
	return func(c *call) {
		if c.headers == nil {
			c.headers = map[string]string{}
		}
		c.headers[key] = value
	}
}

// Headers adds headers.
func Headers(headers map[string]string) CallOption {
	return func(c *call) {
		if c.headers == nil {
			c.headers = map[string]string{}
		}
		maps.Copy(c.headers, headers)
	}
}

// WithoutDeadline lets a request wait as long as its context does, and not 30 s if that has no deadline.
func WithoutDeadline() CallOption { return func(c *call) { c.forever = true } }

// HandlerOption says how a handler is run.
type HandlerOption func(*registered)

// Concurrency is how many runs of it there may be at once; 1,024 by default. With 1, one message is handled after
// another, in order of arrival.
func Concurrency(most int) HandlerOption { return func(f *registered) { f.most = max(1, most) } }
