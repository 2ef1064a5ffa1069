package keycache

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
)

// Authenticator vouches for heads. Implementations are safe for concurrent use
// and separate their purposes: the bytes given begin with a label of their own.
type Authenticator interface {
	// ID names the key, so that a wrong key is told apart from damage: at most
	// 32 bytes, not secret, stable.
	ID() []byte
	// Sign returns a tag of at most 256 bytes over head.
	Sign(head []byte) ([]byte, error)
	// Verify reports whether tag was made by Sign for head, in constant time.
	Verify(head, tag []byte) bool
}

// MinHMACKey is the least size of a key for [HMACAuthenticator] in bytes.
const MinHMACKey = 32

// HMACAuthenticator returns an Authenticator with HMAC-SHA-256. The key is
// copied; it must serve no other purpose.
func HMACAuthenticator(key []byte) (Authenticator, error) {
	if len(key) < MinHMACKey {
		return nil, fmt.Errorf("head key has %d bytes, want at least %d: %w", len(key), MinHMACKey, ErrInvalid)
	}
	k := append([]byte(nil), key...)
	// The key stays inside the closure: no format verb can reach it.
	return &hmacAuthenticator{mac: func(label string, msg []byte) []byte {
		m := hmac.New(sha256.New, k)
		m.Write([]byte(label))
		m.Write(msg)
		return m.Sum(nil)
	}}, nil
}

type hmacAuthenticator struct {
	mac func(label string, msg []byte) []byte
}

var _ Authenticator = (*hmacAuthenticator)(nil)

func (a *hmacAuthenticator) ID() []byte { return a.mac("keyweir/v1/store-head-key-id\x00", nil)[:8] }

func (a *hmacAuthenticator) Sign(head []byte) ([]byte, error) {
	return a.mac("keyweir/v1/store-head-tag\x00", head), nil
}

func (a *hmacAuthenticator) Verify(head, tag []byte) bool {
	return hmac.Equal(a.mac("keyweir/v1/store-head-tag\x00", head), tag)
}

// String keeps the key out of logs, whatever the verb.
func (*hmacAuthenticator) String() string { return "HMACAuthenticator(redacted)" }

// GoString does the same for %#v.
func (a *hmacAuthenticator) GoString() string { return a.String() }
