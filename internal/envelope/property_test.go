package envelope_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/envelope"
)

func drawBytes(t *rapid.T, name string, low, high int) []byte {
	return rapid.SliceOfN(rapid.Byte(), low, high).Draw(t, name)
}

func drawMeta(t *rapid.T) *envelope.Meta {
	common := string(drawBytes(t, "common suffix", 0, 300))
	u64 := rapid.Uint64()
	m := &envelope.Meta{
		Chain:    envelope.ChainID(drawBytes(t, "chain", 16, 16)),
		Sequence: u64.Draw(t, "sequence"), Previous: u64.Draw(t, "previous"), PreviousOnSubject: u64.Draw(t, "previous on subject"),
		Gap: u64.Draw(t, "gap"), Published: rapid.Int64().Draw(t, "published"), Layered: rapid.Bool().Draw(t, "layered"),
		SealedSubject: string(drawBytes(t, "sealed prefix", 0, 255)) + common,
		OriginSubject: string(drawBytes(t, "origin prefix", 0, 255)) + common,
	}
	if m.SealedSubject == "" {
		m.SealedSubject = "s"
	}
	if m.OriginSubject == "" {
		m.OriginSubject = "o"
	}
	for range rapid.IntRange(0, envelope.MaxHeaders).Draw(t, "headers") {
		m.Headers = append(m.Headers, envelope.Header{
			Name: string(drawBytes(t, "name", 1, 12)), Value: string(drawBytes(t, "value", 0, 100)),
		})
	}
	envelope.SortHeaders(m.Headers)
	return m
}

func TestMetaProperties(t *testing.T) {
	key, record := newKey(t)
	raw, err := record.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	reader := newReader(t, key, record, 8)
	rapid.Check(t, func(t *rapid.T) {
		m, payload := drawMeta(t), drawBytes(t, "payload", 0, 500)
		cfg := envelope.SessionConfig{
			Record:      envelope.RecordMode(rapid.IntRange(0, 2).Draw(t, "record")),
			RandomNonce: rapid.Bool().Draw(t, "random"),
			PadTo:       rapid.SampledFrom([]int{0, 1, 2, 16, 127, 128, 4095, 4096}).Draw(t, "pad to"),
		}
		g, err := envelope.NewGrant(key, record)
		if err != nil {
			t.Fatal(err)
		}
		s, err := g.Session(cfg)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := s.Seal(nil, m, payload)
		if err != nil {
			t.Fatal(err)
		}
		o, err := openWith(reader, record, sealed)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(*m, o.Meta.Meta()); diff != "" || !bytes.Equal(o.Payload, payload) {
			t.Fatalf("payload %x, meta (-sealed +opened):\n%s", o.Payload, diff)
		}
		second, secondPayload, class := vOpen(envelope.ExposeDataKey(key), raw, sealed)
		if diff := cmp.Diff(toMeta(o), second); class != "" || diff != "" || !bytes.Equal(secondPayload, payload) {
			t.Fatalf("second implementation: %s, payload %x, meta:\n%s", class, secondPayload, diff)
		}
	})
}

func TestRecordProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scheme := envelope.Scheme(rapid.IntRange(1, 5).Draw(t, "scheme"))
		n, k := 1, 1
		if scheme != envelope.SchemeSingle {
			n = rapid.IntRange(2, 8).Draw(t, "n")
		}
		switch scheme {
		case envelope.SchemeChain, envelope.SchemeSplit:
			k = n
		case envelope.SchemeThreshold:
			k = rapid.IntRange(2, n).Draw(t, "k")
		}
		context := map[string]string{envelope.ContextScope: rapid.StringN(1, 20, 40).Draw(t, "scope")}
		for range rapid.IntRange(0, 5).Draw(t, "pairs") {
			context["x"+rapid.StringN(0, 10, 20).Draw(t, "context name")] = rapid.StringN(0, 20, 40).Draw(t, "context value")
		}
		r := envelope.Record{Core: envelope.Core{
			Scheme: scheme, K: uint8(k), N: uint8(n), RecordID: envelope.RecordID(drawBytes(t, "record ID", 16, 16)),
			Created: rapid.Int64().Draw(t, "created"), Commitment: envelope.Commitment(drawBytes(t, "commitment", 32, 32)),
			Context: envelope.SortContext(context),
		}}
		for i := range n {
			r.Core.Authorities = append(r.Core.Authorities, envelope.PartHolder{
				Authority: fmt.Sprint(i, rapid.StringN(0, 10, 40).Draw(t, "name")), Commitment: envelope.Commitment(drawBytes(t, "part", 32, 32)),
			})
			w := envelope.Wrap{ManagedKey: string(drawBytes(t, "managed key", 1, 60)), Version: string(drawBytes(t, "version", 0, 20))}
			if scheme != envelope.SchemeChain || i == n-1 {
				w.Bytes = drawBytes(t, "wrap", 1, 150)
			}
			r.Wraps = append(r.Wraps, w)
		}
		raw, err := r.Append([]byte("prefix"))
		if err != nil {
			t.Fatal(err)
		}
		raw = raw[len("prefix"):]
		got, err := envelope.ParseRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&r, got); diff != "" {
			t.Fatalf("(-written +read):\n%s", diff)
		}
		_, core, _, class := vReadRecord(raw)
		if id := r.Core.ID(); class != "" || !bytes.Equal(vKeyID(core), id[:]) {
			t.Fatalf("second implementation: %s, key ID %x, want %v", class, vKeyID(core), id)
		}
		clear(raw)
		if got.Core.ID() != r.Core.ID() {
			t.Fatal("the record shares memory with what it was parsed from")
		}
	})
}
