package envelope_test

import (
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

// newKey returns a fresh data key and a single-authority record that describes it.
func newKey(tb testing.TB) (envelope.DataKey, *envelope.Record) {
	tb.Helper()
	key := envelope.GenerateDataKey()
	id := envelope.NewRecordID()
	part, err := envelope.PartCommitment(envelope.ExposeDataKey(key), id, 1)
	if err != nil {
		tb.Fatal(err)
	}
	return key, &envelope.Record{
		Core: envelope.Core{
			Scheme: envelope.SchemeSingle, K: 1, N: 1, RecordID: id, Created: 1517363399, Commitment: key.Commit(),
			Context:     []envelope.Pair{{Name: envelope.ContextScope, Value: "tenant/acme"}},
			Authorities: []envelope.PartHolder{{Authority: "local", Commitment: part}},
		},
		Wraps: []envelope.Wrap{{ManagedKey: "lk-1", Version: "1", Bytes: []byte("wrapped")}},
	}
}

func newSession(tb testing.TB, key envelope.DataKey, record *envelope.Record, cfg envelope.SessionConfig) *envelope.Session {
	tb.Helper()
	g, err := envelope.NewGrant(key, record)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := g.Session(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func newReader(tb testing.TB, key envelope.DataKey, record *envelope.Record, sessions int) *envelope.KeyReader {
	tb.Helper()
	r, err := envelope.NewKeyReader(record, key, sessions)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return r
}

func seal(tb testing.TB, s *envelope.Session, m *envelope.Meta, payload []byte) []byte {
	tb.Helper()
	sealed, err := s.Seal(nil, m, payload)
	if err != nil {
		tb.Fatal(err)
	}
	return sealed
}

// sample is one sealed message and all that is needed to open it.
type sample struct {
	name   string
	key    envelope.DataKey
	record *envelope.Record
	reader *envelope.KeyReader
	meta   envelope.Meta
	text   []byte
	sealed []byte
}

// samples seals all 64 variants under one key, in 8 sessions, and a few under a
// second key.
func samples(tb testing.TB) []sample {
	tb.Helper()
	var out []sample
	inner := newSessionSample(tb)
	for _, keys := range []int{8, 2} { // sessions under each key
		key, record := newKey(tb)
		reader := newReader(tb, key, record, 0)
		for i := range keys {
			cfg := envelope.SessionConfig{Record: envelope.RecordReference, RandomNonce: i&2 != 0}
			name := "reference"
			if i&1 != 0 {
				cfg.Record, name = envelope.RecordInline, "inline"
			}
			if cfg.RandomNonce {
				name += ",random"
			}
			if i&4 != 0 {
				cfg.PadTo = 128
				name += ",padded"
			}
			s := newSession(tb, key, record, cfg)
			for j := range 8 {
				v := sample{name: name, key: key, record: record, reader: reader, meta: benchMeta, text: []byte("payload")}
				v.meta.Sequence += uint64(j)
				if j&1 != 0 {
					v.meta.Headers = []envelope.Header{{Name: "A", Value: "1"}, {Name: "A", Value: "0"}, {Name: "b", Value: ""}}
					v.name += ",headers"
				}
				if j&2 != 0 {
					v.meta.Layered, v.text = true, inner
					v.name += ",layered"
				}
				if j&4 != 0 {
					v.text = nil
					v.name += ",empty"
				}
				v.sealed = seal(tb, s, &v.meta, v.text)
				out = append(out, v)
			}
		}
	}
	return out
}

func newSessionSample(tb testing.TB) []byte {
	tb.Helper()
	key, record := newKey(tb)
	m := benchMeta
	return seal(tb, newSession(tb, key, record, envelope.SessionConfig{Record: envelope.RecordReference}), &m, []byte("inner"))
}
