package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
)

func TestChooseEngine(t *testing.T) {
	const r1, r3 = 1, 3
	for _, c := range []struct {
		want          Engine
		fast, durable bool // what the stream allows
		replicas      int
		storage       jetstream.StorageType
		sync          time.Duration
		engine        Engine
		err           bool
	}{
		{want: EngineAuto, fast: true, durable: true, replicas: r1, sync: time.Minute, engine: EngineAsync},
		{want: EngineAuto, fast: true, durable: true, replicas: r1, sync: SyncAlways, engine: EngineDurable},
		{want: EngineAuto, fast: true, durable: true, replicas: r1, sync: SyncAlways, storage: jetstream.MemoryStorage, engine: EngineAsync},
		{want: EngineAuto, fast: true, durable: true, replicas: r3, sync: SyncAlways, engine: EngineAsync},
		{want: EngineAuto, fast: true, replicas: r1, sync: SyncAlways, engine: EngineAsync},
		{want: EngineAuto, durable: true, replicas: r1, sync: SyncAlways, engine: EngineDurable},
		{want: EngineAuto, durable: true, replicas: r1, sync: time.Minute, engine: EngineAsync},
		{want: EngineAuto, replicas: r1, sync: SyncAlways, engine: EngineAsync},
		{want: EngineAuto, replicas: r3, sync: time.Minute, engine: EngineAsync},
		{want: EngineFast, fast: true, durable: true, replicas: r1, sync: SyncAlways, engine: EngineFast},
		{want: EngineFast, durable: true, replicas: r1, sync: time.Minute, err: true},
		{want: EngineDurable, durable: true, replicas: r3, sync: time.Minute, engine: EngineDurable},
		{want: EngineDurable, fast: true, replicas: r1, sync: SyncAlways, err: true},
		{want: EngineAsync, fast: true, durable: true, replicas: r1, sync: SyncAlways, engine: EngineAsync},
	} {
		cfg := jetstream.StreamConfig{Name: "S", Replicas: c.replicas, Storage: c.storage, AllowBatchPublish: c.fast, AllowAtomicPublish: c.durable}
		got, why, err := chooseEngine(c.want, &cfg, c.sync, "2.13.0")
		if c.err {
			if !errors.Is(err, ErrEngine) || !strings.Contains(err.Error(), "2.13.0") {
				t.Errorf("%+v: error %v", c, err)
			}
			continue
		}
		if err != nil || got != c.engine || why == "" {
			t.Errorf("%+v: %v because %q, %v", c, got, why, err)
		}
	}
}

func TestVersionAtLeast(t *testing.T) {
	for v, want := range map[string]bool{
		"2.14.0": true, "2.14.3-RC.1": true, "2.15.2": true, "3.0.0": true, "2.13.9": false, "2.9.25": false, "1.20.0": false,
		"2.14": true, "": false, "dev": false, "2": false,
	} {
		if got := versionAtLeast(v, 2, 14); got != want {
			t.Errorf("versionAtLeast(%q, 2, 14) = %v", v, got)
		}
	}
}

// rig is an engine alone, in front of a real stream.
type rig struct {
	t      *testing.T
	js     jetstream.JetStream
	nc     *nats.Conn
	cfg    engineConfig
	source uint64
}

func newRig(t *testing.T, options ...natstest.Option) *rig {
	srv := natstest.New(t, options...)
	r := &rig{t: t, js: srv.JetStream(t), nc: srv.Conn(t)}
	if _, err := r.js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.>"}, AllowAtomicPublish: true, AllowBatchPublish: true,
	}); err != nil {
		t.Fatal(err)
	}
	r.cfg = engineConfig{
		nc: r.nc, stream: "S", window: 512, ackTimeout: 5 * time.Second,
		signer: newSigner(envelope.GenerateDataKey(), &home{}, envelope.ChainID{1}, 1),
	}
	return r
}

// payloadOfRig is what message i carries.
func payloadOfRig(i uint64, size int) []byte {
	return append(strconv.AppendUint(nil, i, 10), bytes.Repeat([]byte{'.'}, size)...)
}

// publish sends n messages, of which only the last may be the last.
func (r *rig) publish(e engine, n, size int, last bool) error {
	for i := range n {
		r.source++
		o := &outgoing{subject: "s.a", data: payloadOfRig(r.source, size), source: r.source, previous: r.source - 1, payload: size, last: last && i == n-1}
		if err := e.publish(r.t.Context(), o); err != nil {
			return err
		}
	}
	return nil
}

// acked waits until a sequence is acknowledged.
func (r *rig) acked(e engine, want uint64) {
	r.t.Helper()
	natstest.Eventually(r.t, 10*time.Second, func() error {
		if err := e.err(); err != nil {
			r.t.Fatalf("engine failed: %v", err)
		}
		if a := e.acked(); a.sealed != want+r.cfg.lastSeq || a.source != want {
			return fmt.Errorf("acknowledged up to %d (source %d), want %d", a.sealed, a.source, want)
		}
		return nil
	})
}

// stored returns the sizes of the batches that the stream holds, and checks that
// it has messages 1 to n in order. A message of no batch counts as one.
func (r *rig) stored(n uint64, size int) []int {
	r.t.Helper()
	s, err := r.js.Stream(r.t.Context(), "S")
	if err != nil {
		r.t.Fatal(err)
	}
	if last := s.CachedInfo().State.LastSeq; last != n {
		r.t.Fatalf("the stream ends at %d, want %d", last, n)
	}
	var sizes []int
	id := ""
	for seq := uint64(1); seq <= n; seq++ {
		m, err := s.GetMsg(r.t.Context(), seq)
		if err != nil {
			r.t.Fatal(err)
		}
		if !bytes.Equal(m.Data, payloadOfRig(seq, size)) {
			r.t.Fatalf("message %d is %.20q", seq, m.Data)
		}
		if b := m.Header.Get(headerBatchID); b == "" || b != id {
			id = b
			sizes = append(sizes, 0)
		}
		sizes[len(sizes)-1]++
	}
	return sizes
}

func (r *rig) stranger() {
	r.t.Helper()
	if _, err := r.js.Publish(r.t.Context(), "s.b", []byte("stranger")); err != nil {
		r.t.Fatal(err)
	}
}

// never is an age that no batch reaches in a test.
const never = time.Hour

func TestDurableBatchLimits(t *testing.T) {
	for name, c := range map[string]struct {
		n, size int
		limits  batchLimits
		want    []int
	}{
		"count":       {250, 10, batchLimits{100, 1 << 20, never}, []int{100, 100, 50}},
		"bytes":       {25, 20000, batchLimits{100, 200 << 10, never}, []int{10, 10, 5}}, // 20,000 and less than 500 for headers
		"one too big": {3, 5000, batchLimits{100, 1000, never}, []int{1, 1, 1}},
		"one":         {1, 10, batchLimits{100, 1 << 20, never}, []int{1}},
		"default":     {2500, 10, batchLimits{defaultBatchLimits.count, defaultBatchLimits.bytes, never}, []int{1000, 1000, 500}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			e, err := newDurable(r.cfg, c.limits)
			if err != nil {
				t.Fatal(err)
			}
			defer e.close()
			if err := r.publish(e, c.n, c.size, true); err != nil {
				t.Fatal(err)
			}
			r.acked(e, uint64(c.n))
			if got := r.stored(uint64(c.n), c.size); fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("batches of %v, want %v", got, c.want)
			}
		})
	}
	t.Run("age", func(t *testing.T) {
		r := newRig(t)
		e, err := newDurable(r.cfg, defaultBatchLimits)
		if err != nil {
			t.Fatal(err)
		}
		defer e.close()
		if err := r.publish(e, 3, 10, false); err != nil {
			t.Fatal(err)
		}
		r.acked(e, 3) // though nobody said that these are the last
	})
	t.Run("drain", func(t *testing.T) {
		r := newRig(t)
		e, err := newDurable(r.cfg, batchLimits{100, 1 << 20, never})
		if err != nil {
			t.Fatal(err)
		}
		defer e.close()
		if err := errors.Join(r.publish(e, 3, 10, false), e.drain(t.Context())); err != nil {
			t.Fatal(err)
		}
		r.stored(3, 10)
	})
}

func serverLimits(set func(*server.JSLimitOpts)) natstest.Option {
	return func(o *embednats.Options) { o.Configure = func(s *server.Options) { set(&s.JetStreamLimits) } }
}

// A server with a smaller limit gets smaller batches.
func TestDurableServerBatchSize(t *testing.T) {
	r := newRig(t, serverLimits(func(l *server.JSLimitOpts) { l.MaxBatchSize = 40 }))
	e, err := newDurable(r.cfg, batchLimits{100, 1 << 20, never})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	if err := r.publish(e, 250, 10, true); err != nil {
		t.Fatal(err)
	}
	r.acked(e, 250)
	for _, n := range r.stored(250, 10) {
		if n > 40 {
			t.Errorf("a batch of %d", n)
		}
	}
}

// Somebody's open batch is all that the server takes; ours is repeated, in the
// same bytes, until that one is gone.
func TestDurableTooManyBatches(t *testing.T) {
	r := newRig(t, serverLimits(func(l *server.JSLimitOpts) { l.MaxBatchInflightPerStream = 1 }))
	open := func(seq string) {
		t.Helper()
		m := &nats.Msg{Subject: "s.b", Header: nats.Header{headerBatchID: {"other"}, headerBatchSeq: {seq}}}
		if _, err := r.nc.RequestMsg(m, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	open("1")
	e, err := newDurable(r.cfg, defaultBatchLimits)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	attempts, err := r.nc.SubscribeSync("s.a")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.publish(e, 3, 10, true); err != nil {
		t.Fatal(err)
	}
	for range 6 { // two attempts
		if _, err := attempts.NextMsg(5 * time.Second); err != nil {
			t.Fatalf("the batch was not repeated: %v", err)
		}
	}
	if a := e.acked(); a.sealed != 0 {
		t.Errorf("acknowledged up to %d", a.sealed)
	}
	open("7") // a hole: the server drops it
	r.acked(e, 3)
	r.stored(3, 10)

	// For ever is too long.
	open("1")
	r.cfg.lastSeq, r.cfg.ackTimeout = 3, 400*time.Millisecond
	e2, err := newDurable(r.cfg, defaultBatchLimits)
	if err != nil {
		t.Fatal(err)
	}
	defer e2.close()
	if err := r.publish(e2, 2, 10, true); err != nil {
		t.Fatal(err)
	}
	select {
	case <-e2.failed():
	case <-time.After(5 * time.Second):
		t.Fatal("the engine did not give up")
	}
	if err := e2.err(); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "10210") {
		t.Errorf("engine failed with %v", err)
	}
}

// Another writer comes first: nothing of the batch is stored.
func TestDurableRefusedWhole(t *testing.T) {
	r := newRig(t)
	e, err := newDurable(r.cfg, batchLimits{100, 1 << 20, never})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	if err := r.publish(e, 10, 10, false); err != nil {
		t.Fatal(err)
	}
	r.stranger()
	if err := r.publish(e, 10, 10, true); err != nil {
		t.Fatal(err)
	}
	r.refused(e, 1, 0)
}

// refused waits until the engine is fenced, and checks where the stream ends and
// what was acknowledged by then.
func (r *rig) refused(e engine, last, acked uint64) {
	r.t.Helper()
	select {
	case <-e.failed():
	case <-time.After(10 * time.Second):
		r.t.Fatal("the engine was not refused")
	}
	if err := e.err(); !errors.Is(err, ErrFenced) {
		r.t.Errorf("engine failed with %v, want ErrFenced", err)
	}
	if err := e.drain(context.Background()); !errors.Is(err, ErrFenced) {
		r.t.Errorf("drain = %v", err)
	}
	if a := e.acked(); a.sealed != acked {
		r.t.Errorf("acknowledged up to %d, want %d", a.sealed, acked)
	}
	s, err := r.js.Stream(r.t.Context(), "S")
	if err != nil {
		r.t.Fatal(err)
	}
	if got := s.CachedInfo().State.LastSeq; got != last {
		r.t.Errorf("the stream ends at %d, want %d", got, last)
	}
}
