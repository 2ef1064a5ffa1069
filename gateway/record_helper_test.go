package gateway_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/keyweir/keyweir/gateway"
)

// positionRecord is what a test reads of a record, as anybody could.
type positionRecord struct {
	Chain     string `json:"chain"`
	LastSeq   uint64 `json:"last_seq"`
	Position  uint64 `json:"position"`
	Previous  uint64 `json:"previous"`
	Timestamp int64  `json:"timestamp"`
	Resumed   bool   `json:"resumed"`
}

func (r positionRecord) String() string { return fmt.Sprintf("%+v", struct{ a any }{r.Position}) }

// record reads the fixture's position record; zero if there is none.
func (f *fixture) record() (r positionRecord) {
	f.t.Helper()
	kv, err := f.js.KeyValue(f.t.Context(), gateway.PositionsBucket)
	if err != nil {
		return r
	}
	e, err := kv.Get(f.t.Context(), sealed+".0")
	if err != nil {
		return r
	}
	fromJSON(f.t, e.Value(), &r)
	return r
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fromJSON(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
}
