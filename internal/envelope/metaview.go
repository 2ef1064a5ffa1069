package envelope

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
)

// MetaView is an authenticated, parsed meta whose subjects and headers still
// point into the opened buffer: reading it allocates nothing until a method
// that returns strings is called, and it is valid as long as that buffer is.
type MetaView struct {
	Chain             ChainID
	Sequence          uint64
	Previous          uint64
	PreviousOnSubject uint64
	Gap               uint64
	Published         int64 // unix nanoseconds
	Padding           int   // bytes

	sealed  []byte
	strip   int
	add     []byte
	headers []byte // validated, encoded
	count   int
	layered bool
}

// SealedSubject returns the subject the envelope was published to.
func (v *MetaView) SealedSubject() string { return string(v.sealed) }

// SealedTo reports whether subject is the one the envelope was published to.
func (v *MetaView) SealedTo(subject string) bool { return string(v.sealed) == subject }

// OriginSubject returns the subject the application published to.
func (v *MetaView) OriginSubject() string {
	var b strings.Builder
	b.Grow(len(v.add) + len(v.sealed) - v.strip)
	b.Write(v.add)
	b.Write(v.sealed[v.strip:])
	return b.String()
}

// Layered reports whether the payload is itself an envelope.
func (v *MetaView) Layered() bool { return v.layered }

// Headers returns the application headers in canonical order, nil if none.
func (v *MetaView) Headers() []Header {
	if v.count == 0 {
		return nil
	}
	out := make([]Header, 0, v.count)
	for r := (cursor{b: v.headers}); len(r.b) > 0; {
		name := r.take(int(r.u16()))
		value := r.take(int(r.u32()))
		out = append(out, Header{string(name), string(value)})
	}
	return out
}

// Meta returns a copy that does not depend on the opened buffer.
func (v *MetaView) Meta() Meta {
	return Meta{
		Chain: v.Chain, Sequence: v.Sequence, Previous: v.Previous, PreviousOnSubject: v.PreviousOnSubject,
		Gap: v.Gap, Published: v.Published, SealedSubject: v.SealedSubject(), OriginSubject: v.OriginSubject(),
		Headers: v.Headers(), Layered: v.layered,
	}
}

// SortHeaders puts headers into canonical order, in place and stably.
func SortHeaders(h []Header) {
	slices.SortStableFunc(h, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
}

// parse splits opened plaintext into meta and payload. Whatever breaks the
// format makes the caller answer [ErrTampered]: the sealer would have had to be
// broken or hostile.
func (v *MetaView) parse(b []byte, layered bool) (payload []byte, ok bool) {
	if len(b) < metaFixedSize || b[0] != metaVersion {
		return nil, false
	}
	be := binary.BigEndian
	v.Chain = ChainID(b[1:17])
	v.Sequence, v.Previous, v.PreviousOnSubject = be.Uint64(b[17:]), be.Uint64(b[25:]), be.Uint64(b[33:])
	v.Gap, v.Published = be.Uint64(b[41:]), int64(be.Uint64(b[49:]))
	r := cursor{b: b[57:]}
	v.sealed = r.take(int(r.u16()))
	v.strip = int(r.u8())
	v.add = r.take(int(r.u8()))
	if r.bad || len(v.sealed) == 0 || len(v.sealed) > MaxSubject || v.strip > len(v.sealed) {
		return nil, false
	}
	// Canonical: what is stripped and what is added end in different bytes.
	if v.strip > 0 && len(v.add) > 0 && v.sealed[v.strip-1] == v.add[len(v.add)-1] {
		return nil, false
	}
	if origin := len(v.add) + len(v.sealed) - v.strip; origin == 0 || origin > MaxSubject {
		return nil, false
	}
	v.count = int(r.u16())
	if v.count > MaxHeaders {
		return nil, false
	}
	encoded := r.b
	var last []byte
	for range v.count {
		name := r.take(int(r.u16()))
		value := r.take(int(r.u32()))
		if r.bad || len(name) == 0 || bytes.Compare(last, name) > 0 || len(value) > MaxHeaderBytes {
			return nil, false
		}
		last = name
	}
	v.headers = encoded[:len(encoded)-len(r.b)]
	v.Padding = int(r.u16())
	pad := r.take(v.Padding)
	if r.bad || len(v.headers) > MaxHeaderBytes || v.Padding >= MaxPadTo || !bytes.Equal(pad, zeros[:len(pad)]) {
		return nil, false
	}
	v.layered = layered
	return r.b, true
}

// cursor reads big-endian fields from b. A read beyond the end sets bad and
// yields zeros; the caller checks bad before it uses anything.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) u8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}
