package gateway_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/natstest"
)

func TestParseEngine(t *testing.T) {
	for _, s := range []string{"auto", "fast", "durable", "async"} {
		if e, err := gateway.ParseEngine(s); err != nil || e.String() != s {
			t.Errorf("ParseEngine(%q) = %v, %v", s, e, err)
		}
	}
	if e, err := gateway.ParseEngine(""); err != nil || e != gateway.EngineAuto {
		t.Errorf("ParseEngine of nothing = %v, %v", e, err)
	}
	for _, s := range []string{"Fast", "atomic", " fast"} {
		if e, err := gateway.ParseEngine(s); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("ParseEngine(%q) = %v, %v, want ErrConfig", s, e, err)
		}
	}
}

// An engine that the stream does not serve stops the route before anything is
// read; without the demand it works.
func TestForcedEngineNotServed(t *testing.T) {
	t.Parallel()
	for e, want := range map[gateway.Engine]string{gateway.EngineFast: "allow_batched", gateway.EngineDurable: "allow_atomic"} {
		t.Run(e.String(), func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{})
			f.create(relayedConfig())
			f.publish(1, 10)
			f.route.Engine = e
			run := f.start()
			err := run.stopped(gateway.ErrEngine)
			var re *gateway.RouteError
			if !strings.Contains(err.Error(), want) || !errors.As(err, &re) || !strings.Contains(re.Hint(), want) {
				t.Errorf("Run = %v", err)
			}
			f.route.Engine = gateway.EngineAuto
			run = f.start()
			f.sealedCount(10, 10*time.Second)
			if got := run.stats().Engine; got != gateway.EngineAsync {
				t.Errorf("engine %v, want async", got)
			}
			f.verify(1, 10)
		})
	}
}

// A stream that the gateway makes serves every engine, and the automatic choice
// shows.
func TestCreatedStreamServesEngines(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		storage gateway.StorageType
		sync    time.Duration
		want    gateway.Engine
	}{
		"default":       {gateway.FileStorage, 0, gateway.EngineAsync},
		"sync always":   {gateway.FileStorage, gateway.SyncAlways, gateway.EngineDurable},
		"memory":        {gateway.MemoryStorage, gateway.SyncAlways, gateway.EngineAsync},
		"sync interval": {gateway.FileStorage, time.Second, gateway.EngineAsync},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{})
			f.route.Sealed.Create.Storage, f.route.Sealed.SyncInterval = c.storage, c.sync
			f.publish(1, 10)
			run := f.start()
			if got := run.stats().Engine; got != gateway.EngineAuto && got != c.want {
				t.Errorf("engine %v before one was chosen", got)
			}
			f.sealedCount(10, 10*time.Second)
			if got := run.stats().Engine; got != c.want {
				t.Errorf("engine %v, want %v", got, c.want)
			}
			if cfg := f.info(sealed).Config; !cfg.AllowAtomicPublish || !cfg.AllowBatchPublish {
				t.Errorf("created stream: allow_atomic %v, allow_batched %v", cfg.AllowAtomicPublish, cfg.AllowBatchPublish)
			}
			f.verify(1, 10)
		})
	}
}

// Every run another engine, ended in the middle: one chain, nothing lost.
func TestSwitchEngines(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	f.tune.ClaimTTL = 300 * time.Millisecond
	const n = 12000
	f.publish(1, n)
	engines := []gateway.Engine{gateway.EngineFast, gateway.EngineAsync, gateway.EngineDurable, gateway.EngineFast, gateway.EngineDurable, gateway.EngineAsync, gateway.EngineFast}
	for i, e := range engines {
		f.route.Engine = e
		nc := f.srv.Conn(t)
		f.route.Source.Conn, f.route.Sealed.Conn = nc, nc
		run := f.start()
		want := uint64((i + 1) * 1000)
		run.eventually("sealing", func(s gatewayStats) bool { return s.Position >= want || s.Position == n })
		if got := run.stats().Engine; got != e {
			t.Errorf("engine %v, want %v", got, e)
		}
		if i%2 == 0 { // as if killed
			nc.Close()
			run.stopped(gateway.ErrConnection)
			continue
		}
		if err := run.stop(); err != nil {
			t.Fatal(err)
		}
	}
	nc := f.srv.Conn(t)
	f.route.Source.Conn, f.route.Sealed.Conn, f.route.Engine = nc, nc, gateway.EngineAuto
	f.start()
	f.sealedCount(n, 15*time.Second)
	f.verify(1, n)
}

// Two engines at once, without a claim between them.
func TestRacingEngines(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.tune.NoClaim = true
	const n = 3000
	f.publish(1, 100)
	for _, e := range []gateway.Engine{gateway.EngineFast, gateway.EngineDurable, gateway.EngineAsync} {
		other := f.route
		other.Source.Conn, other.Sealed.Conn, other.Engine = f.srv.Conn(t), f.srv.Conn(t), e
		f.startRoute(other)
	}
	for i := 100; i < n; i += 100 {
		f.publish(i+1, i+100)
	}
	f.sealedCount(n, 20*time.Second)
	f.verify(1, n)
}

// The server restarts while batches are on their way.
func TestServerRestartInTheMiddle(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, e gateway.Engine) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.route.Engine = e
		const n = 12000
		f.publish(1, n)
		run := f.start()
		for _, at := range []uint64{1500, 6000} {
			natstest.Eventually(t, 15*time.Second, func() error {
				s, err := f.js.Stream(t.Context(), sealed)
				if err != nil {
					return err
				}
				if got := s.CachedInfo().State.LastSeq; got < at {
					return fmt.Errorf("sealed %d, want %d for the next restart", got, at)
				}
				return nil
			})
			f.srv.Restart()
		}
		f.sealedCount(n, 20*time.Second)
		run.eventually("all acknowledged", func(s gatewayStats) bool { return s.Position == n })
		f.verify(1, n)
	})
}

// A server that syncs always: the durable engine writes many messages at once.
func TestSyncAlways(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage}, func(o *embednats.Options) { o.SyncAlways = true })
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	const n = 3000
	f.publish(1, n)
	run := f.start()
	f.sealedCount(n, 20*time.Second)
	if got := run.stats().Engine; got != gateway.EngineDurable {
		t.Errorf("engine %v, want durable", got)
	}
	f.publish(n+1, n+50)
	f.sealedCount(n+50, 20*time.Second)
	f.sourceEmpty()
	batches, largest := make(map[string]int), 0
	for _, o := range f.verify(1, n+50) {
		if id := o.header.Get("Nats-Batch-Id"); id != "" {
			batches[id]++
			largest = max(largest, batches[id])
		}
	}
	if largest < 2 || largest > 1000 {
		t.Errorf("the largest of %d batches has %d messages", len(batches), largest)
	}
}

// Single messages, far apart, are acknowledged and released without delay.
func TestTrickle(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, e gateway.Engine) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.route.Engine, f.route.Source.AfterSeal = e, gateway.AfterSealPurge
		run := f.start()
		for i := 1; i <= 20; i++ {
			f.publish(i, i)
			run.eventually("released", func(s gatewayStats) bool { return s.Released == uint64(i) })
		}
		if s := run.stats(); s.LastError != nil {
			t.Errorf("stats: %+v", s)
		}
		f.verify(1, 20)
	})
}
