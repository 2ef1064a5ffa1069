package gateway_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// Limits remove the sealed copies of what was released before it is removed from
// the hold stream: the position record says how far that was, so that nothing is
// released twice, neither of a scope that was released nor of one that was denied
// again on the way. If the record is too old to say, the route stops.
func TestHoldSealedTailGone(t *testing.T) {
	t.Parallel()
	f := newHoldFixture(t, jetstream.StreamConfig{})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.route.Sealed.SyncInterval = time.Hour // nothing is removed from the hold stream
	f.keys.lease = 50 * time.Millisecond
	f.refuse(keysvc.ErrDenied, tenant(7), tenant(9))
	f.publishTenants(1, 1000)
	run := f.start()
	run.eventually("held", func(s gatewayStats) bool { return s.MessagesHeld == 40 && s.Position == 1000 })
	f.refuse(nil, tenant(7))
	run.eventually("released", func(s gatewayStats) bool { return s.MessagesHeld == 20 })
	f.sealedCount(980, 30*time.Second)
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	early := f.rawRecord()

	// Everything sealed is gone.
	f.expireSealed(0)
	f.refuse(nil, tenant(9))
	run = f.start()
	f.sealedCount(1000, 30*time.Second) // all of it is released
	f.publishOthers(100)
	f.sealedCount(1100, 30*time.Second)
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	for _, o := range f.open() {
		if strings.HasPrefix(o.meta.OriginSubject, "in.t7.") {
			t.Errorf("%s was released twice", o.payload)
		}
	}

	// Of the end of the sealed stream, nothing is left that the record does not
	// speak of.
	f.expireSealed(1050)
	run = f.start()
	run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	f.publishOthers(50)
	f.sealedCount(1150, 30*time.Second)
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}

	// A record of before the release, as a kill leaves it: it cannot say what became
	// of tenant 9, and the sealed stream cannot any more.
	f.putRecord(early)
	err := f.start().stopped(gateway.ErrHold)
	if !strings.Contains(err.Error(), "--resume-from") {
		t.Errorf("stopped with %v", err)
	}
	if got := f.info(sealed).State.LastSeq; got != 1150 {
		t.Errorf("the sealed stream ends at %d after the stop", got)
	}
	// By order of the operator, all of it is released.
	one := uint64(1)
	f.route.ResumeFrom = &one
	f.start()
	f.sealedCount(1170, 30*time.Second)
}

// publishOthers stores messages of a scope that was never held.
func (f *fixture) publishOthers(n int) {
	f.t.Helper()
	for range n {
		if _, err := f.js.Publish(f.t.Context(), "in.t1.s0", nil); err != nil {
			f.t.Fatal(err)
		}
	}
}

// expireSealed removes all messages of the sealed stream up to a sequence; 0: all.
func (f *fixture) expireSealed(upTo uint64) {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), sealed)
	if err != nil {
		f.t.Fatal(err)
	}
	var opts []jetstream.StreamPurgeOpt
	if upTo > 0 {
		opts = append(opts, jetstream.WithPurgeSequence(upTo+1))
	}
	if err := s.Purge(f.t.Context(), opts...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) recordKey() string {
	return "$KV." + gateway.PositionsBucket + "." + sealed + ".0"
}

// rawRecord is the position record as stored.
func (f *fixture) rawRecord() []byte {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), "KV_"+gateway.PositionsBucket)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(f.t.Context(), f.recordKey())
	if err != nil {
		f.t.Fatal(err)
	}
	return m.Data
}

func (f *fixture) putRecord(raw []byte) {
	f.t.Helper()
	if _, err := f.js.Publish(f.t.Context(), f.recordKey(), raw); err != nil {
		f.t.Fatal(err)
	}
}

// Held messages that somebody removed stop the route; a hold stream that is removed
// while the route does not run, or filled, does not count as released.
func TestHoldRemovedByOthers(t *testing.T) {
	t.Parallel()
	for name, seqs := range map[string][]uint64{"first": {1}, "middle": {2}, "most": {1, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			f := newHoldFixture(t, jetstream.StreamConfig{})
			f.keys.lease = 50 * time.Millisecond
			f.refuse(keysvc.ErrDenied, tenant(7))
			f.publishTenants(1, 250)
			run := f.start()
			run.eventually("held", func(s gatewayStats) bool { return s.MessagesHeld == 5 && s.Position == 250 })
			if err := run.stop(); err != nil {
				t.Fatal(err)
			}
			s, err := f.js.Stream(t.Context(), holdStream)
			if err != nil {
				t.Fatal(err)
			}
			for _, seq := range seqs {
				if err := s.DeleteMsg(t.Context(), seq+1); err != nil { // the first one is the fence
					t.Fatal(err)
				}
			}
			f.start().stopped(gateway.ErrHold)
		})
	}
}

// A worker is frozen with a scope held; its successor releases all of it and
// removes it. What the frozen one then writes stops nobody.
func TestHoldFrozen(t *testing.T) {
	t.Parallel()
	f := newHoldFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.keys.lease = 50 * time.Millisecond
	f.tune.AckTimeout, f.tune.Heartbeat = 20*time.Second, 10*time.Second // the frozen one shall not notice
	p := natstest.NewProxy(t, f.srv.Addr())
	frozen := f.route
	frozen.Source.Conn, frozen.Sealed.Conn = natstest.Connect(t, p.ClientURL()), natstest.Connect(t, p.ClientURL())
	f.refuse(keysvc.ErrDenied, tenant(7))
	n := 1000
	f.publishTenants(1, n)
	z := f.startRoute(frozen)
	f.tune.AckTimeout, f.tune.Heartbeat = 2*time.Second, 500*time.Millisecond
	rounds := 3
	for round := range rounds {
		z.eventually("held", func(s gatewayStats) bool { return s.MessagesHeld >= 20 && s.Position == uint64(n) })
		p.Pause()
		f.publishTenants(n+1, n+1000) // some of it is on its way to the frozen one
		n += 1000
		b := f.start()
		b.eventually("the successor holds", func(s gatewayStats) bool { return s.State == gateway.StateRunning && s.Position == uint64(n) })
		f.refuse(nil, tenant(7))
		f.sealedTenants(n)
		f.holdEmpty()
		f.refuse(keysvc.ErrDenied, tenant(7))
		f.publishTenants(n+1, n+1000)
		n += 1000
		p.Resume() // the frozen one goes on with what it had in hand
		natstest.Eventually(t, 60*time.Second, func() error {
			for _, r := range []*running{z, b} {
				select {
				case <-r.done:
					return fmt.Errorf("round %d: stopped: %v", round, r.err)
				default:
				}
			}
			if s := b.stats(); s.Position != uint64(n) || s.MessagesHeld == 0 {
				return errors.New("not all sealed or held")
			}
			return nil
		})
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	}
	f.refuse(nil, tenant(7))
	f.sealedTenants(n)
	f.holdEmpty()
	f.sourceEmpty()
	if err := z.stop(); err != nil {
		t.Error(err)
	}
	f.verifyTenants(n)
}

// Workers that no claim keeps apart race each other, and are frozen and woken,
// while scopes come and go.
func TestHoldRacing(t *testing.T) {
	t.Parallel()
	f := newHoldFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.route.Sealed.Create.Storage, f.route.Hold.Create.Storage = gateway.MemoryStorage, gateway.MemoryStorage
	f.tune.NoClaim = true
	f.keys.lease = 30 * time.Millisecond
	var runs []*running
	var proxies []*natstest.Proxy
	for range 3 {
		p := natstest.NewProxy(t, f.srv.Addr())
		r := f.route
		r.Source.Conn, r.Sealed.Conn = natstest.Connect(t, p.ClientURL()), natstest.Connect(t, p.ClientURL())
		runs, proxies = append(runs, f.startRoute(r)), append(proxies, p)
	}
	steps := 40
	if testing.Short() {
		steps = 15
	}
	n := 0
	for step := range steps {
		scope := tenant(step % 4 * 7)
		if step%3 == 0 {
			f.refuse(nil, scope)
		} else {
			f.refuse([]error{keysvc.ErrDenied, keysvc.ErrSuspended}[step%2], scope)
		}
		proxies[step%3].Pause()
		f.publishTenants(n+1, n+200)
		n += 200
		at := f.info(source).State.Msgs
		natstest.Eventually(t, 60*time.Second, func() error { // somebody gets on meanwhile, or nobody can
			for i, r := range runs {
				if s := r.stats(); i != step%3 && s.Position == uint64(n) {
					return nil
				}
			}
			return fmt.Errorf("nobody came to %d; %d source messages were left, now %d", n, at, f.info(source).State.Msgs)
		})
		proxies[step%3].Resume()
	}
	for i := range 4 {
		f.refuse(nil, tenant(i*7))
	}
	f.sealedTenants(n)
	f.holdEmpty()
	f.sourceEmpty()
	for _, r := range runs {
		if err := r.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	f.verifyTenants(n)
}
