// Package keyhead vouches for the head of a key service's store with the
// identity of the service, so that whoever can write to the disk, but has not
// that identity, cannot put an older or another store in its place unnoticed.
package keyhead

import (
	"crypto/sha256"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc"
)

// New returns an authenticator that signs as id, under a purpose of its own.
func New(id keysvc.Identity) keycache.Authenticator { return &authenticator{id} }

type authenticator struct{ id keysvc.Identity }

var _ keycache.Authenticator = (*authenticator)(nil)

// ID tells keys apart; it is not secret.
func (a *authenticator) ID() []byte {
	h := sha256.Sum256([]byte(a.id.Public()))
	return h[:16]
}

func (a *authenticator) Sign(head []byte) ([]byte, error) {
	return keysvc.SignPurpose(a.id, keysvc.PurposeStoreHead, head)
}

func (a *authenticator) Verify(head, tag []byte) bool {
	return keysvc.VerifyPurpose(a.id.Public(), keysvc.PurposeStoreHead, head, tag) == nil
}
