package streams_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// bench is an Opener over keys in memory, without a server.
type bench struct {
	keys   *streamstest.Keys
	sealer *streamstest.Sealer
	o      *streams.Opener
}

func newBench(t *testing.T, s streamstest.Sealing, change ...func(*streams.Config)) *bench {
	t.Helper()
	b := &bench{keys: streamstest.NewKeys()}
	if s.Scope == "" {
		s.Scope = "x"
	}
	b.sealer = b.keys.NewSealer(t, s)
	cfg := streams.Config{Keys: b.keys, Accept: b.sealer.Accept()}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if b.o, err = streams.New(cfg); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) open(t *testing.T, m *nats.Msg) error {
	t.Helper()
	data, err := b.o.OpenBytes(t.Context(), m.Subject, m.Data)
	if (err == nil) != (string(data) == "hello") {
		t.Fatalf("OpenBytes = %q, %v", data, err)
	}
	return err
}

func (b *bench) message(t *testing.T) *nats.Msg {
	t.Helper()
	return b.sealer.Seal(t, "a", nil, []byte("hello"))
}

func (b *bench) wantCalls(t *testing.T, want int) {
	t.Helper()
	if got, _ := b.keys.Calls(); got != want {
		t.Errorf("%d calls to the key service, want %d", got, want)
	}
}

func (b *bench) wantHeld(t *testing.T, want int) {
	t.Helper()
	if got, _ := streams.Held(b.o); got != want {
		t.Errorf("%d keys held, want %d", got, want)
	}
}

// bubble runs f with a fake clock and closes the opener inside.
func bubble(t *testing.T, s streamstest.Sealing, f func(t *testing.T, b *bench), change ...func(*streams.Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, s, change...)
		defer func() { _ = b.o.Close() }()
		f(t, b)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLeaseEnds(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		m := b.message(t)
		must(t, b.open(t, m))
		b.wantHeld(t, 1)
		time.Sleep(streamstest.DefaultLease)
		synctest.Wait()
		b.wantHeld(t, 0) // though nobody asked for it
		b.wantCalls(t, 1)
		b.keys.Refuse("x", keysvc.ErrUnavailable)
		if err := b.open(t, m); !errors.Is(err, streams.ErrUnavailable) {
			t.Errorf("opening after the lease: %v, want ErrUnavailable", err)
		}
		b.wantCalls(t, 2)
	})
}

// The lease counts from the request, not from the answer.
func TestSlowAnswerShortensLease(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		b.keys.SetLease(10 * time.Second)
		b.keys.Hook = func(context.Context, []keysvc.Record) error { time.Sleep(7 * time.Second); return nil }
		must(t, b.open(t, b.message(t)))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		b.wantHeld(t, 0)
	})
}

func TestRefresh(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		m := b.message(t)
		must(t, b.open(t, m))
		for range 20 { // leases long
			time.Sleep(streamstest.DefaultLease * 85 / 100)
			must(t, b.open(t, m))
			synctest.Wait()
		}
		b.wantCalls(t, 21)
		b.wantHeld(t, 1)
		// A key that is not used is not asked for again.
		time.Sleep(streamstest.DefaultLease)
		synctest.Wait()
		b.wantCalls(t, 21)
		b.wantHeld(t, 0)
	})
}

// All keys that are due are refreshed in one call.
func TestRefreshInOneCall(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		for range 30 {
			b.sealer = b.keys.NewSealer(t, streamstest.Sealing{Scope: "x"})
			must(t, b.open(t, b.message(t)))
		}
		b.wantCalls(t, 30)
		b.wantHeld(t, 30)
		time.Sleep(streamstest.DefaultLease * 85 / 100)
		must(t, b.open(t, b.message(t)))
		synctest.Wait()
		b.wantCalls(t, 31)
		b.wantHeld(t, 30)
	}, func(c *streams.Config) { c.MaxKeys = 30 })
}

func TestRefreshRefused(t *testing.T) {
	for _, refusal := range []struct{ service, want error }{
		{keysvc.ErrDenied, streams.ErrDenied},
		{keysvc.ErrSuspended, streams.ErrSuspended},
		{keysvc.ErrDestroyed, streams.ErrDestroyed},
	} {
		bubble(t, streamstest.Sealing{Record: "inline"}, func(t *testing.T, b *bench) {
			m := b.message(t)
			must(t, b.open(t, m))
			b.keys.Refuse("x", refusal.service)
			time.Sleep(streamstest.DefaultLease * 85 / 100)
			must(t, b.open(t, m)) // within the lease, and it starts the refresh
			synctest.Wait()
			b.wantHeld(t, 0)
			b.wantCalls(t, 2)
			if err := b.open(t, m); !errors.Is(err, refusal.want) {
				t.Errorf("opening after the refusal: %v, want %v", err, refusal.want)
			}
			b.wantCalls(t, 2) // the answer is remembered for a moment
			b.keys.Refuse("x", nil)
			time.Sleep(time.Minute)
			must(t, b.open(t, m))
		})
	}
}

// A key service that is away takes nothing away before the lease ends, and is
// not asked in a loop.
func TestRefreshUnavailable(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		b.keys.SetLease(100 * time.Second)
		m := b.message(t)
		must(t, b.open(t, m))
		b.keys.Hook = func(context.Context, []keysvc.Record) error { return keysvc.ErrUnavailable }
		time.Sleep(81 * time.Second)
		for range 180 { // to second 99
			must(t, b.open(t, m))
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		if calls, _ := b.keys.Calls(); calls < 3 || calls > 7 {
			t.Errorf("%d calls in 18 s of outage, want about one every 5 s", calls-1)
		}
		time.Sleep(time.Second)
		if err := b.open(t, m); !errors.Is(err, streams.ErrUnavailable) {
			t.Errorf("opening after the lease: %v, want ErrUnavailable", err)
		}
		b.wantHeld(t, 0)
	})
}

// The newest answer decides, also when it shortens the lease.
func TestRefreshShortensLease(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		must(t, b.open(t, b.message(t)))
		b.keys.SetLease(time.Second)
		time.Sleep(streamstest.DefaultLease * 85 / 100)
		must(t, b.open(t, b.message(t)))
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		b.wantHeld(t, 0)
	})
}

func TestSingleFlight(t *testing.T) {
	bubble(t, streamstest.Sealing{Record: "reference"}, func(t *testing.T, b *bench) {
		b.keys.Hook = func(context.Context, []keysvc.Record) error { time.Sleep(time.Second); return nil }
		m := b.message(t)
		// The first to ask gives up; the others still get the answer.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := b.o.OpenBytes(ctx, m.Subject, m.Data); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient open: %v, want its context's error", err)
			}
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() {
				if err := b.open(t, m); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		b.wantCalls(t, 1)
	})
}

func TestRefusalRemembered(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		b.keys.Refuse("x", keysvc.ErrDenied)
		m := b.message(t)
		for range 1000 {
			if err := b.open(t, m); !errors.Is(err, streams.ErrDenied) {
				t.Fatal(err)
			}
		}
		b.wantCalls(t, 1)
		b.keys.Refuse("x", nil)
		time.Sleep(time.Second)
		must(t, b.open(t, m))
	})
}

func TestBounds(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		for range 20 {
			b.sealer = b.keys.NewSealer(t, streamstest.Sealing{Scope: "x"})
			must(t, b.open(t, b.message(t)))
		}
		b.wantHeld(t, 4)
		m := b.message(t)
		for i := range 3000 {
			copy(m.Data[8:], fmt.Sprintf("%032d", i)) // a key ID that nobody knows
			m.Data[4], m.Data[6], m.Data[7] = 0, 0, 0 // by reference
			if err := b.open(t, m); !errors.Is(err, streams.ErrUnknownKey) {
				t.Fatal(err)
			}
		}
		if _, refusals := streams.Held(b.o); refusals > 1024 {
			t.Errorf("%d refusals remembered, want at most 1024", refusals)
		}
		b.wantHeld(t, 4)
	}, func(c *streams.Config) { c.MaxKeys = 4 })
}

// Keys displaced while others open with them: nothing but good results, or a
// request to try again.
func TestDisplacedWhileInUse(t *testing.T) {
	b := newBench(t, streamstest.Sealing{Record: "reference"}, func(c *streams.Config) { c.MaxKeys = 1 })
	defer func() { _ = b.o.Close() }()
	ms := []*nats.Msg{b.message(t)}
	for range 3 {
		b.sealer = b.keys.NewSealer(t, streamstest.Sealing{Scope: "x", Record: "reference"})
		ms = append(ms, b.message(t))
	}
	var wg sync.WaitGroup
	var good atomic.Int64
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				m := ms[(g+i)%len(ms)]
				b, err := b.o.OpenBytes(t.Context(), m.Subject, m.Data)
				switch {
				case err == nil && string(b) == "hello":
					good.Add(1)
				case !errors.Is(err, streams.ErrUnavailable):
					t.Errorf("OpenBytes = %q, %v", b, err)
				}
			}
		})
	}
	wg.Wait()
	if good.Load() < 100 {
		t.Errorf("%d of 1200 opened", good.Load())
	}
}

// Inline wraps that differ from the known ones count only if they open by
// themselves, and asking about them is limited.
func TestChangedWraps(t *testing.T) {
	bubble(t, streamstest.Sealing{Record: "inline"}, func(t *testing.T, b *bench) {
		m := b.message(t)
		must(t, b.open(t, m))
		forge := func(i int) *nats.Msg {
			f := *m
			f.Data = bytes.Clone(m.Data)
			at := bytes.Index(f.Data, []byte("not a real wrap"))
			copy(f.Data[at:], fmt.Sprintf("%03d", i))
			return &f
		}
		for i := range 10 {
			if err := b.open(t, forge(i)); !errors.Is(err, streams.ErrTampered) {
				t.Fatalf("changed wraps: %v, want ErrTampered", err)
			}
		}
		b.wantCalls(t, 11)
		for range 5 {
			if err := b.open(t, forge(3)); !errors.Is(err, streams.ErrTampered) {
				t.Fatalf("changed wraps again: %v, want ErrTampered", err)
			}
		}
		for i := range 100 {
			if err := b.open(t, forge(100+i)); !errors.Is(err, streams.ErrUnavailable) {
				t.Fatalf("changed wraps beyond the limit: %v, want ErrUnavailable", err)
			}
		}
		b.wantCalls(t, 11)
		must(t, b.open(t, m)) // the known form is not affected

		good := *m
		good.Data = b.sealer.Rewrap(t)(m.Data)
		if err := b.open(t, &good); !errors.Is(err, streams.ErrUnavailable) {
			t.Fatalf("new wraps beyond the limit: %v, want ErrUnavailable", err)
		}
		time.Sleep(time.Second)
		for range 10 {
			must(t, b.open(t, &good))
			must(t, b.open(t, m))
		}
		b.wantCalls(t, 12)
		b.wantHeld(t, 1)
	})
}

// Changed wraps name nothing that takes a held key away; a refusal of the key
// itself does, and is told as what it is.
func TestChangedWrapsOfRefusedKey(t *testing.T) {
	bubble(t, streamstest.Sealing{Record: "inline"}, func(t *testing.T, b *bench) {
		m := b.message(t)
		must(t, b.open(t, m))
		again := *m
		again.Data = b.sealer.Rewrap(t)(m.Data)
		b.keys.Refuse("x", keysvc.ErrSuspended)
		if err := b.open(t, &again); !errors.Is(err, streams.ErrSuspended) {
			t.Errorf("changed wraps of a suspended key: %v, want ErrSuspended", err)
		}
		b.wantHeld(t, 0)
	})
}

// opener is a KeyOpener that answers as it likes.
type opener func([]keysvc.Record) ([]keysvc.OpenedKey, error)

func (f opener) OpenKeys(_ context.Context, rs []keysvc.Record) ([]keysvc.OpenedKey, error) {
	return f(rs)
}

// A key service that lies gets nothing opened.
func TestLyingKeyService(t *testing.T) {
	truth := streamstest.NewKeys()
	s := truth.NewSealer(t, streamstest.Sealing{Scope: "x", Record: "reference"})
	other := truth.NewSealer(t, streamstest.Sealing{Scope: "x", Record: "reference"})
	m := s.Seal(t, "a", nil, []byte("hello"))
	for _, tc := range []struct {
		name string
		want error
		lie  func(k, other *keysvc.OpenedKey) []keysvc.OpenedKey
	}{
		{"no answer", streams.ErrUnavailable, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey { return nil }},
		{"two answers", streams.ErrUnavailable, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey { return []keysvc.OpenedKey{*k, *o} }},
		{"another key", streams.ErrTampered, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey { return []keysvc.OpenedKey{*o} }},
		{"another key under this ID", streams.ErrTampered, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey {
			o.KeyID = k.KeyID
			return []keysvc.OpenedKey{*o}
		}},
		{"another key with this record", streams.ErrTampered, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey {
			k.Key = o.Key
			return []keysvc.OpenedKey{*k}
		}},
		{"no key", streams.ErrTampered, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey {
			k.Key = keysvc.DataKey{}
			return []keysvc.OpenedKey{*k}
		}},
		{"no record", streams.ErrTampered, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey {
			k.Record = nil
			return []keysvc.OpenedKey{*k}
		}},
		{"no lease", streams.ErrUnavailable, func(k, o *keysvc.OpenedKey) []keysvc.OpenedKey {
			k.NotAfter = time.Time{}
			return []keysvc.OpenedKey{*k}
		}},
	} {
		keys := opener(func(rs []keysvc.Record) ([]keysvc.OpenedKey, error) {
			got, err := truth.OpenKeys(context.Background(), []keysvc.Record{rs[0], {KeyID: other.KeyID()}})
			if err != nil {
				return nil, err
			}
			return tc.lie(&got[0], &got[1]), nil
		})
		o, err := streams.New(streams.Config{Keys: keys, Accept: s.Accept()})
		if err != nil {
			t.Fatal(err)
		}
		b, err := o.OpenBytes(t.Context(), m.Subject, m.Data)
		if !errors.Is(err, tc.want) || b != nil {
			t.Errorf("%s: OpenBytes = %q, %v, want %v", tc.name, b, err, tc.want)
		}
		if held, _ := streams.Held(o); held != 0 {
			t.Errorf("%s: %d keys held", tc.name, held)
		}
		_ = o.Close()
	}
}

// The Opener clears the keys it was given, whether it used them or not.
func TestKeysAreCleared(t *testing.T) {
	truth := streamstest.NewKeys()
	s := truth.NewSealer(t, streamstest.Sealing{Scope: "x"})
	var given []envelope.DataKey
	keys := opener(func(rs []keysvc.Record) ([]keysvc.OpenedKey, error) {
		got, err := truth.OpenKeys(context.Background(), rs)
		for _, k := range got {
			given = append(given, k.Key)
		}
		return got, err
	})
	accept := s.Accept()
	accept.Rules[0].Scopes = []string{"y"}
	for _, a := range []streams.Accept{s.Accept(), accept} {
		o, err := streams.New(streams.Config{Keys: keys, Accept: a})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Seal(t, "a", nil, nil) // carries the record
		m := s.Seal(t, "a", nil, nil)
		_, _ = o.OpenBytes(t.Context(), m.Subject, m.Data)
		_ = o.Close()
	}
	if len(given) != 2 {
		t.Fatalf("%d keys given, want 2", len(given))
	}
	for i, k := range given {
		if !k.IsZero() {
			t.Errorf("key %d was not cleared", i)
		}
	}
}

// Close ends a call under way and whoever waits for it.
func TestCloseDuringCall(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		b.keys.Hook = func(ctx context.Context, _ []keysvc.Record) error { <-ctx.Done(); return ctx.Err() }
		m := b.message(t)
		done := make(chan error, 1)
		go func() { done <- b.open(t, m) }()
		synctest.Wait()
		must(t, b.o.Close())
		if err := <-done; !errors.Is(err, streams.ErrClosed) {
			t.Errorf("open during Close: %v, want ErrClosed", err)
		}
	})
}

// A key service that never answers holds nobody longer than KeyTimeout.
func TestKeyTimeout(t *testing.T) {
	bubble(t, streamstest.Sealing{}, func(t *testing.T, b *bench) {
		b.keys.Hook = func(ctx context.Context, _ []keysvc.Record) error { <-ctx.Done(); return ctx.Err() }
		start := time.Now()
		if err := b.open(t, b.message(t)); !errors.Is(err, streams.ErrUnavailable) {
			t.Errorf("open = %v, want ErrUnavailable", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("open took %v, want 3s", d)
		}
	}, func(c *streams.Config) { c.KeyTimeout = 3 * time.Second })
}
