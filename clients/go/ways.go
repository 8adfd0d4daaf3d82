// Ways: to whom a message of ours goes. The linked peers first, then those behind which the target is known to be;
// several take turns.

package exchange

import (
	"errors"
	"fmt"
	"google.golang.org/grpc/codes"
	"maps"
	"slices"
	"strings"
)

func (r *router) findWay(m *Message) {
	t := targetOf(m)
	if next := r.nextTo(t); len(next) > 0 {
		r.forward(m, r.inTurn(next), false)
	} else if behind := r.behind(t); len(behind) > 0 {
		r.forward(m, r.inTurn(behind), true)
	} else if r.discovery.full() {
		r.fail(m, here, OutcomeDropped, r.full("too many messages wait for an answer about who takes them"))
	} else {
		r.discovery.askFor(t, m)
	}
}

// nextTo is the linked peers that are, or offer, the target.
func (r *router) nextTo(t target) (found []string) {
	if t.exchange != "" {
		if r.peers[t.exchange] != nil {
			found = append(found, t.exchange)
		}
		return found
	}
	for id, peer := range r.peers {
		if peer.handles[t.name] {
			found = append(found, id)
		}
	}
	slices.Sort(found)
	return r.present(found)
}

// behind is the linked peers behind which the target is, those with the fewest hops.
func (r *router) behind(t target) (nearest []string) {
	ways := r.discovery.ways[t]
	if len(ways) == 0 {
		return nil
	}
	present := r.present(slices.Sorted(maps.Keys(ways)))
	least := maxHops + 1
	for _, id := range present {
		least = min(least, ways[id])
	}
	for _, id := range present {
		if ways[id] == least {
			nearest = append(nearest, id)
		}
	}
	return nearest
}

// present is those of them that are not away, if there are any.
func (r *router) present(ids []string) []string {
	there := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return r.peers[id] == nil || r.peers[id].away })
	if len(there) == 0 {
		return ids
	}
	return there
}

func (r *router) inTurn(ids []string) string {
	if len(ids) == 1 {
		return ids[0]
	}
	key := strings.Join(ids, " ")
	if len(r.turns) >= turns {
		clear(r.turns)
	}
	turn := r.turns[key] % len(ids)
	r.turns[key] = turn + 1
	return ids[turn]
}

// forward: a peer takes it.
func (r *router) forward(m *Message, to string, learned bool) {
	peer := r.peers[to]
	if peer == nil {
		r.fail(m, here, OutcomeDropped, r.unavailable(fmt.Sprintf("the link to %s was lost", to), DeliveredNo))
		return
	}
	if err := r.x.transmit(to, m); err != nil {
		if limit := (*LimitExceeded)(nil); errors.As(err, &limit) {
			r.fail(m, here, OutcomeDropped, r.full(err.Error()))
		} else {
			r.fail(m, here, OutcomeDenied, r.problem(codes.InvalidArgument, "INVALID_MESSAGE", err.Error()))
		}
		return
	}
	m.left = true
	r.record(m.ID, OutcomeForwarded, to, "")
	if m.Kind != KindRequest {
		m.dispatched(nil)
		return
	}
	o := r.open[m.ID]
	o.holder = to
	if learned && !o.again {
		o.kept = m
	}
	peer.out[m.ID] = o
}

// astray: the very peer from which we had the way says that it leads nowhere.
func astray(err error, from string) bool {
	var e *RequestError
	return errors.As(err, &e) && (e.Reason == "UNHANDLED" || e.Reason == "LOOP") && e.At == from
}
