package envelope

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Maxima of one wrap.
const (
	MaxManagedKey = 2048 // bytes of a managed key ID
	MaxKeyVersion = 64   // bytes of a managed key version
	MaxWrap       = 2048 // bytes of a wrapped key
)

// Wrap is a data key, or its part, encrypted by one authority.
type Wrap struct {
	ManagedKey string // never empty
	Version    string // empty where the authority hides versions
	Bytes      []byte // empty only inside a chain: the last wrap of a chain holds all
}

// Record describes one data key: an immutable core, and one wrap per authority
// of the core in the same order. Wraps may be replaced without touching a message.
//
//	2   core length, core
//	1   wrap count = n, then each:
//	    2 managed key length, managed key, 1 version length, version, 2 length, bytes
type Record struct {
	Core  Core
	Wraps []Wrap
}

func (r *Record) check() error {
	if len(r.Wraps) != int(r.Core.N) {
		return fmt.Errorf("%w: %d wraps for %d authorities", ErrMalformed, len(r.Wraps), r.Core.N)
	}
	for i := range r.Wraps {
		w := &r.Wraps[i]
		inner := r.Core.Scheme == SchemeChain && i < len(r.Wraps)-1
		if w.ManagedKey == "" || len(w.ManagedKey) > MaxManagedKey || len(w.Version) > MaxKeyVersion ||
			len(w.Bytes) > MaxWrap || (len(w.Bytes) == 0) != inner {
			return fmt.Errorf("%w: wrap %d", ErrMalformed, i+1)
		}
	}
	return nil
}

// Append writes the record in canonical form, or answers [ErrMalformed] or
// [ErrUnsupported] and nil; also when it would exceed [MaxRecordSize].
func (r *Record) Append(dst []byte) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	start := len(dst)
	dst, err := r.Core.Append(append(dst, 0, 0))
	if err != nil {
		return nil, err
	}
	if n := len(dst) - start - 2; n <= MaxRecordSize {
		be.PutUint16(dst[start:], uint16(n))
	}
	dst = append(dst, byte(len(r.Wraps)))
	for i := range r.Wraps {
		w := &r.Wraps[i]
		dst = be.AppendUint16(dst, uint16(len(w.ManagedKey)))
		dst = append(dst, w.ManagedKey...)
		dst = append(dst, byte(len(w.Version)))
		dst = append(dst, w.Version...)
		dst = be.AppendUint16(dst, uint16(len(w.Bytes)))
		dst = append(dst, w.Bytes...)
	}
	if n := len(dst) - start; n > MaxRecordSize {
		return nil, fmt.Errorf("%w: key record of %d bytes, at most %d", ErrMalformed, n, MaxRecordSize)
	}
	return dst, nil
}

// splitRecord finds core and wraps without reading them.
func splitRecord(b []byte) (core, wraps []byte, err error) {
	if len(b) > MaxRecordSize {
		return nil, nil, fmt.Errorf("%w: key record of %d bytes, at most %d", ErrMalformed, len(b), MaxRecordSize)
	}
	c := cursor{b: b}
	core = c.take(int(c.u16()))
	if c.bad {
		return nil, nil, fmt.Errorf("%w: key record is cut short", ErrMalformed)
	}
	return core, c.b, nil
}

// ParseRecord reads a whole key record. The result shares nothing with b.
// Errors: [ErrMalformed], [ErrUnsupported].
func ParseRecord(b []byte) (*Record, error) {
	core, wraps, err := splitRecord(b)
	if err != nil {
		return nil, err
	}
	r := &Record{}
	if r.Core, err = parseCore(core); err != nil {
		return nil, err
	}
	c := cursor{b: wraps}
	n := int(c.u8())
	if c.bad || n != int(r.Core.N) {
		return nil, fmt.Errorf("%w: %d wraps for %d authorities", ErrMalformed, n, r.Core.N)
	}
	for range n {
		w := Wrap{ManagedKey: string(c.take(int(c.u16())))}
		w.Version = string(c.take(int(c.u8())))
		w.Bytes = append([]byte(nil), c.take(int(c.u16()))...)
		r.Wraps = append(r.Wraps, w)
	}
	if c.bad || len(c.b) != 0 {
		return nil, fmt.Errorf("%w: wraps of a key record", ErrMalformed)
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return r, nil
}

// CheckRecord compares the inline record of e, if there is one, with the record
// known for the key, which [KeyReader.Open] alone does not: wraps are
// replaceable, so neither the key ID nor the seal covers them. It allocates
// nothing when they are equal. Errors: [ErrMalformed] and [ErrUnsupported] for
// bytes that are no record, [ErrTampered] for one whose core is not known's or
// does not hash to the envelope's key ID, [ErrOtherWraps].
func (e *Envelope) CheckRecord(known *Record) error {
	if len(e.Record) == 0 {
		return nil
	}
	var space [MaxRecordSize]byte
	want, err := known.Append(space[:0])
	if err != nil {
		return fmt.Errorf("encoding known record: %w", err)
	}
	if bytes.Equal(e.Record, want) {
		return nil
	}
	got, err := ParseRecord(e.Record)
	if err != nil {
		return err
	}
	core, _, err := splitRecord(e.Record)
	if err != nil {
		return err
	}
	wantCore, _, err := splitRecord(want)
	if err != nil {
		return err
	}
	if !bytes.Equal(core, wantCore) || got.Core.ID() != e.KeyID {
		return fmt.Errorf("%w: inline record of another key", ErrTampered)
	}
	return ErrOtherWraps
}
