package keysvc

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/nats-io/nkeys"
)

// Identity signs for a requester or a service. Its key is enrolled by its public
// form and is never the key of a NATS connection: a NATS server makes a client
// sign any nonce, which turns connection keys into signing oracles.
//
// Implementations are safe for concurrent use.
type Identity interface {
	// Public returns the public key in nkey form: U... for requesters, N... for services.
	Public() string
	// Sign signs data as it is; use [SignPurpose] for everything on the wire.
	Sign(data []byte) ([]byte, error)
}

// Kind says what an identity is for.
type Kind byte

const (
	KindRequester Kind = Kind(nkeys.PrefixByteUser)   // U...
	KindService   Kind = Kind(nkeys.PrefixByteServer) // N...
)

type nkeyIdentity struct {
	pair   nkeys.KeyPair
	public string
}

func (i *nkeyIdentity) Public() string { return i.public }
func (i *nkeyIdentity) Sign(data []byte) ([]byte, error) {
	return i.pair.Sign(data)
}

// Format keeps the seed out of logs, whatever the verb.
func (i *nkeyIdentity) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, i.public) }
func (i *nkeyIdentity) String() string               { return i.public }
func (i *nkeyIdentity) GoString() string             { return i.public }
func (i *nkeyIdentity) MarshalText() ([]byte, error) { return []byte(i.public), nil }

// NewIdentity draws an identity. The seed is what [LoadIdentity] reads; it is
// secret.
func NewIdentity(k Kind) (id Identity, seed []byte, err error) {
	pair, err := nkeys.CreatePair(nkeys.PrefixByte(k))
	if err != nil {
		return nil, nil, fmt.Errorf("drawing identity: %w", err)
	}
	if seed, err = pair.Seed(); err != nil {
		return nil, nil, fmt.Errorf("drawing identity: %w", err)
	}
	id, err = ParseIdentity(seed)
	return id, seed, err
}

// ParseIdentity reads a seed (SU... or SN...), ignoring blank space around it.
// The error never repeats the seed.
func ParseIdentity(seed []byte) (Identity, error) {
	pair, err := nkeys.FromSeed(bytes.TrimSpace(seed))
	if err != nil {
		return nil, fmt.Errorf("%w: not an nkey seed", ErrInvalid)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("%w: not an nkey seed", ErrInvalid)
	}
	if err := checkPublic(public); err != nil {
		return nil, err
	}
	return &nkeyIdentity{pair, public}, nil
}

// maxSeedFile bounds what LoadIdentity reads: a seed has 58 bytes.
const maxSeedFile = 1024

// LoadIdentity reads a seed file. A file that others may read is refused.
func LoadIdentity(path string) (Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("loading identity: %w", err)
	}
	defer f.Close()
	info, err := f.Stat() // of what is open, not of what the path names next
	if err != nil {
		return nil, fmt.Errorf("loading identity: %w", err)
	}
	if perm := info.Mode().Perm(); info.Mode().IsRegular() && perm&0o077 != 0 {
		return nil, fmt.Errorf("loading identity: %s has mode %v, want %v or stricter", path, perm, fs.FileMode(0o600))
	}
	seed := make([]byte, maxSeedFile)
	defer clear(seed)
	n, err := io.ReadFull(f, seed)
	switch {
	case err == nil:
		return nil, fmt.Errorf("loading identity from %s: %w: not an nkey seed: %d bytes or more", path, ErrInvalid, maxSeedFile)
	case err != io.EOF && err != io.ErrUnexpectedEOF:
		return nil, fmt.Errorf("loading identity: %w", err)
	}
	id, err := ParseIdentity(seed[:n])
	if err != nil {
		return nil, fmt.Errorf("loading identity from %s: %w", path, err)
	}
	return id, nil
}

// publicSize is the length of a public key in text. base32 skips line breaks, so
// without it one key would have many spellings.
const publicSize = 56

// checkPublic never repeats what it refuses: somebody may have given a seed.
func checkPublic(public string) error {
	if len(public) != publicSize || !nkeys.IsValidPublicUserKey(public) && !nkeys.IsValidPublicServerKey(public) {
		return fmt.Errorf("%w: not a public key of a requester (U...) or a service (N...)", ErrInvalid)
	}
	return nil
}

// Purposes of signatures; a signature for one never counts for another.
const (
	PurposeRequest   = "request"
	PurposeReply     = "reply"
	PurposeDirectory = "directory"
	PurposeAuditHead = "audit-head"
	PurposeStoreHead = "store-head"
)

// signInput is 0xFF 0x00 || "keyweir/v1/<purpose>" || 0x00 || SHA-256(body): no
// text protocol, and no NATS nonce, can begin like it.
func signInput(purpose string, body []byte) []byte {
	sum := sha256.Sum256(body)
	b := append([]byte{0xFF, 0x00}, "keyweir/v1/"+purpose...)
	b = append(b, 0)
	return append(b, sum[:]...)
}

// SignPurpose signs body for one purpose. The signature has 64 bytes.
func SignPurpose(id Identity, purpose string, body []byte) ([]byte, error) {
	sig, err := id.Sign(signInput(purpose, body))
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", purpose, err)
	}
	if len(sig) != ed25519.SignatureSize {
		return nil, fmt.Errorf("signing %s: signature of %d bytes", purpose, len(sig))
	}
	return sig, nil
}

var errSignature = errors.New("bad signature")

// VerifyPurpose checks a signature by the identity whose public form is given.
func VerifyPurpose(public, purpose string, body, sig []byte) error {
	if err := checkPublic(public); err != nil {
		return err
	}
	pair, err := nkeys.FromPublicKey(public)
	if err != nil {
		return fmt.Errorf("%w: public key", ErrInvalid)
	}
	if len(sig) != ed25519.SignatureSize || pair.Verify(signInput(purpose, body), sig) != nil {
		return fmt.Errorf("%w: %v", ErrInvalid, errSignature)
	}
	return nil
}
