package streams_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/streams"
)

// at is a message of a chain in an open stream; without a link unless it says so.
func at(chain byte, seq uint64, previous ...uint64) *streams.Message {
	p := streams.Place{Chain: streams.ChainID{chain}, Sequence: seq, Previous: math.MaxUint64}
	if len(previous) > 0 {
		p.Previous = previous[0]
	}
	return streams.MessageAt(p)
}

// TestVerifierOpen: chains alternate; without links what is missing means nothing,
// what comes twice or late does.
func TestVerifierOpen(t *testing.T) {
	steps := []struct {
		m    *streams.Message
		want string
	}{
		{at('a', 1), ""},
		{at('b', 1), ""},
		{at('a', 2), ""},
		{at('a', 5), ""},          // 3 and 4 were duplicates, or are still to come
		{at('b', 1), "duplicate"}, // replayed
		{at('a', 4), "reorder"},   // it was not a duplicate after all
		{at('a', 4), "duplicate"}, //
		{at('c', 1, 0), ""},       // an application that seals keeps its links
		{at('b', 2), ""},          //
		{at('c', 4, 3), "gap"},    // and so it shows what is missing
		{at('c', 5, 2), "splice"}, // it denies the message before
		{at('a', 3), "reorder"},   //
		{at('a', 6), ""},          //
		{at('d', 9), ""},          // a writer whose beginning was not read
		{at('d', 8), "reorder"},   //
		{at('d', 11, 10), "gap"},  // a link counts wherever it is
		{at('c', 5, 4), ""},       //
		{at('a', 6), "duplicate"}, //
		{at('b', 100000), ""},     //
		{at('b', 99999), "reorder"},
		/* late, and proven so */ {at('b', 99999), "duplicate"},
	}
	cfg := streams.VerifierConfig{Open: true}
	v, err := streams.NewVerifier(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range steps {
		events, err := v.Observe(s.m)
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		got := ""
		for _, e := range events {
			got += e.Kind.String()
		}
		if got != s.want {
			t.Errorf("step %d: %q, want %q", i, got, s.want)
		}
		// Whoever stops anywhere goes on as if he had not.
		b, err := json.Marshal(v.State())
		if err != nil {
			t.Fatal(err)
		}
		state, err := streams.ParseVerifierState(b)
		if err != nil {
			t.Fatal(err)
		}
		cfg.State = state
		if v, err = streams.NewVerifier(nil, cfg); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		if d := cmp.Diff(*state, v.State()); d != "" {
			t.Fatalf("step %d: restored state (-want +got):\n%s", i, d)
		}
	}
	closed := cfg
	closed.Open = false
	if _, err := streams.NewVerifier(nil, closed); !errors.Is(err, streams.ErrNoOrder) {
		t.Errorf("an open state in a closed Verifier: %v", err)
	}
}

// TestVerifierOpenBounds: more writers than it remembers are no error, and memory
// stays bounded.
func TestVerifierOpenBounds(t *testing.T) {
	v, err := streams.NewVerifier(nil, streams.VerifierConfig{Open: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		m := streams.MessageAt(streams.Place{Chain: streams.ChainID{byte(i), byte(i >> 8)}, Sequence: uint64(i + 1), Previous: math.MaxUint64})
		if events, err := v.Observe(m); err != nil || len(events) != 0 {
			t.Fatalf("writer %d: %v, %v", i, events, err)
		}
	}
	if n := len(v.State().Chains); n != 256 {
		t.Errorf("%d chains remembered, want 256", n)
	}
}

// TestVerifierNotOpen: a stream that is not declared open has no place for
// messages without links, and an open one none for what it cannot have.
func TestVerifierNotOpen(t *testing.T) {
	v, err := streams.NewVerifier(nil, streams.VerifierConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Observe(at('a', 1)); !errors.Is(err, streams.ErrNoOrder) {
		t.Errorf("Observe = %v, want ErrNoOrder", err)
	}
	if v.State().Observed != 0 {
		t.Error("the refused message was observed")
	}
	for i, cfg := range []streams.VerifierConfig{{Open: true, Link: streams.LinkSubject}, {Open: true, FromStart: true}} {
		if _, err := streams.NewVerifier(nil, cfg); !errors.Is(err, streams.ErrNoOrder) {
			t.Errorf("%s: %v, want ErrNoOrder", fmt.Sprint(i), err)
		}
	}
	open, err := streams.NewVerifier(nil, streams.VerifierConfig{Open: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.Observe(at('a', 0)); !errors.Is(err, streams.ErrNoOrder) {
		t.Errorf("a message without a sequence: %v", err)
	}
}
