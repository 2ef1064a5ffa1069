// Package checkpoint is the form of checkpoints: messages without a body, beside
// the sealed ones in a sealed stream that several partitions share, that say how
// far one partition is sealed.
//
// A checkpoint is stored on keyweir.checkpoint.<stream>.<partition>, and its header
// Keyweir-Checkpoint is
//
//	<chain>:<position>:<last>:<source created>:<source timestamp>:<follows>:<messages>:<mac>
//
// chain is 32 hexadecimal digits, times are unix nanoseconds, mac is 43 characters
// of unpadded base64url, all else is decimal. Only the gateway can check the MAC.
package checkpoint

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"

	"github.com/keyweir/keyweir/internal/envelope"
)

const (
	// Header is the name of the header, in exactly this case.
	Header = "Keyweir-Checkpoint"
	// HeaderVersion is the other header that a checkpoint must have; its value is "1".
	HeaderVersion = "Keyweir"

	// MaxPartitions is how many partitions may share a sealed stream.
	MaxPartitions = 32

	// Prefix is what the subjects of all checkpoints begin with.
	Prefix = "keyweir.checkpoint."

	fields    = 8
	maxHeader = 2*fields + 32 + 6*20 + 43
)

// Checkpoint is what the header says.
type Checkpoint struct {
	Chain     envelope.ChainID
	Position  uint64 // source sequence up to which the partition is sealed
	Last      uint64 // source sequence of its last sealed message on the chain; 0: none
	Created   int64  // of the source stream
	Timestamp int64  // when the source stream stored the message at Last; 0: unknown
	Follows   uint64 // sequence of the checkpoint it replaced; 0: none
	Messages  uint64 // sealed messages that were stored with it; 0: it was stored alone
	MAC       []byte
}

// Subject is where the checkpoints of a partition are stored.
func Subject(stream string, partition uint32) string {
	return Prefix + stream + "." + strconv.FormatUint(uint64(partition), 10)
}

// Pattern takes the checkpoints of all partitions that share a stream.
func Pattern(stream string) string { return Prefix + stream + ".*" }

// ParseSubject reverses [Subject].
func ParseSubject(subject string) (stream string, partition uint32, ok bool) {
	rest, ok := strings.CutPrefix(subject, Prefix)
	if !ok {
		return "", 0, false
	}
	stream, number, ok := strings.Cut(rest, ".")
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || stream == "" || err != nil || n >= MaxPartitions || strconv.FormatUint(n, 10) != number {
		return "", 0, false
	}
	return stream, uint32(n), true
}

// ErrMalformed: it is not a checkpoint.
var ErrMalformed = errors.New("malformed checkpoint")

var b64 = base64.RawURLEncoding.Strict()

// Parse accepts exactly what [Checkpoint.Append] writes. Errors are [ErrMalformed],
// and the checkpoint is zero then.
func Parse(value string) (Checkpoint, error) {
	f := strings.Split(value, ":")
	if len(value) > maxHeader || len(f) != fields {
		return Checkpoint{}, ErrMalformed
	}
	chain, err := envelope.ParseChainID(f[0])
	if err != nil {
		return Checkpoint{}, ErrMalformed
	}
	c := Checkpoint{Chain: chain}
	for _, n := range []struct {
		to *uint64
		s  string
	}{{&c.Position, f[1]}, {&c.Last, f[2]}, {&c.Follows, f[5]}, {&c.Messages, f[6]}} {
		if *n.to, err = strconv.ParseUint(n.s, 10, 64); err != nil || strconv.FormatUint(*n.to, 10) != n.s {
			return Checkpoint{}, ErrMalformed
		}
	}
	for _, n := range []struct {
		to *int64
		s  string
	}{{&c.Created, f[3]}, {&c.Timestamp, f[4]}} {
		if *n.to, err = strconv.ParseInt(n.s, 10, 64); err != nil || strconv.FormatInt(*n.to, 10) != n.s {
			return Checkpoint{}, ErrMalformed
		}
	}
	c.MAC, err = b64.DecodeString(f[7])
	if err != nil || len(c.MAC) != sha256.Size || c.Last > c.Position || c.Messages > 0 && c.Last == 0 {
		return Checkpoint{}, ErrMalformed
	}
	return c, nil
}

// Append appends the value of the header.
func (c *Checkpoint) Append(b []byte) []byte {
	b = hex.AppendEncode(b, c.Chain[:])
	for _, n := range []uint64{c.Position, c.Last} {
		b = strconv.AppendUint(append(b, ':'), n, 10)
	}
	for _, n := range []int64{c.Created, c.Timestamp} {
		b = strconv.AppendInt(append(b, ':'), n, 10)
	}
	for _, n := range []uint64{c.Follows, c.Messages} {
		b = strconv.AppendUint(append(b, ':'), n, 10)
	}
	return b64.AppendEncode(append(b, ':'), c.MAC)
}

// Read reads a message as a checkpoint of a stream: on one of its subjects, with
// an empty body and exactly one well-formed header of each kind. Errors are
// [ErrMalformed].
func Read(stream, subject string, header map[string][]string, data []byte) (uint32, Checkpoint, error) {
	of, partition, ok := ParseSubject(subject)
	h, v := header[Header], header[HeaderVersion]
	if !ok || of != stream || len(data) != 0 || len(h) != 1 || len(v) != 1 || v[0] != "1" {
		return 0, Checkpoint{}, ErrMalformed
	}
	c, err := Parse(h[0])
	if err != nil {
		return 0, Checkpoint{}, err
	}
	return partition, c, nil
}
