package bench

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/streams"
)

// message is what a verifier reads.
type message struct {
	subject        string
	data           []byte
	sequence, prev uint64
	chain          streams.ChainID
}

func (m message) Subject() string        { return m.subject }
func (m message) Data() []byte           { return m.data }
func (m message) Chain() streams.ChainID { return m.chain }
func (m message) Sequence() uint64       { return m.sequence }
func (m message) Previous() uint64       { return m.prev }

// TestVerifier shows the verifier every kind of damage once.
func TestVerifier(t *testing.T) {
	two := topics{subjects: 2, scopes: 2, partitions: 1}
	// Eight messages over two subjects, in the order they were published.
	good := func() []message {
		var out []message
		for i := range 8 {
			out = append(out, message{two.subject(i % 2), chaosPayload(i%2, i/2), uint64(i + 1), uint64(i), streams.ChainID{1}})
		}
		return out
	}
	relink := func(ms []message) []message { // as a gateway would link them
		prev := uint64(0)
		for i := range ms {
			ms[i].prev, prev = prev, ms[i].sequence
		}
		return ms
	}
	move := func(ms []message, sequence uint64) []message { // the last one
		ms[len(ms)-1].sequence = sequence
		return relink(ms)
	}
	// hold moves the messages at 1-based places from..to of one subject behind the
	// others, on a chain of their own.
	hold := func(ms []message, at ...int) []message {
		var out, held []message
		chain, prev := envelope.ReleaseChain(streams.ChainID{1}, ms[at[0]-1].sequence), uint64(0)
		for i, m := range ms {
			if slices.Contains(at, i+1) {
				m.chain, m.prev, prev = chain, prev, m.sequence
				held = append(held, m)
			} else {
				out = append(out, m)
			}
		}
		return append(relink(out), held...)
	}
	tests := []struct {
		name   string
		damage func([]message) []message
		extra  int // messages that the source took twice
		want   ChaosReport
	}{
		{"none", func(ms []message) []message { return ms }, 0, ChaosReport{}},
		{"lost", func(ms []message) []message { return relink(append(ms[:3], ms[4:]...)) }, 0, ChaosReport{Lost: 1}},
		{"lost, link broken", func(ms []message) []message { return append(ms[:3], ms[4:]...) }, 0, ChaosReport{Lost: 1, BrokenLinks: 1}},
		{"tail lost", func(ms []message) []message { return ms[:6] }, 0, ChaosReport{Lost: 2}},
		{"doubled", func(ms []message) []message { return relink(append(ms, ms[0])) }, 0, ChaosReport{Duplicated: 1}},
		{"doubled at once", func(ms []message) []message { return relink(append(ms, ms[7])) }, 0, ChaosReport{Duplicated: 1}},
		{"swapped on one subject", func(ms []message) []message { ms[2], ms[4] = ms[4], ms[2]; return relink(ms) }, 0, ChaosReport{OutOfOrder: 1}},
		{"doubled at another sequence", func(ms []message) []message { return move(append(ms, ms[7]), 9) }, 0, ChaosReport{Mismatched: 1}},
		{"doubled by the source", func(ms []message) []message { return move(append(ms, ms[7]), 9) }, 1, ChaosReport{SourceDuplicated: 1}},
		{"at another sequence", func(ms []message) []message { return move(ms, 9) }, 0, ChaosReport{Lost: 1, Mismatched: 1}},
		{"swapped across subjects", func(ms []message) []message { ms[2], ms[3] = ms[3], ms[2]; return relink(ms) }, 0, ChaosReport{}},
		{"changed", func(ms []message) []message { ms[5].data = append(ms[5].data, 'x'); return ms }, 0, ChaosReport{Mismatched: 1, Lost: 1}},
		{"empty", func(ms []message) []message { ms[5].data = nil; return ms }, 0, ChaosReport{Mismatched: 1, Lost: 1}},
		{"of another subject", func(ms []message) []message { ms[5].subject = two.subject(0); return ms }, 0, ChaosReport{Mismatched: 1, Lost: 1}},
		{"of another chain", func(ms []message) []message { ms[7].chain = streams.ChainID{2}; return ms }, 0, ChaosReport{BrokenLinks: 2}},
		{"held", func(ms []message) []message { return hold(ms, 4, 6, 8) }, 0, ChaosReport{}},
		{"held, one lost", func(ms []message) []message { return slices.Delete(hold(ms, 4, 6, 8), 6, 7) }, 0, ChaosReport{Lost: 1, BrokenLinks: 1}},
		{"held, the first lost", func(ms []message) []message { return slices.Delete(hold(ms, 4, 6, 8), 5, 6) }, 0, ChaosReport{Lost: 1, BrokenLinks: 1}},
		{"held, overtaken by a later one", func(ms []message) []message { return hold(ms, 4, 6) }, 0, ChaosReport{OutOfOrder: 2}},
		{"held, released twice", func(ms []message) []message { ms = hold(ms, 4, 6, 8); return append(ms, ms[7]) }, 0, ChaosReport{Duplicated: 1, BrokenLinks: 1}},
		{"held beside another chain", func(ms []message) []message {
			ms = hold(ms, 8)
			ms[7].chain = envelope.ReleaseChain(streams.ChainID{2}, 8)
			return ms
		}, 0, ChaosReport{BrokenLinks: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r ChaosReport
			v := newVerifier(&r, two, false, []uint64{1, 2, 3, 4, 5, 6, 7, 8})
			for _, m := range tt.damage(good()) {
				v.message(m)
			}
			v.end(tt.extra)
			if diff := cmp.Diff(tt.want, r); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			if bad := tt.want.Lost+tt.want.Duplicated+tt.want.OutOfOrder+tt.want.Mismatched+tt.want.BrokenLinks > 0; r.OK() == bad {
				t.Errorf("OK = %v", r.OK())
			}
		})
	}
}

func TestCounter(t *testing.T) {
	var c counter
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 3)
	for _, n := range []int64{-5, 3, 7} {
		go func() { done <- c.wait(ctx, n) }()
	}
	for n := range int64(8) {
		c.set(n)
	}
	for range 3 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if c.set(7) || c.now() != 7 {
		t.Errorf("set(7) again changed it, or now = %d", c.now())
	}
	cancel()
	if err := c.wait(ctx, 8); err == nil {
		t.Error("wait = nil after the end of its context")
	}
}

func TestChaosRefuses(t *testing.T) {
	for _, c := range []ChaosConfig{
		{},
		{Command: []string{"x"}, Kills: -1},
		{Command: []string{"x"}, Servers: 2},
		{Command: []string{"x"}, Engine: "slow"},
		{Command: []string{"x"}, Scopes: 4, Subjects: 3},
		{Command: []string{"x"}, Scopes: 4, Deny: 4, Kills: 2},
		{Command: []string{"x"}, Scopes: 4, Deny: 1, Kills: 1},
		{Command: []string{"x"}, Scopes: 4, Deny: 1, Kills: 2, Messages: 5},
		{Command: []string{"x"}, Scopes: 4, Deny: 1, Kills: 2, Engine: "fast"},
		{Command: []string{"/nonexistent/keyweir"}, Dir: t.TempDir()},
	} {
		if r, err := Chaos(t.Context(), c); err == nil || r != nil {
			t.Errorf("Chaos(%+v) = %v, %v, want an error", c, r, err)
		}
	}
}
