package keycache_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/keyweir/keyweir/internal/keycache"
)

// ledger is what callers were told: the last acknowledged counter per worker.
type ledger struct {
	mu    sync.Mutex
	acked map[string]int
}

func (l *ledger) ack(worker string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[worker] = n
}

func (l *ledger) snapshot() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.acked)
}

// put applies one batch of two rows that must never be seen apart.
func put(t testing.TB, s *keycache.Store, worker string, n int) error {
	var b keycache.Batch
	v := []byte(strconv.Itoa(n))
	b.Put([]byte("a/"+worker), v)
	b.Put([]byte("b/"+worker), append(v, make([]byte, 700)...))
	return s.Apply(t.Context(), &b)
}

// check opens a copy of the disk and compares it with what was acknowledged.
func check(t testing.TB, fs vfs.FS, acked map[string]int) {
	t.Helper()
	s, err := keycache.OpenFS(fs, "db", options(t))
	if err != nil {
		t.Errorf("Open after a power cut: %v", err)
		return
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	for worker := range acked {
		got := -1
		a, err := s.Get([]byte("a/" + worker))
		if err == nil {
			got, err = strconv.Atoi(string(a))
		}
		if err != nil || got < acked[worker] {
			t.Errorf("worker %s: store has %d (%v), %d was acknowledged", worker, got, err, acked[worker])
			continue
		}
		b, err := s.Get([]byte("b/" + worker))
		if err != nil || string(b[:len(a)]) != string(a) || b[len(a)] != 0 {
			t.Errorf("worker %s: torn batch: %q and %.8q (%v)", worker, a, b, err)
		}
	}
}

// Power cuts at random writes, creation included: nothing acknowledged is lost,
// no batch is torn, the store opens, also when the power fails once more right
// after the repair.
func TestPowerCuts(t *testing.T) {
	const rounds, wantCuts = 12, 300
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	cuts := 0
	for round := range rounds {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		mem := vfs.NewCrashableMem()
		l := &ledger{acked: map[string]int{}}
		type cut struct {
			fs    *vfs.MemFS
			acked map[string]int
		}
		var mu sync.Mutex // guards taken and rng
		var taken []cut
		var ops int
		inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			// Every write of the creation in one round, several ways each, and a
			// few of the rest.
			n := 0
			if ops++; round == 0 && ops < 60 {
				n = 8
			} else if rng.IntN(30) == 0 {
				n = 1
			}
			for range n {
				acked := l.snapshot() // before the cut: all of it must survive
				fs := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				taken = append(taken, cut{fs, acked})
			}
			return nil
		})
		s, err := keycache.OpenFS(errorfs.Wrap(mem, inject), "db", options(t))
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				worker := strconv.Itoa(w)
				for n := range 60 {
					if err := put(t, s, worker, n); err != nil {
						t.Errorf("Apply: %v", err)
						return
					}
					l.ack(worker, n)
					if w == 0 && n%25 == 24 {
						if err := s.Erase(t.Context(), []byte("a/")); err != nil {
							t.Errorf("Erase: %v", err)
						}
					}
				}
			})
		}
		wg.Wait()
		mustClose(t, s)
		for _, c := range taken {
			if cuts++; cuts%3 == 0 {
				// A second cut, right after opening and repairing the first one.
				s, err := keycache.OpenFS(c.fs, "db", options(t))
				if err != nil {
					t.Errorf("Open after a power cut: %v", err)
					continue
				}
				second := c.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				mustClose(t, s)
				c.fs = second
			}
			check(t, c.fs, c.acked)
			if t.Failed() {
				t.Fatalf("after cut %d of round %d", cuts, round)
			}
		}
	}
	if cuts < wantCuts {
		t.Errorf("only %d power cuts, want at least %d", cuts, wantCuts)
	}
	t.Logf("%d power cuts", cuts)
}

// Erase returns only when the old tables are gone from the directory.
func TestEraseWaitsForRemoval(t *testing.T) {
	release := make(chan struct{})
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpRemove && strings.HasSuffix(op.Path, ".sst") {
			<-release
		}
		return nil
	})
	s, err := keycache.OpenFS(errorfs.Wrap(vfs.NewMem(), inject), "db", options(t))
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "k", "secret")
	if err := s.Erase(t.Context(), nil); err != nil { // into a table; nothing to remove yet
		t.Fatal(err)
	}
	var b keycache.Batch
	b.Delete([]byte("k"))
	if err := s.Apply(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Erase(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Erase while the old table is still there = %v, want DeadlineExceeded", err)
	}
	close(release)
	if err := s.Erase(t.Context(), nil); err != nil {
		t.Errorf("Erase: %v", err)
	}
	mustClose(t, s)
}

// faulty runs a fixed workload on a disk whose write number n (and, if sticky,
// every later one) fails, and returns how many writes there were.
func faulty(t *testing.T, n int, sticky bool) (writes int) {
	t.Helper()
	mem := vfs.NewCrashableMem()
	var count atomic.Int64
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		if i := int(count.Add(1)); n > 0 && (i == n || sticky && i > n) {
			return errorfs.ErrInjected
		}
		return nil
	})
	var fatal atomic.Int64
	o := options(t)
	o.OnFatal = func(err error) { fatal.Add(1) }
	acked := map[string]int{}
	s, err := keycache.OpenFS(errorfs.Wrap(mem, inject), "db", o)
	if err == nil {
		stopped := false
		for i := range 40 {
			err := put(t, s, "w", i)
			switch {
			case err == nil && stopped:
				t.Errorf("write %d fails: batch %d acknowledged by a stopped store", n, i)
			case err == nil:
				acked["w"] = i
			case !errors.Is(err, keycache.ErrStopped):
				t.Errorf("write %d fails: Apply = %v, want ErrStopped", n, err)
			default:
				stopped = true
			}
			if i == 20 {
				if err := s.Erase(t.Context(), nil); err != nil && !errors.Is(err, keycache.ErrStopped) {
					t.Logf("write %d fails: Erase = %v", n, err)
				}
			}
		}
		if stopped {
			if _, err := s.Get([]byte("a/w")); !errors.Is(err, keycache.ErrStopped) {
				t.Errorf("write %d fails: Get of a stopped store = %v, want ErrStopped", n, err)
			}
			if err := s.Close(); !errors.Is(err, keycache.ErrStopped) {
				t.Errorf("write %d fails: Close of a stopped store = %v, want ErrStopped", n, err)
			}
			waitFor(t, func() bool { return fatal.Load() == 1 })
		} else {
			_ = s.Close()
		}
	}
	if f := fatal.Load(); f > 1 {
		t.Errorf("write %d fails: OnFatal called %d times", n, f)
	}
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for _, percent := range []int{0, 100} {
		check(t, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}), acked)
	}
	return int(count.Load())
}

func TestFailedWrites(t *testing.T) {
	total := faulty(t, 0, false)
	if total < 100 {
		t.Fatalf("the workload makes only %d writes", total)
	}
	step := 1
	if testing.Short() {
		step = 9
	}
	for n := 1; n <= total && !t.Failed(); n += step {
		faulty(t, n, n%2 == 0)
	}
	t.Logf("%d writes, step %d", total, step)
}

func TestFatalStopsOnce(t *testing.T) {
	cause := errors.New("disk on fire")
	var calls atomic.Int64
	o := options(t)
	o.OnFatal = func(err error) {
		if calls.Add(1); err.Error() != cause.Error() {
			t.Errorf("OnFatal(%v), want %v", err, cause)
		}
	}
	s, err := keycache.OpenMemory(o)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "a", "1")
	for range 3 {
		go s.Fatal(cause) // parks
	}
	var last error
	waitFor(t, func() bool { _, last = s.Get([]byte("a")); return last != nil && calls.Load() == 1 })
	if !errors.Is(last, keycache.ErrStopped) || !strings.Contains(last.Error(), cause.Error()) {
		t.Errorf("Get = %v, want ErrStopped with the cause", last)
	}
	if err := put(t, s, "w", 1); !errors.Is(err, keycache.ErrStopped) {
		t.Errorf("Apply = %v, want ErrStopped", err)
	}
	runtime.Gosched()
	if err := s.Close(); !errors.Is(err, keycache.ErrStopped) {
		t.Errorf("Close = %v, want ErrStopped", err)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("OnFatal called %d times, want 1", n)
	}
}
