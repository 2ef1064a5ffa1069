package local_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

// Who has every row but not the domain key opens nothing.
func TestStolenRows(t *testing.T) {
	victim, thief := memoryStore(t), memoryStore(t)
	thiefKey := randomKey()
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: victim})
	w := mustWrap(t, a, "", []byte("secret"))
	th := mustNew(t, local.Config{DomainKey: thiefKey, Store: thief})
	own := mustWrap(t, th, "", []byte("own"))
	var b keycache.Batch
	for e, err := range victim.Scan([]byte("local/")) {
		if err != nil {
			t.Fatal(err)
		}
		if string(e.Key) != "local/domain" {
			b.Put(e.Key, e.Value)
		}
	}
	if b.Len() != 3 {
		t.Fatalf("%d rows, want key, alias and version", b.Len())
	}
	if err := thief.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	p, err := th.Unwrap(t.Context(), w, ec)
	if err := authoritytest.CheckError(err, authority.ErrUnavailable, thiefKey); err != nil || p != nil {
		t.Errorf("stolen rows: %v", err)
	}
	// Neither does a key row the thief made himself: the version stays sealed.
	forged := bytes.Clone(mustGet(t, thief, "local/version/"+w.KeyID+"/\x00\x00\x00\x00\x00\x00\x00\x01"))
	b.Reset()
	b.Put([]byte("local/version/"+own.KeyID+"/\x00\x00\x00\x00\x00\x00\x00\x01"), forged)
	if err := thief.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	fresh := mustNew(t, local.Config{DomainKey: thiefKey, Store: thief})
	p, err = fresh.Unwrap(t.Context(), authority.Wrapped{KeyID: own.KeyID, Version: "1", Blob: w.Blob}, ec)
	if err := authoritytest.CheckError(err, authority.ErrUnavailable, thiefKey); err != nil || p != nil {
		t.Errorf("stolen version under a key of the thief: %v", err)
	}
}

func mustGet(t testing.TB, s *keycache.Store, key string) []byte {
	t.Helper()
	v, err := s.Get([]byte(key))
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	return v
}

// Rows altered, cut, extended, or put in another row's place are refused.
func TestAlteredRows(t *testing.T) {
	s, domain := memoryStore(t), randomKey()
	c := local.Config{DomainKey: domain, Store: s}
	a := mustNew(t, c)
	w := mustWrap(t, a, "", []byte("secret"))
	second, err := a.CreateKey(t.Context(), "second")
	if err != nil {
		t.Fatal(err)
	}
	const one = "/\x00\x00\x00\x00\x00\x00\x00\x01"
	for name, r := range map[string][2]string{
		"key":     {"local/key/" + w.KeyID, "local/key/" + second.KeyID},
		"version": {"local/version/" + w.KeyID + one, "local/version/" + second.KeyID + one},
		"alias":   {"local/alias/default", "local/alias/second"},
	} {
		genuine := mustGet(t, s, r[0])
		bad := [][]byte{mustGet(t, s, r[1]), nil, genuine[:len(genuine)-1], append(bytes.Clone(genuine), 0)}
		for i := range genuine {
			flipped := bytes.Clone(genuine)
			flipped[i] ^= 1
			bad = append(bad, flipped)
		}
		put := func(v []byte) {
			var b keycache.Batch
			b.Put([]byte(r[0]), v)
			if err := s.Apply(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
		}
		for i, v := range bad {
			put(v)
			fresh := mustNew(t, c) // nothing in its cache
			_, err := fresh.Wrap(t.Context(), "", []byte("x"), ec)
			if err := authoritytest.CheckError(err, authority.ErrUnavailable, domain); err != nil {
				t.Errorf("%s row, damage %d: %v", name, i, err)
			}
		}
		put(genuine)
		wantOpens(t, mustNew(t, c), w, []byte("secret"))
	}

	var b keycache.Batch
	b.Delete([]byte("local/domain"))
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	if _, err := local.New(t.Context(), c); !errors.Is(err, authority.ErrUnavailable) {
		t.Errorf("New without domain row = %v, want ErrUnavailable", err)
	}
}

// forms are the usual ways key bytes could end up in a file.
func forms(k []byte) map[string][]byte {
	return map[string][]byte{
		"raw": k, "half": k[:16], "hex": []byte(hex.EncodeToString(k)), "base64": []byte(base64.StdEncoding.EncodeToString(k))[:40],
	}
}

func scanDir(t testing.TB, dir string, find func(name string, data []byte)) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		find(d.Name(), data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func contains(t testing.TB, dir string, k []byte) (names []string) {
	t.Helper()
	n := scanDir(t, dir, func(name string, data []byte) {
		for form, b := range forms(k) {
			if bytes.Contains(data, b) {
				names = append(names, name+" ("+form+")")
			}
		}
	})
	if n < 4 {
		t.Fatalf("only %d files in the directory", n)
	}
	return names
}

func TestNoKeyOnDisk(t *testing.T) {
	dir, domain := t.TempDir(), randomKey()
	var log bytes.Buffer
	a := mustNew(t, local.Config{
		DomainKey: domain, Dir: dir,
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	data := randomKey()
	canaries := [][]byte{domain, data}
	for i := range 40 {
		k, err := a.CreateKey(t.Context(), fmt.Sprintf("tenant/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		mustWrap(t, a, k.KeyID, data)
		if _, err := a.RotateKey(t.Context(), k.KeyID); err != nil {
			t.Fatal(err)
		}
		mustWrap(t, a, k.KeyID, data)
		versions := a.Cached(k.KeyID)
		if len(versions) != 2 {
			t.Fatalf("%d versions in memory, want 2", len(versions))
		}
		canaries = append(canaries, versions...)
		if i%10 == 0 {
			if err := a.DestroyKey(t.Context(), k.KeyID); err != nil { // rewrites tables
				t.Fatal(err)
			}
		}
	}
	check := func() {
		t.Helper()
		for i, c := range canaries {
			if names := contains(t, dir, c); len(names) > 0 {
				t.Errorf("key %d is in %q", i, names)
			}
			if bytes.Contains(log.Bytes(), c) || strings.Contains(log.String(), hex.EncodeToString(c)) {
				t.Errorf("key %d is in the log", i)
			}
		}
	}
	check()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	check()
	// Control: the search finds a key that is there.
	if err := os.WriteFile(filepath.Join(dir, "control"), append([]byte("xx"), domain...), 0o600); err != nil {
		t.Fatal(err)
	}
	if len(contains(t, dir, domain)) == 0 {
		t.Error("control: the search finds nothing")
	}
}

// After DestroyKey not even the sealed bytes are in a live file.
func TestDestroyErasesSealedBytes(t *testing.T) {
	auth, err := keycache.HMACAuthenticator(randomKey())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := keycache.Open(dir, keycache.Options{Authenticator: auth})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: s})
	doomed, err := a.CreateKey(t.Context(), "doomed")
	if err != nil {
		t.Fatal(err)
	}
	w := mustWrap(t, a, "doomed", []byte("x"))
	if _, err := a.RotateKey(t.Context(), "doomed"); err != nil {
		t.Fatal(err)
	}
	mustWrap(t, a, "doomed", []byte("x"))
	wantOpens(t, a, w, []byte("x"))
	if n := len(a.Cached(doomed.KeyID)); n != 2 {
		t.Fatalf("%d versions in memory, want 2", n)
	}
	neighbour := mustWrap(t, a, "", []byte("neighbour"))
	var sealed [][]byte
	for e, err := range s.Scan([]byte("local/version/" + doomed.KeyID)) {
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, e.Value[9:41])
	}
	if len(sealed) != 2 || len(contains(t, dir, sealed[0])) == 0 || len(contains(t, dir, sealed[1])) == 0 {
		t.Fatal("control: the sealed versions are in no file before they are destroyed")
	}
	if err := a.DestroyKey(t.Context(), "doomed"); err != nil {
		t.Fatal(err)
	}
	for _, b := range sealed {
		if names := contains(t, dir, b); len(names) > 0 {
			t.Errorf("destroyed version is still in %q", names)
		}
	}
	if n := len(a.Cached(doomed.KeyID)); n != 0 {
		t.Errorf("%d versions of a destroyed key in memory", n)
	}
	wantOpens(t, a, neighbour, []byte("neighbour"))
	if _, err := a.CreateKey(t.Context(), "doomed"); !errors.Is(err, authority.ErrInvalid) {
		t.Errorf("CreateKey with the alias of a destroyed key = %v, want ErrInvalid", err)
	}
	k, err := a.DescribeKey(t.Context(), "doomed")
	if err != nil || k.State != authority.StateDestroyed || k.Version != "2" {
		t.Errorf("DescribeKey = %+v, %v, want the tombstone", k, err)
	}
}

func TestSecretRedacts(t *testing.T) {
	s := new(local.Secret)
	sum := sha256.Sum256([]byte("x"))
	copy(s[:], sum[:])
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%t"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", struct{ S *local.Secret }{s})
	}
	if err := json.NewEncoder(&out).Encode(map[string]any{"s": s}); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "s", s)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "s", s)
	for _, form := range []string{string(s[:8]), hex.EncodeToString(s[:4]), fmt.Sprint(s[0], " ", s[1]), base64.StdEncoding.EncodeToString(s[:6])} {
		if strings.Contains(out.String(), form) {
			t.Errorf("output shows key material as %q", form)
		}
	}
	if n := strings.Count(out.String(), "[redacted]"); n < 12 {
		t.Errorf("%d redactions in:\n%s", n, out.String())
	}
}
