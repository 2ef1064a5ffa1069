package bench

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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
	// Eight messages over two subjects, in the order they were published.
	good := func() []message {
		var out []message
		for i := range 8 {
			out = append(out, message{chaosSubject(i % 2), chaosPayload(i%2, i/2), uint64(i + 1), uint64(i), streams.ChainID{1}})
		}
		return out
	}
	relink := func(ms []message) []message {
		for i := range ms {
			ms[i].sequence, ms[i].prev = uint64(i+1), uint64(i)
		}
		return ms
	}
	tests := []struct {
		name   string
		damage func([]message) []message
		want   ChaosReport
	}{
		{"none", func(ms []message) []message { return ms }, ChaosReport{}},
		{"lost", func(ms []message) []message { return relink(append(ms[:3], ms[4:]...)) }, ChaosReport{Lost: 1}},
		{"lost, link broken", func(ms []message) []message { return append(ms[:3], ms[4:]...) }, ChaosReport{Lost: 1, BrokenLinks: 1}},
		{"tail lost", func(ms []message) []message { return ms[:6] }, ChaosReport{Lost: 2}},
		{"doubled", func(ms []message) []message { return relink(append(ms, ms[0])) }, ChaosReport{Duplicated: 1}},
		{"doubled at once", func(ms []message) []message { return relink(append(ms, ms[7])) }, ChaosReport{Duplicated: 1}},
		{"swapped on one subject", func(ms []message) []message { ms[2], ms[4] = ms[4], ms[2]; return relink(ms) }, ChaosReport{OutOfOrder: 1}},
		{"swapped across subjects", func(ms []message) []message { ms[2], ms[3] = ms[3], ms[2]; return relink(ms) }, ChaosReport{}},
		{"changed", func(ms []message) []message { ms[5].data = append(ms[5].data, 'x'); return ms }, ChaosReport{Mismatched: 1, Lost: 1}},
		{"empty", func(ms []message) []message { ms[5].data = nil; return ms }, ChaosReport{Mismatched: 1, Lost: 1}},
		{"of another subject", func(ms []message) []message { ms[5].subject = chaosSubject(0); return ms }, ChaosReport{Mismatched: 1, Lost: 1}},
		{"of another chain", func(ms []message) []message { ms[7].chain = streams.ChainID{2}; return ms }, ChaosReport{BrokenLinks: 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r ChaosReport
			v := newVerifier(&r, 8, 2)
			for _, m := range tt.damage(good()) {
				v.message(m)
			}
			v.end()
			if diff := cmp.Diff(tt.want, r); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			if r.OK() != (tt.want == ChaosReport{}) {
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
	for _, c := range []ChaosConfig{{}, {Command: []string{"x"}, Kills: -1}, {Command: []string{"/nonexistent/keyweir"}, Dir: t.TempDir()}} {
		if r, err := Chaos(t.Context(), c); err == nil || r != nil {
			t.Errorf("Chaos(%+v) = %v, %v, want an error", c, r, err)
		}
	}
}
