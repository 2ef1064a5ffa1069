package gateway_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/internal/natstest"
)

// withPoison relays ten messages of a route that keeps its source: 2, 5, 6 and 10
// are parked, 5 in two parts.
func withPoison(t *testing.T) *fixture {
	t.Helper()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	f.route.Source.AfterSeal = gateway.AfterSealKeep
	reject(f)
	p := poisons()
	for i := 1; i <= 10; i++ {
		switch i {
		case 2, 6, 10:
			f.put(p["reserved"].msg)
		case 5:
			f.put(p["too large, in parts"].msg)
		default:
			f.publish(i, i)
		}
	}
	f.relayAll(10)
	return f
}

// relayAll runs the route until its position is at a sequence.
func (f *fixture) relayAll(position uint64) {
	f.t.Helper()
	run := f.start()
	run.eventually("relayed", func(s gatewayStats) bool { return s.State == gateway.StateRunning && s.Position == position })
	if err := run.stop(); err != nil {
		f.t.Fatalf("Run = %v", err)
	}
}

// letterOf returns the subject of a part of the dead letter of a source message.
func (f *fixture) letterOf(seq uint64, part int) string {
	f.t.Helper()
	return deadletter.Position{Route: "r", Chain: f.open()[0].meta.Chain, Sequence: seq}.Subject("deadletters", part)
}

// lose deletes what is on a subject of the dead-letter stream.
func (f *fixture) lose(subject string) {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), letters)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(f.t.Context(), subject)
	if err == nil {
		err = s.DeleteMsg(f.t.Context(), m.Sequence)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// replace puts another message in the place of a dead letter, with headers of its.
func (f *fixture) replace(subject string, data string, change func(nats.Header)) {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), letters)
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(f.t.Context(), subject)
	if err != nil {
		f.t.Fatal(err)
	}
	h := nats.Header{}
	for name, v := range m.Header {
		if !strings.HasPrefix(name, "Nats-") {
			h[name] = v
		}
	}
	change(h)
	if _, err := f.js.PublishMsg(f.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: []byte(data)}); err != nil {
		f.t.Fatal(err)
	}
}

// What was parked goes with what was sealed around it, and behind it; what was not
// looked at yet stays.
func TestPurgeParked(t *testing.T) {
	t.Parallel()
	f := withPoison(t)
	f.publish(11, 12)
	f.put(poisons()["reserved"].msg)
	want := gateway.PurgeReport{
		Route: "r", Source: source, Subjects: []string{"in.>"}, Sealed: sealed, Position: 10, UpTo: 10, Messages: 10, Parked: 4,
	}
	got, err := f.purge(dryRun)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	want.Purged = true
	if got, err = f.purge(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&want, got); d != "" {
		t.Error(d)
	}
	if s := f.info(source).State; s.Msgs != 3 || s.FirstSeq != 11 {
		t.Errorf("source holds %d messages from %d on, want the 3 later ones", s.Msgs, s.FirstSeq)
	}
	f.relayAll(13)
	if got, err = f.purge(); err != nil || got.Messages != 3 || got.Parked != 1 || !got.Purged {
		t.Errorf("Purge = %+v, %v", got, err)
	}
	if got := len(f.letters()); got != 5 {
		t.Errorf("%d dead letters after the purges, want 5", got)
	}
}

// Only what is whole, and of this very message, is a copy.
func TestPurgeParkedRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fixture)
		seq    int // the message without a copy; 0: all have one
	}{
		"sent back": {func(f *fixture) {
			f.replace(f.letterOf(6, 1), "", func(h nats.Header) { h.Set(deadletter.HeaderRetried, "2026-01-02T15:04:05Z") })
		}, 0},
		"sent back, in parts": {func(f *fixture) {
			f.replace(f.letterOf(5, 1), "", func(h nats.Header) { h.Set(deadletter.HeaderRetried, "2026-01-02T15:04:05Z") })
			f.lose(f.letterOf(5, 2))
		}, 0},
		"gone":        {func(f *fixture) { f.lose(f.letterOf(6, 1)) }, 6},
		"a part gone": {func(f *fixture) { f.lose(f.letterOf(5, 2)) }, 5},
		"a part forged": {func(f *fixture) {
			f.replace(f.letterOf(5, 2), "x", func(h nats.Header) { h.Del(deadletter.HeaderProof) })
		}, 5},
		"forged": {func(f *fixture) { f.replace(f.letterOf(2, 1), "forged", func(nats.Header) {}) }, 2},
		"without parts": {func(f *fixture) {
			f.replace(f.letterOf(2, 1), "", func(h nats.Header) { h.Del(deadletter.HeaderPart); h.Del(deadletter.HeaderProof) })
		}, 2},
		"of another message": {func(f *fixture) {
			to := f.letterOf(2, 1)
			s, err := f.js.Stream(f.t.Context(), letters)
			if err != nil {
				f.t.Fatal(err)
			}
			m, err := s.GetLastMsgForSubject(f.t.Context(), f.letterOf(6, 1))
			if err != nil {
				f.t.Fatal(err)
			}
			f.replace(to, string(m.Data), func(h nats.Header) { h[deadletter.HeaderProof] = m.Header[deadletter.HeaderProof] })
		}, 2},
		"stream gone": {func(f *fixture) {
			if err := f.js.DeleteStream(f.t.Context(), letters); err != nil {
				f.t.Fatal(err)
			}
		}, 2},
		"no dead letters configured": {func(f *fixture) { f.route.DeadLetters = nil }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := withPoison(t)
			c.change(f)
			if c.seq == 0 {
				if got, err := f.purge(); err != nil || got.Messages != 10 || got.Parked != 4 {
					t.Errorf("Purge = %+v, %v", got, err)
				}
				f.sourceEmpty()
				return
			}
			if err := f.purgeRefused(gateway.ErrUnsealed); !strings.Contains(err.Error(), fmt.Sprintf("from sequence %d on", c.seq)) {
				t.Errorf("Purge = %v, want it to name message %d", err, c.seq)
			}
		})
	}
}

// A source that was rolled back holds another message where one was parked: the
// position stands there, though the last sealed message is an older one.
func TestParkedOfRestoredSource(t *testing.T) {
	t.Parallel()
	f := newRollback(t, source)
	f.route.DeadLetters = &gateway.DeadLetters{Stream: letters, Create: &gateway.CreateSealed{}}
	f.keys.set(func() { f.keys.rules = newPoisonRules() })
	reject(f.fixture)
	f.publish(1, 5)
	f.save()
	f.put(poisons()["reserved"].msg)
	f.relayAll(6)
	f.back()
	f.publish(6, 6)
	f.publish(7, 7)
	f.purgeRefused(gateway.ErrSourceChanged)
	if err := f.start().stopped(gateway.ErrSourceChanged); !strings.Contains(err.Error(), "message 6 of stream") {
		t.Errorf("stopped with %v, want it to name message 6", err)
	}
}

// A dead letter younger than the sync interval holds back all behind it.
func TestPurgeParkedYoung(t *testing.T) {
	t.Parallel()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	f.route.Source.AfterSeal = gateway.AfterSealKeep
	f.route.Sealed.Create.Storage = gateway.MemoryStorage // nothing to wait for
	reject(f)
	f.publish(1, 2)
	f.put(poisons()["reserved"].msg)
	f.publish(4, 5)
	f.put(poisons()["reserved"].msg)
	f.relayAll(6)
	f.route.Sealed.SyncInterval = time.Hour
	if got, err := f.purge(); err != nil || got.UpTo != 2 || got.Messages != 2 || got.Parked != 0 || got.Young != 3 {
		t.Errorf("Purge = %+v, %v, want the two before the first dead letter", got, err)
	}
	f.route.Sealed.SyncInterval = gateway.SyncAlways
	if got, err := f.purge(); err != nil || got.UpTo != 6 || got.Messages != 4 || got.Parked != 2 {
		t.Errorf("Purge = %+v, %v, want the rest", got, err)
	}
}

// Each partition parks what is its own, and is purged of just that. Two instances
// share the partitions, and one is killed.
func TestPartitionedDeadLetters(t *testing.T) {
	t.Parallel()
	const parts, n, every = 3, 600, 20
	f := partitioned(t, parts, jetstream.StreamConfig{})
	f.keys.set(func() { f.keys.rules = newPoisonRules() })
	f.route.DeadLetters = &gateway.DeadLetters{Stream: letters, Create: &gateway.CreateSealed{Storage: gateway.MemoryStorage}}
	reject(f)
	var want []uint64
	put := func(from, to int) {
		for i := from; i <= to; i++ {
			m := &nats.Msg{Subject: partSubject(i), Data: payloadOf(i)}
			if i%every == 0 {
				m.Header = nats.Header{"keyweir-x": {"1"}}
				want = append(want, f.put(m))
				continue
			}
			f.put(m)
		}
	}
	killed := f.another()
	a, b := f.startRoute(killed), f.startRoute(f.another())
	f.shares(10*time.Second, []*running{a, b}, 1, 2)
	put(1, n/2)
	killed.Source.Conn.Close()
	killed.Sealed.Conn.Close()
	put(n/2+1, n)
	streams := streamNames(sealed+"-", parts)
	natstest.Eventually(t, 30*time.Second, func() error {
		total := uint64(0)
		for _, s := range streams {
			total += f.info(s).State.Msgs
		}
		if got := f.info(letters).State.Msgs; total != n-n/every || got != n/every {
			return fmt.Errorf("%d sealed, %d parked", total, got)
		}
		return nil
	})
	a.stop()
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}

	// One chain and one partition each, and order per subject.
	chains := make(map[string]map[string]bool)
	last := make(map[string]uint64)
	var parked []uint64
	for _, l := range f.letters() {
		parked = append(parked, l.Sequence)
		if string(l.Data) != string(payloadOf(int(l.Sequence))) || l.Subject != partSubject(int(l.Sequence)) {
			t.Errorf("dead letter %d holds %q from %s", l.Sequence, l.Data, l.Subject)
		}
		if l.Sequence <= last[l.Subject] {
			t.Errorf("dead letter %d on %s came after %d", l.Sequence, l.Subject, last[l.Subject])
		}
		last[l.Subject] = l.Sequence
		if chains[l.Chain] == nil {
			chains[l.Chain] = make(map[string]bool)
		}
		chains[l.Chain][l.Subject] = true
	}
	slices.Sort(parked)
	if !slices.Equal(parked, want) {
		t.Errorf("dead letters of %v, want %v", parked, want)
	}
	for i, filters := range f.route.Source.Partitions {
		chain := openStream(t, f.js, f.keys, streams[i])[0].meta.Chain.String()
		for s := range chains[chain] {
			if !slices.Contains(filters, strings.TrimSuffix(s, ".x")+".>") {
				t.Errorf("partition %d parked a message on %s", i, s)
			}
		}
		delete(chains, chain)
	}
	if len(chains) != 0 {
		t.Errorf("dead letters on chains of no partition: %v", chains)
	}

	left := uint64(n)
	var sum uint64
	for i := range parts {
		got, err := f.purge(func(c *gateway.PurgeConfig) { c.Partition = i })
		if err != nil {
			t.Fatalf("partition %d: %v", i, err)
		}
		if got.Messages != n/parts || !got.Purged {
			t.Errorf("partition %d: %+v, want %d messages", i, got, n/parts)
		}
		sum += got.Parked
		left -= got.Messages
		if s := f.info(source).State.Msgs; s != left {
			t.Errorf("%d source messages after partition %d, want %d", s, i, left)
		}
	}
	if sum != n/every {
		t.Errorf("%d purged for their dead letters, want %d", sum, n/every)
	}
}
