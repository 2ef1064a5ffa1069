package envelope_test

import (
	"bytes"
	"crypto/fips140"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/envelope"
)

func TestSealOpen(t *testing.T) {
	for _, v := range samples(t) {
		before := bytes.Clone(v.sealed)
		e, err := envelope.Parse(v.sealed)
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		if again := e.Append(nil); !bytes.Equal(again, v.sealed) {
			t.Errorf("%s: Append(Parse(b)) is not b", v.name)
		}
		if err := e.CheckRecord(v.record); err != nil {
			t.Errorf("%s: CheckRecord = %v", v.name, err)
		}
		o, err := v.reader.Open([]byte("prefix"), &e)
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		if diff := cmp.Diff(v.meta, o.Meta.Meta()); diff != "" {
			t.Errorf("%s: meta (-want +got):\n%s", v.name, diff)
		}
		if !bytes.Equal(o.Payload, v.text) {
			t.Errorf("%s: payload %q, want %q", v.name, o.Payload, v.text)
		}
		if !o.Meta.SealedTo(v.meta.SealedSubject) || o.Meta.SealedTo(v.meta.OriginSubject) || o.Meta.Layered() != v.meta.Layered {
			t.Errorf("%s: views of the meta disagree with it", v.name)
		}
		if padded := len(e.Sealed) - envelope.NonceSize - envelope.TagSize; strings.Contains(v.name, "padded") && padded%128 != 0 {
			t.Errorf("%s: %d sealed bytes", v.name, padded)
		}
		if !bytes.Equal(before, v.sealed) {
			t.Errorf("%s: Open changed its input", v.name)
		}
		// What the package seals, the second implementation opens.
		raw, err := v.record.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		m, payload, class := vOpen(envelope.ExposeDataKey(v.key), raw, v.sealed)
		if class != "" {
			t.Errorf("%s: second implementation: %s", v.name, class)
		}
		if diff := cmp.Diff(toMeta(&o), m); diff != "" || !bytes.Equal(payload, v.text) {
			t.Errorf("%s: second implementation: payload %q, meta (-package +second):\n%s", v.name, payload, diff)
		}
	}
}

// TestSealMatchesSecond seals the golden cases with the package and compares
// every byte with what the second implementation made of them.
func TestSealMatchesSecond(t *testing.T) {
	if fips140.Enabled() {
		t.Skip("FIPS mode forces random nonces: no two seals are equal; TestVectors opens the same cases")
	}
	matched := 0
	for _, c := range okCases() {
		want := unhex(c.Envelope)
		e, err := envelope.Parse(want)
		if err != nil {
			t.Fatal(err)
		}
		if e.Flags&envelope.FlagRandomNonce != 0 {
			continue
		}
		key, record := unhex(c.Key), unhex(c.Record)
		g, err := envelope.GrantFromParts(record, e.Salt, vSubkey(key, e.Salt[:], e.KeyID[:]))
		if err != nil {
			t.Fatal(err)
		}
		text := unhex(*c.Payload)
		cfg := envelope.SessionConfig{Record: envelope.RecordReference}
		if e.Record != nil {
			cfg.Record = envelope.RecordInline
		}
		if c.Meta.Padding > 0 { // a multiple that gives this padding: the padded size itself
			bare := *c.Meta
			bare.Padding = 0
			cfg.PadTo = len(vMetaBytes(bare)) + len(text) + c.Meta.Padding
			if cfg.PadTo > envelope.MaxPadTo {
				continue // longest padding: comes from no session of this size
			}
		}
		s, err := g.Session(cfg)
		if err != nil {
			t.Fatal(err)
		}
		counter := e.Sealed[envelope.NonceSize-8 : envelope.NonceSize]
		s.Advance(toBlock(counter).hi, 0)
		if got := seal(t, s, fromMeta(*c.Meta), text); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", c.Name, got, want)
		}
		matched++
	}
	if matched < 20 {
		t.Errorf("compared %d envelopes, want at least 20", matched)
	}
}

func TestSealAppends(t *testing.T) {
	key, record := newKey(t)
	for _, random := range []bool{false, true} {
		s := newSession(t, key, record, envelope.SessionConfig{Record: envelope.RecordInline, RandomNonce: random, PadTo: 64})
		r := newReader(t, key, record, 0)
		m := benchMeta
		size, err := s.SealedSize(&m, 7)
		if err != nil {
			t.Fatal(err)
		}
		for free := range size + 2 { // growing, and in place with dirty bytes behind
			dst := append(make([]byte, 0, 6+free), "prefix"...)
			for i := range dst[6:cap(dst)] {
				dst[6 : 6+free][i] = 0xaa
			}
			out, err := s.Seal(dst, &m, []byte("payload"))
			if err != nil {
				t.Fatal(err)
			}
			if string(out[:6]) != "prefix" || len(out)-6 > size {
				t.Fatalf("Seal wrote %d bytes after %q, SealedSize says %d", len(out)-6, out[:6], size)
			}
			if fits := free >= len(out)-6; fits != (&out[0] == &dst[0]) {
				t.Fatalf("room for %d of %d bytes: in place is %v", free, len(out)-6, !fits)
			}
			o, err := openWith(r, record, out[6:])
			if err != nil || string(o.Payload) != "payload" {
				t.Fatalf("Open after Seal with room for %d bytes: %v", free, err)
			}
		}
	}
}

func TestOverlapIsRefused(t *testing.T) {
	key, record := newKey(t)
	s := newSession(t, key, record, envelope.SessionConfig{Record: envelope.RecordInline})
	r := newReader(t, key, record, 0)
	m := benchMeta
	buf := make([]byte, 4096)
	copy(buf[100:], "payload")
	want := bytes.Clone(buf)
	messages, _ := s.Sealed()
	if out, err := s.Seal(buf[:0], &m, buf[100:107]); !errors.Is(err, envelope.ErrInvalid) || out != nil || !bytes.Equal(buf, want) {
		t.Errorf("Seal over its payload = %d bytes, %v; buffer changed: %v", len(out), err, !bytes.Equal(buf, want))
	}
	if after, _ := s.Sealed(); after != messages {
		t.Error("a refused Seal spent a message")
	}
	if _, err := s.Seal(buf[:0], &m, buf[4000:4007]); err != nil {
		t.Errorf("Seal in front of its payload, with room between: %v", err)
	}

	sealed := seal(t, s, &m, []byte("payload"))
	want = bytes.Clone(sealed)
	e, err := envelope.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	for name, dst := range map[string][]byte{"sealed": e.Sealed[:0], "nonce skipped": e.Sealed[12:12], "start": sealed[:0], "last byte": sealed[len(sealed)-1 : len(sealed)-1]} {
		_, err := r.Open(dst, &e)
		if name == "last byte" { // no room there: Open allocates
			if err != nil {
				t.Errorf("Open(%s): %v", name, err)
			}
		} else if !errors.Is(err, envelope.ErrInvalid) {
			t.Errorf("Open(%s) = %v, want ErrInvalid", name, err)
		}
		if !bytes.Equal(sealed, want) {
			t.Fatalf("Open(%s) changed the envelope", name)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	key, record := newKey(t)
	raw, err := record.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newReader(t, key, record, 0)
	for name, cfg := range map[string]envelope.SessionConfig{
		"counter":          {},
		"random":           {RandomNonce: true},
		"padded":           {PadTo: 128},
		"inline":           {Record: envelope.RecordInline},
		"random and all":   {RandomNonce: true, PadTo: 128, Record: envelope.RecordInline},
		"reference, odd m": {PadTo: 3, Record: envelope.RecordReference},
	} {
		s := newSession(t, key, record, cfg)
		m := benchMeta
		m.Headers = []envelope.Header{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}
		payload := make([]byte, 1000)
		buf, out := make([]byte, 0, 4096+len(raw)), make([]byte, 0, 4096)
		var sealed []byte
		if n := testing.AllocsPerRun(100, func() {
			if sealed, err = s.Seal(buf, &m, payload); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: Seal allocates %v times", name, n)
		}
		open := func() {
			e, err := envelope.Parse(sealed)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.CheckRecord(record); err != nil {
				t.Fatal(err)
			}
			o, err := r.Open(out, &e)
			if err != nil {
				t.Fatal(err)
			}
			if !o.Meta.SealedTo(m.SealedSubject) {
				t.Fatal("wrong subject")
			}
		}
		if n := testing.AllocsPerRun(100, open); n != 0 {
			t.Errorf("%s: Open allocates %v times", name, n)
		}
	}
}
