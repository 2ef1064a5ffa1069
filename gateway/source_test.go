package gateway_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/natstest"
)

// sealSome relays messages 1..n and shuts down cleanly.
func (f *fixture) sealSome(n int) {
	f.t.Helper()
	f.publish(1, n)
	run := f.start()
	f.sealedCount(uint64(n), 10*time.Second)
	if err := run.stop(); err != nil {
		f.t.Fatalf("Run = %v", err)
	}
}

func TestSourceRecreated(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(20)
	if err := f.js.DeleteStream(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	f.create(jetstream.StreamConfig{Name: source, Subjects: []string{"in.>"}})
	f.publish(21, 60) // its sequences 1..40 look like a continuation
	f.start().stopped(gateway.ErrSourceChanged)
	f.sealedCount(20, time.Second)

	// The operator says where to go on. What was sealed already stays single.
	from := uint64(1)
	f.route.ResumeFrom = &from
	run := f.start()
	f.sealedCount(60, 10*time.Second)
	run.stop()
	got := f.open()
	if got[19].meta.Chain == got[20].meta.Chain || got[20].meta.Previous != 0 || got[20].meta.Sequence != 1 {
		t.Errorf("message 21 continues the chain of another source: %+v", got[20].meta)
	}
	checkChain(t, got[20:])
	// Left in the configuration, it does nothing while the position is sound.
	f.publish(61, 70)
	f.start()
	f.sealedCount(70, 10*time.Second)
	checkChain(t, f.open()[20:])
}

// The source is deleted and made again while the route runs.
func TestSourceRecreatedWhileRunning(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.publish(1, 20)
	run := f.start()
	f.sealedCount(20, 10*time.Second)
	if err := f.js.DeleteStream(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	err := run.stopped(gateway.ErrSource)
	if !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("Run = %v", err)
	}
	f.create(jetstream.StreamConfig{Name: source, Subjects: []string{"in.>"}})
	f.publish(21, 60)
	f.start().stopped(gateway.ErrSourceChanged)
}

// rollback is a server of which one stream can be put back to an earlier state,
// as restoring its directory from a backup does: same name, same creation time.
type rollback struct {
	*fixture
	dir, backup string
}

func newRollback(t *testing.T, stream string) *rollback {
	t.Helper()
	store := t.TempDir()
	r := &rollback{backup: filepath.Join(t.TempDir(), "backup"), dir: filepath.Join(store, "jetstream", "$G", "streams", stream)}
	r.fixture = newFixture(t, jetstream.StreamConfig{}, func(o *embednats.Options) { o.StoreDir = store })
	return r
}

func (r *rollback) restart(swap func() error) {
	r.t.Helper()
	r.srv.Stop()
	if err := swap(); err != nil {
		r.t.Fatal(err)
	}
	r.srv.Restart()
	natstest.Eventually(r.t, 10*time.Second, func() error {
		_, err := r.js.AccountInfo(r.t.Context())
		return err
	})
}

func (r *rollback) save() {
	r.restart(func() error { return os.CopyFS(r.backup, os.DirFS(r.dir)) })
}

func (r *rollback) back() {
	r.restart(func() error {
		if err := os.RemoveAll(r.dir); err != nil {
			return err
		}
		return os.CopyFS(r.dir, os.DirFS(r.backup))
	})
}

// Sequences that were sealed before come again with other messages.
func TestSourceRestored(t *testing.T) {
	f := newRollback(t, source)
	f.publish(1, 10)
	f.save()
	f.publish(11, 20)
	created := f.info(source).Created
	run := f.start()
	f.sealedCount(20, 10*time.Second)
	run.stop()

	f.back()
	if got := f.info(source); got.State.LastSeq != 10 || !got.Created.Equal(created) {
		t.Fatalf("restored stream ends at %d, created %v, want 10, %v", got.State.LastSeq, got.Created, created)
	}
	f.start().stopped(gateway.ErrSourceChanged) // too short
	f.publish(21, 35)                           // sequences 11..25: long enough, but others
	err := f.start().stopped(gateway.ErrSourceChanged)
	if !strings.Contains(err.Error(), "message 20") {
		t.Errorf("Run = %v, want it to name message 20", err)
	}
	from := uint64(11)
	f.route.ResumeFrom = &from
	f.start()
	f.sealedCount(35, 10*time.Second)
	got := f.open()
	checkChain(t, got[20:])
	if got[20].payload != "m21" || got[20].meta.Sequence != 11 {
		t.Errorf("message 21 is %q, source sequence %d", got[20].payload, got[20].meta.Sequence)
	}
}

// The same, while the gateway runs: it notices when it is connected again.
func TestSourceRestoredWhileRunning(t *testing.T) {
	f := newRollback(t, source)
	hub := natstest.New(t)
	f.route.Sealed.Conn = hub.Conn(t)
	p := natstest.NewProxy(t, f.srv.Addr())
	f.route.Source.Conn = natstest.Connect(t, p.ClientURL())
	f.publish(1, 10)
	f.save()
	f.publish(11, 20)
	run := f.start()
	run.eventually("sealed", func(s gatewayStats) bool { return s.Position == 20 })
	p.Pause()
	f.back()
	f.publish(21, 35)
	p.Resume()
	p.Cut()
	run.stopped(gateway.ErrSourceChanged)
	if s := run.stats(); s.Position != 20 {
		t.Errorf("position %d, want 20", s.Position)
	}
}

// A snapshot restored through the API.
func TestSourceSnapshotRestored(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.publish(1, 10)
	snapshot := f.snapshot(source)
	f.publish(11, 20)
	run := f.start()
	f.sealedCount(20, 10*time.Second)
	run.stop()
	f.restore(source, snapshot)
	f.publish(21, 35)
	f.start().stopped(gateway.ErrSourceChanged)
	f.sealedCount(20, time.Second)
}

// snapshot backs a stream up as the nats CLI does.
func (f *fixture) snapshot(stream string) []byte {
	f.t.Helper()
	nc := f.srv.Conn(f.t)
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := nc.Request("$JS.API.STREAM.SNAPSHOT."+stream, []byte(`{"deliver_subject":"`+inbox+`"}`), 5*time.Second); err != nil {
		f.t.Fatal(err)
	}
	var out []byte
	for {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			f.t.Fatal(err)
		}
		if len(m.Data) == 0 {
			return out
		}
		out = append(out, m.Data...)
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// restore replaces a stream by its backup.
func (f *fixture) restore(stream string, snapshot []byte) {
	f.t.Helper()
	info := f.info(stream)
	if err := f.js.DeleteStream(f.t.Context(), stream); err != nil {
		f.t.Fatal(err)
	}
	nc := f.srv.Conn(f.t)
	request := func(subject string, body []byte) []byte {
		m, err := nc.Request(subject, body, 5*time.Second)
		if err != nil {
			f.t.Fatal(err)
		}
		if strings.Contains(string(m.Data), `"error"`) {
			f.t.Fatalf("restoring: %s", m.Data)
		}
		return m.Data
	}
	state := info.State
	state.LastSeq = 0
	body := mustJSON(f.t, map[string]any{"config": info.Config, "state": state})
	var target struct {
		Deliver string `json:"deliver_subject"`
	}
	fromJSON(f.t, request("$JS.API.STREAM.RESTORE."+stream, body), &target)
	r := strings.NewReader(string(snapshot))
	chunk := make([]byte, 64<<10)
	for {
		n, err := r.Read(chunk)
		if n > 0 {
			request(target.Deliver, chunk[:n])
		}
		if errors.Is(err, io.EOF) {
			break
		}
	}
	request(target.Deliver, nil)
}

func TestLimitsTrimmedUnsealed(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{MaxMsgs: 50})
	f.sealSome(20)
	f.publish(21, 100) // 51..100 are left
	err := f.start().stopped(gateway.ErrSourceGap)
	if !strings.Contains(err.Error(), "30 messages") {
		t.Errorf("Run = %v, want 30 messages", err)
	}
	f.sealedCount(20, time.Second)

	f.route.Source.OnSourceGap = gateway.GapContinue
	run := f.start()
	f.sealedCount(70, 10*time.Second)
	if s := run.stats(); s.Lost != 30 {
		t.Errorf("stats say %d lost, want 30", s.Lost)
	}
	got := f.open()
	checkChain(t, got)
	for i, o := range got {
		want := uint64(0)
		if i == 20 {
			want = 30
		}
		if o.meta.Gap != want {
			t.Errorf("message %d states a gap of %d, want %d", o.seq, o.meta.Gap, want)
		}
	}
	if got[20].payload != "m51" || got[20].meta.Previous != 20 {
		t.Errorf("message 21 is %q after %d", got[20].payload, got[20].meta.Previous)
	}
}

// The limit overtakes the reader while it waits for a key, in the middle of what
// was delivered and beyond.
func TestLimitsTrimWhileRunning(t *testing.T) {
	for _, policy := range []gateway.OnSourceGap{gateway.GapStop, gateway.GapContinue} {
		t.Run(policy.String(), func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{MaxMsgs: 5000, Storage: jetstream.MemoryStorage})
			f.route.Source.OnSourceGap = policy
			f.keys.set(func() { f.keys.err = errors.New("no key today") })
			run := f.start()
			run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			const n = 20000 // about 2,500 are delivered to the waiting gateway, 15,001.. survive
			f.publish(1, 1)
			run.eventually("paused", func(s gatewayStats) bool { return s.State == gateway.StatePaused })
			f.publish(2, n)
			f.keys.set(func() { f.keys.err = nil })
			if policy == gateway.GapStop {
				run.stopped(gateway.ErrSourceGap)
				checkChain(t, f.open())
				return
			}
			run.eventually("caught up", func(s gatewayStats) bool { return s.Position == n })
			got := f.open()
			checkChain(t, got)
			var lost uint64
			for i, o := range got {
				lost += o.meta.Gap
				if skipped := o.meta.Sequence - o.meta.Previous - 1; skipped != o.meta.Gap {
					t.Errorf("message %d skips %d, states %d", i, skipped, o.meta.Gap)
				}
			}
			if lost == 0 || uint64(len(got))+lost != n || run.stats().Lost != lost {
				t.Errorf("%d sealed, %d stated as lost, %d in the stats, want %d together", len(got), lost, run.stats().Lost, n)
			}
		})
	}
}

// With filters, messages of other subjects may go without being missed: they were
// not this route's.
func TestFilteredRouteIgnoresOthers(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{Subjects: []string{"in.>", "other.>"}, MaxAge: time.Hour})
	f.sealSome(10)
	for range 50 {
		if _, err := f.js.Publish(t.Context(), "other.x", nil); err != nil {
			t.Fatal(err)
		}
	}
	s, err := f.js.Stream(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(61)); err != nil {
		t.Fatal(err)
	}
	f.publish(11, 20)
	run := f.start()
	f.sealedCount(20, 10*time.Second)
	run.stop()
	for _, o := range f.verify(1, 20) {
		if o.meta.Gap != 0 {
			t.Errorf("message %d states a gap of %d", o.seq, o.meta.Gap)
		}
	}
}

// Idle, the position record follows what others publish, so that even limits of
// size do not raise a false alarm.
func TestIdleAdvancesRecord(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{Subjects: []string{"in.>", "other.>"}, MaxMsgs: 40})
	f.tune.Heartbeat = 100 * time.Millisecond
	f.publish(1, 10)
	run := f.start()
	f.sealedCount(10, 10*time.Second)
	for range 60 {
		if _, err := f.js.Publish(t.Context(), "other.x", nil); err != nil {
			t.Fatal(err)
		}
	}
	natstest.Eventually(t, 10*time.Second, func() error {
		if got := f.record(); got.Position != 70 || got.Previous != 10 || got.LastSeq != 10 {
			return errors.New("record: " + got.String())
		}
		return nil
	})
	run.stop()
	f.publish(11, 20)
	f.start()
	f.sealedCount(20, 10*time.Second)
	f.verify(1, 20)
}

func TestStart(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name  string
		start func(third time.Time) gateway.Start
		first int
	}{
		{"first", func(time.Time) gateway.Start { return gateway.StartFirst() }, 1},
		{"new", func(time.Time) gateway.Start { return gateway.StartNew() }, 6},
		{"sequence", func(time.Time) gateway.Start { return gateway.StartSequence(4) }, 4},
		{"next sequence", func(time.Time) gateway.Start { return gateway.StartSequence(6) }, 6},
		{"time", gateway.StartTime, 3},
		{"time before", func(time.Time) gateway.Start { return gateway.StartTime(time.Unix(1, 0)) }, 1},
		{"time after", func(time.Time) gateway.Start { return gateway.StartTime(time.Now().Add(time.Hour)) }, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{})
			f.publish(1, 5)
			s, err := f.js.Stream(ctx, source)
			if err != nil {
				t.Fatal(err)
			}
			third, err := s.GetMsg(ctx, 3)
			if err != nil {
				t.Fatal(err)
			}
			f.route.Source.Start = c.start(third.Time)
			run := f.start()
			run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
			if c.name == "new" {
				// The start is decided once: what comes before the next run is not skipped.
				run.stop()
				f.publish(6, 8)
				f.start()
			} else {
				f.publish(6, 8)
			}
			f.sealedCount(uint64(8-c.first+1), 10*time.Second)
			f.verify(c.first, 8)
		})
	}
	t.Run("none", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.route.Source.Start = gateway.Start{}
		f.start().stopped(gateway.ErrNoStart)
	})
	t.Run("would purge unsealed", func(t *testing.T) {
		f := newFixture(t, jetstream.StreamConfig{})
		f.publish(1, 5)
		f.route.Source.Start, f.route.Source.AfterSeal = gateway.StartNew(), gateway.AfterSealPurge
		f.start().stopped(gateway.ErrSource)
		if n := f.info(source).State.Msgs; n != 5 {
			t.Errorf("%d source messages left, want 5", n)
		}
	})
}

func TestSourceRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    jetstream.StreamConfig
		change func(*fixture)
	}{
		{"work queue and keep", jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy}, func(f *fixture) {}},
		{"work queue and new", jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy}, func(f *fixture) {
			f.route.Source.AfterSeal, f.route.Source.Start = gateway.AfterSealPurge, gateway.StartNew()
		}},
		{"purge denied", jetstream.StreamConfig{DenyPurge: true}, func(f *fixture) { f.route.Source.AfterSeal = gateway.AfterSealPurge }},
		{"other subjects", jetstream.StreamConfig{Subjects: []string{"elsewhere.>"}}, func(f *fixture) {}},
		{"no such stream", jetstream.StreamConfig{}, func(f *fixture) { f.route.Source.Stream = "NONE" }},
		{"another consumer", jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy}, func(f *fixture) {
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			if _, err := f.js.CreateConsumer(f.t.Context(), source, jetstream.ConsumerConfig{Durable: "theirs", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
				f.t.Fatal(err)
			}
		}},
		// The server keeps two streams from taking the same subjects, but a stream
		// may source from the sealed one.
		{"cycle over two connections", jetstream.StreamConfig{}, func(f *fixture) {
			cfg := relayedConfig()
			cfg.Subjects = []string{"sealed.>"}
			f.create(cfg)
			f.create(jetstream.StreamConfig{Name: "LOOP", Sources: []*jetstream.StreamSource{{Name: sealed}}})
			f.route.Sealed.Conn = f.srv.Conn(f.t)
			f.route.Source.Stream, f.route.Source.Subjects = "LOOP", []string{">"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, c.cfg)
			c.change(f)
			err := f.start().stopped(gateway.ErrSource)
			if strings.HasPrefix(c.name, "cycle") && !strings.Contains(err.Error(), "its own output") {
				t.Errorf("Run = %v", err)
			}
		})
	}
}
