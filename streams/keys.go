package streams

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// KeyOpener opens data keys; [keysvc.Client] is one, and streamstest.Keys for
// tests. OpenKeys answers each of at most [keysvc.MaxBatch] records in their
// order, with an error of its own. The Opener takes over the keys it gets and
// clears them. Where the record of an answer is not, byte for byte, the one that
// was brought, the wraps brought were not the ones that opened: the key is kept,
// the message that brought them is refused. Implementations are safe for
// concurrent use.
type KeyOpener interface {
	OpenKeys(ctx context.Context, records []keysvc.Record) ([]keysvc.OpenedKey, error)
}

var _ KeyOpener = (*keysvc.Client)(nil)

const (
	sessionsPerKey = 64   // about 1.5 KB each; more sealers of one key cost 5 us per miss
	maxRefusals    = 1024 // entries of the negative cache
	maxKnown       = 4    // forms of one key's record that are remembered as good
)

// want asks for one key: by the record a message carries, or by reference.
type want struct {
	id     keysvc.KeyID
	record []byte // nil: by reference
}

// askKey is what decides an answer: a refusal of one form of a record says
// nothing about another form.
type askKey struct {
	id     keysvc.KeyID
	record [32]byte // SHA-256; zero by reference
}

func (w want) ask() askKey {
	k := askKey{id: w.id}
	if w.record != nil {
		k.record = sha256.Sum256(w.record)
	}
	return k
}

// heldKey is one key with its lease. The fields below reader are guarded by the
// cache's lock.
type heldKey struct {
	id     keysvc.KeyID
	scope  string
	reader *envelope.KeyReader // dropped together with its sessions when the lease ends

	core      envelope.Core
	known     [][]byte // forms of the record that opened, the service's own first
	notAfter  time.Time
	refreshAt time.Time
	used      bool // since the last answer
	asking    bool // a refresh is under way
	timer     *time.Timer
}

func (k *heldKey) knows(record []byte) bool {
	return record == nil || slices.ContainsFunc(k.known, func(b []byte) bool { return string(b) == string(record) })
}

func (k *heldKey) learn(record []byte) {
	if record != nil && !k.knows(record) {
		k.known = append(k.known, slices.Clone(record))
		if len(k.known) > maxKnown {
			k.known = slices.Delete(k.known, 1, 2) // the service's own stays
		}
	}
}

// refusal is an entry of the negative cache.
type refusal struct {
	err   error
	until time.Time
}

// keyCache holds opened keys within their leases. Lock order: mu alone; it is
// never held during a call to the key service.
type keyCache struct {
	keys   KeyOpener
	accept *Accept
	max    int
	times  timing
	limit  *limiter // checks of changed wraps
	base   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // calls under way

	mu       sync.Mutex // guards the fields below
	held     map[keysvc.KeyID]*list.Element
	recent   list.List // of *heldKey; front: most recently used
	refusals map[askKey]refusal
	flights  map[askKey]*flight
	closed   bool
}

// flight is one question under way; done closes after err or key is set.
type flight struct {
	done chan struct{}
	key  *heldKey
	err  error
}

func newKeyCache(keys KeyOpener, accept *Accept, limit int, times timing) *keyCache {
	c := &keyCache{
		keys: keys, accept: accept, max: limit, times: times,
		limit: newLimiter(time.Second, 10),
		held:  make(map[keysvc.KeyID]*list.Element), refusals: make(map[askKey]refusal), flights: make(map[askKey]*flight),
	}
	c.base, c.cancel = context.WithCancel(context.Background())
	return c
}

// get returns the key w asks for, within its lease, asking the key service where
// it must. The error wraps one sentinel of this package.
func (c *keyCache) get(ctx context.Context, w want) (*heldKey, error) {
	f, key, err := c.start(w)
	if err != nil || key != nil {
		return key, err
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	if f.err != nil {
		return nil, f.err
	}
	return f.key, nil
}

// start finds the key in the cache, an error that is certain already, or the
// flight to wait for.
func (c *keyCache) start(w want) (*flight, *heldKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, ErrClosed
	}
	held := c.lookup(w.id)
	if held != nil && held.knows(w.record) {
		return nil, held, nil
	}
	ask := w.ask()
	if r, ok := c.refusals[ask]; ok && time.Now().Before(r.until) {
		return nil, nil, r.err
	}
	if f := c.flights[ask]; f != nil {
		return f, nil, nil
	}
	if err := c.check(w); err != nil {
		return nil, nil, err
	}
	if held == nil {
		return c.fly([]want{w})[0], nil, nil
	}
	if !c.limit.allow() {
		return nil, nil, fmt.Errorf("%w: too many changed key records at once", ErrUnavailable)
	}
	return c.recheck(held, w), nil, nil
}

// holds reports whether w can be answered without asking.
func (c *keyCache) holds(w want) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.lookup(w.id)
	return k != nil && k.knows(w.record)
}

// check is all that can be said about an inline record without its key. A key of
// a scope that is not accepted is never asked for.
func (c *keyCache) check(w want) error {
	if w.record == nil {
		return nil
	}
	r, err := envelope.ParseRecord(w.record)
	if err != nil {
		return envelopeError(err)
	}
	if r.Core.ID() != w.id {
		return ErrTampered
	}
	return c.accept.core(&r.Core)
}

// prefetch asks for all keys that ws need and the cache lacks in one round trip,
// and waits for it. A failure shows when the message that needs the key is opened.
func (c *keyCache) prefetch(ctx context.Context, ws []want) {
	for _, f := range c.startAll(ws, min(keysvc.MaxBatch, c.max)) {
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		}
	}
}

// startAll starts one call for those of ws, once each and at most limit, that
// may be asked for and are not held, refused or asked for already.
func (c *keyCache) startAll(ws []want, limit int) []*flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	var miss []want
	seen := make(map[keysvc.KeyID]bool)
	for _, w := range ws {
		if len(miss) == limit {
			break
		}
		if seen[w.id] || c.lookup(w.id) != nil {
			continue
		}
		seen[w.id] = true
		ask := w.ask()
		if r, ok := c.refusals[ask]; ok && time.Now().Before(r.until) || c.flights[ask] != nil {
			continue
		}
		if c.check(w) == nil {
			miss = append(miss, w)
		}
	}
	if len(miss) == 0 {
		return nil
	}
	return c.fly(miss)
}

// lookup returns a key within its lease and starts its refresh when it is time.
// mu is held.
func (c *keyCache) lookup(id keysvc.KeyID) *heldKey {
	el := c.held[id]
	if el == nil {
		return nil
	}
	k := el.Value.(*heldKey)
	now := time.Now()
	if !now.Before(k.notAfter) {
		c.drop(k)
		return nil
	}
	c.recent.MoveToFront(el)
	k.used = true
	if !k.asking && !now.Before(k.refreshAt) {
		c.refresh(now)
	}
	return k
}

// drop forgets a key, its sessions and its ciphers. mu is held.
func (c *keyCache) drop(k *heldKey) {
	el := c.held[k.id]
	if el == nil || el.Value.(*heldKey) != k {
		return
	}
	delete(c.held, k.id)
	c.recent.Remove(el)
	k.timer.Stop()
	k.reader.Close()
}

// expire drops a key whose lease has ended though nobody asks for it any more.
func (c *keyCache) expire(k *heldKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if left := time.Until(k.notAfter); left > 0 {
		k.timer.Reset(left) // the lease was renewed meanwhile
		return
	}
	c.drop(k)
}

// refuse remembers an answer for a short time, so that a bad key in a hot loop
// does not flood the key service. mu is held.
func (c *keyCache) refuse(ask askKey, err error) {
	if errors.Is(err, ErrClosed) {
		return
	}
	d := c.times.refuseShort
	if Verdict(err) == Reject {
		d = c.times.refuseFinal
	}
	now := time.Now()
	if len(c.refusals) >= maxRefusals {
		for k, r := range c.refusals {
			if !now.Before(r.until) {
				delete(c.refusals, k)
			}
		}
		for k := range c.refusals {
			if len(c.refusals) < maxRefusals {
				break
			}
			delete(c.refusals, k)
		}
	}
	c.refusals[ask] = refusal{err, now.Add(d)}
}

// answer puts an answer into the cache and says whether it is one to w: with a
// record, its very bytes must have opened. mu is held.
func (c *keyCache) answer(w want, o *keysvc.OpenedKey) (*heldKey, error) {
	k, err := c.install(w, o)
	if err == nil && !k.knows(w.record) {
		return nil, ErrTampered
	}
	return k, err
}

// install puts an answer into the cache. mu is held.
func (c *keyCache) install(w want, o *keysvc.OpenedKey) (*heldKey, error) {
	defer o.Key.Clear()
	if o.Err != nil {
		return nil, answerError(o.Err)
	}
	record, err := envelope.ParseRecord(o.Record)
	if err != nil {
		return nil, envelopeError(err)
	}
	if o.KeyID != w.id || record.Core.ID() != w.id {
		return nil, ErrTampered
	}
	if err := c.accept.core(&record.Core); err != nil {
		return nil, err
	}
	if !time.Now().Before(o.NotAfter) {
		return nil, fmt.Errorf("%w: the lease had ended when the key came", ErrUnavailable)
	}
	if el := c.held[w.id]; el != nil {
		k := el.Value.(*heldKey)
		if k.core.Verify(o.Key) != nil {
			return nil, ErrTampered
		}
		c.renew(k, o)
		return k, nil
	}
	reader, err := envelope.NewKeyReader(record, o.Key, sessionsPerKey)
	if err != nil {
		return nil, ErrTampered
	}
	k := &heldKey{id: w.id, scope: record.Core.Scope(), core: record.Core, reader: reader}
	k.timer = time.AfterFunc(time.Until(o.NotAfter), func() { c.expire(k) })
	c.renew(k, o)
	c.held[w.id] = c.recent.PushFront(k)
	if c.recent.Len() > c.max {
		c.drop(c.recent.Back().Value.(*heldKey))
	}
	return k, nil
}

// renew applies the newest answer, a shorter lease too. mu is held.
func (c *keyCache) renew(k *heldKey, o *keysvc.OpenedKey) {
	if len(k.known) == 0 {
		k.known = [][]byte{slices.Clone(o.Record)}
	} else {
		k.learn(o.Record)
	}
	k.notAfter, k.refreshAt = o.NotAfter, o.RefreshAt
	if left := time.Until(k.notAfter); time.Until(k.refreshAt) <= 0 {
		k.refreshAt = k.notAfter.Add(-left / 5)
	}
	k.used = false
	k.timer.Reset(time.Until(k.notAfter))
}

// close ends all calls, waits for them and drops every key.
func (c *keyCache) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.recent.Len() > 0 {
		c.drop(c.recent.Front().Value.(*heldKey))
	}
	clear(c.refusals)
}

// jitter spreads d over 75 to 125 %.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}
