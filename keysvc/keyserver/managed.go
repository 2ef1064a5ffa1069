package keyserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
)

const (
	// patience is how long a request waits for a confirmation while the key may
	// still be used without it.
	patience = time.Second
	// Pauses between tries: short, since there is one try at a time for each
	// managed key, however many requests wait.
	firstPause   = 250 * time.Millisecond
	outagePause  = 2 * time.Second // longest, while the authority is unreachable
	refusalPause = 5 * time.Second // longest, after it decided
	// idleAfter ends retries for a key nobody asks for; the next request tries again.
	idleAfter = 10 * time.Minute
)

// managedKey is what the server knows about one managed key of one authority:
// when the authority last answered for it, whether it refused it, and the cache
// key under it. Data keys under it serve only while it says so.
type managedKey struct {
	e  *engine
	up *upstream
	id string // as key records name it

	mu       sync.Mutex
	lastOK   time.Time // last successful answer; zero: none in this process, or refused since
	lastUse  time.Time
	refused  error            // the authority's decision as the requester hears it; nil after a success
	failures int              // in a row
	nextTry  time.Time        // not before, while failures > 0
	attempt  chan struct{}    // closed when the running probe ends; nil: none runs
	asked    time.Time        // when the last probe began
	retrying bool             // the retry loop runs
	probe    *envelope.Record // opened once: what a probe unwraps where there is no cache key

	cacheMu    sync.Mutex // taken while a cache key is made; before mu
	wrapped    *cacheKeyRow
	cache      *cacheKey // nil until opened
	cacheAfter time.Time // not made before
	unusable   bool      // the stored cache key does not open: nothing is cached under it, and it is kept for a restore
}

// managedKeys finds managed keys by name.
type managedKeys struct {
	e  *engine
	mu sync.Mutex
	by map[managedName]*managedKey
}

type managedName struct{ authority, id string }

// find returns a known managed key or nil.
func (ms *managedKeys) find(up *upstream, id string) *managedKey {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.by[managedName{up.name, id}]
}

// known returns the managed key, which the caller has just seen to exist.
func (ms *managedKeys) known(up *upstream, id string) *managedKey {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	n := managedName{up.name, id}
	k := ms.by[n]
	if k == nil {
		if len(ms.by) >= 2*ms.e.cfg.Cache {
			ms.forget(0) // at most half of them have keys in memory
		}
		k = &managedKey{e: ms.e, up: up, id: id, lastUse: time.Now()}
		ms.by[n] = k
	}
	return k
}

func (ms *managedKeys) all() []*managedKey {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	out := make([]*managedKey, 0, len(ms.by))
	for _, k := range ms.by {
		out = append(out, k)
	}
	return out
}

// sweep forgets managed keys that nobody used for idle, have no data key in
// memory and no cache key: scopes with a key of their own come and go.
func (ms *managedKeys) sweep(idle time.Duration) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.forget(idle)
}

// forget does it; the caller holds mu.
func (ms *managedKeys) forget(idle time.Duration) {
	for n, k := range ms.by {
		k.mu.Lock()
		if k.wrapped == nil && !k.retrying && k.attempt == nil && time.Since(k.lastUse) > idle && !ms.e.opened.has(k) {
			delete(ms.by, n)
		}
		k.mu.Unlock()
	}
}

// fresh says whether data keys under k may serve now, with what is left of the
// stale limit. It confirms the managed key in the background ahead of time, and
// waits for the authority only where its last answer is too old.
func (k *managedKey) fresh(ctx context.Context, stale time.Duration) (left time.Duration, err error) {
	confirm := k.e.cfg.Confirm
	for tried := false; ; tried = true {
		k.mu.Lock()
		now := time.Now()
		k.lastUse = now
		age := now.Sub(k.lastOK)
		limit := k.lastOK.Add(confirm + stale)
		usable := !k.lastOK.IsZero() && now.Before(limit)
		if usable && age < confirm {
			if age >= confirm*8/10 {
				k.startProbe(now)
			}
			k.mu.Unlock()
			return limit.Sub(now), nil
		}
		if usable && k.failures > 0 && k.refused == nil {
			k.startRetry()
			k.mu.Unlock()
			return limit.Sub(now), nil
		}
		failing := k.failures > 0
		if tried || failing && (now.Before(k.nextTry) || k.attempt != nil) {
			err := k.refused
			if err == nil {
				err = fmt.Errorf("%w: authority %q has not answered within the stale limit", keysvc.ErrUnavailable, k.up.name)
			}
			k.startRetry()
			k.mu.Unlock()
			return 0, err
		}
		done, asked := k.startProbe(now), k.asked
		k.mu.Unlock()
		if done == nil {
			return 0, fmt.Errorf("%w: managed key of authority %q cannot be confirmed", keysvc.ErrUnavailable, k.up.name)
		}
		var late <-chan time.Time
		if usable || failing {
			// Counted from the start of the probe: of many requests only those of
			// the first second wait.
			t := time.NewTimer(time.Until(asked.Add(patience)))
			defer t.Stop()
			late = t.C
		}
		select {
		case <-done:
		case <-late:
			if usable {
				return time.Until(limit), nil
			}
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: waiting for authority %q", keysvc.ErrUnavailable, k.up.name)
		}
	}
}

// gate says whether the authority may be asked about another key under k now.
// During an outage the probes ask; everybody else waits for them.
func (k *managedKey) gate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failures > 0 && (k.attempt != nil || time.Now().Before(k.nextTry)) {
		k.lastUse = time.Now()
		k.startRetry()
		if k.refused != nil {
			return k.refused
		}
		return fmt.Errorf("%w: authority %q is not answering", keysvc.ErrUnavailable, k.up.name)
	}
	return nil
}

// startProbe asks the authority about k in the background, one question at a
// time, and returns what is closed when it has answered; nil if there is nothing
// to ask with. The caller holds mu.
func (k *managedKey) startProbe(now time.Time) <-chan struct{} {
	if k.attempt != nil {
		return k.attempt
	}
	if k.failures > 0 && now.Before(k.nextTry) || k.wrapped == nil && k.probe == nil {
		return nil
	}
	done := make(chan struct{})
	k.attempt, k.asked = done, now
	if !k.e.background(func(ctx context.Context) {
		k.ask(ctx)
		k.mu.Lock()
		k.attempt = nil
		k.mu.Unlock()
		close(done)
	}) {
		k.attempt = nil
		return nil
	}
	return done
}

// ask unwraps the cache key, or a data key that opened before.
func (k *managedKey) ask(ctx context.Context) {
	k.mu.Lock()
	row, sample, bad := k.wrapped, k.probe, k.unusable
	k.mu.Unlock()
	if row != nil && !bad {
		err := k.openCacheKey(ctx, row)
		if !errors.Is(err, authority.ErrInvalid) {
			k.answered(err)
			return
		}
		k.e.log.Error("stored cache key does not open; what is cached under it stays closed",
			"authority", k.up.name, "managed_key", k.id)
		k.mu.Lock()
		k.unusable = true
		k.mu.Unlock()
	}
	if sample == nil {
		k.answered(fmt.Errorf("%w: nothing to confirm with", authority.ErrUnavailable))
		return
	}
	w, ec := wrapOf(sample)
	plain, err := k.up.unwrap(ctx, w, ec)
	clear(plain)
	k.answered(err)
}

// answered takes note of what the authority said about k, whoever asked.
func (k *managedKey) answered(err error) {
	switch {
	case err == nil:
		k.mu.Lock()
		if k.failures > 0 {
			k.e.log.Info("authority answers again", "authority", k.up.name, "managed_key", k.id, "after_failures", k.failures)
		}
		k.lastOK, k.failures, k.refused, k.nextTry = time.Now(), 0, nil, time.Time{}
		k.mu.Unlock()
	case authority.IsDecision(err):
		k.mu.Lock()
		first := k.refused == nil
		k.refused, k.lastOK = k.up.fromAuthority(err), time.Time{}
		k.cache.drop()
		k.cache = nil
		k.failed(refusalPause)
		k.mu.Unlock()
		n := k.e.opened.dropUnder(k)
		if first {
			k.e.log.Warn("authority refuses managed key; its data keys are dropped",
				"authority", k.up.name, "managed_key", k.id, "dropped", n, "err", err)
		}
	default:
		k.mu.Lock()
		if k.failures == 0 {
			k.e.log.Warn("authority does not answer", "authority", k.up.name, "managed_key", k.id, "err", err)
		}
		k.failed(outagePause)
		k.mu.Unlock()
	}
}

// met takes note of an error that a request for one data key got. Denied may
// concern only that key's encryption context, so the managed key itself is asked
// about; what is wrong with one wrap says nothing about the managed key.
func (k *managedKey) met(err error) {
	switch {
	case errors.Is(err, authority.ErrInvalid), errors.Is(err, errLied):
	case errors.Is(err, authority.ErrDenied):
		k.mu.Lock()
		k.startProbe(time.Now())
		k.mu.Unlock()
	default:
		k.answered(err)
	}
}

// failed counts a failure and sees that somebody tries again. The caller holds mu.
func (k *managedKey) failed(longest time.Duration) {
	k.failures++
	k.nextTry = time.Now().Add(backoff(k.failures, longest))
	k.startRetry()
}

// backoff doubles from firstPause up to longest, and spreads by a quarter.
func backoff(failures int, longest time.Duration) time.Duration {
	d := longest
	if failures < 10 {
		d = min(firstPause<<(failures-1), longest)
	}
	return d*3/4 + rand.N(d/4)
}

// startRetry keeps asking in the background until the authority answers or
// nobody wants the key any more. The caller holds mu.
func (k *managedKey) startRetry() {
	if k.retrying || k.failures == 0 || k.wrapped == nil && k.probe == nil {
		return
	}
	k.retrying = k.e.background(func(ctx context.Context) {
		for {
			k.mu.Lock()
			now := time.Now()
			if k.failures == 0 || now.Sub(k.lastUse) > idleAfter {
				k.retrying = false
				k.mu.Unlock()
				return
			}
			done := k.startProbe(now)
			pause := time.NewTimer(max(k.nextTry.Sub(now), time.Millisecond))
			k.mu.Unlock()
			wait := pause.C
			if done != nil {
				wait = nil
			}
			select {
			case <-done: // blocks for ever if nil
			case <-wait:
			case <-ctx.Done():
				pause.Stop()
				return
			}
			pause.Stop()
		}
	})
}

// staleLeft is what is left for opening while the authority fails; false while it answers.
func (k *managedKey) staleLeft(stale time.Duration) (time.Duration, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failures == 0 || time.Since(k.lastUse) > idleAfter {
		return 0, false
	}
	return max(0, time.Until(k.lastOK.Add(k.e.cfg.Confirm+stale))), true
}

// sample keeps a record that just opened, for probes.
func (k *managedKey) sample(rec *envelope.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.probe = rec
}
