package local

// Cached returns the opened versions of a key that are in memory.
func (a *Authority) Cached(id string) (out [][]byte) {
	a.cache.mu.Lock()
	defer a.cache.mu.Unlock()
	for v := range a.cache.byKey[id] {
		if s, ok := a.cache.lru.Peek(versionID{id, v}); ok {
			out = append(out, append([]byte(nil), s[:]...))
		}
	}
	return out
}

// CacheLen is how many versions are in memory.
func (a *Authority) CacheLen() int {
	a.cache.mu.Lock()
	defer a.cache.mu.Unlock()
	return a.cache.lru.Len()
}

// Secret is key material as the package holds it.
type Secret = secret
