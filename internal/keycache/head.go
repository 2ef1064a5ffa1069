package keycache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Head is what the authenticator vouches for: how far the store has come. It is
// not secret.
type Head struct {
	StoreID    [16]byte // random, drawn when the store was created
	Generation uint64   // commits (groups of batches) since creation; 0 for a new store
	Records    uint64   // changes and sequenced rows since creation
	Hash       [32]byte // over all commits so far: SHA-256 of the previous hash and the commit
	State      []byte   // of the Sequencer, nil if there is none yet

	previous [32]byte // Hash of the generation before
}

func (h *Head) clone() Head {
	c := *h
	c.State = bytes.Clone(h.State)
	return c
}

// String gives generation and the start of the hash.
func (h Head) String() string {
	return fmt.Sprintf("generation %d (%d records, hash %s)", h.Generation, h.Records, hex.EncodeToString(h.Hash[:8]))
}

func (h *Head) equal(o *Head) bool {
	return h.StoreID == o.StoreID && h.Generation == o.Generation && h.Records == o.Records &&
		h.Hash == o.Hash && h.previous == o.previous && bytes.Equal(h.State, o.State)
}

// follows reports whether h is the commit right after p.
func (h *Head) follows(p *Head) bool {
	return h.StoreID == p.StoreID && h.Generation == p.Generation+1 && h.previous == p.Hash
}

// A signed head, the same bytes as a row of the store and in a slot of HEAD:
//
//	label "keyweir/v1/store-head" 0x00
//	16    store ID
//	8     generation
//	8     records
//	32    previous hash
//	32    hash
//	1, n  authenticator ID, at most 32 bytes
//	1, n  sequencer state, at most 128 bytes
//	2, n  tag over everything before, at most 256 bytes
const (
	headLabel  = "keyweir/v1/store-head\x00"
	maxAuthID  = 32
	maxTag     = 256
	headFixed  = len(headLabel) + 16 + 8 + 8 + 32 + 32
	maxEncoded = headFixed + 1 + maxAuthID + 1 + MaxState + 2 + maxTag
)

// encodeHead signs h.
func encodeHead(h *Head, auth Authenticator) ([]byte, error) {
	id := auth.ID()
	if len(id) > maxAuthID || len(h.State) > MaxState {
		return nil, fmt.Errorf("authenticator ID has %d bytes, sequencer state %d, limits %d and %d: %w",
			len(id), len(h.State), maxAuthID, MaxState, ErrInvalid)
	}
	b := make([]byte, 0, maxEncoded)
	b = append(b, headLabel...)
	b = append(b, h.StoreID[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Generation)
	b = binary.BigEndian.AppendUint64(b, h.Records)
	b = append(b, h.previous[:]...)
	b = append(b, h.Hash[:]...)
	b = append(append(b, byte(len(id))), id...)
	b = append(append(b, byte(len(h.State))), h.State...)
	tag, err := auth.Sign(b)
	if err != nil {
		return nil, fmt.Errorf("signing head: %w", err)
	}
	if len(tag) == 0 || len(tag) > maxTag {
		return nil, fmt.Errorf("head tag has %d bytes, want 1 to %d: %w", len(tag), maxTag, ErrInvalid)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(tag)))
	return append(b, tag...), nil
}

var errMalformed = errors.New("malformed head")

// decodeHead reads a signed head and what follows it. The error wraps
// [ErrOtherKey] if another key is named, and says nothing else of use.
func decodeHead(b []byte, auth Authenticator) (h *Head, rest []byte, err error) {
	r := b
	take := func(n int) []byte {
		if n > len(r) {
			err = errMalformed
			return make([]byte, n)
		}
		v := r[:n]
		r = r[n:]
		return v
	}
	h = new(Head)
	label := string(take(len(headLabel)))
	copy(h.StoreID[:], take(16))
	h.Generation = binary.BigEndian.Uint64(take(8))
	h.Records = binary.BigEndian.Uint64(take(8))
	copy(h.previous[:], take(32))
	copy(h.Hash[:], take(32))
	id := take(int(take(1)[0]))
	state := take(int(take(1)[0]))
	signed := b[:len(b)-len(r)]
	tag := take(int(binary.BigEndian.Uint16(take(2))))
	if err != nil || label != headLabel || len(id) > maxAuthID || len(state) > MaxState || len(tag) > maxTag {
		return nil, nil, errMalformed
	}
	if !bytes.Equal(id, auth.ID()) {
		return nil, nil, fmt.Errorf("%w: written with key %x, opened with key %x", ErrOtherKey, id, auth.ID())
	}
	if !auth.Verify(signed, tag) {
		return nil, nil, errors.New("bad tag")
	}
	if len(state) > 0 {
		h.State = bytes.Clone(state)
	}
	return h, r, nil
}

// commitHash starts the hash of the commit after h.
func commitHash(h *Head) *hashWriter {
	w := &hashWriter{sha256.New()}
	w.Write([]byte("keyweir/v1/store-commit\x00"))
	w.Write(h.StoreID[:])
	w.Write(h.Hash[:])
	w.number(h.Generation + 1)
	return w
}
