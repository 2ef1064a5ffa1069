// Package deadletter is the form of a dead letter: a source message that the
// gateway could not seal as it is, parked sealed in a stream of its own. The
// gateway writes them, "keyweir deadletters" reads them.
//
// A dead letter is stored on
//
//	<prefix>.<route>.<chain>.<sequence>           and, if it has parts,
//	<prefix>.<route>.<chain>.<sequence>.<part>    from the second part on
//
// where sequence is that of the source message on the route's chain. So the
// subject is taken once per source message, however often it is parked. What the
// headers in clear say is for lists only; what counts is sealed in the envelope,
// see [Description].
//
// A dead letter that is sent back gets a small message beside it first, on
//
//	<prefix>.<route>.<chain>.<sequence>.retry
//
// with [HeaderRetrying]. Once the source stream has stored it, it is replaced, on its
// own subject, by an empty message with [HeaderRetried]: the subject stays taken.
// The message beside it and parts from the second on go then.
package deadletter

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/keyweir/keyweir/internal/envelope"
)

// Headers of a dead letter, in clear.
const (
	HeaderError    = "Keyweir-Error"    // the reason, one of the words below
	HeaderStream   = "Keyweir-Stream"   // the source stream
	HeaderSequence = "Keyweir-Sequence" // of the source message
	HeaderSubject  = "Keyweir-Subject"  // of the source message
	HeaderPart     = "Keyweir-Part"     // "<part>/<parts>"
	HeaderProof    = "Keyweir-Proof"    // what the route recognises its own dead letters by, see [Proof]
	HeaderRetried  = "Keyweir-Retried"  // when it was sent back, RFC 3339
	HeaderRetrying = "Keyweir-Retrying" // when sending it back began, RFC 3339; beside it only
)

// Mode is what the metadata of a dead-letter stream says in "keyweir-mode".
const Mode = "dead-letters"

// DefaultPrefix is the first token of subjects where the route says nothing else.
const DefaultPrefix = "deadletters"

// Reasons.
const (
	ReasonTooLarge = "too-large" // too large once sealed
	ReasonHeaders  = "headers"   // too many headers
	ReasonReserved = "reserved"  // reserved headers, which the route rejects
	ReasonNoScope  = "no-scope"  // no scope rule matches the subject
	ReasonDenied   = "denied"    // policy gives the gateway no key for the scope
	ReasonShredded = "destroyed" // the key of the scope is destroyed
)

// DefaultQuarantine is the subject whose scope seals what has no scope of its own.
func DefaultQuarantine(route string) string { return "keyweir.quarantine." + route }

// Position says which source message a dead letter is.
type Position struct {
	Route    string
	Chain    envelope.ChainID
	Sequence uint64
}

// Subject returns where part of a dead letter is stored; parts count from 1.
func (p Position) Subject(prefix string, part int) string {
	s := Chain(prefix, p.Route, p.Chain) + "." + strconv.FormatUint(p.Sequence, 10)
	if part > 1 {
		s += "." + strconv.Itoa(part)
	}
	return s
}

// Chain returns what the subjects of all dead letters of a chain begin with.
func Chain(prefix, route string, chain envelope.ChainID) string {
	return prefix + "." + route + "." + chain.String()
}

const retrySuffix = ".retry"

// RetrySubject returns where it is stored that a dead letter is being sent back.
func (p Position) RetrySubject(prefix string) string { return p.Subject(prefix, 1) + retrySuffix }

// ParseRetrySubject returns the subject of the dead letter that a RetrySubject
// belongs to; ok is false for any other subject.
func ParseRetrySubject(subject string) (letter string, ok bool) {
	letter, ok = strings.CutSuffix(subject, retrySuffix)
	if !ok {
		return "", false
	}
	if _, _, part, err := ParseSubject(letter); err != nil || part != 1 {
		return "", false
	}
	return letter, true
}

// RetryID returns the Nats-Msg-Id under which a dead letter is sent back, by the
// envelope of its first part: always the same, and nothing that whoever publishes
// to the source stream could use beforehand.
func RetryID(envelope []byte) string {
	h := sha256.New()
	h.Write([]byte("keyweir/v1/retry\x00"))
	h.Write(envelope)
	return "keyweir-retry-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// ParseSubject takes a subject apart; part is 1 where it names none. It accepts
// exactly what Subject returns, under any prefix.
func ParseSubject(subject string) (p Position, prefix string, part int, err error) {
	bad := fmt.Errorf("%q is not the subject of a dead letter", subject)
	tokens := strings.Split(subject, ".")
	n := len(tokens)
	part = 1
	// A chain ID has 32 digits, more than a sequence can have.
	if n >= 5 && len(tokens[n-3]) == 32 {
		if part, err = strconv.Atoi(tokens[n-1]); err != nil || part < 2 || strconv.Itoa(part) != tokens[n-1] {
			return Position{}, "", 0, bad
		}
		n--
	}
	if n < 4 {
		return Position{}, "", 0, bad
	}
	if p.Chain, err = envelope.ParseChainID(tokens[n-2]); err != nil {
		return Position{}, "", 0, bad
	}
	if p.Sequence, err = strconv.ParseUint(tokens[n-1], 10, 64); err != nil || strconv.FormatUint(p.Sequence, 10) != tokens[n-1] || p.Sequence == 0 {
		return Position{}, "", 0, bad
	}
	p.Route, prefix = tokens[n-3], strings.Join(tokens[:n-3], ".")
	return p, prefix, part, nil
}

// ParsePart reads a value of HeaderPart.
func ParsePart(s string) (part, parts int, err error) {
	a, b, ok := strings.Cut(s, "/")
	part, err1 := strconv.Atoi(a)
	parts, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || part < 1 || parts < part || parts > MaxParts || s != FormatPart(part, parts) {
		return 0, 0, fmt.Errorf("%q does not name a part", s)
	}
	return part, parts, nil
}

// FormatPart is the inverse of ParsePart.
func FormatPart(part, parts int) string { return strconv.Itoa(part) + "/" + strconv.Itoa(parts) }

// MaxParts is how many parts a dead letter can have: one atomic batch.
const MaxParts = 1000

// Proof is the value of HeaderProof: the SHA-256 of the envelope of the first
// part and a MAC under the route key that only the gateway can make. It keeps
// anybody else who may publish to the stream from taking a subject beforehand, on
// which the gateway would otherwise take its message for parked.
type Proof struct{ Hash, MAC [32]byte }

var b64 = base64.RawURLEncoding.Strict()

// String returns "<hash>:<mac>", both in base64url.
func (p Proof) String() string {
	return b64.EncodeToString(p.Hash[:]) + ":" + b64.EncodeToString(p.MAC[:])
}

// ParseProof accepts exactly what String returns.
func ParseProof(s string) (Proof, error) {
	var p Proof
	bad := fmt.Errorf("malformed %s header", HeaderProof)
	h, m, ok := strings.Cut(s, ":")
	if !ok || len(h) != b64.EncodedLen(len(p.Hash)) || len(m) != b64.EncodedLen(len(p.MAC)) {
		return Proof{}, bad
	}
	if _, err := b64.Decode(p.Hash[:], []byte(h)); err != nil {
		return Proof{}, bad
	}
	if _, err := b64.Decode(p.MAC[:], []byte(m)); err != nil {
		return Proof{}, bad
	}
	return p, nil
}
