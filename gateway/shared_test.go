package gateway_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/sealedcheck"
)

// shared makes a fixture whose n partitions share one sealed stream.
func shared(t *testing.T, n int, cfg jetstream.StreamConfig) *fixture {
	t.Helper()
	f := partitioned(t, n, cfg)
	f.route.Sealed.Shared = true
	return f
}

// sealedShared waits until the shared stream holds so many sealed messages.
func (f *fixture) sealedShared(want int, within time.Duration) {
	f.t.Helper()
	natstest.Eventually(f.t, within, func() error {
		s, err := f.js.Stream(f.t.Context(), sealed)
		if err != nil {
			return err
		}
		info, err := s.Info(f.t.Context(), jetstream.WithSubjectFilter(checkpoint.Pattern(sealed)))
		if err != nil {
			return err
		}
		state := info.State
		if got := int(state.Msgs) - len(state.Subjects); got != want {
			return fmt.Errorf("%d messages sealed, want %d", got, want)
		}
		return nil
	})
}

// verifyShared checks that the shared stream holds messages from..to once, each
// partition on one unbroken chain that its checkpoint ends, each subject in order,
// and that a check without keys agrees.
func (f *fixture) verifyShared(from, to int) {
	f.t.Helper()
	var chains []string
	parts := make(map[string][]opened)
	seen, last := make(map[int]bool), make(map[string]int)
	for _, o := range f.open() {
		n, err := strconv.Atoi(strings.TrimPrefix(o.payload, "m"))
		if err != nil || n < from || n > to || o.meta.OriginSubject != partSubject(n) {
			f.t.Fatalf("%d is %q from %s", o.seq, o.payload, o.meta.OriginSubject)
		}
		if seen[n] {
			f.t.Fatalf("%q is there twice", o.payload)
		}
		if n < last[o.subject] {
			f.t.Fatalf("%q on %s comes after m%d", o.payload, o.subject, last[o.subject])
		}
		seen[n], last[o.subject] = true, n
		chain := o.meta.Chain.String()
		if !slices.Contains(chains, chain) {
			chains = append(chains, chain)
		}
		parts[chain] = append(parts[chain], o)
	}
	if len(seen) != to-from+1 {
		f.t.Errorf("%d messages, want %d", len(seen), to-from+1)
	}
	for _, p := range parts {
		checkChain(f.t, p)
	}
	if len(parts) > len(f.route.Source.Partitions) {
		f.t.Errorf("%d chains for %d partitions", len(parts), len(f.route.Source.Partitions))
	}
	f.checkSealed()
}

// checkSealed looks at the sealed stream as "keyweir verify" does.
func (f *fixture) checkSealed() {
	f.t.Helper()
	r, err := sealedcheck.Check(f.t.Context(), f.js.Conn(), sealedcheck.Options{Stream: sealed})
	if err != nil {
		f.t.Fatal(err)
	}
	if !r.OK {
		f.t.Errorf("a check without keys: %s\n%+v", r.Wrong(), r.Findings)
	}
}

// lastCheckpoint is the last checkpoint of a partition; nil if there is none.
func (f *fixture) lastCheckpoint(partition uint32) *jetstream.RawStreamMsg {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), sealed)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(f.t.Context(), checkpoint.Subject(sealed, partition))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

// run starts a gateway, and waits until it holds all partitions.
func (f *fixture) startShared() *running {
	f.t.Helper()
	run := f.startRoute(f.another())
	f.shares(15*time.Second, []*running{run}, len(f.route.Source.Partitions))
	return run
}

func (f *fixture) stopAll(runs ...*running) {
	f.t.Helper()
	for _, r := range runs {
		if err := r.stop(); err != nil {
			f.t.Errorf("Run = %v", err)
		}
	}
}

func TestShared(t *testing.T) {
	t.Parallel()
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			t.Parallel()
			f := shared(t, 3, jetstream.StreamConfig{Retention: retention})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.publishParts(1, 3000)
			run := f.startShared()
			f.sealedShared(3000, 20*time.Second)
			f.publishParts(3001, 3010)
			f.sealedShared(3010, 20*time.Second)
			f.sourceEmpty()
			f.stopAll(run)
			f.verifyShared(1, 3010)

			again := f.startShared()
			f.publishParts(3011, 3500)
			f.sealedShared(3500, 20*time.Second)
			f.sourceEmpty()
			f.stopAll(again)
			f.verifyShared(1, 3500)
		})
	}
}
