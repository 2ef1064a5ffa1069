package gateway_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// heldSum is how many messages an instance holds, in all partitions.
func heldSum(r *running) (n uint64) {
	for _, s := range r.g.Stats() {
		n += s.MessagesHeld
	}
	return n
}

// A drain waits for what is held; other partitions are refused while something is.
func TestHoldRepartition(t *testing.T) {
	t.Parallel()
	f := newHoldFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.route.Source.Subjects, f.route.Source.Partitions = nil, tenantPartitions(2)
	f.tune.ClaimTTL = time.Second
	f.refuse(keysvc.ErrSuspended, tenant(7))
	f.publishTenants(1, 500)
	old := f.route
	run := f.start()
	f.sealedTenants(490)
	natstest.Eventually(t, 30*time.Second, func() error {
		if n := heldSum(run); n != 10 {
			return fmt.Errorf("%d messages held, want 10", n)
		}
		return nil
	})
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}

	// The drain does not end, and says why.
	f.route = old
	f.route.Drain = true
	run = f.startRoute(f.route)
	natstest.Eventually(t, 30*time.Second, func() error {
		if s := run.g.Stats()[0]; s.State != gateway.StateDrained {
			return fmt.Errorf("partition 0 holds nothing and is %v", s.State)
		}
		if s := run.g.Stats()[1]; s.State != gateway.StateRunning || s.MessagesHeld != 10 || s.Position != 500 {
			return fmt.Errorf("partition 1: %+v", s)
		}
		return nil
	})
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}

	// Nobody else takes over what is held.
	next := old
	next.Source.Partitions, next.Sealed.Stream, next.Hold = tenantPartitions(3), "NEXT", &gateway.Hold{Create: &gateway.CreateSealed{}}
	open := make(map[string]jetstream.StreamConfig)
	for _, s := range streamNames(sealed+"-", 2) {
		open[s] = f.info(s).Config
		f.shut(s)
	}
	f.route = next
	err := f.startRoute(f.another()).stopped(gateway.ErrLayout)
	var re *gateway.RouteError
	if !errors.As(err, &re) || !strings.Contains(err.Error(), "partition 1 left 10 of them in stream SEALED_HOLD-1") || !strings.Contains(re.Hint(), "--drain") {
		t.Errorf("refused with %v", err)
	}
	plain := old
	plain.Hold = nil
	for _, cfg := range open {
		if _, err := f.js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	run = f.startRoute(plain)
	natstest.Eventually(t, 30*time.Second, func() error {
		if s := run.g.Stats()[1]; s.State != gateway.StateStopped || !errors.Is(s.LastError, gateway.ErrHold) {
			return fmt.Errorf("partition 1 without hold: %+v", s)
		}
		return nil
	})
	if err := run.stop(); !errors.Is(err, gateway.ErrHold) {
		t.Errorf("Run = %v", err)
	}

	// With the key, the drain ends.
	f.refuse(nil, tenant(7))
	f.route = old
	f.drain()
	f.holdEmpty()
	f.verifyTenants(500)
	f.sourceEmpty()
	for s := range open {
		f.shut(s)
	}
	f.route = next
	f.refused("is empty and still takes keyweir.hold.r.0.>: delete it")
	for _, s := range streamNames(holdStream+"-", 2) {
		if err := f.js.DeleteStream(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	f.refuse(keysvc.ErrDenied, tenant(8))
	f.publishTenants(501, 600)
	run = f.startRoute(f.another())
	natstest.Eventually(t, 30*time.Second, func() error {
		if n := heldSum(run); n != 2 {
			return fmt.Errorf("%d messages held, want 2", n)
		}
		return nil
	})
	f.refuse(nil, tenant(8))
	f.sealedParts(600, append(streamNames(sealed+"-", 2), streamNames("NEXT-", 3)...)...)
}

// Messages of a held scope that cannot be held become dead letters at once, in
// quarantine, and what was held becomes one when its key is destroyed, or when it
// is too large by then. Nothing of it is parked twice.
func TestHoldDeadLetters(t *testing.T) {
	t.Parallel()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	f.keys = newFakeKeys(
		keysvc.ScopeRule{Match: "in.*.>", Scope: "tenant/{{wildcard(1)}}"}, keysvc.ScopeRule{Match: "keyweir.hold.*", Scope: "hold/{{wildcard(1)}}"},
		keysvc.ScopeRule{Match: "keyweir.quarantine.*", Scope: "quarantine/{{wildcard(1)}}"})
	f.route.Hold = &gateway.Hold{Create: &gateway.CreateSealed{}}
	f.route.ReservedHeaders, f.route.DeadLetters.Refused = gateway.ReservedReject, gateway.RefusedPark
	f.route.Sealed.SyncInterval = time.Hour // nothing is removed from the hold stream
	f.keys.lease = 50 * time.Millisecond
	f.refuse(keysvc.ErrSuspended, "tenant/a", "tenant/b")
	f.refuse(keysvc.ErrDenied, "tenant/denied")
	big, ps := strings.Repeat("x", 3000), poisons()
	put := func(subject, data string) {
		f.put(&nats.Msg{Subject: subject, Data: []byte(data)})
	}
	for i := range 5 { // per round: 2 for each of a and b, 4 dead letters, 1 for c
		put("in.a.x", fmt.Sprint("a", i))
		put("in.b.x", fmt.Sprint("b", i))
		f.put(ps["too large, in parts"].msg)
		f.put(ps["headers"].msg)
		f.put(ps["reserved"].msg)
		put("in.denied.x", "d")
		put("in.c.x", fmt.Sprint("c", i))
		put("in.a.y", big+fmt.Sprint(i))
		put("in.b.y", fmt.Sprint("b", i))
	}
	run := f.start()
	const parked, heldBack = 5 * 4, 5 * 4
	settled := func(sealedTo, letters int) {
		t.Helper()
		natstest.Eventually(t, 30*time.Second, func() error {
			if got, at := len(f.letters()), f.info(sealed).State.LastSeq; got != letters || at != uint64(sealedTo) {
				return fmt.Errorf("%d dead letters and %d sealed, want %d and %d; %+v", got, at, letters, sealedTo, run.stats())
			}
			return nil
		})
	}
	run.eventually("held", func(s gatewayStats) bool { return s.MessagesHeld == heldBack && s.ScopesHeld == 2 })
	settled(5, parked)
	for _, l := range f.letters() {
		if l.scope != "quarantine/r" {
			t.Errorf("dead letter %+v in scope %s", l.Description, l.scope)
		}
	}
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}

	// The sealed stream takes less by now.
	cfg := f.info(sealed).Config
	cfg.MaxMsgSize = 2500
	if _, err := f.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	f.refuse(nil, "tenant/a")
	run = f.start()
	settled(5+5, parked+5)
	f.refuse(keysvc.ErrDestroyed, "tenant/b")
	settled(5+5, parked+5+10)
	put("in.c.x", "last")
	settled(5+5+1, parked+5+10)
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}

	// Killed before the record was written: the streams have to say it.
	f.deleteRecord()
	run = f.start()
	put("in.c.x", "the very last")
	settled(5+5+2, parked+5+10)
	run.eventually("nothing held", func(s gatewayStats) bool { return s.MessagesHeld == 0 && s.DeadLetters == 0 })
	want := map[string]int{"tenant/a": 0, "tenant/b": 0}
	for _, o := range f.open() {
		if strings.HasPrefix(o.meta.OriginSubject, "in.a.") && o.payload != fmt.Sprint("a", want["tenant/a"]) {
			t.Errorf("sealed message %d is %q, want a%d", o.seq, o.payload, want["tenant/a"])
		}
		if scope, _, err := f.keys.rules.Scope(o.meta.OriginSubject); err == nil {
			want[scope]++
		}
	}
	if want["tenant/a"] != 5 || want["tenant/b"] != 0 || want["tenant/c"] != 7 {
		t.Errorf("sealed: %v", want)
	}
}
