package authoritytest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/keysvc/authority"
)

func checkRoundTrip(t *testing.T, h Harness) {
	a := open(t, h)
	for _, key := range append([]string{""}, h.Keys...) {
		for _, n := range []int{1, 32, authority.MaxPlaintext} {
			p := random(n)
			unwrap(t, a, wrap(t, a, key, p, someContext()), someContext(), p)
		}
	}
	byDefault := wrap(t, a, "", random(32), someContext())
	byID := wrap(t, a, h.Keys[0], random(32), someContext())
	other := wrap(t, a, h.Keys[1], random(32), someContext())
	if byDefault.KeyID != byID.KeyID {
		t.Errorf("the default key is %q, the first key of the harness %q", byDefault.KeyID, byID.KeyID)
	}
	if other.KeyID == byID.KeyID {
		t.Errorf("wraps under two keys name the same one: %q", other.KeyID)
	}
	// What a wrap names must be usable as a key argument.
	again := wrap(t, a, other.KeyID, random(32), someContext())
	if again.KeyID != other.KeyID {
		t.Errorf("wrapping under %q names %q", other.KeyID, again.KeyID)
	}
}

func checkGenerate(t *testing.T, h Harness) {
	a := open(t, h)
	for _, key := range append([]string{""}, h.Keys...) {
		p, w, err := a.GenerateDataKey(t.Context(), key, someContext())
		if err != nil {
			t.Fatalf("GenerateDataKey(%q) = %v", key, err)
		}
		if len(p) != authority.DataKeySize {
			t.Fatalf("GenerateDataKey(%q) returned %d bytes, want %d", key, len(p), authority.DataKeySize)
		}
		wellFormed(t, w, p)
		unwrap(t, a, w, someContext(), p)
		refusedUnwrap(t, "another context", a, w, authority.Context{"other": "context"}, authority.ErrInvalid, p)
	}
}

func checkFresh(t *testing.T, h Harness) {
	a := open(t, h)
	p := random(32)
	w1, w2 := wrap(t, a, "", p, someContext()), wrap(t, a, "", p, someContext())
	if bytes.Equal(w1.Blob, w2.Blob) {
		t.Error("two wraps of the same bytes are equal")
	}
	seen := map[string]bool{}
	for range 8 {
		k, w, err := a.GenerateDataKey(t.Context(), "", someContext())
		if err != nil {
			t.Fatalf("GenerateDataKey = %v", err)
		}
		if bytes.Equal(k, make([]byte, len(k))) {
			t.Error("GenerateDataKey returned zeros")
		}
		if seen[string(k)] || seen[string(w.Blob)] {
			t.Error("GenerateDataKey repeated a key or a wrap")
		}
		seen[string(k)], seen[string(w.Blob)] = true, true
	}
}

func checkReopen(t *testing.T, h Harness) {
	p := random(32)
	a := h.Open(t)
	w := wrap(t, a, "", p, someContext())
	if err := a.Close(); err != nil {
		t.Fatalf("Close = %v", err)
	}
	unwrap(t, open(t, h), w, someContext(), p)
}

func checkAlias(t *testing.T, h Harness) {
	if h.Alias == "" {
		t.Skip("the harness names no alias")
	}
	a := open(t, h)
	p := random(32)
	want := wrap(t, a, h.Keys[0], p, someContext())
	w := wrap(t, a, h.Alias, p, someContext())
	if w.KeyID != want.KeyID {
		t.Errorf("a wrap through the alias names %q, want the key itself, %q", w.KeyID, want.KeyID)
	}
	unwrap(t, a, w, someContext(), p)
	_, g, err := a.GenerateDataKey(t.Context(), h.Alias, someContext())
	if err != nil || g.KeyID != want.KeyID {
		t.Errorf("GenerateDataKey through the alias names %q, %v, want %q", g.KeyID, err, want.KeyID)
	}
}

func checkOwnership(t *testing.T, h Harness) {
	a := open(t, h)
	p, ec := random(32), someContext()
	before := slices.Clone(p)
	w := wrap(t, a, "", p, ec)
	if !bytes.Equal(p, before) {
		t.Fatal("Wrap changed its input")
	}
	clear(p) // the caller clears its key: the wrap must not depend on it
	blob := slices.Clone(w.Blob)
	unwrap(t, a, w, ec, before)
	if !bytes.Equal(w.Blob, blob) {
		t.Error("Unwrap changed the wrap")
	}
	if len(ec) != len(someContext()) {
		t.Error("an operation changed the context")
	}

	got, err := a.Unwrap(t.Context(), w, ec)
	if err != nil {
		t.Fatalf("Unwrap = %v", err)
	}
	clear(got)
	unwrap(t, a, w, ec, before)

	k, w2, err := a.GenerateDataKey(t.Context(), "", ec)
	if err != nil {
		t.Fatalf("GenerateDataKey = %v", err)
	}
	keep := slices.Clone(k)
	clear(k)
	unwrap(t, a, w2, ec, keep)
	clear(w2.Blob)
	unwrap(t, a, w, ec, before)

	// Results of two calls share no memory.
	p2 := random(32)
	w3 := wrap(t, a, "", p2, ec)
	first, err := a.Unwrap(t.Context(), w, ec)
	if err != nil {
		t.Fatalf("Unwrap = %v", err)
	}
	second, err := a.Unwrap(t.Context(), w3, ec)
	if err != nil {
		t.Fatalf("Unwrap = %v", err)
	}
	if !bytes.Equal(first, before) {
		t.Error("a second Unwrap changed the result of the first")
	}
	clear(first)
	if !bytes.Equal(second, p2) {
		t.Error("clearing one result changed another")
	}
}

func checkWrongContext(t *testing.T, h Harness) {
	a := open(t, h)
	base := authority.Context{"use": "data", "scope": "tenant/7", "part": "1/2"}
	p := random(32)
	w := wrap(t, a, "", p, base)
	for _, c := range []struct {
		what string
		ec   authority.Context
	}{
		{"a value changed", with(base, func(c authority.Context) { c["scope"] = "tenant/8" })},
		{"a value in other case", with(base, func(c authority.Context) { c["scope"] = "Tenant/7" })},
		{"a value emptied", with(base, func(c authority.Context) { c["scope"] = "" })},
		{"a value with a space appended", with(base, func(c authority.Context) { c["scope"] = "tenant/7 " })},
		{"a pair added", with(base, func(c authority.Context) { c["more"] = "x" })},
		{"a pair with an empty value added", with(base, func(c authority.Context) { c["more"] = "" })},
		{"a pair removed", with(base, func(c authority.Context) { delete(c, "part") })},
		{"all pairs but one removed", authority.Context{"use": "data"}},
		{"a name changed", with(base, func(c authority.Context) { delete(c, "part"); c["Part"] = "1/2" })},
		{"two values swapped", with(base, func(c authority.Context) { c["use"], c["scope"] = c["scope"], c["use"] })},
		{"names and values swapped", authority.Context{"data": "use", "tenant/7": "scope", "1/2": "part"}},
		{"another context", authority.Context{"other": "context"}},
	} {
		refusedUnwrap(t, c.what, a, w, c.ec, authority.ErrInvalid, p)
	}
	unwrap(t, a, w, base, p) // refusals leave the wrap usable

	shifted := wrap(t, a, "", p, authority.Context{"ab": "c"})
	for _, ec := range []authority.Context{{"a": "bc"}, {"abc": ""}} {
		if h.Quirks.JoinedContext {
			t.Logf("quirk: the emulator joins names and values; not checking %v against ab=c", ec)
			continue
		}
		refusedUnwrap(t, "the boundary of name and value moved", a, shifted, ec, authority.ErrInvalid, p)
	}
}

func checkContextLimits(t *testing.T, h Harness) {
	a := open(t, h)
	p := random(32)
	w := wrap(t, a, "", p, someContext())
	full := authority.Context{}
	for i := range authority.MaxContext {
		full[fmt.Sprintf("name-%02d", i)] = "value"
	}
	unwrap(t, a, wrap(t, a, "", p, full), full, p)

	for what, ec := range map[string]authority.Context{
		"a nil context":   nil,
		"an empty one":    {},
		"one of too many": with(full, func(c authority.Context) { c["one-more"] = "value" }),
	} {
		_, err := a.Wrap(t.Context(), "", p, ec)
		refused(t, "Wrap with "+what, err, authority.ErrInvalid, p)
		k, _, err := a.GenerateDataKey(t.Context(), "", ec)
		refused(t, "GenerateDataKey with "+what, err, authority.ErrInvalid)
		if k != nil {
			t.Errorf("GenerateDataKey with %s failed and returned a key", what)
		}
		refusedUnwrap(t, what, a, w, ec, authority.ErrInvalid, p)
	}

	// Bytes that are not UTF-8 are refused or bound exactly, never replaced.
	bad := authority.Context{"name": "\xff"}
	w, err := a.Wrap(t.Context(), "", p, bad)
	if err != nil {
		refused(t, "Wrap with a context that is not UTF-8", err, authority.ErrInvalid, p)
		return
	}
	unwrap(t, a, w, bad, p)
	refusedUnwrap(t, "other invalid UTF-8", a, w, authority.Context{"name": "\xfe"}, authority.ErrInvalid, p)
	refusedUnwrap(t, "the replacement character", a, w, authority.Context{"name": "\uFFFD"}, authority.ErrInvalid, p)
}

func checkPlaintextLimits(t *testing.T, h Harness) {
	a := open(t, h)
	for _, p := range [][]byte{nil, {}, random(authority.MaxPlaintext + 1), random(1 << 16)} {
		w, err := a.Wrap(t.Context(), "", p, someContext())
		refused(t, fmt.Sprintf("Wrap of %d bytes", len(p)), err, authority.ErrInvalid, p)
		if err != nil && (w.KeyID != "" || w.Version != "" || w.Blob != nil) {
			t.Errorf("Wrap of %d bytes failed and returned a wrap", len(p))
		}
	}
}

func checkWrongKey(t *testing.T, h Harness) {
	a := open(t, h)
	p := random(32)
	w0, w1 := wrap(t, a, h.Keys[0], p, someContext()), wrap(t, a, h.Keys[1], p, someContext())
	want := authority.ErrInvalid
	if h.Quirks.ForeignWrap != nil {
		want = h.Quirks.ForeignWrap
		t.Logf("quirk: the emulator answers %q for another key's wrap", want)
	}
	refusedUnwrap(t, "the other key's ID", a, authority.Wrapped{KeyID: w1.KeyID, Version: w1.Version, Blob: w0.Blob}, someContext(), want, p)
	refusedUnwrap(t, "the other key's blob", a, authority.Wrapped{KeyID: w0.KeyID, Version: w0.Version, Blob: w1.Blob}, someContext(), want, p)
	refusedUnwrap(t, "no key ID", a, authority.Wrapped{Version: w0.Version, Blob: w0.Blob}, someContext(), authority.ErrInvalid, p)
	refusedUnwrap(t, "an oversized key ID", a, authority.Wrapped{
		KeyID: strings.Repeat("k", authority.MaxKeyID+1), Version: w0.Version, Blob: w0.Blob,
	}, someContext(), authority.ErrInvalid, p)
	refusedUnwrap(t, "a version that was never one", a, authority.Wrapped{
		KeyID: w0.KeyID, Version: w0.Version + "\x00x", Blob: w0.Blob,
	}, someContext(), authority.ErrInvalid, p)
	unwrap(t, a, w0, someContext(), p)
	unwrap(t, a, w1, someContext(), p)
}

func checkUnknownKey(t *testing.T, h Harness) {
	a := open(t, h)
	w := wrap(t, a, "", random(32), someContext())
	w.KeyID = h.UnknownKey
	each(t.Context(), a, w, someContext(), func(op string, err error) {
		refused(t, op+" with an unknown key", err, authority.ErrNotFound)
	})
	long := strings.Repeat("k", authority.MaxKeyID+1)
	_, err := a.Wrap(t.Context(), long, random(32), someContext())
	refused(t, "Wrap with an oversized key", err, authority.ErrInvalid)
	_, _, err = a.GenerateDataKey(t.Context(), long, someContext())
	refused(t, "GenerateDataKey with an oversized key", err, authority.ErrInvalid)
}
