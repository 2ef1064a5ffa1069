package local

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
)

const (
	domainKeySize = 32
	keySize       = 32 // of a key version and of every subkey
	firstEpoch    = 1
)

// secret is key material that shows itself to no formatter and no marshaller.
type secret [keySize]byte

const redacted = "[redacted]"

func (*secret) String() string   { return redacted }
func (*secret) GoString() string { return redacted }

// Format implements fmt.Formatter for every verb.
func (*secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler, for JSON as well.
func (*secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer.
func (*secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// domain is the domain key of one epoch, and what is derived from it.
type domain struct {
	epoch uint64
	key   *secret // seals key versions
	rows  *secret // authenticates rows
}

var errWrongDomainKey = fmt.Errorf("%w: the domain key is not the one this store was made with: "+
	"give the original key, there is no other way to open it", authority.ErrInvalid)

func newDomain(key []byte) (*domain, error) {
	if len(key) != domainKeySize {
		return nil, fmt.Errorf("domain key has %d bytes, want %d: %w", len(key), domainKeySize, authority.ErrInvalid)
	}
	if [domainKeySize]byte(key) == ([domainKeySize]byte{}) {
		return nil, fmt.Errorf("domain key is all zeros: %w", authority.ErrInvalid)
	}
	d := &domain{epoch: firstEpoch, key: new(secret)}
	copy(d.key[:], key)
	var err error
	if d.rows, err = derive(d.key, nil, "keyweir/v1/local-rows"); err != nil {
		return nil, err
	}
	return d, nil
}

// derive is HKDF-SHA-256. A nil salt equals zeros; labels differ, so no two
// uses meet.
func derive(key *secret, salt []byte, info string) (*secret, error) {
	b, err := hkdf.Key(sha256.New, key[:], salt, info, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving key: %w: %v", authority.ErrUnavailable, err)
	}
	defer clear(b)
	return (*secret)(append([]byte(nil), b...)), nil
}

// headAuthenticator vouches for the head of a store of the authority's own.
func (d *domain) headAuthenticator() (keycache.Authenticator, error) {
	k, err := derive(d.key, nil, "keyweir/v1/local-head")
	if err != nil {
		return nil, err
	}
	defer clear(k[:])
	return keycache.HMACAuthenticator(k[:])
}

func (d *domain) clear() {
	clear(d.key[:])
	clear(d.rows[:])
}

// mac authenticates a row: its key, length-prefixed, and its value.
func (d *domain) mac(key, value []byte) []byte {
	m := hmac.New(sha256.New, d.rows[:])
	m.Write([]byte("keyweir/v1/local-row\x00"))
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(key)))
	m.Write(n[:])
	m.Write(key)
	m.Write(value)
	return m.Sum(nil)
}

// protect appends the MAC to the value of a row.
func (d *domain) protect(key, value []byte) []byte {
	return append(value, d.mac(key, value)...)
}

// checked verifies and removes the MAC.
func (d *domain) checked(key, row []byte) ([]byte, error) {
	n := len(row) - sha256.Size
	if n < 0 || !hmac.Equal(d.mac(key, row[:n:n]), row[n:]) {
		return nil, fmt.Errorf("%w: row %q was altered", authority.ErrUnavailable, key)
	}
	return row[:n:n], nil
}

// The domain row: format 1 | epoch 8 | MAC 32. It tells whether a domain key is
// the right one.
func (d *domain) row() []byte {
	return d.protect(domainRow, binary.BigEndian.AppendUint64([]byte{1}, d.epoch))
}

func (d *domain) checkRow(row []byte) error {
	if len(row) != 1+8+sha256.Size || row[0] != 1 {
		return fmt.Errorf("%w: the domain row has another format", authority.ErrUnavailable)
	}
	if _, err := d.checked(domainRow, row); err != nil {
		return errWrongDomainKey
	}
	if epoch := binary.BigEndian.Uint64(row[1:]); epoch != d.epoch {
		return fmt.Errorf("%w: the store is in epoch %d of its domain key, this program knows %d", authority.ErrUnavailable, epoch, d.epoch)
	}
	return nil
}
