package gateway_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

// eachRetention runs a test for every kind of source, which releases.
func eachRetention(t *testing.T, f func(*testing.T, jetstream.StreamConfig)) {
	for _, r := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy, jetstream.InterestPolicy} {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			f(t, jetstream.StreamConfig{Retention: r})
		})
	}
}

// sealWhileRunning relays messages 1..n, releases them, and shuts down; an
// interest stream keeps only what comes while somebody is interested.
func (f *fixture) sealWhileRunning(n int) {
	f.t.Helper()
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	run := f.start()
	run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	f.publish(1, n)
	f.sealedCount(uint64(n), 10*time.Second)
	f.sourceEmpty()
	if err := run.stop(); err != nil {
		f.t.Fatalf("Run = %v", err)
	}
}

// Somebody purges the source beyond the position.
func TestSourcePurgedBeyondThePosition(t *testing.T) {
	t.Parallel()
	eachRetention(t, func(t *testing.T, cfg jetstream.StreamConfig) {
		f := newFixture(t, cfg)
		f.sealWhileRunning(10)
		f.publish(11, 20)
		s, err := f.js.Stream(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(16)); err != nil {
			t.Fatal(err)
		}
		if err := f.start().stopped(gateway.ErrSourceGap); !strings.Contains(err.Error(), "5 messages") {
			t.Errorf("Run = %v, want 5 messages", err)
		}
		from := uint64(16)
		f.route.ResumeFrom = &from
		run := f.start()
		f.sealedCount(15, 10*time.Second)
		f.sourceEmpty()
		run.stop()
		got := f.open()
		checkChain(t, got)
		if m := got[10]; m.payload != "m16" || m.meta.Previous != 10 || m.meta.Sequence != 16 {
			t.Errorf("message 11 is %q, %+v, want m16 after 10", m.payload, m.meta)
		}
	})
}

// The source is deleted and made again, and grows beyond the position.
func TestSourceRecreatedOfEachKind(t *testing.T) {
	t.Parallel()
	eachRetention(t, func(t *testing.T, cfg jetstream.StreamConfig) {
		f := newFixture(t, cfg)
		f.sealWhileRunning(10)
		if err := f.js.DeleteStream(t.Context(), source); err != nil {
			t.Fatal(err)
		}
		cfg.Name, cfg.Subjects = source, []string{"in.>"}
		f.create(cfg)
		if err := f.start().stopped(gateway.ErrSourceChanged); !strings.Contains(err.Error(), "was created") {
			t.Errorf("Run = %v", err)
		}
		from := uint64(1)
		f.route.ResumeFrom = &from
		run := f.start()
		run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
		f.publish(11, 30)
		f.sealedCount(30, 10*time.Second)
		f.sourceEmpty()
		run.stop()
		got := f.open()
		checkChain(t, got[:10])
		checkChain(t, got[10:])
		if m := got[10]; m.payload != "m11" || m.meta.Sequence != 1 || m.meta.Chain == got[9].meta.Chain {
			t.Errorf("message 11 is %q, %+v, want m11 as the first of a new chain", m.payload, m.meta)
		}
	})
}

// A work queue is restored from a backup that holds messages long sealed, and
// acknowledged: they come again, and are not sealed again.
func TestWorkQueueRestored(t *testing.T) {
	t.Parallel()
	f := newRollbackOf(t, source, jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.publish(1, 10)
	f.save()
	f.publish(11, 20)
	run := f.start()
	f.sealedCount(20, 10*time.Second)
	f.sourceEmpty()
	run.stop()
	f.back()
	if got := f.info(source).State; got.Msgs != 10 || got.LastSeq != 10 {
		t.Fatalf("restored stream has %d messages up to %d, want 10 up to 10", got.Msgs, got.LastSeq)
	}
	f.start().stopped(gateway.ErrSourceChanged)
	from := uint64(11)
	f.route.ResumeFrom = &from
	run = f.start()
	f.publish(21, 30)
	f.sealedCount(30, 10*time.Second)
	f.sourceEmpty()
	run.stop()
	for i, o := range f.open() {
		if o.payload != string(payloadOf(i+1)) {
			t.Fatalf("message %d is %q", i+1, o.payload)
		}
	}
}

// No window of de-duplication is involved: a worker that is cut off in the middle,
// and away for longer than the sealed stream remembers, doubles nothing.
func TestDownLongerThanTheDuplicateWindow(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, func(t *testing.T, e gateway.Engine) {
		const window = 100 * time.Millisecond
		f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
		cfg := relayedConfig()
		cfg.Duplicates, cfg.AllowBatchPublish, cfg.AllowAtomicPublish = window, true, true
		f.create(cfg)
		f.route.Engine, f.route.Sealed.Create = e, nil
		const n, rounds = 6000, 3
		f.publish(1, n)
		for i := range rounds {
			src, dst := f.srv.Conn(t), f.srv.Conn(t)
			f.route.Source.Conn, f.route.Sealed.Conn = src, dst
			run := f.start()
			natstest.Eventually(t, 10*time.Second, func() error {
				if got := f.info(sealed).State.LastSeq; got < uint64((i+1)*n/(rounds+2)) {
					return fmt.Errorf("sealed %d", got)
				}
				return nil
			})
			dst.Close() // with messages in flight, of which nobody knows whether they are stored
			src.Close()
			run.stopped(gateway.ErrConnection)
			down := time.Now()
			last := f.info(sealed).State.LastTime
			natstest.Eventually(t, 10*time.Second, func() error {
				if time.Since(down) < 3*window || time.Since(last) < 3*window {
					return fmt.Errorf("down for %v", time.Since(down))
				}
				return nil
			})
		}
		if got := f.info(sealed).Config.Duplicates; got != window {
			t.Fatalf("the sealed stream remembers for %v, want %v", got, window)
		}
		nc := f.srv.Conn(t)
		f.route.Source.Conn, f.route.Sealed.Conn = nc, nc
		f.start()
		f.sealedCount(n, 15*time.Second)
		f.verify(1, n)
	})
}
