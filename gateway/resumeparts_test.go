package gateway_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

// Two of three partitions stop; each is told by itself where to resume, and starts
// again with its route, once.
func TestResumePartitions(t *testing.T) {
	t.Parallel()
	const parts = 3
	f := partitioned(t, parts, jetstream.StreamConfig{})
	f.relayParts(60)
	forged := make(map[string]uint64)
	for i := range 2 {
		a, err := f.js.Publish(t.Context(), fmt.Sprintf("sealed.in.%d.x", i), []byte("forged"))
		if err != nil {
			t.Fatal(err)
		}
		forged[a.Stream] = a.Sequence
	}
	f.publishParts(61, 120)
	states := func(run *running, want ...gateway.State) {
		t.Helper()
		natstest.Eventually(t, 30*time.Second, func() error {
			var got []gateway.State
			for _, s := range run.g.Stats() {
				got = append(got, s.State)
			}
			if d := cmp.Diff(want, got); d != "" {
				return errors.New(d)
			}
			return nil
		})
	}
	const stopped, works = gateway.StateStopped, gateway.StateRunning
	run := f.start()
	states(run, stopped, stopped, works)

	f.route.ResumePartitions = map[int]uint64{0: 61}
	if d := cmp.Diff(gateway.Changes{Restarted: []string{"r"}}, run.reconfigure(nil, f.route)); d != "" {
		t.Error(d)
	}
	states(run, works, stopped, works)
	f.route.ResumePartitions = map[int]uint64{0: 61, 1: 61}
	if d := cmp.Diff(gateway.Changes{Restarted: []string{"r"}}, run.reconfigure(nil, f.route)); d != "" {
		t.Error(d)
	}
	states(run, works, works, works)
	if d := cmp.Diff(gateway.Changes{Unchanged: []string{"r"}}, run.reconfigure(nil, f.route)); d != "" {
		t.Error(d)
	}
	streams := streamNames(sealed+"-", parts)
	f.sealedParts(120+len(forged), streams...)

	// Forged once more, the same answer does not count again.
	if _, err := f.js.Publish(t.Context(), "sealed.in.0.x", []byte("forged")); err != nil {
		t.Fatal(err)
	}
	f.publishParts(121, 144)
	states(run, stopped, works, works)
	run.reconfigure(nil, f.route)
	states(run, stopped, works, works)
	if err := run.stop(); !errors.Is(err, gateway.ErrPosition) {
		t.Errorf("Run = %v, want partition 0 stopped", err)
	}

	seen := make(map[string]int)
	for _, name := range streams[1:] {
		if seq, ok := forged[name]; ok {
			s, err := f.js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.DeleteMsg(t.Context(), seq); err != nil {
				t.Fatal(err)
			}
		}
		for _, o := range openStream(t, f.js, f.keys, name) {
			seen[o.payload]++
		}
	}
	for i := 1; i <= 144; i++ {
		want := 1
		if i%subjectsOfParts%parts == 0 { // of partition 0
			want = 0
		}
		if got := seen[string(payloadOf(i))]; got != want {
			t.Errorf("message %d is sealed %d times in partitions 1 and 2, want %d", i, got, want)
		}
	}
}

func TestResumePartitionsConfig(t *testing.T) {
	t.Parallel()
	f := partitioned(t, 2, jetstream.StreamConfig{})
	one := uint64(1)
	for name, change := range map[string]func(*gateway.Route){
		"sequence 0":    func(r *gateway.Route) { r.ResumePartitions = map[int]uint64{0: 0} },
		"no partition":  func(r *gateway.Route) { r.ResumePartitions = map[int]uint64{2: 1} },
		"negative":      func(r *gateway.Route) { r.ResumePartitions = map[int]uint64{-1: 1} },
		"and the route": func(r *gateway.Route) { r.ResumePartitions, r.ResumeFrom = map[int]uint64{0: 1}, &one },
		"no partitions": func(r *gateway.Route) {
			r.ResumePartitions, r.Source.Partitions, r.Source.Subjects = map[int]uint64{0: 1}, nil, []string{"in.>"}
		},
	} {
		r := f.route
		change(&r)
		if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: f.keys}); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("%s: New = %v, want ErrConfig", name, err)
		}
	}
}
