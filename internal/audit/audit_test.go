package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/keycache"
)

func openStore(t testing.TB, dir string, seq keycache.Sequencer) (*keycache.Store, error) {
	t.Helper()
	auth, err := keycache.HMACAuthenticator(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s, err := keycache.Open(dir, keycache.Options{
		Authenticator: auth, Sequencer: seq,
		OnFatal: func(err error) { t.Errorf("store stopped: %v", err) },
	})
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

func mustOpen(t testing.TB, dir string) *keycache.Store {
	t.Helper()
	now := time.Date(2026, 11, 22, 13, 0, 0, 123456789, time.FixedZone("CET", 3600))
	s, err := openStore(t, dir, &audit.Chain{Instance: "ks-1", Now: func() time.Time { return now }})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}

func mustClose(t testing.TB, s *keycache.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func record(i int) audit.Record {
	return audit.Record{
		Principal: "UBILLING", Action: "open", Outcome: audit.Allow, Scope: fmt.Sprintf("tenant/%d", i),
		KeyIDs: []string{fmt.Sprintf("%064x", i)}, ManagedKey: "lk-x", Request: strings.Repeat("ab", 32), Nonce: "n",
	}
}

// write appends n records, some batches carrying several, from four goroutines.
func write(t testing.TB, s *keycache.Store, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := g; i < n; i += 4 {
				var b keycache.Batch
				b.Put(fmt.Appendf(nil, "op/%05d", i), []byte("x"))
				b.Attach(record(i))
				if err := s.Apply(t.Context(), &b); err != nil {
					t.Errorf("Apply: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func raws(t testing.TB, s *keycache.Store) (out [][]byte) {
	t.Helper()
	for raw, err := range audit.Read(s, 0) {
		if err != nil {
			t.Fatalf("Read: %v", err)
		}
		out = append(out, raw)
	}
	return out
}

func values(list [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, raw := range list {
			if !yield(raw, nil) {
				return
			}
		}
	}
}

// The stored form is a contract: these bytes must verify for ever.
func TestRecordForm(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	var b keycache.Batch
	b.Attach(audit.Record{
		Principal: "U<1>", Action: "open", Outcome: audit.Deny, Reason: "a \"b\"\xff\n", Scope: "tenant/ü",
		KeyIDs: []string{"k1", "k2"},
	})
	b.Attach(&audit.Record{Principal: "p", Action: "generate", Outcome: audit.Error, Time: time.Unix(1, 0)})
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	bodies := []string{
		`{"seq":1,"time":"2026-11-22T12:00:00.123456789Z","instance":"ks-1","principal":"U<1>","action":"open","outcome":"deny","reason":"a \"b\"` + "\uFFFD" + `\n","scope":"tenant/ü","key_ids":["k1","k2"],"prev":"%s"`,
		`{"seq":2,"time":"1970-01-01T00:00:01Z","instance":"ks-1","principal":"p","action":"generate","outcome":"error","prev":"%s"`,
	}
	prev := make([]byte, 32)
	for i, raw := range raws(t, s) {
		body := fmt.Sprintf(bodies[i], hex.EncodeToString(prev))
		h := sha256.Sum256([]byte("keyweir/v1/audit" + string(prev) + body + "}"))
		want := fmt.Sprintf(`%s,"hash":"%x"}`, body, h)
		if diff := cmp.Diff(want, string(raw)); diff != "" {
			t.Errorf("record %d (-want +got):\n%s", i+1, diff)
		}
		prev = h[:]
	}
	if end, err := audit.VerifyStore(s); err != nil || end.Seq != 2 || !bytes.Equal(end.Hash[:], prev) {
		t.Errorf("VerifyStore = %v, %v", end, err)
	}
}

func TestInvalidRecordsRefuseTheirBatch(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	good := record(1)
	tests := map[string]any{
		"no principal":   audit.Record{Action: "a", Outcome: audit.Allow},
		"no action":      audit.Record{Principal: "p", Outcome: audit.Allow},
		"no outcome":     audit.Record{Principal: "p", Action: "a"},
		"bad outcome":    audit.Record{Principal: "p", Action: "a", Outcome: "perhaps"},
		"long field":     audit.Record{Principal: strings.Repeat("p", audit.MaxField+1), Action: "a", Outcome: audit.Allow},
		"too many keys":  audit.Record{Principal: "p", Action: "a", Outcome: audit.Allow, KeyIDs: make([]string, audit.MaxKeyIDs+1)},
		"something else": "text",
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			var b keycache.Batch
			b.Put([]byte("op"), []byte("must not appear"))
			b.Attach(good)
			b.Attach(bad)
			if err := s.Apply(t.Context(), &b); !errors.Is(err, audit.ErrInvalid) {
				t.Errorf("Apply = %v, want ErrInvalid", err)
			}
			if _, err := s.Get([]byte("op")); !errors.Is(err, keycache.ErrNotFound) {
				t.Errorf("operation without record: Get = %v, want ErrNotFound", err)
			}
		})
	}
	write(t, s, 3)
	if end, err := audit.VerifyStore(s); err != nil || end.Seq != 3 {
		t.Errorf("VerifyStore after refusals = %v, %v, want 3 records", end, err)
	}
}

func TestRestartContinuesTheChain(t *testing.T) {
	dir := t.TempDir()
	var end audit.Position
	for i := range 3 {
		s := mustOpen(t, dir)
		if got, err := audit.End(s); err != nil || got != end {
			t.Fatalf("End after %d starts = %v, %v, want %v", i, got, err, end)
		}
		write(t, s, 50)
		var err error
		if end, err = audit.VerifyStore(s); err != nil || end.Seq != uint64(50*(i+1)) {
			t.Fatalf("VerifyStore = %v, %v", end, err)
		}
		mustClose(t, s)
	}
	s := mustOpen(t, dir)
	all := raws(t, s)
	middle, err := audit.Verify(values(all[:70]), audit.Position{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := audit.Verify(values(all[70:]), middle); err != nil || got != end {
		t.Errorf("Verify from %v = %v, %v, want %v", middle, got, err, end)
	}
	var from []byte
	for raw, err := range audit.Read(s, 71) {
		if from = raw; err != nil {
			t.Fatal(err)
		}
		break
	}
	if !bytes.Equal(from, all[70]) {
		t.Errorf("Read from 71 starts with %s", from)
	}
}

// rehash gives an altered record a fitting hash of its own.
func rehash(t testing.TB, raw []byte, old, altered string) []byte {
	t.Helper()
	body := strings.Replace(string(raw), old, altered, 1)
	if body == string(raw) {
		t.Fatalf("%q is not in %s", old, raw)
	}
	i := strings.Index(body, `,"hash":"`)
	p := strings.Index(body, `"prev":"`) + len(`"prev":"`)
	prev, err := hex.DecodeString(body[p : p+64])
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256([]byte("keyweir/v1/audit" + string(prev) + body[:i] + "}"))
	return fmt.Appendf(nil, `%s,"hash":"%x"}`, body[:i], h)
}

func TestVerifyNamesTheRecord(t *testing.T) {
	const n = 2000
	s := mustOpen(t, t.TempDir())
	write(t, s, n)
	all := raws(t, s)
	if len(all) != n {
		t.Fatalf("%d records, want %d", len(all), n)
	}
	end, err := audit.VerifyStore(s)
	if err != nil {
		t.Fatalf("VerifyStore of a good log: %v", err)
	}
	if got, err := audit.Verify(values(all), audit.Position{}); err != nil || got != end {
		t.Fatalf("Verify = %v, %v, want %v", got, err, end)
	}
	want := func(t *testing.T, what string, list [][]byte, seq int, fault audit.Fault) {
		t.Helper()
		_, err := audit.Verify(values(list), audit.Position{})
		var ce *audit.ChainError
		if !errors.As(err, &ce) || ce.Seq != uint64(seq) || ce.Fault != fault {
			t.Errorf("%s: Verify = %v, want record %d %v", what, err, seq, fault)
		}
	}
	// Every record deleted and every record altered would cost n*n hashes, so
	// each trial looks at the neighbourhood, with the position before it.
	near := func(t *testing.T, what string, i, width int, change func(list [][]byte) [][]byte, seq int, fault audit.Fault) {
		t.Helper()
		lo, hi := max(0, i-2), min(n, i+width)
		from, err := audit.Verify(values(all[max(0, lo-1):lo]), before(t, all, lo-1))
		if err != nil {
			t.Fatal(err)
		}
		list := slices.Clone(all[lo:hi])
		_, err = audit.Verify(values(change(list)), from)
		var ce *audit.ChainError
		if !errors.As(err, &ce) || ce.Seq != uint64(seq) || ce.Fault != fault {
			t.Errorf("%s: Verify = %v, want record %d %v", what, err, seq, fault)
		}
	}
	for i := range n {
		at := i - max(0, i-2) // index of record i+1 in the neighbourhood
		if i < n-1 {
			near(t, "deleted", i, 5, func(l [][]byte) [][]byte { return slices.Delete(l, at, at+1) }, i+1, audit.Missing)
			near(t, "swapped", i, 5, func(l [][]byte) [][]byte {
				l[at], l[at+1] = l[at+1], l[at]
				return l
			}, i+1, audit.Moved)
			near(t, "altered with a new hash", i, 5, func(l [][]byte) [][]byte {
				l[at] = rehash(t, l[at], `"outcome":"allow"`, `"outcome":"deny"`)
				return l
			}, i+1, audit.Altered)
		}
		near(t, "altered", i, 5, func(l [][]byte) [][]byte {
			l[at] = bytes.Replace(l[at], []byte("UBILLING"), []byte("UBILLINH"), 1)
			return l
		}, i+1, audit.Altered)
		near(t, "doubled", i, 5, func(l [][]byte) [][]byte { return slices.Insert(l, at, l[at]) }, i+1, audit.Surplus)
	}
	// The same over the whole log, at random places, every byte value included.
	rng := rand.New(rand.NewPCG(7, 7))
	for range 12 {
		i, j := rng.IntN(n-1), rng.IntN(n-1)
		if i > j {
			i, j = j, i
		}
		want(t, "deleted", slices.Delete(slices.Clone(all), i, i+1), i+1, audit.Missing)
		l := slices.Clone(all)
		l[i] = bytes.Clone(l[i])
		l[i][rng.IntN(len(l[i]))] ^= 1 << rng.IntN(8)
		want(t, "bit flipped", l, i+1, audit.Altered)
		if i != j {
			l = slices.Clone(all)
			l[i], l[j] = l[j], l[i]
			want(t, "swapped", l, i+1, audit.Moved)
		}
	}
}

// before is the position before record index i+1, from the record's own prev.
func before(t testing.TB, all [][]byte, i int) (p audit.Position) {
	t.Helper()
	if i < 0 {
		return p
	}
	r, err := audit.Parse(all[i])
	if err != nil {
		t.Fatal(err)
	}
	h, err := hex.DecodeString(r.Prev)
	if err != nil {
		t.Fatal(err)
	}
	p.Seq = r.Seq - 1
	copy(p.Hash[:], h)
	return p
}

// What Verify cannot see, the store's head shows: rows written past the chain.
func TestStoreAgainstItsHead(t *testing.T) {
	row := func(seq byte) []byte { return append([]byte("audit/"), 0, 0, 0, 0, 0, 0, 0, seq) }
	tests := []struct {
		name   string
		tamper func(b *keycache.Batch, all [][]byte)
		fault  audit.Fault // 0: only Open can tell
		seq    uint64
	}{
		{"last record removed", func(b *keycache.Batch, _ [][]byte) { b.Delete(row(9)) }, audit.Missing, 9},
		{"all removed", func(b *keycache.Batch, _ [][]byte) {
			for i := range 9 {
				b.Delete(row(byte(i + 1)))
			}
		}, audit.Missing, 1},
		{"last record rewritten", func(b *keycache.Batch, all [][]byte) {
			b.Put(row(9), rehash(t, all[8], `"allow"`, `"deny"`))
		}, audit.Altered, 9},
		{"record beyond the end", func(b *keycache.Batch, all [][]byte) { b.Put(row(10), all[8]) }, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, dir)
			write(t, s, 9)
			var b keycache.Batch
			tt.tamper(&b, raws(t, s))
			if err := s.Apply(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
			if tt.fault != 0 {
				_, err := audit.VerifyStore(s)
				var ce *audit.ChainError
				if !errors.As(err, &ce) || ce.Fault != tt.fault || ce.Seq != tt.seq {
					t.Errorf("VerifyStore = %v, want record %d %v", err, tt.seq, tt.fault)
				}
			}
			mustClose(t, s)
			if s, err := openStore(t, dir, &audit.Chain{}); err == nil {
				_ = s.Close()
				t.Error("a store whose log does not end where its head says was opened")
			}
		})
	}
}

func TestLogWithoutStateIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var b keycache.Batch
	b.Put(append([]byte("audit/"), 0, 0, 0, 0, 0, 0, 0, 1), []byte("{}"))
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	if s, err := openStore(t, dir, &audit.Chain{}); err == nil {
		_ = s.Close()
		t.Error("records nobody vouches for were accepted")
	}
}

func FuzzParse(f *testing.F) {
	// No store here: its goroutines would look like new coverage to the fuzzer.
	rows, _, err := new(audit.Chain).Sequence(nil, []any{record(1), record(2)})
	if err != nil || len(rows) != 2 {
		f.Fatalf("Sequence = %d rows, %v", len(rows), err)
	}
	for _, row := range rows {
		f.Add(row.Value)
	}
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := audit.Parse(raw)
		if err != nil && !cmp.Equal(r, audit.Record{}) {
			t.Error("Parse failed and returned a record")
		}
		if err == nil && (r.Hash == "" || !bytes.Contains(raw, []byte(r.Hash))) {
			t.Error("Parse accepted a record without its hash")
		}
	})
}
