package keyserver

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
)

func testEntry(t testing.TB) (entry []byte, id envelope.KeyID, record []byte, signer keysvc.Identity) {
	t.Helper()
	signer, _, err := keysvc.NewIdentity(keysvc.KindService)
	if err != nil {
		t.Fatal(err)
	}
	r := ScopeRule{Authorities: []string{"a"}}
	f, err := sealRecord(r.core("scope"), bytes.Repeat([]byte{7}, 32), authority.Wrapped{KeyID: "k", Blob: []byte("blob")})
	if err != nil {
		t.Fatal(err)
	}
	if entry, err = encodeEntry(signer, f.id, f.raw, time.Now()); err != nil {
		t.Fatal(err)
	}
	return entry, f.id, f.raw, signer
}

// TestEntryIsAuthentic: every flipped bit, every truncation and extension of an
// entry is refused, and so is its place under another key ID.
func TestEntryIsAuthentic(t *testing.T) {
	entry, id, record, signer := testEntry(t)
	signers := []string{signer.Public()}
	if got, err := decodeEntry(entry, id, signers); err != nil || !bytes.Equal(got, record) {
		t.Fatalf("decodeEntry = %d bytes, %v", len(got), err)
	}
	refused := func(what string, b []byte, key envelope.KeyID, signers []string) {
		t.Helper()
		if got, err := decodeEntry(b, key, signers); got != nil || !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%s: decodeEntry = %d bytes, %v, want ErrInvalid", what, len(got), err)
		}
	}
	for i := range len(entry) * 8 {
		b := bytes.Clone(entry)
		b[i/8] ^= 1 << (i % 8)
		refused("flipped bit", b, id, signers)
	}
	for n := range len(entry) {
		refused("truncated", entry[:n], id, signers)
	}
	for n := 1; n <= 64; n++ {
		refused("extended", append(bytes.Clone(entry), make([]byte, n)...), id, signers)
	}
	other, otherID, _, _ := testEntry(t)
	refused("another key's entry", entry, otherID, signers)
	refused("another signer's entry", other, otherID, signers)
	refused("no signers", entry, id, nil)
	// Rightly signed, but of a record with another key ID.
	lie, err := encodeEntry(signer, otherID, record, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	refused("record of another key", lie, otherID, signers)
}

func FuzzDecodeEntry(f *testing.F) {
	entry, id, _, signer := testEntry(f)
	f.Add(entry)
	f.Add([]byte(entryMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeEntry(b, id, []string{signer.Public()}); err == nil && !bytes.Equal(b, entry) {
			t.Error("accepted an entry that was never signed")
		}
	})
}
