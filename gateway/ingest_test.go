package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// newIngest is a server without a source stream, keys, and a core ingest route
// from in.> to sealed.in.>; the publisher has a connection of its own.
func newIngest(t *testing.T, opts ...natstest.Option) (*fixture, jetstream.JetStream) {
	t.Helper()
	f := newFixtureWithoutSource(t, opts...)
	f.route.Ingest = &gateway.CoreIngest{}
	return f, f.srv.JetStream(t)
}

func newFixtureWithoutSource(t *testing.T, opts ...natstest.Option) *fixture {
	t.Helper()
	srv := natstest.New(t, opts...)
	f := &fixture{t: t, srv: srv, js: srv.JetStream(t), keys: newFakeKeys(), log: testLogger(t)}
	f.tune = gateway.Tuning{AckTimeout: 2 * time.Second, Tick: 50 * time.Millisecond, Key: 10 * time.Millisecond, KeySlow: 20 * time.Millisecond, Drain: 3 * time.Second}
	nc := srv.Conn(t)
	f.route = gateway.Route{
		Name: "r", Source: gateway.Source{Conn: nc, Subjects: []string{"in.>"}},
		Sealed: gateway.Sealed{Conn: nc, Stream: sealed, Subject: "sealed.>", Create: &gateway.CreateSealed{}},
	}
	return f
}

// startIngest runs the route and waits until it takes messages.
func (f *fixture) startIngest() *running {
	f.t.Helper()
	run := f.start()
	run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
	return run
}

// mustPublish publishes as any JetStream client does.
func mustPublish(t *testing.T, js jetstream.JetStream, subject, payload string, opts ...jetstream.PublishOpt) *jetstream.PubAck {
	t.Helper()
	ack, err := js.Publish(t.Context(), subject, []byte(payload), opts...)
	if err != nil {
		t.Fatalf("publishing %q: %v", payload, err)
	}
	return ack
}

// refusedWith checks that a publish was answered with an error of core ingest.
func refusedWith(t *testing.T, err error, want gateway.Refusal) {
	t.Helper()
	var api *jetstream.APIError
	if !errors.As(err, &api) || int(api.ErrorCode) != gateway.RefusalCode+int(want) || !strings.HasPrefix(api.Description, "keyweir: ") {
		t.Fatalf("publish = %v, want it refused with %v", err, want)
	}
}

func TestIngestPublish(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	run := f.startIngest()
	const n = 500
	for i := 1; i <= n; i++ {
		m := &nats.Msg{Subject: subjectOf(i), Data: payloadOf(i), Header: nats.Header{"App": {"kept"}}}
		ack, err := js.PublishMsg(t.Context(), m, jetstream.WithMsgID(fmt.Sprint("id", i)))
		if err != nil || ack.Stream != sealed || ack.Sequence != uint64(i) || ack.Duplicate {
			t.Fatalf("publish %d = %+v, %v", i, ack, err)
		}
	}
	got := f.open()
	if len(got) != n {
		t.Fatalf("%d sealed messages, want %d", len(got), n)
	}
	for i, o := range got {
		if o.payload != string(payloadOf(i+1)) || o.meta.OriginSubject != subjectOf(i+1) || o.subject != "sealed."+subjectOf(i+1) {
			t.Fatalf("sealed message %d is %q from %s", o.seq, o.payload, o.meta.OriginSubject)
		}
		if o.meta.Chain != got[0].meta.Chain || o.meta.Sequence != uint64(i+1) || o.meta.Previous != envelope.NotKept || o.meta.PreviousOnSubject != envelope.NotKept {
			t.Fatalf("sealed message %d has the meta %+v", o.seq, o.meta)
		}
		if len(o.meta.Headers) != 2 || o.meta.Headers[0] != (envelope.Header{Name: "App", Value: "kept"}) {
			t.Fatalf("sealed headers %v", o.meta.Headers)
		}
		if len(o.header) != 2 || o.header.Get("Keyweir") != "1" || o.header.Get("Nats-Msg-Id") != fmt.Sprint("id", i+1) {
			t.Fatalf("clear headers %v", o.header)
		}
	}
	// Core publishes are sealed, too, and answered to nobody.
	nc := f.srv.Conn(t)
	for i := range 10 {
		if err := nc.Publish("in.a.x", payloadOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	f.sealedCount(n+10, 5*time.Second)
	if s := run.stats(); s.Ingest.Received != n+10 || s.Ingest.Published != n+10 || s.Messages != n+10 || len(s.Ingest.Refused)+len(s.Ingest.Dropped) != 0 || s.Ingest.Waiting != 0 {
		t.Errorf("stats %+v", s.Ingest)
	}
	if c := f.info(sealed).Config; c.Metadata[gateway.MetadataMode] != gateway.ModeOpen {
		t.Errorf("the sealed stream's mode is %q", c.Metadata[gateway.MetadataMode])
	}
	if err := run.stop(); err != nil {
		t.Error(err)
	}
}

func TestIngestDuplicates(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	run := f.startIngest()
	first := mustPublish(t, js, "in.a.x", "once", jetstream.WithMsgID("same"))
	if ack := mustPublish(t, js, "in.a.x", "once", jetstream.WithMsgID("same")); !ack.Duplicate || ack.Sequence != first.Sequence {
		t.Errorf("second publish = %+v, want a duplicate of %d", ack, first.Sequence)
	}
	// Another instance, after the first is gone: the stream remembers.
	_ = run.stop()
	f.startIngest()
	if ack := mustPublish(t, js, "in.a.x", "once", jetstream.WithMsgID("same")); !ack.Duplicate {
		t.Errorf("publish through another instance = %+v, want a duplicate", ack)
	}
	if got := f.open(); len(got) != 1 {
		t.Errorf("%d sealed messages, want 1", len(got))
	}
}

func TestIngestHeaders(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	run := f.startIngest()
	stored, refused := 0, uint64(0)
	drops := map[string]bool{ // notes without effect
		"Nats-Marker-Reason": true, "Nats-Counter-Sources": true, "Nats-Msg-Id": true, "Nats-Msg-Size": true, "Nats-Required-Api-Level": true,
		"Nats-Schedule-Next": true, "Nats-Scheduler": true, "Nats-Stream-Source": true, "Nats-Stream": true, "Nats-Subject": true,
		"Nats-Sequence": true, "Nats-Last-Sequence": true, "Nats-Time-Stamp": true, "Nats-Num-Pending": true, "Nats-Trace-Hop": true,
		"Nats-Trace-Origin-Account": true, "Nats-Request-Info": true, "Nats-Server-Xkey": true, "Nats-Pin-Id": true, "Nats-Reset-Pending": true,
		"Nats-Stream-Identity": true, "Nats-Pending-Messages": true, "Nats-Pending-Bytes": true, "Nats-Last-Consumer": true, "Nats-Last-Stream": true,
		"Nats-Consumer-Stalled": true, "Nats-Response-Type": true, "Nats-UpTo-Sequence": true, "Nats-No-Masking": true,
		"Keyweir": true, "Keyweir-Source": true, "Keyweir-Anything": true,
	}
	for _, name := range reservedNames {
		if name == "Nats-Trace-Dest" || name == "Nats-Trace-Only" {
			continue // the server itself acts on them before anybody gets the message
		}
		for _, spelled := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			m := &nats.Msg{Subject: "in.a.x", Data: []byte(spelled), Header: nats.Header{spelled: {"1"}}}
			ack, err := js.PublishMsg(t.Context(), m, jetstream.WithRetryAttempts(0))
			if drops[name] {
				if err != nil || ack.Sequence == 0 {
					t.Errorf("publish with %s = %v, want it stored", spelled, err)
				}
				stored++
				continue
			}
			refused++
			refusedWith(t, err, gateway.RefusedHeader)
			if !strings.Contains(err.Error(), spelled) {
				t.Errorf("the refusal of %s does not name it: %v", spelled, err)
			}
		}
	}
	got := f.open()
	if len(got) != stored {
		t.Errorf("%d sealed messages, want %d", len(got), stored)
	}
	for _, o := range got {
		for name := range o.header {
			if name != "Keyweir" && name != "Nats-Msg-Id" {
				t.Errorf("a message with %s has the clear header %s", o.payload, name)
			}
		}
	}
	if s := run.stats().Ingest; s.Refused[gateway.RefusedHeader] != refused || s.Published != uint64(stored) {
		t.Errorf("stats %+v, want %d refused", s, refused)
	}
	// Without a reply it is dropped, and counted.
	if err := f.srv.Conn(t).PublishMsg(&nats.Msg{Subject: "in.a.x", Header: nats.Header{"Nats-Rollup": {"all"}}}); err != nil {
		t.Fatal(err)
	}
	run.eventually("dropped", func(s gateway.RouteStats) bool { return s.Ingest.Dropped[gateway.RefusedHeader] == 1 })
}

func TestIngestGrants(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	f.route.Ingest.AllowTTL, f.route.Ingest.AllowExpectedLast = true, true
	f.startIngest()
	first := mustPublish(t, js, "in.a.x", "1", jetstream.WithExpectLastSequencePerSubject(0), jetstream.WithMsgID("a"))
	mustPublish(t, js, "in.a.x", "2", jetstream.WithExpectLastSequencePerSubject(first.Sequence), jetstream.WithExpectLastSequence(first.Sequence))
	_, err := js.Publish(t.Context(), "in.a.x", []byte("late"), jetstream.WithExpectLastSequencePerSubject(first.Sequence))
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != jetstream.JSErrCodeStreamWrongLastSequence {
		t.Errorf("publish on a condition that does not hold = %v", err)
	}
	_, err = js.Publish(t.Context(), "in.a.x", nil, jetstream.WithExpectLastSequenceForSubject(0, "sealed.in.b"))
	refusedWith(t, err, gateway.RefusedHeader)
	_, err = js.Publish(t.Context(), "in.a.x", nil, jetstream.WithExpectStream(sealed))
	refusedWith(t, err, gateway.RefusedHeader)
	_, err = js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a.x", Header: nats.Header{"Nats-TTL": {"1s", "2s"}}})
	refusedWith(t, err, gateway.RefusedHeader)

	ack := mustPublish(t, js, "in.a.x", "short", jetstream.WithMsgTTL(time.Second))
	s, err := f.js.Stream(t.Context(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.GetMsg(t.Context(), ack.Sequence); err != nil || m.Header.Get("Nats-TTL") == "" {
		t.Fatalf("the message with a time to live: %v, %v", m, err)
	}
	natstest.Eventually(t, 10*time.Second, func() error {
		if _, err := s.GetMsg(t.Context(), ack.Sequence); !errors.Is(err, jetstream.ErrMsgNotFound) {
			return fmt.Errorf("the message is still there (%v)", err)
		}
		return nil
	})
}

// A stream must allow what the route grants.
func TestIngestGrantOfStream(t *testing.T) {
	t.Parallel()
	f, _ := newIngest(t)
	f.create(jetstream.StreamConfig{Name: sealed, Subjects: []string{"sealed.>"}, Metadata: map[string]string{gateway.MetadataMode: gateway.ModeOpen}})
	f.route.Ingest.AllowTTL = true
	f.start().stopped(gateway.ErrDestination)
}

func TestIngestRefusesPlaintextStream(t *testing.T) {
	t.Parallel()
	for _, bound := range []string{"in.>", "in.a.x", "*.b.>", ">"} {
		t.Run(bound, func(t *testing.T) {
			t.Parallel()
			f, _ := newIngest(t)
			cfg := jetstream.StreamConfig{Name: "PLAIN", Subjects: []string{bound}}
			if bound[0] == '*' || bound[0] == '>' {
				cfg.NoAck = true                              // or the server refuses it
				f.route.Sealed.Conn = natstest.New(t).Conn(t) // no other stream fits beside it
			}
			f.create(cfg)
			run := f.start()
			if err := run.stopped(gateway.ErrSource); !strings.Contains(err.Error(), "PLAIN") {
				t.Errorf("the error does not name the stream: %v", err)
			}
		})
	}
	t.Run("later", func(t *testing.T) {
		t.Parallel()
		f, _ := newIngest(t)
		run := f.startIngest()
		f.create(jetstream.StreamConfig{Name: "PLAIN", Subjects: []string{"in.c.>"}})
		run.stopped(gateway.ErrSource)
	})
}

func TestIngestModes(t *testing.T) {
	t.Parallel()
	// A relayed stream takes no core ingest ...
	f := newFixture(t, jetstream.StreamConfig{Subjects: []string{"landing.>"}})
	relay := f.route
	relay.Source.Subjects = []string{"landing.>"}
	run := f.startRoute(relay)
	run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
	core := relay
	core.Name, core.Source = "core", gateway.Source{Conn: relay.Source.Conn, Subjects: []string{"landing.>"}}
	core.Ingest = &gateway.CoreIngest{}
	f.startRoute(core).stopped(gateway.ErrDestination)
	_ = run.stop()

	// ... and an open one no relay, but several core ingest routes.
	g, js := newIngest(t)
	other := g.route
	other.Name, other.Source.Subjects = "other", []string{"also.>"}
	gw, err := gateway.New(gateway.Config{Routes: []gateway.Route{g.route, other}, Keys: g.keys, Logger: g.log})
	if err != nil {
		t.Fatal(err)
	}
	g.route.Sealed.Create = nil
	g.create(jetstream.StreamConfig{Name: sealed, Subjects: []string{"sealed.>"}, Metadata: map[string]string{gateway.MetadataMode: gateway.ModeOpen}})
	g.keys.rules = mustRules(t, keysvc.ScopeRule{Match: ">", Scope: "all"})
	g.run(gw)
	natstest.Eventually(t, 5*time.Second, func() error {
		for _, s := range gw.Stats() {
			if s.State != gateway.StateRunning {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	if s := gw.Stats(); s[0].Name != "r" || s[1].Name != "other" {
		t.Errorf("order of the statistics: %s, %s", s[0].Name, s[1].Name)
	}
	mustPublish(t, js, "in.a.x", "one")
	mustPublish(t, js, "also.b", "two")
	g.create(jetstream.StreamConfig{Name: source, Subjects: []string{"landing.>"}})
	relay = g.route
	relay.Name, relay.Ingest = "relay", nil
	relay.Source = gateway.Source{Conn: g.route.Source.Conn, Stream: source, Subjects: []string{"landing.>"}, AfterSeal: gateway.AfterSealKeep, Start: gateway.StartFirst()}
	g.startRoute(relay).stopped(gateway.ErrDestination)
}

func mustRules(t *testing.T, rules ...keysvc.ScopeRule) *keysvc.ScopeRules {
	t.Helper()
	r, err := keysvc.NewScopeRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The store directory, of the plaintext's server too, never holds a payload.
func TestIngestStoresNoPlaintext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, js := newIngest(t, func(o *embednats.Options) { o.StoreDir = dir })
	f.startIngest()
	secret := "nobody may ever find this payload on a disk"
	for i := range 200 {
		m := &nats.Msg{Subject: "in.a.x", Data: []byte(secret + fmt.Sprint(i)), Header: nats.Header{"App": {"nor this header value"}}}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	// A refusal must not store it either.
	_, err := js.Publish(t.Context(), "in.a.x", []byte(secret), jetstream.WithExpectStream("X"))
	refusedWith(t, err, gateway.RefusedHeader)
	f.srv.Stop() // flushes
	files, found := 0, false
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		found = found || bytes.Contains(b, []byte("sealed.in.a.x"))
		for _, s := range []string{"nobody may ever", "nor this header"} {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("%s holds plaintext", path)
			}
		}
		return nil
	})
	if err != nil || files == 0 || !found {
		t.Fatalf("the scan is worth nothing: %d files, sealed subject found %v, %v", files, found, err)
	}
}

// Whoever is killed leaves a time-out, or nobody to respond, and never a loss:
// with a message ID everything acknowledged is stored exactly once.
func TestIngestKilled(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	js = mustJS(t, f.srv.Conn(t))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	next := func() (*running, *nats.Conn) {
		nc := f.srv.Conn(t, nats.NoReconnect())
		r := f.route
		r.Source.Conn, r.Sealed.Conn = nc, nc
		run := f.startRoute(r)
		run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
		return run, nc
	}
	_, conn := next()
	const n, workers = 1200, 4
	var wg sync.WaitGroup
	acked := make(chan string, n)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				id := fmt.Sprintf("id-%d", i)
				for ctx.Err() == nil {
					pctx, done := context.WithTimeout(ctx, 300*time.Millisecond)
					_, err := js.Publish(pctx, subjectOf(i), []byte(id), jetstream.WithMsgID(id), jetstream.WithRetryAttempts(0))
					done()
					if err == nil {
						acked <- id
						break
					}
				}
			}
		})
	}
	kills := 0
	for kills < 3 {
		target := (kills + 1) * n / 5
		natstest.Eventually(t, 20*time.Second, func() error {
			if got := len(acked); got < target {
				return fmt.Errorf("%d of %d acknowledged", got, target)
			}
			return nil
		})
		conn.Close() // as abruptly as a kill, for everybody else
		_, conn = next()
		kills++
	}
	wg.Wait()
	if len(acked) != n {
		t.Fatalf("%d of %d acknowledged", len(acked), n)
	}
	seen := make(map[string]int)
	for _, o := range f.open() {
		seen[o.payload]++
	}
	close(acked)
	for id := range acked {
		if seen[id] != 1 {
			t.Errorf("%s is stored %d times", id, seen[id])
		}
	}
}

func mustJS(t *testing.T, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Several instances share the messages; one that shuts down answers what it has.
func TestIngestInstances(t *testing.T) {
	t.Parallel()
	f, _ := newIngest(t)
	js, err := jetstream.New(f.srv.Conn(t), jetstream.WithPublishAsyncMaxPending(400))
	if err != nil {
		t.Fatal(err)
	}
	var runs []*running
	for range 3 {
		r := f.route
		nc := f.srv.Conn(t)
		r.Source.Conn, r.Sealed.Conn = nc, nc
		run := f.startRoute(r)
		run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
		runs = append(runs, run)
	}
	const n = 6000
	var futures []jetstream.PubAckFuture
	for i := range n {
		p, err := js.PublishAsync(subjectOf(i), payloadOf(i), jetstream.WithStallWait(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, p)
		if i == n/2 {
			go runs[0].cancel()
		}
	}
	for i, p := range futures {
		select {
		case <-p.Ok():
		case err := <-p.Err():
			t.Fatalf("message %d: %v", i, err)
		case <-time.After(10 * time.Second):
			t.Fatalf("message %d is not acknowledged", i)
		}
	}
	if err := runs[0].stop(); err != nil {
		t.Error(err)
	}
	if got := f.info(sealed).State.Msgs; got != n {
		t.Errorf("%d sealed messages, want %d", got, n)
	}
	for i, run := range runs {
		if s := run.stats().Ingest; s.Published == 0 || s.Published != s.Received {
			t.Errorf("instance %d: %+v", i, s)
		}
	}
}

// decodeAnswer reads a publish acknowledgement as any client would.
func decodeAnswer(t *testing.T, data []byte) (a struct {
	Error *jetstream.APIError `json:"error"`
	jetstream.PubAck
},
) {
	t.Helper()
	if err := json.Unmarshal(data, &a); err != nil {
		t.Fatalf("answer %q: %v", data, err)
	}
	return a
}
