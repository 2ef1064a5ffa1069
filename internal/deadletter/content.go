package deadletter

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Description is sealed in front of every part, as JSON.
type Description struct {
	Reason    string `json:"reason"`
	Detail    string `json:"detail"` // the error in full
	Route     string `json:"route"`
	Stream    string `json:"stream"`    // the source stream
	Chain     string `json:"chain"`     // of the route, 32 hexadecimal digits
	Sequence  uint64 `json:"sequence"`  // in the source stream
	Subject   string `json:"-"`         // the message was published to; on the wire base64, as it may not be UTF-8
	Published int64  `json:"published"` // unix nanoseconds, as the source stream recorded it
	Part      int    `json:"part"`      // from 1
	Parts     int    `json:"parts"`
	Headers   int    `json:"headers"` // bytes of the headers, which come first
	Size      int    `json:"size"`    // bytes of headers and payload, over all parts
}

// The sealed payload of one part is
//
//	off  len
//	0    2    magic "KD"
//	2    1    version = 1
//	3    4    length of the description, big-endian
//	7    d    description
//	7+d  n    this part of headers || payload
//
// and headers are, for each name in order and each of its values, 4 bytes of
// length and the name, 4 bytes of length and the value.
const (
	contentMagic   = "KD\x01"
	contentFixed   = len(contentMagic) + 4
	maxDescription = 64 << 10
	maxWhole       = 1 << 30 // as of an envelope
)

var errContent = errors.New("malformed dead letter")

// Overhead returns how many bytes d takes in front of every part, at most.
func (d *Description) Overhead() (int, error) {
	c := *d
	c.Part, c.Parts = MaxParts, MaxParts
	b, err := c.encode()
	return contentFixed + len(b), err
}

// described is a description as JSON has it.
type described struct {
	Description
	Subject []byte `json:"subject"`
}

func (d *Description) encode() ([]byte, error) {
	b, err := json.Marshal(described{*d, []byte(d.Subject)})
	if err == nil && len(b) > maxDescription {
		err = fmt.Errorf("%d bytes, at most %d", len(b), maxDescription)
	}
	if err != nil {
		return nil, fmt.Errorf("describing dead letter: %w", err)
	}
	return b, nil
}

// AppendPart appends the sealed payload of one part to dst.
func (d *Description) AppendPart(dst, chunk []byte) ([]byte, error) {
	b, err := d.encode()
	if err != nil {
		return dst, err
	}
	dst = append(dst, contentMagic...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(b)))
	return append(append(dst, b...), chunk...), nil
}

// ParseContent is the inverse of [Description.AppendPart]; chunk aliases b.
func ParseContent(b []byte) (d Description, chunk []byte, err error) {
	if len(b) < contentFixed || string(b[:len(contentMagic)]) != contentMagic {
		return Description{}, nil, errContent
	}
	n := binary.BigEndian.Uint32(b[len(contentMagic):])
	b = b[contentFixed:]
	if n > maxDescription || uint64(n) > uint64(len(b)) {
		return Description{}, nil, errContent
	}
	dec := json.NewDecoder(bytes.NewReader(b[:n]))
	dec.DisallowUnknownFields()
	var w described
	if err := dec.Decode(&w); err != nil {
		return Description{}, nil, errContent
	}
	if _, err := dec.Token(); err != io.EOF {
		return Description{}, nil, errContent
	}
	d = w.Description
	d.Subject = string(w.Subject)
	if d.Parts < 1 || d.Parts > MaxParts || d.Part < 1 || d.Part > d.Parts || d.Headers < 0 || d.Headers > d.Size || d.Size > maxWhole || len(b)-int(n) > d.Size {
		return Description{}, nil, errContent
	}
	return d, b[n:], nil
}

// Letter is a whole dead letter, opened.
type Letter struct {
	Description
	Header map[string][]string
	Data   []byte
}

// Join puts the opened payloads of all parts, in order, together again. Parts
// that do not belong together, or miss something, are an error.
func Join(parts [][]byte) (*Letter, error) {
	var l Letter
	var whole []byte
	for i, p := range parts {
		d, chunk, err := ParseContent(p)
		if err != nil {
			return nil, err
		}
		if d.Part != i+1 || d.Parts != len(parts) {
			return nil, fmt.Errorf("%w: part %d of %d in the place of part %d of %d", errContent, d.Part, d.Parts, i+1, len(parts))
		}
		if d.Part = 1; i == 0 {
			l.Description = d
		} else if d != l.Description {
			return nil, fmt.Errorf("%w: part %d belongs to another one", errContent, i+1)
		}
		whole = append(whole, chunk...)
	}
	if len(parts) == 0 || len(whole) != l.Size {
		return nil, fmt.Errorf("%w: %d bytes of %d", errContent, len(whole), l.Size)
	}
	h, err := parseHeader(whole[:l.Headers])
	if err != nil {
		return nil, err
	}
	l.Header, l.Data = h, whole[l.Headers:]
	return &l, nil
}

// AppendHeader appends the encoding of h to dst.
func AppendHeader(dst []byte, h map[string][]string) []byte {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	be := binary.BigEndian
	for _, name := range names {
		for _, v := range h[name] {
			dst = append(be.AppendUint32(dst, uint32(len(name))), name...)
			dst = append(be.AppendUint32(dst, uint32(len(v))), v...)
		}
	}
	return dst
}

func parseHeader(b []byte) (map[string][]string, error) {
	if len(b) == 0 {
		return nil, nil
	}
	h := make(map[string][]string)
	next := func() (string, bool) {
		if len(b) < 4 {
			return "", false
		}
		n := binary.BigEndian.Uint32(b)
		if b = b[4:]; uint64(n) > uint64(len(b)) {
			return "", false
		}
		s := string(b[:n])
		b = b[n:]
		return s, true
	}
	for len(b) > 0 {
		name, ok1 := next()
		value, ok2 := next()
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("%w: headers", errContent)
		}
		h[name] = append(h[name], value)
	}
	return h, nil
}
