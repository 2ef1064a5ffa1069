package streams_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/streams"
)

func chainID(n uint64) (id streams.ChainID) {
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

// genuine makes a stream as a gateway writes it: chains of the given lengths that
// replace each other, sequences that skip, losses of the source now and then.
func genuine(r *rand.Rand, first uint64, lengths ...int) []streams.Place {
	var out []streams.Place
	for i, n := range lengths {
		seq, previous := uint64(0), uint64(0)
		for range n {
			seq += 1 + r.Uint64N(3)*r.Uint64N(3)
			p := streams.Place{Chain: chainID(first + uint64(i)), Sequence: seq, Previous: previous}
			if r.IntN(50) == 0 {
				p.Gap = 1 + r.Uint64N(9)
			}
			out = append(out, p)
			previous = seq
		}
	}
	return out
}

func newVerifier(t testing.TB, cfg streams.VerifierConfig) *streams.Verifier {
	t.Helper()
	v, err := streams.NewVerifier(nil, cfg)
	if err != nil {
		t.Fatalf("NewVerifier: %v", err)
	}
	return v
}

// observe feeds a stream and returns all events.
func observe(t testing.TB, v *streams.Verifier, ps []streams.Place) []streams.OrderEvent {
	t.Helper()
	var out []streams.OrderEvent
	for _, p := range ps {
		es, err := v.Observe(streams.MessageAt(p))
		if err != nil {
			t.Fatalf("Observe(%+v): %v", p, err)
		}
		out = append(out, es...)
	}
	return out
}

func alarms(es []streams.OrderEvent) (kinds []streams.OrderKind) {
	for _, e := range es {
		if e.Kind.Alarm() {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds
}

// TestVerifierCleanStreams: what a gateway writes never raises an alarm, and what
// it states itself is passed on, all of it.
func TestVerifierCleanStreams(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	ps := genuine(r, 1, 150_000, 20, 1, 50_000, 1)
	v := newVerifier(t, streams.VerifierConfig{FromStart: true})
	es := observe(t, v, ps)
	changes, lost, want := 0, uint64(0), uint64(0)
	for _, e := range es {
		switch e.Kind {
		case streams.OrderChainChange:
			changes++
		case streams.OrderSourceLoss:
			lost += e.Count
		default:
			t.Fatalf("clean stream: %v", e)
		}
	}
	for _, p := range ps {
		want += p.Gap
	}
	if changes != 4 || lost != want || want == 0 {
		t.Errorf("%d chain changes and %d lost by the source, want 4 and %d", changes, lost, want)
	}
	// Beginning anywhere is no alarm either.
	for range 1000 {
		from := r.IntN(len(ps))
		if got := alarms(observe(t, newVerifier(t, streams.VerifierConfig{}), ps[from:min(from+50, len(ps))])); got != nil {
			t.Fatalf("clean stream from message %d: %v", from, got)
		}
	}
}

// edit is one change of a genuine stream, and the classes that must, and that
// may, be reported for it.
type edit struct {
	name      string
	ps        []streams.Place
	must, may []streams.OrderKind
	healed    bool // nothing is missing in the end
}

// randomEdit changes a stream of chains 10 and 11 in one place. Changes at the end
// of a chain or before the anchor leave no trace and are not made.
func randomEdit(r *rand.Rand, ps []streams.Place, firstLen int) edit {
	n := len(ps)
	// inner draws a message that is neither first nor last of its chain.
	inner := func() int {
		for {
			if i := r.IntN(n); i != 0 && i != firstLen-1 && i != firstLen && i != n-1 {
				return i
			}
		}
	}
	switch r.IntN(6) {
	case 0:
		i := inner()
		end := i + 1
		for r.IntN(2) == 0 && end != firstLen-1 && end < n-1 {
			end++
		}
		return edit{name: fmt.Sprintf("delete %d to %d", i, end-1), ps: slices.Delete(ps, i, end), must: []streams.OrderKind{streams.OrderGap}}
	case 1: // a copy of any message, anywhere after it on its chain
		i := r.IntN(n)
		last := n
		if i < firstLen {
			last = firstLen
		}
		at := i + 1 + r.IntN(last-i)
		return edit{name: fmt.Sprintf("copy %d to %d", i, at), ps: slices.Insert(ps, at, ps[i]), must: []streams.OrderKind{streams.OrderDuplicate}, healed: true}
	case 2: // two messages of one chain change places
		lo, hi := 0, firstLen
		if r.IntN(2) == 0 {
			lo, hi = firstLen, n
		}
		i, j := lo+r.IntN(hi-lo), lo+r.IntN(hi-lo)
		for i == j {
			j = lo + r.IntN(hi-lo)
		}
		ps[i], ps[j] = ps[j], ps[i]
		return edit{name: fmt.Sprintf("swap %d and %d", i, j), ps: ps, must: []streams.OrderKind{streams.OrderReorder}, may: []streams.OrderKind{streams.OrderGap}, healed: true}
	case 3: // a message of the first chain again, in the second one
		i, at := r.IntN(firstLen), firstLen+1+r.IntN(n-firstLen)
		return edit{name: fmt.Sprintf("splice %d into the next chain at %d", i, at), ps: slices.Insert(ps, at, ps[i]), must: []streams.OrderKind{streams.OrderSplice}, healed: true}
	case 4: // messages of a chain that was never read, before any but the first
		old := genuine(r, 5, 30)
		from := r.IntN(25)
		at := inner()
		return edit{
			name: fmt.Sprintf("splice an older chain from %d at %d", from, at), ps: slices.Insert(ps, at, old[from:from+1+r.IntN(5)]...),
			must: []streams.OrderKind{streams.OrderSplice}, may: []streams.OrderKind{streams.OrderGap},
		}
	default: // another history of the same chain
		i := inner()
		fork := ps[i]
		fork.Sequence += 1000
		fork.Previous = ps[i-1].Sequence
		return edit{name: fmt.Sprintf("fork after %d", i), ps: slices.Insert(ps, i+1, fork), must: []streams.OrderKind{streams.OrderSplice}, healed: true}
	}
}

// TestVerifierFindsEdits: every edit raises an alarm of its class, and none that
// it could not have.
func TestVerifierFindsEdits(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 10_000 {
		firstLen := 3 + r.IntN(30)
		ps := genuine(r, 10, firstLen, 3+r.IntN(30))
		e := randomEdit(r, slices.Clone(ps), firstLen)
		v := newVerifier(t, streams.VerifierConfig{})
		es := observe(t, v, e.ps)
		got := alarms(es)
		for _, k := range e.must {
			if !slices.Contains(got, k) {
				t.Fatalf("seed %d: %s: alarms %v, want %v\n%v", seed, e.name, got, k, es)
			}
		}
		for _, k := range got {
			if !slices.Contains(e.must, k) && !slices.Contains(e.may, k) {
				t.Fatalf("seed %d: %s: alarms %v, want %v only\n%v", seed, e.name, got, e.must, es)
			}
		}
		missing := 0
		for _, c := range v.State().Chains {
			missing += len(c.Missing)
		}
		if e.healed && missing > 0 || e.must[0] == streams.OrderGap && missing != 1 {
			t.Fatalf("seed %d: %s: missing ranges %+v", seed, e.name, v.State().Chains)
		}
		// All that comes after the edit is judged as before it.
		next := ps[len(ps)-1]
		next.Sequence, next.Previous, next.Gap = next.Sequence+5, next.Sequence, 0
		if es := observe(t, v, []streams.Place{next}); e.ps[len(e.ps)-1].Chain == next.Chain && len(es) > 0 {
			t.Fatalf("seed %d: %s: after it %v", seed, e.name, es)
		}
	}
}

func TestVerifierEvents(t *testing.T) {
	a := func(s, p uint64) streams.Place {
		return streams.Place{Chain: chainID(1), Sequence: s, Previous: p}
	}
	b := func(s, p uint64) streams.Place {
		return streams.Place{Chain: chainID(2), Sequence: s, Previous: p}
	}
	lossy := func(p streams.Place, n uint64) streams.Place { p.Gap = n; return p }
	tests := []struct {
		name string
		cfg  streams.VerifierConfig
		ps   []streams.Place
		want []string
	}{
		{"anchor in the middle", streams.VerifierConfig{}, []streams.Place{a(7, 6), a(9, 7)}, nil},
		{"beginning missing", streams.VerifierConfig{FromStart: true}, []streams.Place{a(7, 6), a(9, 7)}, []string{"gap 7 count 6"}},
		{"two missing at most", streams.VerifierConfig{}, []streams.Place{a(1, 0), a(4, 3)}, []string{"gap 4 count 2"}},
		{"late", streams.VerifierConfig{}, []streams.Place{a(1, 0), a(3, 2), a(2, 1), a(2, 1)}, []string{"gap 3 count 1", "reorder 2 count 0", "duplicate 2 count 0"}},
		{"before the anchor", streams.VerifierConfig{}, []streams.Place{a(3, 2), a(2, 1), a(4, 3)}, []string{"reorder 2 count 0"}},
		{"between linked neighbours", streams.VerifierConfig{}, []streams.Place{a(1, 0), a(9, 5), a(7, 5)}, []string{"gap 9 count 4", "splice 7 count 0"}},
		{"source loss", streams.VerifierConfig{}, []streams.Place{a(1, 0), lossy(a(9, 1), 7)}, []string{"source loss 9 count 7"}},
		{"source loss repeated", streams.VerifierConfig{}, []streams.Place{lossy(a(9, 1), 7), lossy(a(9, 1), 7)}, []string{"source loss 9 count 7", "duplicate 9 count 0"}},
		{"chain change", streams.VerifierConfig{}, []streams.Place{a(8, 7), b(3, 0), b(4, 3)}, []string{"chain change 3 count 0"}},
		{"chain change without beginning", streams.VerifierConfig{}, []streams.Place{a(8, 7), b(3, 2), b(4, 3)}, []string{"chain change 3 count 0", "gap 3 count 2"}},
		{"old chain repeated", streams.VerifierConfig{}, []streams.Place{a(8, 7), b(3, 0), a(8, 7), b(4, 3)}, []string{"chain change 3 count 0", "splice 8 count 0"}},
		{"old chain goes on", streams.VerifierConfig{}, []streams.Place{a(8, 7), b(3, 0), a(9, 8), a(10, 9)}, []string{"chain change 3 count 0", "splice 9 count 0"}},
		{"old chain goes on later", streams.VerifierConfig{}, []streams.Place{a(8, 7), b(3, 0), a(19, 18), a(20, 19)}, []string{"chain change 3 count 0", "splice 19 count 0", "gap 19 count 10"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, e := range observe(t, newVerifier(t, tt.cfg), tt.ps) {
				got = append(got, fmt.Sprintf("%v %d count %d", e.Kind, e.Sequence, e.Count))
				if e.String() == "" || e.Chain == (streams.ChainID{}) {
					t.Errorf("event %#v", e)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

// TestVerifierResumes: a verifier that is replaced at every message by one made of
// its marshalled state reports the same, whatever the stream, and no state it
// writes is refused or grows without bound.
func TestVerifierResumes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		var ps []streams.Place
		if rapid.Bool().Draw(rt, "wild") {
			for range 300 {
				s := 1 + r.Uint64N(400)
				ps = append(ps, streams.Place{Chain: chainID(r.Uint64N(20)), Sequence: s, Previous: s - 1 - r.Uint64N(min(s, 3))})
			}
		} else {
			ps = genuine(r, 1, 20, 20, 20)
			r.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
		}
		straight, err := streams.NewVerifier(nil, streams.VerifierConfig{})
		if err != nil {
			rt.Fatal(err)
		}
		resumed, _ := streams.NewVerifier(nil, streams.VerifierConfig{})
		for i, p := range ps {
			want, err := straight.Observe(streams.MessageAt(p))
			if err != nil {
				rt.Fatal(err)
			}
			b, err := json.Marshal(resumed.State())
			if err != nil || len(b) > 100<<10 {
				rt.Fatalf("state of %d bytes (%v)", len(b), err)
			}
			s, err := streams.ParseVerifierState(b)
			if err != nil {
				rt.Fatal(err)
			}
			if resumed, err = streams.NewVerifier(nil, streams.VerifierConfig{State: s}); err != nil {
				rt.Fatalf("message %d: %v\n%s", i, err, b)
			}
			got, err := resumed.Observe(streams.MessageAt(p))
			if err != nil {
				rt.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				rt.Fatalf("message %d (-straight +resumed):\n%s", i, diff)
			}
		}
	})
}

func BenchmarkVerifier(b *testing.B) {
	ps := genuine(rand.New(rand.NewPCG(1, 1)), 1, 10_000)
	ms := make([]*streams.Message, len(ps))
	for i, p := range ps {
		p.Gap = 0
		ms[i] = streams.MessageAt(p)
	}
	b.ReportAllocs()
	for b.Loop() {
		v := newVerifier(b, streams.VerifierConfig{})
		for _, m := range ms {
			if es, err := v.Observe(m); es != nil || err != nil {
				b.Fatal(es, err)
			}
		}
	}
}
