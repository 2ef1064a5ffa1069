package envelope

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Sizes of the fixed fields, and the maxima checked before anything is sliced
// or allocated. All integers are big-endian.
const (
	Version = 1

	HeaderSize = 56 // magic .. session salt
	KeyIDSize  = 32
	SaltSize   = 16
	NonceSize  = 12
	TagSize    = 16

	// MinSize is the shortest envelope: no record, empty payload, a meta with a
	// sealed subject of one byte that is the origin subject as well.
	MinSize = HeaderSize + NonceSize + metaFixedSize + 1 + TagSize

	// MaxSize is the longest envelope. It keeps every length far from the limits
	// of AES-GCM and of int; what NATS accepts is far shorter.
	MaxSize = 1 << 30

	MaxRecordSize = 4096
	aadSize       = 6 // bytes 0..5 of the header, bit0 of the flags cleared
)

const magic = "KW"

// Suite names the algorithms of an envelope. The zero Suite is invalid.
type Suite uint8

// SuiteHKDFSHA256AES256GCM derives a session subkey with HKDF-SHA-256 (RFC 5869)
// and seals with AES-256-GCM (SP 800-38D).
const SuiteHKDFSHA256AES256GCM Suite = 1

func (s Suite) String() string {
	if s == SuiteHKDFSHA256AES256GCM {
		return "HKDF-SHA256+AES-256-GCM"
	}
	return fmt.Sprintf("Suite(%d)", uint8(s))
}

// Flags of an envelope.
type Flags uint8

const (
	FlagRecord      Flags = 1 << 0 // the key record is inline
	FlagRandomNonce Flags = 1 << 1 // the nonce is random, else a counter
	FlagLayered     Flags = 1 << 2 // the payload is itself an envelope
	knownFlags            = FlagRecord | FlagRandomNonce | FlagLayered
)

// KeyID names one data key: SHA-256("keyweir/v1/key-id" || core of its record).
type KeyID [KeyIDSize]byte

// String returns 64 lower-case hexadecimal digits.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id was never set.
func (id KeyID) IsZero() bool { return id == KeyID{} }

// ParseKeyID parses what String returns; anything else is [ErrInvalid].
func ParseKeyID(s string) (KeyID, error) {
	var id KeyID
	if len(s) != 2*KeyIDSize {
		return KeyID{}, fmt.Errorf("%w: key ID of %d characters, want %d", ErrInvalid, len(s), 2*KeyIDSize)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil || id.String() != s {
		return KeyID{}, fmt.Errorf("%w: key ID %q is not lower-case hexadecimal", ErrInvalid, s)
	}
	return id, nil
}

// Salt is the random salt of one session.
type Salt [SaltSize]byte

func (s Salt) String() string { return hex.EncodeToString(s[:]) }

// Envelope is a parsed view of one sealed message; its slices point into the
// bytes given to [Parse].
//
//	off    len
//	0      2    magic "KW"
//	2      1    version = 1
//	3      1    suite
//	4      1    flags
//	5      1    reserved = 0
//	6      2    R = length of the key record; non-zero exactly when FlagRecord
//	8      32   key ID
//	40     16   session salt
//	56     R    key record
//	56+R   12   nonce
//	68+R   n    ciphertext of (meta || payload)
//	...    16   tag
type Envelope struct {
	Suite  Suite
	Flags  Flags
	KeyID  KeyID
	Salt   Salt
	Record []byte // raw key record, nil unless FlagRecord; see ParseRecord
	Sealed []byte // nonce || ciphertext || tag
}

// Is reports whether b begins like an envelope, of whatever version.
func Is(b []byte) bool { return bytes.HasPrefix(b, []byte(magic)) }

// Parse reads the clear part of an envelope. It allocates nothing and keeps b.
// An inline record is only measured here; [ParseRecord] reads it and
// [KeyReader.Open] does not trust it. Errors: [ErrNotEnvelope],
// [ErrUnsupported], [ErrMalformed].
func Parse(b []byte) (Envelope, error) {
	if !Is(b) {
		return Envelope{}, ErrNotEnvelope
	}
	if len(b) < 4 {
		return Envelope{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if b[2] != Version {
		return Envelope{}, fmt.Errorf("%w: envelope version %d", ErrUnsupported, b[2])
	}
	if Suite(b[3]) != SuiteHKDFSHA256AES256GCM {
		return Envelope{}, fmt.Errorf("%w: suite %d", ErrUnsupported, b[3])
	}
	if len(b) < MinSize {
		return Envelope{}, fmt.Errorf("%w: %d bytes, the shortest envelope has %d", ErrMalformed, len(b), MinSize)
	}
	if len(b) > MaxSize {
		return Envelope{}, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(b), MaxSize)
	}
	e := Envelope{Suite: Suite(b[3]), Flags: Flags(b[4]), KeyID: KeyID(b[8:40]), Salt: Salt(b[40:56])}
	if e.Flags&^knownFlags != 0 {
		return Envelope{}, fmt.Errorf("%w: unknown flags %#02x", ErrMalformed, b[4])
	}
	if b[5] != 0 {
		return Envelope{}, fmt.Errorf("%w: reserved byte is %#02x", ErrMalformed, b[5])
	}
	r := int(binary.BigEndian.Uint16(b[6:8]))
	if (r != 0) != (e.Flags&FlagRecord != 0) {
		return Envelope{}, fmt.Errorf("%w: record of %d bytes under flags %#02x", ErrMalformed, r, b[4])
	}
	if r > MaxRecordSize {
		return Envelope{}, fmt.Errorf("%w: record of %d bytes, at most %d", ErrMalformed, r, MaxRecordSize)
	}
	if len(b) < MinSize+r {
		return Envelope{}, fmt.Errorf("%w: %d bytes with a record of %d", ErrMalformed, len(b), r)
	}
	if r != 0 {
		e.Record = b[HeaderSize : HeaderSize+r : HeaderSize+r]
	}
	e.Sealed = b[HeaderSize+r:]
	return e, nil
}

// Append writes the envelope in its wire form: Parse then Append gives the
// identical bytes.
func (e *Envelope) Append(dst []byte) []byte {
	dst = append(dst, magic...)
	dst = append(dst, Version, byte(e.Suite), byte(e.Flags), 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.Record)))
	dst = append(dst, e.KeyID[:]...)
	dst = append(dst, e.Salt[:]...)
	dst = append(dst, e.Record...)
	return append(dst, e.Sealed...)
}

// aads holds the additional authenticated data for every combination of flags,
// so that neither sealing nor opening allocates it.
var aads = func() (t [knownFlags + 1][aadSize]byte) {
	for f := range t {
		t[f] = [aadSize]byte{magic[0], magic[1], Version, byte(SuiteHKDFSHA256AES256GCM), byte(f) &^ byte(FlagRecord), 0}
	}
	return t
}()

// aad returns bytes 0..5 of the header with bit0 cleared. Key ID and salt are
// bound by the derivation of the subkey; whether and how the record travels is
// not bound, so that a message can be re-wrapped without opening it.
func aad(f Flags) []byte { return aads[f&knownFlags][:] }
