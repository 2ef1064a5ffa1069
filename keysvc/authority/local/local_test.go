package local_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

var ec = authority.Context{"scope": "tenant/7", "keyweir-use": "data-key"}

func memoryStore(t testing.TB) *keycache.Store {
	t.Helper()
	auth, err := keycache.HMACAuthenticator(randomKey())
	if err != nil {
		t.Fatal(err)
	}
	s, err := keycache.OpenMemory(keycache.Options{Authenticator: auth})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func randomKey() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k)
	return k
}

func mustNew(t testing.TB, c local.Config) *local.Authority {
	t.Helper()
	c.OnFatal = func(err error) { t.Errorf("store stopped: %v", err) }
	a, err := local.New(t.Context(), c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return a
}

func mustWrap(t testing.TB, a authority.Authority, key string, p []byte) authority.Wrapped {
	t.Helper()
	w, err := a.Wrap(t.Context(), key, p, ec)
	if err != nil {
		t.Fatalf("Wrap(%q): %v", key, err)
	}
	return w
}

func wantOpens(t testing.TB, a authority.Authority, w authority.Wrapped, want []byte) {
	t.Helper()
	got, err := a.Unwrap(t.Context(), w, ec)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Unwrap = %d bytes, %v, want the wrapped ones", len(got), err)
	}
}

func TestConformance(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		dir, domain := filepath.Join(t.TempDir(), "keys"), randomKey()
		open := func(t testing.TB) *local.Authority {
			t.Helper()
			a, err := local.New(context.Background(), local.Config{DomainKey: domain, Dir: dir})
			if err != nil {
				t.Fatalf("New: %v", err)
			}
			return a
		}
		conform(t, open)
	})
	t.Run("shared store", func(t *testing.T) {
		auth, err := keycache.HMACAuthenticator(randomKey())
		if err != nil {
			t.Fatal(err)
		}
		s, err := keycache.Open(t.TempDir(), keycache.Options{Authenticator: auth})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Errorf("closing the caller's store: %v", err)
			}
		}()
		domain := randomKey()
		conform(t, func(t testing.TB) *local.Authority {
			t.Helper()
			a, err := local.New(context.Background(), local.Config{DomainKey: domain, Store: s, CacheSize: 2})
			if err != nil {
				t.Fatalf("New: %v", err)
			}
			return a
		})
	})
}

func conform(t *testing.T, open func(testing.TB) *local.Authority) {
	a := open(t)
	first, err := a.DescribeKey(t.Context(), "")
	if err != nil {
		t.Fatalf("the default key: %v", err)
	}
	second, err := a.CreateKey(t.Context(), "second")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	var last *local.Authority // the handle the suite uses
	manage := func(f func(*local.Authority, context.Context, string) error) func(testing.TB, string) {
		return func(t testing.TB, key string) {
			t.Helper()
			// Not t.Context: the suite calls this from Cleanup as well.
			if err := f(last, context.Background(), key); err != nil {
				t.Errorf("managing key %s: %v", key, err)
			}
		}
	}
	for _, unknown := range []string{"", "lk-aaaaaaaaaaaaaaaaaaaaaaaaaa"} {
		authoritytest.Run(t, authoritytest.Harness{
			Open: func(t testing.TB) authority.Authority {
				last = open(t)
				return last
			},
			Disable:    manage((*local.Authority).DisableKey),
			Enable:     manage((*local.Authority).EnableKey),
			Keys:       []string{first.KeyID, second.KeyID},
			Alias:      local.DefaultKey,
			UnknownKey: unknown,
		})
	}
}

func TestEphemeral(t *testing.T) {
	a, err := local.NewEphemeral()
	if err != nil {
		t.Fatalf("NewEphemeral: %v", err)
	}
	b, err := local.NewEphemeral()
	if err != nil {
		t.Fatalf("NewEphemeral: %v", err)
	}
	w := mustWrap(t, a, "", []byte("key"))
	wantOpens(t, a, w, []byte("key"))
	if _, err := b.Unwrap(t.Context(), w, ec); !errors.Is(err, authority.ErrNotFound) {
		t.Errorf("Unwrap by another ephemeral store = %v, want ErrNotFound", err)
	}
	for _, x := range []*local.Authority{a, b} {
		if err := x.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

func TestRotationAndRestart(t *testing.T) {
	c := local.Config{DomainKey: randomKey(), Dir: t.TempDir()}
	type wrapped struct {
		w authority.Wrapped
		p []byte
	}
	var all []wrapped
	for start := range 4 {
		a := mustNew(t, c)
		for i, x := range all {
			if x.w.Version != fmt.Sprint(i/2+1) {
				t.Errorf("wrap %d has version %s", i, x.w.Version)
			}
			wantOpens(t, a, x.w, x.p)
		}
		for range 2 {
			p := randomKey()
			all = append(all, wrapped{mustWrap(t, a, "", p), p})
		}
		k, err := a.RotateKey(t.Context(), local.DefaultKey)
		if err != nil || k.Version != fmt.Sprint(start+2) {
			t.Fatalf("RotateKey = %+v, %v", k, err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrongDomainKey(t *testing.T) {
	domain, other := randomKey(), randomKey()
	dir := t.TempDir()
	a := mustNew(t, local.Config{DomainKey: domain, Dir: dir})
	w := mustWrap(t, a, "", []byte("secret"))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, c local.Config) {
		t.Helper()
		c.DomainKey = other
		_, err := local.New(t.Context(), c)
		if err := authoritytest.CheckError(err, authority.ErrInvalid, domain, other); err != nil {
			t.Error(err)
		}
		if err == nil || !strings.Contains(err.Error(), "the domain key is not the one") {
			t.Errorf("New = %v: does not say what is wrong", err)
		}
	}
	t.Run("directory", func(t *testing.T) { check(t, local.Config{Dir: dir}) })
	t.Run("shared store", func(t *testing.T) {
		s := memoryStore(t)
		mustNew(t, local.Config{DomainKey: domain, Store: s})
		check(t, local.Config{Store: s})
	})
	a = mustNew(t, local.Config{DomainKey: domain, Dir: dir}) // unharmed
	wantOpens(t, a, w, []byte("secret"))

	for _, bad := range [][]byte{nil, make([]byte, 31), make([]byte, 33), make([]byte, 32)} {
		if _, err := local.New(t.Context(), local.Config{DomainKey: bad, Dir: t.TempDir()}); !errors.Is(err, authority.ErrInvalid) {
			t.Errorf("New with a domain key of %d bytes = %v, want ErrInvalid", len(bad), err)
		}
	}
	for _, bad := range []local.Config{{}, {Dir: "x", Store: &keycache.Store{}}, {Dir: t.TempDir(), CacheSize: -1}, {Dir: t.TempDir(), DefaultKey: "a\nb"}} {
		bad.DomainKey = domain
		if _, err := local.New(t.Context(), bad); !errors.Is(err, authority.ErrInvalid) {
			t.Errorf("New(%+v) = %v, want ErrInvalid", bad, err)
		}
	}
}
