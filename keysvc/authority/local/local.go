// Package local is the embedded key store: an authority whose managed keys live
// in a directory, sealed under one domain key.
//
//	local:///var/lib/keyweir/keys?domain-key=file:/etc/keyweir/domain.key
//	local:///var/lib/keyweir/keys?domain-key=env:KEYWEIR_DOMAIN_KEY&key=orders
//
//	domain-key  required: file:/absolute/path or env:NAME; the 32-byte domain
//	            key as base64 or hexadecimal text. A file may be readable by its
//	            owner only.
//	key         alias or ID of the key used when a caller names none; "default"
//
// A domain key is never made silently: make one with [CreateDomainKey] and keep
// a copy. Without it the directory opens nothing, and nobody can help. A new
// directory gets its default key when it is first opened.
//
// [New] does the same for a domain key from elsewhere and for a store shared
// with other users; [NewEphemeral] keeps everything in memory.
//
// # What is where
//
// A managed key is a family of versions, each 32 random bytes sealed under a
// subkey of the domain key of its own. A wrap is AES-256-GCM under a subkey of
// one version derived for this wrap alone. State, current version and alias
// stand in rows with a MAC under the domain key. Each operation reads the state
// from the store, so a disabled key is refused at once; opened versions are
// kept in a bounded cache and dropped when their key is disabled or destroyed.
//
// # What it cannot do
//
// Who restores a complete older copy of the directory also restores keys that
// were destroyed since. Who can read the memory of the process reads keys.
//
// The format of stored rows and wraps is fixed: what was wrapped once opens for
// as long as its version exists.
package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// DefaultKey is the alias of the default key where none is configured.
const DefaultKey = "default"

const defaultCacheSize = 1024

// Config configures an Authority. DomainKey and exactly one of Store and Dir are
// required.
type Config struct {
	// DomainKey is the 32-byte key everything is sealed under. It is copied.
	DomainKey []byte
	// Dir is the directory of a store of the authority's own, created if missing.
	Dir string
	// Store is a store the caller opened and closes, after the authority. The
	// rows below "local/" belong to the authority; one authority per store.
	Store *keycache.Store
	// DefaultKey is the alias or ID that "" stands for; empty means "default".
	// An alias is created together with a new store, never later.
	DefaultKey string
	// CacheSize bounds how many opened key versions stay in memory; 0 means
	// 1024, negative is an error.
	CacheSize int
	// OnFatal is called once if a store of the authority's own stopped because a
	// write failed (see keycache.Options). The process should exit. nil logs.
	OnFatal func(error)
	// Logger receives rare events; nil discards.
	Logger *slog.Logger
}

func (c Config) defaultKey() string {
	if c.DefaultKey == "" {
		return DefaultKey
	}
	return c.DefaultKey
}

func (c Config) cacheSize() int {
	if c.CacheSize == 0 {
		return defaultCacheSize
	}
	return c.CacheSize
}

// Authority is an open key store. It is safe for concurrent use.
type Authority struct {
	store *keycache.Store
	owned bool // store is closed with the authority
	def   string
	dom   *domain
	log   *slog.Logger

	use    sync.RWMutex // read: an operation runs; write: closing
	closed bool         // under use

	// cacheMu is read-held from reading a key's state to caching its version, and
	// write-held to drop versions after a state change became durable: nothing
	// read before the change is cached after the drop.
	cacheMu sync.RWMutex
	cache   *versionCache

	seed  maphash.Seed
	locks [64]sync.Mutex // serialise changes of one key or alias, by hash
}

var (
	_ authority.Authority = (*Authority)(nil)
	_ authority.Manager   = (*Authority)(nil)
)

// New opens a key store. ctx covers opening only. Errors wrap
// authority.ErrInvalid for a wrong configuration, a wrong domain key among
// them, and authority.ErrUnavailable for a store that cannot be used.
func New(ctx context.Context, c Config) (*Authority, error) {
	if (c.Dir == "") == (c.Store == nil) {
		return nil, fmt.Errorf("opening key store: exactly one of directory and store is required: %w", authority.ErrInvalid)
	}
	return newAuthority(ctx, c, func(o keycache.Options) (*keycache.Store, error) { return keycache.Open(c.Dir, o) })
}

// NewEphemeral returns a key store in memory with a random domain key and a
// default key. NOT SAFE for anything but demonstrations, development and tests:
// all keys die with the process, and what they wrapped can never be opened again.
func NewEphemeral() (*Authority, error) {
	var key [domainKeySize]byte
	defer clear(key[:])
	_, _ = rand.Read(key[:]) // never fails
	return newAuthority(context.Background(), Config{DomainKey: key[:]}, keycache.OpenMemory)
}

func newAuthority(ctx context.Context, c Config, open func(keycache.Options) (*keycache.Store, error)) (*Authority, error) {
	if c.CacheSize < 0 {
		return nil, fmt.Errorf("opening key store: negative cache size: %w", authority.ErrInvalid)
	}
	dom, err := newDomain(c.DomainKey)
	if err != nil {
		return nil, fmt.Errorf("opening key store: %w", err)
	}
	cache, err := newVersionCache(c.cacheSize())
	if err != nil {
		return nil, fmt.Errorf("opening key store: %w", err)
	}
	a := &Authority{
		store: c.Store, def: c.defaultKey(), dom: dom, cache: cache, log: c.Logger, seed: maphash.MakeSeed(),
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.store == nil {
		a.owned = true
		if a.store, err = a.openStore(c, open); err != nil {
			return nil, err
		}
	}
	if err := a.init(ctx); err != nil {
		if a.owned {
			err = errors.Join(err, a.store.Close())
		}
		return nil, fmt.Errorf("opening key store: %w", err)
	}
	return a, nil
}

func (a *Authority) openStore(c Config, open func(keycache.Options) (*keycache.Store, error)) (*keycache.Store, error) {
	auth, err := a.dom.headAuthenticator()
	if err != nil {
		return nil, fmt.Errorf("opening key store: %w", err)
	}
	s, err := open(keycache.Options{Authenticator: auth, Logger: c.Logger, OnFatal: c.OnFatal})
	switch {
	case errors.Is(err, keycache.ErrOtherKey):
		return nil, fmt.Errorf("opening key store: %w", errWrongDomainKey)
	case err != nil:
		return nil, fmt.Errorf("opening key store: %w: %w", authority.ErrUnavailable, err)
	}
	return s, nil
}

// init checks that the domain key is the store's, or makes a new store: its
// domain row and default key.
func (a *Authority) init(ctx context.Context) error {
	row, err := a.store.Get(domainRow)
	if err == nil {
		return a.dom.checkRow(row)
	}
	if !errors.Is(err, keycache.ErrNotFound) {
		return storeError("reading domain row", err)
	}
	switch _, err := a.store.Last([]byte(rowPrefix)); {
	case err == nil:
		return fmt.Errorf("%w: keys are there but the domain row is missing: restore a complete copy of the store", authority.ErrUnavailable)
	case !errors.Is(err, keycache.ErrNotFound):
		return storeError("reading keys", err)
	}
	var b keycache.Batch
	defer b.Reset()
	b.Put(domainRow, a.dom.row())
	if !isKeyID(a.def) {
		if err := checkAlias(a.def); err != nil {
			return err
		}
		k := newKey(a.def)
		if err := a.putNewKey(&b, k); err != nil {
			return err
		}
		a.log.Info("created key store", "default_key", k.id, "alias", k.alias)
	}
	return storeError("creating key store", a.store.Apply(ctx, &b))
}

// Close waits for running operations, forgets all keys and closes the store if
// it is the authority's own. Later calls do nothing.
func (a *Authority) Close() error {
	a.use.Lock()
	defer a.use.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	a.cache.purge()
	a.dom.clear()
	if !a.owned {
		return nil
	}
	if err := a.store.Close(); err != nil {
		return fmt.Errorf("closing key store: %w: %w", authority.ErrUnavailable, err)
	}
	return nil
}

// enter admits an operation; the caller calls leave.
func (a *Authority) enter(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", authority.ErrUnavailable, ctx.Err())
	}
	a.use.RLock()
	if a.closed {
		a.use.RUnlock()
		return fmt.Errorf("%w: key store closed", authority.ErrUnavailable)
	}
	return nil
}

func (a *Authority) leave() { a.use.RUnlock() }

// lock serialises changes of what name stands for.
func (a *Authority) lock(name string) *sync.Mutex {
	m := &a.locks[maphash.String(a.seed, name)%uint64(len(a.locks))]
	m.Lock()
	return m
}

// storeError says that the store gave no usable answer; nil stays nil.
func storeError(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", doing, authority.ErrUnavailable, err)
}
