package keyserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Faults is an authority that can be counted, delayed, cut off and made to lie.
// Exported for the tests of package keyserver_test.
type Faults struct {
	authority.Authority

	mu    sync.Mutex
	calls map[string]int
	fail  func(op string) error
	delay time.Duration
	hang  chan struct{}
	lie   func(op string, plain []byte, w *authority.Wrapped) []byte
}

func NewFaults(a authority.Authority) *Faults { return &Faults{Authority: a, calls: map[string]int{}} }

// Fail makes every call fail with err; nil repairs.
func (f *Faults) Fail(err error) {
	f.FailOp(func(string) error { return err })
}

func (f *Faults) FailOp(fail func(op string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *Faults) Delay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// Hang makes calls wait until the returned function is called or their context ends.
func (f *Faults) Hang() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan struct{})
	f.hang = ch
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.hang = nil
		close(ch)
	}
}

// Lie changes answers: it gets the plaintext and wrap of a successful call.
func (f *Faults) Lie(lie func(op string, plain []byte, w *authority.Wrapped) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lie = lie
}

// Calls returns how many calls of an operation there were; "" counts all.
func (f *Faults) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op != "" {
		return f.calls[op]
	}
	n := 0
	for _, c := range f.calls {
		n += c
	}
	return n
}

func (f *Faults) before(ctx context.Context, op string) error {
	f.mu.Lock()
	f.calls[op]++
	fail, delay, hang := f.fail, f.delay, f.hang
	f.mu.Unlock()
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %v", authority.ErrUnavailable, ctx.Err())
		}
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return fmt.Errorf("%w: %v", authority.ErrUnavailable, ctx.Err())
		}
	}
	if fail != nil {
		return fail(op)
	}
	return nil
}

func (f *Faults) after(op string, plain []byte, w *authority.Wrapped) []byte {
	f.mu.Lock()
	lie := f.lie
	f.mu.Unlock()
	if lie != nil {
		return lie(op, plain, w)
	}
	return plain
}

func (f *Faults) Wrap(ctx context.Context, key string, plain []byte, ec authority.Context) (authority.Wrapped, error) {
	if err := f.before(ctx, "wrap"); err != nil {
		return authority.Wrapped{}, err
	}
	w, err := f.Authority.Wrap(ctx, key, plain, ec)
	if err == nil {
		f.after("wrap", nil, &w)
	}
	return w, err
}

func (f *Faults) Unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	if err := f.before(ctx, "unwrap"); err != nil {
		return nil, err
	}
	plain, err := f.Authority.Unwrap(ctx, w, ec)
	if err == nil {
		plain = f.after("unwrap", plain, &w)
	}
	return plain, err
}

func (f *Faults) GenerateDataKey(ctx context.Context, key string, ec authority.Context) ([]byte, authority.Wrapped, error) {
	if err := f.before(ctx, "generate"); err != nil {
		return nil, authority.Wrapped{}, err
	}
	plain, w, err := f.Authority.GenerateDataKey(ctx, key, ec)
	if err == nil {
		plain = f.after("generate", plain, &w)
	}
	return plain, w, err
}

// ManagedFaults adds the managing half, for keys: managed.
type ManagedFaults struct {
	*Faults
	authority.Manager
}

var errDown = fmt.Errorf("%w: test", authority.ErrUnavailable)

var _ authority.Authority = (*Faults)(nil)
