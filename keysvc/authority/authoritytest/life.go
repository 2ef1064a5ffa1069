package authoritytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// prompt is how soon a call that can only fail must have failed.
const prompt = 2 * time.Second

func checkDisabled(t *testing.T, h Harness) {
	if h.Disable == nil || h.Enable == nil {
		t.Skip("the harness cannot disable and enable keys")
	}
	a := open(t, h)
	key := h.Keys[1]
	p := random(32)
	w := wrap(t, a, key, p, someContext())
	h.Disable(t, key)
	t.Cleanup(func() { h.Enable(t, key) })
	each(t.Context(), a, w, someContext(), func(op string, err error) {
		refused(t, op+" under a disabled key", err, authority.ErrDisabled, p)
	})
	other := wrap(t, a, h.Keys[0], p, someContext()) // the other key goes on
	unwrap(t, a, other, someContext(), p)
	h.Enable(t, key)
	unwrap(t, a, w, someContext(), p)
}

func checkCancelled(t *testing.T, h Harness) {
	a := open(t, h)
	p := random(32)
	w := wrap(t, a, "", p, someContext())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for what, ctx := range map[string]context.Context{"cancelled": cancelled, "expired": expired} {
		start := time.Now()
		each(ctx, a, w, someContext(), func(op string, err error) {
			refused(t, fmt.Sprintf("%s with a %s context", op, what), err, authority.ErrUnavailable, p)
			if err != nil && !errors.Is(err, ctx.Err()) {
				t.Errorf("%s with a %s context: %v does not wrap %v", op, what, err, ctx.Err())
			}
		})
		if d := time.Since(start); d > prompt {
			t.Errorf("three calls with a %s context took %v", what, d)
		}
	}
	unwrap(t, a, w, someContext(), p)
}

func checkClosed(t *testing.T, h Harness) {
	a := h.Open(t)
	p := random(32)
	w := wrap(t, a, "", p, someContext())
	for i := range 3 {
		if err := a.Close(); err != nil {
			t.Errorf("Close number %d = %v", i+1, err)
		}
		start := time.Now()
		each(t.Context(), a, w, someContext(), func(op string, err error) {
			refused(t, op+" after Close", err, authority.ErrUnavailable, p)
		})
		if d := time.Since(start); d > prompt {
			t.Errorf("three calls after Close took %v", d)
		}
	}
	if m, ok := a.(authority.Manager); ok {
		eachManage(t.Context(), m, h.Keys[0], func(op string, err error) {
			refused(t, op+" after Close", err, authority.ErrUnavailable)
		})
	}
}

func checkConcurrent(t *testing.T, h Harness) {
	a := open(t, h)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			ec := authority.Context{"goroutine": fmt.Sprint(g), "use": "data-key"}
			for i := range 8 {
				if err := exchange(t.Context(), a, h.Keys[(g+i)%2], ec); err != nil {
					t.Errorf("goroutine %d, round %d: %v", g, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// exchange wraps, generates and unwraps both, and tries a context too much.
func exchange(ctx context.Context, a authority.Authority, key string, ec authority.Context) error {
	p := random(48)
	w, err := a.Wrap(ctx, key, p, ec)
	if err != nil {
		return fmt.Errorf("wrapping: %w", err)
	}
	k, g, err := a.GenerateDataKey(ctx, key, ec)
	if err != nil {
		return fmt.Errorf("generating: %w", err)
	}
	for _, c := range []struct {
		w    authority.Wrapped
		want []byte
	}{{w, p}, {g, k}} {
		got, err := a.Unwrap(ctx, c.w, ec)
		if err != nil {
			return fmt.Errorf("unwrapping: %w", err)
		}
		if !bytes.Equal(got, c.want) {
			return errors.New("unwrapped other bytes")
		}
		clear(got)
	}
	other := with(ec, func(c authority.Context) { c["goroutine"] += "x" })
	if _, err := a.Unwrap(ctx, w, other); !errors.Is(err, authority.ErrInvalid) {
		return fmt.Errorf("unwrapping with another context: %w", err)
	}
	return nil
}

func checkCloseInUse(t *testing.T, h Harness) {
	a := h.Open(t)
	w := wrap(t, a, "", random(32), someContext())
	busy := make(chan struct{}, 4)
	var wg sync.WaitGroup
	for range cap(busy) {
		wg.Go(func() {
			for first := true; ; first = false {
				_, err := a.Unwrap(t.Context(), w, someContext())
				if first {
					busy <- struct{}{}
				}
				if err != nil {
					refused(t, "Unwrap while closing", err, authority.ErrUnavailable)
					return
				}
			}
		})
	}
	for range cap(busy) {
		<-busy
	}
	if err := a.Close(); err != nil {
		t.Errorf("Close during calls = %v", err)
	}
	wg.Wait()
}
