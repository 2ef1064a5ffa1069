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

// Plain AckNone reading lost 5,289 of 60,000 messages to six cuts, silently.
func TestConnectionCuts(t *testing.T) {
	t.Parallel()
	eachEngine(t, testConnectionCuts)
}

func testConnectionCuts(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	f.route.Engine = e
	f.route.Sealed.Create.Storage = gateway.MemoryStorage
	p := natstest.NewProxy(t, f.srv.Addr())
	f.route.Source.Conn = natstest.Connect(t, p.ClientURL())
	f.route.Sealed.Conn = natstest.Connect(t, p.ClientURL())
	n, cuts := 60000, 6
	if testing.Short() {
		n = 30000
	}
	f.publish(1, n)
	f.start()
	for i := range cuts {
		want := uint64((i + 1) * n / (cuts + 2))
		natstest.Eventually(t, 20*time.Second, func() error {
			s, err := f.js.Stream(t.Context(), sealed)
			if err != nil {
				return err
			}
			if got := s.CachedInfo().State.LastSeq; got < want {
				return fmt.Errorf("sealed %d, want %d for the next cut", got, want)
			}
			if p.Cut() == 0 {
				return errors.New("no connection to cut") // not back from the last one
			}
			return nil
		})
	}
	f.sealedCount(uint64(n), 20*time.Second)
	f.verify(1, n)
}

// Without claims, two workers write at once all the time; the fence alone has to
// keep every message single and in order.
func TestRacingGateways(t *testing.T) {
	t.Parallel()
	eachEngine(t, testRacingGateways)
}

func testRacingGateways(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	f.tune.NoClaim = true
	const n = 6000
	f.publish(1, 100)
	other := f.route
	other.Source.Conn, other.Sealed.Conn = f.srv.Conn(t), f.srv.Conn(t)
	a, b := f.start(), f.startRoute(other)
	for i := range 10 {
		f.publish(101+i*(n-100)/10, 100+(i+1)*(n-100)/10)
	}
	f.sealedCount(n, 20*time.Second)
	for _, r := range []*running{a, b} {
		if err := r.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	f.verify(1, n)
}

// Two gateways with claims: one works, the other waits and takes over.
func TestClaimHandOver(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	a := f.start()
	a.eventually("first is running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	b := f.start()
	b.eventually("second waits", func(s gatewayStats) bool { return s.State == gateway.StateWaiting })
	f.publish(1, 100)
	f.sealedCount(100, 10*time.Second)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	b.eventually("second took over", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	if took := time.Since(start); took > time.Second {
		t.Errorf("take-over after a clean shutdown took %v: the claim was not released", took)
	}
	f.publish(101, 200)
	f.sealedCount(200, 10*time.Second)
	f.verify(1, 200)
}

// A worker is frozen in the middle of its window, a successor takes over, and the
// frozen one comes back with everything it had in hand.
func TestFrozenZombie(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testFrozenZombie)
}

func testFrozenZombie(t *testing.T, e gateway.Engine) {
	for _, retention := range []jetstream.RetentionPolicy{jetstream.WorkQueuePolicy, jetstream.InterestPolicy, jetstream.LimitsPolicy} {
		if testing.Short() && retention != jetstream.WorkQueuePolicy {
			t.Logf("short: not with a source of %v retention", retention)
			continue
		}
		t.Run(retention.String(), func(t *testing.T) {
			t.Parallel() // waits for most of its time
			f := newFixture(t, jetstream.StreamConfig{Retention: retention, Storage: jetstream.MemoryStorage})
			f.route.Engine = e
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.tune.AckTimeout = 20 * time.Second // the frozen one shall not notice
			f.tune.Heartbeat = 10 * time.Second
			p := natstest.NewProxy(t, f.srv.Addr())
			frozen := f.route
			frozen.Window = 64
			frozen.Source.Conn, frozen.Sealed.Conn = natstest.Connect(t, p.ClientURL()), natstest.Connect(t, p.ClientURL())
			p.SetLatency(2 * time.Millisecond)
			if e == gateway.EngineDurable {
				p.SetLatency(60 * time.Millisecond) // its batches do not know the window
			}
			z := f.startRoute(frozen)
			z.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			const n = 4000
			f.publish(1, n) // the frozen one needs much longer, with 64 messages per 4 ms
			z.eventually("in the middle", func(s gatewayStats) bool { return s.Position > 500 })
			p.Pause()
			if got := f.info(sealed).State.LastSeq; got >= n {
				t.Fatalf("frozen too late: %d of %d sealed", got, n)
			}
			b := f.start()
			b.eventually("successor relays", func(s gatewayStats) bool { return s.State == gateway.StateRunning && s.Messages > 100 })
			p.Resume()
			z.eventually("the frozen one noticed", func(s gatewayStats) bool { return s.LastError != nil })
			f.publish(n+1, n+1000)
			f.sealedCount(n+1000, 15*time.Second)
			f.sourceEmpty()
			for _, r := range []*running{z, b} {
				if err := r.stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
			}
			f.verify(1, n+1000)
		})
	}
}

func TestServerRestart(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testServerRestart)
}

func testServerRestart(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	f.publish(1, 1000)
	run := f.start()
	f.sealedCount(1000, 10*time.Second)
	for i := range 2 {
		f.srv.Restart()
		natstest.Eventually(t, 10*time.Second, func() error {
			_, err := f.js.AccountInfo(t.Context())
			return err
		})
		f.publish(1000*(i+1)+1, 1000*(i+2))
		f.sealedCount(uint64(1000*(i+2)), 15*time.Second)
	}
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	f.verify(1, 3000)
}

func TestTwoServers(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testTwoServers)
}

func testTwoServers(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	hub := natstest.New(t)
	f.route.Sealed.Conn = hub.Conn(t)
	f.publish(1, 1000)
	run := f.start()
	run.eventually("relayed", func(s gatewayStats) bool { return s.Position == 1000 })
	hub.Restart()
	f.publish(1001, 1500)
	run.eventually("relayed after the hub restarted", func(s gatewayStats) bool { return s.Position == 1500 })
	f.srv.Restart()
	natstest.Eventually(t, 10*time.Second, func() error {
		_, err := f.js.AccountInfo(t.Context())
		return err
	})
	f.publish(1501, 2000)
	run.eventually("relayed after the source restarted", func(s gatewayStats) bool { return s.Position == 2000 })
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.js.Stream(t.Context(), sealed); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("sealed stream on the source's server: %v", err)
	}
	local := f.js
	f.js = hub.JetStream(t)
	f.verify(1, 2000)
	f.js = local
}

// The gateway dies in the middle of a window, again and again: the position record
// is behind, messages in flight are stored or not, and the claim is not released.
func TestCrashes(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testCrashes)
}

func testCrashes(t *testing.T, e gateway.Engine) {
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy, jetstream.InterestPolicy} {
		if testing.Short() && retention != jetstream.WorkQueuePolicy {
			t.Logf("short: not with a source of %v retention", retention)
			continue
		}
		t.Run(retention.String(), func(t *testing.T) {
			t.Parallel() // waits for most of its time
			f := newFixture(t, jetstream.StreamConfig{Retention: retention, Storage: jetstream.MemoryStorage})
			f.route.Engine = e
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.tune.ClaimTTL = 300 * time.Millisecond
			first := f.start()
			first.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			first.stop()
			const n = 12000
			f.publish(1, n)
			for range 5 {
				src, dst := f.srv.Conn(t), f.srv.Conn(t)
				f.route.Source.Conn, f.route.Sealed.Conn = src, dst
				at := f.info(sealed).State.LastSeq
				run := f.start()
				natstest.Eventually(t, 10*time.Second, func() error {
					if got := f.info(sealed).State.LastSeq; got < min(at+500, n) {
						return fmt.Errorf("sealed %d", got)
					}
					return nil
				})
				dst.Close()
				src.Close()
				run.stopped(gateway.ErrConnection)
			}
			nc := f.srv.Conn(t)
			f.route.Source.Conn, f.route.Sealed.Conn = nc, nc
			f.start()
			f.sealedCount(n, 15*time.Second)
			f.sourceEmpty()
			f.verify(1, n)
		})
	}
}

// Cancellation in the middle of a stream: everything published is accounted for,
// and a successor goes on without waiting for the claim.
func TestCleanShutdown(t *testing.T) {
	t.Parallel()
	eachEngine(t, testCleanShutdown)
}

func testCleanShutdown(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	f.route.Engine = e
	const n = 20000
	f.publish(1, n)
	for round := range 20 {
		run := f.start()
		run.eventually("sealing", func(s gatewayStats) bool { return s.Messages > 500 || s.Position == n })
		if err := run.stop(); err != nil {
			t.Fatalf("Run = %v", err)
		}
		s := run.stats()
		if got := f.info(sealed).State.LastSeq; got != s.SealedSequence {
			t.Errorf("round %d: the sealed stream ends at %d, the gateway left at %d", round, got, s.SealedSequence)
		}
		if s.Position == n {
			break
		}
	}
	f.start()
	f.sealedCount(n, 15*time.Second)
	f.verify(1, n)
}

// The gateway's own connections close for good.
func TestClosedConnectionStops(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Source.Conn = f.srv.Conn(t)
	run := f.start()
	run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	f.route.Source.Conn.Close()
	run.stopped(gateway.ErrConnection)
}

// A publish that the server refuses for a while is repeated until it is stored.
func TestSealedStreamFull(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testSealedStreamFull)
}

func testSealedStreamFull(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	f.create(jetstream.StreamConfig{
		Name: sealed, Subjects: []string{"sealed.in.>"}, MaxMsgs: 50, Discard: jetstream.DiscardNew,
		AllowBatchPublish: true, AllowAtomicPublish: true,
		Metadata: map[string]string{"keyweir-mode": "relayed", "keyweir-route": "r"},
	})
	f.publish(1, 120)
	run := f.start()
	run.eventually("held up", func(s gatewayStats) bool { return s.Position == 50 && s.LastError != nil })
	s, err := f.js.Stream(t.Context(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	first := f.open()
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	run.eventually("next fifty", func(s gatewayStats) bool { return s.Position == 100 })
	second := f.open()
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	run.eventually("the rest", func(s gatewayStats) bool { return s.Position == 120 })
	all := append(append(first, second...), f.open()...)
	checkChain(t, all)
	if len(all) != 120 {
		t.Errorf("%d messages, want 120", len(all))
	}
}
