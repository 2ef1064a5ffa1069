package gateway_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
)

func TestMain(m *testing.M) {
	// Most tests wait for most of their time.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	// A server that is stopped while it makes a stream leaves these behind.
	const server = "github.com/nats-io/nats-server/v2/server"
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction(server+".(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreTopFunction(server+".(*msgBlock).flushLoop"),
		goleak.IgnoreTopFunction(server+"/ats.Register.func1"))
}

const (
	source = "IN"
	sealed = "SEALED"
)

// fixture is a server with a source stream, keys and a route.
type fixture struct {
	t     *testing.T
	srv   *natstest.Server
	js    jetstream.JetStream // the tests' own view
	keys  *fakeKeys
	route gateway.Route
	tune  gateway.Tuning
	log   *slog.Logger
}

// newFixture makes a source stream in.> with cfg's settings and a route to
// sealed.in.>, which keeps what it seals and creates its sealed stream.
func newFixture(t *testing.T, cfg jetstream.StreamConfig, opts ...natstest.Option) *fixture {
	t.Helper()
	srv := natstest.New(t, opts...)
	f := &fixture{t: t, srv: srv, js: srv.JetStream(t), keys: newFakeKeys()}
	f.tune = gateway.Tuning{Heartbeat: 500 * time.Millisecond, AckTimeout: 2 * time.Second, Tick: 50 * time.Millisecond, Key: 10 * time.Millisecond, KeySlow: 20 * time.Millisecond, ClaimTTL: 2 * time.Second, Drain: 3 * time.Second}
	cfg.Name = source
	if cfg.Subjects == nil {
		cfg.Subjects = []string{"in.>"}
	}
	f.create(cfg)
	nc := srv.Conn(t)
	f.route = gateway.Route{
		Name:   "r",
		Source: gateway.Source{Conn: nc, Stream: source, Subjects: []string{"in.>"}, AfterSeal: gateway.AfterSealKeep, Start: gateway.StartFirst()},
		Sealed: gateway.Sealed{Conn: nc, Stream: sealed, Subject: "sealed.>", Create: &gateway.CreateSealed{}, SyncInterval: gateway.SyncAlways},
	}
	f.log = testLogger(t)
	return f
}

func testLogger(t *testing.T) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// eachEngine runs a test for every engine.
func eachEngine(t *testing.T, f func(*testing.T, gateway.Engine)) {
	for _, e := range []gateway.Engine{gateway.EngineFast, gateway.EngineDurable, gateway.EngineAsync} {
		t.Run(e.String(), func(t *testing.T) {
			t.Parallel()
			f(t, e)
		})
	}
}

// eachEngineInFull does so for tests that take long: -short leaves async, with
// which the engines share all but the publishing.
func eachEngineInFull(t *testing.T, f func(*testing.T, gateway.Engine)) {
	if testing.Short() {
		f(t, gateway.EngineAsync)
		return
	}
	eachEngine(t, f)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (f *fixture) create(cfg jetstream.StreamConfig) {
	f.t.Helper()
	if _, err := f.js.CreateStream(f.t.Context(), cfg); err != nil {
		f.t.Fatalf("creating stream %s: %v", cfg.Name, err)
	}
}

// running is one gateway at work.
type running struct {
	t      *testing.T
	g      *gateway.Gateway
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

// start runs a gateway with the fixture's route.
func (f *fixture) start() *running { return f.startRoute(f.route) }

func (f *fixture) startRoute(r gateway.Route) *running {
	f.t.Helper()
	g, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: f.keys, Logger: f.log})
	if err != nil {
		f.t.Fatalf("New: %v", err)
	}
	return f.run(g)
}

func (f *fixture) run(g *gateway.Gateway) *running {
	g.Tune(f.tune)
	ctx, cancel := context.WithCancel(context.Background())
	run := &running{t: f.t, g: g, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(run.done)
		run.err = g.Run(ctx)
	}()
	f.t.Cleanup(func() { run.stop() })
	return run
}

// stop shuts the gateway down and returns what Run returned.
func (r *running) stop() error {
	r.cancel()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		r.t.Fatal("Run did not return after cancellation")
	}
	return r.err
}

// stopped waits until the route stopped by itself, and checks why.
func (r *running) stopped(want error) error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(10 * time.Second):
		r.t.Fatalf("route still %v after 10s, want it stopped by %v; last error: %v", r.stats().State, want, r.stats().LastError)
	}
	var re *gateway.RouteError
	if !errors.Is(r.err, want) || !errors.As(r.err, &re) {
		r.t.Fatalf("Run = %v, want a RouteError with %v", r.err, want)
	}
	if re.Hint() == "" {
		r.t.Errorf("no hint for %v", r.err)
	}
	if r.stats().State != gateway.StateStopped {
		r.t.Errorf("state = %v, want stopped", r.stats().State)
	}
	return r.err
}

func (r *running) stats() gateway.RouteStats { return r.g.Stats()[0] }

// eventually waits until the route's stats satisfy f.
func (r *running) eventually(what string, f func(gateway.RouteStats) bool) {
	r.t.Helper()
	natstest.Eventually(r.t, 15*time.Second, func() error {
		if s := r.stats(); !f(s) {
			return fmt.Errorf("%s: %+v", what, s)
		}
		return nil
	})
}

// publish stores messages from..to on 7 subjects with payload "m<i>".
func (f *fixture) publish(from, to int) {
	f.t.Helper()
	for i := from; i <= to; i++ {
		if _, err := f.js.PublishAsync(subjectOf(i), payloadOf(i), jetstream.WithStallWait(20*time.Second)); err != nil {
			f.t.Fatalf("publishing: %v", err)
		}
	}
	select {
	case <-f.js.PublishAsyncComplete():
	case <-time.After(20 * time.Second):
		f.t.Fatal("publishing did not complete")
	}
}

func subjectOf(i int) string { return "in." + string(rune('a'+i%7)) + ".x" }

func payloadOf(i int) []byte { return []byte("m" + strconv.Itoa(i)) }

func (f *fixture) info(stream string) *jetstream.StreamInfo {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), stream)
	if err != nil {
		f.t.Fatalf("stream %s: %v", stream, err)
	}
	return s.CachedInfo()
}

// sealedCount waits until the sealed stream ends at a sequence.
func (f *fixture) sealedCount(want uint64, within time.Duration) {
	f.t.Helper()
	natstest.Eventually(f.t, within, func() error {
		s, err := f.js.Stream(f.t.Context(), sealed)
		if err != nil {
			return err
		}
		if got := s.CachedInfo().State.LastSeq; got != want {
			return fmt.Errorf("sealed stream ends at %d, want %d", got, want)
		}
		return nil
	})
}

// opened is one message of the sealed stream, opened.
type opened struct {
	seq     uint64
	subject string
	header  nats.Header
	meta    envelope.Meta
	payload string
	inline  bool
}

// open reads the sealed stream from its beginning and opens all of it.
func (f *fixture) open() []opened {
	f.t.Helper()
	return openStream(f.t, f.js, f.keys, sealed)
}

func openStream(t *testing.T, js jetstream.JetStream, keys *fakeKeys, stream string) []opened {
	t.Helper()
	readers, err := keys.readers()
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	want := s.CachedInfo().State.Msgs
	if want == 0 {
		return nil
	}
	c, err := s.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	it, err := c.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer it.Stop()
	var out []opened
	for read := uint64(0); read < want; read++ {
		m, err := it.Next(jetstream.NextMaxWait(10 * time.Second))
		if err != nil {
			t.Fatalf("reading sealed message %d of %d: %v", read+1, want, err)
		}
		md, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := checkpoint.Read(stream, m.Subject(), m.Headers(), m.Data()); err == nil {
			continue
		}
		e, err := envelope.Parse(m.Data())
		if err != nil {
			t.Fatalf("sealed message %d: %v", md.Sequence.Stream, err)
		}
		r := readers[e.KeyID]
		if r == nil {
			t.Fatalf("sealed message %d has an unknown key", md.Sequence.Stream)
		}
		o, err := r.Open(nil, &e)
		if err != nil {
			t.Fatalf("sealed message %d: %v", md.Sequence.Stream, err)
		}
		if !o.Meta.SealedTo(m.Subject()) {
			t.Fatalf("sealed message %d on %s was sealed to %s", md.Sequence.Stream, m.Subject(), o.Meta.SealedSubject())
		}
		out = append(out, opened{md.Sequence.Stream, m.Subject(), m.Headers(), o.Meta.Meta(), string(o.Payload), e.Record != nil})
	}
	return out
}

// verify checks that the sealed stream holds messages from..to as published by
// publish, each once and in order, on one chain whose links do not skip.
func (f *fixture) verify(from, to int) []opened {
	f.t.Helper()
	got := f.open()
	checkChain(f.t, got)
	if len(got) != to-from+1 {
		f.t.Errorf("%d sealed messages, want %d", len(got), to-from+1)
	}
	for i, o := range got {
		n := from + i
		if o.payload != string(payloadOf(n)) || o.meta.OriginSubject != subjectOf(n) || o.subject != "sealed."+subjectOf(n) {
			f.t.Fatalf("sealed message %d is %q from %s on %s, want %q from %s", o.seq, o.payload, o.meta.OriginSubject, o.subject, payloadOf(n), subjectOf(n))
		}
	}
	return got
}

func checkChain(t *testing.T, got []opened) {
	t.Helper()
	for i, o := range got {
		var previous uint64
		if i > 0 {
			previous = got[i-1].meta.Sequence
			if o.meta.Chain != got[i-1].meta.Chain {
				t.Fatalf("sealed message %d begins another chain", o.seq)
			}
		}
		if o.meta.Previous != previous || o.meta.Sequence <= previous {
			t.Fatalf("sealed message %d is source message %d after %d, and follows %d", o.seq, o.meta.Sequence, o.meta.Previous, previous)
		}
	}
}

type gatewayStats = gateway.RouteStats

// sourceEmpty waits until every source message was released.
func (f *fixture) sourceEmpty() {
	f.t.Helper()
	natstest.Eventually(f.t, 10*time.Second, func() error {
		if n := f.info(source).State.Msgs; n != 0 {
			return fmt.Errorf("%d source messages not released", n)
		}
		return nil
	})
}

func maxPayloadOption(n int) natstest.Option {
	return func(o *embednats.Options) { o.Config += fmt.Sprintf("max_payload: %d\n", n) }
}
