// The exchange: the public face, and what all else is guarded by.
//
// One mutex guards sessions, routing, handlers and ledger, which are pure and quick. Reading and writing frames,
// messages and values happens outside of it, and so does every function of the user.

package exchange

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
)

// Version is that of this library.
const Version = "0.1.0"

const agent = "go/" + Version

// Exchange handles messages and emits them. It is a leaf of its mesh: it may have many links, and may be listened at,
// but never passes on what others send each other. It is made by [New], and its methods may be called from anywhere.
type Exchange struct {
	id     string
	epoch  uint64
	prefix string       // of the ids of our messages
	log    *slog.Logger // nil: the usual one
	limits Limits
	count  atomic.Uint64 // of messages that were made
	base   context.Context
	stop   context.CancelFunc

	mu          sync.Mutex
	router      *router
	ledger      *ledger
	handlers    map[string]*registered
	listeners   map[string][]*listening
	subscribers []*listening
	observers   []*observer
	notified    []*observer // of events
	links       map[*link]bool
	byPeer      map[string]*link // whose session may be resumed
	faces       map[string]*Peer // that are not gone
	revision    uint64           // of what we handle and subscribe to
	servers     []*listener
	closing     bool // nothing new is begun
	closed      bool
	working     int           // goroutines that run handlers
	quiet       chan struct{} // closed when none does; nil: nobody waits for that
}

// New makes an exchange. id is its name in its mesh: 1 to 64 of `A-Z a-z 0-9 _ -`, its alone; empty, one is made up.
func New(id string, options ...Option) (*Exchange, error) {
	x := &Exchange{
		id: id, epoch: uint64(time.Now().UnixMicro()),
		handlers: map[string]*registered{}, listeners: map[string][]*listening{}, links: map[*link]bool{},
		byPeer: map[string]*link{}, faces: map[string]*Peer{},
	}
	if id == "" {
		x.id = "exchange-" + hex.EncodeToString(x.randomBytes(4))
	}
	if err := checkID(x.id); err != nil {
		return nil, err
	}
	for _, option := range options {
		option(x)
	}
	x.prefix = fmt.Sprintf("%s.%d.", x.id, x.epoch)
	var err error
	if x.limits, err = x.limits.complete(); err != nil {
		return nil, err
	}
	x.base, x.stop = context.WithCancel(context.Background())
	x.router, x.ledger = newRouter(x), newLedger(x.id)
	x.installSystem()
	return x, nil
}

// Dial makes an exchange with an id that is made up, and connects it to a URL. It is [New] and [Exchange.Connect] in one.
func Dial(ctx context.Context, url string, options ...LinkOption) (*Exchange, error) {
	x, err := New("")
	if err != nil {
		return nil, err
	}
	if _, err := x.Connect(ctx, url, options...); err != nil {
		_ = x.Close() // there is nothing to end
		return nil, err
	}
	return x, nil
}

// ID is its name in its mesh.
func (x *Exchange) ID() string { return x.id }

// String names it for people.
func (x *Exchange) String() string { return "exchange " + x.id }

func (x *Exchange) random() float64 { return rand.Float64() }

func (x *Exchange) randomBytes(n int) []byte {
	bytes := make([]byte, n)
	_, _ = crand.Read(bytes) // never fails
	return bytes
}

func (x *Exchange) introduction() introduction {
	me := introduction{
		exchange: x.id, epoch: x.epoch, protocol: protocolVersion, features: ourFeatures, agent: agent, revision: x.revision,
		handles: []string{}, subscribes: []string{},
	}
	for name := range x.router.offers {
		if !strings.HasPrefix(name, reserved) {
			me.handles = append(me.handles, name)
		}
	}
	for pattern := range x.router.subscriptions {
		me.subscribes = append(me.subscribes, pattern)
	}
	return me
}

// make is a new message of ours.
func (x *Exchange) make(kind Kind, name string, b behind, life time.Duration) *Message {
	now := time.Now()
	path, cut := b.fitting()
	id := x.prefix + strconv.FormatUint(x.count.Add(1), 10)
	parent := b.traceparent
	if parent != "" {
		parent = traceparent(parent, id)
	}
	return &Message{
		ID: id, Name: name, Kind: kind, From: x.id, Payload: null,
		ContentType: jsonType, Timestamp: now, Hops: []Hop{{x.id, now}}, Causes: b.causes, Path: path,
		root: b.root, cut: cut, traceparent: parent, deadline: now.Add(life),
	}
}

// prepare writes a message before it is routed, so that this is not done under the mutex. What cannot be written is
// found out when it is given to a peer.
func (m *Message) prepare() {
	m.packed, _ = pack(m, false)
}

// Connect links to another exchange: at grpc://HOST:PORT, grpcs://HOST:PORT or unix:PATH. It returns the peer; the
// existing one, if the two are linked already. A link that breaks is made again, for ever or as long as [WithRetry]
// says. It fails with an [AddressError] or a [LinkError].
func (x *Exchange) Connect(ctx context.Context, url string, options ...LinkOption) (*Peer, error) {
	a, err := parseAddress(url)
	if err != nil {
		return nil, err
	}
	var o linkOptions
	for _, option := range options {
		option(&o)
	}
	dial := dialGRPC(a, o)
	attempt, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	t, err := dial(attempt)
	if err != nil {
		return nil, err
	}
	l, err := x.begin(t, dial, o)
	if err != nil {
		t.abort()
		return nil, err
	}
	select {
	case <-l.opening:
	case <-ctx.Done():
		l.close(farewell{})
		return nil, &LinkError{fmt.Sprintf("%s has not introduced itself in time", url)}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if l.openErr != nil {
		return nil, l.openErr
	}
	if peer := x.faces[l.openedAs]; peer != nil {
		return peer, nil
	}
	return nil, &LinkError{"the link was refused or lost: " + l.endReason()}
}

// begin starts a link that we have dialled.
func (x *Exchange) begin(t transport, dial dialer, o linkOptions) (*link, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closing {
		return nil, &Closed{x.id}
	}
	r := forever
	if o.retry != nil {
		r = *o.retry
	}
	if r == 0 {
		dial = nil
	}
	l := newLink(x, dial, r, true)
	x.links[l] = true
	l.start(l.attach(t))
	return l, nil
}

// Listen lets others link to this exchange, at grpc://HOST:PORT (port 0 takes a free one) or unix:PATH. It returns
// the URL, with the port. With [WithTLS] it listens over TLS. It fails with an [AddressError].
func (x *Exchange) Listen(url string, options ...LinkOption) (string, error) {
	a, err := parseAddress(url)
	if err != nil {
		return "", err
	}
	var o linkOptions
	for _, option := range options {
		option(&o)
	}
	if a.secure && o.tls == nil {
		return "", &AddressError{url + " cannot be listened at without WithTLS"}
	}
	server, err := listenGRPC(a, o, x.accept)
	if err != nil {
		return "", err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closing {
		go server.close()
		return "", &Closed{x.id}
	}
	x.servers = append(x.servers, server)
	return server.url, nil
}

func (x *Exchange) accept(t transport) (over <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := newLink(x, nil, 0, false)
	x.links[l] = true
	c := l.attach(t)
	if x.closing {
		l.session.goodbye(farewell{pause: retryAfter})
	}
	l.start(c)
	return c.over
}

// Close lets running handlers end (within 10 s), says goodbye to all peers, and leaves nothing behind. Requests that still
// wait then fail with [Unavailable], and whatever is emitted or linked later with [Closed].
func (x *Exchange) Close() error {
	x.mu.Lock()
	if x.closing {
		x.mu.Unlock()
		return nil
	}
	x.closing = true
	x.mu.Unlock()
	x.waitForHandlers()
	x.closeLinks()
	x.mu.Lock()
	x.closed = true
	servers := x.servers
	open := x.router.open
	x.router.open = map[string]*openRequest{}
	x.mu.Unlock()
	x.stop()
	for _, server := range servers {
		server.close()
	}
	x.closeLinks() // those that came in meanwhile
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range open {
		request := *o.request
		request.emit = o.emit
		if o.from == here {
			x.router.answerError(&request, here, x.router.unavailable(x.id+" was closed", DeliveredUnknown), nil)
		}
	}
	return nil
}

func (x *Exchange) waitForHandlers() {
	x.mu.Lock()
	if x.working == 0 {
		x.mu.Unlock()
		return
	}
	quiet := make(chan struct{})
	x.quiet = quiet
	x.mu.Unlock()
	select {
	case <-quiet:
	case <-time.After(stopTime):
		x.logger().Warn("handlers go on, and are cancelled")
	}
}

func (x *Exchange) closeLinks() {
	x.mu.Lock()
	links := make([]*link, 0, len(x.links))
	for l := range x.links {
		links = append(links, l)
	}
	x.mu.Unlock()
	var all sync.WaitGroup
	for _, l := range links {
		all.Go(func() { l.close(farewell{pause: retryAfter}) })
	}
	all.Wait()
}

// announce tells all peers what has changed of what we handle or subscribe to.
func (x *Exchange) announce(change *pb.Interest) {
	x.revision++
	for _, l := range x.byPeer {
		l.session.announce(change)
		l.wake()
	}
}
