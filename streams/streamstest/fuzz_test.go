package streamstest_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// FuzzInspect: no input panics, an error comes with nothing else and with a
// class that rejects, and what is described adds up.
func FuzzInspect(f *testing.F) {
	keys := streamstest.NewKeys()
	for _, s := range []streamstest.Sealing{
		{Scope: "x"}, {Scope: "x", Record: "reference"}, {Scope: "x", RandomNonce: true, Authorities: []string{"a", "b", "c"}},
	} {
		f.Add(keys.NewSealer(f, s).Seal(f, "a", nil, []byte("payload")).Data)
	}
	f.Add([]byte("KW"))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := streams.Inspect(b)
		if err != nil {
			if i != (streams.Info{}) || streams.Verdict(err) != streams.Reject {
				t.Fatalf("Inspect = %+v, %v (%v)", i, err, streams.Verdict(err))
			}
			return
		}
		if i.Size != len(b) || i.Clear+i.Sealed+16 != i.Size || i.Sealed < 0 || len(i.KeyID) != 64 {
			t.Fatalf("Inspect of %d bytes = %+v", len(b), i)
		}
		if i.Record != nil && (i.Record.Scope == "" || len(i.Record.Authorities) != i.Record.N || i.Record.K > i.Record.N) {
			t.Fatalf("record %+v", i.Record)
		}
		if _, err := json.Marshal(i); err != nil {
			t.Fatalf("describing as JSON: %v", err)
		}
	})
}

// FuzzProfile: no input panics, and an accepted profile survives being written
// and read again.
func FuzzProfile(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"version":1,"service":"prod","pins":[],"accept":{"rules":[]},"scopes":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := streams.ParseProfile(b)
		if err != nil {
			if p != nil {
				t.Fatalf("ParseProfile = %v, %v", p, err)
			}
			return
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := streams.ParseProfile(again)
		if err != nil {
			t.Fatalf("reading %s again: %v", again, err)
		}
		// Empty and missing lists are the same to a reader.
		last, err := json.Marshal(q)
		if err != nil || !reflect.DeepEqual(again, last) {
			t.Fatalf("%s became %s (%v)", again, last, err)
		}
	})
}
