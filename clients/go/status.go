// An error on the wire: a google.rpc.Status with a google.rpc.ErrorInfo.

package exchange

import (
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
)

const errorDomain = "exchange"

// reasonOf is the word of a code, as ErrorInfo has it where there is no better one.
func reasonOf(code codes.Code) string {
	if code == codes.Canceled {
		return "CANCELLED"
	}
	var word strings.Builder
	for i, r := range code.String() {
		if i > 0 && 'A' <= r && r <= 'Z' {
			word.WriteByte('_')
		}
		word.WriteRune(r)
	}
	return strings.ToUpper(word.String())
}

// readStatus is what a Status says. A foreign detail that lies about its type is left out.
func readStatus(packed *status.Status) RequestError {
	code := codes.Code(packed.GetCode())
	if code > codes.Unauthenticated {
		code = codes.Unknown
	}
	e := RequestError{Code: code, Reason: reasonOf(code), Text: packed.GetMessage()}
	for _, detail := range packed.GetDetails() {
		var info errdetails.ErrorInfo
		if detail.UnmarshalTo(&info) != nil {
			continue
		}
		e.Reason, e.At = or(info.GetReason(), e.Reason), info.GetMetadata()["at"]
		if info.GetMetadata()["delivered"] == string(DeliveredNo) {
			e.Delivered = DeliveredNo
		}
		break
	}
	if code == codes.Unavailable && e.Delivered == "" {
		e.Delivered = DeliveredUnknown
	}
	return e
}

// packStatus is the Status of an error. Texts are cut and made UTF-8: an error must always reach its caller.
func packStatus(err error) *status.Status {
	e := requestErrorOf(err)
	info := &errdetails.ErrorInfo{Reason: sayable(e.Reason), Domain: errorDomain, Metadata: map[string]string{}}
	if e.At != "" {
		info.Metadata["at"] = e.At
	}
	if e.Code == codes.Unavailable {
		info.Metadata["delivered"] = string(or(e.Delivered, DeliveredUnknown))
	}
	detail, packErr := anypb.New(info)
	if packErr != nil {
		panic(packErr) // of a message that was made here
	}
	return &status.Status{Code: int32(e.Code), Message: sayable(e.Text), Details: []*anypb.Any{detail}}
}

func sayable(text string) string {
	if len(text) > errorText {
		text = text[:errorText]
	}
	return strings.ToValidUTF8(text, "?")
}

// requestErrorOf is what is told of an error: what it says itself, if it is one of ours.
func requestErrorOf(err error) RequestError {
	var request *RequestError
	if errors.As(err, &request) {
		return *request
	}
	return refusal(err)
}

// refusal is what whoever sent a message hears when it broke a rule.
func refusal(err error) RequestError {
	e := RequestError{Code: codes.InvalidArgument, Reason: "INVALID_MESSAGE", Text: err.Error(), Delivered: DeliveredNo}
	if limit := (*LimitExceeded)(nil); errors.As(err, &limit) {
		e.Code, e.Reason = codes.OutOfRange, "LIMIT_EXCEEDED"
	}
	return e
}
