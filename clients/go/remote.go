// The state of another exchange: what it exports can be read and watched, what it accepts can be set.

package exchange

import (
	"context"
	"encoding/json"
	"iter"

	"google.golang.org/grpc/codes"
)

// StateValue is one state name of an exchange.
type StateValue struct {
	Name        string          `json:"name"`
	Value       json.RawMessage `json:"value"`
	Revision    uint64          `json:"revision"` // how often it changed since the exchange started
	Epoch       uint64          `json:"epoch"`    // of the exchange: revisions of two epochs do not compare
	Cause       string          `json:"cause"`    // the id of the message that caused the last change, or empty
	Transaction uint64          `json:"transaction"`
	Snapshot    bool            `json:"snapshot"` // it was not told because it changed
}

// Decode reads the value into a variable, as json.Unmarshal does.
func (s StateValue) Decode(into any) error { return decode(s.Value, into) }

// RemoteState is what an exchange shares of its state.
type RemoteState struct {
	x        *Exchange
	exchange string
}

// State is what another exchange, anywhere in the mesh, shares of its state.
func (x *Exchange) State(exchange string) *RemoteState { return &RemoteState{x, exchange} }

// Get is an exported name as it is. It fails with [Refused] (NOT_EXPORTED).
func (s *RemoteState) Get(ctx context.Context, name string) (StateValue, error) {
	return s.ask(ctx, "exchange.state.get", map[string]any{"name": name})
}

// Set sets an accepted name. It fails with [Refused] (NOT_ACCEPTED).
func (s *RemoteState) Set(ctx context.Context, name string, value any) (StateValue, error) {
	return s.ask(ctx, stateSet, map[string]any{"name": name, "value": value})
}

// SetIf sets an accepted name if its revision is the one expected. It fails with [Refused] (REVISION) if not.
func (s *RemoteState) SetIf(ctx context.Context, name string, value any, revision uint64) (StateValue, error) {
	return s.ask(ctx, stateSet, map[string]any{"name": name, "value": value, "expected_revision": revision})
}

func (s *RemoteState) ask(ctx context.Context, question string, value any) (StateValue, error) {
	reply, err := s.x.Request(ctx, question, value, To(s.exchange))
	if err != nil {
		return StateValue{}, err
	}
	var answer struct {
		State *StateValue `json:"state"`
	}
	if reply.Decode(&answer) != nil || answer.State == nil {
		return StateValue{}, s.strange()
	}
	answer.State.Snapshot = true
	return *answer.State, nil
}

// Watch gives the exported names (all, if none is named) as they are, then every change in order, none left out. It
// goes on until ctx ends or the loop is left, and ends with an error: [Refused] (NOT_EXPORTED; SLOW if the changes are
// taken too slowly), or [Unavailable] when the way to the exchange is lost.
func (s *RemoteState) Watch(ctx context.Context, names ...string) iter.Seq2[StateValue, error] {
	return func(yield func(StateValue, error) bool) {
		if names == nil {
			names = []string{}
		}
		question := map[string]any{"names": names}
		replies, err := s.x.RequestMany(ctx, "exchange.state.watch", question, To(s.exchange), WithoutDeadline())
		if err != nil {
			yield(StateValue{}, err)
			return
		}
		for reply, err := range replies.All() {
			if err != nil {
				yield(StateValue{}, err)
				return
			}
			if !s.tell(reply, yield) {
				return
			}
		}
		yield(StateValue{}, typed(RequestError{
			Code: codes.Unavailable, Reason: "UNAVAILABLE", Text: "the watch on " + s.exchange + " ended", At: s.exchange,
			Delivered: DeliveredUnknown,
		}))
	}
}

func (s *RemoteState) tell(reply *Message, yield func(StateValue, error) bool) bool {
	var answer struct {
		Snapshot bool          `json:"snapshot"`
		States   *[]StateValue `json:"states"`
	}
	if reply.Decode(&answer) != nil || answer.States == nil {
		return yield(StateValue{}, s.strange()) && false
	}
	for _, state := range *answer.States {
		state.Snapshot = answer.Snapshot
		if !yield(state, nil) {
			return false
		}
	}
	return true
}

func (s *RemoteState) strange() error {
	return &RequestError{Code: codes.Unknown, Reason: "ANSWER", Text: "what " + s.exchange + " answers is no state", At: s.exchange}
}
