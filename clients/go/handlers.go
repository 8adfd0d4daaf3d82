// The public table: who handles, listens and subscribes here. How their functions run is in workers.go.

package exchange

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
)

// Handler answers messages. What it returns answers a request; nil gives an empty reply. An error made by [Refuse] is
// told to the caller; of any other he hears a fixed text, and it is logged. ctx ends when the caller withdraws the
// request or its time is over; what is emitted with it is caused by the message.
type Handler func(ctx context.Context, msg *Message) (any, error)

// StreamHandler answers a request to many as often as it likes, by reply. To any other request its first reply is
// the answer, and further ones return [ErrAnswered].
type StreamHandler func(ctx context.Context, msg *Message, reply func(value any) error) error

// Listener sees messages, and answers nothing.
type Listener func(ctx context.Context, msg *Message)

// ErrAnswered says that a request has its answer, and nobody waits for another.
var ErrAnswered = errors.New("exchange: the request is answered")

// Func makes a handler of a function from one Go type to another.
func Func[In, Out any](f func(ctx context.Context, in In) (Out, error)) Handler {
	return func(ctx context.Context, msg *Message) (any, error) {
		var in In
		if err := msg.Decode(&in); err != nil {
			return nil, Refuse(codes.InvalidArgument, "INVALID_MESSAGE", "%v", err)
		}
		return f(ctx, in)
	}
}

// registered is a function with its queue.
type registered struct {
	label    string
	handler  Handler
	stream   StreamHandler
	listener Listener
	most     int
	running  int
	missed   int  // messages that found the queue full
	ready    int  // workers that will look at what waits
	step     int  // how many more come next
	pausing  bool // ... after a moment
	waiting  deque[*run]
}

type listening struct {
	function *registered
	pattern  string
	peer     string // only what came from there; empty: everything
}

func newRegistered(label string, options []HandlerOption) *registered {
	f := &registered{label: label, most: handlerConcurrency, step: 1}
	for _, option := range options {
		option(f)
	}
	return f
}

// Handle answers name with h, until remove is called. One function answers a name.
func (x *Exchange) Handle(name string, h Handler, options ...HandlerOption) (remove func(), err error) {
	f := newRegistered(name, options)
	f.handler = h
	return x.handle(f, name)
}

// HandleStream is Handle for a function that may answer a request to many more than once.
func (x *Exchange) HandleStream(name string, h StreamHandler, options ...HandlerOption) (remove func(), err error) {
	f := newRegistered(name, options)
	f.stream = h
	return x.handle(f, name)
}

func (x *Exchange) handle(f *registered, name string) (remove func(), err error) {
	if err := checkOwn(name); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.handlers[name] != nil {
		return nil, fmt.Errorf("exchange: %s has a handler already", shown(name))
	}
	x.handlers[name] = f
	x.claim(name)
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.handlers[name] == f {
			delete(x.handlers, name)
			x.claim(name)
		}
	}, nil
}

func checkOwn(name string) error {
	if strings.HasPrefix(name, reserved) {
		return invalid("the name %s is reserved for the system", shown(name))
	}
	return checkName(name)
}

// On runs f for messages of this name, beside their handler, until remove is called. It claims the name.
func (x *Exchange) On(name string, f Listener, options ...HandlerOption) (remove func(), err error) {
	return x.on(name, "", f, options)
}

func (x *Exchange) on(name, peer string, f Listener, options []HandlerOption) (remove func(), err error) {
	if err := checkOwn(name); err != nil {
		return nil, err
	}
	l := &listening{function: newRegistered(name, options), peer: peer}
	l.function.listener = f
	x.mu.Lock()
	defer x.mu.Unlock()
	x.listeners[name] = append(x.listeners[name], l)
	x.claim(name)
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.listeners[name] = without(x.listeners[name], l)
		if len(x.listeners[name]) == 0 {
			delete(x.listeners, name)
		}
		x.claim(name)
	}, nil
}

// Subscribe runs f for every publication, anywhere in the mesh, whose name fits pattern, until remove is called.
func (x *Exchange) Subscribe(pattern string, f Listener, options ...HandlerOption) (remove func(), err error) {
	if err := checkPattern(pattern); err != nil {
		return nil, err
	}
	l := &listening{function: newRegistered(pattern, options), pattern: pattern}
	l.function.listener = f
	x.mu.Lock()
	defer x.mu.Unlock()
	x.subscribers = append(x.subscribers, l)
	x.router.subscribe(pattern, 1)
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		before := len(x.subscribers)
		if x.subscribers = without(x.subscribers, l); len(x.subscribers) < before {
			x.router.subscribe(pattern, -1)
		}
	}, nil
}

func without[T comparable](all []T, one T) []T {
	var rest []T // a new one: somebody may be going through the old
	for _, other := range all {
		if other != one {
			rest = append(rest, other)
		}
	}
	return rest
}

func (x *Exchange) claim(name string) {
	x.router.offer(name, x.handlers[name] != nil || len(x.listeners[name]) > 0)
}
