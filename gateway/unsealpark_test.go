package gateway_test

import (
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
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

// forge stores a message in the sealed stream past the gateway, which must not run.
func (u *unsealFixture) forge(subject string, data []byte) uint64 {
	u.t.Helper()
	ack, err := u.js.Publish(u.t.Context(), subject, data)
	if err != nil {
		u.t.Fatal(err)
	}
	return ack.Sequence
}

// park makes the route park, in a stream of its own.
func (u *unsealFixture) park() {
	u.create(jetstream.StreamConfig{Name: "PARKED", Subjects: []string{"parked.>"}})
	u.back.OnUndecryptable = gateway.UndecryptablePark
	u.back.Park = gateway.Park{Stream: "PARKED", Subject: "parked"}
}

// envelopeAt returns a copy of the sealed message at a sequence.
func (u *unsealFixture) envelopeAt(seq uint64) *jetstream.RawStreamMsg {
	u.t.Helper()
	s, err := u.js.Stream(u.t.Context(), sealed)
	if err != nil {
		u.t.Fatal(err)
	}
	m, err := s.GetMsg(u.t.Context(), seq)
	if err != nil {
		u.t.Fatal(err)
	}
	return m
}

func TestUnsealStops(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.seal(1, 20)
	seq := u.forge("sealed.in.a.x", []byte("not sealed"))
	run := u.startBack()
	err := run.stopped(gateway.ErrUndecryptable)
	if !errors.Is(err, streams.ErrPlaintext) || !strings.Contains(err.Error(), fmt.Sprintf("message %d", seq)) {
		t.Errorf("Run = %v, want the message and %v", err, streams.ErrPlaintext)
	}
	u.verifyPlain(1, 20)
}

// What does not open is put aside as it is, once, in order, over crashes and
// racing instances; everything else comes out.
func TestUnsealParks(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.park()
	u.tune.NoClaim = true
	u.seal(1, 600)
	first, second := u.envelopeAt(1), u.envelopeAt(2)
	broken := slices.Clone(first.Data)
	broken[len(broken)-1] ^= 1
	bad := []struct {
		subject, code string
		data          []byte
	}{
		{"sealed.in.a.x", "plaintext", []byte("not sealed")},
		{first.Subject, "tampered", broken},
		{first.Subject, "relocated", second.Data},
		{"sealed.in.a.x", "plaintext", nil},
	}
	var seqs []uint64
	for _, b := range bad {
		seqs = append(seqs, u.forge(b.subject, b.data))
	}
	// A gateway goes on behind them only by order.
	resume := uint64(601)
	u.route.ResumeFrom = &resume
	u.publish(601, 1200)
	u.start()
	u.sealedCount(1204, 15*time.Second)

	other := u.back
	other.Sealed.Conn, other.Plain.Conn = u.srv.Conn(t), u.srv.Conn(t)
	runs := []*running{u.startBack(), u.startBackRoute(other)}
	u.plainCount(1200, 15*time.Second)
	for _, r := range runs {
		if err := r.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	u.verifyPlain(1, 1200)
	parked := readAll(t, u.js, "PARKED")
	if len(parked) != len(bad) {
		t.Fatalf("%d messages parked, want %d", len(parked), len(bad))
	}
	for i, m := range parked {
		h := m.Headers()
		want := []string{bad[i].code, sealed, fmt.Sprint(seqs[i]), bad[i].subject}
		got := []string{h.Get(streams.HeaderError), h.Get(streams.HeaderStream), h.Get(streams.HeaderSequence), h.Get(streams.HeaderSubject)}
		if d := cmp.Diff(want, got); d != "" || string(m.Data()) != string(bad[i].data) {
			t.Errorf("parked message %d is %q (-want +got):\n%s", i+1, m.Data(), d)
		}
		if p := fmt.Sprintf(".%d", seqs[i]); !strings.HasPrefix(m.Subject(), "parked.unseal-r.") || !strings.HasSuffix(m.Subject(), p) {
			t.Errorf("parked on %s", m.Subject())
		}
	}
}

// A parked message at the end counts as done: the next run does not look at it
// again, even after what it was parked as has gone.
func TestUnsealParkedEnd(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.park()
	u.seal(1, 10)
	seq := u.forge("sealed.in.a.x", []byte("not sealed"))
	run := u.startBack()
	run.eventually("parked", func(s gatewayStats) bool { return s.Parked == 1 })
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	if err := u.js.DeleteStream(t.Context(), "PARKED"); err != nil {
		t.Fatal(err)
	}
	u.create(jetstream.StreamConfig{Name: "PARKED", Subjects: []string{"parked.>"}})
	again := u.startBack()
	again.eventually("behind it", func(s gatewayStats) bool { return s.State == gateway.StateRunning && s.Position == seq })
	if err := again.stop(); err != nil {
		t.Fatal(err)
	}
	if n := u.info("PARKED").State.Msgs; n != 0 {
		t.Errorf("%d messages parked again", n)
	}
	u.verifyPlain(1, 10)
}

func TestUnsealParkRefused(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.seal(1, 10)
	u.back.OnUndecryptable = gateway.UndecryptablePark
	u.back.Park = gateway.Park{Stream: "PARKED", Subject: "parked"}
	u.startBack().stopped(gateway.ErrPark)
	u.create(jetstream.StreamConfig{Name: "PARKED", Subjects: []string{"other.>"}})
	u.startBack().stopped(gateway.ErrPark)
}

// Headers come out as they went in. What could steer the stream of plaintext does
// not become live, and the same Nats-Msg-Id twice loses no message.
func TestUnsealHeaders(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	in := []nats.Header{
		nil,
		{"Trace": {"1", "2"}, "lower": {"x"}, "Nats-Msg-Id": {"same"}},
		{"Nats-Msg-Id": {"same"}, "Keyweir-Source": {"forged"}, "KEYWEIR": {"1"}, "nats-ttl": {"1s"}, "Nats-Trace-Dest": {"elsewhere"}, "Empty": {""}},
	}
	want := []nats.Header{
		nil,
		{"Trace": {"1", "2"}, "lower": {"x"}, gateway.HeaderMsgID: {"same"}},
		{gateway.HeaderMsgID: {"same"}, "Empty": {""}},
	}
	_, err := u.js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: source, Subjects: []string{"in.>"}, Storage: jetstream.MemoryStorage, Duplicates: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range in {
		natstest.Eventually(t, 10*time.Second, func() error {
			ack, err := u.js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a.x", Data: []byte("p"), Header: h})
			if err == nil && ack.Duplicate { // the source takes the same name again later
				err = errors.New("a duplicate for the source")
			}
			return err
		})
	}
	u.start()
	u.sealedCount(3, 10*time.Second)
	u.startBack()
	u.plainCount(3, 10*time.Second)
	for i, m := range u.plains() {
		if want[i] == nil {
			want[i] = nats.Header{}
		}
		if d := cmp.Diff(want[i], m.Header); d != "" || m.Subject != "back.in.a.x" {
			t.Errorf("headers of message %d on %s (-want +got):\n%s", i+1, m.Subject, d)
		}
	}
}

// A message whose key is denied is waited for, with what follows, and not parked.
func TestUnsealWaitsForKeys(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.park()
	u.opens.set(func() {
		u.opens.err = func(scope string) error {
			if scope == "tenant/c" {
				return keysvc.ErrDenied
			}
			return nil
		}
	})
	u.seal(1, 50)
	run := u.startBack()
	run.eventually("paused", func(s gatewayStats) bool {
		return s.State == gateway.StatePaused && errors.Is(s.LastError, streams.ErrDenied) && errors.Is(s.LastError, gateway.ErrKeys)
	})
	u.plainCount(1, 5*time.Second) // the second is denied
	u.opens.set(func() { u.opens.err = nil })
	u.plainCount(50, 15*time.Second)
	u.verifyPlain(1, 50)
	if s := run.stats(); s.Parked != 0 {
		t.Errorf("%d messages parked", s.Parked)
	}
}

// Whoever may seal chooses the origin subject; it must not choose where this
// process publishes.
func TestUnsealSubjects(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.park()
	u.back.Plain.Subjects = []string{"in.a.>", "in.b.x"}
	u.seal(1, 70)
	u.startBack().eventually("done", func(s gatewayStats) bool { return s.Parked == 50 && s.Position == 70 })
	for _, m := range u.plains() {
		if m.Subject != "back.in.a.x" && m.Subject != "back.in.b.x" {
			t.Errorf("published to %s", m.Subject)
		}
	}
	codes := map[string]int{}
	for _, m := range readAll(t, u.js, "PARKED") {
		codes[m.Headers().Get(streams.HeaderError)]++
	}
	if want := map[string]int{"subject": 50}; !maps.Equal(codes, want) {
		t.Errorf("parked for %v, want %v", codes, want)
	}
}

func TestUnsealForgedPosition(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.seal(1, 20)
	run := u.startBack()
	u.plainCount(20, 10*time.Second)
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	// The route key of sealing is another one: a genuine position of the sealed
	// stream is none here.
	m := &nats.Msg{Subject: "back.in.a.x", Header: nats.Header{gateway.HeaderSource: {u.envelopeAt(20).Header.Get(gateway.HeaderSource)}}}
	if _, err := u.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	u.startBack().stopped(gateway.ErrPosition)
}

// Sealing what was unsealed from the very stream would never end.
func TestUnsealCycle(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	u.seal(1, 5)
	u.startBack()
	u.plainCount(5, 10*time.Second)
	r := u.route
	r.Source.Stream, r.Source.Subjects = plain, []string{"back.>"}
	cfg := u.info(sealed).Config
	cfg.Subjects = append(cfg.Subjects, "sealed.back.>")
	if _, err := u.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	u.startRoute(r).stopped(gateway.ErrSource)
}

func TestUnsealConfig(t *testing.T) {
	t.Parallel()
	u := newUnsealFixture(t)
	tests := []struct {
		name   string
		change func(*gateway.Unseal)
		want   string
	}{
		{"name", func(r *gateway.Unseal) { r.Name = "a.b" }, "name"},
		{"long name", func(r *gateway.Unseal) { r.Name = strings.Repeat("a", 58) }, "1 to 57"},
		{"name of the kind", func(r *gateway.Unseal) { r.Name = "unseal-x" }, "names beginning with unseal-"},
		{"no subjects", func(r *gateway.Unseal) { r.Plain.Subjects = nil }, "no plain subjects"},
		{"bad subject", func(r *gateway.Unseal) { r.Plain.Subjects = []string{"a..b"} }, "plain subject"},
		{"prefix without dot", func(r *gateway.Unseal) { r.Plain.Prefix = "back" }, "plain prefix"},
		{"prefix of NATS", func(r *gateway.Unseal) { r.Plain.Prefix = "$JS.API." }, "plain prefix"},
		{"prefix with wildcard", func(r *gateway.Unseal) { r.Plain.Prefix = "*." }, "plain prefix"},
		{"same stream", func(r *gateway.Unseal) { r.Plain.Stream = sealed }, "is read and written"},
		{"own output", func(r *gateway.Unseal) { r.Plain.Prefix = "sealed." }, "relay its own output"},
		{"no connection", func(r *gateway.Unseal) { r.Plain.Conn = nil }, "a connection each"},
		{"no park stream", func(r *gateway.Unseal) { r.OnUndecryptable = gateway.UndecryptablePark; r.Park.Subject = "p" }, "park stream"},
		{"no park subject", func(r *gateway.Unseal) { r.OnUndecryptable = gateway.UndecryptablePark; r.Park.Stream = "P" }, "park subject"},
		{"park in the source", func(r *gateway.Unseal) {
			r.OnUndecryptable, r.Park = gateway.UndecryptablePark, gateway.Park{Stream: sealed, Subject: "p"}
		}, "read or written by the route"},
		{"window", func(r *gateway.Unseal) { r.Window = -1 }, "window"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := u.back
			tt.change(&r)
			_, err := u.newBack(r)
			var re *gateway.RouteError
			if !errors.Is(err, gateway.ErrConfig) || !errors.As(err, &re) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("NewUnseal = %v, want a RouteError that names %q", err, tt.want)
			}
			if !strings.HasPrefix(re.Route, "unseal-") {
				t.Errorf("error of route %q", re.Route)
			}
		})
	}
	g, err := u.newBack(u.back)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Reconfigure(t.Context(), u.keys, []gateway.Route{u.route}); !errors.Is(err, gateway.ErrConfig) {
		t.Errorf("Reconfigure = %v, want %v", err, gateway.ErrConfig)
	}
	r := u.route
	r.Name = "unseal-r"
	if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: u.keys}); !errors.Is(err, gateway.ErrConfig) {
		t.Errorf("New with the name of a route that opens = %v, want %v", err, gateway.ErrConfig)
	}
}
