package keyserver

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// leastReuse is the least time a grant is worth giving for; a key with less left
// is as good as over.
const leastReuse = 50 * time.Millisecond

// scopeKey is the current data key of one scope.
//
//	made                         80 %           end                end + stale
//	 |  grants until end          | + renew      | if renewing is an    |
//	 |                            |   behind     | outage: short grants | refused
type scopeKey struct {
	r     *rule
	scope string

	mu       sync.Mutex
	loaded   bool // the store was asked
	cur      *current
	pending  *freshKey // made and verified, not yet in the directory
	failures int       // of renewing, in a row
	nextTry  time.Time
	refused  error // the authority's decision on the last renewal
	lastUse  time.Time

	behind atomic.Bool // a renewal in the background runs
}

type current struct {
	resolved
	ahead, end time.Time // monotonic
}

// scopeKeys is a bounded LRU of them, by rule and scope: two rules that compute
// one scope may differ in authority.
type scopeKeys struct {
	mu  sync.Mutex
	lru *simplelru.LRU[scopeName, *scopeKey]
}

type scopeName struct {
	r     *rule
	scope string
}

func newScopeKeys(size int) *scopeKeys {
	lru, err := simplelru.NewLRU[scopeName, *scopeKey](size, nil)
	if err != nil {
		panic("keyserver: internal error: " + err.Error()) // the size was checked
	}
	return &scopeKeys{lru: lru}
}

func (s *scopeKeys) get(r *rule, scope string) *scopeKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := scopeName{r, scope}
	if k, ok := s.lru.Get(n); ok {
		return k
	}
	k := &scopeKey{r: r, scope: scope}
	s.lru.Add(n, k)
	return k
}

// sweep forgets scopes that could not be sealed for any more without the authority.
func (s *scopeKeys) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for {
		_, k, ok := s.lru.GetOldest()
		if !ok {
			return
		}
		k.mu.Lock()
		idle := now.Sub(k.lastUse) > k.r.Reuse+k.r.Stale.Seal
		k.mu.Unlock()
		if !idle {
			return
		}
		s.lru.RemoveOldest()
	}
}

// sealGrant is what a sealer gets for a scope.
type sealGrant struct {
	id     envelope.KeyID
	record []byte
	salt   envelope.Salt
	subkey []byte // owned by the receiver, who clears it
	reuse  time.Duration
}

// Format keeps the subkey out of logs: fmt does not ask fields that are not exported.
func (g sealGrant) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "grant under "+g.id.String())
}

// seal grants one session for a scope under its current data key.
func (e *engine) seal(ctx context.Context, r *rule, scope string) (g sealGrant, hit bool, err error) {
	sk := e.scopes.get(r, scope)
	cur, until, waited, err := e.currentKey(ctx, sk)
	if err != nil {
		return sealGrant{}, false, err
	}
	k, err := e.open(ctx, &cur.resolved, r.Stale.Seal)
	if err != nil {
		return sealGrant{}, false, err
	}
	g = sealGrant{id: cur.id, reuse: min(time.Until(until), k.left)}
	if g.reuse < leastReuse {
		return sealGrant{}, false, fmt.Errorf("%w: the stale limit is over", keysvc.ErrUnavailable)
	}
	err = k.use(func(key envelope.DataKey) error {
		gr, err := envelope.NewGrant(key, k.record)
		if err != nil {
			return err
		}
		g.record, g.salt, g.subkey = envelope.ExposeGrant(gr)
		return nil
	})
	if err != nil {
		e.log.Error("making grant failed", "key_id", cur.id.String(), "err", err)
		return sealGrant{}, false, errInternal
	}
	return g, !waited && !k.asked, nil
}

// currentKey returns the key that seals for a scope now, and until when. It waits
// for a new one only where the old one is over.
func (e *engine) currentKey(ctx context.Context, sk *scopeKey) (cur *current, until time.Time, waited bool, err error) {
	for {
		sk.mu.Lock()
		if !sk.loaded {
			if sk.cur, err = e.loadCurrent(sk); err != nil {
				sk.mu.Unlock()
				return nil, time.Time{}, false, err
			}
			sk.loaded = true
		}
		now := time.Now()
		sk.lastUse = now
		may := !now.Before(sk.nextTry)
		cur = sk.cur
		switch {
		case sk.refused != nil && (!may || waited):
			// Decided: no grant under the old key either.
			err = sk.refused
			sk.mu.Unlock()
			return nil, time.Time{}, waited, err
		case cur != nil && sk.refused == nil && now.Before(cur.end.Add(-leastReuse)):
			behind := may && !now.Before(cur.ahead)
			sk.mu.Unlock()
			if behind {
				e.renewBehind(sk)
			}
			return cur, cur.end, waited, nil
		case sk.failures > 0 && (!may || waited):
			stale := sk.r.Stale.Seal
			sk.mu.Unlock()
			if cur != nil && now.Before(cur.end.Add(stale)) {
				return cur, earlier(now.Add(sk.r.Lease), cur.end.Add(stale)), waited, nil
			}
			return nil, time.Time{}, waited, fmt.Errorf("%w: no data key can be made, and the stale limit is over", keysvc.ErrUnavailable)
		}
		sk.mu.Unlock()
		wait := ctx
		if cur != nil {
			var cancel context.CancelFunc
			wait, cancel = context.WithTimeout(ctx, patience)
			defer cancel()
		}
		_, err := e.renew(wait, sk)
		if err != nil && wait.Err() != nil && ctx.Err() == nil {
			// The authority hangs: go on as in an outage.
			if stale := sk.r.Stale.Seal; now.Before(cur.end.Add(stale)) {
				return cur, earlier(time.Now().Add(sk.r.Lease), cur.end.Add(stale)), true, nil
			}
		}
		if ctx.Err() != nil {
			return nil, time.Time{}, true, fmt.Errorf("%w: waiting for a data key", keysvc.ErrUnavailable)
		}
		sk.mu.Lock()
		stuck := err != nil && sk.failures == 0 && sk.refused == nil
		sk.mu.Unlock()
		if stuck {
			return nil, time.Time{}, true, err
		}
		waited = true
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// renew makes a new current key, once for all who ask at a time.
func (e *engine) renew(ctx context.Context, sk *scopeKey) (struct{}, error) {
	return flight(ctx, e, fmt.Sprintf("renew/%p", sk), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, e.makeCurrent(ctx, sk)
	})
}

// renewBehind does so in the background.
func (e *engine) renewBehind(sk *scopeKey) {
	if !sk.behind.CompareAndSwap(false, true) {
		return
	}
	if !e.background(func(ctx context.Context) {
		defer sk.behind.Store(false)
		_, _ = e.renew(ctx, sk) // a failure is noted in sk and logged
	}) {
		sk.behind.Store(false)
	}
}

// makeCurrent makes a data key, verifies it, puts it into directory and store,
// and only then makes it the scope's current one. In that order a key ID that is
// in use can be resolved by everybody, and a crash in between leaves a directory
// entry nobody refers to.
func (e *engine) makeCurrent(ctx context.Context, sk *scopeKey) error {
	sk.mu.Lock()
	f, r, first := sk.pending, sk.r, sk.cur == nil
	fresh := sk.cur != nil && time.Now().Before(sk.cur.ahead) // somebody was quicker
	sk.mu.Unlock()
	if fresh {
		return nil
	}
	if f == nil {
		var err error
		if f, err = e.newKeyFor(ctx, sk); err != nil {
			return e.renewFailed(sk, err)
		}
	}
	if err := e.dir.Publish(ctx, f.id, f.raw); err != nil {
		sk.mu.Lock()
		sk.pending = f // it cost two calls
		sk.mu.Unlock()
		e.log.Warn("key directory does not take a new key; the old one goes on", "err", err)
		return e.renewFailed(sk, fmt.Errorf("%w: key directory: %v", authority.ErrUnavailable, err))
	}
	var b keycache.Batch
	b.Put(recordRow(f.id), f.raw)
	b.Put(currentRow(r.Authorities[0], sk.scope), f.id[:])
	if err := e.apply(&b); err != nil {
		f.clear()
		return e.renewFailed(sk, fmt.Errorf("%w: store", authority.ErrUnavailable))
	}
	o := e.opened.add(&openedKey{id: f.id, raw: f.raw, record: f.record, rule: r, managed: f.managed, key: f.key})
	e.remember(o, false)
	now := time.Now()
	sk.mu.Lock()
	defer sk.mu.Unlock()
	if sk.failures > 0 {
		e.log.Info("new data keys are made again", "scope", sk.scope)
	}
	sk.pending, sk.failures, sk.refused, sk.nextTry = nil, 0, nil, time.Time{}
	sk.cur = newCurrent(resolved{id: f.id, record: f.record, raw: f.raw, rule: r}, now, 0, first)
	return nil
}

// newKeyFor creates a key unless the authority is known to be away.
func (e *engine) newKeyFor(ctx context.Context, sk *scopeKey) (*freshKey, error) {
	up := e.up[sk.r.Authorities[0]]
	name := ""
	if sk.r.Keys == KeysManaged {
		name = ManagedAlias(sk.scope)
	}
	if k := e.defaultKey(up, name); k != nil {
		if err := k.gate(); errors.Is(err, keysvc.ErrUnavailable) {
			return nil, fmt.Errorf("%w: %v", authority.ErrUnavailable, err)
		}
	}
	return e.createDataKey(ctx, sk.r, sk.scope)
}

func (e *engine) renewFailed(sk *scopeKey, err error) error {
	out := e.up[sk.r.Authorities[0]].fromAuthority(err)
	sk.mu.Lock()
	defer sk.mu.Unlock()
	sk.failures++
	longest := outagePause
	if !outage(err) {
		sk.refused, longest = out, refusalPause
	}
	sk.nextTry = time.Now().Add(backoff(sk.failures, longest))
	if sk.failures == 1 {
		e.log.Warn("making a data key failed", "scope", sk.scope, "err", err)
	}
	return out
}

// newCurrent sets the times of a key of the given age. The first period of a scope
// ends earlier by up to half, by a hash of the scope, so that scopes that start
// together do not roll together.
func newCurrent(rs resolved, now time.Time, age time.Duration, first bool) *current {
	reuse := rs.rule.Reuse
	ahead := reuse * 8 / 10
	if first {
		h := fnv.New32a()
		_, _ = h.Write([]byte(rs.record.Core.Scope()))
		ahead -= time.Duration(float64(ahead/2) * float64(h.Sum32()%1024) / 1024)
	}
	return &current{resolved: rs, ahead: now.Add(ahead - age), end: now.Add(reuse - age)}
}

// loadCurrent reads the current key of a scope from the store; nil if there is
// none that counts. The store does not authenticate the row: the record it names
// must be of this scope, authority and context.
func (e *engine) loadCurrent(sk *scopeKey) (*current, error) {
	id, err := e.get(currentRow(sk.r.Authorities[0], sk.scope))
	if err != nil || len(id) != envelope.KeyIDSize {
		return nil, err
	}
	raw, err := e.get(recordRow(envelope.KeyID(id)))
	if err != nil || raw == nil {
		return nil, err
	}
	rec, err := parseRecord(envelope.KeyID(id), raw)
	if err != nil {
		e.log.Error("stored current key is damaged; making a new one", "scope", sk.scope, "err", err)
		return nil, nil
	}
	want := sk.r.core(sk.scope)
	want.RecordID = rec.Core.RecordID
	if !sameContext(rec.Core.WrapContext(0), want.WrapContext(0)) || rec.Core.Scheme != want.Scheme {
		return nil, nil // the rule has changed
	}
	age := time.Since(time.Unix(rec.Core.Created, 0))
	if age < -time.Minute || age > sk.r.Reuse+sk.r.Stale.Seal {
		return nil, nil
	}
	return newCurrent(resolved{id: envelope.KeyID(id), record: rec, raw: raw, rule: sk.r}, time.Now(), max(age, 0), false), nil
}

func sameContext(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for n, v := range a {
		if w, ok := b[n]; !ok || w != v {
			return false
		}
	}
	return true
}
