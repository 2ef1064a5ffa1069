package gateway_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/sealedcheck"
)

// shared makes a fixture whose n partitions share one sealed stream.
func shared(t *testing.T, n int, cfg jetstream.StreamConfig) *fixture {
	t.Helper()
	f := partitioned(t, n, cfg)
	f.route.Sealed.Shared = true
	return f
}

// sealedShared waits until the shared stream holds so many sealed messages.
func (f *fixture) sealedShared(want int, within time.Duration) {
	f.t.Helper()
	natstest.Eventually(f.t, within, func() error {
		s, err := f.js.Stream(f.t.Context(), sealed)
		if err != nil {
			return err
		}
		info, err := s.Info(f.t.Context(), jetstream.WithSubjectFilter(checkpoint.Pattern(sealed)))
		if err != nil {
			return err
		}
		state := info.State
		if got := int(state.Msgs) - len(state.Subjects); got != want {
			return fmt.Errorf("%d messages sealed, want %d", got, want)
		}
		return nil
	})
}

// verifyShared checks that the shared stream holds messages from..to once, each
// partition on one unbroken chain that its checkpoint ends, each subject in order,
// and that a check without keys agrees.
func (f *fixture) verifyShared(from, to int) {
	f.t.Helper()
	var chains []string
	parts := make(map[string][]opened)
	seen, last := make(map[int]bool), make(map[string]int)
	for _, o := range f.open() {
		n, err := strconv.Atoi(strings.TrimPrefix(o.payload, "m"))
		if err != nil || n < from || n > to || o.meta.OriginSubject != partSubject(n) {
			f.t.Fatalf("%d is %q from %s", o.seq, o.payload, o.meta.OriginSubject)
		}
		if seen[n] {
			f.t.Fatalf("%q is there twice", o.payload)
		}
		if n < last[o.subject] {
			f.t.Fatalf("%q on %s comes after m%d", o.payload, o.subject, last[o.subject])
		}
		seen[n], last[o.subject] = true, n
		chain := o.meta.Chain.String()
		if !slices.Contains(chains, chain) {
			chains = append(chains, chain)
		}
		parts[chain] = append(parts[chain], o)
	}
	if len(seen) != to-from+1 {
		f.t.Errorf("%d messages, want %d", len(seen), to-from+1)
	}
	for _, p := range parts {
		checkChain(f.t, p)
	}
	if len(parts) > len(f.route.Source.Partitions) {
		f.t.Errorf("%d chains for %d partitions", len(parts), len(f.route.Source.Partitions))
	}
	f.checkSealed()
}

// checkSealed looks at the sealed stream as "keyweir verify" does.
func (f *fixture) checkSealed() {
	f.t.Helper()
	r, err := sealedcheck.Check(f.t.Context(), f.js.Conn(), sealedcheck.Options{Stream: sealed})
	if err != nil {
		f.t.Fatal(err)
	}
	if !r.OK {
		f.t.Errorf("a check without keys: %s\n%+v", r.Wrong(), r.Findings)
	}
}

// lastCheckpoint is the last checkpoint of a partition; nil if there is none.
func (f *fixture) lastCheckpoint(partition uint32) *jetstream.RawStreamMsg {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), sealed)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(f.t.Context(), checkpoint.Subject(sealed, partition))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

// run starts a gateway, and waits until it holds all partitions.
func (f *fixture) startShared() *running {
	f.t.Helper()
	run := f.startRoute(f.another())
	f.shares(15*time.Second, []*running{run}, len(f.route.Source.Partitions))
	return run
}

func (f *fixture) stopAll(runs ...*running) {
	f.t.Helper()
	for _, r := range runs {
		if err := r.stop(); err != nil {
			f.t.Errorf("Run = %v", err)
		}
	}
}

func TestShared(t *testing.T) {
	t.Parallel()
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			t.Parallel()
			f := shared(t, 3, jetstream.StreamConfig{Retention: retention})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.publishParts(1, 3000)
			run := f.startShared()
			f.sealedShared(3000, 20*time.Second)
			f.publishParts(3001, 3010)
			f.sealedShared(3010, 20*time.Second)
			f.sourceEmpty()
			f.stopAll(run)
			f.verifyShared(1, 3010)

			again := f.startShared()
			f.publishParts(3011, 3500)
			f.sealedShared(3500, 20*time.Second)
			f.sourceEmpty()
			f.stopAll(again)
			f.verifyShared(1, 3500)
		})
	}
}

// Without claims, two workers of every partition write at once all the time.
func TestSharedRacing(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	f.tune.NoClaim = true
	const n = 2000
	f.publishParts(1, 50)
	a, b := f.startRoute(f.another()), f.startRoute(f.another())
	f.publishParts(51, n)
	f.sealedShared(n, 60*time.Second)
	f.stopAll(a, b)
	f.verifyShared(1, n)
}

// A worker is frozen with a batch on its way, others take its partitions over and
// write, and it comes back with everything it had in hand.
func TestSharedZombie(t *testing.T) {
	t.Parallel()
	f := shared(t, 3, jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy})
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.tune.AckTimeout, f.tune.Heartbeat = 20*time.Second, 10*time.Second // the frozen one shall not notice
	p := natstest.NewProxy(t, f.srv.Addr())
	frozen := f.route
	frozen.Source.Conn, frozen.Sealed.Conn = natstest.Connect(t, p.ClientURL()), natstest.Connect(t, p.ClientURL())
	p.SetLatency(10 * time.Millisecond)
	z := f.startRoute(frozen)
	f.shares(30*time.Second, []*running{z}, 3)
	load := f.feed(200 * time.Microsecond)
	z.eventually("in the middle", func(s gatewayStats) bool { return s.Position > 500 })
	p.Pause()
	b := f.startRoute(f.another())
	natstest.Eventually(t, 30*time.Second, func() error {
		for _, s := range b.g.Stats() {
			if s.Messages < 20 {
				return fmt.Errorf("%s: %d messages, %v", s.Label(), s.Messages, s.State)
			}
		}
		return nil
	})
	p.Resume()
	natstest.Eventually(t, 30*time.Second, func() error {
		for _, s := range z.g.Stats() {
			if s.LastError != nil {
				return nil
			}
		}
		return errors.New("the frozen one has not noticed")
	})
	n := load.stop()
	f.sealedShared(n, 30*time.Second)
	f.sourceEmpty()
	f.stopAll(z, b)
	f.verifyShared(1, n)
}

// Connections are cut again and again, so that batches are stored and their
// acknowledgements lost.
func TestSharedCuts(t *testing.T) {
	t.Parallel()
	f := shared(t, 3, jetstream.StreamConfig{})
	p := natstest.NewProxy(t, f.srv.Addr())
	r := f.route
	r.Source.Conn, r.Sealed.Conn = natstest.Connect(t, p.ClientURL()), natstest.Connect(t, p.ClientURL())
	run := f.startRoute(r)
	f.shares(15*time.Second, []*running{run}, 3)
	load := f.feed(200 * time.Microsecond)
	for i := range 5 {
		natstest.Eventually(t, 30*time.Second, func() error {
			sum := uint64(0)
			for _, s := range run.g.Stats() {
				sum += s.Messages
			}
			if sum < uint64(200*(i+1)) {
				return fmt.Errorf("%d sealed", sum)
			}
			if p.Cut() == 0 {
				return errors.New("no connection to cut")
			}
			return nil
		})
	}
	n := load.stop()
	f.sealedShared(n, 30*time.Second)
	f.stopAll(run)
	f.verifyShared(1, n)
}

// Partitions change hands while another one keeps the end of the stream moving.
func TestSharedTakeOverUnderLoad(t *testing.T) {
	t.Parallel()
	f := shared(t, 4, jetstream.StreamConfig{})
	a := f.startShared()
	load := f.feed(100 * time.Microsecond)
	turns := 4
	if testing.Short() {
		turns = 2
	}
	for range turns {
		b := f.startRoute(f.another())
		f.shares(30*time.Second, []*running{a, b}, 2, 2)
		f.stopAll(b)
		f.shares(30*time.Second, []*running{a}, 4)
	}
	n := load.stop()
	f.sealedShared(n, 30*time.Second)
	f.stopAll(a)
	f.verifyShared(1, n)
}

// empty waits until the sealed stream holds nothing.
func (f *fixture) empty() {
	f.t.Helper()
	natstest.Eventually(f.t, 30*time.Second, func() error {
		if n := f.info(sealed).State.Msgs; n > 0 {
			return fmt.Errorf("%d messages left", n)
		}
		return nil
	})
}

// positions waits until every partition has relayed what matches up to a source
// sequence.
func (f *fixture) positions(run *running, want uint64) {
	f.t.Helper()
	natstest.Eventually(f.t, 30*time.Second, func() error {
		for _, s := range run.g.Stats() {
			if s.Position < want {
				return fmt.Errorf("%s is at %d of %d: %v, %v", s.Label(), s.Position, want, s.State, s.LastError)
			}
		}
		return nil
	})
}

// The sealed stream forgets everything while nobody writes, by age or by hand. The
// records of partitions that ended well say where they stood.
func TestSharedEmptied(t *testing.T) {
	t.Parallel()
	for name, age := range map[string]time.Duration{"by age": time.Second, "by hand": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := shared(t, 2, jetstream.StreamConfig{})
			f.route.Sealed.Create.MaxAge = age
			for turn := range 3 {
				from := turn*100 + 1
				run := f.startShared()
				f.publishParts(from, from+99)
				f.positions(run, uint64(from+99))
				f.stopAll(run)
				if age == 0 {
					f.checkSealed()
					s, err := f.js.Stream(t.Context(), sealed)
					if err == nil {
						err = s.Purge(t.Context())
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				f.empty()
			}
			// Nothing comes again: the next messages follow the last ones.
			f.route.Sealed.Create.MaxAge = 0
			s, err := f.js.Stream(t.Context(), sealed)
			if err != nil {
				t.Fatal(err)
			}
			cfg := s.CachedInfo().Config
			cfg.MaxAge = 0
			if _, err := f.js.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			run := f.startShared()
			f.publishParts(301, 400)
			f.sealedShared(100, 30*time.Second)
			f.stopAll(run)
			first := make(map[string]uint64)
			for _, o := range f.open() {
				if c := o.meta.Chain.String(); first[c] == 0 {
					first[c] = o.meta.Previous
				}
			}
			if len(first) != 2 {
				t.Errorf("%d chains, want those of the partitions to go on", len(first))
			}
			for c, previous := range first {
				if previous < 299 || previous > 300 {
					t.Errorf("chain %s goes on behind source message %d", c, previous)
				}
			}
			f.checkSealed()
		})
	}
}

// While a route runs, its checkpoints do not age away, and what is removed by hand
// does not stop it.
func TestSharedEmptiedAtWork(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	f.route.Sealed.Create.MaxAge = 2 * time.Second
	run := f.startShared()
	f.publishParts(1, 10)
	f.positions(run, 10)
	first := [2]uint64{}
	natstest.Eventually(t, 30*time.Second, func() error {
		for i := range first {
			m := f.lastCheckpoint(uint32(i))
			if m == nil {
				t.Fatalf("partition %d has no checkpoint", i)
			}
			if first[i] == 0 {
				first[i] = m.Sequence
			}
			if m.Sequence < first[i]+8 { // each is stored every half second
				return fmt.Errorf("checkpoint of partition %d is %d, was %d", i, m.Sequence, first[i])
			}
		}
		return nil
	})
	for i := range 3 {
		s, err := f.js.Stream(t.Context(), sealed)
		if err == nil {
			err = s.Purge(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		f.publishParts(11+i*10, 20+i*10)
		f.positions(run, uint64(20+i*10))
	}
	f.stopAll(run)
	total := uint64(0)
	for _, s := range run.g.Stats() {
		total += s.Messages
	}
	if total != 40 {
		t.Errorf("%d messages were sealed, want 40", total)
	}
}

// Killed in the middle, and the checkpoint gone: nobody can say what was sealed, and
// the route does not guess.
func TestSharedAmbiguous(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	killed := f.another()
	run := f.startRoute(killed)
	f.shares(15*time.Second, []*running{run}, 2)
	f.publishParts(1, 100)
	f.positions(run, 100)
	killed.Sealed.Conn.Close()
	killed.Source.Conn.Close()
	<-run.done
	if !errors.Is(run.err, gateway.ErrConnection) {
		t.Fatalf("Run = %v", run.err)
	}
	s, err := f.js.Stream(t.Context(), sealed)
	if err == nil {
		err = s.Purge(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	again := f.startRoute(f.another())
	// The checkpoint of one of them was the last message of all: that one is certain.
	natstest.Eventually(t, 30*time.Second, func() error {
		running, stopped := 0, 0
		for _, s := range again.g.Stats() {
			switch {
			case s.State == gateway.StateRunning:
				running++
			case s.State == gateway.StateStopped && errors.Is(s.LastError, gateway.ErrPosition) && strings.Contains(s.LastError.Error(), "was removed"):
				stopped++
			}
		}
		if running != 1 || stopped != 1 {
			return fmt.Errorf("%d run, %d stopped: %+v", running, stopped, again.g.Stats())
		}
		return nil
	})
	if err := again.stop(); !errors.Is(err, gateway.ErrPosition) {
		t.Errorf("Run = %v", err)
	}
	r, from := f.another(), uint64(101)
	r.ResumeFrom = &from
	f.publishParts(101, 200)
	resumed := f.startRoute(r)
	f.sealedShared(100, 30*time.Second)
	f.stopAll(resumed)
	for _, o := range f.open() {
		if o.meta.Sequence < from {
			t.Errorf("source message %d was sealed again", o.meta.Sequence)
		}
	}
}

// Whoever may publish there stores something as a checkpoint: the partition stops,
// the other one goes on.
func TestSharedForeignCheckpoint(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	run := f.startShared()
	f.publishParts(1, 40)
	f.positions(run, 40)
	old := f.lastCheckpoint(0)
	f.publishParts(41, 80)
	f.positions(run, 80)
	f.stopAll(run)
	now := f.lastCheckpoint(0)
	stream, err := f.js.Stream(t.Context(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	message, err := stream.GetMsg(t.Context(), old.Sequence-1) // of the same batch
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(now.Header.Get(checkpoint.Header), ":", ":9", 1)
	for _, c := range []struct {
		name, value string
		data        []byte
	}{
		{"an old one", old.Header.Get(checkpoint.Header), nil},
		{"a forged one", forged, nil},
		{"one with a body", now.Header.Get(checkpoint.Header), []byte("x")},
		{"nothing", "", nil},
		{"an old one behind an old message", old.Header.Get(checkpoint.Header), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.name, "message") {
				m := nats.NewMsg(message.Subject)
				m.Data = message.Data
				m.Header = nats.Header{"Keyweir": {"1"}, gateway.HeaderSource: {message.Header.Get(gateway.HeaderSource)}}
				if _, err := f.js.PublishMsg(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			m := nats.NewMsg(checkpoint.Subject(sealed, 0))
			m.Data = c.data
			m.Header = nats.Header{"Keyweir": {"1"}, checkpoint.Header: {c.value}, jetstream.MsgRollup: {jetstream.MsgRollupSubject}}
			if _, err := f.js.PublishMsg(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			r := f.startRoute(f.another())
			natstest.Eventually(t, 30*time.Second, func() error {
				s := r.g.Stats()
				if s[0].State == gateway.StateStopped && errors.Is(s[0].LastError, gateway.ErrPosition) && s[1].State == gateway.StateRunning {
					return nil
				}
				return fmt.Errorf("%v (%v), %v (%v)", s[0].State, s[0].LastError, s[1].State, s[1].LastError)
			})
			if err := r.stop(); !errors.Is(err, gateway.ErrPosition) {
				t.Errorf("Run = %v", err)
			}
		})
	}
}

// Another writer's messages on the data subjects do not move a position; a recovery
// that has to read them stops.
func TestSharedForeignMessage(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	killed := f.another()
	run := f.startRoute(killed)
	f.shares(15*time.Second, []*running{run}, 2)
	if _, err := f.js.Publish(t.Context(), "sealed."+partSubject(0), []byte("plain")); err != nil {
		t.Fatal(err)
	}
	f.publishParts(1, 40)
	f.positions(run, 40)
	f.stopAll(run)
	// The record is older than what follows: put back.
	kv, err := f.js.KeyValue(t.Context(), gateway.PositionsBucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), sealed+".0"); err != nil {
		t.Fatal(err)
	}
	r := f.startRoute(f.another())
	natstest.Eventually(t, 30*time.Second, func() error {
		s := r.g.Stats()
		if s[0].State == gateway.StateStopped && errors.Is(s[0].LastError, gateway.ErrPosition) && s[1].State == gateway.StateRunning {
			return nil
		}
		return fmt.Errorf("%v (%v), %v (%v)", s[0].State, s[0].LastError, s[1].State, s[1].LastError)
	})
	if err := r.stop(); !errors.Is(err, gateway.ErrPosition) {
		t.Errorf("Run = %v", err)
	}
}

// A busy partition fills a stream that drops its oldest messages: the idle one goes
// on where it was.
func TestSharedBySize(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	f.route.Sealed.Create.MaxBytes = 64 << 10
	run := f.startShared()
	f.publishParts(1, 24)
	f.positions(run, 24)
	const n = 600
	for i := range n { // subjects of partition 0 only
		if _, err := f.js.Publish(t.Context(), partSubject(0), payloadOf(25+i)); err != nil {
			t.Fatal(err)
		}
	}
	f.positions(run, 24+n)
	if f.info(sealed).State.FirstSeq < 100 {
		t.Fatal("nothing was dropped: the test shows nothing")
	}
	if _, err := f.js.Publish(t.Context(), partSubject(1), payloadOf(1)); err != nil {
		t.Fatal(err)
	}
	f.positions(run, 25+n)
	f.stopAll(run)
	stats := run.g.Stats()
	if a, b := stats[0].Messages, stats[1].Messages; a != 12+n || b != 13 {
		t.Errorf("%d and %d messages were sealed, want %d and 13", a, b, 12+n)
	}
	if f.lastCheckpoint(0) == nil || f.lastCheckpoint(1) == nil {
		t.Error("a checkpoint is missing")
	}
}

// What was shared is split anew, and the other way round: drain, close, begin.
func TestSharedRepartition(t *testing.T) {
	t.Parallel()
	f := shared(t, 3, jetstream.StreamConfig{})
	run := f.startShared()
	f.publishParts(1, 100)
	f.sealedShared(100, 30*time.Second)
	f.stopAll(run)
	was := f.route
	f.route.Sealed.Shared, f.route.Sealed.Stream = false, "OWN"
	f.refused("was not drained")
	f.route = was
	f.route.Source.Partitions = partitions(4)
	f.refused("was not drained")
	f.route = was
	f.drain()
	f.verifyShared(1, 100)
	f.route.Sealed.Shared, f.route.Sealed.Stream = false, "OWN"
	f.refused("still takes")
	f.shut(sealed)
	own := f.startShared()
	f.publishParts(101, 200)
	f.sealedParts(100, streamNames("OWN-", 3)...)
	f.stopAll(own)
	f.verifyParts(101, 200, streamNames("OWN-", 3)...)

	f.drain()
	for _, s := range streamNames("OWN-", 3) {
		f.shut(s)
	}
	f.route.Sealed.Shared, f.route.Sealed.Stream, f.route.Source.Partitions = true, "AGAIN", partitions(4)
	again := f.startShared()
	f.publishParts(201, 300)
	f.positions(again, 299)
	f.stopAll(again)
	if got := openStream(t, f.js, f.keys, "AGAIN"); len(got) != 100 || got[0].meta.Sequence <= 200 {
		t.Errorf("%d messages in the last stream, want 100 behind 200", len(got))
	}
}

// "keyweir purge" compares one partition of a shared stream with the source.
func TestSharedPurge(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	run := f.startShared()
	f.publishParts(1, 100)
	f.positions(run, 100)
	f.stopAll(run)
	for p := range 2 {
		r, err := gateway.Purge(t.Context(), gateway.PurgeConfig{Route: f.another(), Keys: f.keys, Partition: p})
		if err != nil {
			t.Fatal(err)
		}
		if r.Messages != 50 || !r.Purged {
			t.Errorf("partition %d: %+v", p, r)
		}
	}
	f.sourceEmpty()
}

func TestSharedRefused(t *testing.T) {
	t.Parallel()
	f := shared(t, 2, jetstream.StreamConfig{})
	many := make([][]string, checkpoint.MaxPartitions+1)
	for i := range many {
		many[i] = []string{fmt.Sprintf("in.%d.>", i)}
	}
	for name, change := range map[string]func(*gateway.Route){
		"needs the engine durable": func(r *gateway.Route) { r.Engine = gateway.EngineFast },
		"says async":               func(r *gateway.Route) { r.Engine = gateway.EngineAsync },
		"no partitions to share the sealed stream": func(r *gateway.Route) {
			r.Source.Partitions, r.Source.Subjects = nil, []string{"in.>"}
		},
		"33 partitions, at most 32": func(r *gateway.Route) { r.Source.Partitions = many },
		"not go together with hold": func(r *gateway.Route) { r.Source.Partitions = nil; r.Hold = &gateway.Hold{} },
		"core ingest route":         func(r *gateway.Route) { r.Ingest = &gateway.CoreIngest{} },
		"no meaning in its name":    func(r *gateway.Route) { r.Sealed.Stream = "S-{partition}" },
		"those of checkpoints": func(r *gateway.Route) {
			r.Sealed.Subject = "keyweir.checkpoint.SEALED.>"
			r.Source.Partitions = [][]string{{"*"}}
		},
	} {
		r := f.another()
		change(&r)
		_, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: f.keys})
		if !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("%s: New = %v", name, err)
		} else {
			t.Log(err)
		}
	}
	// Streams that are set up for the other kind.
	f.create(jetstream.StreamConfig{Name: sealed, Subjects: []string{"sealed.>", checkpoint.Pattern(sealed)}, AllowAtomicPublish: true, Metadata: map[string]string{gateway.MetadataMode: gateway.ModeRelayed, gateway.MetadataRoute: "r"}})
	f.startRoute(f.another()).stopped(gateway.ErrDestination)
}
