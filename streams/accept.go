package streams

import (
	"fmt"
	"slices"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// Names outside this module for types of the envelope.
type (
	// Scheme says which authorities must act to open a data key.
	Scheme = envelope.Scheme
	// Suite names the algorithms of an envelope.
	Suite = envelope.Suite
	// ChainID scopes order evidence: one chain per route, partition and
	// incarnation of the source.
	ChainID = envelope.ChainID
)

// Schemes and suites that a reader can accept.
const (
	SchemeSingle    = envelope.SchemeSingle    // the one authority
	SchemeChain     = envelope.SchemeChain     // all, each wrapping the wrap of the one before
	SchemeSplit     = envelope.SchemeSplit     // all, each holding one part
	SchemeThreshold = envelope.SchemeThreshold // k of n, each holding one share
	SchemeAny       = envelope.SchemeAny       // any one of n

	SuiteHKDFSHA256AES256GCM = envelope.SuiteHKDFSHA256AES256GCM
)

// Accept is what a reader pins. Messages never choose any of it. The zero value
// accepts nothing.
type Accept struct {
	// Rules say how keys must be protected, per scope; the first rule that
	// matches a scope decides. None: nothing is accepted.
	Rules []AcceptRule
	// ScopeRules compute the scope of a message from its origin subject. The
	// result must be the scope in the message's key record, so that a key of one
	// tenant cannot carry a message of another. Nil: nothing is accepted.
	ScopeRules *keysvc.ScopeRules
	// Chains lists the chains to read; nil: any.
	Chains []ChainID
	// Suites lists the accepted suites; nil: the one of version 1.
	Suites []Suite
	// Checkpoints names sealed streams, shared by partitions, that the streams read
	// are copies of: their checkpoints are skipped as well. Nil: those of the stream
	// that is read.
	Checkpoints []string
	// Subjects maps a delivered subject to the one the message was sealed for,
	// for streams that mirror or source with a subject transform. A subject it
	// does not know is mapped to "". Nil: they must be equal. It is called from
	// several goroutines at once.
	Subjects func(delivered string) (sealed string)
}

// AcceptRule says how the data keys of some scopes must be protected. An empty
// list accepts nothing.
type AcceptRule struct {
	// Scopes are scopes, or patterns ending in * for any rest.
	Scopes []string
	// Schemes are the accepted schemes.
	Schemes []Scheme
	// Authorities are the accepted sets of authority names, each in order.
	Authorities [][]string
	// Threshold is the smallest k of [SchemeThreshold]; 0 demands all n.
	Threshold int
}

// clone copies a and fills in the defaults, so that later changes by the caller
// do not change a running reader.
func (a Accept) clone() (Accept, error) {
	a.Checkpoints = slices.Clone(a.Checkpoints)
	a.Rules = slices.Clone(a.Rules)
	for i := range a.Rules {
		r := &a.Rules[i]
		r.Scopes, r.Schemes, r.Authorities = slices.Clone(r.Scopes), slices.Clone(r.Schemes), slices.Clone(r.Authorities)
		for j := range r.Authorities {
			r.Authorities[j] = slices.Clone(r.Authorities[j])
		}
		if r.Threshold < 0 || r.Threshold > envelope.MaxAuthorities {
			return Accept{}, fmt.Errorf("checking accept rule %d: threshold %d, want 0 to %d", i+1, r.Threshold, envelope.MaxAuthorities)
		}
	}
	a.Chains = slices.Clone(a.Chains)
	a.Suites = slices.Clone(a.Suites)
	if a.Suites == nil {
		a.Suites = []Suite{SuiteHKDFSHA256AES256GCM}
	}
	return a, nil
}

// core checks what a key record says about itself, before its key is asked for
// or used. Errors wrap ErrNotAccepted.
func (a *Accept) core(c *envelope.Core) error {
	scope := c.Scope()
	for i := range a.Rules {
		if a.Rules[i].matches(scope) {
			return a.Rules[i].core(c)
		}
	}
	return fmt.Errorf("%w: scope %.64q", ErrNotAccepted, scope)
}

func (r *AcceptRule) matches(scope string) bool {
	return slices.ContainsFunc(r.Scopes, func(p string) bool { return keysvc.ScopeMatches(p, scope) })
}

func (r *AcceptRule) core(c *envelope.Core) error {
	if !slices.Contains(r.Schemes, c.Scheme) {
		return fmt.Errorf("%w: scheme %v", ErrNotAccepted, c.Scheme)
	}
	if c.Scheme == SchemeThreshold {
		k := r.Threshold
		if k == 0 {
			k = int(c.N)
		}
		if int(c.K) < k {
			return fmt.Errorf("%w: %d of %d authorities, want %d", ErrNotAccepted, c.K, c.N, k)
		}
	}
	for _, names := range r.Authorities {
		if slices.EqualFunc(names, c.Authorities, func(name string, p envelope.PartHolder) bool { return name == p.Authority }) {
			return nil
		}
	}
	return fmt.Errorf("%w: authorities of the key", ErrNotAccepted)
}

// meta checks what only the opened message tells: its subjects, chain and scope.
func (a *Accept) meta(m *envelope.MetaView, delivered, origin, scope string) error {
	if delivered == "" || !m.SealedTo(delivered) {
		return ErrRelocated
	}
	if a.Chains != nil && !slices.Contains(a.Chains, m.Chain) {
		return fmt.Errorf("%w: chain %v", ErrNotAccepted, m.Chain)
	}
	if a.ScopeRules == nil {
		return fmt.Errorf("%w: the reader has no scope rules", ErrNotAccepted)
	}
	want, _, err := a.ScopeRules.Scope(origin)
	if err != nil {
		return fmt.Errorf("%w: no scope rule fits the origin subject", ErrNotAccepted)
	}
	if want != scope {
		return fmt.Errorf("%w: key of scope %.64q, the reader's rules say %.64q", ErrNotAccepted, scope, want)
	}
	return nil
}
