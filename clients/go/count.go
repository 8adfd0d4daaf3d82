// How many messages a frame has, before it is parsed: an empty message has two bytes, and takes a hundred times as much
// when it is there.

package exchange

import "google.golang.org/protobuf/encoding/protowire"

const leastMessage = 2 // bytes of an empty message, with what stands before it

// checkCount says why a frame should not be parsed.
func checkCount(frame []byte) error {
	if len(frame) <= leastMessage*frameMessages {
		return nil
	}
	count := 0
	message := func([]byte) bool {
		count++
		return count <= frameMessages
	}
	batch := func(batch []byte) bool { // of which several would be read as one
		return eachField(batch, fieldMessages, message)
	}
	if eachField(frame, fieldBatch, batch) {
		return nil
	}
	if count > frameMessages {
		return tooMuch("the frame has more than %d messages", frameMessages)
	}
	return errUnparsed
}

// eachField looks at all fields with this number: false if one says so, or if they cannot be parsed.
func eachField(data []byte, wanted protowire.Number, look func([]byte) bool) bool {
	for len(data) > 0 {
		number, kind, tag := protowire.ConsumeTag(data)
		if tag < 0 {
			return false
		}
		size := protowire.ConsumeFieldValue(number, kind, data[tag:])
		if size < 0 {
			return false
		}
		if number == wanted && kind == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(data[tag:])
			if !look(content) {
				return false
			}
		}
		data = data[tag+size:]
	}
	return true
}
