package local

import (
	"fmt"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/keyweir/keyweir/keysvc/authority"
)

type versionID struct {
	key     string
	version uint64
}

// versionCache keeps opened key versions, least recently used first out. It
// hands out copies, so that it can clear what it drops.
type versionCache struct {
	mu  sync.Mutex
	lru *simplelru.LRU[versionID, *secret] // under mu
	// byKey finds the cached versions of a key without a walk. Under mu.
	byKey map[string]map[uint64]struct{}
}

func newVersionCache(size int) (*versionCache, error) {
	c := &versionCache{byKey: make(map[string]map[uint64]struct{})}
	var err error
	c.lru, err = simplelru.NewLRU(size, c.dropped)
	if err != nil {
		return nil, fmt.Errorf("making cache of %d versions: %w: %v", size, authority.ErrInvalid, err)
	}
	return c, nil
}

// dropped runs under mu whenever an entry leaves.
func (c *versionCache) dropped(id versionID, v *secret) {
	clear(v[:])
	versions := c.byKey[id.key]
	delete(versions, id.version)
	if len(versions) == 0 {
		delete(c.byKey, id.key)
	}
}

// get returns a copy.
func (c *versionCache) get(key string, version uint64) (*secret, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.lru.Get(versionID{key, version})
	if !ok {
		return nil, false
	}
	out := *v
	return &out, true
}

// add keeps a copy of v. An entry that is there already is the same version.
func (c *versionCache) add(key string, version uint64, v *secret) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := versionID{key, version}
	if c.lru.Contains(id) {
		return
	}
	if c.byKey[key] == nil {
		c.byKey[key] = make(map[uint64]struct{})
	}
	c.byKey[key][version] = struct{}{}
	held := *v
	c.lru.Add(id, &held)
}

// drop forgets all versions of a key.
func (c *versionCache) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for version := range c.byKey[key] {
		c.lru.Remove(versionID{key, version})
	}
}

func (c *versionCache) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Purge()
}
