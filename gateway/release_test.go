package gateway_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

// A source message is released only when its sealed copy is as old as the sync
// interval of the sealed stream's server.
func TestReleaseLagsTheAcknowledgement(t *testing.T) {
	t.Parallel()
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy, jetstream.InterestPolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			const lag = time.Second
			f := newFixture(t, jetstream.StreamConfig{Retention: retention})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.route.Sealed.SyncInterval = lag
			run := f.start()
			run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			f.publish(1, 50)
			f.sealedCount(50, 5*time.Second)
			sealedAt := f.info(sealed).State.FirstTime
			natstest.Eventually(t, 10*time.Second, func() error {
				n := f.info(source).State.Msgs
				if age := time.Since(sealedAt); n < 50 && age < lag {
					t.Fatalf("%d of 50 source messages left %v after the sealed copy, want all for %v", n, age, lag)
				}
				if n != 0 {
					return fmt.Errorf("%d source messages left", n)
				}
				return nil
			})
			run.eventually("stats", func(s gatewayStats) bool { return s.Released == 50 })
		})
	}
}

// What a stopped worker had sealed and not released, its successor releases.
func TestReleaseByTheSuccessor(t *testing.T) {
	t.Parallel()
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy, jetstream.InterestPolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{Retention: retention})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.route.Sealed.SyncInterval = time.Hour
			run := f.start()
			run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			f.publish(1, 50)
			f.sealedCount(50, 5*time.Second)
			run.stop()
			if n := f.info(source).State.Msgs; n != 50 {
				t.Fatalf("%d of 50 source messages left before the lag has passed", n)
			}
			f.route.Sealed.SyncInterval = 200 * time.Millisecond
			f.start()
			f.sourceEmpty()
			f.publish(51, 60)
			f.sealedCount(60, 5*time.Second)
			f.sourceEmpty()
			f.verify(1, 60)
			natstest.Eventually(t, 5*time.Second, func() error {
				s, err := f.js.Stream(t.Context(), source)
				if err != nil {
					return err
				}
				if n := s.CachedInfo().State.Consumers; n > 1 {
					return fmt.Errorf("%d consumers on the source", n)
				}
				return nil
			})
		})
	}
}

// Purging takes the route's own subjects only.
func TestPurgeLeavesOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Subjects: []string{"in.>", "other.>"}})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	for range 5 {
		if _, err := f.js.Publish(t.Context(), "other.x", nil); err != nil {
			t.Fatal(err)
		}
	}
	f.publish(1, 20)
	f.start()
	f.sealedCount(20, 5*time.Second)
	natstest.Eventually(t, 5*time.Second, func() error {
		if n := f.info(source).State.Msgs; n != 5 {
			return fmt.Errorf("%d source messages left, want the 5 of other.>", n)
		}
		return nil
	})
}

func TestKeepReleasesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(20)
	if n := f.info(source).State.Msgs; n != 20 {
		t.Errorf("%d source messages left, want 20", n)
	}
}

// A queue whose acknowledgements wait is cut off: what is delivered again is
// acknowledged, not sealed again.
func TestQueueCut(t *testing.T) {
	t.Parallel()
	for _, retention := range []jetstream.RetentionPolicy{jetstream.WorkQueuePolicy, jetstream.InterestPolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{Retention: retention, Storage: jetstream.MemoryStorage})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.route.Sealed.SyncInterval = 300 * time.Millisecond
			p := natstest.NewProxy(t, f.srv.Addr())
			f.route.Source.Conn = natstest.Connect(t, p.ClientURL())
			run := f.start()
			run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			const n = 10000
			for i := range 5 {
				f.publish(i*n/5+1, (i+1)*n/5)
				natstest.Eventually(t, 10*time.Second, func() error {
					if s := run.stats(); s.Position < uint64(i*n/5+100) {
						return errors.New("not yet")
					}
					return nil
				})
				if p.Cut() == 0 {
					t.Fatal("nothing to cut")
				}
			}
			f.sealedCount(n, 15*time.Second)
			f.sourceEmpty()
			run.stop()
			f.verify(1, n)
		})
	}
}
