package keycache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/keycache"
)

func testAuth(t testing.TB, name string) keycache.Authenticator {
	t.Helper()
	key := sha256.Sum256([]byte(name))
	a, err := keycache.HMACAuthenticator(key[:])
	if err != nil {
		t.Fatalf("HMACAuthenticator: %v", err)
	}
	return a
}

func options(t testing.TB) keycache.Options {
	return keycache.Options{
		Authenticator: testAuth(t, "head"),
		OnFatal:       func(err error) { t.Errorf("store stopped: %v", err) },
	}
}

func mustOpen(t testing.TB, dir string) *keycache.Store {
	t.Helper()
	s, err := keycache.Open(dir, options(t))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustPut(t testing.TB, s *keycache.Store, kv ...string) {
	t.Helper()
	var b keycache.Batch
	for i := 0; i < len(kv); i += 2 {
		b.Put([]byte(kv[i]), []byte(kv[i+1]))
	}
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func mustClose(t testing.TB, s *keycache.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func rows(t testing.TB, s *keycache.Store, prefix string) []string {
	t.Helper()
	var out []string
	for e, err := range s.Scan([]byte(prefix)) {
		if err != nil {
			t.Fatalf("Scan(%q): %v", prefix, err)
		}
		out = append(out, string(e.Key)+"="+string(e.Value))
	}
	return out
}

func TestStoreKeepsRows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := mustOpen(t, dir)
	if runtime.GOOS != "windows" {
		fi, err := os.Stat(dir)
		if err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("directory mode = %v, %v, want 0700", fi.Mode(), err)
		}
	}
	mustPut(t, s, "k/1", "one", "k/2", "two", "k/3", "three", "l/1", "other", "k\xff", "ff", "\x00", "zero")
	var b keycache.Batch
	b.Delete([]byte("k/2"))
	b.Delete([]byte("never there"))
	b.Put([]byte("k/3"), []byte("drei"))
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	head := s.Head()
	if head.Generation != 2 || head.Records != 9 {
		t.Errorf("Head() = %v, want generation 2 with 9 records", head)
	}
	for range 2 {
		if diff := cmp.Diff([]string{"k/1=one", "k/3=drei"}, rows(t, s, "k/")); diff != "" {
			t.Errorf("Scan (-want +got):\n%s", diff)
		}
		if got := rows(t, s, ""); len(got) != 5 {
			t.Errorf("Scan of everything = %q, want 5 rows", got)
		}
		if diff := cmp.Diff([]string{"k\xff=ff"}, rows(t, s, "k\xff")); diff != "" {
			t.Errorf("Scan (-want +got):\n%s", diff)
		}
		if _, err := s.Get([]byte("k/2")); !errors.Is(err, keycache.ErrNotFound) {
			t.Errorf("Get of a deleted row = %v, want ErrNotFound", err)
		}
		if e, err := s.Last([]byte("k/")); err != nil || string(e.Value) != "drei" {
			t.Errorf("Last = %q, %v, want drei", e.Value, err)
		}
		if _, err := s.Last([]byte("m")); !errors.Is(err, keycache.ErrNotFound) {
			t.Errorf("Last of nothing = %v, want ErrNotFound", err)
		}
		mustClose(t, s)
		s = mustOpen(t, dir)
		if diff := cmp.Diff(head.Hash, s.Head().Hash); diff != "" {
			t.Errorf("head hash after reopening (-want +got):\n%s", diff)
		}
	}
}

func TestScanIsASnapshotAndBreaks(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	mustPut(t, s, "a", "1", "b", "2", "c", "3")
	var seen []string
	for e, err := range s.Scan(nil) {
		if err != nil {
			t.Fatalf("Scan: %v", err)
		}
		seen = append(seen, string(e.Key))
		mustPut(t, s, "b2", "late", string(e.Key)+"x", "late")
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, seen); diff != "" {
		t.Errorf("Scan during writes (-want +got):\n%s", diff)
	}
	for range s.Scan(nil) {
		break
	}
	for e, err := range s.ScanFrom([]byte("b"), []byte("b2")) {
		if err != nil || string(e.Key) != "b2" {
			t.Errorf("ScanFrom starts at %q, %v, want b2", e.Key, err)
		}
		break
	}
	mustClose(t, s) // would hang or fail if an iterator were still open
}

func TestBatchBounds(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	tests := []struct {
		name       string
		key, value int
		times      int
		ok         bool
	}{
		{"empty key", 0, 1, 1, false},
		{"longest key", keycache.MaxKey, 1, 1, true},
		{"key too long", keycache.MaxKey + 1, 1, 1, false},
		{"largest value", 1, keycache.MaxValue, 1, true},
		{"value too large", 1, keycache.MaxValue + 1, 1, false},
		{"batch too large", 1, keycache.MaxValue, 5, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b keycache.Batch
			for range tt.times {
				b.Put(make([]byte, tt.key), make([]byte, tt.value))
			}
			gen := s.Head().Generation
			err := s.Apply(t.Context(), &b)
			if tt.ok != (err == nil) || err != nil && !errors.Is(err, keycache.ErrInvalid) {
				t.Errorf("Apply = %v, want ok %v", err, tt.ok)
			}
			if !tt.ok && s.Head().Generation != gen {
				t.Error("a refused batch was committed")
			}
		})
	}
	var b keycache.Batch
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Errorf("Apply of an empty batch = %v", err)
	}
	b.Attach("record")
	if err := s.Apply(t.Context(), &b); !errors.Is(err, keycache.ErrInvalid) {
		t.Errorf("Apply of a record without sequencer = %v, want ErrInvalid", err)
	}
}

func TestClosedStoreRefuses(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	mustPut(t, s, "a", "1")
	mustClose(t, s)
	mustClose(t, s)
	var b keycache.Batch
	b.Put([]byte("a"), []byte("2"))
	_, getErr := s.Get([]byte("a"))
	_, lastErr := s.Last(nil)
	var scanErr error
	for _, scanErr = range s.Scan(nil) {
	}
	for name, err := range map[string]error{
		"Apply": s.Apply(t.Context(), &b), "Get": getErr, "Last": lastErr, "Scan": scanErr, "Erase": s.Erase(t.Context(), nil),
	} {
		if !errors.Is(err, keycache.ErrStopped) {
			t.Errorf("%s after Close = %v, want ErrStopped", name, err)
		}
	}
}

// gate holds the committer in Sign, so that batches pile up behind it.
type gate struct {
	keycache.Authenticator
	once    sync.Once
	entered chan struct{}
	open    chan struct{}
}

func (g *gate) Sign(head []byte) ([]byte, error) {
	if bytes.Contains(head, []byte{0, 0, 0, 0, 0, 0, 0, 1}) { // not the head of creation
		g.once.Do(func() { close(g.entered) })
		<-g.open
	}
	return g.Authenticator.Sign(head)
}

func TestGroupCommit(t *testing.T) {
	o := options(t)
	g := &gate{Authenticator: o.Authenticator, entered: make(chan struct{}), open: make(chan struct{})}
	o.Authenticator = g
	s, err := keycache.OpenMemory(o)
	if err != nil {
		t.Fatalf("OpenMemory: %v", err)
	}
	defer func() { mustClose(t, s) }()

	const callers = 50
	errs := make(chan error, callers+1)
	apply := func(ctx context.Context, key string) {
		var b keycache.Batch
		b.Put([]byte(key), []byte("x"))
		errs <- s.Apply(ctx, &b)
	}
	go apply(t.Context(), "first")
	<-g.entered
	for i := range callers {
		go apply(t.Context(), fmt.Sprintf("k/%02d", i))
	}
	waitFor(t, func() bool { return s.Pending() == callers })

	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error, 1)
	go func() {
		var b keycache.Batch
		b.Put([]byte("cancelled"), []byte("x"))
		cancelled <- s.Apply(ctx, &b)
	}()
	waitFor(t, func() bool { return s.Pending() == callers+1 })
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("Apply with a cancelled context = %v, want context.Canceled", err)
	}

	close(g.open)
	for range callers + 1 {
		if err := <-errs; err != nil {
			t.Errorf("Apply: %v", err)
		}
	}
	if h := s.Head(); h.Generation != 2 || h.Records != callers+1 {
		t.Errorf("Head() = %v, want 2 commits for %d batches", h, callers+1)
	}
	if got := rows(t, s, "k/"); len(got) != callers {
		t.Errorf("%d rows, want %d", len(got), callers)
	}
	if _, err := s.Get([]byte("cancelled")); !errors.Is(err, keycache.ErrNotFound) {
		t.Errorf("row of a cancelled batch: %v, want ErrNotFound", err)
	}
}

func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("timed out waiting")
		}
		runtime.Gosched()
	}
}

func TestEraseRemovesBytes(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	canary := sha256.Sum256([]byte("canary"))
	keep := sha256.Sum256([]byte("keep"))
	mustPut(t, s, "secret/1", string(canary[:]), "other/1", string(keep[:]))
	if len(filesWith(t, dir, canary[:])) == 0 {
		t.Fatal("control: the canary is in no file although its row is there")
	}
	if err := s.Erase(t.Context(), nil); err != nil { // into a table
		t.Fatalf("Erase: %v", err)
	}
	if len(filesWith(t, dir, canary[:])) == 0 {
		t.Fatal("control: erasing nothing removed a live row")
	}
	var b keycache.Batch
	b.Delete([]byte("secret/1"))
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	if err := s.Erase(t.Context(), []byte("secret/")); err != nil {
		t.Fatalf("Erase: %v", err)
	}
	if f := filesWith(t, dir, canary[:]); len(f) > 0 {
		t.Errorf("erased bytes are still in %q", f)
	}
	if got, err := s.Get([]byte("other/1")); err != nil || !bytes.Equal(got, keep[:]) {
		t.Errorf("neighbour after Erase = %x, %v", got, err)
	}
	mustClose(t, s)
	if f := filesWith(t, dir, canary[:]); len(f) > 0 {
		t.Errorf("erased bytes are in %q after Close", f)
	}
	if got := rows(t, mustOpen(t, dir), ""); len(got) != 1 {
		t.Errorf("rows after reopening = %q, want 1", got)
	}
}

func filesWith(t testing.TB, dir string, b []byte) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("reading directory: %v, %d entries", err, len(entries))
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatalf("reading file: %v", err)
		}
		if bytes.Contains(data, b) {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestStoreMatchesModel(t *testing.T) {
	key := rapid.StringOfN(rapid.RuneFrom([]rune{'a', 'b', 0, 0xff}), 1, 3, -1)
	rapid.Check(t, func(rt *rapid.T) {
		s, err := keycache.OpenMemory(options(t))
		if err != nil {
			rt.Fatalf("OpenMemory: %v", err)
		}
		defer func() { _ = s.Close() }()
		model := map[string]string{}
		for range rapid.IntRange(1, 8).Draw(rt, "batches") {
			var b keycache.Batch
			for range rapid.IntRange(0, 6).Draw(rt, "ops") {
				k := key.Draw(rt, "key")
				if rapid.Bool().Draw(rt, "delete") {
					b.Delete([]byte(k))
					delete(model, k)
				} else {
					v := rapid.String().Draw(rt, "value")
					b.Put([]byte(k), []byte(v))
					model[k] = v
				}
			}
			if err := s.Apply(context.Background(), &b); err != nil {
				rt.Fatalf("Apply: %v", err)
			}
		}
		prefix := rapid.OneOf(key, rapid.Just("")).Draw(rt, "prefix")
		want, got := map[string]string{}, map[string]string{}
		for k, v := range model {
			if strings.HasPrefix(k, prefix) {
				want[k] = v
			}
		}
		for e, err := range s.Scan([]byte(prefix)) {
			if err != nil {
				rt.Fatalf("Scan: %v", err)
			}
			got[string(e.Key)] = string(e.Value)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("Scan(%q) (-want +got):\n%s", prefix, diff)
		}
	})
}

func TestAuthenticatorRedacts(t *testing.T) {
	key := []byte(strings.Repeat("sekret-K", 4))
	a, err := keycache.HMACAuthenticator(key)
	if err != nil {
		t.Fatalf("HMACAuthenticator: %v", err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		out := fmt.Sprintf(verb, a)
		if strings.Contains(out, "sekret") || strings.Contains(out, "73656b726574") || strings.Contains(out, "115 101 107") {
			t.Errorf("Sprintf(%q) shows the key: %s", verb, out)
		}
	}
	if _, err := keycache.HMACAuthenticator(key[:31]); !errors.Is(err, keycache.ErrInvalid) {
		t.Errorf("HMACAuthenticator of 31 bytes = %v, want ErrInvalid", err)
	}
}
