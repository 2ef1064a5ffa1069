package gateway_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/keysvc"
)

// While there is no key the route waits: nothing is skipped, nothing passes
// unsealed, and it goes on by itself.
func TestKeyErrorsPause(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{keysvc.ErrUnavailable, keysvc.ErrBusy, keysvc.ErrDenied, keysvc.ErrSuspended, errors.New("anything else")} {
		t.Run(cause.Error(), func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{})
			f.keys.set(func() { f.keys.err = cause })
			f.publish(1, 50)
			run := f.start()
			run.eventually("paused", func(s gatewayStats) bool { return s.State == gateway.StatePaused && errors.Is(s.LastError, cause) })
			calls, _, _ := f.keys.counts()
			run.eventually("asks again", func(gatewayStats) bool { now, _, _ := f.keys.counts(); return now > calls+1 })
			if n := f.info(sealed).State.Msgs; n != 0 {
				t.Fatalf("%d messages in the sealed stream", n)
			}
			f.keys.set(func() { f.keys.err = nil })
			f.sealedCount(50, 10*time.Second)
			run.eventually("running again", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			f.verify(1, 50)
		})
	}
}

// One scope's error holds the route at its first message; what comes before is sealed.
func TestScopeErrorHoldsInOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.keys.set(func() { f.keys.badScope, f.keys.scopeErr = "tenant/d", keysvc.ErrSuspended }) // message 3 is the first on in.d.x
	f.publish(1, 50)
	run := f.start()
	run.eventually("paused", func(s gatewayStats) bool { return s.State == gateway.StatePaused && s.Position == 2 })
	f.keys.set(func() { f.keys.badScope = "" })
	f.sealedCount(50, 10*time.Second)
	f.verify(1, 50)
}

func TestKeyErrorsStop(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{keysvc.ErrNoScope, keysvc.ErrDestroyed, keysvc.ErrUnsupported} {
		t.Run(cause.Error(), func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{})
			f.keys.set(func() { f.keys.badScope, f.keys.scopeErr = "tenant/d", cause })
			f.publish(1, 50)
			err := f.start().stopped(cause)
			if !strings.Contains(err.Error(), "message 3 on in.d.x") {
				t.Errorf("Run = %v", err)
			}
			f.sealedCount(2, time.Second)
		})
	}
}

// A subject without a rule stops the route; a rule added in time does not.
func TestNoScope(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.publish(1, 3)
	if _, err := f.js.Publish(t.Context(), "in", nil); err == nil {
		t.Fatal("in is not among in.>")
	}
	if _, err := f.js.Publish(t.Context(), "in.a", []byte("y")); err != nil {
		t.Fatal(err)
	}
	rules, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: "in.*.x", Scope: "all"}})
	if err != nil {
		t.Fatal(err)
	}
	f.keys.set(func() { f.keys.rules = rules })
	f.start().stopped(keysvc.ErrNoScope)
	f.sealedCount(3, time.Second)
	more, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: "in.>", Scope: "all"}})
	if err != nil {
		t.Fatal(err)
	}
	f.keys.set(func() { f.keys.rules = more })
	f.start()
	f.sealedCount(4, 10*time.Second)
}

// The service may put a subject into another scope than the rules it handed out
// say. The worker asks for the rules again, and seals nothing until they agree.
func TestScopeDiffers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.publish(1, 10)
	f.keys.set(func() { f.keys.rename = "tenant/mallory" })
	run := f.start()
	run.eventually("paused", func(s gatewayStats) bool { return s.State == gateway.StatePaused })
	if !strings.Contains(run.stats().LastError.Error(), "tenant/mallory") {
		t.Errorf("last error: %v", run.stats().LastError)
	}
	if n := f.info(sealed).State.Msgs; n != 0 {
		t.Fatalf("%d messages sealed under the wrong scope", n)
	}
	f.keys.set(func() { f.keys.rename = "" })
	f.sealedCount(10, 10*time.Second)
	f.verify(1, 10)
}

// The budget of a session is a hard stop; the next session follows without a
// pause, because its grant was fetched ahead.
func TestSessionBudget(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.keys.set(func() { f.keys.messages = 100 })
	const n = 3000
	f.publish(1, n)
	f.start()
	f.sealedCount(n, 15*time.Second)
	sessions := make(map[string]int)
	for _, o := range f.verify(1, n) {
		if o.inline {
			sessions[o.meta.OriginSubject]++
		}
	}
	for i := 1; i <= 7; i++ {
		if got := sessions[subjectOf(i)]; got < 5 {
			t.Errorf("%d sessions for %s, want at least 5 of 100 messages", got, subjectOf(i))
		}
	}
}

// A lease that ends is a hard stop: without a new grant nothing more is sealed.
func TestLeaseEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.keys.set(func() { f.keys.lease = 300 * time.Millisecond })
	f.publish(1, 10)
	run := f.start()
	f.sealedCount(10, 10*time.Second)
	// Refreshed ahead while it flows.
	for i := 11; i <= 60; i++ {
		f.publish(i, i)
		f.sealedCount(uint64(i), 10*time.Second)
	}
	f.keys.set(func() { f.keys.err = keysvc.ErrUnavailable })
	last := 60
	for end := time.Now().Add(10 * time.Second); run.stats().State != gateway.StatePaused; {
		last++
		f.publish(last, last)
		if time.Now().After(end) {
			t.Fatal("still sealing without a lease")
		}
	}
	sealable := uint64(last) // what was sealed before may still be on its way
	f.publish(last+1, last+20)
	last += 20
	if got := f.info(sealed).State.LastSeq; got > sealable {
		t.Errorf("sealed %d more messages after the lease had ended", got-sealable)
	}
	f.keys.set(func() { f.keys.err = nil })
	f.sealedCount(uint64(last), 10*time.Second)
	f.verify(1, last)
}

// Many scopes of one batch are asked for together.
func TestManyScopesOneQuestion(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	const scopes = 300
	for i := range scopes {
		if _, err := f.js.Publish(t.Context(), fmt.Sprintf("in.tenant%d.x", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	f.start()
	f.sealedCount(scopes, 10*time.Second)
	calls, asked, _ := f.keys.counts()
	if asked != scopes || calls > scopes/4 {
		t.Errorf("%d calls for %d subjects, want %d subjects in a few", calls, asked, scopes)
	}
	checkChain(t, f.open())
}

func TestRouteKeyUnavailable(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.keys.set(func() { f.keys.routeErr = keysvc.ErrUnavailable })
	f.publish(1, 5)
	run := f.start()
	run.eventually("paused", func(s gatewayStats) bool { return s.State == gateway.StatePaused })
	f.keys.set(func() { f.keys.routeErr = nil })
	f.sealedCount(5, 10*time.Second)
}
