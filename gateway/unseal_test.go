package gateway_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

// What went in comes out, and a second run adds nothing.
func TestUnseal(t *testing.T) {
	t.Parallel()
	eachEngine(t, testUnseal)
}

func testUnseal(t *testing.T, e gateway.Engine) {
	u := newUnsealFixture(t)
	u.back.Engine = e
	u.seal(1, 1500)
	run := u.startBack()
	u.plainCount(1500, 15*time.Second)
	u.seal(1501, 2000)
	u.plainCount(2000, 15*time.Second)
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	if s := run.stats(); s.Name != "unseal-r" || s.Messages != 2000 || s.Position != 2000 {
		t.Errorf("stats = %+v", s)
	}
	again := u.startBack()
	again.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning && s.Position == 2000 })
	u.seal(2001, 2100)
	u.plainCount(2100, 15*time.Second)
	u.verifyPlain(1, 2100)
	if got := u.info(sealed).State.Msgs; got != 2100 {
		t.Errorf("%d sealed messages are left of 2100: unsealing removes nothing", got)
	}
}

// Without claims, two unsealing workers write at once; the fence alone has to keep
// every message single and in order.
func TestRacingUnseal(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testRacingUnseal)
}

func testRacingUnseal(t *testing.T, e gateway.Engine) {
	u := newUnsealFixture(t)
	u.back.Engine = e
	u.tune.NoClaim = true
	const n = 4000
	u.seal(1, n)
	other := u.back
	other.Sealed.Conn, other.Plain.Conn = u.srv.Conn(t), u.srv.Conn(t)
	a, b := u.startBack(), u.startBackRoute(other)
	u.plainCount(n, 20*time.Second)
	for _, r := range []*running{a, b} {
		if err := r.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	u.verifyPlain(1, n)
}

// The process dies in the middle of a window, again and again: messages in flight
// are stored or not, the position record is behind, and the claim is not released.
func TestUnsealCrashes(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testUnsealCrashes)
}

func testUnsealCrashes(t *testing.T, e gateway.Engine) {
	u := newUnsealFixture(t)
	u.back.Engine = e
	u.tune.ClaimTTL = 300 * time.Millisecond
	const n = 8000
	u.seal(1, n)
	first := u.startBack()
	first.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	first.stop()
	crashes := 0
	for range 5 {
		src, dst := u.srv.Conn(t), u.srv.Conn(t)
		r := u.back
		r.Sealed.Conn, r.Plain.Conn = src, dst
		at := u.info(plain).State.LastSeq
		run := u.startBackRoute(r)
		natstest.Eventually(t, 10*time.Second, func() error {
			if got := u.info(plain).State.LastSeq; got < min(at+300, n) {
				return fmt.Errorf("unsealed %d", got)
			}
			return nil
		})
		dst.Close()
		src.Close()
		if err := run.stopped(gateway.ErrConnection); !errors.Is(err, gateway.ErrConnection) {
			t.Fatal(err)
		}
		if u.info(plain).State.LastSeq < n {
			crashes++
		}
	}
	t.Logf("%d of 5 crashes came in the middle", crashes)
	u.startBack()
	u.plainCount(n, 15*time.Second)
	u.verifyPlain(1, n)
}

// What opens is reconfigured with what it opens with.
func TestReconfigureUnseal(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.seal(1, 100)
	sealing := u.start()
	run := u.startBack()
	u.plainCount(100, 20*time.Second)
	cfg := func(routes ...gateway.Unseal) gateway.UnsealConfig {
		return gateway.UnsealConfig{Opener: u.opener, Routes: routes}
	}
	bad := u.back
	bad.Plain.Subjects = nil
	for name, call := range map[string]func() (gateway.Changes, error){
		"sealing begins to open": func() (gateway.Changes, error) { return sealing.g.ReconfigureUnseal(t.Context(), cfg(u.back)) },
		"opening begins to seal": func() (gateway.Changes, error) {
			return run.g.Reconfigure(t.Context(), nil, []gateway.Route{u.route})
		},
		"no opener": func() (gateway.Changes, error) {
			return run.g.ReconfigureUnseal(t.Context(), gateway.UnsealConfig{Routes: []gateway.Unseal{u.back}})
		},
		"no routes": func() (gateway.Changes, error) { return run.g.ReconfigureUnseal(t.Context(), cfg()) },
		"bad route": func() (gateway.Changes, error) { return run.g.ReconfigureUnseal(t.Context(), cfg(bad)) },
	} {
		if c, err := call(); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("%s: %+v, %v, want ErrConfig", name, c, err)
		}
	}
	for _, s := range []struct {
		change func(*gateway.Unseal)
		want   gateway.Changes
	}{
		{func(*gateway.Unseal) {}, gateway.Changes{Unchanged: []string{"unseal-r"}}},
		{func(r *gateway.Unseal) { r.Window = 64 }, gateway.Changes{Restarted: []string{"unseal-r"}}},
		{func(r *gateway.Unseal) { r.Plain.Subjects = []string{"in.*.x"} }, gateway.Changes{Restarted: []string{"unseal-r"}}},
		{func(*gateway.Unseal) {}, gateway.Changes{Unchanged: []string{"unseal-r"}}},
	} {
		s.change(&u.back)
		c, err := run.g.ReconfigureUnseal(t.Context(), cfg(u.back))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s.want, c); d != "" {
			t.Error(d)
		}
	}
	other := cfg(u.back)
	other.Keys = u.keys
	if c, err := run.g.ReconfigureUnseal(t.Context(), other); err != nil || len(c.Restarted) != 1 {
		t.Errorf("with other keys: %+v, %v", c, err)
	}
	u.publish(101, 200)
	u.plainCount(200, 20*time.Second)
	u.verifyPlain(1, 200)
}
