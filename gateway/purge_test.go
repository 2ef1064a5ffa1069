package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

func (f *fixture) purge(change ...func(*gateway.PurgeConfig)) (*gateway.PurgeReport, error) {
	f.t.Helper()
	cfg := gateway.PurgeConfig{Route: f.route, Keys: f.keys, Logger: f.log}
	for _, c := range change {
		c(&cfg)
	}
	return gateway.Purge(f.t.Context(), cfg)
}

func dryRun(c *gateway.PurgeConfig) { c.DryRun = true }

// purgeRefused wants the error, a hint, a nil report and the source as it was.
func (f *fixture) purgeRefused(want error) error {
	f.t.Helper()
	before := f.info(source).State.Msgs
	r, err := f.purge()
	var re *gateway.RouteError
	if !errors.Is(err, want) || !errors.As(err, &re) || re.Hint() == "" || r != nil {
		f.t.Fatalf("Purge = %+v, %v, want %v with a hint", r, err, want)
	}
	if n := f.info(source).State.Msgs; n != before {
		f.t.Errorf("%d source messages after the refusal, %d before", n, before)
	}
	return err
}

// History is sealed while others publish, then exactly that goes.
func TestPurge(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Subjects: []string{"in.>", "other.>"}})
	for i := range 300 {
		subject := subjectOf(i + 1)
		if i%3 == 0 {
			subject = "other.x"
		}
		if _, err := f.js.Publish(t.Context(), subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	run := f.start()
	f.sealedCount(200, 10*time.Second)
	run.stop()
	f.publish(1, 30) // later, and unsealed
	want := gateway.PurgeReport{
		Route: "r", Source: source, Subjects: []string{"in.>"}, Sealed: sealed, Position: 300, UpTo: 300, Messages: 200,
	}
	got, err := f.purge(dryRun)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	if n := f.info(source).State.Msgs; n != 330 {
		t.Errorf("%d source messages after a dry run, want 330", n)
	}
	want.Purged = true
	if got, err = f.purge(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	if n := f.info(source).State.Msgs; n != 130 {
		t.Errorf("%d source messages left, want the 100 of other.x and the 30 later ones", n)
	}
	// Nothing is left to do, and the route goes on.
	if got, err = f.purge(); err != nil || got.Purged || got.Messages != 0 || got.UpTo != 0 {
		t.Errorf("second Purge = %+v, %v", got, err)
	}
	f.start()
	f.sealedCount(230, 10*time.Second)
	checkChain(t, f.open())
	natstest.Eventually(t, 10*time.Second, func() error {
		got, err := f.purge()
		if err == nil && got.Messages != 30 {
			err = fmt.Errorf("%+v", got)
		}
		return err
	})
	if n := f.info(source).State.Msgs; n != 100 {
		t.Errorf("%d source messages left, want the 100 of other.x", n)
	}
}

// A copy younger than the sync interval may not survive a power failure.
func TestPurgeHonoursTheSyncInterval(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(20)
	const lag = 1500 * time.Millisecond
	last := f.info(sealed).State.LastTime
	f.route.Sealed.SyncInterval = time.Hour
	got, err := f.purge()
	if err != nil || got.Purged || got.UpTo != 0 || got.Young != 20 || got.Position != 20 {
		t.Errorf("Purge = %+v, %v, want 20 young copies", got, err)
	}
	f.route.Sealed.SyncInterval = lag
	var purged uint64 // the copies are not of one age
	natstest.Eventually(t, 10*time.Second, func() error {
		got, err := f.purge()
		if err != nil {
			return err
		}
		if purged += uint64(got.Messages); purged < 20 {
			return errors.New("too young")
		}
		return nil
	})
	if age := time.Since(last); age < lag || purged != 20 {
		t.Errorf("purged %d, when the last copy was %v old", purged, age)
	}
	if n := f.info(source).State.Msgs; n != 0 {
		t.Errorf("%d source messages left", n)
	}
}

// The gateway works while its source is purged again and again.
func TestPurgeWhileRunning(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	const n = 5000
	run := f.start()
	run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	for i := range 5 {
		f.publish(i*n/5+1, (i+1)*n/5)
		if _, err := f.purge(); err != nil {
			t.Fatal(err)
		}
	}
	f.sealedCount(n, 15*time.Second)
	run.eventually("acknowledged", func(s gatewayStats) bool { return s.Position == n })
	if got, err := f.purge(); err != nil || got.UpTo != n && f.info(source).State.Msgs != 0 {
		t.Errorf("Purge = %+v, %v", got, err)
	}
	f.sourceEmpty()
	run.stop()
	f.verify(1, n)
}

func TestPurgeRefuses(t *testing.T) {
	t.Parallel()
	t.Run("nothing sealed", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.create(relayedConfig())
		f.publish(1, 5)
		f.purgeRefused(gateway.ErrPosition)
		if s, err := f.js.Stream(t.Context(), "KV_"+gateway.PositionsBucket); err == nil {
			t.Errorf("Purge made %s", s.CachedInfo().Config.Name)
		}
	})
	t.Run("no sealed stream", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.publish(1, 5)
		f.purgeRefused(gateway.ErrDestination)
	})
	t.Run("before the start", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.route.Source.Start = gateway.StartSequence(4)
		f.publish(1, 10)
		run := f.start()
		f.sealedCount(7, 10*time.Second)
		run.stop()
		if err := f.purgeRefused(gateway.ErrUnsealed); !strings.Contains(err.Error(), "3 messages of stream IN from sequence 1 on") {
			t.Errorf("Purge = %v", err)
		}
	})
	t.Run("skipped by resume-from", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.sealSome(10)
		f.forge(nats.Header{})
		f.purgeRefused(gateway.ErrPosition)
		f.publish(11, 20)
		from := uint64(16)
		f.route.ResumeFrom = &from
		run := f.start()
		f.sealedCount(16, 10*time.Second)
		run.stop()
		if err := f.purgeRefused(gateway.ErrUnsealed); !strings.Contains(err.Error(), "5 messages of stream IN from sequence 11 on") {
			t.Errorf("Purge = %v", err)
		}
	})
	t.Run("copies gone", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.sealSome(10)
		s, err := f.js.Stream(t.Context(), sealed)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteMsg(t.Context(), 4); err != nil {
			t.Fatal(err)
		}
		f.purgeRefused(gateway.ErrUnsealed)
		f.purgeSealed() // the record knows the position, but no copy is left
		if got, err := f.purge(); err != nil || got.Messages != 0 || got.Purged || got.Position != 10 {
			t.Errorf("Purge = %+v, %v, want nothing to purge", got, err)
		}
		if n := f.info(source).State.Msgs; n != 10 {
			t.Errorf("%d source messages left, want 10", n)
		}
	})
	t.Run("position forged", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.sealSome(10)
		f.publish(11, 15)
		genuine := f.open()[9].header.Get(gateway.HeaderSource)
		f.forge(nats.Header{"Keyweir": {"1"}, gateway.HeaderSource: {strings.Replace(genuine, ":10:", ":15:", 1)}})
		f.purgeRefused(gateway.ErrPosition)
	})
	t.Run("source made again", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.sealSome(10)
		if err := f.js.DeleteStream(t.Context(), source); err != nil {
			t.Fatal(err)
		}
		f.create(jetstream.StreamConfig{Name: source, Subjects: []string{"in.>"}})
		f.publish(11, 30)
		f.purgeRefused(gateway.ErrSourceChanged)
	})
	t.Run("work queue", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy})
		f.route.Source.AfterSeal = gateway.AfterSealPurge
		f.route.Sealed.SyncInterval = time.Hour
		f.sealSome(10)
		f.purgeRefused(gateway.ErrSource)
	})
	t.Run("purge denied", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{DenyPurge: true})
		f.sealSome(10)
		f.purgeRefused(gateway.ErrSource)
	})
	t.Run("no keys", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		if _, err := gateway.Purge(t.Context(), gateway.PurgeConfig{Route: f.route}); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("Purge = %v, want ErrConfig", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.sealSome(10)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if r, err := gateway.Purge(ctx, gateway.PurgeConfig{Route: f.route, Keys: f.keys}); !errors.Is(err, context.Canceled) || r != nil {
			t.Errorf("Purge = %+v, %v", r, err)
		}
	})
}

// A restored source has other messages under sequences that were sealed.
func TestPurgeOfRestoredSource(t *testing.T) {
	t.Parallel()
	f := newRollback(t, source)
	f.publish(1, 10)
	f.save()
	f.publish(11, 20)
	run := f.start()
	f.sealedCount(20, 10*time.Second)
	run.stop()
	f.back()
	f.publish(21, 35) // sequences 11..25
	f.purgeRefused(gateway.ErrSourceChanged)
	from := uint64(11)
	f.route.ResumeFrom = &from
	run = f.start()
	f.sealedCount(35, 10*time.Second)
	run.stop()
	// Copies of 11..20 are not of these messages, and come before those that are.
	f.purgeRefused(gateway.ErrUnsealed)
}

// The reading of both streams breaks off and goes on.
func TestPurgeThroughCuts(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	n := 30000
	if testing.Short() {
		n = 10000
	}
	f.publish(1, n)
	run := f.start()
	f.sealedCount(uint64(n), 20*time.Second)
	run.stop()
	p := natstest.NewProxy(t, f.srv.Addr())
	f.route.Source.Conn, f.route.Sealed.Conn = natstest.Connect(t, p.ClientURL()), natstest.Connect(t, p.ClientURL())
	cuts := 0
	got, err := f.purge(dryRun, func(c *gateway.PurgeConfig) {
		c.Progress = func(done, total uint64) {
			if cuts < 3 && done > total*uint64(cuts+1)/5 {
				cuts++
				p.Cut()
			}
		}
	})
	if err != nil || got.Messages != uint64(n) || got.UpTo != uint64(n) || cuts != 3 {
		t.Fatalf("Purge = %+v, %v after %d cuts", got, err, cuts)
	}
}
