package streams_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const streamName = "SEALED"

// world is one server with a sealed stream, keys and a sealer.
type world struct {
	nats   *natstest.Server
	js     jetstream.JetStream
	keys   *streamstest.Keys
	sealer *streamstest.Sealer
}

func newWorld(t *testing.T, s streamstest.Sealing) *world {
	t.Helper()
	srv := natstest.New(t)
	w := &world{nats: srv, js: srv.JetStream(t), keys: streamstest.NewKeys()}
	if s.Scope == "" {
		s.Scope = "tenant/acme"
	}
	w.sealer = w.keys.NewSealer(t, s)
	w.stream(t, streamName, "sealed.>")
	return w
}

func (w *world) stream(t *testing.T, name string, subjects ...string) {
	t.Helper()
	_, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: subjects, Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatalf("creating stream %s: %v", name, err)
	}
}

// opener makes a quick Opener that accepts the sealer's messages.
func (w *world) opener(t *testing.T, change ...func(*streams.Config)) *streams.Opener {
	t.Helper()
	cfg := streams.Config{Keys: w.keys, Accept: w.sealer.Accept()}
	for _, f := range change {
		f(&cfg)
	}
	o, err := streams.New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	streams.Fast(o)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

func (w *world) consumer(t *testing.T, change ...func(*jetstream.ConsumerConfig)) jetstream.Consumer {
	t.Helper()
	cfg := jetstream.ConsumerConfig{Durable: "reader", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	c, err := w.js.CreateConsumer(t.Context(), streamName, cfg)
	if err != nil {
		t.Fatalf("creating consumer: %v", err)
	}
	return c
}

func (w *world) publish(t *testing.T, ms ...*nats.Msg) {
	t.Helper()
	for _, m := range ms {
		if _, err := w.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatalf("publishing to %s: %v", m.Subject, err)
		}
	}
}

// seal publishes n messages "0".."n-1" on orders.acme.new.
func (w *world) seal(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, fmt.Append(nil, i)))
	}
}

func info(t *testing.T, c jetstream.Consumer) *jetstream.ConsumerInfo {
	t.Helper()
	i, err := c.Info(t.Context())
	if err != nil {
		t.Fatalf("reading consumer info: %v", err)
	}
	return i
}

// allAcked waits until the consumer has nothing unacknowledged or undelivered.
func allAcked(t *testing.T, c jetstream.Consumer) {
	t.Helper()
	natstest.Eventually(t, 10*time.Second, func() error {
		if i := info(t, c); i.NumAckPending != 0 || i.NumPending != 0 {
			return fmt.Errorf("%d unacknowledged, %d undelivered", i.NumAckPending, i.NumPending)
		}
		return nil
	})
}

// timeout is a context that a broken test runs into.
func timeout(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx, cancel
}

// reopen checks that err is an OpenError of the wanted class and nothing else.
func wantError(t *testing.T, err, want error) *streams.OpenError {
	t.Helper()
	var oe *streams.OpenError
	if !errors.As(err, &oe) || !errors.Is(err, want) {
		t.Fatalf("error is %v, want an OpenError of %v", err, want)
	}
	return oe
}

func rules(t *testing.T, match, scope string) *keysvc.ScopeRules {
	t.Helper()
	r, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: match, Scope: scope}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
