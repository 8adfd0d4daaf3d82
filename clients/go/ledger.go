// The ledger: what happened here to which message, and because of what.
//
// Law: bounded, and without payloads. It keeps the newest messages that were emitted or received here, and what became
// of each; the oldest go first. A trace is answered from it: everything with the same root.

package exchange

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

type eventEntry struct {
	at       time.Time
	outcome  Outcome
	by       string // the handler, or the peer it was given to
	duration time.Duration
	reason   string
}

type ledgerEntry struct {
	id, name, from, to, replyTo, root string
	kind                              Kind
	causes                            []string
	hops                              []Hop
	events                            []eventEntry
}

func (e *ledgerEntry) was(outcome Outcome, by string) bool {
	return slices.ContainsFunc(e.events, func(ev eventEntry) bool { return ev.outcome == outcome && ev.by == by })
}

type ledger struct {
	exchange string
	entries  map[string]*ledgerEntry
	order    deque[string]       // of arrival
	families map[string][]string // root -> ids in order of arrival
	cut      map[string]bool     // roots of which something was forgotten, and something is left
}

func newLedger(exchange string) *ledger {
	return &ledger{
		exchange: exchange, entries: map[string]*ledgerEntry{}, families: map[string][]string{}, cut: map[string]bool{},
	}
}

// note remembers that a message was here. Traffic of the system is not remembered, but for what changes something.
func (l *ledger) note(m *Message) {
	if l.entries[m.ID] != nil || !isTraced(m.Name) {
		return
	}
	root := m.Root()
	l.entries[m.ID] = &ledgerEntry{
		id: m.ID, name: m.Name, from: m.From, to: m.To, replyTo: m.ReplyTo, root: root, kind: m.Kind, causes: m.Causes,
		hops: m.Hops,
	}
	l.order.pushBack(m.ID)
	l.families[root] = append(l.families[root], m.ID)
	if l.order.len() > ledgerMessages {
		l.forgetOldest()
	}
}

func (l *ledger) forgetOldest() {
	id := l.order.popFront()
	root := l.entries[id].root
	delete(l.entries, id)
	family := l.families[root]
	if len(family) <= 1 {
		delete(l.families, root)
		delete(l.cut, root)
		return
	}
	l.families[root] = family[1:] // the oldest of all is the oldest of its family
	l.cut[root] = true
}

func (l *ledger) find(id string) *ledgerEntry { return l.entries[id] }

// record remembers what became of a message.
func (l *ledger) record(id string, e eventEntry) {
	entry := l.entries[id]
	if entry == nil {
		return
	}
	if len(entry.events) >= ledgerEvents {
		l.cut[entry.root] = true
		return
	}
	e.reason = strings.ToValidUTF8(cutTo(e.reason, ledgerReason), "?")
	entry.events = append(entry.events, e)
}

// trace is everything known here with the same root as the message; nil if nothing is. If it is too much for one
// answer, what led to the message comes first.
func (l *ledger) trace(id, root string) *Trace {
	if entry := l.entries[id]; entry != nil {
		root = entry.root
	}
	root = or(root, id)
	family := l.families[root]
	if len(family) == 0 {
		return nil
	}
	said := map[string]Span{}
	size := 0
	for _, member := range append(l.lineage(id), family...) {
		if _, known := said[member]; known {
			continue
		}
		span := l.span(l.entries[member])
		size += sizeOf(span)
		if size > traceAnswerBytes {
			break
		}
		said[member] = span
	}
	t := &Trace{Root: root, Cut: l.cut[root] || len(said) < len(family), Spans: []Span{}}
	for _, member := range family {
		if span, known := said[member]; known {
			t.Spans = append(t.Spans, span)
		}
	}
	return t
}

func sizeOf(value any) int {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // of a struct that was made here
	}
	return len(data) + 1
}

// lineage is the message and its newest causes, as far back as they are known.
func (l *ledger) lineage(id string) (line []string) {
	for entry := l.entries[id]; entry != nil && !slices.Contains(line, entry.id); {
		line = append(line, entry.id)
		causes := entry.causes
		entry = nil
		for i := len(causes) - 1; i >= 0 && entry == nil; i-- {
			entry = l.entries[causes[i]]
		}
	}
	return line
}

func (l *ledger) span(e *ledgerEntry) Span {
	span := Span{
		ID: e.id, Name: e.name, Kind: "KIND_" + e.kind.String(), From: e.from, To: e.to, Causes: slices.Clone(e.causes),
		ReplyTo: e.replyTo, Hops: make([]SpanHop, len(e.hops)), Events: make([]SpanEvent, len(e.events)),
	}
	if span.Causes == nil {
		span.Causes = []string{}
	}
	for i, hop := range e.hops {
		span.Hops[i] = SpanHop{hop.Exchange, hop.At.UnixMicro()}
	}
	for i, ev := range e.events {
		span.Events[i] = SpanEvent{
			l.exchange, ev.at.UnixMicro(), "OUTCOME_" + ev.outcome.String(), ev.by, ev.duration.Microseconds(), ev.reason,
		}
	}
	return span
}
