package streams_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// mark is a checkpoint as a gateway stores it.
func mark(stream string, partition uint32) *nats.Msg {
	c := checkpoint.Checkpoint{Position: 7, Last: 7, Created: 1, Timestamp: 2, Follows: 1, Messages: 3, MAC: bytes.Repeat([]byte{5}, 32)}
	return &nats.Msg{Subject: checkpoint.Subject(stream, partition), Header: nats.Header{
		"Keyweir": {"1"}, checkpoint.Header: {string(c.Append(nil))},
	}}
}

// sharedWorld is a world whose stream takes checkpoints, of itself and of others.
func sharedWorld(t *testing.T) *world {
	w := newWorld(t, streamstest.Sealing{})
	_, err := w.js.UpdateStream(t.Context(), jetstream.StreamConfig{
		Name: streamName, Subjects: []string{"sealed.>", checkpoint.Prefix + ">"}, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestCheckpointsAreSkipped(t *testing.T) {
	w := sharedWorld(t)
	for range 3 {
		w.publish(t, mark(streamName, 0), mark(streamName, 31))
		w.seal(t, 5)
	}
	w.publish(t, mark(streamName, 2))
	w.seal(t, 1)
	c := w.consumer(t)
	if got := read(t, w.opener(t), c, 16); len(got) != 16 || got[14] != "4" {
		t.Errorf("read %q", got)
	}
	allAcked(t, c)
	o, err := w.js.OrderedConsumer(t.Context(), streamName, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, _ := timeout(t)
	n := 0
	for _, err := range w.opener(t).Messages(ctx, o) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 16 {
			break
		}
	}

	st, err := w.js.Stream(t.Context(), streamName)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := st.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.opener(t).OpenRaw(t.Context(), streamName, raw)
	wantError(t, err, streams.ErrCheckpoint)
	if streams.Verdict(err) != streams.Skip || streams.Code(err) != "checkpoint" {
		t.Errorf("verdict %v, code %s", streams.Verdict(err), streams.Code(err))
	}
}

// What only looks like a checkpoint is as foreign as everything else that is not
// sealed.
func TestForgedCheckpoints(t *testing.T) {
	w := sharedWorld(t)
	change := func(f func(*nats.Msg)) *nats.Msg {
		m := mark(streamName, 0)
		f(m)
		return m
	}
	forged := map[string]*nats.Msg{
		"body":            change(func(m *nats.Msg) { m.Data = []byte("{}") }),
		"another stream":  change(func(m *nats.Msg) { m.Subject = checkpoint.Subject("OTHER", 0) }),
		"partition 32":    change(func(m *nats.Msg) { m.Subject = checkpoint.Subject(streamName, 32) }),
		"a data subject":  change(func(m *nats.Msg) { m.Subject = "sealed.orders.acme.new" }),
		"no header":       change(func(m *nats.Msg) { delete(m.Header, checkpoint.Header) }),
		"no version":      change(func(m *nats.Msg) { delete(m.Header, "Keyweir") }),
		"malformed":       change(func(m *nats.Msg) { m.Header[checkpoint.Header] = []string{"x"} }),
		"two":             change(func(m *nats.Msg) { h := m.Header[checkpoint.Header]; m.Header[checkpoint.Header] = append(h, h[0]) }),
		"nothing at all":  {Subject: checkpoint.Subject(streamName, 0)},
		"longer subject":  change(func(m *nats.Msg) { m.Subject += ".x" }),
		"no such subject": change(func(m *nats.Msg) { m.Subject = checkpoint.Prefix + streamName }),
	}
	for name, m := range forged {
		t.Run(name, func(t *testing.T) {
			ack, err := w.js.PublishMsg(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			c := w.consumer(t, func(c *jetstream.ConsumerConfig) {
				c.Durable, c.DeliverPolicy, c.OptStartSeq = "", jetstream.DeliverByStartSequencePolicy, ack.Sequence
			})
			ctx, _ := timeout(t)
			for _, err := range w.opener(t).Messages(ctx, c) {
				if !errors.Is(err, streams.ErrPlaintext) {
					t.Errorf("read with %v, want ErrPlaintext", err)
				}
				break
			}
		})
	}
	// A copy of another stream has its checkpoints.
	o := w.opener(t, func(c *streams.Config) { c.Accept.Checkpoints = []string{"OTHER"} })
	if _, err := o.OpenRaw(t.Context(), streamName, &jetstream.RawStreamMsg{Subject: checkpoint.Subject("OTHER", 0), Header: mark("OTHER", 0).Header}); !errors.Is(err, streams.ErrCheckpoint) {
		t.Errorf("checkpoint of the copied stream: %v", err)
	}
}

// Every partition has a chain of its own.
func TestVerifySharedStream(t *testing.T) {
	w := sharedWorld(t)
	other := w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"})
	for i := range 6 {
		s := w.sealer
		if i%2 > 0 {
			s = other
		}
		w.publish(t, s.Seal(t, "orders.acme.new", nil, []byte("x")), mark(streamName, uint32(i%2)))
	}
	c, err := w.js.OrderedConsumer(t.Context(), streamName, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := streams.NewVerifier(c, streams.VerifierConfig{Open: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, _ := timeout(t)
	n := 0
	for m, err := range w.opener(t).Messages(ctx, c) {
		if err != nil {
			t.Fatal(err)
		}
		if events, err := v.Observe(m); err != nil || len(events) > 0 {
			t.Errorf("Observe = %v, %v", events, err)
		}
		if n++; n == 6 {
			break
		}
	}
}
