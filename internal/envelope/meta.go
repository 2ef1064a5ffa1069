package envelope

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Maxima of the sealed meta.
const (
	MaxSubject     = 4096     // bytes of a subject
	MaxAffix       = 255      // bytes in which origin and sealed subject may differ in front, each
	MaxHeaders     = 64       // headers
	MaxHeaderBytes = 32 << 10 // bytes of all headers with their length fields
	MaxPadTo       = 4096     // largest padding multiple

	metaVersion   = 1
	metaFixedSize = 1 + 16 + 8 + 8 + 8 + 8 + 8 + 2 + 1 + 1 + 2 + 2 // without subject, add, headers and padding bytes
)

// NotKept in PreviousOnSubject says that the route keeps no per-subject link.
const NotKept = ^uint64(0)

// ChainID scopes order evidence: 16 random bytes per (route, partition, source
// incarnation) or per sealing application.
type ChainID [16]byte

// String returns 32 lower-case hexadecimal digits.
func (c ChainID) String() string { return hex.EncodeToString(c[:]) }

// ParseChainID parses what String returns; anything else is [ErrInvalid].
func ParseChainID(s string) (ChainID, error) {
	var c ChainID
	if len(s) != 2*len(c) {
		return ChainID{}, fmt.Errorf("%w: chain ID of %d characters, want %d", ErrInvalid, len(s), 2*len(c))
	}
	if _, err := hex.Decode(c[:], []byte(s)); err != nil || c.String() != s {
		return ChainID{}, fmt.Errorf("%w: chain ID %q is not lower-case hexadecimal", ErrInvalid, s)
	}
	return c, nil
}

// Header is one application header of a message.
type Header struct{ Name, Value string }

// Meta is what is sealed in front of the payload, because order, origin and
// header names are sensitive too.
//
//	1   meta version = 1
//	16  chain ID
//	8   source sequence
//	8   previous
//	8   previous on this subject
//	8   gap
//	8   publish time
//	2   sealed subject length, sealed subject
//	1   strip, 1 add, bytes    origin subject = add + sealed subject[strip:]
//	2   header count, then each: 2 name length, name, 4 value length, value
//	2   padding length, zeros
type Meta struct {
	Chain             ChainID
	Sequence          uint64 // source sequence; in direct sealing the chain's own counter, from 1
	Previous          uint64 // Sequence of the message before this one on the chain; 0: first
	PreviousOnSubject uint64 // likewise on this subject; NotKept where the route does not keep it
	Gap               uint64 // source messages lost to limits before this one; 0 normally
	Published         int64  // unix nanoseconds, as the source stream recorded it
	SealedSubject     string // subject the envelope is published to; not empty
	OriginSubject     string // subject the application published to; not empty
	// Headers in canonical order: by Name in byte order, equal names in their
	// original order. See SortHeaders.
	Headers []Header
	// Layered says that the payload is itself an envelope (FlagLayered).
	Layered bool
}

// layout is what measuring a meta finds out and writing it needs again.
type layout struct {
	strip, add int // lengths: origin = origin[:add] + sealed[strip:]
	size       int // encoded, without padding bytes
}

// affix splits origin and sealed subject at their longest common suffix:
// origin = origin[:add] + sealed[strip:].
func affix(origin, sealed string) (strip, add int) {
	if d := len(sealed) - len(origin); d >= 0 && sealed[d:] == origin { // the usual route: a prefix in front
		return d, 0
	}
	n := 0
	for n < len(origin) && n < len(sealed) && origin[len(origin)-1-n] == sealed[len(sealed)-1-n] {
		n++
	}
	return len(sealed) - n, len(origin) - n
}

// measure checks m against every maximum and lays it out, or answers [ErrInvalid].
func (m *Meta) measure() (layout, error) {
	if n := len(m.SealedSubject); n == 0 || n > MaxSubject {
		return layout{}, outOfRange("sealed subject", n, 1, MaxSubject)
	}
	if n := len(m.OriginSubject); n == 0 || n > MaxSubject {
		return layout{}, outOfRange("origin subject", n, 1, MaxSubject)
	}
	var l layout
	l.strip, l.add = affix(m.OriginSubject, m.SealedSubject)
	if n := max(l.strip, l.add); n > MaxAffix {
		return layout{}, outOfRange("difference of sealed and origin subject", n, 0, MaxAffix)
	}
	l.size = metaFixedSize + len(m.SealedSubject) + l.add
	if len(m.Headers) > 0 {
		n, err := measureHeaders(m.Headers)
		if err != nil {
			return layout{}, err
		}
		l.size += n
	}
	return l, nil
}

func measureHeaders(headers []Header) (int, error) {
	if len(headers) > MaxHeaders {
		return 0, fmt.Errorf("%w: %d headers, at most %d", ErrInvalid, len(headers), MaxHeaders)
	}
	size := 0
	for i := range headers {
		h := &headers[i]
		if h.Name == "" || len(h.Name) > MaxHeaderBytes || len(h.Value) > MaxHeaderBytes {
			return 0, fmt.Errorf("%w: header %d has an empty name or exceeds %d bytes", ErrInvalid, i, MaxHeaderBytes)
		}
		if i > 0 && headers[i-1].Name > h.Name {
			return 0, fmt.Errorf("%w: header %d is out of order", ErrInvalid, i)
		}
		size += 6 + len(h.Name) + len(h.Value)
	}
	if size > MaxHeaderBytes {
		return 0, outOfRange("all headers", size, 0, MaxHeaderBytes)
	}
	return size, nil
}

// outOfRange keeps the making of errors out of the hot path.
func outOfRange(what string, n, low, high int) error {
	return fmt.Errorf("%w: %s: %d bytes, want %d to %d", ErrInvalid, what, n, low, high)
}

// put writes m, laid out as l, with pad zero bytes at the start of b, and
// returns what of b is left.
func (m *Meta) put(b []byte, l layout, pad int) []byte {
	be := binary.BigEndian
	f := (*[59]byte)(b)
	f[0] = metaVersion
	*(*ChainID)(f[1:]) = m.Chain
	be.PutUint64(f[17:], m.Sequence)
	be.PutUint64(f[25:], m.Previous)
	be.PutUint64(f[33:], m.PreviousOnSubject)
	be.PutUint64(f[41:], m.Gap)
	be.PutUint64(f[49:], uint64(m.Published))
	be.PutUint16(f[57:], uint16(len(m.SealedSubject)))
	at := 59 + copy(b[59:], m.SealedSubject)
	b[at], b[at+1] = byte(l.strip), byte(l.add)
	at += 2
	if l.add > 0 {
		at += copy(b[at:], m.OriginSubject[:l.add])
	}
	be.PutUint16(b[at:], uint16(len(m.Headers)))
	at += 2
	for i := range m.Headers {
		h := &m.Headers[i]
		be.PutUint16(b[at:], uint16(len(h.Name)))
		at += 2
		at += copy(b[at:], h.Name)
		be.PutUint32(b[at:], uint32(len(h.Value)))
		at += 4
		at += copy(b[at:], h.Value)
	}
	be.PutUint16(b[at:], uint16(pad))
	at += 2
	if pad > 0 {
		clear(b[at : at+pad])
	}
	return b[at+pad:]
}

var zeros [MaxPadTo]byte
