package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

const letters = "DEAD"

// newPoisonFixture has a route with dead letters and a server that takes messages
// of 64 KiB.
func newPoisonFixture(t *testing.T, cfg jetstream.StreamConfig) *fixture {
	t.Helper()
	f := newFixture(t, cfg, maxPayloadOption(64<<10))
	f.keys.rules = newPoisonRules()
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	f.route.DeadLetters = &gateway.DeadLetters{Stream: letters, Create: &gateway.CreateSealed{}}
	return f
}

// newPoisonRules give every subject but in.* a scope, and the quarantine.
func newPoisonRules() *keysvc.ScopeRules {
	return newFakeKeys(keysvc.ScopeRule{Match: "in.*.>", Scope: "tenant/{{wildcard(1)}}"}, keysvc.ScopeRule{Match: "keyweir.quarantine.*", Scope: "quarantine/{{wildcard(1)}}"}).rules
}

// poison is a kind of message that cannot be sealed as it is.
type poison struct {
	msg    *nats.Msg
	reason string
	scope  string // that its dead letter is sealed under
	parts  int
	stops  error // what it stops a route without dead letters with; nil: it waits
	setUp  func(*fixture)
}

func reject(f *fixture) { f.route.ReservedHeaders = gateway.ReservedReject }

// refuse makes the key service refuse the scope of in.bad.
func refuse(err error) func(*fixture) {
	return func(f *fixture) {
		f.keys.badScope, f.keys.scopeErr = "tenant/bad", err
		if f.route.DeadLetters != nil {
			f.route.DeadLetters.Refused = gateway.RefusedPark
		}
	}
}

func manyHeaders() nats.Header {
	h := nats.Header{}
	for i := range envelope.MaxHeaders + 1 {
		h.Set(fmt.Sprintf("H%d", i), strings.Repeat("v", i))
	}
	return h
}

func poisons() map[string]poison {
	big := bytes.Repeat([]byte("0123456789abcdef"), 4<<10-8) // fits the source by a hair
	return map[string]poison{
		"too large, in parts": {msg: &nats.Msg{Subject: "in.a.x", Data: big, Header: nats.Header{"A": {"1", "2"}}}, reason: "too-large", scope: "tenant/a", parts: 2, stops: gateway.ErrTooLarge},
		"too large for the sealed stream": {
			msg: &nats.Msg{Subject: "in.a.x", Data: big[:3000]}, reason: "too-large", scope: "tenant/a", parts: 1, stops: gateway.ErrTooLarge,
			setUp: func(f *fixture) {
				f.create(jetstream.StreamConfig{Name: sealed, Subjects: []string{"sealed.in.>"}, MaxMsgSize: 2500, Metadata: map[string]string{"keyweir-mode": "relayed", "keyweir-route": "r"}})
			},
		},
		"long subject, too large": {msg: &nats.Msg{Subject: "in.a." + strings.Repeat("x", 300), Data: big[:65000]}, reason: "too-large", scope: "quarantine/r", parts: 2, stops: gateway.ErrTooLarge},
		"headers":                 {msg: &nats.Msg{Subject: "in.a.x", Data: []byte("h"), Header: manyHeaders()}, reason: "headers", scope: "tenant/a", parts: 1, stops: gateway.ErrHeaders},
		"reserved":                {msg: &nats.Msg{Subject: "in.a.x", Data: []byte("r"), Header: nats.Header{"keyweir-Source": {"x"}, "App": {"y"}}}, reason: "reserved", scope: "tenant/a", parts: 1, stops: gateway.ErrReserved, setUp: reject},
		"no scope":                {msg: &nats.Msg{Subject: "in.a", Data: []byte("n")}, reason: "no-scope", scope: "quarantine/r", parts: 1, stops: keysvc.ErrNoScope},
		"no scope, empty":         {msg: &nats.Msg{Subject: "in.\xff"}, reason: "no-scope", scope: "quarantine/r", parts: 1, stops: keysvc.ErrNoScope},
		"denied":                  {msg: &nats.Msg{Subject: "in.bad.x", Data: []byte("d")}, reason: "denied", scope: "quarantine/r", parts: 1, setUp: refuse(keysvc.ErrDenied)},
		"destroyed":               {msg: &nats.Msg{Subject: "in.bad.x", Data: []byte("d")}, reason: "destroyed", scope: "quarantine/r", parts: 1, stops: keysvc.ErrDestroyed, setUp: refuse(keysvc.ErrDestroyed)},
	}
}

// letter is a dead letter, opened.
type openedLetter struct {
	*deadletter.Letter
	scope   string
	subject string // it is stored on
}

// letters opens all dead letters, in order.
func (f *fixture) letters() []openedLetter {
	f.t.Helper()
	byPosition := make(map[deadletter.Position][]opened)
	var order []deadletter.Position
	for _, o := range openStream(f.t, f.js, f.keys, letters) {
		pos, _, part, err := deadletter.ParseSubject(o.subject)
		if err != nil {
			f.t.Fatal(err)
		}
		if part == 1 {
			order = append(order, pos)
		}
		if want := deadletter.FormatPart(part, len(byPosition[pos])+1); part != len(byPosition[pos])+1 || !strings.HasPrefix(o.header.Get(deadletter.HeaderPart), want[:2]) {
			f.t.Fatalf("%s has part %s after %d", o.subject, o.header.Get(deadletter.HeaderPart), len(byPosition[pos]))
		}
		byPosition[pos] = append(byPosition[pos], o)
	}
	var out []openedLetter
	for _, pos := range order {
		var parts [][]byte
		for _, o := range byPosition[pos] {
			parts = append(parts, []byte(o.payload))
			if o.meta.Sequence != pos.Sequence || o.meta.Chain != pos.Chain || o.meta.Headers != nil {
				f.t.Errorf("%s is sealed as %+v", o.subject, o.meta)
			}
		}
		l, err := deadletter.Join(parts)
		if err != nil {
			f.t.Fatal(err)
		}
		first := byPosition[pos][0]
		scope, _, err := f.keys.rules.Scope(first.meta.OriginSubject)
		if err != nil {
			f.t.Fatal(err)
		}
		h := first.header
		if h.Get(deadletter.HeaderError) != l.Reason || h.Get(deadletter.HeaderSubject) != l.Subject || h.Get(deadletter.HeaderStream) != l.Stream || h.Get(deadletter.HeaderSequence) != fmt.Sprint(l.Sequence) {
			f.t.Errorf("the headers in clear of %s are %v", first.subject, h)
		}
		out = append(out, openedLetter{l, scope, first.subject})
	}
	return out
}

// put publishes m to the source and returns its sequence.
func (f *fixture) put(m *nats.Msg) uint64 {
	f.t.Helper()
	a, err := f.js.PublishMsg(f.t.Context(), &nats.Msg{Subject: m.Subject, Data: m.Data, Header: maps.Clone(m.Header)})
	if err != nil {
		f.t.Fatalf("publishing to %s: %v", m.Subject, err)
	}
	return a.Sequence
}

// checkLetter checks that l is m as stored at seq.
func (f *fixture) checkLetter(l openedLetter, m *nats.Msg, p poison, seq uint64) {
	f.t.Helper()
	if l.Reason != p.reason || l.Subject != m.Subject || l.Stream != source || l.Route != "r" || l.Sequence != seq || l.Parts != p.parts || l.Detail == "" || l.Published == 0 || l.scope != p.scope {
		f.t.Errorf("dead letter %+v in scope %s", l.Description, l.scope)
	}
	if !bytes.Equal(l.Data, m.Data) {
		f.t.Errorf("dead letter holds %d bytes, want %d", len(l.Data), len(m.Data))
	}
	if d := cmp.Diff(map[string][]string(m.Header), l.Header); d != "" && len(m.Header)+len(l.Header) > 0 {
		f.t.Errorf("headers (-want +got):\n%s", d)
	}
}

// Each kind of poison is parked, what comes before and after it is sealed, and
// nothing of it is left in the source, nor parked twice by the next run.
func TestPoisonMatrix(t *testing.T) {
	for name, p := range poisons() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newPoisonFixture(t, jetstream.StreamConfig{})
			if p.setUp != nil {
				p.setUp(f)
			}
			f.publish(1, 1)
			seq := f.put(p.msg)
			f.publish(2, 2)
			run := f.start()
			f.sealedCount(2, 10*time.Second)
			f.sourceEmpty()
			seq2 := f.put(p.msg)
			run.eventually("parked", func(s gatewayStats) bool {
				return s.DeadLetters == 2 && s.Position == seq2 && s.Released == seq2 && s.State == gateway.StateRunning
			})
			f.sourceEmpty()
			if err := run.stop(); err != nil {
				t.Fatalf("Run = %v", err)
			}
			before := f.info(letters).State.LastSeq
			f.publish(3, 3)
			run = f.start()
			f.sealedCount(3, 10*time.Second)
			f.sourceEmpty()
			if s := run.stats(); s.DeadLetters != 0 || f.info(letters).State.LastSeq != before {
				t.Errorf("parked again: %+v", s)
			}
			f.verify(1, 3)
			got := f.letters()
			if len(got) != 2 {
				t.Fatalf("%d dead letters, want 2", len(got))
			}
			f.checkLetter(got[0], p.msg, p, seq)
			f.checkLetter(got[1], p.msg, p, seq2)
		})
	}
}

// Without a dead-letter stream the route stops, or waits where policy may change.
func TestPoisonStops(t *testing.T) {
	for name, p := range poisons() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newPoisonFixture(t, jetstream.StreamConfig{})
			f.route.DeadLetters = nil
			if p.setUp != nil {
				p.setUp(f)
			}
			f.publish(1, 1)
			f.put(p.msg)
			f.publish(2, 2)
			run := f.start()
			if p.stops != nil {
				run.stopped(p.stops)
			} else {
				run.eventually("paused", func(s gatewayStats) bool { return s.State == gateway.StatePaused })
				run.stop()
			}
			f.sealedCount(1, time.Second)
			if n := f.info(source).State.Msgs; n != 2 {
				t.Errorf("%d source messages left, want the two not sealed", n)
			}
		})
	}
}

// With RefusedWait a denied scope waits and a destroyed one stops, dead letters or
// not.
func TestRefusedWaits(t *testing.T) {
	t.Parallel()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	f.keys.badScope, f.keys.scopeErr = "tenant/bad", keysvc.ErrDenied
	f.put(&nats.Msg{Subject: "in.bad.x", Data: []byte("d")})
	run := f.start()
	run.eventually("paused", func(s gatewayStats) bool { return s.State == gateway.StatePaused })
	f.keys.set(func() { f.keys.scopeErr = keysvc.ErrDestroyed })
	run.stopped(keysvc.ErrDestroyed)
	if n := f.info(letters).State.LastSeq; n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// The gateway dies after it parked a message and before anything says so: the
// record is lost. The next one meets the message again and parks it no second time.
func TestParkedOnce(t *testing.T) {
	p := poisons()["reserved"]
	for _, c := range []struct {
		name   string
		change func(*fixture)
		want   error
	}{
		{"as it was", func(*fixture) {}, nil},
		{"the route drops reserved headers now", func(f *fixture) { f.route.ReservedHeaders = gateway.ReservedDrop }, nil},
		{"sent back in the meantime", func(f *fixture) { f.route.ReservedHeaders = gateway.ReservedDrop; f.mark() }, nil},
		{"forged, and sealable now", func(f *fixture) { f.route.ReservedHeaders = gateway.ReservedDrop; f.forgeLetter() }, gateway.ErrDeadLetters},
		{"forged", func(f *fixture) { f.forgeLetter() }, gateway.ErrDeadLetters},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newPoisonFixture(t, jetstream.StreamConfig{})
			f.route.Source.AfterSeal = gateway.AfterSealKeep
			reject(f)
			f.publish(1, 1)
			seq := f.put(p.msg)
			run := f.start()
			run.eventually("parked", func(s gatewayStats) bool { return s.Position == seq })
			run.stop()
			f.deleteRecord()
			c.change(f)
			f.publish(2, 2)
			run = f.start()
			if c.want != nil {
				run.stopped(c.want)
				f.sealedCount(1, time.Second)
				return
			}
			f.sealedCount(2, 10*time.Second)
			if s := run.stats(); s.DeadLetters != 0 {
				t.Errorf("stats %+v", s)
			}
			f.verify(1, 2)
			if got := f.info(letters).State.Msgs; got != 1 {
				t.Errorf("%d dead letters, want 1", got)
			}
		})
	}
}

// letterHeader returns subject and headers of the only dead letter.
func (f *fixture) letterHeader() (string, nats.Header) {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), letters)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := s.GetMsg(f.t.Context(), s.CachedInfo().State.LastSeq)
	if err != nil {
		f.t.Fatal(err)
	}
	return m.Subject, m.Header
}

func (f *fixture) overwriteLetter(change func(nats.Header), data string) {
	f.t.Helper()
	subject, h := f.letterHeader()
	for name := range h {
		if strings.HasPrefix(name, "Nats-") {
			delete(h, name)
		}
	}
	change(h)
	if _, err := f.js.PublishMsg(f.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: []byte(data)}); err != nil {
		f.t.Fatal(err)
	}
}

// mark does what "keyweir deadletters retry" does.
func (f *fixture) mark() {
	f.overwriteLetter(func(h nats.Header) { h.Set(deadletter.HeaderRetried, "2026-01-02T15:04:05Z") }, "")
}

// forgeLetter puts something else in the place of the dead letter.
func (f *fixture) forgeLetter() { f.overwriteLetter(func(nats.Header) {}, "forged") }

// Who may publish dead letters takes a subject beforehand: the route does not
// believe that its message is parked.
func TestForgedLetter(t *testing.T) {
	for _, part := range []int{1, 2} {
		t.Run(fmt.Sprint("part ", part), func(t *testing.T) {
			t.Parallel()
			f := newPoisonFixture(t, jetstream.StreamConfig{})
			f.publish(1, 1)
			run := f.start()
			f.sealedCount(1, 10*time.Second)
			chain := f.open()[0].meta.Chain
			pos := deadletter.Position{Route: "r", Chain: chain, Sequence: 2}
			h := nats.Header{deadletter.HeaderProof: {deadletter.Proof{}.String()}, deadletter.HeaderRetried: {"now"}}
			if _, err := f.js.PublishMsg(t.Context(), &nats.Msg{Subject: pos.Subject("deadletters", part), Header: h}); err != nil {
				t.Fatal(err)
			}
			f.put(poisons()["too large, in parts"].msg)
			f.publish(2, 2)
			err := run.stopped(gateway.ErrDeadLetters)
			if !strings.Contains(err.Error(), "somebody else") {
				t.Errorf("Run = %v", err)
			}
			f.sealedCount(1, time.Second)
			if n := f.info(source).State.Msgs; n < 2 {
				t.Errorf("%d source messages left", n)
			}
		})
	}
}

// What makes a dead letter impossible stops the route, and says so.
func TestParkingFails(t *testing.T) {
	ok := func() jetstream.StreamConfig {
		return jetstream.StreamConfig{Name: letters, Subjects: []string{"deadletters.>"}, AllowAtomicPublish: true, Metadata: map[string]string{"keyweir-mode": "dead-letters"}}
	}
	for name, c := range map[string]struct {
		change func(*fixture, *jetstream.StreamConfig)
		want   string
	}{
		"missing":        {func(f *fixture, s *jetstream.StreamConfig) { f.route.DeadLetters.Create = nil; s.Name = "" }, "does not exist"},
		"metadata":       {func(_ *fixture, s *jetstream.StreamConfig) { s.Metadata = nil }, "keyweir-mode"},
		"subjects":       {func(_ *fixture, s *jetstream.StreamConfig) { s.Subjects = []string{"deadletters.other.>"} }, "the route publishes to"},
		"no ack":         {func(_ *fixture, s *jetstream.StreamConfig) { s.NoAck = true; s.AllowAtomicPublish = false }, "no_ack"},
		"no atomic":      {func(_ *fixture, s *jetstream.StreamConfig) { s.AllowAtomicPublish = false }, "allow_atomic"},
		"too small":      {func(_ *fixture, s *jetstream.StreamConfig) { s.MaxMsgSize = 600 }, "leave no room"},
		"too many parts": {func(_ *fixture, s *jetstream.StreamConfig) { s.MaxMsgSize = 1150 }, "parts"},
		"quarantine":     {func(f *fixture, _ *jetstream.StreamConfig) { f.route.DeadLetters.Quarantine = "nobody.knows" }, "quarantine subject nobody.knows"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newPoisonFixture(t, jetstream.StreamConfig{})
			cfg := ok()
			c.change(f, &cfg)
			if cfg.Name != "" {
				f.create(cfg)
			}
			kind := "too large, in parts"
			if name == "quarantine" {
				kind = "no scope"
			}
			f.put(poisons()[kind].msg)
			err := f.start().stopped(gateway.ErrDeadLetters)
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run = %v, want it to say %q", err, c.want)
			}
			if n := f.info(source).State.Msgs; n != 1 {
				t.Errorf("%d source messages left, want 1", n)
			}
		})
	}
}

// A full dead-letter stream is an outage: the route retries until there is room.
func TestParkingWaits(t *testing.T) {
	t.Parallel()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	f.route.DeadLetters.Create.MaxBytes = 2000
	p := poisons()["too large, in parts"]
	f.publish(1, 1)
	seq := f.put(p.msg)
	f.publish(2, 2)
	run := f.start()
	run.eventually("retrying", func(s gatewayStats) bool {
		return s.State == gateway.StateRetrying && s.LastError != nil && strings.Contains(s.LastError.Error(), "dead letter")
	})
	f.sealedCount(1, time.Second)
	cfg := f.info(letters).Config
	cfg.MaxBytes = -1
	if _, err := f.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	f.sealedCount(2, 15*time.Second)
	f.verify(1, 2)
	got := f.letters()
	if len(got) != 1 {
		t.Fatalf("%d dead letters, want 1", len(got))
	}
	f.checkLetter(got[0], p.msg, p, seq)
}

// A session's budget is smaller than the message: in parts it fits.
func TestPoisonOverBudget(t *testing.T) {
	t.Parallel()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	f.keys.bytes = 20000
	p := poisons()["too large, in parts"]
	p.parts = 4
	f.publish(1, 1)
	seq := f.put(p.msg)
	f.publish(2, 2)
	f.start()
	f.sealedCount(2, 10*time.Second)
	f.verify(1, 2)
	got := f.letters()
	if len(got) != 1 {
		t.Fatalf("%d dead letters, want 1", len(got))
	}
	f.checkLetter(got[0], p.msg, p, seq)
}

// Poison among much else, with crashes: everything ends up once, in the one place
// or the other.
func TestPoisonCrashes(t *testing.T) {
	t.Parallel()
	eachEngineInFull(t, testPoisonCrashes)
}

func testPoisonCrashes(t *testing.T, e gateway.Engine) {
	f := newPoisonFixture(t, jetstream.StreamConfig{Retention: jetstream.WorkQueuePolicy, Storage: jetstream.MemoryStorage})
	f.route.Engine = e
	f.tune.ClaimTTL = 300 * time.Millisecond
	reject(f)
	const n, every = 3000, 5
	var want []uint64
	for i := 1; i <= n; i++ {
		m := &nats.Msg{Subject: subjectOf(i), Data: payloadOf(i)}
		switch i % (3 * every) {
		case every:
			m.Header = nats.Header{"Nats-Expected-Stream": {source}}
		case 2 * every:
			m.Header = manyHeaders()
		case 0:
			m.Subject = "in.nobody"
		}
		if m.Header != nil || m.Subject == "in.nobody" {
			want = append(want, uint64(i))
		}
		if _, err := f.js.PublishMsgAsync(m, jetstream.WithStallWait(20*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	<-f.js.PublishAsyncComplete()
	first := f.start()
	first.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	first.stop()
	for range 4 {
		src, dst := f.srv.Conn(t), f.srv.Conn(t)
		f.route.Source.Conn, f.route.Sealed.Conn = src, dst
		at := f.info(letters).State.LastSeq
		run := f.start()
		natstest.Eventually(t, 10*time.Second, func() error {
			if got := f.info(letters).State.LastSeq; got < min(at+20, uint64(len(want))) {
				return fmt.Errorf("parked %d", got)
			}
			return nil
		})
		dst.Close()
		src.Close()
		run.stopped(gateway.ErrConnection)
	}
	nc := f.srv.Conn(t)
	f.route.Source.Conn, f.route.Sealed.Conn = nc, nc
	f.start()
	f.sealedCount(uint64(n-len(want)), 30*time.Second)
	f.sourceEmpty()
	got := f.open()
	checkChain(t, got)
	next := 0
	for _, o := range got {
		for next++; next%every == 0; next++ {
		}
		if o.payload != string(payloadOf(next)) {
			t.Fatalf("sealed message %d is %q, want %q", o.seq, o.payload, payloadOf(next))
		}
	}
	var parked []uint64
	for _, l := range f.letters() {
		parked = append(parked, l.Sequence)
		if string(l.Data) != string(payloadOf(int(l.Sequence))) {
			t.Errorf("dead letter %d holds %q", l.Sequence, l.Data)
		}
	}
	if !slices.Equal(parked, want) {
		t.Errorf("dead letters %v, want %v", parked, want)
	}
}

func TestDeadLetterConfig(t *testing.T) {
	t.Parallel()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	for name, change := range map[string]func(*gateway.DeadLetters){
		"no stream":          func(d *gateway.DeadLetters) { d.Stream = "" },
		"sealed stream":      func(d *gateway.DeadLetters) { d.Stream = sealed },
		"source stream":      func(d *gateway.DeadLetters) { d.Stream = source },
		"wildcard":           func(d *gateway.DeadLetters) { d.Subject = "dead.*" },
		"source subjects":    func(d *gateway.DeadLetters) { d.Subject = "in" },
		"sealed subjects":    func(d *gateway.DeadLetters) { d.Subject = "sealed.in" },
		"system subject":     func(d *gateway.DeadLetters) { d.Subject = "$JS.x" },
		"long":               func(d *gateway.DeadLetters) { d.Subject = strings.Repeat("d", 101) },
		"quarantine":         func(d *gateway.DeadLetters) { d.Quarantine = "a..b" },
		"long quarantine":    func(d *gateway.DeadLetters) { d.Quarantine = strings.Repeat("d", 256) },
		"refused":            func(d *gateway.DeadLetters) { d.Refused = 7 },
		"replicas":           func(d *gateway.DeadLetters) { d.Create = &gateway.CreateSealed{Replicas: 6} },
		"subject with blank": func(d *gateway.DeadLetters) { d.Subject = "a b" },
	} {
		r, d := f.route, *f.route.DeadLetters
		change(&d)
		r.DeadLetters = &d
		if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: f.keys}); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("%s: New = %v, want ErrConfig", name, err)
		}
	}
	for _, h := range []string{"Status", "KV-Operation", "description", "Nats-X", "keyweir"} {
		r := f.route
		r.PassHeaders = []string{h}
		if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: f.keys}); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("passing %s: New = %v, want ErrConfig", h, err)
		}
	}
}
