package gateway_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// subjectsOfParts is how many subjects the tests of partitions publish to.
const subjectsOfParts = 24

func partSubject(i int) string { return fmt.Sprintf("in.%d.x", i%subjectsOfParts) }

// partitions deals the subjects out to n partitions, so that different numbers
// make different sets.
func partitions(n int) [][]string {
	out := make([][]string, n)
	for i := range subjectsOfParts {
		out[i%n] = append(out[i%n], fmt.Sprintf("in.%d.>", i))
	}
	return out
}

// partitioned makes a fixture whose route has n partitions.
func partitioned(t *testing.T, n int, cfg jetstream.StreamConfig) *fixture {
	t.Helper()
	cfg.Storage = jetstream.MemoryStorage
	f := newFixture(t, cfg)
	f.route.Source.Subjects = nil
	f.route.Source.Partitions = partitions(n)
	f.route.Sealed.Create.Storage = gateway.MemoryStorage
	f.tune.ClaimTTL = time.Second
	return f
}

// another is the route for a further instance, on connections of its own.
func (f *fixture) another() gateway.Route {
	r := f.route
	r.Source.Conn, r.Sealed.Conn = f.srv.Conn(f.t), f.srv.Conn(f.t)
	return r
}

// feed publishes until it is stopped, and then returns how many messages.
type feed struct {
	t    *testing.T
	n    atomic.Int64
	quit chan struct{}
	done chan error
}

func (f *fixture) feed(every time.Duration) *feed {
	fd := &feed{t: f.t, quit: make(chan struct{}), done: make(chan error, 1)}
	js := f.srv.JetStream(f.t)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 1; ; i++ {
			if _, err := js.Publish(f.t.Context(), partSubject(i), payloadOf(i)); err != nil {
				fd.done <- err
				return
			}
			fd.n.Store(int64(i))
			select {
			case <-tick.C:
			case <-fd.quit:
				fd.done <- nil
				return
			}
		}
	}()
	return fd
}

func (fd *feed) stop() int {
	fd.t.Helper()
	close(fd.quit)
	if err := <-fd.done; err != nil {
		fd.t.Fatalf("publishing: %v", err)
	}
	return int(fd.n.Load())
}

// held is how many partitions an instance relays.
func held(r *running) (n int) {
	for _, s := range r.g.Stats() {
		if s.State == gateway.StateRunning {
			n++
		}
	}
	return n
}

// shares waits until the instances hold the wanted numbers of partitions, in any
// order, and returns how long that took.
func (f *fixture) shares(within time.Duration, runs []*running, want ...int) time.Duration {
	f.t.Helper()
	began := time.Now()
	natstest.Eventually(f.t, within, func() error {
		got := make([]int, len(runs))
		for i, r := range runs {
			got[i] = held(r)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("instances hold %v partitions, want %v", got, want)
		}
		return nil
	})
	return time.Since(began)
}

// verifyParts checks that the sealed streams together hold messages from..to once,
// each stream on one unbroken chain, each subject in one stream and in order, and
// every message where the partitions say.
func (f *fixture) verifyParts(from, to int, streams ...string) {
	f.t.Helper()
	seen := make(map[int]bool)
	last := make(map[string]int)
	for _, stream := range streams {
		got := openStream(f.t, f.js, f.keys, stream)
		checkChain(f.t, got)
		for _, o := range got {
			n, err := strconv.Atoi(strings.TrimPrefix(o.payload, "m"))
			if err != nil || n < from || n > to {
				f.t.Fatalf("%s: %d is %q", stream, o.seq, o.payload)
			}
			if seen[n] {
				f.t.Fatalf("%s: %q is there twice", stream, o.payload)
			}
			seen[n] = true
			if o.meta.OriginSubject != partSubject(n) || n <= last[o.meta.OriginSubject] {
				f.t.Fatalf("%s: %q on %s came after %d", stream, o.payload, o.meta.OriginSubject, last[o.meta.OriginSubject])
			}
			last[o.meta.OriginSubject] = n
		}
	}
	if len(seen) != to-from+1 {
		f.t.Fatalf("%d sealed messages, want %d", len(seen), to-from+1)
	}
}

// sealedParts waits until the sealed streams together hold n messages.
func (f *fixture) sealedParts(n int, streams ...string) {
	f.t.Helper()
	natstest.Eventually(f.t, 15*time.Second, func() error {
		total := 0
		for _, s := range streams {
			stream, err := f.js.Stream(f.t.Context(), s)
			if err != nil {
				return err
			}
			total += int(stream.CachedInfo().State.Msgs)
		}
		if total != n {
			return fmt.Errorf("%d messages sealed, want %d", total, n)
		}
		return nil
	})
}

func streamNames(prefix string, n int) (out []string) {
	for i := range n {
		out = append(out, prefix+strconv.Itoa(i))
	}
	return out
}

// Instances share partitions evenly: they join, one is killed, one leaves, and
// every message is sealed once and in order throughout.
func TestPartitionShares(t *testing.T) {
	t.Parallel() // waits for most of its time
	const ttl = time.Second
	f := partitioned(t, 8, jetstream.StreamConfig{})
	streams := streamNames(sealed+"-", 8)
	load := f.feed(500 * time.Microsecond)
	killed := f.another()
	a := f.startRoute(killed)
	f.shares(5*time.Second, []*running{a}, 8)
	b := f.startRoute(f.another())
	f.shares(5*time.Second, []*running{a, b}, 4, 4)
	c := f.startRoute(f.another())
	f.shares(5*time.Second, []*running{a, b, c}, 2, 3, 3)

	// What the survivors hold they keep, and they take the rest once the claims of
	// the dead one expired.
	killed.Source.Conn.Close()
	killed.Sealed.Conn.Close()
	took := f.shares(ttl+2*time.Second, []*running{b, c}, 4, 4)
	t.Logf("took over %v after the kill", took)
	if took < ttl/4 {
		t.Errorf("took over after %v: the kill released its claims", took)
	}
	if err := a.stop(); !errors.Is(err, gateway.ErrConnection) {
		t.Errorf("the killed instance says %v", err)
	}

	// A clean shutdown hands over at once.
	if err := b.stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if took := f.shares(5*time.Second, []*running{c}, 8); took > time.Second {
		t.Errorf("take-over after a clean shutdown took %v", took)
	}
	n := load.stop()
	f.sealedParts(n, streams...)
	if err := c.stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	f.verifyParts(1, n, streams...)
	for i, s := range c.g.Stats() {
		if s.Partition != i || s.Partitions != 8 || s.SealedStream != streams[i] || s.Label() != fmt.Sprint("r/", i) || s.State != gateway.StateIdle {
			t.Errorf("stats of partition %d: %+v", i, s)
		}
	}
}

// A hand-over does not stop a subject for long.
func TestPartitionHandOverIsQuick(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 4, jetstream.StreamConfig{})
	f.tune.ClaimTTL = 10 * time.Second // nothing here may wait for it
	a := f.start()
	f.shares(5*time.Second, []*running{a}, 4)
	load := f.feed(time.Millisecond)
	b := f.startRoute(f.another())
	if took := f.shares(8*time.Second, []*running{a, b}, 2, 2); took > 4*time.Second {
		t.Errorf("the new instance had its share after %v", took)
	}
	if err := a.stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if took := f.shares(8*time.Second, []*running{b}, 4); took > 3*time.Second {
		t.Errorf("the last instance had everything after %v", took)
	}
	n := load.stop()
	f.sealedParts(n, streamNames(sealed+"-", 4)...)
	f.verifyParts(1, n, streamNames(sealed+"-", 4)...)
	longest := time.Duration(0)
	for _, s := range streamNames(sealed+"-", 4) {
		longest = max(longest, f.longestDelay(s))
	}
	t.Logf("longest time from publishing to the sealed copy: %v", longest)
	if longest > 3*time.Second {
		t.Errorf("a message waited %v", longest)
	}
}

// longestDelay compares when messages were published and when sealed copies were stored.
func (f *fixture) longestDelay(stream string) (longest time.Duration) {
	f.t.Helper()
	for _, o := range openStream(f.t, f.js, f.keys, stream) {
		m, err := f.stream(stream).GetMsg(f.t.Context(), o.seq)
		if err != nil {
			f.t.Fatal(err)
		}
		longest = max(longest, m.Time.Sub(time.Unix(0, o.meta.Published)))
	}
	return longest
}

func (f *fixture) stream(name string) jetstream.Stream {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), name)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// Every kind of source, purged: each partition releases its own messages only.
func TestPartitionsRelease(t *testing.T) {
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy, jetstream.InterestPolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			t.Parallel()
			f := partitioned(t, 3, jetstream.StreamConfig{Retention: retention})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.route.Sealed.Stream = "P{partition}"
			a := f.start()
			f.shares(5*time.Second, []*running{a}, 3)
			load := f.feed(time.Millisecond)
			b := f.startRoute(f.another())
			f.shares(5*time.Second, []*running{a, b}, 1, 2)
			n := load.stop()
			streams := streamNames("P", 3)
			f.sealedParts(n, streams...)
			f.sourceEmpty()
			f.verifyParts(1, n, streams...)
		})
	}
}

// What other partitions release is not lost to this one, although the source
// limits the age of messages and this one is older.
func TestPartitionsTellReleaseFromLoss(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 2, jetstream.StreamConfig{MaxAge: 3 * time.Second})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	a := f.start()
	f.shares(5*time.Second, []*running{a}, 2)
	send := func(i int) {
		t.Helper()
		if _, err := f.js.Publish(t.Context(), partSubject(i), payloadOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	send(1) // partition 1
	began := time.Now()
	n := 2
	for ; time.Since(began) < 4*time.Second; n += 2 {
		send(n) // partition 0
		f.sealedParts(n/2, sealed+"-0")
	}
	send(n - 1) // partition 1
	f.sealedParts(2, sealed+"-1")
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b := f.start()
	f.shares(5*time.Second, []*running{b}, 2)
	send(n + 1)
	f.sealedParts(3, sealed+"-1")
	for _, s := range b.g.Stats() {
		if s.LastError != nil || s.Lost != 0 {
			t.Errorf("%s: %+v", s.Label(), s)
		}
	}
}

// The first partition to run decides for all where new means.
func TestPartitionsStartNew(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 2, jetstream.StreamConfig{})
	f.publishParts(1, 50)
	f.route.Source.Start = gateway.StartNew()
	// Two instances of which the first may take one partition only: its entry
	// counts, it just never claims.
	f.create(jetstream.StreamConfig{Name: "KV_" + gateway.ClaimsBucket, Subjects: []string{"$KV." + gateway.ClaimsBucket + ".>"}, MaxMsgsPerSubject: 1, MaxAge: time.Second, Storage: jetstream.MemoryStorage, AllowDirect: true})
	if _, err := f.js.Publish(t.Context(), "$KV."+gateway.ClaimsBucket+".instance.r.ghost", []byte(`{"instance":"ghost","joined":9223372036854775807}`)); err != nil {
		t.Fatal(err)
	}
	run := f.start()
	f.shares(5*time.Second, []*running{run}, 1)
	f.publishParts(51, 100)
	f.shares(5*time.Second, []*running{run}, 2) // the ghost expired
	f.sealedParts(50, streamNames(sealed+"-", 2)...)
	f.verifyParts(51, 100, streamNames(sealed+"-", 2)...)
}

func (f *fixture) publishParts(from, to int) {
	f.t.Helper()
	for i := from; i <= to; i++ {
		if _, err := f.js.Publish(f.t.Context(), partSubject(i), payloadOf(i)); err != nil {
			f.t.Fatal(err)
		}
	}
}

// A landing stream numbers partitions itself.
func TestPartitionsByTransform(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{SubjectTransform: &jetstream.SubjectTransformConfig{Source: "in.*.*", Destination: "{{partition(4,1)}}.in.{{wildcard(1)}}.{{wildcard(2)}}"}})
	f.keys = newFakeKeys(keysvc.ScopeRule{Match: "*.in.*.>", Scope: "tenant/{{wildcard(2)}}"})
	f.route.Source.Subjects = nil
	f.route.Source.Partitions = [][]string{{"0.>"}, {"1.>"}, {"2.>"}}
	f.start().stopped(gateway.ErrSource)
	f.route.Source.Partitions = append(f.route.Source.Partitions, []string{"3.>"})
	run := f.start()
	f.publish(1, 400)
	streams := streamNames(sealed+"-", 4)
	f.shares(5*time.Second, []*running{run}, 4)
	f.sealedParts(400, streams...)
	used := 0
	for i, s := range streams {
		got := openStream(t, f.js, f.keys, s)
		checkChain(t, got)
		if len(got) > 0 {
			used++
		}
		for _, o := range got {
			n, _ := strconv.Atoi(strings.TrimPrefix(o.payload, "m"))
			if want := fmt.Sprintf("%d.%s", i, subjectOf(n)); o.meta.OriginSubject != want {
				t.Fatalf("%s holds a message of %s, want %s", s, o.meta.OriginSubject, want)
			}
		}
	}
	if used < 2 {
		t.Errorf("%d of 4 partitions have messages", used)
	}
}

func TestPartitionsRefuse(t *testing.T) {
	t.Parallel()
	srv := natstest.New(t)
	nc := srv.Conn(t, nats.Name("x"))
	for name, c := range map[string]struct {
		change func(*gateway.Route)
		want   string
	}{
		"not covered":    {func(r *gateway.Route) { r.Source.Partitions = [][]string{{"in.a.>"}} }, "no partition takes in.a,"},
		"overlap":        {func(r *gateway.Route) { r.Source.Partitions = [][]string{{"in.>"}, {"in.a"}} }, `overlaps "in.>"`},
		"too wide":       {func(r *gateway.Route) { r.Source.Partitions = [][]string{{">"}} }, "none of the route's subjects"},
		"empty":          {func(r *gateway.Route) { r.Source.Partitions = [][]string{{"in.>"}, {}} }, "partition 1 has no filter"},
		"none":           {func(r *gateway.Route) { r.Source.Subjects, r.Source.Partitions = nil, [][]string{} }, "no source subjects"},
		"bad stream":     {func(r *gateway.Route) { r.Sealed.Stream = "a.{partition}" }, "sealed stream"},
		"no partitions":  {func(r *gateway.Route) { r.Source.Partitions, r.Sealed.Stream = nil, "S{partition}" }, "sealed stream"},
		"overlap itself": {func(r *gateway.Route) { r.Source.Subjects, r.Source.Partitions = nil, [][]string{{"a.>"}, {"a.b"}} }, "overlap"},
	} {
		r := gateway.Route{
			Name:   "r",
			Source: gateway.Source{Conn: nc, Stream: source, Subjects: []string{"in.>"}, Partitions: [][]string{{"in.*"}, {"in.*.>"}}, AfterSeal: gateway.AfterSealKeep},
			Sealed: gateway.Sealed{Conn: nc, Stream: sealed, Subject: "sealed.>"},
		}
		if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: newFakeKeys()}); err != nil {
			t.Fatalf("New of good partitions: %v", err)
		}
		same := r
		same.Name, same.Source.Partitions, same.Sealed.Stream = "s", nil, sealed+"-1"
		if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r, same}, Keys: newFakeKeys()}); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("a sealed stream of two routes: %v", err)
		}
		c.change(&r)
		_, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: newFakeKeys()})
		if !errors.Is(err, gateway.ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: New = %v, want ErrConfig with %q", name, err, c.want)
		}
	}
	f := partitioned(t, 2, jetstream.StreamConfig{MaxMsgs: 100})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.start().stopped(gateway.ErrSource)
}
