package streams_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/streams"
)

// released makes a chain of 120 messages in which two rows were held back and
// released side by side with the others.
func released() []streams.Place {
	main := streams.ChainID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	var out []streams.Place
	add := func(c streams.ChainID, previous *uint64, seq uint64) {
		out = append(out, streams.Place{Chain: c, Sequence: seq, Previous: *previous})
		*previous = seq
	}
	a, b := envelope.ReleaseChain(main, 20), envelope.ReleaseChain(main, 21)
	var m, la, lb uint64
	for seq := uint64(1); seq <= 120; seq++ {
		if seq < 20 || seq%20 > 1 {
			add(main, &m, seq)
		}
		if seq > 50 && seq%20 == 10 {
			add(a, &la, (seq-50)/20*20)
			add(b, &lb, (seq-50)/20*20+1)
		}
	}
	return out
}

func TestVerifierReleased(t *testing.T) {
	ps := released()
	for _, fromStart := range []bool{true, false} {
		if es := observe(t, newVerifier(t, streams.VerifierConfig{FromStart: fromStart}), ps); len(es) != 0 {
			t.Errorf("events of a genuine stream, from start %v: %v", fromStart, es)
		}
	}
	var at []int // of released messages
	for i, p := range ps {
		if _, ok := p.Chain.ReleasedFrom(p.Sequence, p.Previous); ok {
			at = append(at, i)
		}
	}
	if len(at) != 6 {
		t.Fatalf("%d released messages, want 6", len(at))
	}
	// Anchored anywhere, and with a state in between, it raises no alarm.
	for i := range ps {
		if es := alarms(observe(t, newVerifier(t, streams.VerifierConfig{}), ps[i:])); len(es) != 0 && i < at[0] {
			t.Errorf("alarms from message %d on: %v", i, es)
		}
		v := newVerifier(t, streams.VerifierConfig{FromStart: true})
		observe(t, v, ps[:i])
		state := v.State()
		if es := observe(t, newVerifier(t, streams.VerifierConfig{State: &state}), ps[i:]); len(es) != 0 {
			t.Errorf("events after a state at message %d: %v", i, es)
		}
	}
	for _, c := range []struct {
		name string
		ps   []streams.Place
		want []streams.OrderKind
	}{
		{"first is missing", slices.Delete(slices.Clone(ps), at[0], at[0]+1), []streams.OrderKind{streams.OrderGap}},
		{"second is missing", slices.Delete(slices.Clone(ps), at[2], at[2]+1), []streams.OrderKind{streams.OrderGap}},
		{"one is repeated", slices.Insert(slices.Clone(ps), at[2], ps[at[0]]), []streams.OrderKind{streams.OrderDuplicate}},
	} {
		es := alarms(observe(t, newVerifier(t, streams.VerifierConfig{}), c.ps))
		if diff := cmp.Diff(c.want, es); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// More rows were held back at a time than a Verifier remembers: it raises no alarm,
// and finds what is missing of those that began later.
func TestVerifierForgetsReleased(t *testing.T) {
	const chains, rounds = 700, 3
	main := streams.ChainID{1, 2, 3, 4, 5, 6, 7, 8, 9}
	ps := []streams.Place{{Chain: main, Sequence: 1}, {Chain: main, Sequence: 2, Previous: 1}}
	for round := range uint64(rounds) {
		for i := range uint64(chains) {
			p := streams.Place{Chain: envelope.ReleaseChain(main, 10+i), Sequence: 10 + i + round*chains}
			if round > 0 {
				p.Previous = p.Sequence - chains
			}
			ps = append(ps, p)
		}
	}
	for _, fromStart := range []bool{true, false} {
		v := newVerifier(t, streams.VerifierConfig{FromStart: fromStart})
		if es := observe(t, v, ps); len(es) != 0 {
			t.Errorf("%d events of a genuine stream, from start %v: %v", len(es), fromStart, es[0])
		}
		state := v.State()
		if len(state.Released) > 256 || state.ReleasedForgotten == 0 {
			t.Errorf("state with %d release chains, forgotten up to %d", len(state.Released), state.ReleasedForgotten)
		}
		v = newVerifier(t, streams.VerifierConfig{State: &state})
		late := envelope.ReleaseChain(main, 5000)
		got := alarms(observe(t, v, []streams.Place{
			{Chain: envelope.ReleaseChain(main, 10), Sequence: 9000, Previous: 10 + (rounds-1)*chains},
			{Chain: late, Sequence: 5010, Previous: 5000},
			{Chain: late, Sequence: 5030, Previous: 5020},
		}))
		if diff := cmp.Diff([]streams.OrderKind{streams.OrderGap, streams.OrderGap}, got); diff != "" {
			t.Errorf("after that (-want +got):\n%s", diff)
		}
	}
}
