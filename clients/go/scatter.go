// A request to many, while those who have it answer.
//
// Each copy is a branch: a linked peer, or this exchange itself. A branch ends by its end, and one that does not relay
// also by its last reply. A branch that says that nobody there handles the name was none. One that could not take
// it, for whatever reason, is lost.

package exchange

import (
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

type scatter struct {
	branches map[string]bool // those that have not ended: who has it -> whether he relays
	lost     []string        // whose replies are not all there
	taken    bool            // somebody handles it
}

// heard: a reply came from this branch. Whether it is one, and not only the branch's end.
func (s *scatter) heard(branch string, reply *Message) bool {
	var e *RequestError
	nobody := errors.As(reply.Err, &e) && e.Code == codes.Unimplemented && (e.Reason == "UNHANDLED" || e.Reason == "LOOP")
	s.taken = s.taken || !nobody
	isEnd := reply.end != nil || nobody
	if reply.end != nil {
		for _, id := range *reply.end {
			s.miss(id)
		}
	}
	if isEnd && reply.Err != nil && !nobody {
		s.lose(branch)
	}
	if isEnd || reply.Last && !s.branches[branch] {
		delete(s.branches, branch)
	}
	return !isEnd
}

// miss: not all replies of somebody will come.
func (s *scatter) miss(id string) {
	if len(s.lost) < lostNames && !slices.Contains(s.lost, id) {
		s.lost = append(s.lost, id)
	}
}

// lose: nothing more will come of this branch. It is named first: a liar must not crowd it out.
func (s *scatter) lose(branch string) {
	delete(s.branches, branch)
	rest := slices.DeleteFunc(s.lost, func(id string) bool { return id == branch })
	s.lost = append([]string{branch}, rest[:min(len(rest), lostNames-1)]...)
}

// scatter gives a request to all who handle it here and next to here, and to all relays.
func (r *router) scatter(m *Message, from, via string) {
	if !r.spread.first(m.ID, time.Now()) {
		r.answerError(m, from, r.problem(codes.Unimplemented, "LOOP", "it was here by another way"), nil)
		return
	}
	if !r.remember(m, from) {
		return
	}
	if from != here {
		r.takeOneOfMany(m, from)
		return
	}
	o := r.open[m.ID]
	o.scatter = &scatter{branches: map[string]bool{}}
	if via == "" && r.offers[m.Name] {
		o.scatter.branches[r.me] = false
		if _, err := r.x.deliver(m, from, o); err != nil {
			r.record(m.ID, OutcomeDropped, "", err.Error())
			o.scatter.lose(r.me)
		}
	}
	for id, peer := range r.peers {
		if via != "" && id != via || via == "" && !peer.relay && !peer.handles[m.Name] {
			continue
		}
		if r.passOn(id, m) {
			o.scatter.branches[id] = peer.relay
			peer.out[m.ID] = o
		} else {
			o.scatter.lose(id)
		}
	}
	if via != "" && r.peers[via] == nil {
		o.scatter.lose(via)
	}
	r.endScatter(o)
}

// takeOneOfMany: it came over a link, and is handled here or by nobody that we know of.
func (r *router) takeOneOfMany(m *Message, from string) {
	if r.offers[m.Name] {
		r.take(m, from)
		return
	}
	r.fail(m, from, OutcomeUnhandled, r.outOfReach("nobody handles "+m.Name))
}

// endScatter: if nobody has it any more, whoever asked is told so.
func (r *router) endScatter(o *openRequest) {
	s := o.scatter
	if s == nil || len(s.branches) > 0 || r.open[o.request.ID] != o {
		return
	}
	r.close(o)
	request := *o.request
	request.emit = o.emit
	if s.taken || len(s.lost) > 0 {
		r.answerError(&request, here, RequestError{}, s.lost)
		return
	}
	err := r.outOfReach("nobody handles " + request.Name)
	if !strings.HasPrefix(request.Name, reserved) {
		r.x.logger().Warn("nobody takes it", "name", request.Name, "id", request.ID, "reason", err.Text)
	}
	r.record(request.ID, OutcomeUnhandled, "", err.Text)
	r.answerError(&request, here, err, nil)
}
