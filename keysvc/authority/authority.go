// Package authority defines what a holder of key-wrapping keys must do to take
// part in protecting a data key.
//
// An authority (AWS KMS, the embedded local key store, ...) keeps managed keys
// and wraps data keys under them; a managed key never leaves it. Every wrap is
// bound to an encryption context: the same pairs must be given to unwrap.
//
// Providers live in sub-packages and are opened by URI through an explicit
// [Schemes] map; nothing registers itself. All of them pass the conformance
// suite in authoritytest.
package authority

import (
	"context"
	"fmt"
	"log/slog"
)

// Size limits, checked before any provider is asked.
const (
	MaxPlaintext = 1024 // bytes of key material in one Wrap
	MaxBlob      = 2048 // bytes of one wrapped key
	MaxKeyID     = 2048 // bytes of a managed key ID (an AWS key ARN or alias ARN fits)
	MaxContext   = 32   // pairs of an encryption context
	DataKeySize  = 32   // bytes GenerateDataKey returns
)

// Context is an encryption context (the term of AWS KMS): pairs bound as
// additional authenticated data into a wrap. Names and values are not secret:
// a KMS writes them to its logs. A nil or empty Context is refused with
// [ErrInvalid]; an authority that cannot bind one is not an authority.
type Context map[string]string

// Wrapped is key material encrypted under one version of a managed key.
type Wrapped struct {
	KeyID   string // managed key, as the authority names it; never empty
	Version string // version of the managed key; empty where the authority hides it (AWS KMS)
	Blob    []byte // ciphertext, opaque to everybody but the authority
}

// Authority wraps and unwraps key material under its managed keys.
//
// The key argument names a managed key by ID or alias; "" means the key the
// authority was opened with. Implementations are safe for concurrent use. Every
// error wraps exactly one of the sentinels of this package; errors carry no key
// material and no credentials.
type Authority interface {
	// Wrap encrypts 1 to MaxPlaintext bytes. It does not keep or change plaintext.
	Wrap(ctx context.Context, key string, plaintext []byte, ec Context) (Wrapped, error)
	// Unwrap decrypts w. The caller owns, and clears, the result. A wrong
	// context, another key's wrap and a damaged blob are all [ErrInvalid].
	Unwrap(ctx context.Context, w Wrapped, ec Context) ([]byte, error)
	// GenerateDataKey returns DataKeySize fresh random bytes and their wrap.
	// The caller owns, and clears, the plaintext.
	GenerateDataKey(ctx context.Context, key string, ec Context) (plaintext []byte, w Wrapped, err error)
	// Close releases what the authority holds; later calls answer
	// [ErrUnavailable]. It is safe to call twice.
	Close() error
}

// KeyState is where a managed key is in its life.
type KeyState int

// The zero KeyState is invalid.
const (
	StateEnabled KeyState = iota + 1
	StateDisabled
	StateDestroyed
)

func (s KeyState) String() string {
	switch s {
	case StateEnabled:
		return "enabled"
	case StateDisabled:
		return "disabled"
	case StateDestroyed:
		return "destroyed"
	}
	return fmt.Sprintf("KeyState(%d)", int(s))
}

// KeyInfo describes one managed key; it holds no key material.
type KeyInfo struct {
	KeyID   string
	Alias   string // "" if none
	State   KeyState
	Version string // current version, the one new wraps use
}

// Manager is the optional ability to manage the life of keys. An authority
// whose keys are managed elsewhere (a cloud console) does not implement it.
type Manager interface {
	// CreateKey makes a managed key; alias may be "". [ErrInvalid] if the alias is taken.
	CreateKey(ctx context.Context, alias string) (KeyInfo, error)
	// DescribeKey answers [ErrNotFound] for a key never created and a KeyInfo
	// with StateDestroyed for one that was.
	DescribeKey(ctx context.Context, key string) (KeyInfo, error)
	// ListKeys returns every key, ordered by KeyID.
	ListKeys(ctx context.Context) ([]KeyInfo, error)
	// RotateKey adds a version; old versions go on unwrapping.
	RotateKey(ctx context.Context, key string) (KeyInfo, error)
	// EnableKey and DisableKey switch between enabled and disabled; repeating is no error.
	EnableKey(ctx context.Context, key string) error
	DisableKey(ctx context.Context, key string) error
	// DestroyKey erases all versions for good; repeating is no error.
	DestroyKey(ctx context.Context, key string) error
}

// Options is what every provider's opener gets beside the URI.
type Options struct {
	Logger *slog.Logger // nil discards
}

// Opener opens an authority by URI. ctx covers opening only.
type Opener func(ctx context.Context, uri string, o Options) (Authority, error)
