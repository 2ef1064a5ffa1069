package streams_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

func orderedConsumer(t *testing.T, w *world, cfg jetstream.OrderedConsumerConfig) jetstream.Consumer {
	t.Helper()
	c, err := w.js.OrderedConsumer(t.Context(), streamName, cfg)
	if err != nil {
		t.Fatalf("making ordered consumer: %v", err)
	}
	return c
}

// verify reads the sealed stream up to its end and observes all of it.
func verify(t *testing.T, w *world, state *streams.VerifierState) ([]string, streams.VerifierState) {
	t.Helper()
	cfg := jetstream.OrderedConsumerConfig{}
	if state != nil {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, state.Stream+1
	}
	c := orderedConsumer(t, w, cfg)
	v, err := streams.NewVerifier(c, streams.VerifierConfig{FromStart: true, State: state})
	if err != nil {
		t.Fatalf("NewVerifier: %v", err)
	}
	ctx, _ := timeout(t)
	var got []string
	for m, err := range w.opener(t).Messages(ctx, c) {
		if err != nil {
			t.Fatalf("reading: %v", err)
		}
		es, err := v.Observe(m)
		if err != nil {
			t.Fatalf("Observe: %v", err)
		}
		for _, e := range es {
			got = append(got, fmt.Sprintf("%v at %d", e.Kind, e.Stream))
		}
		meta, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		if meta.NumPending == 0 {
			break
		}
	}
	return got, v.State()
}

// TestVerifierOnServer damages a real stream while nobody looks, in one step after
// the other, each behind what was verified before.
func TestVerifierOnServer(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.seal(t, 5) // 1 to 5
	got, state := verify(t, w, nil)
	if got != nil || state.Stream != 5 || state.Observed != 5 {
		t.Fatalf("clean stream: %v, state %+v", got, state)
	}
	again := func(want ...string) {
		t.Helper()
		b, err := json.Marshal(state)
		if err != nil {
			t.Fatal(err)
		}
		s, err := streams.ParseVerifierState(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, state = verify(t, w, s); !cmp.Equal(got, want) {
			t.Fatalf("events %v, want %v", got, want)
		}
	}
	s, err := w.js.Stream(t.Context(), streamName)
	if err != nil {
		t.Fatal(err)
	}
	w.seal(t, 3) // 6 to 8
	if err := s.DeleteMsg(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	again("gap at 8")

	m := w.sealer.Seal(t, "orders.acme.new", nil, []byte("twice"))
	w.publish(t, m, m) // 9 and 10
	again("duplicate at 10")

	m1, m2 := w.sealer.Seal(t, "orders.acme.new", nil, nil), w.sealer.Seal(t, "orders.acme.new", nil, nil)
	w.publish(t, m2, m1) // 11 and 12
	again("gap at 11", "reorder at 12")

	chain := w.sealer
	w.sealer = w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"})
	w.seal(t, 2) // 13 and 14
	again("chain change at 13")
	w.publish(t, chain.Seal(t, "orders.acme.new", nil, nil)) // 15
	again("splice at 15")
}

func TestVerifierRefusesConsumers(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	tests := []struct {
		name string
		c    jetstream.Consumer
		link streams.OrderLink
		want string // "": accepted
	}{
		{"ordered", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{}), streams.LinkChain, ""},
		{"all subjects", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{FilterSubjects: []string{">"}}), streams.LinkChain, ""},
		{"one subject", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"sealed.a"}}), streams.LinkSubject, ""},
		{"filtered", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"sealed.a"}}), streams.LinkChain, "filtered by subject"},
		{"filtered by pattern", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"sealed.>"}}), streams.LinkChain, "filtered by subject"},
		{"unfiltered for a subject", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{}), streams.LinkSubject, "exactly one subject"},
		{"two subjects", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"sealed.a", "sealed.b"}}), streams.LinkSubject, "exactly one subject"},
		{"pattern for a subject", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"sealed.*"}}), streams.LinkSubject, "exactly one subject"},
		{"last per subject", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, FilterSubjects: []string{">"}}), streams.LinkChain, "last message of each subject"},
		{"headers only", orderedConsumer(t, w, jetstream.OrderedConsumerConfig{HeadersOnly: true}), streams.LinkChain, "headers only"},
		{"durable", w.consumer(t), streams.LinkChain, "not an ordered consumer"},
		{"unknown link", nil, 7, "OrderLink(7)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := streams.NewVerifier(tt.c, streams.VerifierConfig{Link: tt.link})
			if tt.want == "" {
				if err != nil {
					t.Errorf("NewVerifier: %v", err)
				}
				return
			}
			if !errors.Is(err, streams.ErrNoOrder) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewVerifier = %v, want ErrNoOrder with %q", err, tt.want)
			}
		})
	}
}

func TestVerifierFollowsSubject(t *testing.T) {
	at := func(seq, onSubject uint64) streams.Place {
		return streams.Place{Chain: chainID(1), Sequence: seq, Previous: seq - 1, Subject: "orders.eu", OnSubject: onSubject}
	}
	v := newVerifier(t, streams.VerifierConfig{Link: streams.LinkSubject})
	if es := observe(t, v, []streams.Place{at(3, 0), at(8, 3)}); es != nil {
		t.Fatalf("clean subject: %v", es)
	}
	state := v.State()
	for _, p := range []streams.Place{
		{Chain: chainID(1), Sequence: 9, Previous: 8},
		{Chain: chainID(1), Sequence: 9, Previous: 8, Subject: "orders.us", OnSubject: 8},
		{Chain: chainID(1), Sequence: 9, Previous: 8, Subject: "orders.eu", OnSubject: 9},
	} {
		if es, err := v.Observe(streams.MessageAt(p)); !errors.Is(err, streams.ErrNoOrder) || es != nil {
			t.Errorf("Observe(%+v) = %v, %v, want ErrNoOrder", p, es, err)
		}
	}
	if _, err := v.Observe(nil); !errors.Is(err, streams.ErrNoOrder) {
		t.Errorf("Observe(nil) = %v", err)
	}
	if diff := cmp.Diff(state, v.State()); diff != "" {
		t.Errorf("a refused message changed the state (-before +after):\n%s", diff)
	}
	v = newVerifier(t, streams.VerifierConfig{Link: streams.LinkSubject, State: &state})
	if es := observe(t, v, []streams.Place{at(20, 15)}); len(es) != 1 || es[0].Kind != streams.OrderGap {
		t.Errorf("events %v, want a gap", es)
	}
}

func TestVerifierRefusesStates(t *testing.T) {
	v := newVerifier(t, streams.VerifierConfig{})
	id := chainID(1)
	observe(t, v, []streams.Place{{Chain: id, Sequence: 1}, {Chain: id, Sequence: 9, Previous: 5}, {Chain: id, Sequence: 20, Previous: 12}})
	tests := map[string]func(*streams.VerifierState){
		"version":        func(s *streams.VerifierState) { s.Version = 2 },
		"link":           func(s *streams.VerifierState) { s.Link = "subject" },
		"subject":        func(s *streams.VerifierState) { s.Subject = "a" },
		"no chain":       func(s *streams.VerifierState) { s.Chains = nil },
		"chain name":     func(s *streams.VerifierState) { s.Chains[0].Chain = "x" },
		"chain twice":    func(s *streams.VerifierState) { s.Chains = append(s.Chains, s.Chains[0]) },
		"many chains":    func(s *streams.VerifierState) { s.Chains = make([]streams.ChainState, 17) },
		"first":          func(s *streams.VerifierState) { s.Chains[0].First = 0 },
		"last":           func(s *streams.VerifierState) { s.Chains[0].Last = 0 },
		"gap after last": func(s *streams.VerifierState) { s.Chains[0].Last = 15 },
		"gap turned":     func(s *streams.VerifierState) { s.Chains[0].Missing[0].Until = 1 },
		"gap next":       func(s *streams.VerifierState) { s.Chains[0].Missing[0].Next = 5 },
		"gaps overlap":   func(s *streams.VerifierState) { s.Chains[0].Missing[1].After = 8 },
		"many gaps":      func(s *streams.VerifierState) { s.Chains[0].Missing = make([]streams.MissingRange, 65) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			s := v.State()
			if _, err := streams.NewVerifier(nil, streams.VerifierConfig{State: &s}); err != nil {
				t.Fatalf("own state: %v", err)
			}
			change(&s)
			if _, err := streams.NewVerifier(nil, streams.VerifierConfig{State: &s}); !errors.Is(err, streams.ErrNoOrder) {
				t.Errorf("NewVerifier = %v, want ErrNoOrder", err)
			}
		})
	}
	if _, err := streams.ParseVerifierState([]byte("{")); !errors.Is(err, streams.ErrNoOrder) {
		t.Errorf("ParseVerifierState = %v", err)
	}
}
