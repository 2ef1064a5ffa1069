package gateway

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
)

// sharing is a shared stream and the fences of one partition in it.
type sharing struct {
	t   *testing.T
	nc  *nats.Conn
	js  jetstream.JetStream
	cfg jetstream.StreamConfig
	key envelope.DataKey
}

func newSharing(t *testing.T) *sharing {
	t.Helper()
	srv := natstest.New(t)
	s := &sharing{t: t, nc: srv.Conn(t), js: srv.JetStream(t), key: envelope.GenerateDataKey()}
	s.cfg = jetstream.StreamConfig{Name: "S", Subjects: []string{"sealed.>", checkpoint.Pattern("S")}, AllowRollup: true, AllowAtomicPublish: true, Storage: jetstream.MemoryStorage}
	if _, err := s.js.CreateStream(t.Context(), s.cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

// writer is one tenure of partition 0 that read a last checkpoint.
func (s *sharing) marker(follows uint64) *marker {
	h := &home{route: "r", sealed: "S", source: "IN", shared: true}
	return &marker{
		nc: s.nc, js: s.js, stream: "S", subject: checkpoint.Subject("S", 0), signer: newCheckpointSigner(s.key, h, envelope.ChainID{1}, 1),
		patience: 5 * time.Second, pause: time.Millisecond, follows: follows,
	}
}

func (s *sharing) engine(m *marker) *durableEngine {
	s.t.Helper()
	h := &home{route: "r", sealed: "S", source: "IN", shared: true}
	e, err := newDurable(engineConfig{
		nc: s.nc, stream: "S", signer: newSigner(s.key, h, envelope.ChainID{1}, 1), lastSeq: m.follows, window: 512, ackTimeout: 5 * time.Second, marks: m,
	}, defaultBatchLimits)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(e.close)
	return e
}

// publish sends one batch and returns how it ended.
func (s *sharing) publish(e *durableEngine, from, n int) error {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for i := range n {
		m := &outgoing{subject: "sealed.a", data: []byte("x"), source: uint64(from + i), previous: uint64(from + i - 1), last: i == n-1}
		if err := e.publish(ctx, m); err != nil {
			return err
		}
	}
	return e.drain(ctx)
}

func (s *sharing) state() jetstream.StreamState {
	s.t.Helper()
	st, err := s.js.Stream(s.t.Context(), "S")
	if err != nil {
		s.t.Fatal(err)
	}
	return st.CachedInfo().State
}

func (s *sharing) purge() {
	s.t.Helper()
	st, err := s.js.Stream(s.t.Context(), "S")
	if err == nil {
		err = st.Purge(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// The server takes 0 for the last sequence of a subject that has lost its messages.
// No tenure that ever stored a checkpoint gets in by that, nor one that has only read
// that there was none.
func TestSharedFenceStaysShut(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	moved := false
	late := s.marker(0) // read the position before anybody wrote
	late.still = func(context.Context) error {
		if moved {
			return errRecordMoved
		}
		return nil
	}
	m := s.marker(0)
	if err := m.mark(t.Context()); err != nil {
		t.Fatal(err)
	}
	moved = true // as every tenure writes its record first
	e := s.engine(m)
	if err := s.publish(e, 1, 10); err != nil {
		t.Fatal(err)
	}
	if a := e.acked(); a.source != 10 || a.stored != 12 || s.state().LastSeq != 12 || s.state().Msgs != 11 {
		t.Errorf("acknowledged %+v, stream %+v", a, s.state())
	}
	if !e.settled() {
		t.Error("not settled")
	}
	s.purge()
	if err := late.mark(t.Context()); !errors.Is(err, errRecordMoved) {
		t.Errorf("a tenure that began before: %v", err)
	}
	if err := s.publish(e, 11, 10); !errors.Is(err, ErrFenced) {
		t.Errorf("a batch behind a checkpoint that is gone: %v", err)
	}
	if !e.settled() {
		t.Error("the refusal proves that nothing was stored, and the engine does not know it")
	}
	stale := s.marker(12)
	if err := stale.mark(t.Context()); !errors.Is(err, ErrFenced) {
		t.Errorf("a tenure behind a checkpoint that is gone: %v", err)
	}
	if st := s.state(); st.Msgs != 0 || st.LastSeq != 12 {
		t.Errorf("something was stored: %+v", st)
	}
}

// A tenure shuts out the ones before, also one that has stored nothing yet.
func TestSharedTenures(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	a := s.marker(0)
	if err := a.mark(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := s.marker(a.follows)
	if err := b.mark(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.publish(s.engine(a), 1, 3); !errors.Is(err, ErrFenced) {
		t.Errorf("the first tenure: %v", err)
	}
	e := s.engine(b)
	if err := s.publish(e, 1, 2500); err != nil {
		t.Fatalf("the second tenure: %v", err)
	}
	if a := e.acked(); a.source != 2500 || a.sealed != b2500(a.stored, 3) {
		t.Errorf("acknowledged %+v", a)
	}
}

// b2500 is the count of a tenure that began at sequence 2 and stored 2,500 messages in
// batches; stored is that of the last checkpoint.
func b2500(stored, batches uint64) uint64 {
	if stored != 2+2500+batches {
		return 0
	}
	return 2 + 2500
}

// Whatever is changed in a checkpoint, its MAC denies it.
func TestCheckpointMAC(t *testing.T) {
	t.Parallel()
	key := envelope.GenerateDataKey()
	h := home{route: "r", sealed: "S", source: "IN", partition: 1, shared: true}
	at := func(h *home, value string, seq uint64) bool {
		c, err := checkpoint.Parse(value)
		if err != nil {
			return false
		}
		return string(c.MAC) == string(newCheckpointSigner(key, h, c.Chain, c.Created).compute(seq, &c))
	}
	for _, messages := range []uint64{0, 7} {
		value := newCheckpointSigner(key, &h, envelope.ChainID{1}, 5).sign(9, 4, messages, cursor{scanned: 3, previous: 2, timestamp: 1})
		if !at(&h, value, 9) {
			t.Fatalf("%s does not verify", value)
		}
		if got := at(&h, value, 10); got != (messages > 0) {
			t.Errorf("with %d messages, at another sequence: %v", messages, got)
		}
		for i := range value {
			b := []byte(value)
			b[i] ^= 1
			if at(&h, string(b), 9) {
				t.Errorf("%s verifies", b)
			}
		}
		for _, change := range []func(*home){
			func(h *home) { h.route += "x" },
			func(h *home) { h.sealed += "x" },
			func(h *home) { h.source += "x" },
			func(h *home) { h.sealedCreated++ },
			func(h *home) { h.partition++ },
		} {
			o := h
			change(&o)
			if at(&o, value, 9) {
				t.Errorf("verifies as of %+v", o)
			}
		}
	}
}
