package envelope

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Maxima of a key record.
const (
	MaxAuthorities   = 8
	MaxContextPairs  = 32
	MaxContextString = 1024 // bytes of a name or a value of the encryption context
	MaxName          = 64   // bytes of an authority's configured name

	coreVersion = 1
)

// Names of the encryption context that only Keyweir sets. ReservedPrefix is
// refused from everybody else.
const (
	ReservedPrefix     = "keyweir-"
	ContextScope       = "keyweir-scope" // what shares the data key; required in every core
	ContextUse         = "keyweir-use"   // "data" for data keys
	ContextRecord      = "keyweir-record"
	ContextScheme      = "keyweir-scheme"
	ContextPart        = "keyweir-part" // "1/2"
	ContextAuthorities = "keyweir-authorities"

	UseData = "data"
)

// Scheme says which authorities must act to open a data key. Zero is invalid.
type Scheme uint8

const (
	SchemeSingle    Scheme = 1 // the one authority
	SchemeChain     Scheme = 2 // all, each wrapping the wrap of the one before
	SchemeSplit     Scheme = 3 // all, each holding one part
	SchemeThreshold Scheme = 4 // k of n, each holding one share
	SchemeAny       Scheme = 5 // any one of n
)

var schemeNames = [...]string{SchemeSingle: "single", SchemeChain: "chain", SchemeSplit: "split", SchemeThreshold: "threshold", SchemeAny: "any"}

func (s Scheme) String() string {
	if s >= SchemeSingle && int(s) < len(schemeNames) {
		return schemeNames[s]
	}
	return fmt.Sprintf("Scheme(%d)", uint8(s))
}

// ParseScheme parses the names String returns; anything else is [ErrUnsupported].
func ParseScheme(s string) (Scheme, error) {
	if i := slices.Index(schemeNames[1:], s); i >= 0 {
		return Scheme(i + 1), nil
	}
	return 0, fmt.Errorf("%w: scheme %q", ErrUnsupported, s)
}

// RecordID is 16 random bytes that set one data key's derivations apart.
type RecordID [16]byte

func (id RecordID) String() string { return hex.EncodeToString(id[:]) }

// NewRecordID draws a record ID.
func NewRecordID() (id RecordID) {
	rand.Read(id[:])
	return id
}

// Pair is one entry of an encryption context.
type Pair struct{ Name, Value string }

// PartHolder is one authority's place in a key record, in order.
type PartHolder struct {
	Authority  string // its configured name, never an address
	Commitment Commitment
}

// Core is the part of a key record that never changes; its hash is the key ID.
//
//	1   core version = 1
//	1   scheme
//	1   k, 1 n
//	16  record ID
//	8   created, unix seconds
//	32  commitment of the data key
//	1   context pair count, then each: 2 name length, name, 2 value length, value
//	n times: 1 name length, authority name, 32 part commitment
type Core struct {
	Scheme      Scheme
	K, N        uint8 // k of n authorities must act
	RecordID    RecordID
	Created     int64 // unix seconds
	Commitment  Commitment
	Context     []Pair // sorted by name, no duplicates, ContextScope among them
	Authorities []PartHolder
}

// Scope returns the scope the data key belongs to.
func (c *Core) Scope() string {
	for _, p := range c.Context {
		if p.Name == ContextScope {
			return p.Value
		}
	}
	return ""
}

// ID returns the key ID, SHA-256("keyweir/v1/key-id" || core). The core must be
// valid: parsed, or accepted by Append.
func (c *Core) ID() KeyID {
	b, err := c.Append([]byte(labelKeyID))
	if err != nil {
		panic("envelope: internal error: hashing an invalid core: " + err.Error())
	}
	return sha256.Sum256(b)
}

// Verify checks in constant time that key is the one the core commits to;
// [ErrWrongKey] if not.
func (c *Core) Verify(key DataKey) error {
	if key.IsZero() {
		return fmt.Errorf("%w: no key", ErrWrongKey)
	}
	got := key.Commit()
	if subtle.ConstantTimeCompare(got[:], c.Commitment[:]) != 1 {
		return ErrWrongKey
	}
	return nil
}

// SortContext turns a map into the sorted pairs of a core.
func SortContext(m map[string]string) []Pair {
	out := make([]Pair, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, Pair{name, m[name]})
	}
	return out
}

// WrapContext returns the encryption context that every wrap of this record is
// bound to as AAD: the core's own pairs and the reserved ones. i is the
// authority's place, from 0.
func (c *Core) WrapContext(i int) map[string]string {
	m := make(map[string]string, len(c.Context)+5)
	for _, p := range c.Context {
		m[p.Name] = p.Value
	}
	h := sha256.New()
	for _, a := range c.Authorities {
		h.Write([]byte{byte(len(a.Authority))})
		h.Write([]byte(a.Authority))
	}
	m[ContextUse] = UseData
	m[ContextRecord] = c.RecordID.String()
	m[ContextScheme] = c.Scheme.String()
	m[ContextPart] = fmt.Sprintf("%d/%d", i+1, c.N)
	m[ContextAuthorities] = hex.EncodeToString(h.Sum(nil))
	return m
}

// check validates everything that both writing and reading demand.
func (c *Core) check() error {
	n, k := int(c.N), int(c.K)
	if c.Scheme < SchemeSingle || c.Scheme > SchemeAny {
		return fmt.Errorf("%w: scheme %d", ErrUnsupported, uint8(c.Scheme))
	}
	ok := false
	switch c.Scheme {
	case SchemeSingle:
		ok = n == 1 && k == 1
	case SchemeChain, SchemeSplit:
		ok = n >= 2 && k == n
	case SchemeThreshold:
		ok = k >= 2 && k <= n
	case SchemeAny:
		ok = n >= 2 && k == 1
	}
	if !ok || n > MaxAuthorities || n != len(c.Authorities) {
		return fmt.Errorf("%w: scheme %v with k=%d, n=%d and %d authorities", ErrMalformed, c.Scheme, k, n, len(c.Authorities))
	}
	for i, a := range c.Authorities {
		if a.Authority == "" || len(a.Authority) > MaxName {
			return fmt.Errorf("%w: authority %d has a name of %d bytes, want 1 to %d", ErrMalformed, i+1, len(a.Authority), MaxName)
		}
		if !utf8.ValidString(a.Authority) {
			return fmt.Errorf("%w: name of authority %d is not UTF-8", ErrMalformed, i+1)
		}
		for _, b := range c.Authorities[:i] {
			if a.Authority == b.Authority {
				return fmt.Errorf("%w: authority %q named twice", ErrMalformed, a.Authority)
			}
		}
	}
	if len(c.Context) > MaxContextPairs {
		return fmt.Errorf("%w: %d context pairs, at most %d", ErrMalformed, len(c.Context), MaxContextPairs)
	}
	for i, p := range c.Context {
		if p.Name == "" || len(p.Name) > MaxContextString || len(p.Value) > MaxContextString {
			return fmt.Errorf("%w: context pair %d is empty or exceeds %d bytes", ErrMalformed, i+1, MaxContextString)
		}
		// Authorities take contexts as JSON, where different invalid bytes would
		// become the same replacement character.
		if !utf8.ValidString(p.Name) || !utf8.ValidString(p.Value) {
			return fmt.Errorf("%w: context pair %d is not UTF-8", ErrMalformed, i+1)
		}
		if i > 0 && c.Context[i-1].Name >= p.Name {
			return fmt.Errorf("%w: context pair %d is out of order", ErrMalformed, i+1)
		}
		if strings.HasPrefix(p.Name, ReservedPrefix) && p.Name != ContextScope {
			return fmt.Errorf("%w: context name %q is reserved", ErrMalformed, p.Name)
		}
	}
	if c.Scope() == "" {
		return fmt.Errorf("%w: context has no %s", ErrMalformed, ContextScope)
	}
	return nil
}

// Append writes the core in canonical form, or answers [ErrMalformed] or
// [ErrUnsupported] and nil.
func (c *Core) Append(dst []byte) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	dst = append(dst, coreVersion, byte(c.Scheme), c.K, c.N)
	dst = append(dst, c.RecordID[:]...)
	dst = be.AppendUint64(dst, uint64(c.Created))
	dst = append(dst, c.Commitment[:]...)
	dst = append(dst, byte(len(c.Context)))
	for _, p := range c.Context {
		dst = be.AppendUint16(dst, uint16(len(p.Name)))
		dst = append(dst, p.Name...)
		dst = be.AppendUint16(dst, uint16(len(p.Value)))
		dst = append(dst, p.Value...)
	}
	for _, a := range c.Authorities {
		dst = append(dst, byte(len(a.Authority)))
		dst = append(dst, a.Authority...)
		dst = append(dst, a.Commitment[:]...)
	}
	return dst, nil
}

// parseCore reads a whole core; trailing bytes are an error.
func parseCore(b []byte) (Core, error) {
	r := cursor{b: b}
	if v := r.u8(); !r.bad && v != coreVersion {
		return Core{}, fmt.Errorf("%w: key record version %d", ErrUnsupported, v)
	}
	c := Core{Scheme: Scheme(r.u8()), K: r.u8(), N: r.u8()}
	copy(c.RecordID[:], r.take(len(c.RecordID)))
	c.Created = int64(r.u64())
	copy(c.Commitment[:], r.take(len(c.Commitment)))
	pairs := int(r.u8())
	if r.bad || pairs > MaxContextPairs || c.N > MaxAuthorities {
		return Core{}, fmt.Errorf("%w: key record core", ErrMalformed)
	}
	for range pairs {
		name := string(r.take(int(r.u16())))
		c.Context = append(c.Context, Pair{name, string(r.take(int(r.u16())))})
	}
	for range c.N {
		a := PartHolder{Authority: string(r.take(int(r.u8())))}
		copy(a.Commitment[:], r.take(len(a.Commitment)))
		c.Authorities = append(c.Authorities, a)
	}
	if r.bad || len(r.b) != 0 {
		return Core{}, fmt.Errorf("%w: key record core", ErrMalformed)
	}
	if err := c.check(); err != nil {
		return Core{}, err
	}
	return c, nil
}
