// Discovery: the way to what is not next to us, by asking the relays and by remembering.
//
// A target is a name that somebody handles, or the id of an exchange. A message for a target without a way is held
// while a question is out. The first yes lets it go; later ones are further ways. It is "no" only if every relay said
// no; that is believed for a moment. A relay that is lost, cannot be asked, or is silent for half a second makes it
// "incomplete", which is never believed. While a relay is away no message is given up, and is asked for again.
//
// A client does not relay: asked itself, it answers for itself alone.

package exchange

import (
	"fmt"
	"time"

	pb "github.com/exchange-grpc/exchange/generated/go/exchange/v1"
)

// target is what is looked for: one of the two.
type target struct{ name, exchange string }

func targetOf(m *Message) target {
	if m.To != "" {
		return target{exchange: m.To}
	}
	return target{name: m.Name}
}

// once is a bounded memory of ids: each is new once, for a while or until many newer ones came.
type once struct {
	until map[string]time.Time
	order deque[string]
}

func (o *once) first(id string, now time.Time) bool {
	if o.until == nil {
		o.until = map[string]time.Time{}
	}
	for o.order.len() > 0 && (o.order.len() >= seenIDs || !o.until[*o.order.at(0)].After(now)) {
		delete(o.until, o.order.popFront())
	}
	if _, known := o.until[id]; known {
		return false
	}
	o.until[id] = now.Add(seenFor)
	o.order.pushBack(id)
	return true
}

// question is one that is under way.
type question struct {
	id         string
	target     target
	asked      map[string]bool // relays whose answer is awaited
	held       []*Message
	incomplete bool
	timer      *time.Timer
}

type discovery struct {
	r         *router
	ways      map[target]map[string]int  // target -> link -> hops from here
	told      map[target]map[string]bool // to whom we said yes
	nobody    map[target]time.Time       // believed until
	questions map[string]*question
	own       map[target]*question
	held      int
	resting   map[*Message]*time.Timer // tried again after a pause
	count     int
}

func newDiscovery(r *router) *discovery {
	return &discovery{
		r: r, ways: map[target]map[string]int{}, told: map[target]map[string]bool{}, nobody: map[target]time.Time{},
		questions: map[string]*question{}, own: map[target]*question{}, resting: map[*Message]*time.Timer{},
	}
}

// makeRoom keeps a memory bounded: which of it is forgotten does not matter, for it can be asked for again.
func makeRoom[K comparable, V any](memory map[K]V) {
	if len(memory) < routes {
		return
	}
	for key := range memory {
		delete(memory, key)
		return
	}
}

// learn: the target is that many hops from here by this link.
func (d *discovery) learn(t target, link string, hops int) {
	if d.ways[t] == nil {
		makeRoom(d.ways)
		d.ways[t] = map[string]int{}
	}
	d.ways[t][link] = hops
	delete(d.nobody, t)
}

// forget: the way to the target by this link has gone.
func (d *discovery) forget(t target, link string) {
	delete(d.ways[t], link)
	if len(d.ways[t]) == 0 {
		delete(d.ways, t)
	}
}

// withdraw takes back a yes: the target is here no longer.
func (d *discovery) withdraw(t target) {
	if d.isHere(t) {
		return
	}
	for link := range d.told[t] {
		d.answer(link, "", t, pb.Found_FOUND_NO)
	}
	delete(d.told, t)
}

func (d *discovery) isHere(t target) bool {
	return t.exchange == d.r.me || t.name != "" && d.r.offers[t.name]
}

// turnedUp: the target is here or next to us. Whoever waits for it need not wait for the answers.
func (d *discovery) turnedUp(t target) {
	delete(d.nobody, t)
	if q := d.own[t]; q != nil {
		d.found(q)
	}
	for m, timer := range d.resting {
		if targetOf(m) == t && timer.Stop() {
			d.tryAgain(m)
		}
	}
}

// changed: there is a new relay, behind which may be anybody.
func (d *discovery) changed() { clear(d.nobody) }

// back: the link was broken. What it was told, and did not tell us, is not known: it is asked again.
func (d *discovery) back(link string) {
	d.forgetAll(link)
	for _, q := range d.questions {
		if q.asked[link] {
			d.ask(link, q)
		}
	}
}

// lost: the link has gone, and with it all that was behind it.
func (d *discovery) lost(link string) {
	d.forgetAll(link)
	for _, q := range d.questions {
		if q.asked[link] {
			delete(q.asked, link)
			q.incomplete = true
			if len(q.asked) == 0 {
				d.conclude(q)
			}
		}
	}
}

func (d *discovery) forgetAll(link string) {
	for t := range d.ways {
		d.forget(t, link)
	}
	for t, told := range d.told {
		delete(told, link)
		if len(told) == 0 {
			delete(d.told, t)
		}
	}
}

func (d *discovery) full() bool { return d.held >= heldMessages || len(d.questions) >= openQuestions }

// askFor holds the message and asks, unless the answer is known to be no.
func (d *discovery) askFor(t target, m *Message) {
	if d.nobody[t].After(time.Now()) {
		d.nobodyTakes(m, false)
		return
	}
	q := d.own[t]
	if q == nil {
		q = d.begin(t)
	}
	if len(q.asked) == 0 {
		d.nobodyTakes(m, q.incomplete)
		return
	}
	d.held++
	q.held = append(q.held, m)
}

// nobodyTakes gives it up, unless that may soon be wrong.
func (d *discovery) nobodyTakes(m *Message, incomplete bool) {
	if !d.r.patient(time.Now()) || d.full() {
		d.r.giveUp(m, incomplete)
		return
	}
	d.held++
	d.resting[m] = time.AfterFunc(repeatPause, func() {
		d.r.x.mu.Lock()
		defer d.r.x.mu.Unlock()
		d.tryAgain(m)
	})
}

func (d *discovery) tryAgain(m *Message) {
	delete(d.resting, m)
	d.held--
	if !d.r.resume(m) {
		d.askFor(targetOf(m), m)
	}
}

func (d *discovery) begin(t target) *question {
	d.count++
	q := &question{id: fmt.Sprintf("%s.%d.q%d", d.r.me, d.r.x.epoch, d.count), target: t, asked: map[string]bool{}}
	for _, link := range d.r.relaying() {
		if d.ask(link, q) {
			q.asked[link] = true
		} else {
			q.incomplete = true
		}
	}
	if len(q.asked) > 0 {
		d.questions[q.id], d.own[t] = q, q
		q.timer = time.AfterFunc(questionTime, func() {
			d.r.x.mu.Lock()
			defer d.r.x.mu.Unlock()
			if d.questions[q.id] == q {
				q.incomplete = true
				d.conclude(q)
			}
		})
	}
	return q
}

func (d *discovery) ask(link string, q *question) bool {
	query := &pb.Query{Id: q.id, Ttl: maxHops, Target: &pb.Query_Name{Name: q.target.name}}
	if q.target.exchange != "" {
		query.Target = &pb.Query_Exchange{Exchange: q.target.exchange}
	}
	return d.r.x.say(link, &pb.Frame{Kind: &pb.Frame_Query{Query: query}})
}

// asked: a peer asks.
func (d *discovery) asked(link string, query *pb.Query) {
	t := target{query.GetName(), query.GetExchange()}
	if !d.isHere(t) {
		d.answer(link, query.GetId(), t, pb.Found_FOUND_NO)
		return
	}
	if d.told[t] == nil {
		makeRoom(d.told)
		d.told[t] = map[string]bool{}
	}
	d.told[t][link] = true
	d.answer(link, query.GetId(), t, pb.Found_FOUND_YES)
}

func (d *discovery) answer(link, id string, t target, found pb.Found) {
	answer := &pb.Answer{Id: id, Found: found, Target: &pb.Answer_Name{Name: t.name}}
	if t.exchange != "" {
		answer.Target = &pb.Answer_Exchange{Exchange: t.exchange}
	}
	d.r.x.say(link, &pb.Frame{Kind: &pb.Frame_Answer{Answer: answer}})
}

// answered: a peer answers, or takes an earlier yes back.
func (d *discovery) answered(link string, answer *pb.Answer) {
	t := target{answer.GetName(), answer.GetExchange()}
	if answer.GetId() == "" {
		d.forget(t, link)
		return
	}
	q := d.questions[answer.GetId()]
	if q == nil || !q.asked[link] || q.target != t {
		return
	}
	delete(q.asked, link)
	switch answer.GetFound() {
	case pb.Found_FOUND_YES:
		d.learn(t, link, int(min(answer.GetCost(), maxHops))+1)
		if d.own[t] == q {
			delete(d.own, t) // who wants to know from now on has a way, or asks anew
		}
		d.found(q)
	case pb.Found_FOUND_NO:
	default:
		q.incomplete = true
	}
	if len(q.asked) == 0 {
		d.conclude(q)
	}
}

// found: there is a way. For those whom it helps the question is over; the others wait for the other answers.
func (d *discovery) found(q *question) {
	held := q.held
	q.held = nil
	for _, m := range held {
		d.held--
		if !d.r.resume(m) {
			d.held++
			q.held = append(q.held, m)
		}
	}
}

// conclude: all answers are there, or the time is over.
func (d *discovery) conclude(q *question) {
	delete(d.questions, q.id)
	q.timer.Stop()
	if d.own[q.target] == q {
		delete(d.own, q.target)
		if !q.incomplete && !d.r.patient(time.Now()) {
			makeRoom(d.nobody)
			d.nobody[q.target] = time.Now().Add(nobodyTime)
		}
	}
	d.found(q) // somebody may have turned up whom no answer told of
	held := q.held
	q.held = nil
	for _, m := range held {
		d.held--
		d.nobodyTakes(m, q.incomplete)
	}
}
