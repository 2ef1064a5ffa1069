package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/sealedcheck"
	"github.com/keyweir/keyweir/keysvc"
)

const holdStream = sealed + "_HOLD"

// newHoldFixture is a route over 50 scopes that holds.
func newHoldFixture(t *testing.T, cfg jetstream.StreamConfig) *fixture {
	f := newFixture(t, cfg)
	f.route.Hold = &gateway.Hold{Create: &gateway.CreateSealed{}}
	return f
}

// tenants is how many scopes publishTenants uses, with three subjects each.
const tenants = 50

func tenantSubject(i int) string {
	return "in.t" + strconv.Itoa(i%tenants) + ".s" + strconv.Itoa(i/tenants%3)
}

func tenant(i int) string { return "tenant/t" + strconv.Itoa(i) }

// publishTenants stores messages from..to, round the scopes.
func (f *fixture) publishTenants(from, to int) {
	f.t.Helper()
	for i := from; i <= to; i++ {
		if _, err := f.js.PublishAsync(tenantSubject(i), payloadOf(i), jetstream.WithStallWait(20*time.Second)); err != nil {
			f.t.Fatalf("publishing: %v", err)
		}
	}
	select {
	case <-f.js.PublishAsyncComplete():
	case <-time.After(20 * time.Second):
		f.t.Fatal("publishing did not complete")
	}
}

// refuse makes the key service refuse scopes, nil allows them again.
func (f *fixture) refuse(err error, scopes ...string) {
	f.keys.set(func() {
		if f.keys.refuse == nil {
			f.keys.refuse = make(map[string]error)
		}
		for _, s := range scopes {
			f.keys.refuse[s] = err
		}
	})
}

// verifyTenants checks that messages 1..n are sealed once each, in order per scope,
// with links that a reader accepts, and that those without were held fit.
func (f *fixture) verifyTenants(n int) []opened {
	f.t.Helper()
	var got []opened
	for _, s := range f.sealedStreams() {
		got = append(got, openStream(f.t, f.js, f.keys, s)...)
	}
	if len(got) != n {
		f.t.Errorf("%d sealed messages, want %d", len(got), n)
	}
	seen := make(map[string]bool, n)
	last := make(map[string]int)
	chains := make(map[string]uint64) // last sequence of each chain
	for _, o := range got {
		i, err := strconv.Atoi(strings.TrimPrefix(o.payload, "m"))
		if err != nil || seen[o.payload] {
			for _, other := range got {
				if other.payload == o.payload {
					f.t.Logf("sealed message %d on %s: %v", other.seq, other.subject, other.header[gateway.HeaderSource])
				}
			}
			f.t.Fatalf("sealed message %d: %q a second time", o.seq, o.payload)
		}
		seen[o.payload] = true
		if o.meta.OriginSubject != tenantSubject(i) || o.subject != "sealed."+tenantSubject(i) {
			f.t.Fatalf("sealed message %d: %q from %s on %s", o.seq, o.payload, o.meta.OriginSubject, o.subject)
		}
		scope := tenant(i % tenants)
		if i < last[scope] {
			f.t.Fatalf("sealed message %d: %d of %s comes after %d", o.seq, i, scope, last[scope])
		}
		last[scope] = i
		chain := o.meta.Chain.String()
		if o.meta.Previous != chains[chain] || o.meta.Sequence <= o.meta.Previous {
			f.t.Fatalf("sealed message %d, source message %d of chain %s, follows %d, not %d", o.seq, o.meta.Sequence, chain, o.meta.Previous, chains[chain])
		}
		chains[chain] = o.meta.Sequence
	}
	return got
}

// sealedStreams and holdStreams are those of the fixture's route.
func (f *fixture) sealedStreams() []string {
	if n := len(f.route.Source.Partitions); n > 0 {
		return streamNames(sealed+"-", n)
	}
	return []string{sealed}
}

func (f *fixture) holdStreams() []string {
	if n := len(f.route.Source.Partitions); n > 0 {
		return streamNames(holdStream+"-", n)
	}
	return []string{holdStream}
}

// holdEmpty waits until the hold streams have nothing more.
func (f *fixture) holdEmpty() {
	f.t.Helper()
	natstest.Eventually(f.t, 30*time.Second, func() error {
		for _, s := range f.holdStreams() {
			if n := f.info(s).State.Msgs; n != 0 {
				return fmt.Errorf("%d messages in stream %s", n, s)
			}
		}
		return nil
	})
}

// tenantPartitions deals the subjects of publishTenants out to n partitions.
func tenantPartitions(n int) [][]string {
	out := make([][]string, n)
	for i := range tenants {
		out[i%n] = append(out[i%n], fmt.Sprintf("in.t%d.>", i))
	}
	return out
}

// sealedTenants waits until n messages are sealed, in all partitions.
func (f *fixture) sealedTenants(n int) {
	f.t.Helper()
	natstest.Eventually(f.t, 60*time.Second, func() error {
		got := uint64(0)
		for _, s := range f.sealedStreams() {
			stream, err := f.js.Stream(f.t.Context(), s)
			if err != nil {
				return err // not made yet
			}
			got += stream.CachedInfo().State.LastSeq
		}
		if got < uint64(n) {
			return fmt.Errorf("%d messages sealed, want %d", got, n)
		}
		return nil
	})
}

// One of 50 scopes is denied for a while under load.
func TestHold(t *testing.T) {
	for _, retention := range []jetstream.RetentionPolicy{jetstream.LimitsPolicy, jetstream.WorkQueuePolicy} {
		t.Run(retention.String(), func(t *testing.T) {
			f := newHoldFixture(t, jetstream.StreamConfig{Retention: retention})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			run := f.start()
			f.publishTenants(1, 1000)
			f.sealedCount(1000, 10*time.Second)
			f.keys.set(func() { f.keys.lease = 200 * time.Millisecond })
			if err := run.stop(); err != nil { // ends the sessions with long leases
				t.Fatal(err)
			}
			run = f.start()
			f.refuse(keysvc.ErrDenied, tenant(7))
			for i := range 5 {
				f.publishTenants(1001+i*1000, 2000+i*1000)
				// Everything of the others is sealed; the denied scope has one in 50.
				run.eventually("held", func(s gatewayStats) bool {
					return s.Position == uint64(2000+i*1000) && s.SealedSequence+s.MessagesHeld == s.Position
				})
			}
			s := run.stats()
			if s.ScopesHeld != 1 || s.MessagesHeld == 0 || s.MessagesHeld > 100 || s.State != gateway.StateRunning {
				t.Errorf("stats while held: %+v", s)
			}
			f.sourceEmpty() // although messages are held
			for _, m := range f.raw(holdStream) {
				for i := 1007; i <= 6000; i += tenants {
					if bytes.Contains(m, payloadOf(i)) {
						t.Errorf("payload %s stands in the hold stream in clear", payloadOf(i))
					}
				}
			}
			f.refuse(nil, tenant(7))
			f.publishTenants(6001, 7000)
			f.sealedCount(7000, 10*time.Second)
			f.holdEmpty()
			run.eventually("nothing held", func(s gatewayStats) bool { return s.ScopesHeld == 0 && s.MessagesHeld == 0 })
			f.sourceEmpty()
			f.verifyTenants(7000)
			r, err := sealedcheck.Check(t.Context(), f.srv.Conn(t), sealedcheck.Options{Stream: sealed})
			if err != nil || r.Wrong() != "" || len(r.Chains) != 2 || !r.Chains[1].Released {
				t.Errorf("Check = %+v, %v", r, err)
			}
		})
	}
}

// raw reads the payloads of a stream.
func (f *fixture) raw(stream string) (out [][]byte) {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), stream)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := s.OrderedConsumer(f.t.Context(), jetstream.OrderedConsumerConfig{})
	if err != nil {
		f.t.Fatal(err)
	}
	b, err := c.FetchNoWait(int(s.CachedInfo().State.Msgs))
	if err != nil {
		f.t.Fatal(err)
	}
	for m := range b.Messages() {
		out = append(out, m.Data())
	}
	if uint64(len(out)) != s.CachedInfo().State.Msgs || len(out) == 0 {
		f.t.Fatalf("read %d messages of stream %s, want %d", len(out), stream, s.CachedInfo().State.Msgs)
	}
	return out
}

// Gateways are killed at random points while several scopes come and go.
func TestHoldKilled(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 8
	}
	for _, c := range []struct {
		retention  jetstream.RetentionPolicy
		partitions int
	}{{jetstream.LimitsPolicy, 0}, {jetstream.WorkQueuePolicy, 0}, {jetstream.LimitsPolicy, 3}, {jetstream.WorkQueuePolicy, 3}, {jetstream.InterestPolicy, 2}} {
		if testing.Short() && (c.partitions == 2 || (c.partitions == 3) != (c.retention == jetstream.WorkQueuePolicy)) {
			t.Logf("short: not %d partitions of a source with %v retention", c.partitions, c.retention)
			continue
		}
		t.Run(fmt.Sprintf("%v,%d", c.retention, c.partitions), func(t *testing.T) {
			t.Parallel() // waits for most of its time
			f := newHoldFixture(t, jetstream.StreamConfig{Retention: c.retention, Storage: jetstream.MemoryStorage})
			if c.partitions > 0 {
				f.route.Source.Subjects, f.route.Source.Partitions = nil, tenantPartitions(c.partitions)
			}
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.route.Sealed.Create.Storage, f.route.Hold.Create.Storage = gateway.MemoryStorage, gateway.MemoryStorage
			f.tune.ClaimTTL = 300 * time.Millisecond
			f.keys.lease = 30 * time.Millisecond
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 1))
			n, held, releasing := 0, 0, 0
			if c.retention == jetstream.InterestPolicy { // which drops what nobody waits for
				first := f.start()
				f.shares(30*time.Second, []*running{first}, c.partitions)
				if err := first.stop(); err != nil {
					t.Fatal(err)
				}
			}
			// On a slow machine it takes more of them until a gateway gets so far.
			for round := 0; round < rounds || (held == 0 || releasing == 0) && round < 10*rounds; round++ {
				for i := range 6 { // six scopes come and go
					if rnd.IntN(2) == 0 {
						f.refuse([]error{keysvc.ErrDenied, keysvc.ErrSuspended, keysvc.ErrUnavailable, nil}[rnd.IntN(4)], tenant(i*7))
					}
				}
				conn := f.srv.Conn(t)
				f.route.Source.Conn, f.route.Sealed.Conn = conn, conn
				run := f.start()
				more := 200 + rnd.IntN(1500)
				done := make(chan struct{})
				go func(from int) {
					defer close(done)
					f.publishTenants(from, from+more-1)
				}(n + 1)
				n += more
				back := tenant(rnd.IntN(6) * 7)
				time.AfterFunc(time.Duration(rnd.IntN(300))*time.Millisecond, func() { f.refuse(nil, back) })
				until := time.Now().Add(time.Duration(20+rnd.IntN(400)+10*round) * time.Millisecond)
				natstest.Eventually(t, 10*time.Second, func() error {
					stopped := false
					for _, s := range run.g.Stats() {
						if s.ScopesHeld > 0 {
							held++
						}
						if s.ScopesHeld > 0 && s.Messages > 0 {
							releasing++
						}
						stopped = stopped || s.State == gateway.StateStopped
					}
					if stopped || time.Now().After(until) {
						return nil
					}
					return fmt.Errorf("not yet")
				})
				conn.Close()
				// One that waits for its share of partitions does not notice.
				if err := run.stop(); err != nil && !errors.Is(err, gateway.ErrConnection) {
					t.Fatal(err)
				}
				<-done
			}
			if held == 0 || releasing == 0 {
				t.Errorf("nothing was held when gateways were killed (%d, %d)", held, releasing)
			}
			for i := range 6 {
				f.refuse(nil, tenant(i*7))
			}
			conn := f.srv.Conn(t)
			f.route.Source.Conn, f.route.Sealed.Conn = conn, conn
			f.start()
			f.sealedTenants(n)
			if got := f.info(source).State.LastSeq; got != uint64(n) {
				t.Fatalf("the source got %d messages, want %d", got, n)
			}
			f.holdEmpty()
			f.sourceEmpty()
			f.verifyTenants(n)
		})
	}
}
