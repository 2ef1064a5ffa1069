package sealedcheck_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/sealedcheck"
)

// TestForgetsReleased: more rows of messages were held back than chains are
// followed. The report says so and finds nothing wrong, save what is.
func TestForgetsReleased(t *testing.T) {
	const rows, rounds = 40, 3
	main, err := envelope.ParseChainID(strings.Repeat("ab", 16))
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t)
	ms := sealed(t, 2+rows*rounds+2, true)
	place := func(i int, c envelope.ChainID, seq, previous uint64) *nats.Msg {
		setSource(ms[i], c.String(), seq, previous)
		return ms[i]
	}
	in := []*nats.Msg{place(0, main, 1, 0), place(1, main, 2, 1)}
	for round := range rounds {
		for row := range rows {
			seq, previous := uint64(10+row+round*rows), uint64(0)
			if round > 0 {
				previous = seq - rows
			}
			in = append(in, place(len(in), envelope.ReleaseChain(main, uint64(10+row)), seq, previous))
		}
	}
	limit := func(o *sealedcheck.Options) { o.Limits.Chains = 8 }
	r := s.check(s.stream(in), limit)
	if !r.OK || len(r.Chains) > 8 || r.ChainsMore == 0 {
		t.Errorf("a genuine stream: %s, %d chains and %d more", r.Wrong(), len(r.Chains), r.ChainsMore)
	}
	if !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "held back") }) {
		t.Errorf("the report hides that it could not follow all: %q", r.Notes)
	}
	late := envelope.ReleaseChain(main, 1000)
	in = append(in, place(len(in), late, 1010, 1000), place(len(in)+1, late, 1030, 1020))
	if r := s.check(s.stream(in), limit); r.Counts[sealedcheck.Link] != 2 || len(r.Counts) != 1 {
		t.Errorf("with two messages missing: %+v", r.Findings)
	}
}
