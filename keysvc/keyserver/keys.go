package keyserver

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc"
)

// errInternal is what requesters hear of faults that are none of their business.
var errInternal = fmt.Errorf("%w: internal error of the key service", keysvc.ErrUnavailable)

// directory resolves key IDs for everybody, and takes every new key before its
// first use.
type directory interface {
	// Publish stores a key record. It is idempotent.
	Publish(ctx context.Context, id envelope.KeyID, record []byte) error
	// Lookup returns a key record whose entry a service identity signed and whose
	// core hashes to id. Errors wrap sentinels of keysvc.
	Lookup(ctx context.Context, id envelope.KeyID) ([]byte, error)
}

// engine makes, caches and opens data keys. It knows nothing of NATS and takes no
// policy decision: handlers do.
type engine struct {
	cfg     Config
	log     *slog.Logger
	rules   *rules
	store   *keycache.Store
	dir     directory
	met     *metrics
	up      map[string]*upstream
	managed *managedKeys
	opened  *openedCache
	scopes  *scopeKeys
	refused *negative
	flights singleflight.Group
	fatal   func(error)
	// storedKeys is how many key records the store held at start.
	storedKeys atomic.Uint64

	homeMu sync.Mutex
	home   *managedKey // whose cache key seals new route keys

	defaultMu sync.Mutex
	defaults  map[managedName]*managedKey // by authority and the name it was asked for

	ctx      context.Context // ends background work
	cancel   context.CancelFunc
	storeCtx context.Context // ends after it, so that what was decided is written
	mu       sync.Mutex      // guards closed against wg
	closed   bool
	wg       sync.WaitGroup
	keep     chan keptKey
	kept     chan struct{} // closed when the keeper ended
	keepCtx  context.Context
	keepEnd  context.CancelFunc
}

const (
	sweepEvery = time.Minute
	// closeGrace is how long closing waits for an authority, to keep opened keys.
	closeGrace = 2 * time.Second
)

func newEngine(cfg Config, rs *rules, dir directory, met *metrics, fatal func(error)) (*engine, error) {
	e := &engine{
		cfg: cfg, log: cfg.Logger, rules: rs, store: cfg.Store, dir: dir, met: met, fatal: fatal,
		up:       map[string]*upstream{},
		opened:   newOpenedCache(cfg.Cache),
		refused:  newNegative(),
		defaults: map[managedName]*managedKey{},
		storeCtx: context.Background(),
		keep:     make(chan keptKey, 1024),
		kept:     make(chan struct{}),
	}
	e.managed = &managedKeys{e: e, by: map[managedName]*managedKey{}}
	e.scopes = newScopeKeys(cfg.Cache)
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.keepCtx, e.keepEnd = context.WithCancel(context.Background())
	for name, a := range cfg.Authorities {
		e.up[name] = newUpstream(name, a, met, cfg.AuthorityTimeout)
	}
	if err := e.load(); err != nil {
		e.cancel()
		e.keepEnd()
		e.wg.Wait()
		return nil, fmt.Errorf("reading store: %w", err)
	}
	go e.keeper()
	e.background(e.janitor)
	return e, nil
}

// load finds the cache keys of the store and starts opening them, one call each.
func (e *engine) load() error {
	for row, err := range e.store.Scan([]byte(cacheKeyRows)) {
		if err != nil {
			return err
		}
		name, id, ok := strings.Cut(string(row.Key[len(cacheKeyRows):]), "\x00")
		up := e.up[name]
		if !ok || up == nil {
			e.log.Warn("store has a cache key of an authority that is not configured", "authority", name)
			continue
		}
		parsed, err := parseCacheKeyRow(row.Value)
		if err != nil {
			return fmt.Errorf("authority %q: %w", name, err)
		}
		k := e.managed.known(up, id)
		k.wrapped = parsed
	}
	for row, err := range e.store.Scan([]byte(homeRow)) {
		if err != nil {
			return err
		}
		name, id, _ := strings.Cut(string(row.Value), "\x00")
		if up := e.up[name]; up != nil && string(row.Key) == homeRow {
			e.home = e.managed.find(up, id)
		}
	}
	e.countRecords()
	for _, k := range e.managed.all() {
		k.mu.Lock()
		k.lastUse = time.Now()
		k.startProbe(k.lastUse)
		k.mu.Unlock()
	}
	return nil
}

// background runs f until it returns or the engine closes; false if it is closed.
func (e *engine) background(f func(context.Context)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.wg.Go(func() { f(e.ctx) })
	return true
}

// close ends background work, writes what is still to be kept and clears all keys.
func (e *engine) close() {
	e.mu.Lock()
	was := e.closed
	e.closed = true
	e.mu.Unlock()
	if was {
		return
	}
	e.cancel()
	e.wg.Wait()
	last := time.AfterFunc(closeGrace, e.keepEnd)
	defer last.Stop()
	close(e.keep) // nobody sends any more: senders are background work and flights
	<-e.kept
	e.keepEnd()
	e.opened.close()
	for _, k := range e.managed.all() {
		k.mu.Lock()
		k.cache.drop()
		k.mu.Unlock()
	}
}

// dataKeys is how many data keys the store knows: those it held at start, once
// they are counted, and those made since.
func (e *engine) dataKeys() uint64 { return e.storedKeys.Load() + e.met.created.Load() }

// countRecords counts in the background the key records that are in the store
// when it is called: the view of the store is taken here.
func (e *engine) countRecords() {
	next, stop := iter.Pull2(e.store.Scan([]byte(recordRows)))
	_, err, more := next()
	e.background(func(ctx context.Context) {
		defer stop()
		for ; more && err == nil && ctx.Err() == nil; _, err, more = next() {
			e.storedKeys.Add(1)
		}
	})
}

// janitor bounds caches in time.
func (e *engine) janitor(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		e.opened.sweep(func(o *openedKey) time.Duration { return o.rule.Lease + o.rule.Stale.Open })
		e.scopes.sweep()
		e.managed.sweep(e.longest())
		e.refused.sweep()
	}
}

// flight runs f once for all who ask for the same name at a time, in the
// background: who stops waiting does not stop it, and its result is kept for the
// next who asks.
func flight[T any](ctx context.Context, e *engine, name string, f func(context.Context) (T, error)) (T, error) {
	var zero T
	ch := e.flights.DoChan(name, func() (any, error) {
		type result struct {
			v   T
			err error
		}
		done := make(chan result, 1)
		if !e.background(func(ctx context.Context) {
			v, err := f(ctx)
			done <- result{v, err}
		}) {
			return nil, fmt.Errorf("%w: the key service is closing", keysvc.ErrUnavailable)
		}
		r := <-done
		return r.v, r.err
	})
	select {
	case r := <-ch:
		if r.Err != nil {
			return zero, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return zero, fmt.Errorf("%w: the request's time is over", keysvc.ErrUnavailable)
	}
}

// defaultKey is the managed key that a name, "" for the default one, last meant.
func (e *engine) defaultKey(up *upstream, name string) *managedKey {
	e.defaultMu.Lock()
	defer e.defaultMu.Unlock()
	return e.defaults[managedName{up.name, name}]
}

// noteDefault remembers it. Only the default key is remembered for direct scopes;
// scopes with a key of their own remember it with their current key.
func (e *engine) noteDefault(up *upstream, name string, k *managedKey) {
	if name != "" {
		return
	}
	e.defaultMu.Lock()
	defer e.defaultMu.Unlock()
	e.defaults[managedName{up.name, name}] = k
}

// longest is how long a data key can serve without anybody asking for it.
func (e *engine) longest() time.Duration {
	d := time.Duration(0)
	for _, r := range e.rules.list {
		d = max(d, r.Lease+r.Stale.Open, r.Reuse+r.Stale.Seal)
	}
	return d + e.cfg.Confirm
}

// routeStale is the stale limit for route keys: that of the first rule.
func (e *engine) routeStale() time.Duration { return e.rules.list[0].Stale.Open }

// staleLeft is the least time left for opening of all keys whose authority fails,
// in seconds; negative if none does.
func (e *engine) staleLeft() float64 {
	least := -1.0
	for _, k := range e.managed.all() {
		for _, r := range e.rules.list {
			if r.Authorities[0] != k.up.name {
				continue
			}
			if left, failing := k.staleLeft(r.Stale.Open); failing && (least < 0 || left.Seconds() < least) {
				least = left.Seconds()
			}
			break
		}
	}
	return least
}

// negative remembers for a moment that something cannot be opened, so that asking
// again costs nothing. Bounded in size and time.
type negative struct {
	mu sync.Mutex
	by map[string]refusal
}

type refusal struct {
	err   error
	until time.Time
}

const (
	maxNegative = 10_000
	// How long a refusal counts: a record that does not open will not, a key ID
	// nobody knows may be known in a moment.
	refusedFor  = 5 * time.Second
	notFoundFor = time.Second
)

func newNegative() *negative { return &negative{by: map[string]refusal{}} }

func (n *negative) get(key string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	r, ok := n.by[key]
	if !ok || !time.Now().Before(r.until) {
		return nil
	}
	return r.err
}

// put remembers err if it says something that stays true for a moment.
func (n *negative) put(key string, err error) {
	var d time.Duration
	switch {
	case errors.Is(err, keysvc.ErrNotFound):
		d = notFoundFor
	case errors.Is(err, keysvc.ErrInvalid), errors.Is(err, keysvc.ErrSuspended), errors.Is(err, keysvc.ErrDestroyed):
		d = refusedFor
	default:
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.by) >= maxNegative {
		clear(n.by) // it is only a shortcut
	}
	n.by[key] = refusal{err, time.Now().Add(d)}
}

func (n *negative) sweep() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for k, r := range n.by {
		if !now.Before(r.until) {
			delete(n.by, k)
		}
	}
}
