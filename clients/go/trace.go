// A trace, put together of what several exchanges know of it.
//
// An answer is read as a stranger's: each exchange tells only what happened at itself, and a way counts only if it
// ends there. The result does not depend on who asked, nor on the order of the answers.

package exchange

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Trace is all that is known of the messages with one root, as `exchange.trace` answers it.
type Trace struct {
	Version  int       `json:"version"`
	Exchange string    `json:"exchange"` // who put it together
	Root     string    `json:"root"`
	Spans    []Span    `json:"spans"` // the oldest first
	Cut      bool      `json:"cut"`   // some of it is left out, because ledgers and answers are bounded
	Missing  []Missing `json:"missing"`
}

// Span is what is known of one message.
type Span struct {
	ID      string      `json:"id"`
	Name    string      `json:"name"`
	Kind    string      `json:"kind"` // such as KIND_SEND
	From    string      `json:"from"`
	To      string      `json:"to"`
	Causes  []string    `json:"causes"`
	Hops    []SpanHop   `json:"hops"`
	ReplyTo string      `json:"reply_to"`
	Events  []SpanEvent `json:"events"`
}

// SpanHop is one stop of a message; AtUS is in microseconds since 1970.
type SpanHop struct {
	Exchange string `json:"exchange"`
	AtUS     int64  `json:"at_us"`
}

// SpanEvent is something that happened to a message at one exchange.
type SpanEvent struct {
	Exchange   string `json:"exchange"`
	AtUS       int64  `json:"at_us"`
	Outcome    string `json:"outcome"` // such as OUTCOME_HANDLED
	By         string `json:"by"`
	DurationUS int64  `json:"duration_us"`
	Reason     string `json:"reason"`
}

// Missing is an exchange that may know more, and could not be asked.
type Missing struct {
	Exchange string `json:"exchange"`
	Reason   string `json:"reason"`
}

// readTrace is what an exchange answered to `exchange.trace`, as far as it can be believed; nil if that is no trace.
func readTrace(answer []byte, exchange string) *Trace {
	var t Trace
	if json.Unmarshal(answer, &t) != nil || t.Root == "" {
		return nil
	}
	t.Spans = slices.DeleteFunc(t.Spans, func(span Span) bool { return span.ID == "" })
	for i := range t.Spans {
		span := &t.Spans[i]
		span.Hops = span.Hops[:min(len(span.Hops), maxHops+1)]
		if n := len(span.Hops); n == 0 || span.Hops[n-1].Exchange != exchange {
			span.Hops = []SpanHop{} // it came as far as there
		}
		if span.Causes == nil {
			span.Causes = []string{}
		}
		span.Causes = span.Causes[:min(len(span.Causes), maxCauses)]
		span.Events = span.Events[:min(len(span.Events), ledgerEvents)]
		for j := range span.Events {
			span.Events[j].Exchange = exchange // whatever it says: nobody speaks for another
		}
	}
	return &t
}

// mergeTraces is one trace of all that was answered about a root.
func mergeTraces(root string, answers []*Trace) *Trace {
	spans := map[string]*Span{}
	merged := &Trace{Root: root, Spans: []Span{}}
	for _, answer := range answers {
		if answer.Root != root {
			continue
		}
		merged.Cut = merged.Cut || answer.Cut
		for _, span := range answer.Spans {
			known := spans[span.ID]
			if known == nil {
				span.Events = slices.Clone(span.Events)
				spans[span.ID] = &span
				continue
			}
			events := append(known.Events, span.Events...)
			if claim(span) > claim(*known) {
				*known = span
			}
			known.Events = events
		}
	}
	for _, span := range spans {
		slices.SortFunc(span.Events, compareEvents)
		merged.Spans = append(merged.Spans, *span)
	}
	slices.SortFunc(merged.Spans, compareSpans)
	size := 0
	for i, span := range merged.Spans { // what began first explains the rest
		if size += sizeOf(span); size > messageBytes/2 {
			merged.Spans, merged.Cut = merged.Spans[:i], true
			break
		}
	}
	return merged
}

// claim orders what several say of one message: who has seen it come furthest is believed.
func claim(span Span) string {
	span.Events = nil
	data, err := json.Marshal(span)
	if err != nil {
		panic(err) // of a struct of texts and numbers
	}
	return string(rune('a'+len(span.Hops))) + string(data)
}

func compareEvents(a, b SpanEvent) int {
	return cmp.Or(cmp.Compare(a.AtUS, b.AtUS), strings.Compare(a.Exchange, b.Exchange),
		strings.Compare(a.Outcome, b.Outcome), strings.Compare(a.By, b.By))
}

func compareSpans(a, b Span) int {
	return cmp.Or(cmp.Compare(began(a), began(b)), cmp.Compare(numberOf(a.ID), numberOf(b.ID)), strings.Compare(a.ID, b.ID))
}

func began(span Span) int64 {
	if len(span.Hops) == 0 {
		return 0
	}
	return span.Hops[0].AtUS
}

func numberOf(id string) uint64 {
	number, err := strconv.ParseUint(id[strings.LastIndexByte(id, '.')+1:], 10, 64)
	if err != nil {
		return 0
	}
	return number
}

// passed is the exchanges where these messages were, or to which they were given.
func (t *Trace) passed() (ids []string) {
	note := func(id string) {
		if id != "" && !slices.Contains(ids, id) && len(ids) < 4*traceExchanges {
			ids = append(ids, id)
		}
	}
	for _, span := range t.Spans {
		for _, hop := range span.Hops {
			note(hop.Exchange)
		}
		for _, event := range span.Events {
			if event.Outcome == "OUTCOME_FORWARDED" {
				note(event.By)
			}
		}
	}
	return ids
}
