package gateway

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
)

// Refusal is why core ingest did not seal a message, or why the sealed stream did
// not store it. The zero Refusal is none.
type Refusal int

const (
	// RefusedFull: too many messages wait already. Try again later.
	RefusedFull Refusal = iota + 1
	// RefusedHeader: the message has a header that asks for something the route
	// does not grant, such as Nats-Rollup.
	RefusedHeader
	// RefusedHeaders: more headers than an envelope can carry.
	RefusedHeaders
	// RefusedScope: no rule gives the subject a scope.
	RefusedScope
	// RefusedKey: there is no key to seal with: the key service is away, or denied
	// or suspended the scope. Try again later.
	RefusedKey
	// RefusedTooLarge: the sealed stream's server would not take the envelope.
	RefusedTooLarge
	// RefusedUnavailable: the sealed stream is out of reach. Try again later.
	RefusedUnavailable
	// RefusedReply: the reply subject is one that must not be answered. Never sent.
	RefusedReply
	// RefusedByStream: the sealed stream answered with an error, which went to the
	// publisher. Where the publisher's reply subject was passed on, this is not seen.
	RefusedByStream
	// RefusedUnanswered: the sealed stream did not answer; whether it stored the
	// message is unknown. Never sent: the publisher's request times out.
	RefusedUnanswered

	refusalEnd
)

// RefusalCode is the first of the error codes (err_code) that answers of core
// ingest carry: RefusalCode plus the Refusal. They lie beyond those of JetStream.
const RefusalCode = 62000

var refusalTexts = [...]struct {
	name, text string
	code       int // like a status of HTTP
}{
	RefusedFull:        {"full", "too many messages wait to be sealed, try again later", 429},
	RefusedHeader:      {"header", "the route does not grant this header: ", 400},
	RefusedHeaders:     {"headers", "too many headers, or too large ones, for an envelope", 400},
	RefusedScope:       {"scope", "no scope rule matches the subject", 400},
	RefusedKey:         {"key", "no key to seal with, try again later", 503},
	RefusedTooLarge:    {"too-large", "the message is too large once sealed", 413},
	RefusedUnavailable: {"unavailable", "the sealed stream is out of reach, try again later", 503},
	RefusedReply:       {"reply", "", 0},
	RefusedByStream:    {"stream", "", 0},
	RefusedUnanswered:  {"unanswered", "", 0},
}

func (r Refusal) String() string {
	if r > 0 && r < refusalEnd {
		return refusalTexts[r].name
	}
	return fmt.Sprintf("Refusal(%d)", int(r))
}

// refusalAnswer is an error in the form of a publish acknowledgement, which every
// JetStream client reports as the error of the publish.
func refusalAnswer(r Refusal, stream, detail string) []byte {
	type apiError struct {
		Code        int    `json:"code"`
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	}
	t := refusalTexts[r]
	b, err := json.Marshal(struct {
		Error  apiError `json:"error"`
		Stream string   `json:"stream"`
		Seq    uint64   `json:"seq"`
	}{apiError{t.code, RefusalCode + int(r), "keyweir: " + t.text + detail}, stream, 0})
	if err != nil {
		panic("gateway: internal error: " + err.Error()) // strings and numbers
	}
	return b
}

// passable reports whether a reply subject can be handed to another server in a
// publish of ours. Those of service imports and of gateways between clusters
// cannot: the server drops the message.
func passable(reply string) bool {
	return !strings.HasPrefix(reply, "_R_.") && !strings.HasPrefix(reply, "_GR_.")
}

// answerable reports whether a publisher may be answered on a reply subject. We
// answer with our own rights, and the sealed stream's server with its own, so a
// publisher must not be able to direct an answer into a sealed stream, back into
// the ingest, to JetStream's API or to a key service.
func answerable(reply string, refused []string) bool {
	if reply[0] == '$' || strings.HasPrefix(reply, "keyweir.") || checkPattern(reply) != nil || strings.ContainsAny(reply, "*>") {
		return false
	}
	for _, p := range refused {
		if patternCovers(p, reply) {
			return false
		}
	}
	return true
}

// Headers by which a publisher asks for something. Others of NATS are notes of
// servers and clients without effect here, and dropped; an unknown one is refused.
const (
	headerTTL         = "Nats-TTL"
	headerLastSeq     = "Nats-Expected-Last-Sequence"
	headerLastSubject = "Nats-Expected-Last-Subject-Sequence"
	headerLastID      = "Nats-Expected-Last-Msg-Id"
)

var harmless = map[string]bool{
	"nats-msg-id": true, // in other letter cases than its own, which means nothing to a server
	"nats-stream": true, "nats-subject": true, "nats-sequence": true, "nats-last-sequence": true, "nats-time-stamp": true,
	"nats-num-pending": true, "nats-upto-sequence": true, "nats-msg-size": true, "nats-stream-source": true, "nats-marker-reason": true,
	"nats-trace-dest": true, "nats-trace-hop": true, "nats-trace-only": true, "nats-trace-origin-account": true,
	"nats-request-info": true, "nats-server-xkey": true, "nats-pin-id": true, "nats-required-api-level": true,
	"nats-pending-messages": true, "nats-pending-bytes": true, "nats-last-consumer": true, "nats-last-stream": true,
	"nats-consumer-stalled": true, "nats-response-type": true, "nats-reset-pending": true, "nats-counter-sources": true,
	"nats-scheduler": true, "nats-schedule-next": true, "nats-stream-identity": true, "nats-no-masking": true,
}

// grant copies into dst what of a publisher's headers the sealed stream should
// see, and returns its size on the wire. name is the first header that is not
// granted, "" if all is well.
func (c *CoreIngest) grant(dst nats.Header, h nats.Header) (size int, name string) {
	for n, values := range h {
		if !hasPrefixFold(n, "nats-") || len(values) == 0 {
			continue
		}
		pass := false
		switch n {
		case headerMsgID:
			pass = true
		case headerTTL:
			pass = c.AllowTTL
		case headerLastSeq, headerLastSubject, headerLastID:
			pass = c.AllowExpectedLast
		}
		switch {
		case pass && len(values) == 1:
			dst[n] = values
			size += len(n) + len(values[0]) + len(": \r\n")
		case pass || !harmless[strings.ToLower(n)]:
			return 0, n // granted once is not granted twice: servers take the first, others might not
		}
	}
	return size, ""
}
