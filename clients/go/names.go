// Names, ids and patterns: what is well-formed, and what fits what.
//
// A name is tokens separated by dots. In a pattern a token may be `*` (any one token) or `**` (any number
// of them, none included); the pattern `*` alone fits everything. Matching is linear in the product of
// the lengths, whatever a peer sends: only the last `**` is ever taken up again.

package exchange

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	reserved = "exchange."          // names of the system: answered by the exchange that is addressed
	stateSet = "exchange.state.set" // the one of them that changes something
)

// shown is text for an error: quoted, without control characters, shortened.
func shown(text string) string {
	if len(text) > 60 {
		text = text[:57] + "..."
	}
	return strconv.QuoteToASCII(text)
}

func badRune(r rune) bool {
	return r == '*' || r == utf8.RuneError || unicode.IsSpace(r) || unicode.IsControl(r)
}

// wellFormed says whether text is tokens separated by single dots; wild permits `*` and `**` as tokens.
func wellFormed(text string, wild bool) bool {
	for token := range strings.SplitSeq(text, ".") {
		if wild && (token == "*" || token == "**") {
			continue
		}
		if token == "" || !plain(token) && strings.IndexFunc(token, badRune) >= 0 {
			return false
		}
	}
	return true
}

// plain says that a token is of visible ASCII, as nearly all are: it saves to look at the runes.
func plain(token string) bool {
	for i := range len(token) {
		if c := token[i]; c <= ' ' || c >= 0x7f || c == '*' {
			return false
		}
	}
	return true
}

func checkName(name string) error {
	switch {
	case name == "":
		return invalid("the name is empty")
	case len(name) > nameBytes:
		return tooMuch("the name %s is longer than %d bytes", shown(name), nameBytes)
	case !wellFormed(name, false):
		return invalid("%s is no name: it takes tokens separated by single dots, "+
			"without white space, control characters or '*'", shown(name))
	}
	return nil
}

func checkPattern(pattern string) error {
	switch {
	case pattern == "":
		return invalid("the pattern is empty")
	case len(pattern) > nameBytes:
		return tooMuch("the pattern %s is longer than %d bytes", shown(pattern), nameBytes)
	case !wellFormed(pattern, true):
		return invalid("%s is no pattern: it takes tokens, '*' or '**', separated by single dots", shown(pattern))
	}
	return nil
}

func isID(id string) bool {
	if len(id) == 0 || len(id) > idLength {
		return false
	}
	for i := range len(id) {
		c := id[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func checkID(id string) error {
	if !isID(id) {
		return invalid("%s is no exchange id: it takes 1 to %d of A-Z a-z 0-9 _ -", shown(id), idLength)
	}
	return nil
}

// originOf is the exchange that made the message with this id; ok says whether it is an id of a message.
func originOf(id string) (origin string, ok bool) {
	origin, rest, _ := strings.Cut(id, ".")
	epoch, number, _ := strings.Cut(rest, ".")
	return origin, isID(origin) && isNumber(epoch) && isNumber(number)
}

func isNumber(digits string) bool {
	if len(digits) == 0 || len(digits) > 20 {
		return false
	}
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return false
		}
	}
	return true
}

func checkMessageID(id string) (origin string, err error) {
	origin, ok := originOf(id)
	if !ok {
		return "", invalid("%s is no message id: <exchange>.<epoch>.<n>", shown(id))
	}
	return origin, nil
}

// isTraced says whether messages of this name leave a trace: those of the system do not, unless they change something.
func isTraced(name string) bool {
	return !strings.HasPrefix(name, reserved) || name == stateSet
}

// Fits says whether name fits pattern.
func Fits(pattern, name string) bool {
	if pattern == "*" || pattern == "**" {
		return true
	}
	if !strings.Contains(pattern, "*") {
		return pattern == name
	}
	wanted, tokens := strings.Split(pattern, "."), strings.Split(name, ".")
	w, n, resume, star := 0, 0, 0, -1
	for n < len(tokens) {
		switch {
		case w < len(wanted) && wanted[w] == "**":
			star, resume = w, n
			w++
		case w < len(wanted) && (wanted[w] == "*" || wanted[w] == tokens[n]):
			w++
			n++
		case star >= 0: // let the last `**` take one token more
			resume++
			w, n = star+1, resume
		default:
			return false
		}
	}
	for ; w < len(wanted); w++ {
		if wanted[w] != "**" {
			return false
		}
	}
	return true
}
