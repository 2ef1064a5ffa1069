package envelope_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seq returns n bytes that count up from first.
func seq(first byte, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = first + byte(i)
	}
	return out
}

var (
	vKey  = seq(0, 32)
	vKey2 = seq(0x80, 32)
	vSalt = seq(0x20, 16)
)

// vRecord describes key under a scheme, with fixed bytes everywhere.
func vRecord(key []byte, scheme, k, n int, scope string) (vcore, []vwrap) {
	c := vcore{
		Scheme: scheme, K: k, N: n, RecordID: hex.EncodeToString(seq(0x10, 16)), Created: 1517363399,
		Commitment: hex.EncodeToString(vCommitment(key)),
		Context:    [][2]string{{"keyweir-scope", scope}, {"stage", "production"}},
	}
	var wraps []vwrap
	for i := range n {
		part := key
		if scheme == 3 || scheme == 4 {
			part = seq(byte(0x40+i), 32)
		}
		c.Authorities = append(c.Authorities, vauthority{
			[]string{"aws-eu", "bao-dc1", "hsm", "aws-us", "p5", "p6", "p7", "p8"}[i],
			hex.EncodeToString(vPartCommitment(part, seq(0x10, 16), i+1)),
		})
		w := vwrap{ManagedKey: fmt.Sprintf("arn:aws:kms:eu-central-1:111122223333:key/%d", i+1), Version: fmt.Sprint(i), Bytes: hex.EncodeToString(seq(byte(0xa0+i), 48))}
		if i == 0 {
			w.Version = ""
		}
		if scheme == 2 && i < n-1 {
			w.Bytes = ""
		}
		wraps = append(wraps, w)
	}
	return c, wraps
}

func vSingle(key []byte) []byte { return vRecordBytes(vRecord(key, 1, 1, 1, "tenant/acme")) }

func baseMeta() vmeta {
	return vmeta{
		Chain: hex.EncodeToString(seq(0x30, 16)), Sequence: 42, Previous: 41, PreviousOnSubject: 17, Published: 1517363399650000000,
		SealedSubject: "sealed.orders.eu.created", OriginSubject: "orders.eu.created",
	}
}

func counterNonce(n uint64) []byte { return append(make([]byte, 4), be(8, n)...) }

// okCases are envelopes that open, over all variants.
func okCases() []vectorCase {
	var out []vectorCase
	record := vSingle(vKey)
	add := func(name string, inline, random bool, nonce, payload []byte, change func(*vmeta)) {
		m := baseMeta()
		if change != nil {
			change(&m)
		}
		p := hex.EncodeToString(payload)
		sealed := vSeal(vKey, record, inline, random, vSalt, nonce, m, payload)
		out = append(out, vectorCase{
			Name: name, Key: hex.EncodeToString(vKey), Record: hex.EncodeToString(record),
			Envelope: hex.EncodeToString(sealed), Expect: "ok", Meta: &m, Payload: &p,
		})
	}
	text := []byte(`{"order":1}`)
	drawn := seq(0xe0, 12)
	add("reference, counter nonce", false, false, counterNonce(0), text, nil)
	add("inline, counter nonce", true, false, counterNonce(1), text, nil)
	add("reference, random nonce", false, true, drawn, text, nil)
	add("inline, random nonce", true, true, drawn, text, nil)
	add("empty payload", false, false, counterNonce(2), nil, nil)
	add("empty payload, inline, random nonce", true, true, drawn, nil, nil)
	add("last counter nonce", false, false, counterNonce(1<<32-1), text, nil)
	add("nonce of ones", false, true, bytes.Repeat([]byte{0xff}, 12), text, nil)
	add("padded to 128", false, false, counterNonce(3), text, func(m *vmeta) { m.Padding = vPad(*m, text, 128) })
	add("padded to 128, inline, random nonce", true, true, drawn, text, func(m *vmeta) { m.Padding = vPad(*m, text, 128) })
	add("longest padding", false, false, counterNonce(4), nil, func(m *vmeta) { m.Padding = 4095 })
	add("headers", false, false, counterNonce(5), text, func(m *vmeta) {
		m.Headers = [][2]string{{"Content-Type", "application/json"}, {"Nats-Msg-Id", "a-1"}, {"traceparent", "00-1-2-01"}}
	})
	add("headers, inline, padded", true, false, counterNonce(6), text, func(m *vmeta) {
		m.Headers = [][2]string{{"A", "1"}, {"B", "2"}}
		m.Padding = vPad(*m, text, 64)
	})
	add("equal header names keep their order", false, false, counterNonce(7), text, func(m *vmeta) {
		m.Headers = [][2]string{{"A", "z"}, {"A", "a"}, {"A", "z"}, {"a", ""}}
	})
	add("empty and non-ASCII header values", false, true, drawn, text, func(m *vmeta) { m.Headers = [][2]string{{"X", ""}, {"Ä", "ß\r\n"}} })
	add("64 headers", false, false, counterNonce(8), text, func(m *vmeta) {
		for i := range 64 {
			m.Headers = append(m.Headers, [2]string{fmt.Sprintf("H%02d", i), "v"})
		}
	})
	inner := vSeal(vKey2, vSingle(vKey2), false, false, seq(0x50, 16), counterNonce(0), baseMeta(), text)
	add("layered", false, false, counterNonce(9), inner, func(m *vmeta) { m.Layered = true })
	add("layered, inline, random nonce", true, true, drawn, inner, func(m *vmeta) { m.Layered = true })
	add("origin equals sealed subject", false, false, counterNonce(10), text, func(m *vmeta) { m.SealedSubject = m.OriginSubject })
	add("origin longer than sealed subject", false, false, counterNonce(11), text, func(m *vmeta) { m.SealedSubject = "created" })
	add("strip and add", false, false, counterNonce(12), text, func(m *vmeta) { m.OriginSubject, m.SealedSubject = "plain.a.b", "sealed.a.b" })
	add("subjects with nothing in common", false, false, counterNonce(13), text, func(m *vmeta) { m.OriginSubject, m.SealedSubject = "abc", "xyz" })
	add("subjects of one byte", false, false, counterNonce(14), nil, func(m *vmeta) { m.OriginSubject, m.SealedSubject = "a", "a" })
	add("subjects of 4096 bytes", false, false, counterNonce(15), text, func(m *vmeta) {
		m.OriginSubject = strings.Repeat("o", 4096)
		m.SealedSubject = strings.Repeat("s", 255) + strings.Repeat("o", 4096-255)
	})
	add("strip and add of 255 bytes", false, false, counterNonce(16), text, func(m *vmeta) {
		m.OriginSubject, m.SealedSubject = strings.Repeat("o", 255)+".t", strings.Repeat("s", 255)+".t"
	})
	add("numbers at their ends", false, false, counterNonce(17), text, func(m *vmeta) {
		m.Chain = strings.Repeat("ff", 16)
		m.Sequence, m.Previous, m.PreviousOnSubject, m.Gap, m.Published = 1<<64-1, 1<<64-1, 1<<64-1, 1<<64-1, -1<<63
	})
	add("payload of 1 KiB, first of its chain", true, false, counterNonce(18), seq(0, 1024), func(m *vmeta) { m.Sequence, m.Previous, m.PreviousOnSubject = 1, 0, 0 })
	for _, s := range [][3]int{{2, 2, 2}, {3, 3, 3}, {4, 2, 3}, {5, 1, 2}} {
		record = vRecordBytes(vRecord(vKey, s[0], s[1], s[2], "tenant/acme"))
		add(fmt.Sprintf("inline record of scheme %d", s[0]), true, false, counterNonce(0), text, nil)
	}
	return out
}

// badCases are envelopes that do not open.
func badCases() []vectorCase {
	record := vSingle(vKey)
	core, wraps := vRecord(vKey, 1, 1, 1, "tenant/acme")
	text := []byte("payload")
	reference := vSeal(vKey, record, false, false, vSalt, counterNonce(0), baseMeta(), text)
	inline := vSeal(vKey, record, true, false, vSalt, counterNonce(0), baseMeta(), text)
	var out []vectorCase
	add := func(expect failure, name string, sealed []byte) {
		out = append(out, vectorCase{
			Name: name, Key: hex.EncodeToString(vKey), Record: hex.EncodeToString(record), Envelope: hex.EncodeToString(sealed), Expect: expect,
		})
	}
	set := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	flip := func(b []byte, at int) []byte { return set(b, at, b[at]^1) }
	inlineOf := func(record []byte) []byte { // reference with a record put in front
		b := append(append([]byte{}, reference[:56]...), record...)
		b[4] |= 1
		copy(b[6:], be(2, uint64(len(record))))
		return append(b, reference[56:]...)
	}

	add("not-envelope", "nothing", nil)
	add("not-envelope", "one byte", []byte("K"))
	add("not-envelope", "plain JSON", []byte(`{"order":1}`))
	add("not-envelope", "lower-case magic", set(reference, 0, 'k', 'w'))
	add("malformed", "magic alone", reference[:2])
	add("malformed", "magic and version", reference[:3])
	add("unsupported", "version 2, cut short", []byte("KW\x02\x01"))
	add("unsupported", "version 0", set(reference, 2, 0))
	add("unsupported", "version 2", set(reference, 2, 2))
	add("unsupported", "suite 0", set(reference, 3, 0))
	add("unsupported", "suite 2", set(reference, 3, 2))
	add("malformed", "149 bytes", reference[:149])
	add("tampered", "cut to 150 bytes", reference[:150])
	for bit := 3; bit < 8; bit++ {
		add("malformed", fmt.Sprintf("flag bit %d", bit), set(reference, 4, 1<<bit))
	}
	add("malformed", "reserved byte", set(reference, 5, 1))
	add("malformed", "record flag without record", set(reference, 4, 1))
	add("malformed", "record length without record flag", set(reference, 6, 0, 1))
	add("malformed", "inline record without its flag", set(inline, 4, 0))
	add("malformed", "record of 4097 bytes", inlineOf(make([]byte, 4097)))
	add("malformed", "record beyond the end", set(inline, 6, 0x0f, 0xff))
	add("malformed", "inline record one byte shorter", set(inline, 6, byte((len(record)-1)>>8), byte(len(record)-1)))
	add("malformed", "inline record with a trailing byte", inlineOf(append(bytes.Clone(record), 0)))
	add("malformed", "inline record of one byte", inlineOf([]byte{0}))
	add("unsupported", "inline record of core version 2", inlineOf(set(record, 2, 2)))
	add("unsupported", "inline record of scheme 6", inlineOf(set(record, 3, 6)))
	add("tampered", "inline record of another key", inlineOf(vSingle(vKey2)))
	add("tampered", "inline record of another scope", inlineOf(vRecordBytes(vRecord(vKey, 1, 1, 1, "tenant/evil"))))
	add("tampered", "inline record, commitment changed", inlineOf(flip(record, 2+4+16+8)))
	other := append([]vwrap{}, wraps...)
	other[0].Bytes = hex.EncodeToString(seq(0xb0, 48))
	add("other-wraps", "inline record with other wrap bytes", inlineOf(vRecordBytes(core, other)))
	other[0] = vwrap{ManagedKey: "alias/evil", Version: wraps[0].Version, Bytes: wraps[0].Bytes}
	add("other-wraps", "inline record with another managed key", inlineOf(vRecordBytes(core, other)))
	add("tampered", "key ID changed", flip(reference, 8))
	add("tampered", "session salt changed", flip(reference, 55))
	add("tampered", "nonce changed", flip(reference, 67))
	add("tampered", "meta changed", flip(reference, 68))
	add("tampered", "payload changed", flip(reference, len(reference)-17))
	add("tampered", "tag changed", flip(reference, len(reference)-1))
	add("tampered", "nonce flag set", set(reference, 4, 2))
	add("tampered", "layered flag set", set(reference, 4, 4))
	add("tampered", "one byte cut off", reference[:len(reference)-1])
	add("tampered", "one byte added", append(bytes.Clone(reference), 0))
	add("tampered", "sealed with another data key", vSeal(vKey2, record, false, false, vSalt, counterNonce(0), baseMeta(), text))
	add("tampered", "envelope of another key", vSeal(vKey2, vSingle(vKey2), false, false, vSalt, counterNonce(0), baseMeta(), text))
	out = append(out, vectorCase{
		Name: "data key that the record does not commit to", Key: hex.EncodeToString(vKey2), Record: hex.EncodeToString(record),
		Envelope: hex.EncodeToString(reference), Expect: "wrong-key",
	})

	// Sealed with the right key, broken inside.
	good := vMetaBytes(baseMeta())
	sealRaw := func(name string, plaintext []byte) {
		add("tampered", "sealed: "+name, vSealRaw(vKey, record, 0, vSalt, counterNonce(0), plaintext))
	}
	changed := func(f func(*vmeta)) []byte {
		m := baseMeta()
		f(&m)
		return append(vMetaBytes(m), text...)
	}
	subject := len(baseMeta().SealedSubject)
	sealRaw("meta version 0", append(set(good, 0, 0), text...))
	sealRaw("meta version 2", append(set(good, 0, 2), text...))
	sealRaw("meta cut short", append([]byte{1}, make([]byte, 65)...))
	sealRaw("subject length beyond the end", append(set(good, 57, 0xff, 0xff), text...))
	sealRaw("strip beyond the sealed subject", append(set(good, 59+subject, byte(subject+1)), text...))
	sealRaw("no origin subject", append(set(good, 59+subject, byte(subject)), text...))
	sealRaw("no sealed subject", append(append(append(bytes.Clone(good[:57]), 0, 0, 0, 1, 'a'), good[59+subject+2:]...), text...))
	sealRaw("common suffix not the longest", append(append(append(append(bytes.Clone(good[:59+subject]), 8), prefixed(1, "o")...), good[59+subject+2:]...), text...))
	sealRaw("sealed subject of 4097 bytes", changed(func(m *vmeta) {
		m.OriginSubject = strings.Repeat("o", 4000)
		m.SealedSubject = strings.Repeat("s", 97) + m.OriginSubject
	}))
	sealRaw("origin subject of 4097 bytes", changed(func(m *vmeta) {
		m.SealedSubject = strings.Repeat("s", 4000)
		m.OriginSubject = strings.Repeat("o", 97) + m.SealedSubject
	}))
	sealRaw("headers out of order", changed(func(m *vmeta) { m.Headers = [][2]string{{"B", ""}, {"A", ""}} }))
	sealRaw("empty header name", changed(func(m *vmeta) { m.Headers = [][2]string{{"", "v"}} }))
	sealRaw("65 headers", changed(func(m *vmeta) {
		m.Headers = make([][2]string, 65)
		for i := range m.Headers {
			m.Headers[i][0] = "h"
		}
	}))
	sealRaw("headers of 32769 bytes", changed(func(m *vmeta) { m.Headers = [][2]string{{"h", strings.Repeat("v", 32769-7)}} }))
	sealRaw("header value beyond the end", append(append(set(good, len(good)-4, 0, 1), 0, 1, 'h', 0xff, 0xff, 0xff, 0xff), text...))
	sealRaw("padding not zero", append(append(set(good, len(good)-2, 0, 2), 0, 1), text...))
	sealRaw("padding beyond the end", append(set(good, len(good)-2, 0, byte(len(text)+1)), text...))
	sealRaw("padding of 4096 bytes", changed(func(m *vmeta) { m.Padding = 4096 }))
	return out
}

func recordCases() []vectorCase {
	var out []vectorCase
	ok := func(name string, c vcore, wraps []vwrap) {
		raw := vRecordBytes(c, wraps)
		v := vectorCase{Name: name, Record: hex.EncodeToString(raw), Expect: "ok", KeyID: hex.EncodeToString(vKeyID(vCoreBytes(c))), Core: &c, Wraps: wraps}
		for i := range c.N {
			v.Contexts = append(v.Contexts, vWrapContext(c, i+1))
		}
		out = append(out, v)
	}
	bad := func(expect failure, name string, raw []byte) {
		out = append(out, vectorCase{Name: name, Record: hex.EncodeToString(raw), Expect: expect})
	}
	changed := func(scheme, k, n int, f func(*vcore, []vwrap)) []byte {
		c, wraps := vRecord(vKey, scheme, k, n, "tenant/acme")
		f(&c, wraps)
		return vRecordBytes(c, wraps)
	}
	for _, s := range [][3]int{{1, 1, 1}, {2, 2, 2}, {2, 8, 8}, {3, 2, 2}, {3, 3, 3}, {4, 2, 2}, {4, 5, 8}, {5, 1, 2}} {
		c, wraps := vRecord(vKey, s[0], s[1], s[2], "tenant/acme")
		ok(fmt.Sprintf("scheme %d, %d of %d", s[0], s[1], s[2]), c, wraps)
	}
	c, wraps := vRecord(vKey, 1, 1, 1, strings.Repeat("s", 1024))
	c.Created = -1
	c.Authorities[0].Name = strings.Repeat("n", 64)
	c.Context = [][2]string{{"a", ""}, {"keyweir", "no reserved name"}, c.Context[0], {strings.Repeat("z", 1024), "ü"}}
	wraps[0] = vwrap{strings.Repeat("m", 1200), strings.Repeat("v", 64), "00"}
	ok("strings at their ends", c, wraps)

	good := changed(1, 1, 1, func(*vcore, []vwrap) {})
	set := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	bad("malformed", "nothing", nil)
	bad("malformed", "core cut short", good[:40])
	bad("malformed", "empty core", []byte{0, 0, 0})
	bad("malformed", "no wrap count", good[:2+int(good[0])<<8+int(good[1])])
	bad("malformed", "one byte cut off", good[:len(good)-1])
	bad("malformed", "trailing byte", append(bytes.Clone(good), 0))
	bad("malformed", "trailing byte in the core", append(append(be(2, uint64(good[0])<<8+uint64(good[1])+1), good[2:2+int(good[0])<<8+int(good[1])]...),
		append([]byte{0}, good[2+int(good[0])<<8+int(good[1]):]...)...))
	bad("unsupported", "core version 0", set(2, 0))
	bad("unsupported", "core version 2", set(2, 2))
	bad("unsupported", "scheme 0", set(3, 0))
	bad("unsupported", "scheme 6", set(3, 6))
	for _, s := range [][3]int{{1, 1, 2}, {1, 0, 1}, {2, 1, 2}, {2, 1, 1}, {3, 2, 3}, {4, 1, 2}, {4, 3, 2}, {5, 2, 2}, {5, 1, 1}} {
		bad("malformed", fmt.Sprintf("scheme %d with %d of %d", s[0], s[1], s[2]), changed(s[0], s[1], s[2], func(*vcore, []vwrap) {}))
	}
	bad("malformed", "9 authorities", changed(5, 1, 8, func(c *vcore, _ []vwrap) {
		c.N = 9
		c.Authorities = append(c.Authorities, vauthority{"p9", c.Commitment})
	}))
	bad("malformed", "authority named twice", changed(5, 1, 2, func(c *vcore, _ []vwrap) { c.Authorities[1].Name = c.Authorities[0].Name }))
	bad("malformed", "authority without a name", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Authorities[0].Name = "" }))
	bad("malformed", "authority name of 65 bytes", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Authorities[0].Name = strings.Repeat("n", 65) }))
	bad("malformed", "authority name not UTF-8", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Authorities[0].Name = "\xff" }))
	bad("malformed", "no scope", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context = c.Context[1:] }))
	bad("malformed", "no context", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context = nil }))
	bad("malformed", "empty scope", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context[0][1] = "" }))
	bad("malformed", "scope not UTF-8", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context[0][1] = "a\xc3" }))
	bad("malformed", "context name not UTF-8", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context[1][0] = "z\xff" }))
	bad("malformed", "context out of order", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context[0], c.Context[1] = c.Context[1], c.Context[0] }))
	bad("malformed", "context name twice", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context = append(c.Context, c.Context[1]) }))
	bad("malformed", "context name empty", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context = append([][2]string{{"", ""}}, c.Context...) }))
	bad("malformed", "context name reserved", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context = append([][2]string{{"keyweir-part", "1/1"}}, c.Context...) }))
	bad("malformed", "context value of 1025 bytes", changed(1, 1, 1, func(c *vcore, _ []vwrap) { c.Context[1][1] = strings.Repeat("v", 1025) }))
	bad("malformed", "33 context pairs", changed(1, 1, 1, func(c *vcore, _ []vwrap) {
		for i := range 31 {
			c.Context = append(c.Context, [2]string{fmt.Sprintf("x%02d", i), ""})
		}
	}))
	bad("malformed", "managed key without ID", changed(1, 1, 1, func(_ *vcore, w []vwrap) { w[0].ManagedKey = "" }))
	bad("malformed", "managed key version of 65 bytes", changed(1, 1, 1, func(_ *vcore, w []vwrap) { w[0].Version = strings.Repeat("v", 65) }))
	bad("malformed", "empty wrap", changed(1, 1, 1, func(_ *vcore, w []vwrap) { w[0].Bytes = "" }))
	bad("malformed", "wrap of 2049 bytes", changed(1, 1, 1, func(_ *vcore, w []vwrap) { w[0].Bytes = strings.Repeat("00", 2049) }))
	bad("malformed", "chain whose first wrap is not empty", changed(2, 2, 2, func(_ *vcore, w []vwrap) { w[0].Bytes = "00" }))
	bad("malformed", "chain whose last wrap is empty", changed(2, 2, 2, func(_ *vcore, w []vwrap) { w[1].Bytes = "" }))
	bad("malformed", "record of 4097 bytes", changed(5, 1, 3, func(c *vcore, w []vwrap) {
		w[0].Bytes, w[1].Bytes, w[2].Bytes = strings.Repeat("00", 1500), strings.Repeat("00", 1500), "00"
		w[2].Bytes = strings.Repeat("00", 1+4097-len(vRecordBytes(*c, w)))
	}))
	return out
}

func deriveCases() []vectorCase {
	var out []vectorCase
	for i, key := range [][]byte{vKey, vKey2, bytes.Repeat([]byte{0xff}, 32)} {
		salt, id, rid := seq(byte(i), 16), seq(byte(0x60+i), 32), seq(byte(0x90+i), 16)
		out = append(out, vectorCase{
			Name: fmt.Sprint("key ", i+1), Key: hex.EncodeToString(key), Salt: hex.EncodeToString(salt), KeyID: hex.EncodeToString(id),
			RecordID: hex.EncodeToString(rid), Part: i + 1, Subkey: hex.EncodeToString(vSubkey(key, salt, id)),
			Commitment: hex.EncodeToString(vCommitment(key)), PartCommitment: hex.EncodeToString(vPartCommitment(key, rid, i+1)),
		})
	}
	return out
}

func vectorFiles() map[string]vectorFile {
	return map[string]vectorFile{
		"open.json":       {1, "envelope", "envelopes that open", okCases()},
		"reject.json":     {1, "envelope", "envelopes that do not open", badCases()},
		"record.json":     {1, "record", "key records", recordCases()},
		"derive.json":     {1, "derive", "derivations of suite 1", deriveCases()},
		"salamander.json": {1, "envelope", "one ciphertext and tag that AES-GCM opens under two keys; at most the key that the record commits to may open it", salamanderCases()},
	}
}

func encodeVectors(f vectorFile) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(f); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func writeVectors(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(vectorDir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, f vectorFile) {
		if err := os.WriteFile(filepath.Join(vectorDir, name), encodeVectors(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, f := range vectorFiles() {
		write(name, f)
	}
	if _, err := os.Stat(filepath.Join(vectorDir, frozenFile)); os.IsNotExist(err) {
		write(frozenFile, vectorFile{1, "envelope", "sealed by version 1; never regenerated, must open for ever", okCases()})
	}
}

// TestVectorsAreFresh keeps the committed files and their generator together.
func TestVectorsAreFresh(t *testing.T) {
	for name, f := range vectorFiles() {
		got, err := os.ReadFile(filepath.Join(vectorDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(encodeVectors(f)), string(got)); diff != "" {
			t.Errorf("%s is not what the generator writes (go test -run TestVectors -update):\n%.2000s", name, diff)
		}
	}
	if _, err := os.Stat(filepath.Join(vectorDir, frozenFile)); err != nil {
		t.Errorf("the frozen file is gone: %v", err)
	}
}
