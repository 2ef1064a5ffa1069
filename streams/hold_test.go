package streams_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// states collects what OnState is told.
type states struct {
	mu  sync.Mutex
	all []streams.State
}

func (s *states) add(st streams.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, st)
}

func (s *states) get() []streams.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// A reader whose key is out of reach holds: for several times AckWait nothing is
// delivered again, nothing new is fetched beyond what was asked for, nothing is
// acknowledged; then it goes on where it was.
func TestHold(t *testing.T) {
	const ackWait, total, fetch = 400 * time.Millisecond, 60, 10
	for _, tc := range []struct {
		name          string
		service, want error
		wholeCall     bool
	}{
		{"denied", keysvc.ErrDenied, streams.ErrDenied, false},
		{"suspended", keysvc.ErrSuspended, streams.ErrSuspended, false},
		{"unavailable", keysvc.ErrUnavailable, streams.ErrUnavailable, false},
		{"service down", errors.New("nats: no responders"), streams.ErrUnavailable, true},
		{"not enrolled", keysvc.ErrDenied, streams.ErrDenied, true},
		{"clock skew", &keysvc.ClockSkewError{Offset: time.Hour}, streams.ErrClockSkew, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, streamstest.Sealing{})
			var down atomic.Bool
			w.keys.Hook = func(context.Context, []keysvc.Record) error {
				if tc.wholeCall && down.Load() {
					return tc.service
				}
				return nil
			}
			down.Store(true)
			if !tc.wholeCall {
				w.keys.Refuse("tenant/acme", tc.service)
			}
			c := w.consumer(t, func(c *jetstream.ConsumerConfig) { c.AckWait, c.MaxDeliver = ackWait, 2 })
			w.seal(t, total)
			var st states
			o := w.opener(t, func(c *streams.Config) { c.Fetch, c.OnState = fetch, st.add })
			ctx, cancel := timeout(t)
			var got []string
			done := make(chan error, 1)
			go func() {
				done <- o.Consume(ctx, c, func(_ context.Context, m *streams.Message) error {
					meta, err := m.Metadata()
					if err != nil || meta.NumDelivered != 1 {
						return fmt.Errorf("delivery %+v, %v", meta, err)
					}
					if got = append(got, string(m.Data())); len(got) == total {
						cancel()
					}
					return nil
				})
			}()
			start := time.Now()
			natstest.Eventually(t, 10*time.Second, func() error {
				i := info(t, c)
				if i.NumRedelivered != 0 || i.AckFloor.Stream != 0 || i.Delivered.Consumer > 2*fetch {
					t.Fatalf("while holding: %d redelivered, ack floor %d, %d delivered", i.NumRedelivered, i.AckFloor.Stream, i.Delivered.Consumer)
				}
				if time.Since(start) < 4*ackWait {
					return errors.New("not long enough")
				}
				return nil
			})
			down.Store(false)
			w.keys.Refuse("tenant/acme", nil)
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Fatalf("Consume = %v", err)
			}
			wantInOrder(t, got, 0, total)
			allAcked(t, c)
			all := st.get()
			if len(all) != 2 || !all[0].Held || all[1].Held || all[1].Err != nil || all[0].Stream != streamName || all[0].Consumer != "reader" {
				t.Fatalf("states %+v, want a hold and its end", all)
			}
			oe := wantError(t, all[0].Err, tc.want)
			if oe.Sequence != 1 {
				t.Errorf("held at message %d, want 1", oe.Sequence)
			}
		})
	}
}

// Hold and release in the middle of a stream of two scopes, for consumers
// without acknowledgements: nothing is lost or doubled.
func TestHoldWithoutAcks(t *testing.T) {
	for _, ordered := range []bool{true, false} {
		t.Run(fmt.Sprint("ordered ", ordered), func(t *testing.T) {
			w := newWorld(t, streamstest.Sealing{})
			var c jetstream.Consumer
			var err error
			if ordered {
				c, err = w.js.OrderedConsumer(t.Context(), streamName, jetstream.OrderedConsumerConfig{})
			} else {
				c = w.consumer(t, func(c *jetstream.ConsumerConfig) { c.AckPolicy = jetstream.AckNonePolicy })
			}
			if err != nil {
				t.Fatal(err)
			}
			other := w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/globex"})
			for i := range 100 {
				s := w.sealer
				if i >= 50 {
					s = other
				}
				w.publish(t, s.Seal(t, []string{"orders.acme.a", "orders.globex.a"}[i/50], nil, fmt.Append(nil, i)))
			}
			w.keys.Refuse("tenant/globex", keysvc.ErrSuspended)
			var st states
			o := w.opener(t, func(c *streams.Config) {
				c.Accept.Rules[0].Scopes = []string{"tenant/*"}
				c.Accept.ScopeRules = rules(t, "orders.*.>", "tenant/{{wildcard(1)}}")
				c.Fetch = 8
				c.OnState = func(s streams.State) {
					st.add(s)
					if s.Held {
						w.keys.Refuse("tenant/globex", nil)
					}
				}
			})
			ctx, cancel := timeout(t)
			var got []string
			err = o.Consume(ctx, c, func(_ context.Context, m *streams.Message) error {
				if got = append(got, string(m.Data())); len(got) == 100 {
					cancel()
				}
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("Consume = %v", err)
			}
			wantInOrder(t, got, 0, 100)
			if all := st.get(); len(all) != 2 {
				t.Errorf("states %+v, want a hold and its end", all)
			}
		})
	}
}

// Waiting behind a slow handler does not count as a delivery either.
func TestSlowHandler(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	const ackWait = 400 * time.Millisecond
	c := w.consumer(t, func(c *jetstream.ConsumerConfig) { c.AckWait, c.MaxDeliver = ackWait, 1 })
	w.seal(t, 12)
	ctx, cancel := timeout(t)
	var got []string
	err := w.opener(t).Consume(ctx, c, func(ctx context.Context, m *streams.Message) error {
		if got = append(got, string(m.Data())); len(got) == 12 {
			cancel()
			return nil
		}
		time.Sleep(ackWait / 4) // the work of the handler, not a wait for anything
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Consume = %v", err)
	}
	wantInOrder(t, got, 0, 12)
	allAcked(t, c)
	if i := info(t, c); i.NumRedelivered != 0 {
		t.Errorf("%d redelivered", i.NumRedelivered)
	}
}

// The end of ctx ends a hold.
func TestHoldEndsWithContext(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	w.keys.Refuse("tenant/acme", keysvc.ErrDenied)
	w.seal(t, 1)
	ctx, cancel := timeout(t)
	o := w.opener(t, func(c *streams.Config) {
		c.OnState = func(s streams.State) {
			if s.Held {
				cancel()
			}
		}
	})
	c := w.consumer(t)
	err := o.Consume(ctx, c, func(context.Context, *streams.Message) error { return errors.New("opened what is denied") })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Consume = %v, want the end of its context", err)
	}
	if i := info(t, c); i.NumAckPending != 1 || i.NumRedelivered != 0 {
		t.Errorf("%d unacknowledged, %d redelivered", i.NumAckPending, i.NumRedelivered)
	}
}

// A key whose record is late is waited for; one that never comes is given up,
// and a flood of them costs one wait and not one each.
func TestUnknownKey(t *testing.T) {
	t.Run("late", func(t *testing.T) {
		w := newWorld(t, streamstest.Sealing{})
		w.keys.Refuse("tenant/acme", keysvc.ErrNotFound)
		w.seal(t, 3)
		o := w.opener(t, func(c *streams.Config) {
			c.OnState = func(s streams.State) {
				if s.Held {
					w.keys.Refuse("tenant/acme", nil)
				}
			}
		})
		wantInOrder(t, read(t, o, w.consumer(t), 3), 0, 3)
	})
	t.Run("never", func(t *testing.T) {
		const wait, forged = 300 * time.Millisecond, 20
		w := newWorld(t, streamstest.Sealing{})
		w.stream(t, "DEAD", "dead")
		for range forged {
			s := streamstest.NewKeys().NewSealer(t, streamstest.Sealing{Scope: "tenant/acme", Record: "reference"})
			w.publish(t, s.Seal(t, "orders.acme.new", nil, []byte("forged")))
		}
		w.seal(t, 1)
		o := w.opener(t, func(c *streams.Config) {
			c.OnUndecryptable, c.UnknownKeyWait = streams.Park(w.js, "dead"), wait
		})
		start := time.Now()
		wantInOrder(t, read(t, o, w.consumer(t), 1), 0, 1)
		if d := time.Since(start); d < wait/2 || d > forged*wait/2 {
			t.Errorf("%d forged key IDs took %v, want about %v", forged, d, wait)
		}
	})
}
