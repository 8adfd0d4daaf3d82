package exchange

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestAFrameHasOnlySoManyMessages(t *testing.T) {
	frame := func(message string, count int) []byte {
		return protowire.AppendBytes([]byte("\x1a"), bytes.Repeat([]byte(message), count))
	}
	for _, message := range []string{"\x12\x00", "\x92\x00\x00"} { // a long tag is as good as a short one
		if in := decodeFrame(frame(message, frameMessages), time.Now()); in.err != nil || len(in.messages) != frameMessages {
			t.Errorf("%x: %d messages, %v", message, len(in.messages), in.err)
		}
		in := decodeFrame(frame(message, frameMessages+1), time.Now())
		if tooMany := new(LimitExceeded); !errors.As(in.err, &tooMany) || in.frame.GetKind() != nil {
			t.Errorf("%x: taken, or parsed: %v", message, in.err)
		}
	}
	half := frame("\x12\x00", frameMessages/2+1)
	if checkCount(append(half, half...)) == nil {
		t.Error("two batches are one")
	}
}

func TestOnlyMessagesOfAFrameAreCounted(t *testing.T) {
	keys := bytes.Repeat([]byte("\x12\x00"), 2*frameMessages)
	message := protowire.AppendBytes([]byte("\x12"), protowire.AppendBytes([]byte("\x32"), keys))
	batch := append(bytes.Repeat([]byte("\x08\x01"), frameMessages), message...)
	for what, frame := range map[string][]byte{
		"a payload":  protowire.AppendBytes([]byte("\x1a"), batch),
		"of a Hello": protowire.AppendBytes([]byte("\x0a"), keys),
	} {
		if err := checkCount(frame); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	cut := protowire.AppendBytes([]byte("\x1a"), keys)[:2*frameMessages+2]
	if checkCount(cut) != errUnparsed {
		t.Error("what is no frame is not parsed")
	}
}
