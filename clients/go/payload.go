// What a message carries: Go values <-> JSON, exact or refused.
//
// What would come out different at the other end is refused: NaN and infinity, integers beyond 64 bits, text that
// is no UTF-8. google.protobuf.Value is for people with a generic tool: it becomes JSON when it is read, and JSON
// becomes Value only for a peer who wants it so.

package exchange

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"
)

const (
	jsonType   = "application/json"
	binaryType = "application/octet-stream"
)

var null = []byte("null")

// Data is a value that is no JSON: bytes with a media type, "application/octet-stream" if it is empty.
type Data struct {
	ContentType string
	Content     []byte
}

// encode gives payload and content type of a Go value. [Data] and []byte go as they are, all else as JSON.
func encode(value any) (payload []byte, contentType string, err error) {
	switch v := value.(type) {
	case nil:
		return null, jsonType, nil
	case Data:
		if len(v.ContentType) > contentTypeBytes {
			return nil, "", tooMuch("the content type is longer than %d bytes", contentTypeBytes)
		}
		return v.Content, or(v.ContentType, binaryType), nil
	case []byte:
		return v, binaryType, nil
	case json.RawMessage:
		payload = bytes.Clone(v)
	default:
		var out bytes.Buffer
		encoder := json.NewEncoder(&out)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(value); err != nil {
			return nil, "", invalid("the value cannot be said in JSON: %v", err)
		}
		payload = bytes.TrimSuffix(out.Bytes(), []byte("\n"))
	}
	return payload, jsonType, checkJSON(payload)
}

// decode reads JSON that was checked.
func decode(payload []byte, into any) error {
	if err := json.Unmarshal(payload, into); err != nil {
		return invalid("the payload does not fit: %v", err)
	}
	return nil
}

// checkJSON refuses what is no JSON, or says what others cannot read exactly.
func checkJSON(data []byte) error {
	if !json.Valid(data) || !utf8.Valid(data) {
		return invalid("the payload is no JSON that can be read")
	}
	depth := 0
	for at := 0; at < len(data); {
		switch c := data[at]; {
		case c == '"':
			end, err := checkString(data, at+1)
			if err != nil {
				return err
			}
			at = end
		case c == '[' || c == '{':
			if depth++; depth > payloadDepth {
				return tooMuch("the payload is nested deeper than %d levels", payloadDepth)
			}
			at++
		case c == ']' || c == '}':
			depth--
			at++
		case c == '-' || '0' <= c && c <= '9':
			end := at + 1
			for end < len(data) && bytes.IndexByte([]byte("0123456789.eE+-"), data[end]) >= 0 {
				end++
			}
			if err := checkNumber(string(data[at:end])); err != nil {
				return err
			}
			at = end
		default:
			at++
		}
	}
	return nil
}

// checkString finds the end of a string of valid JSON, and half a surrogate pair in it, which UTF-8 cannot say.
func checkString(data []byte, at int) (end int, err error) {
	for ; data[at] != '"'; at++ {
		if data[at] != '\\' {
			continue
		}
		at++
		if data[at] != 'u' {
			continue
		}
		high := escaped(data, at-1)
		at += 4
		if high < 0xD800 || high > 0xDFFF {
			continue
		}
		low := escaped(data, at+1)
		if high > 0xDBFF || low < 0xDC00 || low > 0xDFFF {
			return 0, invalid("the payload is no JSON that can be read: it has half a surrogate pair")
		}
		at += 6
	}
	return at + 1, nil
}

// escaped is the number in `\uXXXX` at this place, or -1.
func escaped(data []byte, at int) int64 {
	if at+6 > len(data) || data[at] != '\\' || data[at+1] != 'u' {
		return -1
	}
	number, err := strconv.ParseInt(string(data[at+2:at+6]), 16, 32)
	if err != nil {
		return -1
	}
	return number
}

func checkNumber(text string) error {
	if len(text) < 19 && !bytes.ContainsAny([]byte(text), "eE") { // the shortest that can be beyond 64 bits
		return nil
	}
	if bytes.ContainsAny([]byte(text), ".eE") {
		if _, err := strconv.ParseFloat(text, 64); errors.Is(err, strconv.ErrRange) {
			return invalid("a number is beyond what a double can say: %s", shown(text))
		}
		return nil
	}
	_, signed := strconv.ParseInt(text, 10, 64)
	if _, unsigned := strconv.ParseUint(text, 10, 64); signed != nil && unsigned != nil {
		return invalid("an integer is beyond 64 bits: %s", shown(text))
	}
	return nil
}

// valueToJSON is the JSON of a Value. Numbers that are not exact are refused.
func valueToJSON(value *structpb.Value) ([]byte, error) {
	plain, err := fromValue(value, payloadDepth)
	if err != nil {
		return nil, err
	}
	payload, _, err := encode(plain)
	return payload, err
}

func fromValue(value *structpb.Value, depth int) (any, error) {
	switch kind := value.GetKind().(type) {
	case *structpb.Value_StringValue:
		return kind.StringValue, nil
	case *structpb.Value_BoolValue:
		return kind.BoolValue, nil
	case *structpb.Value_NumberValue:
		return fromDouble(kind.NumberValue)
	case *structpb.Value_ListValue:
		if depth == 0 {
			break
		}
		items := make([]any, len(kind.ListValue.GetValues()))
		for i, item := range kind.ListValue.GetValues() {
			plain, err := fromValue(item, depth-1)
			if err != nil {
				return nil, err
			}
			items[i] = plain
		}
		return items, nil
	case *structpb.Value_StructValue:
		if depth == 0 {
			break
		}
		fields := make(map[string]any, len(kind.StructValue.GetFields()))
		for key, item := range kind.StructValue.GetFields() {
			plain, err := fromValue(item, depth-1)
			if err != nil {
				return nil, err
			}
			fields[key] = plain
		}
		return fields, nil
	default:
		return nil, nil
	}
	return nil, tooMuch("the payload is nested deeper than %d levels", payloadDepth)
}

func fromDouble(number float64) (any, error) {
	switch {
	case math.IsNaN(number) || math.IsInf(number, 0):
		return nil, invalid("%v cannot be said in JSON", number)
	case number != math.Trunc(number):
		return number, nil
	case math.Abs(number) > exact:
		return nil, invalid("%v is beyond 2^53, where `value` is not exact: send it as `json`", number)
	default:
		return int64(number), nil
	}
}

// jsonToValue is the Value of JSON. Integers beyond 2^53 are refused: they are never rounded.
func jsonToValue(payload []byte) (*structpb.Value, error) {
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var plain any
	if err := decoder.Decode(&plain); err != nil {
		return nil, invalid("the payload is no JSON that can be read")
	}
	return toValue(plain)
}

func toValue(plain any) (*structpb.Value, error) {
	switch v := plain.(type) {
	case json.Number:
		number, err := v.Float64()
		if err != nil {
			return nil, invalid("a number is beyond what a double can say: %s", shown(v.String()))
		}
		if math.Abs(number) > exact && !bytes.ContainsAny([]byte(v), ".eE") || tooLong(v) {
			return nil, invalid("%s is beyond 2^53, where `value` is not exact: ask with `json`", v)
		}
		return structpb.NewNumberValue(number), nil
	case []any:
		list := &structpb.ListValue{Values: make([]*structpb.Value, len(v))}
		for i, item := range v {
			below, err := toValue(item)
			if err != nil {
				return nil, err
			}
			list.Values[i] = below
		}
		return structpb.NewListValue(list), nil
	case map[string]any:
		fields := make(map[string]*structpb.Value, len(v))
		for key, item := range v {
			below, err := toValue(item)
			if err != nil {
				return nil, err
			}
			fields[key] = below
		}
		return structpb.NewStructValue(&structpb.Struct{Fields: fields}), nil
	default: // text, true, false, null
		return structpb.NewValue(v)
	}
}

// tooLong finds the integer next to 2^53 that a double has rounded to it.
func tooLong(number json.Number) bool {
	integer, err := number.Int64()
	return err == nil && (integer > exact || integer < -exact)
}
