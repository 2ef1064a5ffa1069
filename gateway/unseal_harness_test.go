package gateway_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

const plain = "PLAIN"

// openerKeys opens what fakeKeys made keys for.
type openerKeys struct {
	*fakeKeys
	err func(scope string) error // nil: all open; guarded by the lock of fakeKeys
}

func (k *openerKeys) OpenKeys(_ context.Context, rs []keysvc.Record) ([]keysvc.OpenedKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]keysvc.OpenedKey, len(rs))
	for i, r := range rs {
		out[i].KeyID = r.KeyID
		e, ok := k.byID[r.KeyID]
		if !ok {
			out[i].Err = keysvc.ErrNotFound
			continue
		}
		if k.err != nil {
			if out[i].Err = k.err(e.record.Core.Scope()); out[i].Err != nil {
				continue
			}
		}
		raw, err := e.record.Append(nil)
		if err != nil {
			return nil, err
		}
		key, err := envelope.NewDataKey(envelope.ExposeDataKey(e.key)) // the reader clears its own
		if err != nil {
			return nil, err
		}
		now := time.Now()
		out[i].Record, out[i].Key, out[i].NotAfter, out[i].RefreshAt = raw, key, now.Add(time.Hour), now.Add(50*time.Minute)
	}
	return out, nil
}

// unsealFixture is a fixture with a route back from its sealed stream.
type unsealFixture struct {
	*fixture
	opens  *openerKeys
	opener *streams.Opener
	back   gateway.Unseal
}

// newUnsealFixture makes a route from the sealed stream of newFixture to a stream
// back.in.>, on the same connection.
func newUnsealFixture(t *testing.T, opts ...natstest.Option) *unsealFixture {
	t.Helper()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage}, opts...)
	u := &unsealFixture{fixture: f, opens: &openerKeys{fakeKeys: f.keys}}
	var err error
	u.opener, err = streams.New(streams.Config{Keys: u.opens, Accept: streams.Accept{
		ScopeRules: f.keys.rules,
		Rules:      []streams.AcceptRule{{Scopes: []string{"*"}, Schemes: []streams.Scheme{streams.SchemeSingle}, Authorities: [][]string{{"local"}}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.opener.Close() })
	nc := f.srv.Conn(t)
	u.back = gateway.Unseal{
		Name:   "r",
		Sealed: gateway.UnsealSource{Conn: nc, Stream: sealed, Subjects: []string{"sealed.in.>"}, Start: gateway.StartFirst()},
		Plain:  gateway.Plain{Conn: nc, Stream: plain, Subjects: []string{"in.>"}, Prefix: "back.", Create: &gateway.CreateSealed{}, SyncInterval: gateway.SyncAlways},
	}
	return u
}

// seal seals messages from..to, which takes a gateway that ends with it.
func (u *unsealFixture) seal(from, to int) {
	u.t.Helper()
	u.publish(from, to)
	run := u.start()
	u.sealedCount(uint64(to), 20*time.Second)
	if err := run.stop(); err != nil {
		u.t.Fatal(err)
	}
}

func (u *unsealFixture) newBack(r gateway.Unseal) (*gateway.Gateway, error) {
	return gateway.NewUnseal(gateway.UnsealConfig{Routes: []gateway.Unseal{r}, Keys: u.keys, Opener: u.opener, Logger: u.log})
}

func (u *unsealFixture) startBack() *running { return u.startBackRoute(u.back) }

func (u *unsealFixture) startBackRoute(r gateway.Unseal) *running {
	u.t.Helper()
	g, err := u.newBack(r)
	if err != nil {
		u.t.Fatalf("NewUnseal: %v", err)
	}
	return u.run(g)
}

// plainMsg is one message of the plaintext stream, without its position.
type plainMsg struct {
	Subject, Payload string
	Header           nats.Header
}

// plains reads the whole plaintext stream.
func (u *unsealFixture) plains() []plainMsg {
	u.t.Helper()
	var out []plainMsg
	for _, m := range readAll(u.t, u.js, plain) {
		if got := m.Headers()[gateway.HeaderSource]; len(got) != 1 {
			u.t.Fatalf("message on %s has positions %q", m.Subject(), got)
		}
		h := maps.Clone(m.Headers())
		delete(h, gateway.HeaderSource)
		// Of the engine, and stored by the server.
		maps.DeleteFunc(h, func(name string, _ []string) bool {
			return slices.Contains([]string{"Nats-Expected-Stream", "Nats-Expected-Last-Sequence", "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"}, name)
		})
		out = append(out, plainMsg{m.Subject(), string(m.Data()), h})
	}
	return out
}

func readAll(t *testing.T, js jetstream.JetStream, stream string) []jetstream.Msg {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	want := s.CachedInfo().State.Msgs
	if want == 0 {
		return nil
	}
	c, err := s.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	it, err := c.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer it.Stop()
	var out []jetstream.Msg
	for uint64(len(out)) < want {
		m, err := it.Next(jetstream.NextMaxWait(10 * time.Second))
		if err != nil {
			t.Fatalf("reading message %d of %d of %s: %v", len(out)+1, want, stream, err)
		}
		out = append(out, m)
	}
	return out
}

// plainCount waits until the plaintext stream ends at a sequence.
func (u *unsealFixture) plainCount(want uint64, within time.Duration) {
	u.t.Helper()
	natstest.Eventually(u.t, within, func() error {
		s, err := u.js.Stream(u.t.Context(), plain)
		if err != nil {
			return err
		}
		if got := s.CachedInfo().State.LastSeq; got != want {
			return fmt.Errorf("plaintext stream ends at %d, want %d", got, want)
		}
		return nil
	})
}

// verifyPlain checks that the plaintext stream holds messages from..to as
// published by publish, each once and in order.
func (u *unsealFixture) verifyPlain(from, to int) {
	u.t.Helper()
	got := u.plains()
	if len(got) != to-from+1 {
		u.t.Errorf("%d messages of plaintext, want %d", len(got), to-from+1)
	}
	for i, m := range got {
		if n := from + i; m.Payload != string(payloadOf(n)) || m.Subject != "back."+subjectOf(n) {
			u.t.Fatalf("message %d of plaintext is %q on %s, want %q", i+1, m.Payload, m.Subject, payloadOf(n))
		}
	}
}
