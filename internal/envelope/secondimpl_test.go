package envelope_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"
)

// A second implementation of docs/envelope.md, written from that page alone and
// sharing no code with the package. Its types are those of the vector files.

type vmeta struct {
	Chain             string      `json:"chain"`
	Sequence          uint64      `json:"sequence,string"`
	Previous          uint64      `json:"previous,string"`
	PreviousOnSubject uint64      `json:"previous_on_subject,string"`
	Gap               uint64      `json:"gap,string"`
	Published         int64       `json:"published,string"`
	SealedSubject     string      `json:"sealed_subject"`
	OriginSubject     string      `json:"origin_subject"`
	Headers           [][2]string `json:"headers,omitempty"`
	Padding           int         `json:"padding"`
	Layered           bool        `json:"layered"`
}

type vauthority struct {
	Name       string `json:"name"`
	Commitment string `json:"commitment"`
}

type vcore struct {
	Scheme      int          `json:"scheme"`
	K           int          `json:"k"`
	N           int          `json:"n"`
	RecordID    string       `json:"record_id"`
	Created     int64        `json:"created,string"`
	Commitment  string       `json:"commitment"`
	Context     [][2]string  `json:"context"`
	Authorities []vauthority `json:"authorities"`
}

type vwrap struct {
	ManagedKey string `json:"managed_key"`
	Version    string `json:"version"`
	Bytes      string `json:"bytes"`
}

// failure is a class of section 5; "" is none.
type failure string

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// hkdf32 is RFC 5869 for one block of output.
func hkdf32(key, salt []byte, info ...[]byte) []byte {
	if len(salt) == 0 {
		salt = make([]byte, 32)
	}
	return mac(mac(salt, key), append(info, []byte{1})...)
}

func vSubkey(dek, salt, keyID []byte) []byte {
	return hkdf32(dek, salt, []byte("keyweir/v1/seal\x01"), keyID)
}

func vCommitment(dek []byte) []byte { return hkdf32(dek, nil, []byte("keyweir/v1/commit")) }

func vPartCommitment(part, recordID []byte, i int) []byte {
	return hkdf32(part, recordID, []byte("keyweir/v1/part"), []byte{byte(i)})
}

func vKeyID(core []byte) []byte {
	h := sha256.Sum256(append([]byte("keyweir/v1/key-id"), core...))
	return h[:]
}

func be(n int, v uint64) []byte { // n low bytes of v
	return binary.BigEndian.AppendUint64(nil, v)[8-n:]
}

// prefixed writes a length of n bytes and s.
func prefixed(n int, s string) []byte { return append(be(n, uint64(len(s))), s...) }

func vMetaBytes(m vmeta) []byte {
	common := 0
	for common < len(m.SealedSubject) && strings.HasSuffix(m.OriginSubject, m.SealedSubject[len(m.SealedSubject)-common-1:]) {
		common++
	}
	out := append([]byte{1}, unhex(m.Chain)...)
	for _, v := range []uint64{m.Sequence, m.Previous, m.PreviousOnSubject, m.Gap, uint64(m.Published)} {
		out = append(out, be(8, v)...)
	}
	out = append(out, prefixed(2, m.SealedSubject)...)
	out = append(out, byte(len(m.SealedSubject)-common))
	out = append(out, prefixed(1, m.OriginSubject[:len(m.OriginSubject)-common])...)
	out = append(out, be(2, uint64(len(m.Headers)))...)
	for _, h := range m.Headers {
		out = append(out, prefixed(2, h[0])...)
		out = append(out, prefixed(4, h[1])...)
	}
	out = append(out, be(2, uint64(m.Padding))...)
	return append(out, make([]byte, m.Padding)...)
}

// vPad returns the padding that brings meta and payload to a multiple of m.
func vPad(meta vmeta, payload []byte, m int) int {
	meta.Padding = 0
	return (m - (len(vMetaBytes(meta))+len(payload))%m) % m
}

func vCoreBytes(c vcore) []byte {
	out := []byte{1, byte(c.Scheme), byte(c.K), byte(c.N)}
	out = append(out, unhex(c.RecordID)...)
	out = append(out, be(8, uint64(c.Created))...)
	out = append(out, unhex(c.Commitment)...)
	out = append(out, byte(len(c.Context)))
	for _, p := range c.Context {
		out = append(out, prefixed(2, p[0])...)
		out = append(out, prefixed(2, p[1])...)
	}
	for _, a := range c.Authorities {
		out = append(out, prefixed(1, a.Name)...)
		out = append(out, unhex(a.Commitment)...)
	}
	return out
}

func vRecordBytes(c vcore, wraps []vwrap) []byte {
	out := prefixed(2, string(vCoreBytes(c)))
	out = append(out, byte(len(wraps)))
	for _, w := range wraps {
		out = append(out, prefixed(2, w.ManagedKey)...)
		out = append(out, prefixed(1, w.Version)...)
		out = append(out, prefixed(2, string(unhex(w.Bytes)))...)
	}
	return out
}

// vSealRaw seals any plaintext, canonical or not.
func vSealRaw(dek, record []byte, flags byte, salt, nonce, plaintext []byte) []byte {
	core := record[2 : 2+int(binary.BigEndian.Uint16(record))]
	id := vKeyID(core)
	out := []byte{'K', 'W', 1, 1, flags, 0}
	aad := []byte{'K', 'W', 1, 1, flags &^ 1, 0}
	if flags&1 == 0 {
		record = nil
	}
	out = append(out, be(2, uint64(len(record)))...)
	out = append(out, id...)
	out = append(out, salt...)
	out = append(out, record...)
	out = append(out, nonce...)
	return append(out, gcmSeal(vSubkey(dek, salt, id), nonce, aad, plaintext)...)
}

func vSeal(dek, record []byte, inline, random bool, salt, nonce []byte, m vmeta, payload []byte) []byte {
	var flags byte
	if inline {
		flags |= 1
	}
	if random {
		flags |= 2
	}
	if m.Layered {
		flags |= 4
	}
	return vSealRaw(dek, record, flags, salt, nonce, append(vMetaBytes(m), payload...))
}

// vreader takes fields off the front; a field that is not there makes it fail.
type vreader struct {
	rest []byte
	fail bool
}

func (r *vreader) bytes(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.fail, r.rest, n = true, nil, 0
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *vreader) number(n int) (v uint64) {
	for _, b := range r.bytes(uint64(n)) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (r *vreader) text(n int) string { return string(r.bytes(r.number(n))) }

func vReadRecord(b []byte) (c vcore, core []byte, wraps []vwrap, class failure) {
	if len(b) > 4096 {
		return c, nil, nil, "malformed"
	}
	r := &vreader{rest: b}
	core = r.bytes(r.number(2))
	if r.fail {
		return c, nil, nil, "malformed"
	}
	if c, class = vReadCore(core); class != "" {
		return c, nil, nil, class
	}
	if int(r.number(1)) != c.N {
		return c, nil, nil, "malformed"
	}
	for i := range c.N {
		w := vwrap{ManagedKey: r.text(2), Version: r.text(1), Bytes: hex.EncodeToString([]byte(r.text(2)))}
		if len(w.ManagedKey) < 1 || len(w.ManagedKey) > 2048 || len(w.Version) > 64 || len(w.Bytes) > 2*2048 ||
			(w.Bytes == "") != (c.Scheme == 2 && i < c.N-1) {
			return c, nil, nil, "malformed"
		}
		wraps = append(wraps, w)
	}
	if r.fail || len(r.rest) > 0 {
		return c, nil, nil, "malformed"
	}
	return c, core, wraps, ""
}

func vReadCore(b []byte) (c vcore, class failure) {
	r := &vreader{rest: b}
	if v := r.number(1); !r.fail && v != 1 {
		return c, "unsupported"
	}
	c = vcore{Scheme: int(r.number(1)), K: int(r.number(1)), N: int(r.number(1))}
	c.RecordID = hex.EncodeToString(r.bytes(16))
	c.Created = int64(r.number(8))
	c.Commitment = hex.EncodeToString(r.bytes(32))
	pairs := r.number(1)
	if pairs > 32 || c.N > 8 {
		return c, "malformed"
	}
	for range pairs {
		c.Context = append(c.Context, [2]string{r.text(2), r.text(2)})
	}
	for range c.N {
		c.Authorities = append(c.Authorities, vauthority{r.text(1), hex.EncodeToString(r.bytes(32))})
	}
	if r.fail || len(r.rest) > 0 {
		return c, "malformed"
	}
	if c.Scheme < 1 || c.Scheme > 5 {
		return c, "unsupported"
	}
	n, k := c.N, c.K
	ok := map[int]bool{1: n == 1 && k == 1, 2: n >= 2 && k == n, 3: n >= 2 && k == n, 4: k >= 2 && k <= n, 5: n >= 2 && k == 1}[c.Scheme]
	names := map[string]bool{}
	for _, a := range c.Authorities {
		ok = ok && len(a.Name) >= 1 && len(a.Name) <= 64 && utf8.ValidString(a.Name) && !names[a.Name]
		names[a.Name] = true
	}
	scope := false
	for i, p := range c.Context {
		ok = ok && len(p[0]) >= 1 && len(p[0]) <= 1024 && len(p[1]) <= 1024 && utf8.ValidString(p[0]+"\n"+p[1])
		ok = ok && (i == 0 || c.Context[i-1][0] < p[0])
		if p[0] == "keyweir-scope" {
			scope = p[1] != ""
		} else if strings.HasPrefix(p[0], "keyweir-") {
			ok = false
		}
	}
	if !ok || !scope {
		return c, "malformed"
	}
	return c, ""
}

// vWrapContext returns the pairs that wrap i, from 1, is bound to.
func vWrapContext(c vcore, i int) map[string]string {
	out := map[string]string{}
	for _, p := range c.Context {
		out[p[0]] = p[1]
	}
	var names []byte
	for _, a := range c.Authorities {
		names = append(names, prefixed(1, a.Name)...)
	}
	sum := sha256.Sum256(names)
	out["keyweir-use"] = "data"
	out["keyweir-record"] = c.RecordID
	out["keyweir-scheme"] = map[int]string{1: "single", 2: "chain", 3: "split", 4: "threshold", 5: "any"}[c.Scheme]
	out["keyweir-part"] = fmt.Sprintf("%d/%d", i, c.N)
	out["keyweir-authorities"] = hex.EncodeToString(sum[:])
	return out
}

// vOpen does steps 1 to 5 of section 6 with a known key and record.
func vOpen(dek, known, b []byte) (m vmeta, payload []byte, class failure) {
	knownCore, core, _, class := vReadRecord(known)
	if class != "" {
		return m, nil, class
	}
	if !bytes.Equal(vCommitment(dek), unhex(knownCore.Commitment)) {
		return m, nil, "wrong-key"
	}
	switch {
	case len(b) < 2 || b[0] != 0x4b || b[1] != 0x57:
		return m, nil, "not-envelope"
	case len(b) < 4:
		return m, nil, "malformed"
	case b[2] != 1 || b[3] != 1:
		return m, nil, "unsupported"
	case len(b) < 150 || len(b) > 1<<30 || b[4] > 7 || b[5] != 0:
		return m, nil, "malformed"
	}
	flags, size := b[4], int(b[6])<<8|int(b[7])
	if (size > 0) != (flags&1 == 1) || size > 4096 || len(b) < 150+size {
		return m, nil, "malformed"
	}
	keyID, salt, record, sealed := b[8:40], b[40:56], b[56:56+size], b[56+size:]
	if size > 0 && !bytes.Equal(record, known) {
		_, inlineCore, _, class := vReadRecord(record)
		switch {
		case class != "":
			return m, nil, class
		case !bytes.Equal(inlineCore, core) || !bytes.Equal(vKeyID(inlineCore), keyID):
			return m, nil, "tampered"
		}
		return m, nil, "other-wraps"
	}
	if !bytes.Equal(vKeyID(core), keyID) {
		return m, nil, "tampered"
	}
	aad := []byte{0x4b, 0x57, 1, 1, flags & 6, 0}
	plain, err := gcmOpen(vSubkey(dek, salt, keyID), sealed[:12], aad, sealed[12:])
	if err != nil {
		return m, nil, "tampered"
	}
	if m, payload, err = vReadMeta(plain); err != nil {
		return vmeta{}, nil, "tampered"
	}
	m.Layered = flags&4 != 0
	return m, payload, ""
}

func vReadMeta(b []byte) (m vmeta, payload []byte, err error) {
	r := &vreader{rest: b}
	if r.number(1) != 1 {
		return m, nil, fmt.Errorf("meta version")
	}
	m.Chain = hex.EncodeToString(r.bytes(16))
	m.Sequence, m.Previous, m.PreviousOnSubject = r.number(8), r.number(8), r.number(8)
	m.Gap, m.Published = r.number(8), int64(r.number(8))
	m.SealedSubject = r.text(2)
	strip := int(r.number(1))
	add := r.text(1)
	if r.fail || strip > len(m.SealedSubject) {
		return m, nil, fmt.Errorf("subjects")
	}
	m.OriginSubject = add + m.SealedSubject[strip:]
	for range r.number(2) {
		m.Headers = append(m.Headers, [2]string{r.text(2), r.text(4)})
		if r.fail {
			return m, nil, fmt.Errorf("headers")
		}
	}
	m.Padding = int(r.number(2))
	padding := r.bytes(uint64(m.Padding))
	size := 0
	for _, h := range m.Headers {
		size += 6 + len(h[0]) + len(h[1])
		if h[0] == "" {
			return m, nil, fmt.Errorf("empty header name")
		}
	}
	sorted := sort.SliceIsSorted(m.Headers, func(i, j int) bool { return m.Headers[i][0] < m.Headers[j][0] })
	if r.fail || len(m.Headers) > 64 || size > 32768 || !sorted || m.Padding > 4095 || len(bytes.Trim(padding, "\x00")) > 0 ||
		len(m.SealedSubject) < 1 || len(m.SealedSubject) > 4096 || len(m.OriginSubject) < 1 || len(m.OriginSubject) > 4096 {
		return m, nil, fmt.Errorf("limits")
	}
	// One encoding only: writing it again gives what was read.
	if !bytes.Equal(vMetaBytes(m), b[:len(b)-len(r.rest)]) {
		return m, nil, fmt.Errorf("not canonical")
	}
	return m, r.rest, nil
}
