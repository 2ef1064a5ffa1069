package keyserver

import (
	"container/list"
	"errors"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// openedKey is one opened data key in memory.
type openedKey struct {
	id      envelope.KeyID
	raw     []byte // key record
	record  *envelope.Record
	rule    *rule
	managed *managedKey

	mu      sync.RWMutex // guards key against being cleared while in use
	key     envelope.DataKey
	lastUse time.Time // owned by openedCache.mu
}

var errDropped = errors.New("key was dropped")

// use calls f with the key, which stays as it is until f returns, or answers errDropped.
func (o *openedKey) use(f func(envelope.DataKey) error) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.key.IsZero() {
		return errDropped
	}
	return f(o.key)
}

func (o *openedKey) clear() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.key.Clear()
}

// openedCache is a bounded LRU of opened keys. Dropping clears them.
type openedCache struct {
	max int

	mu    sync.Mutex
	order *list.List // of *openedKey, most recently used in front
	by    map[envelope.KeyID]*list.Element
	under map[*managedKey]map[envelope.KeyID]struct{}
}

func newOpenedCache(max int) *openedCache {
	return &openedCache{max: max, order: list.New(), by: map[envelope.KeyID]*list.Element{}, under: map[*managedKey]map[envelope.KeyID]struct{}{}}
}

func (c *openedCache) get(id envelope.KeyID) *openedKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.by[id]
	if !ok {
		return nil
	}
	c.order.MoveToFront(el)
	o := el.Value.(*openedKey)
	o.lastUse = time.Now()
	return o
}

// add keeps o, or returns the entry that is already there and clears o.
func (c *openedCache) add(o *openedKey) *openedKey {
	var gone []*openedKey
	defer func() {
		for _, g := range gone {
			g.clear()
		}
	}()
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.by[o.id]; ok {
		gone = append(gone, o)
		return el.Value.(*openedKey)
	}
	o.lastUse = time.Now()
	c.by[o.id] = c.order.PushFront(o)
	ids := c.under[o.managed]
	if ids == nil {
		ids = map[envelope.KeyID]struct{}{}
		c.under[o.managed] = ids
	}
	ids[o.id] = struct{}{}
	for c.order.Len() > c.max {
		gone = append(gone, c.remove(c.order.Back()))
	}
	return o
}

// remove takes one entry out; the caller holds mu and clears it afterwards.
func (c *openedCache) remove(el *list.Element) *openedKey {
	o := c.order.Remove(el).(*openedKey)
	delete(c.by, o.id)
	ids := c.under[o.managed]
	delete(ids, o.id)
	if len(ids) == 0 {
		delete(c.under, o.managed)
	}
	return o
}

// dropUnder clears every key under m and returns how many there were.
func (c *openedCache) dropUnder(m *managedKey) int {
	c.mu.Lock()
	var gone []*openedKey
	for id := range c.under[m] {
		gone = append(gone, c.remove(c.by[id]))
	}
	c.mu.Unlock()
	for _, o := range gone {
		o.clear()
	}
	return len(gone)
}

// sweep clears entries that nobody used for as long as they could serve.
func (c *openedCache) sweep(idle func(*openedKey) time.Duration) {
	now := time.Now()
	c.mu.Lock()
	var gone []*openedKey
	for el := c.order.Back(); el != nil; {
		o, next := el.Value.(*openedKey), el.Prev()
		if now.Sub(o.lastUse) > idle(o) {
			gone = append(gone, c.remove(el))
		}
		el = next
	}
	c.mu.Unlock()
	for _, o := range gone {
		o.clear()
	}
}

// close clears everything.
func (c *openedCache) close() {
	c.sweep(func(*openedKey) time.Duration { return -1 })
}

// has reports whether a key under m is in memory.
func (c *openedCache) has(m *managedKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.under[m]) > 0
}

func (c *openedCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}
