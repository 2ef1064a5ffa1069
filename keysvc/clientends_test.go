package keysvc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

func TestCancel(t *testing.T) {
	w := newWorld(t)
	arrived := make(chan struct{}, 64)
	r := w.respond(t, w.service, func(*responder, asked) { arrived <- struct{}{} })
	ctx, cancel := context.WithCancel(within(t, 30*time.Second))
	done := make(chan error, 1)
	client := w.client(t)
	go func() {
		_, err := client.Status(ctx)
		done <- err
	}()
	<-arrived
	start := time.Now()
	cancel()
	err := <-done
	if took := time.Since(start); took > time.Second {
		t.Errorf("cancelling took %v", took)
	}
	if !errors.Is(err, keysvc.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want ErrUnavailable because of context.Canceled", err)
	}

	before := len(r.requests())
	if _, err := client.Status(ctx); !errors.Is(err, keysvc.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a context cancelled before: %v", err)
	}
	if err := w.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := len(r.requests()) - before; n != 0 {
		t.Errorf("a context cancelled before: %d requests", n)
	}
}

// TestTimeout: it bounds contexts without a deadline, and only those.
func TestTimeout(t *testing.T) {
	w := newWorld(t)
	release := make(chan asked, 64)
	r := w.respond(t, w.service, func(_ *responder, a asked) { release <- a })
	client := w.client(t, func(c *keysvc.ClientConfig) { c.Timeout = 150 * time.Millisecond })
	start := time.Now()
	_, err := client.Status(context.Background())
	if took := time.Since(start); took < 150*time.Millisecond || took > 5*time.Second || !errors.Is(err, keysvc.ErrUnavailable) {
		t.Errorf("timeout of 150 ms: %v after %v", err, took)
	}
	<-release
	done := make(chan error, 1)
	go func() {
		_, err := client.Status(within(t, 30*time.Second))
		done <- err
	}()
	<-release // the first try; the second one comes after Timeout
	r.ok(<-release, status)
	if err := <-done; err != nil {
		t.Errorf("a context with a deadline: %v", err)
	}
}

func TestPins(t *testing.T) {
	w := newWorld(t)
	next := newIdentity(t, keysvc.KindService)
	r := w.respond(t, next, func(r *responder, a asked) {
		if a.err != nil { // addressed to the other pin
			r.fail(a, a.err)
			return
		}
		r.ok(a, status)
	})
	client := w.client(t, func(c *keysvc.ClientConfig) { c.Pins = append(c.Pins, next.Public()) })
	start := time.Now()
	if _, err := client.Status(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("finding the second pin took %v", took)
	}
	if n := len(r.requests()); n != 2 {
		t.Errorf("%d tries, want 2: one for each pin", n)
	}
	for range 3 { // found once, addressed first
		if _, err := client.Status(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.requests()); n != 5 {
		t.Errorf("%d tries for 4 calls, want 5", n)
	}
	if client.BadReplies() != 0 {
		t.Errorf("%d replies of a pinned service counted as forged", client.BadReplies())
	}

	// A service that is not pinned does not become one by refusing.
	only := w.client(t)
	if _, err := only.Status(within(t, 400*time.Millisecond)); !errors.Is(err, keysvc.ErrUnavailable) || only.BadReplies() == 0 {
		t.Errorf("one pin, another service: %v, %d bad replies", err, only.BadReplies())
	}
	// One that refuses every audience does not make the client spin.
	stubborn := newIdentity(t, keysvc.KindService)
	w2 := newWorld(t)
	r2 := w2.respond(t, stubborn, func(r *responder, a asked) { r.fail(a, keysvc.ErrInvalid) })
	client = w2.client(t, func(c *keysvc.ClientConfig) { c.Pins = []string{w2.service.Public(), stubborn.Public()} })
	if _, err := client.Status(within(t, 20*time.Second)); !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("refused under either pin: %v", err)
	}
	if n := len(r2.requests()); n != 2 {
		t.Errorf("refused under either pin: %d tries, want 2", n)
	}
}

func TestConnectionClosed(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	arrived := make(chan struct{}, 64)
	w.respond(t, w.service, func(*responder, asked) { arrived <- struct{}{} })
	done := make(chan error, 1)
	go func() {
		_, err := client.Status(within(t, 60*time.Second))
		done <- err
	}()
	<-arrived
	start := time.Now()
	w.nc.Close()
	if err := <-done; !errors.Is(err, keysvc.ErrUnavailable) || !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("closed during a call: %v", err)
	}
	if _, err := client.Status(within(t, 60*time.Second)); !errors.Is(err, keysvc.ErrUnavailable) || !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("closed before a call: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("noticing took %v", took)
	}
}

// TestReconnect cuts the connection under a call, and freezes it: the call goes on.
func TestReconnect(t *testing.T) {
	w := newWorld(t)
	p := natstest.NewProxy(t, w.nats.Addr())
	w.nc = natstest.Connect(t, p.ClientURL())
	cut := make(chan struct{}, 64)
	w.respond(t, w.service, func(r *responder, a asked) {
		if a.n == 0 {
			p.Cut() // the reply has nowhere to go
			cut <- struct{}{}
		}
		r.ok(a, status)
	})
	if _, err := w.client(t).Status(within(t, 30*time.Second)); err != nil {
		t.Error(err)
	}
	<-cut

	p.Pause()
	done := make(chan error, 1)
	client := w.client(t)
	go func() {
		_, err := client.Status(within(t, 30*time.Second))
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("answered through a frozen connection: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	p.Resume()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// The server itself restarts.
	w.nats.Restart()
	if _, err := client.Status(within(t, 30*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestBatchBounds(t *testing.T) {
	w := newWorld(t)
	r := w.respond(t, w.service, func(r *responder, a asked) { r.fail(a, keysvc.ErrDenied) })
	client := w.client(t)
	ctx := within(t, 20*time.Second)
	for _, n := range []int{0, keysvc.MaxBatch + 1} {
		if _, err := client.Generate(ctx, make([]string, n)); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%d subjects: %v", n, err)
		}
		if _, err := client.OpenKeys(ctx, make([]keysvc.Record, n)); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%d records: %v", n, err)
		}
	}
	if _, err := client.Generate(ctx, []string{"a", "b\xff"}); !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("a subject that JSON would change: %v", err)
	}
	if _, err := client.Generate(ctx, []string{strings.Repeat("x", keysvc.MaxRequest)}); !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("a subject too long: %v", err)
	}
	if n := len(r.requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	if _, err := client.Generate(ctx, make([]string, keysvc.MaxBatch)); !errors.Is(err, keysvc.ErrDenied) {
		t.Errorf("a full batch: %v", err)
	}
}

// TestConcurrentCalls: one client, many callers, each with its own answer.
func TestConcurrentCalls(t *testing.T) {
	w := newWorld(t)
	w.respond(t, w.service, func(r *responder, a asked) {
		if a.req == nil {
			t.Errorf("request %d: %v", a.n, a.err)
			return
		}
		var args keysvc.RouteKeyArgs
		if err := a.req.Args(&args); err != nil {
			t.Error(err)
		}
		r.ok(a, keysvc.RouteKeyResult{Key: fixed(args.Route)})
	})
	client := w.client(t)
	ctx := within(t, 30*time.Second)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			route := fmt.Sprintf("route-%d", i)
			k, err := client.RouteKey(ctx, route)
			if err != nil || !k.Equal(dataKey(t, fixed(route))) {
				t.Errorf("%s: another key, %v", route, err)
			}
		})
	}
	wg.Wait()
}

// TestEphemeralKeyAges: a key pair serves for seconds, then there is another one.
func TestEphemeralKeyAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requester, service := newIdentity(t, keysvc.KindRequester), newIdentity(t, keysvc.KindService)
		c, err := keysvc.NewClient(keysvc.ClientConfig{Conn: new(nats.Conn), Service: "s", Pins: []string{service.Public()}, Identity: requester, Suite: keysvc.SuiteX25519})
		if err != nil {
			t.Fatal(err)
		}
		key := func() string {
			k, err := c.EphemeralKey()
			if err != nil {
				t.Fatal(err)
			}
			return string(k.PublicKey().Bytes())
		}
		first := key()
		time.Sleep(keysvc.EphemeralLife)
		if key() != first {
			t.Error("another key pair within its life")
		}
		time.Sleep(time.Millisecond)
		second := key()
		if second == first {
			t.Error("the key pair outlives its life")
		}
		if key() != second {
			t.Error("a new key pair for every call")
		}
	})
}
