package streams_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// read collects n payloads from Messages, acknowledging each, and breaks the loop.
func read(t *testing.T, o *streams.Opener, c jetstream.Consumer, n int) []string {
	t.Helper()
	ctx, _ := timeout(t)
	var got []string
	for m, err := range o.Messages(ctx, c) {
		if err != nil {
			t.Fatalf("after %d messages: %v", len(got), err)
		}
		if err := m.Ack(); err != nil {
			t.Fatal(err)
		}
		if got = append(got, string(m.Data())); len(got) == n {
			break
		}
	}
	return got
}

func wantInOrder(t *testing.T, got []string, from, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d messages, want %d", len(got), n)
	}
	for i, s := range got {
		if want := fmt.Sprint(from + i); s != want {
			t.Fatalf("message %d is %q, want %q", i, s, want)
		}
	}
}

func TestMessages(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.seal(t, 300)
	for name, c := range map[string]jetstream.Consumer{
		"explicit": w.consumer(t, func(c *jetstream.ConsumerConfig) { c.Durable = "explicit" }),
		"all":      w.consumer(t, func(c *jetstream.ConsumerConfig) { c.Durable, c.AckPolicy = "all", jetstream.AckAllPolicy }),
		"limited": w.consumer(t, func(c *jetstream.ConsumerConfig) {
			c.Durable, c.MaxRequestBatch, c.MaxRequestExpires, c.MaxAckPending = "limited", 7, 2*time.Second, 5
		}),
	} {
		t.Run(name, func(t *testing.T) {
			o := w.opener(t, func(c *streams.Config) { c.Fetch = 50 })
			wantInOrder(t, read(t, o, c, 300), 0, 300)
			allAcked(t, c)
			if i := info(t, c); i.NumRedelivered != 0 {
				t.Errorf("%d messages redelivered", i.NumRedelivered)
			}
			// Breaking the loop withdrew its pull.
			natstest.Eventually(t, 5*time.Second, func() error {
				if i := info(t, c); i.NumWaiting != 0 {
					return fmt.Errorf("%d pulls waiting after the loop", i.NumWaiting)
				}
				return nil
			})
		})
	}
	t.Run("none", func(t *testing.T) {
		c := w.consumer(t, func(c *jetstream.ConsumerConfig) { c.Durable, c.AckPolicy = "none", jetstream.AckNonePolicy })
		wantInOrder(t, read(t, w.opener(t), c, 300), 0, 300)
	})
	t.Run("ordered", func(t *testing.T) {
		c, err := w.js.OrderedConsumer(t.Context(), streamName, jetstream.OrderedConsumerConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if !streams.Ordered(c) || streams.Ordered(w.consumer(t)) {
			t.Error("the library's ordered consumer is not recognised any more")
		}
		wantInOrder(t, read(t, w.opener(t, func(c *streams.Config) { c.Fetch = 50 }), c, 300), 0, 300)
	})
}

// The end of ctx is an error like any other, and the last pair.
func TestMessagesContext(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.seal(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	for m, err := range w.opener(t).Messages(ctx, w.consumer(t)) {
		if err != nil {
			got = append(got, err.Error())
			continue
		}
		if got = append(got, string(m.Data())); len(got) == 2 {
			cancel()
		}
	}
	if len(got) != 3 || got[2] != context.Canceled.Error() {
		t.Errorf("got %q, want two messages and %q", got, context.Canceled)
	}
}

// A message larger than the bound of a pull arrives all the same.
func TestLargerThanFetchBytes(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	large := bytes.Repeat([]byte("x"), 20_000)
	for i := range 4 {
		w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, fmt.Append(nil, i)))
		w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, large))
	}
	got := read(t, w.opener(t, func(c *streams.Config) { c.FetchBytes = 4000 }), w.consumer(t), 8)
	for i, s := range got {
		if i%2 == 0 && s != fmt.Sprint(i/2) || i%2 == 1 && s != string(large) {
			t.Errorf("message %d has %d bytes", i, len(s))
		}
	}
}

func TestPrefetchAsksOncePerBatch(t *testing.T) {
	for _, tc := range []struct{ keys, calls int }{{1, 1}, {40, 1}, {64, 1}, {150, 3}} {
		t.Run(fmt.Sprint(tc.keys), func(t *testing.T) {
			w := newWorld(t, streamstest.Sealing{})
			o := w.opener(t, func(c *streams.Config) { c.Fetch = 400 })
			for i := range 2 * tc.keys {
				if i < tc.keys { // inline in the first half of the keys' messages
					w.sealer = w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme", Record: []string{"inline", "reference"}[i%2]})
				}
				w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, fmt.Append(nil, i)))
			}
			wantInOrder(t, read(t, o, w.consumer(t), 2*tc.keys), 0, 2*tc.keys)
			if calls, keys := w.keys.Calls(); calls != tc.calls || keys != tc.keys {
				t.Errorf("%d calls for %d keys, want %d for %d", calls, keys, tc.calls, tc.keys)
			}
		})
	}
}

func TestConsume(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	c := w.consumer(t)
	o := w.opener(t)
	w.seal(t, 10)
	ctx, cancel := timeout(t)
	var got []string
	err := o.Consume(ctx, c, func(_ context.Context, m *streams.Message) error {
		if got = append(got, string(m.Data())); len(got) == 10 {
			cancel()
		}
		if len(got) == 3 {
			return m.DoubleAck(t.Context()) // settled by the handler itself
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Consume = %v, want the end of its context", err)
	}
	wantInOrder(t, got, 0, 10)
	allAcked(t, c)
}

func TestConsumeHandlerError(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	c := w.consumer(t)
	w.seal(t, 3)
	ctx, _ := timeout(t)
	broken := errors.New("database away")
	n := 0
	err := w.opener(t).Consume(ctx, c, func(context.Context, *streams.Message) error {
		if n++; n == 2 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || n != 2 {
		t.Errorf("Consume = %v after %d messages, want the handler's error after 2", err, n)
	}
	natstest.Eventually(t, 5*time.Second, func() error {
		if i := info(t, c); i.AckFloor.Stream != 1 || i.NumAckPending != 2 {
			return fmt.Errorf("ack floor %d, %d unacknowledged, want 1 and 2", i.AckFloor.Stream, i.NumAckPending)
		}
		return nil
	})
}

// A handler that wants another try says so itself.
func TestConsumeNak(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	c := w.consumer(t)
	w.seal(t, 2)
	ctx, cancel := timeout(t)
	tries := 0
	err := w.opener(t).Consume(ctx, c, func(_ context.Context, m *streams.Message) error {
		if string(m.Data()) != "0" {
			return nil
		}
		if tries++; tries < 3 {
			return m.NakWithDelay(time.Millisecond)
		}
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || tries != 3 {
		t.Errorf("Consume = %v after %d tries", err, tries)
	}
	allAcked(t, c)
}

func TestConsumeChecks(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	ctx, _ := timeout(t)
	nothing := func(context.Context, *streams.Message) error { return nil }
	if err := w.opener(t).Consume(ctx, w.consumer(t), nil); err == nil || ctx.Err() != nil {
		t.Errorf("Consume without handler = %v", err)
	}
	o := w.opener(t, func(c *streams.Config) { c.OnUndecryptable = streams.Deliver(nil) })
	if err := o.Consume(ctx, w.consumer(t), nothing); err == nil || ctx.Err() != nil {
		t.Errorf("Consume with a policy that lacks its hook = %v", err)
	}
	o = w.opener(t)
	must(t, o.Close())
	w.seal(t, 1)
	if err := o.Consume(ctx, w.consumer(t), nothing); !errors.Is(err, streams.ErrClosed) {
		t.Errorf("Consume on a closed opener = %v, want ErrClosed", err)
	}
}

func TestConsumerGone(t *testing.T) {
	nothing := func(context.Context, *streams.Message) error { return nil }
	for name, end := range map[string]func(t *testing.T, w *world){
		"deleted": func(t *testing.T, w *world) { must(t, w.js.DeleteConsumer(t.Context(), streamName, "reader")) },
		"stream":  func(t *testing.T, w *world) { must(t, w.js.DeleteStream(t.Context(), streamName)) },
		"closed":  func(t *testing.T, w *world) { w.js.Conn().Close() },
	} {
		for _, policy := range []jetstream.AckPolicy{jetstream.AckExplicitPolicy, jetstream.AckNonePolicy} {
			t.Run(name+" "+policy.String(), func(t *testing.T) {
				w := newWorld(t, streamstest.Sealing{})
				c := w.consumer(t, func(c *jetstream.ConsumerConfig) { c.AckPolicy = policy })
				ctx, _ := timeout(t)
				done := make(chan error, 1)
				o := w.opener(t)
				go func() { done <- o.Consume(ctx, c, nothing) }()
				natstest.Eventually(t, 5*time.Second, func() error {
					if i := info(t, c); i.NumWaiting != 1 {
						return errors.New("no pull yet")
					}
					return nil
				})
				end(t, w)
				if err := <-done; err == nil || ctx.Err() != nil {
					t.Errorf("Consume = %v (%v), want the reason", err, ctx.Err())
				}
			})
		}
	}
}

// A reader survives cut connections and a server that restarts.
func TestReconnect(t *testing.T) {
	for _, policy := range []jetstream.AckPolicy{jetstream.AckExplicitPolicy, jetstream.AckNonePolicy} {
		t.Run(policy.String(), func(t *testing.T) {
			w := newWorld(t, streamstest.Sealing{})
			proxy := natstest.NewProxy(t, w.nats.Addr())
			js, err := jetstream.New(natstest.Connect(t, proxy.ClientURL()))
			if err != nil {
				t.Fatal(err)
			}
			cfg := jetstream.ConsumerConfig{Durable: "far", AckPolicy: policy, AckWait: 2 * time.Second}
			var c jetstream.Consumer
			if policy == jetstream.AckNonePolicy {
				c, err = js.OrderedConsumer(t.Context(), streamName, jetstream.OrderedConsumerConfig{})
			} else {
				c, err = js.CreateConsumer(t.Context(), streamName, cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := timeout(t)
			w.seal(t, 1)
			seen := make(map[string]bool)
			err = w.opener(t).Consume(ctx, c, func(_ context.Context, m *streams.Message) error {
				if seen[string(m.Data())] {
					return nil // at least once: an acknowledgement went down with its connection
				}
				seen[string(m.Data())] = true
				switch len(seen) {
				case 1, 2, 3:
					if proxy.Cut() == 0 {
						return errors.New("no connection was cut")
					}
					w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, fmt.Append(nil, len(seen))))
				case 4:
					cancel()
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) || len(seen) != 4 {
				t.Errorf("Consume = %v after %d messages", err, len(seen))
			}
		})
	}
}

// A reader that is broken out of in the middle of many messages leaves nothing behind.
func TestBreakEarly(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.seal(t, 100)
	c := w.consumer(t, func(c *jetstream.ConsumerConfig) { c.AckWait = time.Second })
	o := w.opener(t, func(c *streams.Config) { c.Fetch = 10 })
	wantInOrder(t, read(t, o, c, 17), 0, 17)
	ctx, cancel := timeout(t)
	seen := make(map[string]bool)
	err := o.Consume(ctx, c, func(_ context.Context, m *streams.Message) error {
		if seen[string(m.Data())] = true; len(seen) == 83 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || len(seen) != 83 {
		t.Errorf("Consume = %v after %d messages, want the other 83", err, len(seen))
	}
	allAcked(t, c)
}

// A panic in the loop's body releases everything, too.
func TestPanicInLoop(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.seal(t, 1)
	c := w.consumer(t)
	ctx, _ := timeout(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic got lost")
			}
		}()
		for range w.opener(t).Messages(ctx, c) {
			panic("application")
		}
	}()
	natstest.Eventually(t, 5*time.Second, func() error {
		if i := info(t, c); i.NumWaiting != 0 {
			return errors.New("a pull is waiting")
		}
		return nil
	})
}
