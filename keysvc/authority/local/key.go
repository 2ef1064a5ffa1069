package local

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// Rows, all below rowPrefix:
//
//	local/domain                     see domain.row
//	local/key/<key ID>               see key.encode
//	local/alias/<alias>              key ID | MAC 32
//	local/version/<key ID>/<8 bytes> see domain.sealVersion
const rowPrefix = "local/"

var domainRow = []byte(rowPrefix + "domain")

const (
	keyRows     = rowPrefix + "key/"
	aliasRows   = rowPrefix + "alias/"
	versionRows = rowPrefix + "version/"
)

// versionRow sorts the versions of a key by number.
func versionRow(id string, version uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(versionRows+id+"/"), version)
}

const (
	idPrefix = "lk-"
	idLen    = len(idPrefix) + 26
	// MaxAlias is the longest alias in bytes.
	MaxAlias = 256
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newKeyID draws lk- and 26 characters of base32: 128 bits.
func newKeyID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return idPrefix + idEncoding.EncodeToString(b[:])
}

// isKeyID reports whether s is reserved for IDs: no alias looks like one.
func isKeyID(s string) bool { return strings.HasPrefix(s, idPrefix) }

func checkAlias(alias string) error {
	if alias == "" || len(alias) > MaxAlias || !utf8.ValidString(alias) || isKeyID(alias) ||
		strings.ContainsFunc(alias, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%w: an alias is 1 to %d bytes of printable text that does not start with %q", authority.ErrInvalid, MaxAlias, idPrefix)
	}
	return nil
}

// key is a managed key without its material.
type key struct {
	id      string
	state   authority.KeyState
	version uint64 // current; versions count from 1 without gaps
	created int64  // unix seconds
	alias   string // "" if none
}

func newKey(alias string) key {
	return key{id: newKeyID(), state: authority.StateEnabled, version: 1, created: time.Now().Unix(), alias: alias}
}

func (k key) info() authority.KeyInfo {
	return authority.KeyInfo{KeyID: k.id, Alias: k.alias, State: k.state, Version: formatVersion(k.version)}
}

// usable is nil for an enabled key.
func (k key) usable() error {
	switch k.state {
	case authority.StateEnabled:
		return nil
	case authority.StateDisabled:
		return fmt.Errorf("key %s: %w", k.id, authority.ErrDisabled)
	}
	return fmt.Errorf("key %s: %w", k.id, authority.ErrDestroyed)
}

func formatVersion(v uint64) string { return strconv.FormatUint(v, 10) }

// parseVersion accepts only what formatVersion writes.
func parseVersion(s string) (uint64, bool) {
	v, err := strconv.ParseUint(s, 10, 64)
	return v, err == nil && v > 0 && formatVersion(v) == s
}

// A key row:
//
//	1     format = 1
//	1     state: 1 enabled, 2 disabled, 3 destroyed
//	8     current version
//	8     created, unix seconds
//	2, n  alias
//	32    MAC
func (k key) encode() []byte {
	b := make([]byte, 0, 20+len(k.alias)+32)
	b = append(b, 1, byte(k.state))
	b = binary.BigEndian.AppendUint64(b, k.version)
	b = binary.BigEndian.AppendUint64(b, uint64(k.created))
	b = binary.BigEndian.AppendUint16(b, uint16(len(k.alias)))
	return append(b, k.alias...)
}

func decodeKey(id string, b []byte) (key, error) {
	if len(b) < 20 || b[0] != 1 || b[1] < 1 || b[1] > 3 || len(b)-20 != int(binary.BigEndian.Uint16(b[18:])) {
		return key{}, fmt.Errorf("%w: row of key %s has another format", authority.ErrUnavailable, id)
	}
	return key{
		id: id, state: authority.KeyState(b[1]), version: binary.BigEndian.Uint64(b[2:]),
		created: int64(binary.BigEndian.Uint64(b[10:])), alias: string(b[20:]),
	}, nil
}

// putKey adds the row of k to a batch.
func (a *Authority) putKey(b *keycache.Batch, k key) {
	row := []byte(keyRows + k.id)
	b.Put(row, a.dom.protect(row, k.encode()))
}

// putNewKey adds a key, its alias and its first version to a batch.
func (a *Authority) putNewKey(b *keycache.Batch, k key) error {
	a.putKey(b, k)
	if k.alias != "" {
		row := []byte(aliasRows + k.alias)
		b.Put(row, a.dom.protect(row, []byte(k.id)))
	}
	return a.putVersion(b, k)
}

// putVersion draws the current version of k and adds it, sealed, to a batch.
func (a *Authority) putVersion(b *keycache.Batch, k key) error {
	v := new(secret)
	defer clear(v[:])
	_, _ = rand.Read(v[:]) // never fails
	sealed, err := a.dom.sealVersion(k.id, k.version, v)
	if err != nil {
		return err
	}
	b.Put(versionRow(k.id, k.version), sealed)
	return nil
}

// key reads a key by ID.
func (a *Authority) key(id string) (key, error) {
	row := []byte(keyRows + id)
	b, err := a.store.Get(row)
	switch {
	case errors.Is(err, keycache.ErrNotFound):
		return key{}, fmt.Errorf("key %q: %w", id, authority.ErrNotFound)
	case err != nil:
		return key{}, storeError("reading key", err)
	}
	if b, err = a.dom.checked(row, b); err != nil {
		return key{}, err
	}
	return decodeKey(id, b)
}

// resolve turns an ID, an alias or "" into an ID, which need not exist.
func (a *Authority) resolve(name string) (string, error) {
	if len(name) > authority.MaxKeyID {
		return "", fmt.Errorf("key name of %d bytes: %w", len(name), authority.ErrInvalid)
	}
	if name == "" {
		name = a.def
	}
	if isKeyID(name) {
		return name, nil
	}
	row := []byte(aliasRows + name)
	b, err := a.store.Get(row)
	switch {
	case errors.Is(err, keycache.ErrNotFound):
		return "", fmt.Errorf("key %q: %w", name, authority.ErrNotFound)
	case err != nil:
		return "", storeError("reading alias", err)
	}
	if b, err = a.dom.checked(row, b); err != nil {
		return "", err
	}
	return string(b), nil
}

// A version row:
//
//	1     format = 1
//	8     epoch of the domain key
//	12    nonce
//	32    version, encrypted
//	16    tag
//
// AES-256-GCM under HKDF(domain key, "", label || epoch || key ID || version),
// with the same bytes as additional data.
const versionLabel = "keyweir/v1/local-version\x00"

func versionContext(epoch uint64, id string, version uint64) []byte {
	b := append([]byte(nil), versionLabel...)
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = appendString(b, id)
	return binary.BigEndian.AppendUint64(b, version)
}

func (d *domain) versionAEAD(id string, version uint64) (aead cipher.AEAD, aad []byte, err error) {
	aad = versionContext(d.epoch, id, version)
	k, err := derive(d.key, nil, string(aad))
	if err != nil {
		return nil, nil, err
	}
	defer clear(k[:])
	aead, err = newAEAD(k)
	return aead, aad, err
}

func (d *domain) sealVersion(id string, version uint64, v *secret) ([]byte, error) {
	aead, aad, err := d.versionAEAD(id, version)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint64([]byte{1}, d.epoch)
	return aead.Seal(b, nil, v[:], aad), nil
}

func (d *domain) openVersion(id string, version uint64, row []byte) (*secret, error) {
	if len(row) < 9 || row[0] != 1 || binary.BigEndian.Uint64(row[1:]) != d.epoch {
		return nil, fmt.Errorf("%w: version %d of key %s has another format or epoch", authority.ErrUnavailable, version, id)
	}
	aead, aad, err := d.versionAEAD(id, version)
	if err != nil {
		return nil, err
	}
	b, err := aead.Open(nil, nil, row[9:], aad)
	if err != nil || len(b) != keySize {
		return nil, fmt.Errorf("%w: version %d of key %s was altered", authority.ErrUnavailable, version, id)
	}
	return (*secret)(b), nil
}

// newAEAD is AES-256-GCM with random nonces, which stand before the ciphertext.
func newAEAD(k *secret) (cipher.AEAD, error) {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, fmt.Errorf("preparing cipher: %w: %v", authority.ErrUnavailable, err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("preparing cipher: %w: %v", authority.ErrUnavailable, err)
	}
	return aead, nil
}
