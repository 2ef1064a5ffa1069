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

// mayPass reports whether a header may stay readable on a sealed message. Besides
// the reserved ones, those are out that the server or clients give a meaning in
// some place: a key-value operation, the status of an answer.
func mayPass(name string) bool {
	return !reservedHeader(name) && !strings.EqualFold(name, "KV-Operation") &&
		!strings.EqualFold(name, "Status") && !strings.EqualFold(name, "Description")
}

// ReservedHeaders says what happens to input with reserved headers: every Nats-*
// but the publisher's Nats-Msg-Id, and every Keyweir-*, in any letter case.
type ReservedHeaders int

const (
	ReservedDrop   ReservedHeaders = iota // they are left out of the sealed message
	ReservedReject                        // the message becomes a dead letter
)

func (r ReservedHeaders) String() string {
	switch r {
	case ReservedDrop:
		return "drop"
	case ReservedReject:
		return "reject"
	}
	return fmt.Sprintf("ReservedHeaders(%d)", int(r))
}

// ParseReservedHeaders parses "drop" or "reject", and "" as "drop"; anything else
// is [ErrConfig].
func ParseReservedHeaders(s string) (ReservedHeaders, error) {
	switch s {
	case "", "drop":
		return ReservedDrop, nil
	case "reject":
		return ReservedReject, nil
	}
	return 0, fmt.Errorf("%w: reserved_headers %q, want drop or reject", ErrConfig, s)
}

// sealedHeaders appends the headers that are sealed with a message, in canonical
// order: all of the application's, and the publisher's Nats-Msg-Id, which readers
// may want for their own de-duplication. Every other Nats-* and every Keyweir-* is
// dropped, or refused: copied in clear it would steer the sealed stream, and sealed
// it would steer whatever stream a reader publishes to. Errors: ErrHeaders,
// ErrReserved.
func sealedHeaders(dst []envelope.Header, h nats.Header, rule ReservedHeaders) ([]envelope.Header, error) {
	size := 0
	for name, values := range h {
		if reservedHeader(name) && name != headerMsgID {
			if rule == ReservedReject {
				return nil, fmt.Errorf("%w %.100q", ErrReserved, name)
			}
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
