package gateway_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
)

// relayParts relays messages 1..n of a partitioned fixture and stops.
func (f *fixture) relayParts(n int) {
	f.t.Helper()
	f.publishParts(1, n)
	run := f.start()
	f.sealedParts(n, streamNames(sealed+"-", len(f.route.Source.Partitions))...)
	f.shares(5*time.Second, []*running{run}, len(f.route.Source.Partitions))
	if err := run.stop(); err != nil {
		f.t.Fatalf("Run = %v", err)
	}
}

// drain runs the fixture's route with Drain until it ends.
func (f *fixture) drain() {
	f.t.Helper()
	r := f.another()
	r.Drain = true
	f.drained(f.startRoute(r))
}

func (f *fixture) drained(run *running) {
	f.t.Helper()
	select {
	case <-run.done:
	case <-time.After(15 * time.Second):
		f.t.Fatalf("the drain did not end: %+v", run.g.Stats())
	}
	if run.err != nil {
		f.t.Fatalf("draining: %v", run.err)
	}
	for _, s := range run.g.Stats() {
		if s.State != gateway.StateDrained {
			f.t.Errorf("%s is %v after the drain", s.Label(), s.State)
		}
	}
}

// shut takes a sealed stream's subjects away.
func (f *fixture) shut(stream string) {
	f.t.Helper()
	cfg := f.info(stream).Config
	cfg.Subjects = []string{"closed." + stream}
	if _, err := f.js.UpdateStream(f.t.Context(), cfg); err != nil {
		f.t.Fatal(err)
	}
}

// refused runs the fixture's route and wants ErrLayout with a text.
func (f *fixture) refused(want string) {
	f.t.Helper()
	if err := f.startRoute(f.another()).stopped(gateway.ErrLayout); !strings.Contains(err.Error(), want) {
		f.t.Errorf("refused with %v, want %q", err, want)
	}
}

// Partitions that changed without a drain stop the route before it touches
// anything.
func TestLayoutChangeRefused(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 3, jetstream.StreamConfig{})
	f.relayParts(100)
	good := f.route
	streams := func() (names string) {
		l := f.js.StreamNames(t.Context())
		for n := range l.Name() {
			names += " " + n
		}
		return names
	}
	before := streams()
	for name, change := range map[string]func(*gateway.Route){
		"more":          func(r *gateway.Route) { r.Source.Partitions = partitions(4) },
		"fewer":         func(r *gateway.Route) { r.Source.Partitions = partitions(2) },
		"dealt anew":    func(r *gateway.Route) { p := partitions(3); p[0], p[1] = p[1], p[0]; r.Source.Partitions = p },
		"other streams": func(r *gateway.Route) { r.Sealed.Stream = "OTHER" },
		"other prefix":  func(r *gateway.Route) { r.Sealed.Subject = "other.>" },
		"none": func(r *gateway.Route) {
			r.Source.Partitions, r.Source.Subjects, r.Sealed.Stream = nil, []string{"in.>"}, "OTHER"
		},
		"draining another": func(r *gateway.Route) { r.Source.Partitions, r.Drain = partitions(4), true },
	} {
		f.route = good
		change(&f.route)
		f.refused("")
		if after := streams(); after != before {
			t.Errorf("%s: streams were%s, are%s", name, before, after)
		}
	}
	f.route = good
	run := f.start()
	f.publishParts(101, 200)
	f.sealedParts(200, streamNames(sealed+"-", 3)...)
	if err := run.stop(); err != nil {
		t.Error(err)
	}
	f.verifyParts(1, 200, streamNames(sealed+"-", 3)...)
}

// A route that was not partitioned cannot become so without a drain, but may
// change its filters and its sealed stream, as ever.
func TestLayoutOfUnpartitioned(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.publish(1, 50)
	for _, subjects := range [][]string{{"in.>"}, {"in.a.>", "in.b.>"}} {
		f.route.Source.Subjects = subjects
		run := f.start()
		run.eventually("relayed", func(s gatewayStats) bool { return s.State == gateway.StateRunning && s.Position >= 49 })
		if err := run.stop(); err != nil {
			t.Fatal(err)
		}
	}
	f.route.Source.Subjects, f.route.Source.Partitions, f.route.Sealed.Subject = nil, partitions(2), "other.>"
	f.refused("was not drained")
}

// The number of partitions changes under load: drain, close, begin anew. Every
// message is sealed once, in one of the layouts, and in order.
func TestRepartition(t *testing.T) {
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			t.Parallel()
			testRepartition(t, retention)
		})
	}
}

func testRepartition(t *testing.T, retention jetstream.RetentionPolicy) {
	f := partitioned(t, 3, jetstream.StreamConfig{Retention: retention, MaxAge: time.Hour})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	old, next := streamNames(sealed+"-", 3), streamNames("NEXT-", 5)
	load := f.feed(time.Millisecond)
	a, b := f.startRoute(f.another()), f.startRoute(f.another())
	f.shares(5*time.Second, []*running{a, b}, 1, 2)
	consumer, err := f.js.CreateConsumer(t.Context(), old[0], jetstream.ConsumerConfig{Durable: "reader", FilterSubject: "sealed.in.0.>", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*running{a, b} {
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
	layout := f.route
	f.route.Source.Partitions, f.route.Sealed.Stream = partitions(5), "NEXT"
	f.refused("was not drained")

	// Two instances drain together.
	changed := f.route
	f.route = layout
	one, two := f.another(), f.another()
	one.Drain, two.Drain = true, true
	c, d := f.startRoute(one), f.startRoute(two)
	f.drained(c)
	f.drained(d)
	ends := f.ends(old)
	f.drain() // once more changes nothing
	if again := f.ends(old); again != ends {
		t.Errorf("sealed streams ended at %s, after another drain at %s", ends, again)
	}

	f.route = changed
	f.refused("still takes")
	for _, s := range old[1:] {
		f.shut(s)
	}
	f.refused("still takes")
	f.shut(old[0])
	e := f.startRoute(f.another())
	f.shares(8*time.Second, []*running{e}, 5)
	g := f.startRoute(f.another())
	f.shares(5*time.Second, []*running{e, g}, 2, 3)
	n := load.stop()
	f.sealedParts(n, append(old, next...)...)
	f.sourceEmpty()
	f.verifyParts(1, n, append(old, next...)...)
	if again := f.ends(old); again != ends {
		t.Errorf("the old sealed streams ended at %s, now at %s", ends, again)
	}
	// Who reads the old layout reads on.
	if m, err := consumer.Next(jetstream.FetchMaxWait(5 * time.Second)); err != nil || m.Subject() != "sealed.in.0.x" {
		t.Errorf("reading an old sealed stream: %v, %v", m, err)
	}
	// The old layout cannot come back.
	f.route = layout
	f.refused("was not drained")
}

func (f *fixture) ends(streams []string) (out string) {
	for _, s := range streams {
		out += fmt.Sprint(" ", f.info(s).State.LastSeq)
	}
	return out
}

// A drained route that was written to, or relayed further, is not taken over.
func TestRepartitionRefused(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 2, jetstream.StreamConfig{})
	f.relayParts(60)
	f.drain()
	layout := f.route
	other := f.route
	other.Source.Partitions, other.Sealed.Stream = partitions(3), "NEXT"

	// The old layout goes on: the drain is off.
	f.publishParts(61, 80)
	run := f.start()
	f.sealedParts(80, streamNames(sealed+"-", 2)...)
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	f.route = other
	f.refused("was not drained")
	f.route = layout
	f.drain()

	// The same names again.
	f.route = other
	f.route.Sealed.Stream = sealed
	f.refused("belongs to both")

	// Something was stored after the drain.
	f.route = other
	if _, err := f.js.Publish(t.Context(), "sealed.in.1.x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, s := range streamNames(sealed+"-", 2) {
		f.shut(s)
	}
	f.refused("it changed after the drain")

	// A position that says something else.
	key := "$KV." + gateway.PositionsBucket + "." + sealed + "-1.1"
	if _, err := f.js.Publish(t.Context(), key, []byte(`{"v":1}`)); err != nil {
		t.Fatal(err)
	}
	f.refused("not written by this route")
	if err := f.js.DeleteStream(t.Context(), sealed+"-1"); err != nil {
		t.Fatal(err)
	}
	f.refused("not written by this route")
	if _, err := f.js.Publish(t.Context(), "$KV."+gateway.PositionsBucket+".route.r.layout", []byte(`{"v":1}`)); err != nil {
		t.Fatal(err)
	}
	f.refused("the recorded layout was not written by this route")
}

// Deleting the old sealed streams closes them, too. An interest source cannot be
// drained.
func TestRepartitionAfterDelete(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 2, jetstream.StreamConfig{})
	f.relayParts(60)
	f.drain()
	for _, s := range streamNames(sealed+"-", 2) {
		if err := f.js.DeleteStream(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	f.publishParts(61, 120)
	f.route.Source.Partitions, f.route.Source.Subjects, f.route.Sealed.Stream = nil, []string{"in.>"}, "ALL"
	run := f.start()
	f.sealedParts(60, "ALL")
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	f.verifyParts(61, 120, "ALL")

	i := partitioned(t, 2, jetstream.StreamConfig{Retention: jetstream.InterestPolicy})
	i.route.Source.AfterSeal = gateway.AfterSealPurge
	first := i.start()
	i.shares(10*time.Second, []*running{first}, 2)
	i.publishParts(1, 60) // not before: nobody would wait for them
	i.sealedParts(60, streamNames(sealed+"-", 2)...)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	i.route.Drain = true
	var re *gateway.RouteError
	if err := i.start().stopped(gateway.ErrLayout); !strings.Contains(err.Error(), "interest") || !errors.As(err, &re) || !strings.Contains(re.Hint(), "--retention limits") {
		t.Errorf("draining an interest source: %v", err)
	}
	// What the hint says.
	cfg := i.info(source).Config
	cfg.Retention = jetstream.LimitsPolicy
	if _, err := i.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	i.publishParts(61, 120)
	i.drain()
	old := streamNames(sealed+"-", 2)
	for _, s := range old {
		i.shut(s)
	}
	i.route.Drain, i.route.Source.Partitions, i.route.Sealed.Stream = false, partitions(3), "NEXT"
	i.publishParts(121, 180)
	next := i.start()
	streams := append(old, streamNames("NEXT-", 3)...)
	i.shares(10*time.Second, []*running{next}, 3)
	i.sealedParts(180, streams...)
	i.sourceEmpty()
	i.verifyParts(1, 180, streams...)
}

// The source begins anew while the layouts change.
func TestRepartitionOfAnotherSource(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 2, jetstream.StreamConfig{})
	f.relayParts(60)
	f.drain()
	cfg := f.info(source).Config
	if err := f.js.DeleteStream(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	f.create(cfg)
	f.publishParts(1, 100)
	for _, s := range streamNames(sealed+"-", 2) {
		f.shut(s)
	}
	f.route.Source.Partitions, f.route.Sealed.Stream = partitions(3), "NEXT"
	f.start().stopped(gateway.ErrSourceChanged)
	if _, err := f.js.Stream(t.Context(), "NEXT-0"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("the new sealed stream: %v", err)
	}
}
