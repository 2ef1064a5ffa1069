package gateway

import (
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
)

const headerMsgID = "Nats-Msg-Id"

// reservedHeader reports whether a header belongs to NATS or to Keyweir, in
// whatever letter case: some server versions matched names without regard to it.
func reservedHeader(name string) bool {
	return hasPrefixFold(name, "nats-") || hasPrefixFold(name, "keyweir-") || strings.EqualFold(name, "keyweir")
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// sealedHeaders appends the headers that are sealed with a message, in canonical
// order: all of the application's, and the publisher's Nats-Msg-Id, which readers
// may want for their own de-duplication. Every other Nats-* and every Keyweir-* is
// dropped: copied in clear it would steer the sealed stream, and sealed it would
// steer whatever stream a reader publishes to. Errors: ErrHeaders.
func sealedHeaders(dst []envelope.Header, h nats.Header) ([]envelope.Header, error) {
	size := 0
	for name, values := range h {
		if reservedHeader(name) && name != headerMsgID {
			continue
		}
		for _, v := range values {
			dst = append(dst, envelope.Header{Name: name, Value: v})
			size += 6 + len(name) + len(v)
		}
	}
	if len(dst) > envelope.MaxHeaders || size > envelope.MaxHeaderBytes {
		return nil, fmt.Errorf("%w: %d headers of %d bytes, at most %d of %d", ErrHeaders, len(dst), size, envelope.MaxHeaders, envelope.MaxHeaderBytes)
	}
	envelope.SortHeaders(dst)
	return dst, nil
}
