package keyserver

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

// bubble runs f under fake time. The random generator of FIPS mode gets its
// entropy from the jitter of the clock, of which fake time has none.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if fips140.Enabled() {
		cryptotest.SetGlobalRandom(t, 1)
	}
	synctest.Test(t, f)
}

// memDirectory is a directory that can fail.
type memDirectory struct {
	mu   sync.Mutex
	by   map[envelope.KeyID][]byte
	fail error
	puts int
}

func (d *memDirectory) Publish(_ context.Context, id envelope.KeyID, record []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.puts++
	if d.fail != nil {
		return d.fail
	}
	d.by[id] = append([]byte(nil), record...)
	return nil
}

func (d *memDirectory) Lookup(_ context.Context, id envelope.KeyID) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return nil, fmt.Errorf("%w: %v", keysvc.ErrUnavailable, d.fail)
	}
	r, ok := d.by[id]
	if !ok {
		return nil, keysvc.ErrNotFound
	}
	return r, nil
}

func (d *memDirectory) set(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *memDirectory) has(id envelope.KeyID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.by[id] != nil
}

// bench is an engine in a bubble, with everything around it real but the clock,
// the directory and the faults.
type bench struct {
	t      *testing.T
	cfg    Config
	faults *Faults
	local  *local.Authority
	dir    *memDirectory
	store  *keycache.Store
	e      *engine
	fatal  error
}

func newBench(t *testing.T, change func(*Config)) *bench {
	t.Helper()
	a, err := local.NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	auth, err := keycache.HMACAuthenticator(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	store, err := keycache.OpenMemory(keycache.Options{Authenticator: auth, Sequencer: &audit.Chain{Instance: "test"}})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, faults: NewFaults(a), local: a, dir: &memDirectory{by: map[envelope.KeyID][]byte{}}, store: store}
	b.cfg = Config{
		Service: "test", Instance: "one", Store: store, Logger: slog.New(slog.DiscardHandler),
		Authorities: map[string]authority.Authority{"a": ManagedFaults{b.faults, a}},
		Scopes:      []ScopeRule{{Match: "s.*", Scope: "tenant/{{wildcard(1)}}", Authorities: []string{"a"}}},
	}
	if change != nil {
		change(&b.cfg)
	}
	if b.cfg, err = b.cfg.withDefaults(); err != nil {
		t.Fatal(err)
	}
	b.start()
	t.Cleanup(func() {
		b.stop()
		if err := store.Close(); err != nil && b.fatal == nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) start() {
	b.t.Helper()
	rs, err := newRules(b.cfg.Scopes)
	if err != nil {
		b.t.Fatal(err)
	}
	met, err := newMetrics(noop.Meter{}, func() float64 { return 0 }, func() float64 { return b.e.staleLeft() })
	if err != nil {
		b.t.Fatal(err)
	}
	if b.e, err = newEngine(b.cfg, rs, b.dir, met, func(err error) { b.fatal = err }); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) stop() {
	b.e.close()
	b.e.met.close()
}

// seal asks for a grant of the scope of a subject.
func (b *bench) seal(subject string) (sealGrant, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	scope, r, err := b.e.rules.forSubject(subject)
	if err != nil {
		return sealGrant{}, err
	}
	g, _, err := b.e.seal(ctx, r, scope)
	return g, err
}

func (b *bench) mustSeal(subject string) sealGrant {
	b.t.Helper()
	g, err := b.seal(subject)
	if err != nil {
		b.t.Fatalf("seal(%s) = %v", subject, err)
	}
	return g
}

// open asks for a key by ID, and gives back its lease.
func (b *bench) open(id envelope.KeyID, record []byte) (envelope.DataKey, time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	rs, err := b.e.resolve(ctx, id, record)
	if err != nil {
		return envelope.DataKey{}, 0, err
	}
	k, err := b.e.open(ctx, rs, rs.rule.Stale.Open)
	if err != nil {
		return envelope.DataKey{}, 0, err
	}
	var out envelope.DataKey
	err = k.use(func(key envelope.DataKey) error {
		out, err = envelope.NewDataKey(envelope.ExposeDataKey(key))
		return err
	})
	if err == nil {
		err = rs.record.Core.Verify(out)
	}
	return out, min(rs.rule.Lease, k.left), err
}

func (b *bench) mustOpen(id envelope.KeyID) {
	b.t.Helper()
	if _, _, err := b.open(id, nil); err != nil {
		b.t.Fatalf("open(%v) = %v", id, err)
	}
}

func (b *bench) wantCalls(what string, want int) {
	b.t.Helper()
	if got := b.faults.Calls(""); got != want {
		b.t.Fatalf("%s: %d authority calls (%d generate, %d unwrap, %d wrap), want %d", what,
			got, b.faults.Calls("generate"), b.faults.Calls("unwrap"), b.faults.Calls("wrap"), want)
	}
}

func TestOneKeyPerScope(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.faults.Delay(50 * time.Millisecond)
		const scopes, clients = 20, 30
		var wg sync.WaitGroup
		var mu sync.Mutex
		ids := map[string]map[envelope.KeyID]bool{}
		salts := map[envelope.Salt]bool{}
		for range clients {
			for s := range scopes {
				wg.Go(func() {
					subject := fmt.Sprintf("s.%d", s)
					g, err := b.seal(subject)
					if err != nil {
						t.Errorf("seal = %v", err)
						return
					}
					if _, _, err := b.open(g.id, g.record); err != nil {
						t.Errorf("open = %v", err)
					}
					mu.Lock()
					defer mu.Unlock()
					if ids[subject] == nil {
						ids[subject] = map[envelope.KeyID]bool{}
					}
					ids[subject][g.id] = true
					if salts[g.salt] {
						t.Error("two grants share a salt")
					}
					salts[g.salt] = true
				})
			}
		}
		wg.Wait()
		synctest.Wait()
		for subject, keys := range ids {
			if len(keys) != 1 {
				t.Errorf("%s has %d keys, want 1", subject, len(keys))
			}
			for id := range keys {
				if !b.dir.has(id) {
					t.Errorf("key of %s is not in the directory", subject)
				}
			}
		}
		time.Sleep(time.Second) // the cache key is made in the background
		b.wantCalls("generate and verify, and the cache key", 2*scopes+2)
	})
}

// TestRenewAhead runs a busy scope through many periods with a slow authority:
// sealing never waits, and no key seals longer than its reuse period.
func TestRenewAhead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.mustSeal("s.x")
		b.faults.Delay(3 * time.Second)
		first := map[envelope.KeyID]time.Time{}
		for range 30 * 60 {
			at := time.Now()
			g := b.mustSeal("s.x")
			if waited := time.Since(at); waited > 0 {
				t.Fatalf("sealing waited %v", waited)
			}
			if first[g.id].IsZero() {
				first[g.id] = at
			}
			if end := at.Add(g.reuse); end.Sub(first[g.id]) > 5*time.Minute {
				t.Fatalf("a key may seal for %v after its first use", end.Sub(first[g.id]))
			}
			if g.reuse < 30*time.Second {
				t.Fatalf("grant for %v only", g.reuse)
			}
			time.Sleep(time.Second)
		}
		if n := len(first); n < 6 || n > 9 {
			t.Errorf("%d keys in 30 minutes, want 6 to 9", n)
		}
	})
}

func TestOutage(t *testing.T) {
	for name, fault := range map[string]func(*bench) (repair func()){
		"unavailable": func(b *bench) func() { b.faults.Fail(errDown); return func() { b.faults.Fail(nil) } },
		"throttled": func(b *bench) func() {
			b.faults.Fail(fmt.Errorf("%w: test", authority.ErrThrottled))
			return func() { b.faults.Fail(nil) }
		},
		"hanging": func(b *bench) func() { return b.faults.Hang() },
		"empty answers": func(b *bench) func() {
			b.faults.Lie(func(_ string, _ []byte, w *authority.Wrapped) []byte { *w = authority.Wrapped{}; return nil })
			return func() { b.faults.Lie(nil) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, func(c *Config) { c.Scopes[0].Stale = Stale{Seal: time.Hour, Open: 2 * time.Hour} })
				var ids []envelope.KeyID
				for i := range 10 {
					ids = append(ids, b.mustSeal(fmt.Sprintf("s.%d", i)).id)
				}
				time.Sleep(time.Minute)
				for _, id := range ids {
					b.mustOpen(id)
				}
				time.Sleep(time.Second)
				repair := fault(b)
				from, calls := time.Now(), b.faults.Calls("")
				for time.Since(from) < time.Hour-time.Minute {
					at := time.Now()
					for i, id := range ids {
						g, err := b.seal(fmt.Sprintf("s.%d", i))
						if err != nil {
							t.Fatalf("%v into the outage: seal = %v", time.Since(from), err)
						}
						if _, _, err := b.open(id, nil); err != nil {
							t.Fatalf("%v into the outage: open = %v", time.Since(from), err)
						}
						if left := time.Hour + 2*time.Minute - time.Since(from); g.reuse > left+5*time.Minute {
							t.Fatalf("%v into the outage: grant for %v", time.Since(from), g.reuse)
						}
					}
					if waited := time.Since(at); waited > 3*patience+time.Second {
						t.Fatalf("%v into the outage: 10 scopes waited %v", time.Since(from), waited)
					}
					time.Sleep(20 * time.Second)
				}
				// One probe at a time for the managed key, not one for each request or key.
				if n := b.faults.Calls("") - calls; n > 3600+200 {
					t.Errorf("%d calls during the outage", n)
				}
				time.Sleep(10 * time.Minute)
				for i, id := range ids {
					at := time.Now()
					if _, err := b.seal(fmt.Sprintf("s.%d", i)); !errors.Is(err, keysvc.ErrUnavailable) {
						t.Fatalf("after the stale limit: seal = %v, want ErrUnavailable", err)
					}
					if _, lease, err := b.open(id, nil); err != nil || lease <= 0 {
						t.Fatalf("open inside its own stale limit = %v", err)
					}
					if i > 0 && time.Since(at) > patience {
						t.Fatalf("refusing took %v", time.Since(at))
					}
				}
				for time.Since(from) < 2*time.Hour+5*time.Minute {
					b.open(ids[0], nil)
					time.Sleep(20 * time.Second)
				}
				for _, id := range ids {
					at := time.Now()
					if _, _, err := b.open(id, nil); !errors.Is(err, keysvc.ErrUnavailable) {
						t.Fatalf("after the stale limit: open = %v, want ErrUnavailable", err)
					}
					if time.Since(at) > patience {
						t.Fatalf("refusing took %v", time.Since(at))
					}
				}
				repair()
				calls = b.faults.Calls("")
				time.Sleep(2 * time.Second)
				if name == "hanging" {
					time.Sleep(b.cfg.AuthorityTimeout)
				}
				for i, id := range ids {
					b.mustOpen(id)
					b.mustSeal(fmt.Sprintf("s.%d", i))
				}
				if n := b.faults.Calls("") - calls; n > 2*len(ids)+10 {
					t.Errorf("%d calls after the recovery", n)
				}
			})
		})
	}
}

// TestDecision: what the authority decides counts at once, also for keys in
// memory, and is taken back at once.
func TestDecision(t *testing.T) {
	for _, c := range []struct {
		answer, want error
	}{
		{authority.ErrDisabled, keysvc.ErrSuspended},
		{authority.ErrDenied, keysvc.ErrSuspended},
		{authority.ErrNotFound, keysvc.ErrSuspended},
		{authority.ErrDestroyed, keysvc.ErrDestroyed},
	} {
		t.Run(c.answer.Error(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, nil)
				g := b.mustSeal("s.x")
				b.mustSeal("s.y")
				time.Sleep(time.Second)
				b.faults.Fail(fmt.Errorf("%w: test", c.answer))
				for range 70 { // within the confirmation interval and a bit
					time.Sleep(time.Second)
					_, _, _ = b.open(g.id, nil)
				}
				if _, _, err := b.open(g.id, nil); !errors.Is(err, c.want) {
					t.Fatalf("open = %v, want %v", err, c.want)
				}
				if _, err := b.seal("s.x"); !errors.Is(err, c.want) {
					t.Fatalf("seal = %v, want %v", err, c.want)
				}
				if n := b.e.opened.len(); n != 0 {
					t.Fatalf("%d keys are still in memory", n)
				}
				for _, k := range b.e.managed.all() {
					if k.cache != nil {
						t.Error("the cache key is still in memory")
					}
				}
				b.faults.Fail(nil)
				time.Sleep(refusalPause + time.Second)
				b.mustOpen(g.id)
				b.mustSeal("s.x")
				b.mustSeal("s.y")
			})
		})
	}
}

// TestGenerateDecision: a refused generate stops sealing at once, though the
// current key is in its period.
func TestGenerateDecision(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		g := b.mustSeal("s.x")
		b.faults.FailOp(func(op string) error {
			if op == "generate" {
				return fmt.Errorf("%w: test", authority.ErrDenied)
			}
			return nil
		})
		time.Sleep(5*time.Minute*8/10 + time.Second)
		b.mustSeal("s.x") // renews behind
		synctest.Wait()
		if _, err := b.seal("s.x"); !errors.Is(err, keysvc.ErrSuspended) {
			t.Fatalf("seal = %v, want ErrSuspended", err)
		}
		b.mustOpen(g.id) // reading is another permission
		b.faults.FailOp(nil)
		time.Sleep(refusalPause)
		b.mustSeal("s.x")
	})
}

// TestLyingAuthority: a key whose wrap does not open to the very same key is
// never used, and reaches neither directory nor store.
func TestLyingAuthority(t *testing.T) {
	other := func(b *bench) authority.Wrapped {
		w, err := b.local.Wrap(context.Background(), "", make([]byte, 32), authority.Context{"x": "y"})
		if err != nil {
			b.t.Fatal(err)
		}
		return w
	}
	for name, lie := range map[string]func(*bench) func(string, []byte, *authority.Wrapped) []byte{
		"no wrap": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(op string, p []byte, w *authority.Wrapped) []byte {
				if op == "generate" {
					w.Blob = nil
				}
				return p
			}
		},
		"short wrap": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(op string, p []byte, w *authority.Wrapped) []byte {
				if op == "generate" {
					w.Blob = w.Blob[:len(w.Blob)-1]
				}
				return p
			}
		},
		"flipped wrap": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(op string, p []byte, w *authority.Wrapped) []byte {
				if op == "generate" {
					w.Blob[len(w.Blob)/2] ^= 1
				}
				return p
			}
		},
		"another wrap": func(b *bench) func(string, []byte, *authority.Wrapped) []byte {
			o := other(b)
			return func(op string, p []byte, w *authority.Wrapped) []byte {
				if op == "generate" {
					*w = o
				}
				return p
			}
		},
		"huge wrap": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(op string, p []byte, w *authority.Wrapped) []byte {
				if op == "generate" {
					w.Blob = make([]byte, authority.MaxBlob+1)
				}
				return p
			}
		},
		"another key": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(op string, p []byte, w *authority.Wrapped) []byte {
				if op == "generate" {
					p[0] ^= 1
				}
				return p
			}
		},
		"zero key": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(_ string, p []byte, _ *authority.Wrapped) []byte { clear(p); return p }
		},
		"short key": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(_ string, p []byte, _ *authority.Wrapped) []byte { return p[:min(len(p), 31)] }
		},
		"no key": func(*bench) func(string, []byte, *authority.Wrapped) []byte {
			return func(string, []byte, *authority.Wrapped) []byte { return nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, nil)
				b.faults.Lie(lie(b))
				for range 20 {
					if g, err := b.seal("s.x"); !errors.Is(err, keysvc.ErrUnavailable) {
						t.Fatalf("seal = %+v, %v, want ErrUnavailable", g, err)
					}
					time.Sleep(time.Second)
				}
				if b.dir.puts != 0 || b.e.opened.len() != 0 {
					t.Errorf("%d published, %d opened, want none", b.dir.puts, b.e.opened.len())
				}
				for range b.store.Scan([]byte("keysvc/")) {
					t.Error("a row was written")
				}
				b.faults.Lie(nil)
				time.Sleep(outagePause)
				b.mustSeal("s.x")
			})
		})
	}
}

func TestRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		var grants []sealGrant
		for i := range 50 {
			grants = append(grants, b.mustSeal(fmt.Sprintf("s.%d", i)))
		}
		b.stop()
		calls := b.faults.Calls("")
		b.start()
		for i, g := range grants {
			b.mustOpen(g.id)
			if again := b.mustSeal(fmt.Sprintf("s.%d", i)); again.id != g.id {
				t.Error("the scope got another key within the reuse period")
			}
		}
		b.wantCalls("restart", calls+1)
		if n := b.e.dataKeys(); n != 50 {
			t.Errorf("dataKeys = %d, want 50", n)
		}

		// Without the authority nothing comes back, until it answers.
		b.stop()
		b.faults.Fail(errDown)
		b.start()
		for range 30 {
			time.Sleep(time.Second)
			if _, _, err := b.open(grants[0].id, nil); !errors.Is(err, keysvc.ErrUnavailable) {
				t.Fatalf("open = %v, want ErrUnavailable", err)
			}
			if _, err := b.seal("s.0"); !errors.Is(err, keysvc.ErrUnavailable) {
				t.Fatalf("seal = %v, want ErrUnavailable", err)
			}
		}
		b.faults.Fail(nil)
		calls = b.faults.Calls("")
		time.Sleep(outagePause)
		for i, g := range grants {
			b.mustOpen(g.id)
			b.mustSeal(fmt.Sprintf("s.%d", i))
		}
		b.wantCalls("restart after an outage", calls+1)
	})
}

// TestDirectoryOutage: no key is used that a reader could not resolve; a key that
// was made waits for the directory, and no other is made meanwhile.
func TestDirectoryOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.dir.set(errors.New("no quorum"))
		for range 30 {
			if _, err := b.seal("s.x"); !errors.Is(err, keysvc.ErrUnavailable) {
				t.Fatalf("seal = %v, want ErrUnavailable", err)
			}
			time.Sleep(time.Second)
		}
		b.wantCalls("while the directory is away", 2)
		b.dir.set(nil)
		time.Sleep(outagePause)
		g := b.mustSeal("s.x")
		if !b.dir.has(g.id) {
			t.Error("a key was used that is not in the directory")
		}
		// Later the current key goes on without it.
		b.dir.set(errors.New("no quorum"))
		for range 20 {
			time.Sleep(time.Minute)
			if again := b.mustSeal("s.x"); again.id != g.id {
				t.Fatal("a key was used that is not in the directory")
			}
		}
		b.dir.set(nil)
		time.Sleep(time.Minute)
		b.mustSeal("s.x")
		synctest.Wait()
		if again := b.mustSeal("s.x"); again.id == g.id {
			t.Error("the old key goes on")
		}
	})
}

func TestConfirmOnlyInUse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.Scopes[0].Reuse = 24 * time.Hour })
		for i := range 40 {
			b.mustSeal(fmt.Sprintf("s.%d", i))
		}
		time.Sleep(time.Second)
		calls := b.faults.Calls("")
		for range 60 * 6 { // an hour
			for i := range 40 {
				b.mustSeal(fmt.Sprintf("s.%d", i))
			}
			time.Sleep(10 * time.Second)
		}
		if n := b.faults.Calls("") - calls; n < 55 || n > 80 {
			t.Errorf("%d confirmations in an hour of use, want about one a minute", n)
		}
		calls = b.faults.Calls("")
		time.Sleep(3 * time.Hour)
		b.wantCalls("idle", calls)
		b.mustSeal("s.0")
		b.wantCalls("first use after idling", calls+1)
	})
}

// TestEviction: what does not fit in memory comes back from the store without a call.
func TestEviction(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.Cache = 4 })
		var ids []envelope.KeyID
		for i := range 40 {
			ids = append(ids, b.mustSeal(fmt.Sprintf("s.%d", i)).id)
			synctest.Wait()
		}
		calls := b.faults.Calls("")
		for _, id := range ids {
			b.mustOpen(id)
		}
		b.wantCalls("evicted keys", calls)
		if n := b.e.opened.len(); n != 4 {
			t.Errorf("%d keys in memory, want 4", n)
		}
		time.Sleep(6 * time.Hour)
		if n := b.e.opened.len(); n != 0 {
			t.Errorf("%d keys in memory after six idle hours, want 0", n)
		}
	})
}

func TestManagedScopes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, func(c *Config) { c.Scopes[0].Keys = KeysManaged })
		ctx := context.Background()
		one, two := b.mustSeal("s.one"), b.mustSeal("s.two")
		if one.id == two.id {
			t.Fatal("two scopes share a key")
		}
		for _, scope := range []string{"tenant/one", "tenant/two"} {
			if info, err := b.local.DescribeKey(ctx, ManagedAlias(scope)); err != nil || info.State != authority.StateEnabled {
				t.Fatalf("DescribeKey = %+v, %v", info, err)
			}
		}
		if err := b.local.DisableKey(ctx, ManagedAlias("tenant/one")); err != nil {
			t.Fatal(err)
		}
		for range 70 {
			time.Sleep(time.Second)
			b.open(one.id, nil)
			b.mustOpen(two.id)
		}
		if _, _, err := b.open(one.id, nil); !errors.Is(err, keysvc.ErrSuspended) {
			t.Errorf("open of a disabled scope = %v, want ErrSuspended", err)
		}
		if err := b.local.DestroyKey(ctx, ManagedAlias("tenant/one")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for range 3 {
			if _, _, err := b.open(one.id, nil); !errors.Is(err, keysvc.ErrDestroyed) {
				t.Errorf("open of a destroyed scope = %v, want ErrDestroyed", err)
			}
			if _, err := b.seal("s.one"); !errors.Is(err, keysvc.ErrDestroyed) {
				t.Errorf("seal of a destroyed scope = %v, want ErrDestroyed", err)
			}
			time.Sleep(10 * time.Minute)
		}
		b.mustSeal("s.two")
		b.mustOpen(two.id)
	})
}

func TestRouteKeys(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		ctx := context.Background()
		get := func(route string) (string, bool) {
			t.Helper()
			k, created, err := b.e.routeKey(ctx, route)
			if err != nil || len(k) != 32 {
				t.Fatalf("routeKey = %d bytes, %v", len(k), err)
			}
			return string(k), created
		}
		var wg sync.WaitGroup
		keys := make([]string, 20)
		for i := range keys {
			wg.Go(func() { keys[i], _ = get("orders") })
		}
		wg.Wait()
		for _, k := range keys {
			if k != keys[0] {
				t.Fatal("one route has two keys")
			}
		}
		if k, created := get("other"); k == keys[0] || !created {
			t.Error("two routes share a key")
		}
		b.mustSeal("s.x")
		time.Sleep(time.Second)
		b.wantCalls("one cache key and one data key", 4)
		b.stop()
		b.start()
		if k, created := get("orders"); k != keys[0] || created {
			t.Error("the key changed with a restart")
		}
		b.wantCalls("restart", 5)
		b.stop()
		b.faults.Fail(errDown)
		b.start()
		if _, _, err := b.e.routeKey(ctx, "orders"); !errors.Is(err, keysvc.ErrUnavailable) {
			t.Errorf("routeKey without the authority = %v, want ErrUnavailable", err)
		}
		b.faults.Fail(nil)
		time.Sleep(outagePause)
		if k, _ := get("orders"); k != keys[0] {
			t.Error("the key changed with an outage")
		}
	})
}

// TestBadRecords: what a requester brings can neither open nor spoil anything.
func TestBadRecords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, func(c *Config) {
			c.Authorities["b"] = c.Authorities["a"]
			c.Scopes = append(c.Scopes, ScopeRule{Match: "t.>", Scope: "other", Authorities: []string{"b"}, Accept: []string{"a"}})
		})
		g, h := b.mustSeal("s.x"), b.mustSeal("t.x")
		b.mustOpen(h.id)
		parse := func(raw []byte) *envelope.Record {
			r, err := envelope.ParseRecord(raw)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		encode := func(r *envelope.Record) (envelope.KeyID, []byte) {
			raw, err := r.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			return r.Core.ID(), raw
		}
		if _, _, err := b.open(h.id, g.record); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("open with another key's record = %v, want ErrInvalid", err)
		}
		if _, _, err := b.open(envelope.KeyID{1}, nil); !errors.Is(err, keysvc.ErrNotFound) {
			t.Errorf("open of an unknown key = %v, want ErrNotFound", err)
		}
		for name, change := range map[string]struct {
			f    func(*envelope.Record)
			want error
		}{
			"scope without a rule":  {func(r *envelope.Record) { r.Core.Context[0].Value = "nobody" }, keysvc.ErrNoScope},
			"scope of another rule": {func(r *envelope.Record) { r.Core.Context[0].Value = "other" }, keysvc.ErrInvalid}, // accepted there, but its wrap is bound
			"authority not allowed": {func(r *envelope.Record) { r.Core.Authorities[0].Authority = "b" }, keysvc.ErrInvalid},
			"unknown authority":     {func(r *envelope.Record) { r.Core.Authorities[0].Authority = "x" }, keysvc.ErrInvalid},
			"commitment":            {func(r *envelope.Record) { r.Core.Commitment[0] ^= 1 }, keysvc.ErrInvalid},
			"other wrap":            {func(r *envelope.Record) { r.Core.RecordID[0] ^= 1 }, keysvc.ErrInvalid},
			"other scheme": {func(r *envelope.Record) {
				r.Core.Scheme, r.Core.K, r.Core.N = envelope.SchemeAny, 1, 2
				r.Core.Authorities = append(r.Core.Authorities, envelope.PartHolder{Authority: "b"})
				r.Wraps = append(r.Wraps, r.Wraps[0])
			}, keysvc.ErrUnsupported},
		} {
			r := parse(g.record)
			change.f(r)
			id, raw := encode(r)
			if _, _, err := b.open(id, raw); !errors.Is(err, change.want) {
				t.Errorf("%s: open = %v, want %v", name, err, change.want)
			}
		}
		// A good core with bad wraps: refused where the key is not known, and no
		// harm to the good record.
		r := parse(g.record)
		r.Wraps[0].Bytes[5] ^= 1
		id, raw := encode(r)
		if id != g.id {
			t.Fatal("wraps are part of the key ID")
		}
		b.stop()
		b.dir = &memDirectory{by: map[envelope.KeyID][]byte{}}
		var del keycache.Batch
		del.Delete(recordRow(id))
		del.Delete(openedRow("a", r.Wraps[0].ManagedKey, id))
		if err := b.store.Apply(context.Background(), &del); err != nil {
			t.Fatal(err)
		}
		b.start()
		for range 3 {
			if _, _, err := b.open(id, raw); !errors.Is(err, keysvc.ErrInvalid) {
				t.Errorf("open with a damaged wrap = %v, want ErrInvalid", err)
			}
		}
		if _, _, err := b.open(id, g.record); err != nil {
			t.Errorf("open with the good record = %v", err)
		}
		b.mustOpen(h.id)
	})
}

// TestDamagedRows: rows of the store are not trusted.
func TestDamagedRows(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		x, y := b.mustSeal("s.x"), b.mustSeal("s.y")
		b.stop()
		ctx := context.Background()
		managed := b.e.managed.all()[0].id
		row, err := b.store.Get(openedRow("a", managed, y.id))
		if err != nil {
			t.Fatal(err)
		}
		var swap keycache.Batch
		swap.Put(openedRow("a", managed, x.id), row)          // y's key as x's
		swap.Put(currentRow("a", "tenant/x"), y.id[:])        // y's key for x's scope
		swap.Put(currentRow("a", "tenant/y"), []byte("junk")) // no key ID
		if err := b.store.Apply(ctx, &swap); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.mustOpen(x.id) // checked against the commitment in open
		if g := b.mustSeal("s.x"); g.id == y.id || g.id == x.id {
			t.Error("a scope seals under a key whose row was swapped in")
		}
		b.mustSeal("s.y")
	})
}

func TestStoreStops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.mustSeal("s.x")
		time.Sleep(time.Second)
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.seal("s.y"); !errors.Is(err, keysvc.ErrUnavailable) {
			t.Errorf("seal = %v, want ErrUnavailable", err)
		}
		if !errors.Is(b.fatal, keycache.ErrStopped) {
			t.Errorf("fatal = %v, want ErrStopped", b.fatal)
		}
	})
}
