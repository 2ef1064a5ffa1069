package envelope_test

import (
	"bytes"
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

func TestSealOpen(t *testing.T) {
	for _, random := range []bool{false, true} {
		key, record := newKey(t)
		g, err := envelope.NewGrant(key, record)
		if err != nil {
			t.Fatal(err)
		}
		s, err := g.Session(envelope.SessionConfig{RandomNonce: random, PadTo: 128})
		if err != nil {
			t.Fatal(err)
		}
		r, err := envelope.NewKeyReader(record, key, 0)
		if err != nil {
			t.Fatal(err)
		}
		m := benchMeta
		m.Headers = []envelope.Header{{Name: "A", Value: "1"}, {Name: "A", Value: "0"}, {Name: "b", Value: ""}}
		sealed, err := s.Seal([]byte("prefix"), &m, []byte("payload"))
		if err != nil {
			t.Fatal(err)
		}
		sealed = sealed[len("prefix"):]
		before := bytes.Clone(sealed)
		e, err := envelope.Parse(sealed)
		if err != nil {
			t.Fatal(err)
		}
		o, err := r.Open(nil, &e)
		if err != nil {
			t.Fatal(err)
		}
		if string(o.Payload) != "payload" || o.Meta.OriginSubject() != m.OriginSubject || len(o.Meta.Headers()) != 3 {
			t.Fatalf("Open = %q %+v", o.Payload, o.Meta.Meta())
		}
		if !bytes.Equal(before, sealed) {
			t.Fatal("Open changed its input")
		}
	}
}
