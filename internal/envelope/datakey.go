package envelope

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
)

// DataKeySize is the length of a data key in bytes.
const DataKeySize = 32

// Commitment is 32 bytes that commit to a key without revealing it.
type Commitment [32]byte

// DataKey is a 256-bit data encryption key. It is opaque: it prints as
// "[redacted]" and offers no method that returns its bytes. Copies share the
// key; [DataKey.Clear] ends all of them. The zero DataKey holds no key and is
// refused everywhere. Safe for concurrent use, except Clear.
type DataKey struct {
	redacted
	s *secret
}

// NewDataKey copies b, which must be DataKeySize bytes and not all zero
// ([ErrInvalid]). The caller still owns, and should clear, b.
func NewDataKey(b []byte) (DataKey, error) {
	if len(b) != DataKeySize {
		return DataKey{}, fmt.Errorf("%w: data key of %d bytes, want %d", ErrInvalid, len(b), DataKeySize)
	}
	k := DataKey{s: newSecret([DataKeySize]byte(b))}
	if k.IsZero() {
		return DataKey{}, fmt.Errorf("%w: data key is all zero", ErrInvalid)
	}
	return k, nil
}

// GenerateDataKey draws a data key from crypto/rand.
func GenerateDataKey() DataKey {
	s := newSecret([DataKeySize]byte{})
	rand.Read(s.b[:])
	return DataKey{s: s}
}

// IsZero reports whether k holds no key, or only zeros: never set, or cleared.
func (k DataKey) IsZero() bool {
	var zero [DataKeySize]byte
	return k.s == nil || subtle.ConstantTimeCompare(k.s.b[:], zero[:]) == 1
}

// Equal compares in constant time. A zero key equals nothing.
func (k DataKey) Equal(o DataKey) bool {
	return !k.IsZero() && !o.IsZero() && subtle.ConstantTimeCompare(k.s.b[:], o.s.b[:]) == 1
}

// Clear overwrites the key with zeros. Sessions and readers already derived
// from it are not affected; close them too.
func (k DataKey) Clear() {
	if k.s != nil {
		clear(k.s.b[:])
	}
}

// ExposeDataKey returns a copy of the key's bytes, for wrapping by an authority
// and for sealing to a reader. It is a function of this internal package, not a
// method, so that applications holding a DataKey cannot call it. Clear the copy.
func ExposeDataKey(k DataKey) []byte {
	if k.s == nil {
		return nil
	}
	return append([]byte(nil), k.s.b[:]...)
}

// Commit returns HKDF-SHA-256(key, no salt, "keyweir/v1/commit"), which stands
// in the core of the key's record.
func (k DataKey) Commit() Commitment {
	return derive(k.s, nil, labelCommit)
}

// PartCommitment commits one part of a data key (for the single scheme the data
// key itself): HKDF-SHA-256(part, record ID, "keyweir/v1/part" || i), i from 1.
func PartCommitment(part []byte, id RecordID, i uint8) (Commitment, error) {
	if len(part) != DataKeySize {
		return Commitment{}, fmt.Errorf("%w: key part of %d bytes, want %d", ErrInvalid, len(part), DataKeySize)
	}
	out, err := hkdf.Key(sha256.New, part, id[:], labelPart+string([]byte{i}), 32)
	if err != nil {
		return Commitment{}, fmt.Errorf("deriving part commitment: %w", err)
	}
	return Commitment(out), nil
}

// Labels of every derivation. They differ, so outputs for one use say nothing
// about another; a nil HKDF salt equals zeros, which is harmless for that reason.
const (
	labelSeal   = "keyweir/v1/seal"
	labelCommit = "keyweir/v1/commit"
	labelPart   = "keyweir/v1/part"
	labelKeyID  = "keyweir/v1/key-id"
)

func derive(s *secret, salt []byte, info string) [32]byte {
	if s == nil {
		panic("envelope: internal error: deriving from an empty key")
	}
	out, err := hkdf.Key(sha256.New, s.b[:], salt, info, 32)
	if err != nil {
		panic("envelope: internal error: " + err.Error()) // lengths are constants
	}
	k := [32]byte(out)
	clear(out)
	return k
}

// sessionSubkey derives the AES key of one session:
// HKDF-SHA-256(DEK, session salt, "keyweir/v1/seal" || suite || key ID).
func sessionSubkey(k DataKey, suite Suite, id KeyID, salt Salt) *secret {
	info := make([]byte, 0, len(labelSeal)+1+len(id))
	info = append(info, labelSeal...)
	info = append(info, byte(suite))
	info = append(info, id[:]...)
	return newSecret(derive(k.s, salt[:], string(info)))
}
