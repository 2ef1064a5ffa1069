package envelope_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

// sealedBy returns one envelope from each of n sessions.
func sealedBy(tb testing.TB, key envelope.DataKey, record *envelope.Record, n int) [][]byte {
	tb.Helper()
	out := make([][]byte, n)
	for i := range out {
		m := benchMeta
		m.Sequence = uint64(i)
		out[i] = seal(tb, newSession(tb, key, record, envelope.SessionConfig{Record: envelope.RecordMode(i % 3), RandomNonce: i%2 == 0}), &m, fmt.Append(nil, "payload ", i))
	}
	return out
}

func TestReaderConcurrently(t *testing.T) {
	const sessions, bound, workers, rounds = 60, 16, 8, 10
	key, record := newKey(t)
	sealed := sealedBy(t, key, record, sessions)
	r := newReader(t, key, record, bound)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			buf := make([]byte, 0, 1024)
			for i := range rounds * sessions {
				n := (i*(w+1) + w) % sessions
				e, err := envelope.Parse(sealed[n])
				if err != nil {
					t.Error(err)
					return
				}
				o, err := r.Open(buf, &e)
				if err != nil || o.Meta.Sequence != uint64(n) || string(o.Payload) != fmt.Sprint("payload ", n) {
					t.Errorf("session %d: %q, %v", n, o.Payload, err)
					return
				}
				if listed, indexed, _ := r.Sessions(); listed > bound || indexed != listed {
					t.Errorf("%d sessions kept, %d indexed, bound %d", listed, indexed, bound)
					return
				}
			}
		})
	}
	wg.Wait()
	if listed, _, last := r.Sessions(); listed != bound || !last {
		t.Errorf("%d sessions kept after all, want %d", listed, bound)
	}
}

func TestReaderKeepsTheRecentlyUsed(t *testing.T) {
	key, record := newKey(t)
	sealed := sealedBy(t, key, record, 4)
	r := newReader(t, key, record, 2)
	open := func(n int) {
		t.Helper()
		e, err := envelope.Parse(sealed[n])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Open(nil, &e); err != nil {
			t.Fatal(err)
		}
	}
	keeps := func(n int) bool { return r.Keeps(envelope.Salt(sealed[n][40:56])) }
	open(0)
	open(1)
	open(0) // 1 is the oldest now
	open(2) // and goes
	if !keeps(0) || keeps(1) || !keeps(2) {
		t.Errorf("kept: 0 %v, 1 %v, 2 %v; want 0 and 2", keeps(0), keeps(1), keeps(2))
	}
	if listed, indexed, _ := r.Sessions(); listed != 2 || indexed != 2 {
		t.Errorf("%d sessions kept, %d indexed, want 2", listed, indexed)
	}
}

// TestForgedSaltsAreNotKept: only a session that opened something is kept.
func TestForgedSaltsAreNotKept(t *testing.T) {
	key, record := newKey(t)
	sealed := sealedBy(t, key, record, 1)[0]
	r := newReader(t, key, record, 4)
	for i := range 100 {
		forged := bytes.Clone(sealed)
		forged[40+i%16] ^= byte(i + 1)
		e, err := envelope.Parse(forged)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Open(nil, &e); !errors.Is(err, envelope.ErrTampered) {
			t.Fatalf("forged salt: %v", err)
		}
	}
	if listed, indexed, last := r.Sessions(); listed+indexed != 0 || last {
		t.Errorf("%d forged sessions kept", listed)
	}
}

func TestReaderClose(t *testing.T) {
	key, record := newKey(t)
	sealed := sealedBy(t, key, record, 20)
	r := newReader(t, key, record, 0)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			<-start
			for i := range 200 {
				e, err := envelope.Parse(sealed[(i+w)%len(sealed)])
				if err != nil {
					t.Error(err)
					return
				}
				o, err := r.Open(nil, &e)
				if err != nil && (!errors.Is(err, envelope.ErrInvalid) || o.Payload != nil) {
					t.Errorf("open while closing: %v", err)
				}
				if w == 0 && i == 100 {
					r.Close()
				}
			}
		})
	}
	close(start)
	wg.Wait()
	r.Close()
	if listed, indexed, last := r.Sessions(); listed+indexed != 0 || last {
		t.Errorf("%d sessions survive Close", listed)
	}
	for _, b := range sealed {
		e, err := envelope.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Open(nil, &e); !errors.Is(err, envelope.ErrInvalid) {
			t.Fatalf("open after Close = %v, want ErrInvalid", err)
		}
	}
	if key.IsZero() {
		t.Error("Close cleared the caller's key")
	}
	if _, err := envelope.NewKeyReader(record, key, 0); err != nil {
		t.Errorf("a new reader of the same key: %v", err)
	}
}
