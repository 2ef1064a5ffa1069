package keyserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc"
)

// TestRestartOnDisk: a store on a real disk brings everything back with one call
// to the authority, and holds no key in the clear.
func TestRestartOnDisk(t *testing.T) {
	dir := t.TempDir()
	auth, err := keycache.HMACAuthenticator(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	open := func() *keycache.Store {
		t.Helper()
		s, err := keycache.Open(dir, keycache.Options{Authenticator: auth, Sequencer: &audit.Chain{Instance: "one"}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	w := newWorld(t, func(w *world) { w.store = open(); w.cfg.Store = w.store })
	ctx := context.Background()
	var secrets [][]byte
	var records []keysvc.Record
	for _, g := range w.generate("both", "orders.acme.1", "orders.b1.1", "orders.b2.1") {
		records = append(records, keysvc.Record{KeyID: g.Grant.KeyID()})
	}
	ask := func() []keysvc.OpenedKey {
		t.Helper()
		o, err := w.client("both").OpenKeys(ctx, records)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range o {
			if k.Err != nil {
				t.Fatal(k.Err)
			}
		}
		return o
	}
	for _, k := range ask() {
		secrets = append(secrets, envelope.ExposeDataKey(k.Key))
	}
	route, err := w.client("gateway").RouteKey(ctx, "orders")
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, envelope.ExposeDataKey(route))
	w.stop()
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	before := w.faults.Calls("")

	w.store = open()
	w.cfg.Store = w.store
	t.Cleanup(func() { _ = w.store.Close() })
	w.start()
	defer w.stop()
	for i, k := range ask() {
		if !bytes.Equal(envelope.ExposeDataKey(k.Key), secrets[i]) {
			t.Errorf("key %d changed", i)
		}
	}
	if again, err := w.client("gateway").RouteKey(ctx, "orders"); err != nil || !again.Equal(route) {
		t.Errorf("the route key changed, %v", err)
	}
	if w.generate("both", "orders.acme.1")[0].Grant.KeyID() != records[0].KeyID {
		t.Error("the scope got another data key within its reuse period")
	}
	if n := w.faults.Calls("") - before; n != 1 {
		t.Errorf("%d authority calls after the restart, want 1", n)
	}
	w.trail() // verifies the chain over both runs

	for i, s := range secrets {
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		secrets[i] = s[:16] // a part is too much as well
		secrets = append(secrets, bytes.Trim(text, `"`))
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for i, s := range secrets {
			if bytes.Contains(b, s) {
				t.Errorf("secret %d stands in %s", i, filepath.Base(path))
			}
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("searched %d files, %v", files, err)
	}
}

// TestDocs: the page for other languages names every code, operation and suite.
func TestDocs(t *testing.T) {
	raw, err := os.ReadFile("../../docs/keysvc.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	var words []string
	for _, err := range []error{
		keysvc.ErrDenied, keysvc.ErrNoScope, keysvc.ErrNotFound, keysvc.ErrSuspended, keysvc.ErrDestroyed, keysvc.ErrUnavailable,
		keysvc.ErrBusy, keysvc.ErrClockSkew, keysvc.ErrInvalid, keysvc.ErrMisdelivered, keysvc.ErrUnsupported,
	} {
		words = append(words, keysvc.ToWire(err).Code)
	}
	words = append(words, keysvc.Suites()...)
	st, err := newWorld(t, nil).srv.Status()
	if err != nil {
		t.Fatal(err)
	}
	words = append(words, st.Ops...)
	asJSON, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(asJSON, &fields); err != nil {
		t.Fatal(err)
	}
	for f := range fields {
		words = append(words, f)
	}
	for _, word := range words {
		if !strings.Contains(page, "`"+word+"`") {
			t.Errorf("docs/keysvc.md does not name `%s`", word)
		}
	}
}

// BenchmarkOpenWarm is one round trip for a key in memory, with its audit record
// in a store in memory: what the service itself costs.
func BenchmarkOpenWarm(b *testing.B) {
	w := newWorld(b, nil)
	id := w.generate("both", "orders.acme.1")[0].Grant.KeyID()
	c := w.client("both")
	b.ResetTimer()
	for b.Loop() {
		o, err := c.OpenKeys(context.Background(), []keysvc.Record{{KeyID: id}})
		if err != nil || o[0].Err != nil {
			b.Fatal(err, o)
		}
	}
}
