package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode"
)

// ErrInvalid: a configuration that cannot be followed. The text names the place.
var ErrInvalid = errors.New("policy: invalid configuration")

// MaxPrincipal is the longest name of a principal in bytes.
const MaxPrincipal = 128

// Principals maps configured names to public keys and back. Safe for concurrent
// use; the zero value knows nobody.
type Principals struct {
	byName, byKey map[string]string
}

// NewPrincipals takes public keys by name. Names are 1 to MaxPrincipal bytes of
// printable text without blanks; two names may not share one key, since the
// audit log could not tell them apart. The form of the keys is not checked here.
func NewPrincipals(keys map[string]string) (*Principals, error) {
	p := &Principals{byName: maps.Clone(keys), byKey: make(map[string]string, len(keys))}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		key := keys[name]
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("principal %q: %w", name, err)
		}
		if key == "" {
			return nil, fmt.Errorf("principal %q: %w: no public key", name, ErrInvalid)
		}
		if other, taken := p.byKey[key]; taken {
			return nil, fmt.Errorf("principal %q: %w: the same public key as %q", name, ErrInvalid, other)
		}
		p.byKey[key] = name
	}
	return p, nil
}

func checkName(name string) error {
	if name == "" || len(name) > MaxPrincipal {
		return fmt.Errorf("%w: name of %d bytes, want 1 to %d", ErrInvalid, len(name), MaxPrincipal)
	}
	for _, r := range name {
		if r == unicode.ReplacementChar || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return fmt.Errorf("%w: name with a blank or unprintable character", ErrInvalid)
		}
	}
	return nil
}

// Name returns who holds a public key.
func (p *Principals) Name(key string) (name string, ok bool) {
	name, ok = p.byKey[key]
	return name, ok
}

// Key returns the public key of a name.
func (p *Principals) Key(name string) (key string, ok bool) {
	key, ok = p.byName[name]
	return key, ok
}

// Len is how many principals there are.
func (p *Principals) Len() int { return len(p.byName) }

// Names returns all names in order.
func (p *Principals) Names() []string { return slices.Sorted(maps.Keys(p.byName)) }
