package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// gatedKeys answers for one scope only when the gate is open.
type gatedKeys struct {
	*fakeKeys
	subject string // of the scope
	gate    chan struct{}
}

func (k *gatedKeys) Generate(ctx context.Context, subjects []string) ([]keysvc.SealKey, error) {
	for _, s := range subjects {
		if s == k.subject {
			select {
			case <-k.gate:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return k.fakeKeys.Generate(ctx, subjects)
}

// With no key there is an error at once; a new one is found without a restart, and
// other scopes do not notice.
func TestIngestMissingKey(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	run := f.startIngest()
	for _, keyErr := range []error{keysvc.ErrDenied, keysvc.ErrSuspended, keysvc.ErrUnavailable} {
		f.keys.set(func() { f.keys.badScope, f.keys.scopeErr = "tenant/b", keyErr })
		for i := range 3 {
			started := time.Now()
			_, err := js.Publish(t.Context(), "in.b.x", []byte("no"), jetstream.WithRetryAttempts(0))
			refusedWith(t, err, gateway.RefusedKey)
			if d := time.Since(started); d > time.Second {
				t.Errorf("refusal %d took %v", i, d)
			}
			if strings.Contains(err.Error(), "tenant") {
				t.Errorf("the answer names a scope: %v", err)
			}
			mustPublish(t, js, "in.a.x", "yes")
		}
		f.keys.set(func() { f.keys.badScope = "" })
		natstest.Eventually(t, 5*time.Second, func() error {
			_, err := js.Publish(t.Context(), "in.b.x", []byte("again"))
			return err
		})
		// The session of b ends, so that the next round asks again.
		_ = run.stop()
		run = f.startIngest()
	}
	_, err := js.Publish(t.Context(), "in", nil)
	if !errors.Is(err, jetstream.ErrNoStreamResponse) { // not a subject of the route
		t.Errorf("publish outside = %v", err)
	}
	_, err = js.Publish(t.Context(), "in.a.b.c", nil)
	if err != nil {
		t.Errorf("publish = %v", err)
	}
}

func TestIngestNoScope(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	f.keys.rules = mustRules(t, keysvc.ScopeRule{Match: "in.a.>", Scope: "a"})
	run := f.startIngest()
	_, err := js.Publish(t.Context(), "in.z", nil)
	refusedWith(t, err, gateway.RefusedScope)
	if err := f.srv.Conn(t).Publish("in.z", nil); err != nil {
		t.Fatal(err)
	}
	run.eventually("dropped", func(s gateway.RouteStats) bool { return s.Ingest.Dropped[gateway.RefusedScope] == 1 })
	// A rule that is added counts without a restart.
	f.keys.set(func() { f.keys.rules = mustRules(t, keysvc.ScopeRule{Match: "in.>", Scope: "all"}) })
	natstest.Eventually(t, 10*time.Second, func() error {
		_, err := js.Publish(t.Context(), "in.z", []byte("now"))
		return err
	})
}

// A slow key holds up its scope, for a bounded time, in order, in a bounded queue.
func TestIngestBackPressure(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	f.route.Ingest.QueueMessages, f.route.Ingest.KeyWait = 20, time.Minute
	keys := &gatedKeys{f.keys, "in.b.x", make(chan struct{})}
	g, err := gateway.New(gateway.Config{Routes: []gateway.Route{f.route}, Keys: keys, Logger: f.log})
	if err != nil {
		t.Fatal(err)
	}
	run := f.run(g)
	run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
	nc := f.srv.Conn(t)
	sub, err := nc.SubscribeSync("answers.*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := nc.PublishRequest("in.b.x", fmt.Sprintf("answers.%d", i), payloadOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	run.eventually("20 wait", func(s gateway.RouteStats) bool { return s.Ingest.Waiting == 20 })
	// Full: an error at once, for whatever scope, and a drop without reply.
	_, err = js.Publish(t.Context(), "in.a.x", nil, jetstream.WithRetryAttempts(0))
	refusedWith(t, err, gateway.RefusedFull)
	if err := nc.Publish("in.a.x", nil); err != nil {
		t.Fatal(err)
	}
	run.eventually("dropped", func(s gateway.RouteStats) bool { return s.Ingest.Dropped[gateway.RefusedFull] == 1 })
	if n, _, _ := sub.Pending(); n != 0 {
		t.Fatalf("%d answers before there was a key", n)
	}
	close(keys.gate)
	for i := range 20 {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if a := decodeAnswer(t, m.Data); a.Error != nil || m.Subject != fmt.Sprintf("answers.%d", i) || a.Sequence != uint64(i+1) {
			t.Fatalf("answer %d on %s: %s", i, m.Subject, m.Data)
		}
	}
	mustPublish(t, js, "in.a.x", "there is room again")
	for i, o := range f.open()[:20] {
		if o.payload != string(payloadOf(i)) {
			t.Fatalf("sealed message %d is %q", i+1, o.payload)
		}
	}
}

// Who waits too long for a key is told, other scopes go on, and from then on the
// refusals are immediate until the key is there.
func TestIngestKeyWait(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	f.route.Ingest.KeyWait = 200 * time.Millisecond
	keys := &gatedKeys{f.keys, "in.b.x", make(chan struct{})}
	g, err := gateway.New(gateway.Config{Routes: []gateway.Route{f.route}, Keys: keys, Logger: f.log})
	if err != nil {
		t.Fatal(err)
	}
	run := f.run(g)
	run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
	first, err := js.PublishAsync("in.b.x", []byte("waits"))
	if err != nil {
		t.Fatal(err)
	}
	mustPublish(t, js, "in.a.x", "passes")
	select {
	case err := <-first.Err():
		refusedWith(t, err, gateway.RefusedKey)
	case <-first.Ok():
		t.Fatal("sealed without a key")
	case <-time.After(5 * time.Second):
		t.Fatal("no answer")
	}
	started := time.Now()
	_, err = js.Publish(t.Context(), "in.b.x", nil)
	refusedWith(t, err, gateway.RefusedKey)
	if d := time.Since(started); d > 150*time.Millisecond {
		t.Errorf("the second refusal took %v", d)
	}
	close(keys.gate)
	natstest.Eventually(t, 5*time.Second, func() error {
		_, err := js.Publish(t.Context(), "in.b.x", nil)
		return err
	})
}

func TestIngestTooLarge(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t, maxPayloadOption(4096))
	run := f.startIngest()
	mustPublish(t, js, "in.a.x", strings.Repeat("x", 3000))
	_, err := js.Publish(t.Context(), "in.a.x", bytes.Repeat([]byte("x"), 3900))
	refusedWith(t, err, gateway.RefusedTooLarge)
	h := nats.Header{}
	for i := range 70 {
		h.Set(fmt.Sprint("H", i), "v")
	}
	_, err = js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a.x", Header: h})
	refusedWith(t, err, gateway.RefusedHeaders)
	mustPublish(t, js, "in.a.x", "and on")
	if s := run.stats().Ingest; s.Published != 2 || s.Refused[gateway.RefusedTooLarge] != 1 || s.Refused[gateway.RefusedHeaders] != 1 {
		t.Errorf("stats %+v", s)
	}
}

// Two servers: the acknowledgement is carried by hand, as are the sealed stream's
// errors, and its absence.
func TestIngestForwards(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	f.route.Source.Conn = natstest.Connect(t, f.srv.ClientURL())
	hub := natstest.New(t)
	hubJS := hub.JetStream(t)
	f.route.Sealed.Conn = hub.Conn(t)
	f.tune.Tick = time.Hour // the stream is not made again behind our back
	run := f.startIngest()
	ack := mustPublish(t, js, "in.a.x", "far", jetstream.WithMsgID("1"))
	if ack.Sequence != 1 || ack.Stream != sealed || ack.Duplicate {
		t.Fatalf("acknowledgement %+v", ack)
	}
	if ack := mustPublish(t, js, "in.a.x", "far", jetstream.WithMsgID("1")); !ack.Duplicate {
		t.Fatalf("acknowledgement %+v", ack)
	}
	cfg := hubJS
	s, err := cfg.Stream(t.Context(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.MaxMsgs, c.Discard = 1, jetstream.DiscardNew
	if _, err := hubJS.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	_, err = js.Publish(t.Context(), "in.a.x", nil)
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode >= gateway.RefusalCode {
		t.Fatalf("publish into a full stream = %v", err)
	}
	if err := hubJS.DeleteStream(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	_, err = js.Publish(t.Context(), "in.a.x", nil, jetstream.WithRetryAttempts(0))
	refusedWith(t, err, gateway.RefusedUnavailable)
	hub.Stop()
	natstest.Eventually(t, 5*time.Second, func() error {
		if f.route.Sealed.Conn.IsConnected() {
			return errors.New("still connected")
		}
		return nil
	})
	_, err = js.Publish(t.Context(), "in.a.x", nil, jetstream.WithRetryAttempts(0))
	refusedWith(t, err, gateway.RefusedUnavailable)
	if s := run.stats().Ingest; s.Refused[gateway.RefusedByStream] != 1 || s.Refused[gateway.RefusedUnavailable] != 2 {
		t.Errorf("stats %+v", s)
	}
}

// What nobody asked about is still counted when the stream does not take it.
func TestIngestCountsDrops(t *testing.T) {
	t.Parallel()
	f, _ := newIngest(t)
	f.create(jetstream.StreamConfig{
		Name: sealed, Subjects: []string{"sealed.>"}, MaxMsgs: 2, Discard: jetstream.DiscardNew,
		Metadata: map[string]string{gateway.MetadataMode: gateway.ModeOpen},
	})
	run := f.startIngest()
	nc := f.srv.Conn(t)
	for i := range 5 {
		if err := nc.Publish("in.a.x", payloadOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	run.eventually("dropped", func(s gateway.RouteStats) bool {
		return s.Ingest.Published == 5 && s.Ingest.Dropped[gateway.RefusedByStream] == 3
	})
}

// A publisher cannot aim our answers, or the stream's, at what it may not write.
func TestIngestReplySubjects(t *testing.T) {
	t.Parallel()
	f, _ := newIngest(t)
	run := f.startIngest()
	nc := f.srv.Conn(t)
	replies := []string{"sealed.in.a.x", "in.b.x", "$JS.API.STREAM.PURGE.SEALED", "$KV.KEYWEIR_claims.x", "$SYS.x", "keyweir.v1.prod.generate"}
	for i, reply := range replies {
		if err := nc.PublishMsg(&nats.Msg{Subject: "in.a.x", Reply: reply, Data: []byte("x"), Header: nats.Header{"N": {fmt.Sprint(i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	run.eventually("dropped", func(s gateway.RouteStats) bool {
		return s.Ingest.Dropped[gateway.RefusedReply] == uint64(len(replies))
	})
	if got := f.info(sealed).State.Msgs; got != 0 {
		t.Errorf("%d messages in the sealed stream", got)
	}
}

// Publishers of another account come through a service import.
func TestIngestAcrossAccounts(t *testing.T) {
	t.Parallel()
	f := newFixtureAcross(t)
	run := f.startIngest()
	app := mustJS(t, f.srv.Conn(t, nats.UserInfo("app", "p")))
	for i := 1; i <= 50; i++ {
		ack, err := app.Publish(t.Context(), subjectOf(i), payloadOf(i), jetstream.WithMsgID(fmt.Sprint(i)))
		if err != nil || ack.Sequence != uint64(i) || ack.Stream != sealed {
			t.Fatalf("publish %d from the other account = %+v, %v", i, ack, err)
		}
	}
	if ack, err := app.Publish(t.Context(), "in.a.x", nil, jetstream.WithMsgID("50")); err != nil || !ack.Duplicate {
		t.Fatalf("publish again = %+v, %v", ack, err)
	}
	_, err := app.Publish(t.Context(), "in.a.x", nil, jetstream.WithExpectLastSequence(7))
	refusedWith(t, err, gateway.RefusedHeader)
	// And those of the gateway's own account, beside them.
	mustPublish(t, f.js, "in.a.x", "near")
	if got := f.open(); len(got) != 51 || got[50].payload != "near" {
		t.Errorf("%d sealed messages", len(got))
	}
	if s := run.stats().Ingest; s.Published != 52 || s.Refused[gateway.RefusedHeader] != 1 || len(s.Dropped) != 0 {
		t.Errorf("stats %+v", s)
	}
	if err := run.stop(); err != nil {
		t.Error(err)
	}
}

// newFixtureAcross has the route in an account GW, whose in.> APP imports.
func newFixtureAcross(t *testing.T) *fixture {
	t.Helper()
	srv := natstest.New(t, func(o *embednats.Options) {
		o.Config += `
accounts: {
  GW: { jetstream: enabled, users: [{user: gw, password: p}], exports: [{service: "in.>"}] }
  APP: { users: [{user: app, password: p}], imports: [{service: {account: GW, subject: "in.>"}}] }
}
`
	})
	nc := srv.Conn(t, nats.UserInfo("gw", "p"))
	f := &fixture{t: t, srv: srv, js: srv.JetStream(t, nats.UserInfo("gw", "p")), keys: newFakeKeys(), log: testLogger(t)}
	f.tune = gateway.Tuning{AckTimeout: 2 * time.Second, Tick: 50 * time.Millisecond, Drain: 3 * time.Second}
	f.route = gateway.Route{
		Name: "r", Source: gateway.Source{Conn: nc, Subjects: []string{"in.>"}}, Ingest: &gateway.CoreIngest{},
		Sealed: gateway.Sealed{Conn: nc, Stream: sealed, Subject: "sealed.>", Create: &gateway.CreateSealed{}},
	}
	return f
}

func TestIngestConfig(t *testing.T) {
	t.Parallel()
	f, _ := newIngest(t)
	for name, change := range map[string]func(*gateway.Route){
		"a source stream":     func(r *gateway.Route) { r.Source.Stream = "IN" },
		"after_seal":          func(r *gateway.Route) { r.Source.AfterSeal = gateway.AfterSealKeep },
		"start":               func(r *gateway.Route) { r.Source.Start = gateway.StartFirst() },
		"on_source_gap":       func(r *gateway.Route) { r.Source.OnSourceGap = gateway.GapContinue },
		"an engine":           func(r *gateway.Route) { r.Engine = gateway.EngineAsync },
		"a window":            func(r *gateway.Route) { r.Window = 1 },
		"resume_from":         func(r *gateway.Route) { r.ResumeFrom = new(uint64) },
		"everything":          func(r *gateway.Route) { r.Source.Subjects = []string{">"} },
		"NATS's own subjects": func(r *gateway.Route) { r.Source.Subjects = []string{"$KV.>"} },
		"inboxes":             func(r *gateway.Route) { r.Source.Subjects = []string{"_INBOX.>"} },
		"its own output":      func(r *gateway.Route) { r.Source.Subjects = []string{"sealed.>"} },
		"no subjects":         func(r *gateway.Route) { r.Source.Subjects = nil },
		"a huge queue":        func(r *gateway.Route) { r.Ingest.QueueMessages = 1 << 21 },
		"a negative queue":    func(r *gateway.Route) { r.Ingest.QueueMessages = -1 },
		"a tiny queue":        func(r *gateway.Route) { r.Ingest.QueueBytes = 1000 },
		"a long wait":         func(r *gateway.Route) { r.Ingest.KeyWait = time.Hour },
	} {
		r := f.route
		c := *r.Ingest
		r.Ingest = &c
		change(&r)
		if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: f.keys}); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("with %s: %v, want ErrConfig", name, err)
		}
	}
	twice := f.route
	twice.Name, twice.Source.Subjects, twice.Sealed.Stream = "twice", []string{"in.a.>"}, "OTHER"
	if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{f.route, twice}, Keys: f.keys}); !errors.Is(err, gateway.ErrConfig) {
		t.Errorf("two routes on the same subjects: %v, want ErrConfig", err)
	}
	if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{f.route}, Keys: f.keys}); err != nil {
		t.Errorf("a sound route: %v", err)
	}
}
