package transit_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/transit"
	"github.com/keyweir/keyweir/keysvc/authority/transit/transittest"
)

var (
	testContext = authority.Context{"keyweir-use": "data-key", "scope": "tenant/7"}
	secret      = []byte("0123456789abcdef0123456789abcdef")
)

func fixed(s string) transit.Source { return func() (string, error) { return s, nil } }

// quick are limits for tests that fail on purpose.
func quick() transit.Limits {
	return transit.Limits{MaxAttempts: 3, MaxBackoff: time.Millisecond, CallTimeout: 10 * time.Second, LoginPause: time.Nanosecond}
}

// configOf is a configuration for the key "orders" of s with the root token.
func configOf(s *transittest.Server) transit.Config {
	return transit.Config{Address: s.URL, Key: "orders", Token: fixed(s.Root), Limits: quick()}
}

func open(t testing.TB, c transit.Config) *transit.Authority {
	t.Helper()
	a, err := transit.New(t.Context(), c)
	if err != nil {
		t.Fatalf("New(%v) = %v", c, err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// stand starts a server with the keys orders (derived or not) and other.
func stand(t testing.TB, derived bool) *transittest.Server {
	t.Helper()
	s := transittest.New(t)
	s.AddKey("orders", "aes256-gcm96", derived)
	s.AddKey("other", "aes256-gcm96", derived)
	return s
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind    string
		derived bool
	}{
		"Derived":        {"aes256-gcm96", true},
		"AssociatedData": {"aes256-gcm96", false},
		"AES128":         {"aes128-gcm96", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := transittest.New(t)
			s.AddKey("orders", c.kind, c.derived)
			s.AddKey("other", c.kind, c.derived)
			authoritytest.Run(t, authoritytest.Harness{
				Open:    func(t testing.TB) authority.Authority { return open(t, configOf(s)) },
				Keys:    []string{"orders", "other"},
				Disable: func(_ testing.TB, key string) { s.Change(key, "soft-delete") },
				Enable:  func(_ testing.TB, key string) { s.Change(key, "soft-delete-restore") },
			})
		})
	}
}

func TestRewrapAndVersions(t *testing.T) {
	t.Parallel()
	for _, derived := range []bool{true, false} {
		s := stand(t, derived)
		a := open(t, configOf(s))
		key, old, err := a.GenerateDataKey(t.Context(), "", testContext)
		if err != nil || old.Version != "1" || !strings.HasPrefix(string(old.Blob), "vault:v1:") {
			t.Fatalf("GenerateDataKey = %+v, %v", old, err)
		}
		s.Change("orders", "rotate")
		next, err := a.Rewrap(t.Context(), old, testContext)
		if err != nil || next.Version != "2" || next.KeyID != "orders" {
			t.Fatalf("derived %v: Rewrap = %+v, %v, want version 2", derived, next, err)
		}
		for _, w := range []authority.Wrapped{old, next} {
			got, err := a.Unwrap(t.Context(), w, testContext)
			if err != nil || !bytes.Equal(got, key) {
				t.Errorf("derived %v: Unwrap of version %s = %v", derived, w.Version, err)
			}
		}
		if _, err := a.Rewrap(t.Context(), old, authority.Context{"scope": "tenant/8"}); !errors.Is(err, authority.ErrInvalid) {
			t.Errorf("derived %v: Rewrap with another context = %v, want ErrInvalid", derived, err)
		}
		if n, want := s.Calls("rewrap"), map[bool]int{true: 2, false: 0}[derived]; n != want {
			t.Errorf("derived %v: %d calls of rewrap, want %d", derived, n, want)
		}
		if n, want := s.Calls("datakey"), map[bool]int{true: 1, false: 0}[derived]; n != want {
			t.Errorf("derived %v: %d calls of datakey, want %d", derived, n, want)
		}

		// An old version that the owner put out of use is refused; the key is not.
		s.Change("orders", "min_decryption_version=2")
		_, err = a.Unwrap(t.Context(), old, testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrDenied, key); cerr != nil {
			t.Errorf("derived %v: Unwrap of a version below the minimum: %v", derived, cerr)
		}
		if _, err := a.Unwrap(t.Context(), next, testContext); err != nil {
			t.Errorf("derived %v: Unwrap of the version at the minimum = %v", derived, err)
		}
	}
}

// TestBlobsHaveOneSpelling: the engine accepts line breaks and stray bits.
func TestBlobsHaveOneSpelling(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	a := open(t, configOf(s))
	w, err := a.Wrap(t.Context(), "", secret, testContext) // 12+32+16 bytes: no padding
	if err != nil {
		t.Fatal(err)
	}
	short, err := a.Wrap(t.Context(), "", secret[:31], testContext)
	if err != nil {
		t.Fatal(err)
	}
	stray := bytes.Clone(short.Blob)
	i := bytes.IndexByte(stray, '=') - 1
	stray[i]++ // A..z, 0..8 and + go to another letter with the same first bits
	lenient, _ := base64.StdEncoding.DecodeString(string(stray[len("vault:v1:"):]))
	strict, _ := base64.StdEncoding.DecodeString(string(short.Blob[len("vault:v1:"):]))
	if !bytes.Equal(lenient, strict) {
		t.Fatal("the test's blob decodes to other bytes")
	}
	n := s.Calls("decrypt")
	for what, blob := range map[string][]byte{
		"a line break":     append(bytes.Clone(w.Blob), '\n'),
		"one in it":        bytes.Replace(w.Blob, []byte("vault:v1:"), []byte("vault:v1:\n"), 1),
		"stray bits":       stray,
		"version 01":       bytes.Replace(w.Blob, []byte(":v1:"), []byte(":v01:"), 1),
		"version 0":        bytes.Replace(w.Blob, []byte(":v1:"), []byte(":v0:"), 1),
		"version +1":       bytes.Replace(w.Blob, []byte(":v1:"), []byte(":v+1:"), 1),
		"an upper prefix":  bytes.Replace(w.Blob, []byte("vault"), []byte("Vault"), 1),
		"space at the end": append(bytes.Clone(w.Blob), ' '),
	} {
		got, err := a.Unwrap(t.Context(), authority.Wrapped{KeyID: "orders", Version: "1", Blob: blob}, testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrInvalid, secret); cerr != nil || got != nil {
			t.Errorf("Unwrap of a blob with %s: %v, %d bytes", what, cerr, len(got))
		}
	}
	if s.Calls("decrypt") != n {
		t.Error("a malformed blob was sent")
	}
}

func TestBinding(t *testing.T) {
	t.Parallel()
	got, err := transit.BindingBytes(authority.Context{"b": "", "a": "xy"})
	want := "keyweir/v1/transit-context\x00\x02\x00\x00\x00\x01a\x00\x00\x00\x02xy\x00\x00\x00\x01b\x00\x00\x00\x00"
	if err != nil || string(got) != want {
		t.Errorf("BindingBytes = %q, %v, want %q", got, err, want)
	}
	for _, ec := range []authority.Context{{"": "x"}, {"a": "\xff"}, {"\xff": "a"}, {"a": strings.Repeat("x", 8<<10)}} {
		if b, err := transit.BindingBytes(ec); !errors.Is(err, authority.ErrInvalid) || b != nil {
			t.Errorf("BindingBytes of a bad context = %d bytes, %v", len(b), err)
		}
	}
}

// TestUnfitKeys: a key or a server that binds nothing is not used.
func TestUnfitKeys(t *testing.T) {
	t.Parallel()
	for what, prepare := range map[string]func(s *transittest.Server){
		"a server that ignores associated_data": func(s *transittest.Server) { s.IgnoreAssociatedData() },
		"an RSA key":                            func(s *transittest.Server) { s.AddKey("orders", "rsa-4096", false) },
		"convergent encryption": func(s *transittest.Server) {
			s.AddKey("orders", "aes256-gcm96", true)
			s.Change("orders", "convergent")
		},
	} {
		s := stand(t, false)
		prepare(s)
		a := open(t, configOf(s))
		for range 2 {
			_, err := a.Wrap(t.Context(), "", secret, testContext)
			if cerr := authoritytest.CheckError(err, authority.ErrInvalid, secret); cerr != nil {
				t.Errorf("%s: Wrap: %v", what, cerr)
			}
			k, _, err := a.GenerateDataKey(t.Context(), "", testContext)
			if cerr := authoritytest.CheckError(err, authority.ErrInvalid); cerr != nil || k != nil {
				t.Errorf("%s: GenerateDataKey: %v", what, cerr)
			}
		}
	}
}

// TestKeyMadeAnew: a deleted key is known as destroyed, and one that takes its
// name is proved again before it is used.
func TestKeyMadeAnew(t *testing.T) {
	t.Parallel()
	s := stand(t, false)
	a := open(t, configOf(s))
	w, err := a.Wrap(t.Context(), "", secret, testContext)
	if err != nil {
		t.Fatal(err)
	}
	s.Change("orders", "delete")
	_, err = a.Unwrap(t.Context(), w, testContext)
	if cerr := authoritytest.CheckError(err, authority.ErrDestroyed, secret); cerr != nil {
		t.Errorf("Unwrap under a deleted key: %v", cerr)
	}
	fresh := open(t, configOf(s))
	_, err = fresh.Unwrap(t.Context(), w, testContext)
	if cerr := authoritytest.CheckError(err, authority.ErrNotFound, secret); cerr != nil {
		t.Errorf("Unwrap under a key deleted before the process began: %v", cerr)
	}
	s.AddKey("orders", "aes256-gcm96", false)
	s.IgnoreAssociatedData()
	_, err = a.Wrap(t.Context(), "", secret, testContext)
	if cerr := authoritytest.CheckError(err, authority.ErrInvalid, secret); cerr != nil {
		t.Errorf("Wrap under a new key that binds nothing: %v", cerr)
	}
}

// TestCallCount: what a key is is asked once.
func TestCallCount(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	a := open(t, configOf(s))
	for range 10 {
		_, w, err := a.GenerateDataKey(t.Context(), "", testContext)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Unwrap(t.Context(), w, testContext); err != nil {
			t.Fatal(err)
		}
	}
	for op, want := range map[string]int{"keys": 1, "lookup-self": 1, "encrypt": 1, "datakey": 10, "decrypt": 12} {
		if n := s.Calls(op); n != want {
			t.Errorf("%d calls of %s, want %d", n, op, want)
		}
	}
}
