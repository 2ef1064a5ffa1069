// Package authoritytest is the conformance suite every authority passes.
//
// A provider's test gives [Run] a [Harness] that opens handles onto the same
// managed keys:
//
//	func TestConformance(t *testing.T) {
//		authoritytest.Run(t, authoritytest.Harness{
//			Open: func(t testing.TB) authority.Authority { ... },
//			Keys: []string{defaultKey, otherKey},
//		})
//	}
//
// Run checks the contract of package authority: round trips, binding of the
// encryption context, refusal of foreign and damaged wraps, limits, typed errors
// that name exactly one sentinel and show no key material, cancellation, closing,
// ownership of results, concurrency (use -race), and the life of keys where the
// authority implements authority.Manager. Every check that a harness leaves out
// is skipped with a printed reason.
package authoritytest

import (
	"bytes"
	"context"
	"crypto/rand"
	"maps"
	"testing"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Harness connects the suite to one authority.
type Harness struct {
	// Open returns a fresh handle onto the same keys; the suite closes it. Run
	// never has two handles open at once, so an authority that locks its store
	// needs no special care. Required.
	Open func(t testing.TB) authority.Authority
	// Keys are at least two usable managed keys; the first is the one the
	// handles are opened with. IDs, not aliases. Required.
	Keys []string
	// Alias is an alias of Keys[0]; "" skips the checks that need one.
	Alias string
	// UnknownKey is a well-formed ID of a key that does not exist; "" means the
	// UUID 00000000-0000-4000-8000-000000000000.
	UnknownKey string
	// Disable and Enable switch a key from outside, through the provider's own
	// console; nil skips the checks that need them. The suite leaves keys enabled.
	Disable, Enable func(t testing.TB, key string)
	// Quirks is for emulators only: an authority that holds real keys has none.
	Quirks Quirks
}

// Quirks lists where an emulator is knowingly weaker than the contract. The zero
// value, right for every real authority, makes no exception.
type Quirks struct {
	// JoinedContext: pairs are concatenated without lengths, so that ab=c and
	// a=bc bind the same bytes.
	JoinedContext bool
	// ForeignWrap is what the emulator answers for another key's wrap where the
	// contract says authority.ErrInvalid. nil: as the contract says.
	ForeignWrap error
	// Exempt returns why the emulator does not judge the damaged blob (made from
	// the genuine one), "" if it does. Exempted blobs are not sent.
	Exempt func(genuine, damaged []byte) string
}

// Run checks one authority. The checks are subtests and run one after another.
func Run(t *testing.T, h Harness) {
	if h.Open == nil || len(h.Keys) < 2 {
		t.Fatal("authoritytest: a harness needs Open and two keys")
	}
	if h.UnknownKey == "" {
		h.UnknownKey = "00000000-0000-4000-8000-000000000000"
	}
	for _, c := range []struct {
		name string
		f    func(*testing.T, Harness)
	}{
		{"RoundTrip", checkRoundTrip},
		{"GenerateDataKey", checkGenerate},
		{"Fresh", checkFresh},
		{"Reopen", checkReopen},
		{"Alias", checkAlias},
		{"Ownership", checkOwnership},
		{"WrongContext", checkWrongContext},
		{"ContextLimits", checkContextLimits},
		{"PlaintextLimits", checkPlaintextLimits},
		{"WrongKey", checkWrongKey},
		{"UnknownKey", checkUnknownKey},
		{"BlobLimits", checkBlobLimits},
		{"Truncated", checkTruncated},
		{"BitFlips", checkBitFlips},
		{"Disabled", checkDisabled},
		{"Cancelled", checkCancelled},
		{"Closed", checkClosed},
		{"Concurrent", checkConcurrent},
		{"CloseInUse", checkCloseInUse},
		{"Manager", checkManager},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, h) })
	}
}

// open returns a handle that is closed when the check ends.
func open(t testing.TB, h Harness) authority.Authority {
	t.Helper()
	a := h.Open(t)
	if a == nil {
		t.Fatal("Open returned no authority")
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return a
}

// someContext is a context of the shape the key service uses.
func someContext() authority.Context {
	return authority.Context{
		"keyweir-use":   "data-key",
		"keyweir-part":  "1/1",
		"scope":         "tenant/7",
		"scope-comment": "Zürich, 東京",
	}
}

// with returns a changed copy of ec.
func with(ec authority.Context, change func(authority.Context)) authority.Context {
	ec = maps.Clone(ec)
	change(ec)
	return ec
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// wrap wraps and requires success and a well-formed result.
func wrap(t testing.TB, a authority.Authority, key string, plaintext []byte, ec authority.Context) authority.Wrapped {
	t.Helper()
	w, err := a.Wrap(t.Context(), key, plaintext, ec)
	if err != nil {
		t.Fatalf("Wrap(%q, %d bytes) = %v", key, len(plaintext), err)
	}
	wellFormed(t, w, plaintext)
	return w
}

// unwrap unwraps and requires the wanted plaintext.
func unwrap(t testing.TB, a authority.Authority, w authority.Wrapped, ec authority.Context, want []byte) {
	t.Helper()
	got, err := a.Unwrap(t.Context(), w, ec)
	if err != nil {
		t.Fatalf("Unwrap = %v", err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("Unwrap returned %d bytes that differ from the %d wrapped", len(got), len(want))
	}
}

func wellFormed(t testing.TB, w authority.Wrapped, plaintext []byte) {
	t.Helper()
	if w.KeyID == "" || len(w.KeyID) > authority.MaxKeyID {
		t.Errorf("wrap names its key with %d bytes, want 1 to %d", len(w.KeyID), authority.MaxKeyID)
	}
	if len(w.Blob) == 0 || len(w.Blob) > authority.MaxBlob {
		t.Errorf("wrap of %d bytes, want 1 to %d", len(w.Blob), authority.MaxBlob)
	}
	if len(plaintext) >= leakBytes && bytes.Contains(w.Blob, plaintext) {
		t.Error("wrap contains the plaintext")
	}
}

// refused requires that a call failed with exactly the wanted sentinel.
func refused(t testing.TB, what string, err, want error, secrets ...[]byte) {
	t.Helper()
	if err := CheckError(err, want, secrets...); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// refusedUnwrap requires that Unwrap fails and returns no data.
func refusedUnwrap(t testing.TB, what string, a authority.Authority, w authority.Wrapped, ec authority.Context, want error, secrets ...[]byte) {
	t.Helper()
	got, err := a.Unwrap(t.Context(), w, ec)
	refused(t, "Unwrap with "+what, err, want, secrets...)
	if err != nil && got != nil {
		t.Errorf("Unwrap with %s failed and returned %d bytes", what, len(got))
	}
}

// each calls the three operations with one key and hands the errors to f.
func each(ctx context.Context, a authority.Authority, w authority.Wrapped, ec authority.Context, f func(op string, err error)) {
	_, err := a.Wrap(ctx, w.KeyID, random(32), ec)
	f("Wrap", err)
	_, _, err = a.GenerateDataKey(ctx, w.KeyID, ec)
	f("GenerateDataKey", err)
	_, err = a.Unwrap(ctx, w, ec)
	f("Unwrap", err)
}
