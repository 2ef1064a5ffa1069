// Package audit keeps the hash-chained log of key operations.
//
// A [Record] is attached to the batch that carries the operation it reports:
//
//	b := new(keycache.Batch)
//	b.Put(...)
//	b.Attach(audit.Record{Principal: p, Action: "open", Outcome: audit.Allow})
//	err := store.Apply(ctx, b) // operation and record, or neither
//
// The store's committer hands records to a [Chain] in commit order, which
// numbers and links them and writes them as rows of the same commit. [Read]
// iterates them, [Verify] names the first one that was altered, removed or
// moved, and [VerifyStore] compares the end of the chain with the store's
// authenticated head as well, so that a cut-off tail is noticed.
//
// The chain proves order and completeness of what the store's owner wrote. It
// does not bind an owner who rewrites everything: for that, the [Position] must
// be published elsewhere.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Limits of one record, checked before it is written. Names are not cut: an
// operation whose record does not fit is refused.
const (
	MaxField  = 1024 // bytes of one string
	MaxKeyIDs = 64
)

// ErrInvalid: a record is incomplete or out of bounds; its batch is refused.
var ErrInvalid = errors.New("audit: invalid record")

// Outcome is how an operation ended. The zero Outcome is invalid.
type Outcome string

// The outcomes.
const (
	Allow Outcome = "allow" // permitted and done
	Deny  Outcome = "deny"  // refused by policy or key state
	Error Outcome = "error" // permitted, but failed
)

// Record reports one operation. It never holds key material or payload.
//
// The stored form is canonical JSON: the fields in this order, empty optional
// ones left out, no spaces, "<", ">" and "&" not escaped.
type Record struct {
	Seq        uint64    `json:"seq"`                   // from 1 without gaps; set by the chain
	Time       time.Time `json:"time"`                  // UTC; zero: set by the chain when it commits
	Instance   string    `json:"instance,omitempty"`    // of the key service; "": set by the chain
	Principal  string    `json:"principal"`             // who asked; required
	Action     string    `json:"action"`                // what was asked, e.g. "open"; required
	Outcome    Outcome   `json:"outcome"`               // required
	Reason     string    `json:"reason,omitempty"`      // why it was denied or failed
	Scope      string    `json:"scope,omitempty"`       // scope of the data key
	KeyIDs     []string  `json:"key_ids,omitempty"`     // data keys, in the order of the request
	ManagedKey string    `json:"managed_key,omitempty"` // managed key
	Request    string    `json:"request,omitempty"`     // hash of the signed request, hexadecimal
	Nonce      string    `json:"nonce,omitempty"`       // the client's nonce
	Prev       string    `json:"prev"`                  // hash of the record before, hexadecimal; zeros for the first
	Hash       string    `json:"hash,omitempty"`        // SHA-256("keyweir/v1/audit" || prev || this record without hash)
}

func (r *Record) check() error {
	if r.Principal == "" || r.Action == "" {
		return fmt.Errorf("principal and action are required: %w", ErrInvalid)
	}
	if r.Outcome != Allow && r.Outcome != Deny && r.Outcome != Error {
		return fmt.Errorf("outcome %q: %w", r.Outcome, ErrInvalid)
	}
	if len(r.KeyIDs) > MaxKeyIDs {
		return fmt.Errorf("%d key IDs, limit %d: %w", len(r.KeyIDs), MaxKeyIDs, ErrInvalid)
	}
	for _, f := range append([]string{
		r.Instance, r.Principal, r.Action, r.Reason, r.Scope, r.ManagedKey, r.Request, r.Nonce,
	}, r.KeyIDs...) {
		if len(f) > MaxField {
			return fmt.Errorf("field of %d bytes, limit %d: %w", len(f), MaxField, ErrInvalid)
		}
	}
	return nil
}

// tidy makes every string valid UTF-8, so that the JSON form is canonical.
func (r *Record) tidy() {
	fix := func(s *string) { *s = strings.ToValidUTF8(*s, "\uFFFD") }
	for _, f := range []*string{
		&r.Instance, &r.Principal, &r.Action, &r.Reason, &r.Scope, &r.ManagedKey, &r.Request, &r.Nonce,
	} {
		fix(f)
	}
	r.KeyIDs = slices.Clone(r.KeyIDs)
	for i := range r.KeyIDs {
		fix(&r.KeyIDs[i])
	}
	r.Time = r.Time.UTC().Round(0)
}

// encode is the canonical JSON of r.
func (r Record) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, fmt.Errorf("encoding record: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// sum is the hash of r after a record with hash prev.
func (r Record) sum(prev [32]byte) (sum [32]byte, err error) {
	r.Hash = ""
	b, err := r.encode()
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	h.Write([]byte("keyweir/v1/audit"))
	h.Write(prev[:])
	h.Write(b)
	h.Sum(sum[:0])
	return sum, nil
}

// Parse reads one stored record and checks that it is canonical and that its
// hash is right for the prev it names.
func Parse(raw []byte) (Record, error) {
	r, _, err := parse(raw)
	return r, err
}

func parse(raw []byte) (r Record, hash [32]byte, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Record{}, hash, fmt.Errorf("decoding record: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Record{}, hash, errors.New("decoding record: trailing bytes")
	}
	again, err := r.encode()
	if err != nil {
		return Record{}, hash, err
	}
	if !bytes.Equal(raw, again) {
		return Record{}, hash, errors.New("decoding record: not canonical")
	}
	prev, err := parseHash(r.Prev)
	if err != nil {
		return Record{}, hash, err
	}
	if hash, err = r.sum(prev); err != nil {
		return Record{}, hash, err
	}
	if r.Hash != hex.EncodeToString(hash[:]) {
		return Record{}, hash, errors.New("decoding record: wrong hash")
	}
	return r, hash, nil
}

func parseHash(s string) (h [32]byte, err error) {
	if len(s) != hex.EncodedLen(len(h)) || strings.ToLower(s) != s {
		return h, fmt.Errorf("decoding record: hash of %d characters", len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return h, fmt.Errorf("decoding record: hash: %v", err)
	}
	return h, nil
}
