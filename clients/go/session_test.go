package exchange

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
	"google.golang.org/grpc/codes"
)

// wired is two sessions and the time, with no network in between: what one says the other hears at once.
type wired struct {
	t      *testing.T
	now    time.Time
	a, b   *session // a has dialled
	heardA []event
	heardB []event
	count  int
}

func limitsOf(t *testing.T, l Limits) Limits {
	t.Helper()
	complete, err := l.complete()
	if err != nil {
		t.Fatal(err)
	}
	return complete
}

func (w *wired) intro(id string) introduction {
	return introduction{exchange: id, epoch: 7, protocol: 1, features: ourFeatures, agent: "test/1"}
}

func newWired(t *testing.T, limits Limits) *wired {
	w := &wired{t: t, now: time.Unix(1_700_000_000, 0)}
	drawn := byte(0)
	draw := func(n int) []byte { drawn++; return bytes.Repeat([]byte{drawn}, n) }
	limits = limitsOf(t, limits)
	w.a = newSession(w.intro("a"), true, limits, draw, w.now)
	w.b = newSession(w.intro("b"), false, limits, draw, w.now)
	w.run()
	if w.a.phase != open || w.b.phase != open {
		t.Fatalf("not open: %v %v", w.a.phase, w.b.phase)
	}
	return w
}

// hear gives one side what the other has to say; the side that was dialled answers the Hello.
func (w *wired) hear(from, to *session, heard *[]event) bool {
	frame, _ := from.next(w.now)
	if frame == nil {
		return false
	}
	for _, e := range to.receive(decodeFrame(frame, w.now), w.now) {
		if _, first := e.(opened); first && !to.dialled {
			to.welcome(w.intro("b"), false)
		}
		*heard = append(*heard, e)
	}
	return true
}

func (w *wired) run() {
	for w.hear(w.a, w.b, &w.heardB) || w.hear(w.b, w.a, &w.heardA) {
	}
}

// send emits so many messages from a.
func (w *wired) send(count int) {
	w.t.Helper()
	for range count {
		w.count++
		m := &Message{
			ID: fmt.Sprintf("a.7.%d", w.count), Name: "x.y", Kind: KindSend, From: "a", Payload: null, ContentType: jsonType,
			Timestamp: w.now, Hops: []Hop{{"a", w.now}}, deadline: w.now.Add(time.Hour),
		}
		if err := w.a.send(m); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *wired) taken() (ids []string) {
	for _, e := range w.heardB {
		if batch, ok := e.(arrived); ok {
			for _, m := range batch.messages {
				ids = append(ids, m.ID)
			}
		}
	}
	return ids
}

// cut breaks the connection; what was on its way is lost.
func (w *wired) cut() {
	w.a.disconnected(w.now)
	w.b.disconnected(w.now)
}

// again: a has dialled once more, and b has seen who it is.
func (w *wired) again() {
	w.t.Helper()
	w.a.dial(w.intro("a"), w.now)
	hello, _ := w.a.next(w.now)
	peer := readHello(decodeFrame(hello, w.now).frame.GetHello())
	events, ok := w.b.rejoin(peer, w.intro("b"), w.now)
	if !ok {
		w.t.Fatal("it was refused")
	}
	w.heardB = append(w.heardB, events...)
	w.run()
}

func last[E event](t *testing.T, events []event) E {
	t.Helper()
	for _, e := range slices.Backward(events) {
		if found, ok := e.(E); ok {
			return found
		}
	}
	t.Fatalf("there is no such event in %v", events)
	panic("unreachable")
}

func TestWhatIsQueuedLeavesInOneFrame(t *testing.T) {
	w := newWired(t, Limits{})
	w.send(100)
	if !w.hear(w.a, w.b, &w.heardB) || len(w.taken()) != 100 {
		t.Fatalf("%d came in one frame", len(w.taken()))
	}
}

func TestABrokenLinkLosesNothingAndDoublesNothing(t *testing.T) {
	w := newWired(t, Limits{})
	for range 20 {
		w.send(3)
		w.hear(w.a, w.b, &w.heardB) // it is taken, and the acknowledgement is lost
		w.send(2)
		w.a.next(w.now) // these leave, and are lost
		w.cut()
		w.send(2) // meanwhile
		w.again()
		if r := last[resumed](t, w.heardA); !r.recovered {
			t.Fatal("not recovered")
		}
	}
	ids := w.taken()
	if len(ids) != w.count {
		t.Fatalf("%d of %d came", len(ids), w.count)
	}
	for i, id := range ids {
		if id != fmt.Sprintf("a.7.%d", i+1) {
			t.Fatalf("%s is number %d", id, i+1)
		}
	}
}

func TestWhatAForgetfulPeerHadIsUncertain(t *testing.T) {
	w := newWired(t, Limits{})
	w.send(2)
	w.run()
	w.cut()
	w.send(1)
	w.b = newSession(w.intro("b"), false, w.a.limits, w.b.draw, w.now) // b was restarted
	w.a.dial(w.intro("a"), w.now)
	w.run()
	r := last[resumed](t, w.heardA)
	if r.recovered || !slices.Equal(r.uncertain, []string{"a.7.1", "a.7.2"}) || len(r.unsent) != 1 {
		t.Fatalf("%+v", r)
	}
}

func TestASessionOfAnotherTokenBeginsAnew(t *testing.T) {
	w := newWired(t, Limits{})
	w.cut()
	w.a.token = []byte("wrong")
	w.again()
	if last[resumed](t, w.heardA).recovered || last[resumed](t, w.heardB).recovered {
		t.Fatal("recovered")
	}
}

func TestCreditHoldsBack(t *testing.T) {
	w := newWired(t, Limits{CreditMessages: 8})
	for range 20 {
		w.send(1)
	}
	w.run()
	if len(w.taken()) != 20 { // nothing waits at b, so credit goes on
		t.Fatalf("%d came", len(w.taken()))
	}
	w.b.into.retain(1)
	for range 7 {
		w.b.into.retain(1)
	}
	before := len(w.taken())
	w.send(20)
	w.run()
	if more := len(w.taken()) - before; more > 8 {
		t.Fatalf("%d came beyond the credit", more)
	}
	for range 8 {
		w.b.into.release(1)
	}
	w.run()
	if len(w.taken()) != 40 {
		t.Fatalf("%d came", len(w.taken()))
	}
}

func TestWhoSendsMoreThanHeMayIsToldGoodbye(t *testing.T) {
	w := newWired(t, Limits{CreditMessages: 2})
	w.a.out.credit = nil
	w.send(10)
	w.run()
	if e := last[ended](t, w.heardB); e.code != codes.ResourceExhausted {
		t.Fatalf("%+v", e)
	}
	if e := last[ended](t, w.heardA); e.code != codes.ResourceExhausted || e.by != "b" {
		t.Fatalf("%+v", e)
	}
}

func TestAcknowledgedSoonAndSettledLater(t *testing.T) {
	w := newWired(t, Limits{})
	w.send(3)
	w.run()
	if w.a.out.unacknowledged() != 3 {
		t.Fatal("acknowledged at once")
	}
	w.now = w.now.Add(ackTime)
	w.run()
	if w.a.out.unacknowledged() != 0 || w.a.out.unsettled.len() != 3 {
		t.Fatalf("%d unacknowledged, %d unsettled", w.a.out.unacknowledged(), w.a.out.unsettled.len())
	}
	for _, e := range w.heardB {
		if batch, ok := e.(arrived); ok {
			batch.messages[0].settle()
		}
	}
	w.now = w.now.Add(ackTime)
	w.run()
	if w.a.out.unsettled.len() != 2 {
		t.Fatalf("%d unsettled", w.a.out.unsettled.len())
	}
}

func TestSilenceIsAskedAboutAndThenTakenForTheEnd(t *testing.T) {
	w := newWired(t, Limits{})
	w.now = w.now.Add(5 * time.Second)
	w.a.tick(w.now)
	frame, _ := w.a.next(w.now)
	if decodeFrame(frame, w.now).frame.GetPing() == nil {
		t.Fatal("no Ping")
	}
	w.now = w.now.Add(5 * time.Second)
	w.a.tick(w.now)
	w.now = w.now.Add(5 * time.Second)
	last[broken](t, w.a.tick(w.now))
	if w.a.phase != away {
		t.Fatal("not away")
	}
}

func TestAGapBreaksTheStreamOnceAndThenTheSession(t *testing.T) {
	w := newWired(t, Limits{})
	frame := encodeBatch(5, []entry{{message: &Message{deadline: w.now.Add(time.Hour)}, data: []byte{}}}, w.now)
	last[broken](t, w.b.receive(decodeFrame(frame, w.now), w.now))
	w.a.disconnected(w.now)
	w.again()
	if e := last[ended](t, w.b.receive(decodeFrame(frame, w.now), w.now)); e.code != codes.DataLoss {
		t.Fatalf("%+v", e)
	}
}

func TestAGoodbyeIsAnsweredAndSaysWhatWasTaken(t *testing.T) {
	w := newWired(t, Limits{})
	w.send(2)
	w.run()
	w.b.goodbye(farewell{pause: retryAfter})
	w.send(1) // too late
	w.hear(w.b, w.a, &w.heardA)
	if e := last[ended](t, w.heardA); e.code != codes.OK || e.pause != retryAfter {
		t.Fatalf("%+v", e)
	}
	if uncertain, unsent := w.a.lost(); len(uncertain) != 0 || len(unsent) != 1 {
		t.Fatalf("%v %v", uncertain, unsent)
	}
	w.run()
	if w.b.phase != closed {
		t.Fatal("it still waits")
	}
}

func TestBrokenRulesEndTheSession(t *testing.T) {
	for name, frame := range map[string]*pb.Frame{
		"a second Hello":  {Kind: &pb.Frame_Hello{Hello: &pb.Hello{Exchange: "a"}}},
		"too much an Ack": {Kind: &pb.Frame_Ack{Ack: &pb.Ack{Seq: 9}}},
		"a bad revision":  {Kind: &pb.Frame_Interest{Interest: &pb.Interest{Revision: 9}}},
		"a bad name":      {Kind: &pb.Frame_Interest{Interest: &pb.Interest{Revision: 1, Added: &pb.InterestSet{Handles: []string{"a b"}}}}},
	} {
		w := newWired(t, Limits{})
		if e := last[ended](t, w.b.receive(decodeFrame(encodeFrame(frame), w.now), w.now)); !e.stayAway {
			t.Errorf("%s: %+v", name, e)
		}
	}
	w := newWired(t, Limits{})
	last[ended](t, w.b.receive(decodeFrame([]byte{0xff}, w.now), w.now))
}

func TestBackoffIsAtOnceAndThenGrows(t *testing.T) {
	b := backoff{limits: limitsOf(t, Limits{}), draw: func() float64 { return 1 }}
	now := time.Unix(0, 0)
	var waits []time.Duration
	for range 6 {
		waits = append(waits, b.next()/time.Millisecond)
	}
	if !slices.Equal(waits, []time.Duration{0, 100, 200, 400, 800, 1000}) {
		t.Fatal(waits)
	}
	b.made(now)
	b.broke(now.Add(time.Millisecond)) // that was none
	if b.next() == 0 {
		t.Fatal("it began anew")
	}
	b.made(now)
	b.broke(now.Add(time.Second))
	if b.next() != 0 {
		t.Fatal("it did not begin anew")
	}
}
