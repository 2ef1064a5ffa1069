package local_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

// Stored rows and wraps of format 1 open for ever.
func TestStoreVersion1(t *testing.T) {
	var v struct {
		DomainKey string            `json:"domain_key"`
		Rows      map[string]string `json:"rows"`
		Wraps     []struct {
			Name      string            `json:"name"`
			KeyID     string            `json:"key_id"`
			Version   string            `json:"version"`
			Context   authority.Context `json:"context"`
			Blob      string            `json:"blob"`
			Plaintext string            `json:"plaintext"`
		} `json:"wraps"`
	}
	b, err := os.ReadFile("testdata/store-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	s := memoryStore(t)
	var batch keycache.Batch
	for k, row := range v.Rows {
		batch.Put(unhex(t, k), unhex(t, row))
	}
	if err := s.Apply(t.Context(), &batch); err != nil {
		t.Fatal(err)
	}
	a := mustNew(t, local.Config{DomainKey: unhex(t, v.DomainKey), Store: s})
	if len(v.Wraps) != 9 {
		t.Fatalf("%d wraps, want 9", len(v.Wraps))
	}
	for _, w := range v.Wraps {
		t.Run(w.KeyID[:4]+" "+w.Version+" "+w.Name, func(t *testing.T) {
			wrapped := authority.Wrapped{KeyID: w.KeyID, Version: w.Version, Blob: unhex(t, w.Blob)}
			p, err := a.Unwrap(t.Context(), wrapped, w.Context)
			if err != nil {
				t.Fatalf("Unwrap: %v", err)
			}
			if diff := cmp.Diff(w.Plaintext, hex.EncodeToString(p)); diff != "" {
				t.Errorf("plaintext (-want +got):\n%s", diff)
			}
			w.Context["more"] = "x"
			_, err = a.Unwrap(t.Context(), wrapped, w.Context)
			if err := authoritytest.CheckError(err, authority.ErrInvalid, p); err != nil {
				t.Error(err)
			}
		})
	}
	keys, err := a.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]authority.KeyInfo{
		{KeyID: "lk-abcdefghijklmnopqrstuvwxyz", Alias: "default", State: authority.StateEnabled, Version: "2"},
		{KeyID: "lk-zyxwvutsrqponmlkjihgfedcba", State: authority.StateEnabled, Version: "1"},
	}, keys); diff != "" {
		t.Errorf("ListKeys (-want +got):\n%s", diff)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
