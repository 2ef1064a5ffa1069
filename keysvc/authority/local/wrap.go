package local

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// A wrap:
//
//	1     format = 1
//	16    salt
//	12    nonce
//	n     ciphertext, 1 to 1024 bytes
//	16    tag
//
// AES-256-GCM under HKDF-SHA-256(version key, salt, "keyweir/v1/local-wrap").
// Additional data: key ID, version (8 bytes), number of pairs (2 bytes), and
// the pairs sorted by name; every string with its length in 4 bytes before it;
// integers big-endian.
const (
	wrapFormat   = 1
	wrapInfo     = "keyweir/v1/local-wrap"
	saltSize     = 16
	wrapOverhead = 1 + saltSize + 12 + 16
)

// maxContextBytes bounds names and values of one context together.
const maxContextBytes = 8 << 10

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

func wrapContext(id string, version uint64, ec authority.Context) []byte {
	b := appendString(nil, id)
	b = binary.BigEndian.AppendUint64(b, version)
	b = binary.BigEndian.AppendUint16(b, uint16(len(ec)))
	for _, name := range slices.Sorted(maps.Keys(ec)) {
		b = appendString(appendString(b, name), ec[name])
	}
	return b
}

func checkContext(ec authority.Context) error {
	if len(ec) == 0 || len(ec) > authority.MaxContext {
		return fmt.Errorf("encryption context of %d pairs, want 1 to %d: %w", len(ec), authority.MaxContext, authority.ErrInvalid)
	}
	size := 0
	for name, value := range ec {
		size += len(name) + len(value)
	}
	if size > maxContextBytes {
		return fmt.Errorf("encryption context of %d bytes, limit %d: %w", size, maxContextBytes, authority.ErrInvalid)
	}
	return nil
}

func wrapAEAD(version *secret, salt []byte) (cipher.AEAD, error) {
	k, err := derive(version, salt, wrapInfo)
	if err != nil {
		return nil, err
	}
	defer clear(k[:])
	return newAEAD(k)
}

func sealWrap(version *secret, plaintext, aad []byte) ([]byte, error) {
	b := make([]byte, 1+saltSize, wrapOverhead+len(plaintext))
	b[0] = wrapFormat
	_, _ = rand.Read(b[1:]) // never fails
	aead, err := wrapAEAD(version, b[1:])
	if err != nil {
		return nil, err
	}
	return aead.Seal(b, nil, plaintext, aad), nil
}

var errBadWrap = fmt.Errorf("%w: wrap does not open", authority.ErrInvalid)

// openWrap has one error for whatever is wrong with a wrap.
func openWrap(version *secret, blob, aad []byte) ([]byte, error) {
	if len(blob) <= wrapOverhead || len(blob) > wrapOverhead+authority.MaxPlaintext || blob[0] != wrapFormat {
		return nil, errBadWrap
	}
	aead, err := wrapAEAD(version, blob[1:1+saltSize])
	if err != nil {
		return nil, err
	}
	p, err := aead.Open(nil, nil, blob[1+saltSize:], aad)
	if err != nil {
		return nil, errBadWrap
	}
	return p, nil
}

// Wrap implements authority.Authority.
func (a *Authority) Wrap(ctx context.Context, key string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	if err := a.enter(ctx); err != nil {
		return authority.Wrapped{}, fmt.Errorf("wrapping: %w", err)
	}
	defer a.leave()
	w, err := a.wrap(key, plaintext, ec)
	if err != nil {
		return authority.Wrapped{}, fmt.Errorf("wrapping: %w", err)
	}
	return w, nil
}

func (a *Authority) wrap(name string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	if len(plaintext) == 0 || len(plaintext) > authority.MaxPlaintext {
		return authority.Wrapped{}, fmt.Errorf("%d bytes, want 1 to %d: %w", len(plaintext), authority.MaxPlaintext, authority.ErrInvalid)
	}
	if err := checkContext(ec); err != nil {
		return authority.Wrapped{}, err
	}
	id, err := a.resolve(name)
	if err != nil {
		return authority.Wrapped{}, err
	}
	version, v, err := a.version(id, 0)
	if err != nil {
		return authority.Wrapped{}, err
	}
	defer clear(v[:])
	blob, err := sealWrap(v, plaintext, wrapContext(id, version, ec))
	if err != nil {
		return authority.Wrapped{}, err
	}
	return authority.Wrapped{KeyID: id, Version: formatVersion(version), Blob: blob}, nil
}

// Unwrap implements authority.Authority. The key must be named by ID, as Wrap does.
func (a *Authority) Unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	if err := a.enter(ctx); err != nil {
		return nil, fmt.Errorf("unwrapping: %w", err)
	}
	defer a.leave()
	p, err := a.unwrap(w, ec)
	if err != nil {
		return nil, fmt.Errorf("unwrapping: %w", err)
	}
	return p, nil
}

func (a *Authority) unwrap(w authority.Wrapped, ec authority.Context) ([]byte, error) {
	if err := checkContext(ec); err != nil {
		return nil, err
	}
	version, ok := parseVersion(w.Version)
	if !ok || w.KeyID == "" || len(w.KeyID) > authority.MaxKeyID || len(w.Blob) == 0 || len(w.Blob) > authority.MaxBlob {
		return nil, errBadWrap
	}
	_, v, err := a.version(w.KeyID, version)
	if err != nil {
		return nil, err
	}
	defer clear(v[:])
	return openWrap(v, w.Blob, wrapContext(w.KeyID, version, ec))
}

// GenerateDataKey implements authority.Authority.
func (a *Authority) GenerateDataKey(ctx context.Context, key string, ec authority.Context) ([]byte, authority.Wrapped, error) {
	if err := a.enter(ctx); err != nil {
		return nil, authority.Wrapped{}, fmt.Errorf("generating data key: %w", err)
	}
	defer a.leave()
	p := make([]byte, authority.DataKeySize)
	_, _ = rand.Read(p) // never fails
	w, err := a.wrap(key, p, ec)
	if err != nil {
		clear(p)
		return nil, authority.Wrapped{}, fmt.Errorf("generating data key: %w", err)
	}
	return p, w, nil
}

// version returns a copy of one version of an enabled key, 0 meaning the
// current one. The caller clears it.
func (a *Authority) version(id string, version uint64) (uint64, *secret, error) {
	a.cacheMu.RLock()
	defer a.cacheMu.RUnlock()
	k, err := a.key(id)
	if err != nil {
		return 0, nil, err
	}
	if err := k.usable(); err != nil {
		return 0, nil, err
	}
	if version == 0 {
		version = k.version
	}
	if version > k.version {
		return 0, nil, errBadWrap
	}
	if v, ok := a.cache.get(id, version); ok {
		return version, v, nil
	}
	row, err := a.store.Get(versionRow(id, version))
	switch {
	case errors.Is(err, keycache.ErrNotFound):
		// The row goes in the same commit that marks the key destroyed, which
		// may have come between the two reads.
		if k, err = a.key(id); err != nil {
			return 0, nil, err
		}
		if err := k.usable(); err != nil {
			return 0, nil, err
		}
		return 0, nil, fmt.Errorf("%w: version %d of key %s is missing", authority.ErrUnavailable, version, id)
	case err != nil:
		return 0, nil, storeError("reading key version", err)
	}
	v, err := a.dom.openVersion(id, version, row)
	if err != nil {
		return 0, nil, err
	}
	a.cache.add(id, version, v)
	return version, v, nil
}
