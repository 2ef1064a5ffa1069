package gateway_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

// other is a second route of the fixture, from two.> to SEALED2.
func (f *fixture) other() gateway.Route {
	f.t.Helper()
	f.create(jetstream.StreamConfig{Name: "IN2", Subjects: []string{"two.>"}})
	r := f.route
	r.Name, r.Source.Stream, r.Source.Subjects, r.Sealed.Stream = "two", "IN2", []string{"two.>"}, "SEALED2"
	return r
}

func (r *running) reconfigure(keys gateway.Keys, routes ...gateway.Route) gateway.Changes {
	r.t.Helper()
	c, err := r.g.Reconfigure(r.t.Context(), keys, routes)
	if err != nil {
		r.t.Fatalf("Reconfigure: %v", err)
	}
	return c
}

func (r *running) states() map[string]gateway.State {
	out := make(map[string]gateway.State)
	for _, s := range r.g.Stats() {
		out[s.Name] = s.State
	}
	return out
}

func (r *running) want(states map[string]gateway.State) {
	r.t.Helper()
	natstest.Eventually(r.t, 10*time.Second, func() error {
		if d := cmp.Diff(states, r.states()); d != "" {
			return errors.New(d)
		}
		return nil
	})
}

func TestReconfigure(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	two := f.other()
	run := f.start()
	one := gateway.StateRunning
	run.want(map[string]gateway.State{"r": one})
	f.publish(1, 10)
	f.sealedCount(10, 5*time.Second)
	consumers := f.consumers()

	// A route comes, the other one goes on with the consumer it has.
	if d := cmp.Diff(gateway.Changes{Unchanged: []string{"r"}, Started: []string{"two"}}, run.reconfigure(nil, f.route, two)); d != "" {
		t.Error(d)
	}
	run.want(map[string]gateway.State{"r": one, "two": one})
	if d := cmp.Diff(consumers, f.consumers()); d != "" {
		t.Errorf("the unchanged route opened its source again: %s", d)
	}
	run.eventually("counting on", func(s gatewayStats) bool { return s.Messages == 10 })

	// Order, and the answer to a route that stopped, are no change.
	from := uint64(3)
	r := f.route
	r.ResumeFrom = &from
	if d := cmp.Diff(gateway.Changes{Unchanged: []string{"two", "r"}}, run.reconfigure(nil, two, r)); d != "" {
		t.Error(d)
	}
	if s := run.g.Stats(); s[0].Name != "two" || s[1].Name != "r" {
		t.Errorf("stats are not in the order of the routes: %v, %v", s[0].Name, s[1].Name)
	}

	// One changes, one goes, one is renewed under another name.
	f.create(jetstream.StreamConfig{Name: "IN3", Subjects: []string{"three.>"}})
	three := two
	three.Name, three.Source.Stream, three.Source.Subjects, three.Sealed.Stream = "three", "IN3", []string{"three.>"}, "SEALED3"
	r.Window, r.ResumeFrom = 64, nil
	want := gateway.Changes{Restarted: []string{"r"}, Started: []string{"three"}, Removed: []string{"two"}}
	if d := cmp.Diff(want, run.reconfigure(nil, three, r)); d != "" {
		t.Error(d)
	}
	run.want(map[string]gateway.State{"r": one, "three": one})

	// Another connection is a change, and so are other keys.
	r.Source.Conn = f.srv.Conn(t)
	if d := cmp.Diff(gateway.Changes{Unchanged: []string{"three"}, Restarted: []string{"r"}}, run.reconfigure(nil, three, r)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(gateway.Changes{Restarted: []string{"three", "r"}}, run.reconfigure(f.keys, three, r)); d != "" {
		t.Error(d)
	}
	f.publish(11, 20)
	f.sealedCount(20, 5*time.Second)
	if err := run.stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	f.verify(1, 20)
	if _, err := run.g.Reconfigure(t.Context(), nil, []gateway.Route{r}); !errors.Is(err, gateway.ErrNotRunning) {
		t.Errorf("Reconfigure after Run = %v, want ErrNotRunning", err)
	}
}

func TestReconfigureRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	two := f.other()
	run := f.start()
	run.want(map[string]gateway.State{"r": gateway.StateRunning})
	consumers := f.consumers()
	bad, twice := two, two
	bad.Source.Subjects, twice.Sealed.Stream = nil, sealed
	changed := f.route
	changed.Window = 7
	for name, routes := range map[string][]gateway.Route{
		"none": nil, "bad": {changed, bad}, "stream twice": {changed, twice}, "name twice": {changed, f.route},
	} {
		c, err := run.g.Reconfigure(t.Context(), nil, routes)
		if d := cmp.Diff(gateway.Changes{}, c); !errors.Is(err, gateway.ErrConfig) || d != "" {
			t.Errorf("%s: Reconfigure = %v, %+v, want ErrConfig and no change", name, err, c)
		}
	}
	if d := cmp.Diff(consumers, f.consumers()); d != "" || len(consumers) != 1 {
		t.Errorf("the route was touched: %s", d)
	}
	f.publish(1, 10)
	f.sealedCount(10, 5*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g, err := gateway.New(gateway.Config{Routes: []gateway.Route{f.route}, Keys: f.keys})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Reconfigure(ctx, nil, []gateway.Route{f.route}); !errors.Is(err, context.Canceled) {
		t.Errorf("Reconfigure before Run = %v, want the end of its context", err)
	}
}

// A route that stopped starts again with the next configuration, and what it had
// been told to resume from does not count a second time.
func TestReconfigureStartsStopped(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	two := f.other()
	f.sealSome(20)
	if err := f.js.DeleteStream(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	run := f.startWith(func(c *gateway.Config) { c.Routes = append(c.Routes, two) })
	run.want(map[string]gateway.State{"r": gateway.StateStopped, "two": gateway.StateRunning})
	run.reconfigure(nil, f.route, two)
	run.want(map[string]gateway.State{"r": gateway.StateStopped, "two": gateway.StateRunning})

	r, from := f.route, uint64(5)
	r.ResumeFrom = &from
	if d := cmp.Diff(gateway.Changes{Unchanged: []string{"two"}, Restarted: []string{"r"}}, run.reconfigure(nil, r, two)); d != "" {
		t.Error(d)
	}
	f.sealedCount(16, 10*time.Second)
	if err := f.js.DeleteStream(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	f.publish(21, 21)
	run.want(map[string]gateway.State{"r": gateway.StateStopped, "two": gateway.StateRunning})
	run.reconfigure(nil, r, two)
	run.want(map[string]gateway.State{"r": gateway.StateStopped, "two": gateway.StateRunning})
	from = 7
	run.reconfigure(nil, r, two)
	f.sealedCount(15, 10*time.Second)
	run.stop()
	f.verify(7, 21)
}

// Under load, with changes all the time: nothing is lost, doubled or reordered.
func TestReconfigureUnderLoad(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, func(t *testing.T, e gateway.Engine) {
		f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
		f.route.Engine = e
		two := f.other()
		const n, rounds = 10000, 10
		run := f.start()
		for i := range rounds {
			f.publish(i*n/rounds+1, (i+1)*n/rounds)
			r := f.route
			r.Window = 128 + i // changes it
			routes := []gateway.Route{r}
			if i%2 == 0 {
				routes = append(routes, two)
			}
			if c := run.reconfigure(nil, routes...); len(c.Restarted) != 1 {
				t.Errorf("round %d: %+v", i, c)
			}
		}
		f.sealedCount(n, 15*time.Second)
		if err := run.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		f.verify(1, n)
	})
}

// consumers are the names of those on the source; each opening has one of its own.
func (f *fixture) consumers() (names []string) {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), source)
	if err != nil {
		f.t.Fatal(err)
	}
	l := s.ConsumerNames(f.t.Context())
	for n := range l.Name() {
		names = append(names, n)
	}
	if err := l.Err(); err != nil {
		f.t.Fatal(err)
	}
	return names
}

// How a route with a lot to do reports, and that it stops to.
func TestBacklog(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	const n = 12000
	f.keys.set(func() { f.keys.err = errors.New("no key today") })
	f.tune.Progress = 20 * time.Millisecond
	f.publish(1, n)
	run := f.start()
	run.eventually("a backlog", func(s gatewayStats) bool { return s.Backlog == n && s.Lag == n && s.BacklogSealed == 0 })
	f.keys.set(func() { f.keys.err = nil })
	run.eventually("progress", func(s gatewayStats) bool { return s.BacklogSealed > 0 && s.Rate > 0 || s.Position == n })
	run.eventually("caught up", func(s gatewayStats) bool {
		return s.Backlog == 0 && s.BacklogSealed == 0 && s.Position == n && s.Lag == 0
	})
	run.stop()
	f.verify(1, n)
}
