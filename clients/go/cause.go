// Causes: what stands behind a message that is emitted now.
//
// A handler is given a context.Context, and whatever is emitted with it, or with one made from it, is caused by the
// message handled. A reply awaited with it is a further cause of what follows. What outlives its handler (by
// context.WithoutCancel) keeps the cause.

package exchange

import (
	"context"
	"slices"
	"sync"
)

// behind is what stands behind a message. The zero value is a beginning.
type behind struct {
	causes            []string
	root, traceparent string
	path              []string
	cut               bool
}

func behindOf(m *Message) behind {
	path, cut := pathOf(m)
	return behind{[]string{m.ID}, m.Root(), m.traceparent, path, cut}
}

// then is the same after a reply was awaited in it.
func (b behind) then(reply *Message) behind {
	path, cut := pathOf(reply)
	causes := append(slices.Clone(b.causes), reply.ID)
	tooMany := len(causes) > maxCauses
	if tooMany {
		causes = causes[len(causes)-maxCauses:]
	}
	return behind{causes, or(b.root, reply.Root()), or(b.traceparent, reply.traceparent), path, b.cut || cut || tooMany}
}

// fitting is as much of the path, the newest last, as a trace has room for.
func (b behind) fitting() (path []string, cut bool) {
	path, cut = b.path, b.cut
	size := len(b.root)
	for _, text := range b.causes {
		size += len(text) + 2
	}
	for _, text := range path {
		size += len(text) + 2
	}
	for len(path) > 0 && size > traceBaseBytes {
		size -= len(path[0]) + 2
		path, cut = path[1:], true
	}
	return path, cut
}

func pathOf(m *Message) (path []string, cut bool) {
	path = m.Trace()
	if len(path) > maxPath {
		return path[len(path)-maxPath:], true
	}
	return path, m.cut
}

// invocation is what is done because of one message.
type invocation struct {
	message *Message
	mu      sync.Mutex
	context *behind // nil: nothing was awaited so far
}

func (i *invocation) behind() behind {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.context == nil {
		return behindOf(i.message)
	}
	return *i.context
}

// after notes a reply that was awaited.
func (i *invocation) after(reply *Message) {
	b := i.behind().then(reply)
	i.mu.Lock()
	i.context = &b
	i.mu.Unlock()
}

type invocationKey struct{}

func invocationOf(ctx context.Context) *invocation {
	inv, _ := ctx.Value(invocationKey{}).(*invocation)
	return inv
}

// Cause is the message in whose handler ctx was made, or nil.
func Cause(ctx context.Context) *Message {
	if inv := invocationOf(ctx); inv != nil {
		return inv.message
	}
	return nil
}

func behindContext(ctx context.Context) behind {
	if inv := invocationOf(ctx); inv != nil {
		return inv.behind()
	}
	return behind{}
}
