package streams

import (
	"encoding/hex"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// Info describes the clear part of an envelope. Nothing in it was authenticated:
// whoever can write to the broker can have written it.
type Info struct {
	Version int    `json:"version"`
	Suite   string `json:"suite"`
	KeyID   string `json:"key_id"`
	Session string `json:"session"` // salt, hexadecimal
	Nonce   string `json:"nonce"`   // "counter" or "random"
	Layered bool   `json:"layered"` // the payload is itself an envelope
	Size    int    `json:"size"`    // bytes of the whole envelope
	// Clear is how many of them are in clear (header, record, nonce); Sealed is
	// the ciphertext of meta and payload without the tag.
	Clear  int `json:"clear"`
	Sealed int `json:"sealed"`
	// Record is nil where the envelope refers to its key by ID.
	Record *RecordInfo `json:"record,omitempty"`
}

// RecordInfo describes an inline key record.
type RecordInfo struct {
	Size int `json:"size"` // bytes
	// KeyIDMatches is false when the record is not that of the envelope's key:
	// every reader rejects such a message.
	KeyIDMatches bool              `json:"key_id_matches"`
	ID           string            `json:"id"`
	Scheme       string            `json:"scheme"`
	K            int               `json:"k"` // of N authorities must act
	N            int               `json:"n"`
	Created      time.Time         `json:"created"`
	Scope        string            `json:"scope"`
	Context      map[string]string `json:"context"` // encryption context
	Authorities  []AuthorityInfo   `json:"authorities"`
}

// AuthorityInfo describes one authority's place in a key record and its wrap.
type AuthorityInfo struct {
	Name       string `json:"name"`
	ManagedKey string `json:"managed_key"`
	KeyVersion string `json:"key_version,omitempty"`
	WrapSize   int    `json:"wrap_size"` // bytes
}

// Inspect describes an envelope without any key. Errors: [ErrPlaintext],
// [ErrUnsupported], [ErrTampered] for what is malformed; Info is zero then.
func Inspect(b []byte) (Info, error) {
	e, err := envelope.Parse(b)
	if err != nil {
		return Info{}, envelopeError(err)
	}
	info := Info{
		Version: envelope.Version, Suite: e.Suite.String(), KeyID: e.KeyID.String(), Session: e.Salt.String(),
		Nonce: "counter", Layered: e.Flags&envelope.FlagLayered != 0,
		Size: len(b), Sealed: len(e.Sealed) - envelope.NonceSize - envelope.TagSize,
	}
	info.Clear = info.Size - info.Sealed - envelope.TagSize
	if e.Flags&envelope.FlagRandomNonce != 0 {
		info.Nonce = "random"
	}
	if e.Record == nil {
		return info, nil
	}
	r, err := envelope.ParseRecord(e.Record)
	if err != nil {
		return Info{}, envelopeError(err)
	}
	info.Record = recordInfo(r, len(e.Record), e.KeyID)
	return info, nil
}

func recordInfo(r *envelope.Record, size int, id envelope.KeyID) *RecordInfo {
	c := &r.Core
	info := &RecordInfo{
		Size: size, KeyIDMatches: c.ID() == id, ID: hex.EncodeToString(c.RecordID[:]),
		Scheme: c.Scheme.String(), K: int(c.K), N: int(c.N),
		Created: created(c.Created), Scope: c.Scope(), Context: make(map[string]string, len(c.Context)),
	}
	for _, p := range c.Context {
		info.Context[p.Name] = p.Value
	}
	for i, a := range c.Authorities {
		w := &r.Wraps[i]
		info.Authorities = append(info.Authorities, AuthorityInfo{a.Authority, w.ManagedKey, w.Version, len(w.Bytes)})
	}
	return info
}

// created clamps a time from the wire to the years that JSON can express.
func created(unix int64) time.Time {
	const last = 253402300799 // 9999-12-31T23:59:59Z
	return time.Unix(min(max(unix, 0), last), 0).UTC()
}
