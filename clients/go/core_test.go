package exchange

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "user.login", "ü.ñ", strings.Repeat("a", 255)} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "a.", ".a", "a..b", "a b", "a\tb", "a.*", "\u2003", "a\x7f", strings.Repeat("a", 256)} {
		if checkName(name) == nil {
			t.Errorf("%q is a name", name)
		}
	}
	if _, ok := originOf("a.7.1"); !ok {
		t.Error("a.7.1 is an id")
	}
	for _, id := range []string{"a.7", "a.7.1.2", "a b.7.1", ".7.1", "a..1", "a.7.123456789012345678901"} {
		if origin, ok := originOf(id); ok {
			t.Errorf("%q is an id of %s", id, origin)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		fits          bool
	}{
		{"*", "a.b", true}, {"a.*", "a.b", true}, {"a.*", "a.b.c", false}, {"a.**", "a", true}, {"a.**", "a.b.c", true},
		{"**.c", "a.b.c", true}, {"**.c", "c", true}, {"a.**.c.*", "a.c.b.c.d", true}, {"a.b", "a.b", true}, {"a.b", "a.c", false},
	} {
		if Fits(c.pattern, c.name) != c.fits {
			t.Errorf("%s and %s: not %v", c.pattern, c.name, c.fits)
		}
	}
}

func TestWhatJSONCannotSayIsRefused(t *testing.T) {
	deep := func(n int) json.RawMessage {
		return json.RawMessage(strings.Repeat("[", n) + strings.Repeat("]", n))
	}
	for _, value := range []any{
		math.NaN(), math.Inf(1), json.RawMessage("18446744073709551616"), json.RawMessage("{"), json.RawMessage(`"\ud800"`),
		json.RawMessage("1e999"), json.RawMessage("\"\xff\""), func() {}, deep(31),
	} {
		if _, _, err := encode(value); !errors.As(err, new(*InvalidMessage)) {
			t.Errorf("%v: %v", value, err)
		}
	}
	for _, value := range []any{
		nil, 1.5, uint64(math.MaxUint64), int64(math.MinInt64), "<&>\"\\", `😀`, json.RawMessage(`"\ud83d\ude00"`), deep(30), []byte("x"),
	} {
		if _, _, err := encode(value); err != nil {
			t.Errorf("%v: %v", value, err)
		}
	}
	if _, _, err := encode(deep(31)); !errors.As(err, new(*LimitExceeded)) {
		t.Error(err)
	}
}

func TestValuesAreExactOrRefused(t *testing.T) {
	for _, text := range []string{`null`, `true`, `"x"`, `1.5`, `9007199254740992`, `[1,{"a":[]}]`} {
		value, err := jsonToValue([]byte(text))
		if err != nil {
			t.Fatal(text, err)
		}
		if back, err := valueToJSON(value); err != nil || string(back) != text {
			t.Errorf("%s came back as %s, %v", text, back, err)
		}
	}
	for _, text := range []string{`9007199254740993`, `-9007199254740993`, `18446744073709551615`} {
		if _, err := jsonToValue([]byte(text)); err == nil {
			t.Errorf("%s was rounded", text)
		}
	}
	for _, number := range []float64{math.NaN(), math.Inf(-1), 1e16} {
		if _, err := valueToJSON(structpb.NewNumberValue(number)); err == nil {
			t.Errorf("%v was taken", number)
		}
	}
}

func TestErrorsAreATree(t *testing.T) {
	for code, want := range map[codes.Code]any{
		codes.Unimplemented: new(*Unhandled), codes.DeadlineExceeded: new(*DeadlineExceeded), codes.Unavailable: new(*Unavailable),
		codes.Canceled: new(*Cancelled), codes.Internal: new(*HandlerFailed), codes.Aborted: new(*Refused),
	} {
		sent := typed(RequestError{Code: code, Reason: "WHY", Text: "text", At: "hub"})
		err := typed(readStatus(packStatus(sent)))
		var request *RequestError
		if !errors.As(err, want) || !errors.As(err, &request) || request.At != "hub" || request.Reason != "WHY" {
			t.Errorf("%v: %#v", code, err)
		}
		if status.Code(err) != code {
			t.Errorf("gRPC sees %v", status.Code(err))
		}
		if _, ours := err.(Error); !ours {
			t.Errorf("%v is no Error", err)
		}
	}
	if !errors.Is(typed(RequestError{Code: codes.DeadlineExceeded}), context.DeadlineExceeded) {
		t.Error("it is no context.DeadlineExceeded")
	}
	if readStatus(packStatus(typed(RequestError{Code: codes.Unavailable, Delivered: DeliveredNo}))).Delivered != DeliveredNo {
		t.Error("delivered was lost")
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		if reason := reasonOf(code); reason != strings.ToUpper(reason) || reason == "" {
			t.Error(reason)
		}
	}
}

func TestWhatGRPCSaysIsToldInPlainWords(t *testing.T) {
	dialling := func(cause string) string {
		return fmt.Sprintf("connection error: desc = %q", "transport: Error while dialing: "+cause)
	}
	for text, want := range map[string]string{
		dialling("dial tcp 127.0.0.1:1: connect: connection refused"):                                                             "connection refused",
		dialling("dial tcp [::1]:1: connect: connection refused"):                                                                 "connection refused",
		dialling("dial tcp 10.0.0.1:1: i/o timeout"):                                                                              "i/o timeout",
		dialling("dial unix /nowhere: connect: no such file or directory"):                                                        "no such file or directory",
		dialling("dial tcp: address 99999: invalid port"):                                                                         "invalid port",
		dialling("dial tcp: lookup a.invalid on [fe80::1]:53: no such host"):                                                      "there is no host a.invalid",
		dialling("dial tcp: lookup a.invalid: no such host"):                                                                      "there is no host a.invalid",
		dialling("dial tcp: lookup a.invalid on 10.0.0.1:53: server misbehaving"):                                                 "the host a.invalid cannot be looked up: server misbehaving",
		dialling("no way: it is closed"):                                                                                          "no way: it is closed",
		`connection error: desc = "error reading server preface: EOF"`:                                                            "the other side closed it",
		`connection error: desc = "error reading server preface: http2: frame too large"`:                                         "it speaks no gRPC",
		`connection error: desc = "error reading server preface: read tcp 1.2.3.4:5->1.2.3.4:6: read: connection reset by peer"`:  "connection reset by peer",
		`connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: expired"`: "tls: failed to verify certificate: x509: expired",
		`connection error: desc = "keepalive ping failed to receive ACK within timeout"`:                                          "keepalive ping failed to receive ACK within timeout",
		`closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway`:              "the other side closed it",
		"error reading from server: EOF":                                                                                          "the other side closed it",
		"unexpected HTTP status code received from server: 503 (Service Unavailable); malformed header":                           "it speaks no gRPC (HTTP 503)",
		"all is well: almost": "all is well: almost",
		"":                    "",
	} {
		if told := causeIn(text); told != want {
			t.Errorf("%s: %q", text, told)
		}
	}
}

func TestCausesAreBoundedAndSayWhenTheyAreCut(t *testing.T) {
	m := &Message{ID: "a.7.1", Hops: []Hop{{Exchange: "a"}, {Exchange: "b"}}}
	b := behindOf(m)
	if b.root != "a.7.1" || !slices.Equal(b.path, []string{"a", "b"}) {
		t.Fatalf("%+v", b)
	}
	for range 20 {
		b = b.then(m)
	}
	if len(b.causes) != maxCauses || !b.cut {
		t.Fatalf("%d causes, cut %v", len(b.causes), b.cut)
	}
	long := behind{path: slices.Repeat([]string{strings.Repeat("x", 64), strings.Repeat("y", 64)}, 32)}
	if path, cut := long.fitting(); !cut || len(path) >= 64 || path[len(path)-1][0] != 'y' {
		t.Fatalf("%d in the path, cut %v", len(path), cut)
	}
}

func TestTraceparentFollowsFromTheIDs(t *testing.T) {
	m := &Message{ID: "shop.7.2", root: "till.7.1"}
	if got, want := m.Traceparent(), traceparentOfPython; got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

func TestTheLedgerIsBounded(t *testing.T) {
	l := newLedger("a")
	for i := range ledgerMessages + 10 {
		l.note(&Message{ID: fmt.Sprintf("a.7.%d", i), Name: "x", Kind: KindSend})
	}
	if len(l.entries) != ledgerMessages || l.order.len() != ledgerMessages || len(l.families) != ledgerMessages {
		t.Fatal(len(l.entries), l.order.len(), len(l.families))
	}
}

func TestAMergedTraceDoesNotDependOnTheOrder(t *testing.T) {
	of := func(span Span) *Trace { return &Trace{Root: "a.7.1", Spans: []Span{span}} }
	one := Span{ID: "a.7.1", Hops: []SpanHop{{"a", 1}}, Events: []SpanEvent{{Exchange: "a", AtUS: 2, Outcome: "OUTCOME_FORWARDED", By: "b"}}}
	two := Span{ID: "a.7.1", Hops: []SpanHop{{"a", 1}, {"b", 3}}, Events: []SpanEvent{{Exchange: "b", AtUS: 4, Outcome: "OUTCOME_HANDLED"}}}
	x, y := mergeTraces("a.7.1", []*Trace{of(one), of(two)}), mergeTraces("a.7.1", []*Trace{of(two), of(one)})
	first, _ := json.Marshal(x)
	second, _ := json.Marshal(y)
	if string(first) != string(second) || len(x.Spans) != 1 || len(x.Spans[0].Events) != 2 || len(x.Spans[0].Hops) != 2 {
		t.Errorf("%s\n%s", first, second)
	}
	if got := x.passed(); !slices.Equal(got, []string{"a", "b"}) {
		t.Error(got)
	}
}

// traceparentOfPython is what the Python package gives for the same ids.
const traceparentOfPython = "00-7d6a41e9ac751ad6bd35f8c72bfad9a7-8f9b3f971fc67647-01"
