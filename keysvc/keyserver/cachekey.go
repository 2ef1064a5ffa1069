package keyserver

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// A cache key seals what the store keeps under one managed key, and is itself
// wrapped by that managed key: after a restart one unwrap brings all of it back,
// and whoever may not use the managed key gets nothing. Two keys are derived from
// its 32 bytes: for opened data keys and for route keys.
//
// A wrap of a cache key is bound to its use and service, so it never passes for
// that of a data key.
type cacheKey struct {
	mu             sync.RWMutex
	opened, routes cipher.AEAD // nil once dropped
}

const (
	labelCacheCommit = "keyweir/v1/cache/commit"
	labelCacheOpened = "keyweir/v1/cache/opened"
	labelCacheRoutes = "keyweir/v1/cache/routes"
	useCache         = "cache"
	contextService   = envelope.ReservedPrefix + "service"
	contextAuthority = envelope.ReservedPrefix + "authority"

	// cacheKeyPause is how long nothing is cached after making a cache key failed.
	cacheKeyPause = 10 * time.Second
)

// cacheKeyRow is the durable form of a cache key, JSON.
type cacheKeyRow struct {
	Version    int    `json:"version"` // of this row, 1
	KeyVersion string `json:"key_version"`
	Blob       []byte `json:"blob"`
	Commitment []byte `json:"commitment"` // HKDF of the cache key: an authority that unwraps something else is found out
}

var errCacheKey = fmt.Errorf("%w: the cache key is not open", keysvc.ErrUnavailable)

func (*cacheKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }
func (*cacheKey) String() string             { return "[redacted]" }
func (*cacheKey) GoString() string           { return "[redacted]" }

func newCacheKey(root []byte) (*cacheKey, error) {
	derive := func(label string) (cipher.AEAD, error) {
		b, err := hkdf.Key(sha256.New, root, nil, label, 32)
		if err != nil {
			return nil, fmt.Errorf("deriving cache key: %w", err)
		}
		defer clear(b)
		block, err := aes.NewCipher(b)
		if err != nil {
			return nil, fmt.Errorf("deriving cache key: %w", err)
		}
		return cipher.NewGCMWithRandomNonce(block)
	}
	opened, err := derive(labelCacheOpened)
	if err != nil {
		return nil, err
	}
	routes, err := derive(labelCacheRoutes)
	if err != nil {
		return nil, err
	}
	return &cacheKey{opened: opened, routes: routes}, nil
}

func cacheCommitment(root []byte) ([]byte, error) {
	return hkdf.Key(sha256.New, root, nil, labelCacheCommit, 32)
}

// drop forgets the key; nil is fine.
func (c *cacheKey) drop() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened, c.routes = nil, nil
}

// seal and open answer errCacheKey once the key was dropped.
func (c *cacheKey) seal(routes bool, plain, aad []byte) ([]byte, error) {
	aead := c.aead(routes)
	if aead == nil {
		return nil, errCacheKey
	}
	return aead.Seal(nil, nil, plain, aad), nil
}

func (c *cacheKey) open(routes bool, sealed, aad []byte) ([]byte, error) {
	aead := c.aead(routes)
	if aead == nil {
		return nil, errCacheKey
	}
	plain, err := aead.Open(nil, nil, sealed, aad)
	if err != nil {
		return nil, errors.New("row under the cache key does not open")
	}
	return plain, nil
}

func (c *cacheKey) aead(routes bool) cipher.AEAD {
	if c == nil {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if routes {
		return c.routes
	}
	return c.opened
}

// rowAAD binds a sealed row to its place: label and parts, each with its length.
func rowAAD(label string, parts ...string) []byte {
	b := append([]byte(label), 0)
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

func (k *managedKey) openedAAD(id envelope.KeyID) []byte {
	return rowAAD(labelCacheOpened, k.e.cfg.Service, k.up.name, k.id, string(id[:]))
}

func (k *managedKey) cacheContext() authority.Context {
	return authority.Context{
		envelope.ContextUse: useCache,
		contextService:      k.e.cfg.Service,
		contextAuthority:    k.up.name,
	}
}

// reopen returns the cache key, after asking the authority for it if it was
// dropped; nil if there is none to be had now.
func (k *managedKey) reopen(ctx context.Context) *cacheKey {
	k.mu.Lock()
	c := k.cache
	var done <-chan struct{}
	if c == nil && k.wrapped != nil && !k.unusable {
		done = k.startProbe(time.Now())
	}
	k.mu.Unlock()
	if done == nil {
		return c
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cache
}

// openCacheKey unwraps the stored cache key: the one authority call of a restart.
func (k *managedKey) openCacheKey(ctx context.Context, row *cacheKeyRow) error {
	root, err := k.up.unwrap(ctx, authority.Wrapped{KeyID: k.id, Version: row.KeyVersion, Blob: row.Blob}, k.cacheContext())
	if err != nil {
		return err
	}
	defer clear(root)
	commit, err := cacheCommitment(root)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(commit, row.Commitment) != 1 {
		return fmt.Errorf("%w: unwrapped another cache key", errLied)
	}
	c, err := newCacheKey(root)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cache == nil {
		k.cache = c
	}
	return nil
}

// ensureCacheKey returns the cache key under k and makes it if there is none:
// two calls in the life of a store, the wrap and its verification.
func (k *managedKey) ensureCacheKey(ctx context.Context) (*cacheKey, error) {
	k.cacheMu.Lock()
	defer k.cacheMu.Unlock()
	if c := k.reopen(ctx); c != nil {
		return c, nil
	}
	k.mu.Lock()
	no := k.wrapped != nil || time.Now().Before(k.cacheAfter)
	k.mu.Unlock()
	if no {
		return nil, errCacheKey
	}
	if err := k.gate(); err != nil {
		return nil, err
	}
	c, err := k.makeCacheKey(ctx)
	if err != nil {
		k.mu.Lock()
		k.cacheAfter = time.Now().Add(cacheKeyPause)
		k.mu.Unlock()
	}
	return c, err
}

func (k *managedKey) makeCacheKey(ctx context.Context) (*cacheKey, error) {
	root := make([]byte, 32)
	rand.Read(root)
	defer clear(root)
	w, err := k.up.wrap(ctx, k.id, root, k.cacheContext())
	if err != nil {
		k.answered(err)
		return nil, k.up.fromAuthority(err)
	}
	if w.KeyID != k.id {
		return nil, fmt.Errorf("%w: wrapped under another managed key", errLied)
	}
	return k.keepCacheKey(ctx, root, w)
}

// keepCacheKey opens the fresh wrap w of root again, and stores and uses it only
// if that gives root.
func (k *managedKey) keepCacheKey(ctx context.Context, root []byte, w authority.Wrapped) (*cacheKey, error) {
	again, err := k.up.unwrap(ctx, w, k.cacheContext())
	if err != nil {
		return nil, k.up.fromAuthority(err)
	}
	defer clear(again)
	if subtle.ConstantTimeCompare(root, again) != 1 {
		return nil, fmt.Errorf("%w: the wrap of the cache key opens to something else", errLied)
	}
	commit, err := cacheCommitment(root)
	if err != nil {
		return nil, err
	}
	c, err := newCacheKey(root)
	if err != nil {
		return nil, err
	}
	row := &cacheKeyRow{Version: 1, KeyVersion: w.Version, Blob: w.Blob, Commitment: commit}
	raw, err := json.Marshal(row)
	if err != nil {
		return nil, fmt.Errorf("encoding cache key: %w", err)
	}
	var b keycache.Batch
	b.Put(cacheKeyRowKey(k.up.name, k.id), raw)
	if err := k.e.apply(&b); err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.wrapped, k.cache = row, c
	k.mu.Unlock()
	k.answered(nil)
	return c, nil
}

func parseCacheKeyRow(raw []byte) (*cacheKeyRow, error) {
	row := new(cacheKeyRow)
	if err := strictjson.Unmarshal(raw, row); err != nil {
		return nil, fmt.Errorf("reading cache key: %w", err)
	}
	if row.Version != 1 || len(row.Blob) == 0 || len(row.Blob) > authority.MaxBlob || len(row.Commitment) != 32 {
		return nil, errors.New("reading cache key: malformed row")
	}
	return row, nil
}

// homeCacheKey returns the managed key whose cache key seals new route keys: the
// one the first scope rule's authority uses by default.
func (e *engine) homeCacheKey(ctx context.Context) (*managedKey, *cacheKey, error) {
	e.homeMu.Lock()
	defer e.homeMu.Unlock()
	k, c, err := e.findHome(ctx)
	if errors.Is(err, errLied) {
		e.log.Error("making cache key failed", "err", err)
		err = fmt.Errorf("%w: the authority's answer is wrong", keysvc.ErrUnavailable)
	}
	return k, c, err
}

// findHome does it; the caller holds homeMu.
func (e *engine) findHome(ctx context.Context) (*managedKey, *cacheKey, error) {
	if e.home != nil {
		if _, err := e.home.fresh(ctx, e.routeStale()); err != nil {
			return nil, nil, err
		}
		c, err := e.home.ensureCacheKey(ctx)
		return e.home, c, err
	}
	if len(e.rules.list) == 0 {
		return nil, nil, fmt.Errorf("%w: no scope rule, so no authority to keep route keys with", keysvc.ErrUnavailable)
	}
	up := e.up[e.rules.list[0].Authorities[0]]
	if k := e.defaultKey(up, ""); k != nil {
		return e.setHome(ctx, k)
	}
	// The managed key's ID is known only from an answer.
	root := make([]byte, 32)
	rand.Read(root)
	defer clear(root)
	k := &managedKey{e: e, up: up}
	w, err := up.wrap(ctx, "", root, k.cacheContext())
	if err != nil {
		return nil, nil, up.fromAuthority(err)
	}
	k = e.managed.known(up, w.KeyID)
	e.noteDefault(up, "", k)
	if err := k.adoptCacheKey(ctx, root, w); err != nil {
		return nil, nil, err
	}
	return e.setHome(ctx, k)
}

// adoptCacheKey keeps root, wrapped as w, unless k has a cache key.
func (k *managedKey) adoptCacheKey(ctx context.Context, root []byte, w authority.Wrapped) error {
	k.cacheMu.Lock()
	defer k.cacheMu.Unlock()
	k.mu.Lock()
	there := k.wrapped != nil
	k.mu.Unlock()
	if there {
		return nil
	}
	_, err := k.keepCacheKey(ctx, root, w)
	return err
}

// setHome makes k the home of new route keys, for good. The caller holds homeMu.
func (e *engine) setHome(ctx context.Context, k *managedKey) (*managedKey, *cacheKey, error) {
	c, err := k.ensureCacheKey(ctx)
	if err != nil {
		return nil, nil, err
	}
	var b keycache.Batch
	b.Put([]byte(homeRow), []byte(k.up.name+"\x00"+k.id))
	if err := e.apply(&b); err != nil {
		return nil, nil, err
	}
	e.home = k
	return k, c, nil
}
