package keyserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// maxCalls bounds the calls to one authority that run at a time, so that a
// recovery, or a restart with a cold cache, is no stampede.
const maxCalls = 32

// upstream is one authority: every call is counted, timed, bounded, and its
// answer checked for form before anybody uses it.
type upstream struct {
	name    string
	a       authority.Authority
	met     *metrics
	timeout time.Duration
	slots   chan struct{}
}

func newUpstream(name string, a authority.Authority, met *metrics, timeout time.Duration) *upstream {
	return &upstream{name: name, a: a, met: met, timeout: timeout, slots: make(chan struct{}, maxCalls)}
}

// do runs one call. An authority that does not come back in time is left behind:
// its call keeps its slot until it ends, so that hung calls stay bounded too.
func (u *upstream) do(ctx context.Context, call string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	select {
	case u.slots <- struct{}{}:
	case <-ctx.Done():
		cancel()
		return fmt.Errorf("%w: no free call", authority.ErrUnavailable)
	}
	start := time.Now() // of the call proper
	done := make(chan error, 1)
	go func() {
		done <- f(ctx)
		cancel() // after the answer is there
		<-u.slots
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done: // it ended as well
		default:
			err = fmt.Errorf("%w: no answer in %v", authority.ErrUnavailable, u.timeout)
		}
	}
	u.met.call(u.name, call, outcomeOf(err), time.Since(start))
	return err
}

func (u *upstream) wrap(ctx context.Context, key string, plaintext []byte, ec authority.Context) (w authority.Wrapped, err error) {
	plain := append([]byte(nil), plaintext...) // the call may outlive us
	out := make(chan authority.Wrapped, 1)
	err = u.do(ctx, "wrap", func(ctx context.Context) error {
		defer clear(plain)
		w, err := u.a.Wrap(ctx, key, plain, ec)
		if err == nil {
			err = checkWrapped(w)
		}
		out <- w
		return err
	})
	if err != nil {
		return authority.Wrapped{}, err
	}
	return <-out, nil
}

func (u *upstream) unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	out := make(chan []byte, 1)
	err := u.do(ctx, "unwrap", func(ctx context.Context) error {
		plain, err := u.a.Unwrap(ctx, w, ec)
		if err == nil && ctx.Err() != nil {
			clear(plain) // nobody waits any more
			return fmt.Errorf("%w: answered too late", authority.ErrUnavailable)
		}
		if err == nil && len(plain) != authority.DataKeySize {
			clear(plain)
			return fmt.Errorf("%w: unwrapped %d bytes, want %d", errLied, len(plain), authority.DataKeySize)
		}
		out <- plain
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-out, nil
}

func (u *upstream) generate(ctx context.Context, key string, ec authority.Context) (plain []byte, w authority.Wrapped, err error) {
	type answer struct {
		plain []byte
		w     authority.Wrapped
	}
	out := make(chan answer, 1)
	err = u.do(ctx, "generate", func(ctx context.Context) error {
		plain, w, err := u.a.GenerateDataKey(ctx, key, ec)
		if err == nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: answered too late", authority.ErrUnavailable)
		}
		if err == nil {
			err = checkWrapped(w)
		}
		if err == nil && len(plain) != authority.DataKeySize {
			err = fmt.Errorf("%w: data key of %d bytes, want %d", errLied, len(plain), authority.DataKeySize)
		}
		if err != nil {
			clear(plain)
		}
		out <- answer{plain, w}
		return err
	})
	if err != nil {
		return nil, authority.Wrapped{}, err
	}
	got := <-out
	return got.plain, got.w, nil
}

// errLied: an authority's answer cannot be what was asked for.
var errLied = errors.New("the authority's answer is wrong")

func checkWrapped(w authority.Wrapped) error {
	switch {
	case w.KeyID == "" || len(w.KeyID) > authority.MaxKeyID:
		return fmt.Errorf("%w: managed key ID of %d bytes", errLied, len(w.KeyID))
	case len(w.Blob) == 0 || len(w.Blob) > authority.MaxBlob:
		return fmt.Errorf("%w: wrap of %d bytes", errLied, len(w.Blob))
	}
	return nil
}

// authorityErrors is the order in which answers are told apart.
var authorityErrors = []struct {
	err     error
	outcome string
	is      error // what the requester learns
}{
	{authority.ErrDestroyed, "destroyed", keysvc.ErrDestroyed},
	{authority.ErrDisabled, "disabled", keysvc.ErrSuspended},
	{authority.ErrDenied, "denied", keysvc.ErrSuspended},
	{authority.ErrNotFound, "not_found", keysvc.ErrSuspended},
	{authority.ErrThrottled, "throttled", keysvc.ErrUnavailable},
	{authority.ErrInvalid, "invalid", keysvc.ErrInvalid},
	{errLied, "lied", keysvc.ErrUnavailable},
	{authority.ErrUnavailable, "unavailable", keysvc.ErrUnavailable},
}

func outcomeOf(err error) string {
	if err == nil {
		return "ok"
	}
	for _, e := range authorityErrors {
		if errors.Is(err, e.err) {
			return e.outcome
		}
	}
	return "unavailable"
}

// outage reports whether err says nothing about the key: also what is outside
// the contract, and answers that are plainly wrong.
func outage(err error) bool {
	return !authority.IsDecision(err) && !errors.Is(err, authority.ErrInvalid)
}

// fromAuthority turns an authority's error into what the requester is told: the
// class in words, never the provider's own text, which may name accounts.
func (u *upstream) fromAuthority(err error) error {
	for _, e := range authorityErrors {
		if errors.Is(err, e.err) {
			return fmt.Errorf("%w: authority %q answered %q", e.is, u.name, e.outcome)
		}
	}
	return fmt.Errorf("%w: authority %q gave no usable answer", keysvc.ErrUnavailable, u.name)
}
