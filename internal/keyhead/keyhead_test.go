package keyhead_test

import (
	"errors"
	"testing"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/keyhead"
	"github.com/keyweir/keyweir/keysvc"
)

func newIdentity(t *testing.T) keysvc.Identity {
	t.Helper()
	id, _, err := keysvc.NewIdentity(keysvc.KindService)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestStore opens a store again with the same identity, and with another one.
func TestStore(t *testing.T) {
	dir, id := t.TempDir(), newIdentity(t)
	for range 2 {
		s, err := keycache.Open(dir, keycache.Options{Authenticator: keyhead.New(id)})
		if err != nil {
			t.Fatal(err)
		}
		var b keycache.Batch
		b.Put([]byte("a"), []byte("b"))
		if err := s.Apply(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := keycache.Open(dir, keycache.Options{Authenticator: keyhead.New(newIdentity(t))}); !errors.Is(err, keycache.ErrOtherKey) {
		t.Errorf("Open with another identity = %v, %v, want ErrOtherKey", s, err)
	}
}

func TestVerify(t *testing.T) {
	id := newIdentity(t)
	a := keyhead.New(id)
	tag, err := a.Sign([]byte("head"))
	if err != nil {
		t.Fatal(err)
	}
	if !a.Verify([]byte("head"), tag) {
		t.Error("Verify refuses its own signature")
	}
	if a.Verify([]byte("heaD"), tag) || a.Verify([]byte("head"), tag[1:]) || a.Verify([]byte("head"), nil) {
		t.Error("Verify accepts another head or tag")
	}
	other, err := keysvc.SignPurpose(id, keysvc.PurposeReply, []byte("head"))
	if err != nil {
		t.Fatal(err)
	}
	if a.Verify([]byte("head"), other) {
		t.Error("Verify accepts a signature of another purpose")
	}
}
