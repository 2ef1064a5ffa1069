package streams_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// poison is one kind of fault in the second of three messages.
type poison struct {
	name string
	want error
	code string
	make func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg
}

func good(t *testing.T, bad *streamstest.Sealer) *nats.Msg {
	return bad.Seal(t, "orders.globex.new", nats.Header{"Sealed-Header": {"x"}}, []byte("bad"))
}

var poisons = []poison{
	{"plaintext", streams.ErrPlaintext, "plaintext", func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg {
		m := good(t, bad)
		m.Data = []byte("in clear")
		return m
	}},
	{"tampered", streams.ErrTampered, "tampered", func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg {
		m := good(t, bad)
		m.Data[len(m.Data)-1] ^= 1
		return m
	}},
	{"relocated", streams.ErrRelocated, "relocated", func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg {
		return resubject(good(t, bad), "sealed.orders.globex.old")
	}},
	{"not accepted", streams.ErrNotAccepted, "not_accepted", func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg {
		return good(t, w.keys.NewSealer(t, streamstest.Sealing{Scope: "other"}))
	}},
	{"unsupported", streams.ErrUnsupported, "unsupported", func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg {
		m := good(t, bad)
		m.Data[2] = 9
		return m
	}},
	{"destroyed", streams.ErrDestroyed, "destroyed", func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg {
		w.keys.Refuse("tenant/globex", keysvc.ErrDestroyed)
		return good(t, bad)
	}},
	{"unknown key", streams.ErrUnknownKey, "unknown_key", func(t *testing.T, w *world, bad *streamstest.Sealer) *nats.Msg {
		w.keys.Forget(bad.KeyID())
		return good(t, bad)
	}},
}

// scene is a consumer over the messages good, bad, good.
type scene struct {
	*world
	c   jetstream.Consumer
	bad *nats.Msg
}

func newScene(t *testing.T, p poison, ack jetstream.AckPolicy) *scene {
	t.Helper()
	w := newWorld(t, streamstest.Sealing{})
	w.stream(t, "DEAD", "dead.>")
	s := &scene{world: w}
	s.bad = p.make(t, w, w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/globex"}))
	s.c = w.consumer(t, func(c *jetstream.ConsumerConfig) {
		c.AckPolicy, c.MaxDeliver, c.AckWait = ack, 2, 2*time.Second
	})
	w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, []byte("0")))
	w.publish(t, s.bad)
	w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, []byte("2")))
	return s
}

func (s *scene) opener(t *testing.T, p streams.Policy) *streams.Opener {
	return s.world.opener(t, func(c *streams.Config) {
		c.Accept.Rules[0].Scopes = []string{"tenant/*"}
		c.Accept.ScopeRules = rules(t, "orders.*.>", "tenant/{{wildcard(1)}}")
		c.OnUndecryptable, c.UnknownKeyWait = p, -1
	})
}

// consume runs Consume until n messages were handled or it ends by itself.
func (s *scene) consume(t *testing.T, p streams.Policy, n int) ([]string, error) {
	t.Helper()
	ctx, cancel := timeout(t)
	var got []string
	err := s.opener(t, p).Consume(ctx, s.c, func(_ context.Context, m *streams.Message) error {
		if got = append(got, string(m.Data())); len(got) == n {
			cancel()
		}
		return nil
	})
	return got, err
}

// state checks the consumer: ack floor, unacknowledged, and that no delivery was wasted.
func (s *scene) state(t *testing.T, floor uint64, pending int) {
	t.Helper()
	natstest.Eventually(t, 5*time.Second, func() error {
		i := info(t, s.c)
		if i.NumRedelivered != 0 {
			t.Fatalf("%d messages redelivered", i.NumRedelivered)
		}
		if i.AckFloor.Stream != floor || i.NumAckPending != pending {
			return fmt.Errorf("ack floor %d with %d unacknowledged, want %d with %d", i.AckFloor.Stream, i.NumAckPending, floor, pending)
		}
		return nil
	})
}

func (s *scene) dead(t *testing.T) []*jetstream.RawStreamMsg {
	t.Helper()
	st, err := s.js.Stream(t.Context(), "DEAD")
	must(t, err)
	i, err := st.Info(t.Context())
	must(t, err)
	var out []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= i.State.LastSeq; seq++ {
		m, err := st.GetMsg(t.Context(), seq)
		must(t, err)
		out = append(out, m)
	}
	return out
}

// Each kind of fault under each policy ends in the stated state: nothing is
// acknowledged silently, no delivery is wasted, and where the policy goes on the
// next message flows.
func TestPoison(t *testing.T) {
	for _, p := range poisons {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			t.Run("stop", func(t *testing.T) {
				s := newScene(t, p, jetstream.AckExplicitPolicy)
				got, err := s.consume(t, streams.Stop(), 2)
				oe := wantError(t, err, p.want)
				if oe.Sequence != 2 || !cmp.Equal(got, []string{"0"}) {
					t.Errorf("handled %q, then %v", got, err)
				}
				s.state(t, 1, 2)
				if d := s.dead(t); len(d) != 0 {
					t.Errorf("%d dead letters", len(d))
				}
			})
			t.Run("park", func(t *testing.T) {
				s := newScene(t, p, jetstream.AckExplicitPolicy)
				got, err := s.consume(t, streams.Park(s.js, "dead.letters"), 2)
				if !errors.Is(err, context.Canceled) || !cmp.Equal(got, []string{"0", "2"}) {
					t.Errorf("handled %q, then %v", got, err)
				}
				s.state(t, 3, 0)
				s.wantParked(t, p)
			})
			t.Run("park without acks", func(t *testing.T) {
				s := newScene(t, p, jetstream.AckNonePolicy)
				got, err := s.consume(t, streams.Park(s.js, "dead.letters"), 2)
				if !errors.Is(err, context.Canceled) || !cmp.Equal(got, []string{"0", "2"}) {
					t.Errorf("handled %q, then %v", got, err)
				}
				s.wantParked(t, p)
			})
			t.Run("deliver to hook", func(t *testing.T) {
				s := newScene(t, p, jetstream.AckExplicitPolicy)
				var told []*streams.OpenError
				got, err := s.consume(t, streams.Deliver(func(_ context.Context, oe *streams.OpenError) error {
					told = append(told, oe)
					return nil
				}), 2)
				if !errors.Is(err, context.Canceled) || !cmp.Equal(got, []string{"0", "2"}) {
					t.Errorf("handled %q, then %v", got, err)
				}
				if len(told) != 1 || !errors.Is(told[0], p.want) || told[0].Sequence != 2 || !bytes.Equal(told[0].Sealed().Data(), s.bad.Data) {
					t.Errorf("hook was told %v", told)
				}
				s.state(t, 3, 0)
			})
			t.Run("hook refuses", func(t *testing.T) {
				s := newScene(t, p, jetstream.AckExplicitPolicy)
				refuse := errors.New("not mine")
				got, err := s.consume(t, streams.Deliver(func(context.Context, *streams.OpenError) error { return refuse }), 2)
				if !errors.Is(err, refuse) || !cmp.Equal(got, []string{"0"}) {
					t.Errorf("handled %q, then %v", got, err)
				}
				s.state(t, 1, 2)
			})
			t.Run("deliver to loop", func(t *testing.T) {
				s := newScene(t, p, jetstream.AckExplicitPolicy)
				ctx, _ := timeout(t)
				var got []string
				for m, err := range s.opener(t, streams.Deliver(nil)).Messages(ctx, s.c) {
					if err != nil {
						wantError(t, err, p.want)
						got = append(got, "error")
						continue
					}
					must(t, m.Ack())
					if got = append(got, string(m.Data())); len(got) == 3 {
						break
					}
				}
				if !cmp.Equal(got, []string{"0", "error", "2"}) {
					t.Errorf("loop saw %q", got)
				}
				s.state(t, 3, 0)
			})
			t.Run("loop breaks", func(t *testing.T) {
				s := newScene(t, p, jetstream.AckExplicitPolicy)
				ctx, _ := timeout(t)
				for m, err := range s.opener(t, streams.Deliver(nil)).Messages(ctx, s.c) {
					if err != nil {
						wantError(t, err, p.want)
						break
					}
					must(t, m.Ack())
				}
				s.state(t, 1, 2)
			})
		})
	}
}

// wantParked checks that the dead letter is the message as it was, and says why.
func (s *scene) wantParked(t *testing.T, p poison) {
	t.Helper()
	dead := s.dead(t)
	if len(dead) != 1 {
		t.Fatalf("%d dead letters, want 1", len(dead))
	}
	d := dead[0]
	if d.Subject != "dead.letters" || !bytes.Equal(d.Data, s.bad.Data) {
		t.Errorf("dead letter on %q is not the message", d.Subject)
	}
	want := nats.Header{
		"Keyweir": {"1"}, "Keyweir-Source": s.bad.Header["Keyweir-Source"],
		streams.HeaderError: {p.code}, streams.HeaderStream: {streamName},
		streams.HeaderSequence: {"2"}, streams.HeaderSubject: {s.bad.Subject},
	}
	got := make(nats.Header)
	for k, v := range d.Header {
		if k != jetstream.MsgIDHeader {
			got[k] = v
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers of the dead letter (-want +got):\n%s", diff)
	}
}

// A parked message opens again once the reason is gone, from what its headers say.
func TestParkedOpensAgain(t *testing.T) {
	s := newScene(t, poisons[5], jetstream.AckExplicitPolicy) // destroyed
	if _, err := s.consume(t, streams.Park(s.js, "dead.letters"), 2); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.keys.Refuse("tenant/globex", nil)
	d := s.dead(t)[0]
	b, err := s.opener(t, streams.Stop()).OpenBytes(t.Context(), d.Header.Get(streams.HeaderSubject), d.Data)
	if err != nil || string(b) != "bad" {
		t.Errorf("OpenBytes = %q, %v", b, err)
	}
}

// Server headers of the original do not reach the server again with the dead letter.
func TestParkDropsServerHeaders(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.stream(t, "DEAD", "dead.>")
	m := &nats.Msg{Subject: "sealed.x", Data: []byte("plain"), Header: nats.Header{
		"Nats-Expected-Stream": {streamName}, "nats-rollup": {"sub"}, "Nats": {"kept"}, "Traceparent": {"a", "b"},
		streams.HeaderError: {"forged"},
	}}
	w.publish(t, m)
	w.seal(t, 1)
	o := w.opener(t, func(c *streams.Config) { c.OnUndecryptable = streams.Park(w.js, "dead.x") })
	wantInOrder(t, read(t, o, w.consumer(t), 1), 0, 1)
	st, err := w.js.Stream(t.Context(), "DEAD")
	must(t, err)
	d, err := st.GetMsg(t.Context(), 1)
	must(t, err)
	for name := range d.Header {
		if strings.HasPrefix(strings.ToLower(name), "nats-") && name != jetstream.MsgIDHeader {
			t.Errorf("dead letter has header %q", name)
		}
	}
	if !cmp.Equal(d.Header["Traceparent"], []string{"a", "b"}) || d.Header.Get("Nats") != "kept" ||
		!cmp.Equal(d.Header[streams.HeaderError], []string{"plaintext"}) {
		t.Errorf("dead letter has headers %v", d.Header)
	}
}

// While dead letters cannot be stored the reader holds, and then goes on.
func TestParkHoldsWhileFull(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	dead, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "DEAD", Subjects: []string{"dead"}, MaxMsgs: 1, Discard: jetstream.DiscardNew, Storage: jetstream.MemoryStorage,
	})
	must(t, err)
	for range 2 {
		w.publish(t, &nats.Msg{Subject: "sealed.x", Data: []byte("plain")})
	}
	w.seal(t, 1)
	var st states
	o := w.opener(t, func(c *streams.Config) {
		c.OnUndecryptable = streams.Park(w.js, "dead")
		c.OnState = func(s streams.State) {
			st.add(s)
			if s.Held {
				if err := dead.Purge(t.Context()); err != nil {
					t.Errorf("purging: %v", err)
				}
			}
		}
	})
	c := w.consumer(t)
	wantInOrder(t, read(t, o, c, 1), 0, 1)
	allAcked(t, c)
	if all := st.get(); len(all) != 2 || all[0].Err == nil {
		t.Errorf("states %+v, want a hold and its end", all)
	}
	i, err := dead.Info(t.Context())
	must(t, err)
	if i.State.LastSeq != 2 {
		t.Errorf("%d dead letters were stored, want 2", i.State.LastSeq)
	}
}

// A dead-letter subject that nothing stores, or that the consumer reads itself,
// is refused before anything is read.
func TestParkChecks(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.seal(t, 1)
	ctx, _ := timeout(t)
	filtered := w.consumer(t, func(c *jetstream.ConsumerConfig) { c.Durable, c.FilterSubject = "filtered", "sealed.orders.>" })
	all := w.consumer(t)
	handled := 0
	handle := func(context.Context, *streams.Message) error { handled++; return errors.New("enough") }
	for name, tc := range map[string]struct {
		p streams.Policy
		c jetstream.Consumer
	}{
		"nothing stores it":   {streams.Park(w.js, "nowhere"), all},
		"no subject":          {streams.Park(w.js, ""), all},
		"no JetStream":        {streams.Park(nil, "sealed.dead"), all},
		"own stream":          {streams.Park(w.js, "sealed.dead"), all},
		"own filter":          {streams.Park(w.js, "sealed.orders.dead"), filtered},
		"other part is right": {streams.Park(w.js, "sealed.dead"), filtered},
	} {
		o := w.opener(t, func(c *streams.Config) { c.OnUndecryptable = tc.p })
		before := handled
		err := o.Consume(ctx, tc.c, handle)
		if refused := handled == before; refused != (name != "other part is right") || err == nil {
			t.Errorf("%s: Consume = %v, %d handled", name, err, handled-before)
		}
	}
}
