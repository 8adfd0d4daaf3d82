// What gRPC says of an error, in words for people.
//
// grpc-go tells why a connection failed by a text alone, in which each of its layers has put something before the cause.
// Of what is not known here at least those layers go.

package exchange

import (
	"io"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	layer      = regexp.MustCompile(`^(?:transport: )?(?:[Ee]rror while dialing|authentication handshake failed|error reading[\w ]*): `)
	socketCall = regexp.MustCompile(`^(?:dial|read|write) (?:tcp|unix)\S* ?`)
	lookup     = regexp.MustCompile(`\blookup ([^\s:]+)`)
	httpStatus = regexp.MustCompile(`unexpected HTTP status code received from server: (\d+)`)
)

// said is why a connection failed.
func said(err error) string {
	if err == io.EOF {
		return "the stream is closed"
	}
	text := causeIn(status.Convert(err).Message())
	if status.Code(err) == codes.Unimplemented && !strings.HasPrefix(text, noGRPC) {
		return "it is no exchange"
	}
	return cutTo(text, 200)
}

const noGRPC = "it speaks no gRPC"

// causeIn is the cause in a text of gRPC.
func causeIn(text string) string {
	if _, after, wrapped := strings.Cut(text, "desc = "); wrapped {
		if quoted, err := strconv.QuotedPrefix(after); err == nil {
			text, _ = strconv.Unquote(quoted) // what is quoted can be unquoted
		}
	}
	if answer := httpStatus.FindStringSubmatch(text); answer != nil {
		return noGRPC + " (HTTP " + answer[1] + ")"
	}
	if strings.Contains(text, "server preface: http2: ") || strings.Contains(text, "initial http2 frame from server is not") {
		return noGRPC
	}
	cause := layer.ReplaceAllString(text, "")
	if socketCall.MatchString(cause) {
		return causeOfSocket(cause)
	}
	switch cause {
	case io.EOF.Error():
		return "the other side closed it"
	case "tls: first record does not look like a TLS handshake":
		return "it speaks no TLS"
	}
	return cause
}

// causeOfSocket is the cause in a text of package net.
func causeOfSocket(text string) string {
	parts := strings.Split(text, ": ")
	cause := parts[len(parts)-1]
	host := lookup.FindStringSubmatch(text)
	switch {
	case host == nil:
		return cause
	case cause == "no such host":
		return "there is no host " + host[1]
	default:
		return "the host " + host[1] + " cannot be looked up: " + cause
	}
}
