package keyserver

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// ErrConfig: the configuration cannot be followed. The text names the field.
var ErrConfig = errors.New("keyserver: invalid configuration")

// Config says what a key service is. Durations and counts that are 0 take the
// default named at the field; negative ones are [ErrConfig].
type Config struct {
	Conn     *nats.Conn      // required; the caller closes it after the server
	Service  string          // required: name of the service, one subject token
	Identity keysvc.Identity // required: the service's (N...), shared by its instances
	// Instance names this process in replies and in the audit log; "" draws one.
	Instance string
	Version  string // semantic version that status reports; "" means 0.0.0

	// Store holds everything durable. Required, opened with an audit.Chain as
	// its Sequencer; the caller closes it after the server.
	Store *keycache.Store
	// Authorities by the name under which key records know them. Required; the
	// caller closes them after the server.
	Authorities map[string]authority.Authority
	Scopes      []ScopeRule // in order, the first match wins; no match is refused

	Principals map[string]string // public keys (U...) by name
	Policy     policy.Decider    // required
	Directory  Directory

	Workers int // requests answered at a time; 0: 32
	Queue   int // requests that may wait; 0: 1024. One more is answered busy
	// Cache is how many opened data keys are kept in memory, and of how many
	// scopes the current key; 0: 100,000.
	Cache int
	// Confirm is how long an authority's answer about a managed key counts as
	// fresh. Keys in use are confirmed ahead of it, one call per managed key.
	// 0: 1 minute.
	Confirm          time.Duration
	AuthorityTimeout time.Duration // one call to an authority; 0: 10 s

	Logger *slog.Logger // nil discards
	Meter  metric.Meter // nil measures nothing
	Tracer trace.Tracer // nil traces nothing
}

// Keys says how a scope is keyed.
type Keys string

// The ways to key a scope.
const (
	// KeysDirect: the authority generates each data key, under the managed key
	// it was opened with.
	KeysDirect Keys = "direct"
	// KeysManaged: the scope has a managed key of its own, created on first use
	// under the alias [ManagedAlias]. Needs an authority.Manager.
	KeysManaged Keys = "managed"
)

// ScopeRule says which subjects share a data key, and how that key is made and used.
type ScopeRule struct {
	Match string // NATS subject pattern
	Scope string // text with {{wildcard(n)}}
	Keys  Keys   // "": KeysDirect
	// Scheme says who must act to open; "": "single", the only one of this
	// release: the others are composed by clients.
	Scheme string
	// Authorities in the scheme's order; exactly one for "single".
	Authorities []string
	// Accept names further authorities whose records of this scope may still be
	// opened, after a change of Authorities. Empty means none.
	Accept []string

	Reuse time.Duration // how long a data key may seal new messages; 0: 5 minutes
	// Lease is how long a client may keep an opened key before asking again;
	// 0: 5 minutes.
	Lease  time.Duration
	Stale  Stale
	Budget Budget
	// Context are pairs bound as AAD into every wrap, clear in key records and in
	// the logs of a KMS. Names beginning "keyweir-" are refused.
	Context map[string]string
}

// Stale is how long keys go on while an authority is unreachable, counted from
// the moment its last answer stopped being fresh.
type Stale struct {
	Seal time.Duration // 0: 1 hour
	Open time.Duration // 0: 4 hours
}

// Budget ends every session granted for a scope, at the latest.
type Budget struct {
	Messages uint64 // 0: 2^32 - 1
	Bytes    uint64 // of meta and payload; 0: 64 GiB
}

// Directory is the key directory, the JetStream KV bucket KEYWEIR_<service>_keys.
// The server creates the bucket if it is missing, and never changes an existing one.
type Directory struct {
	Replicas int           // 0: 1
	TTL      time.Duration // of entries; 0: they stay. Shorter than the retention of messages by reference makes those unreadable
	Memory   bool          // memory storage, for tests and demonstrations
	// Signers are former public keys of the service whose entries still count.
	Signers []string
}

// Upper limits of settings.
const (
	maxReuse = 24 * time.Hour
	maxLease = 24 * time.Hour
	maxStale = 30 * 24 * time.Hour
	// maxContext leaves room for the names keyweir adds within the 32 pairs an
	// authority takes.
	maxContext = 24
)

// withDefaults fills what is 0 and refuses what is negative or too large.
func (c Config) withDefaults() (Config, error) {
	if c.Version == "" {
		c.Version = "0.0.0"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Meter == nil {
		c.Meter = metricnoop.Meter{}
	}
	if c.Tracer == nil {
		c.Tracer = tracenoop.Tracer{}
	}
	for _, f := range []struct {
		name string
		v    *int
		def  int
		max  int
	}{
		{"workers", &c.Workers, 32, 4096},
		{"queue", &c.Queue, 1024, 1 << 20},
		{"cache", &c.Cache, 100_000, 1 << 24},
		{"directory.replicas", &c.Directory.Replicas, 1, 5},
	} {
		if *f.v < 0 || *f.v > f.max {
			return c, fmt.Errorf("%w: %s is %d, want 1 to %d, or 0 for %d", ErrConfig, f.name, *f.v, f.max, f.def)
		}
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	if err := durations([]duration{
		{"confirm", &c.Confirm, time.Minute, time.Second, time.Hour},
		{"authority_timeout", &c.AuthorityTimeout, 10 * time.Second, time.Millisecond, time.Minute},
	}); err != nil {
		return c, err
	}
	if c.Directory.TTL < 0 {
		return c, fmt.Errorf("%w: directory.ttl is negative", ErrConfig)
	}
	c.Scopes = slices.Clone(c.Scopes)
	for i := range c.Scopes {
		r, err := c.Scopes[i].withDefaults()
		if err != nil {
			return c, fmt.Errorf("scopes[%d] (%q): %w", i, c.Scopes[i].Match, err)
		}
		c.Scopes[i] = r
	}
	return c, nil
}

type duration struct {
	name          string
	v             *time.Duration
	def, min, max time.Duration
}

func durations(list []duration) error {
	for _, f := range list {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < f.min || *f.v > f.max {
			return fmt.Errorf("%w: %s is %v, want %v to %v, or 0 for %v", ErrConfig, f.name, *f.v, f.min, f.max, f.def)
		}
	}
	return nil
}

func (r ScopeRule) withDefaults() (ScopeRule, error) {
	if r.Keys == "" {
		r.Keys = KeysDirect
	}
	if r.Scheme == "" {
		r.Scheme = envelope.SchemeSingle.String()
	}
	if r.Budget.Messages == 0 {
		r.Budget.Messages = envelope.MaxSessionMessages - 1
	}
	if r.Budget.Bytes == 0 {
		r.Budget.Bytes = envelope.MaxSessionBytes
	}
	if r.Budget.Messages > envelope.MaxSessionMessages || r.Budget.Bytes > envelope.MaxSessionBytes {
		return r, fmt.Errorf("%w: budget above %d messages or %d bytes", ErrConfig, uint64(envelope.MaxSessionMessages), uint64(envelope.MaxSessionBytes))
	}
	return r, durations([]duration{
		{"reuse", &r.Reuse, 5 * time.Minute, time.Second, maxReuse},
		{"lease", &r.Lease, 5 * time.Minute, time.Second, maxLease},
		{"stale.seal", &r.Stale.Seal, time.Hour, time.Millisecond, maxStale},
		{"stale.open", &r.Stale.Open, 4 * time.Hour, time.Millisecond, maxStale},
	})
}

// check refuses what cannot work, after withDefaults.
func (c *Config) check() error {
	switch {
	case c.Identity == nil:
		return fmt.Errorf("%w: no identity", ErrConfig)
	case !strings.HasPrefix(c.Identity.Public(), "N"):
		return fmt.Errorf("%w: identity %s is not one of a service (N...)", ErrConfig, c.Identity.Public())
	case c.Store == nil:
		return fmt.Errorf("%w: no store", ErrConfig)
	case c.Policy == nil:
		return fmt.Errorf("%w: no policy", ErrConfig)
	case len(c.Authorities) == 0:
		return fmt.Errorf("%w: no authorities", ErrConfig)
	}
	if err := keysvc.CheckName(c.Service); err != nil {
		return fmt.Errorf("%w: service: %v", ErrConfig, err)
	}
	if err := keysvc.CheckName(c.Instance); err != nil {
		return fmt.Errorf("%w: instance: %v", ErrConfig, err)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Authorities)) {
		if err := keysvc.CheckName(name); err != nil {
			return fmt.Errorf("%w: authorities: %v", ErrConfig, err)
		}
		if c.Authorities[name] == nil {
			return fmt.Errorf("%w: authority %q is nil", ErrConfig, name)
		}
	}
	for i := range c.Scopes {
		if err := c.Scopes[i].check(c.Authorities); err != nil {
			return fmt.Errorf("scopes[%d] (%q): %w", i, c.Scopes[i].Match, err)
		}
	}
	return c.checkPrincipals()
}

func (c *Config) checkPrincipals() error {
	for _, name := range slices.Sorted(maps.Keys(c.Principals)) {
		key := c.Principals[name]
		if !validRequester(key) {
			return fmt.Errorf("%w: principal %q: not the public key of a requester (U...)", ErrConfig, name)
		}
		// A NATS server makes a connection's key sign any nonce.
		if c.Conn != nil && c.Conn.Opts.Nkey != "" && c.Conn.Opts.Nkey == key {
			return fmt.Errorf("%w: principal %q is the key of a NATS connection", ErrConfig, name)
		}
	}
	for i, key := range c.Directory.Signers {
		if !validService(key) {
			return fmt.Errorf("%w: directory signer %d is not the public key of a service (N...)", ErrConfig, i+1)
		}
	}
	return nil
}

func (r *ScopeRule) check(authorities map[string]authority.Authority) error {
	if s, err := envelope.ParseScheme(r.Scheme); err != nil {
		return fmt.Errorf("%w: scheme %q is unknown", ErrConfig, r.Scheme)
	} else if s != envelope.SchemeSingle {
		return fmt.Errorf("%w: scheme %q is not supported by this release, only %q", ErrConfig, r.Scheme, envelope.SchemeSingle)
	}
	if len(r.Authorities) != 1 {
		return fmt.Errorf("%w: %d authorities, scheme %q takes exactly one", ErrConfig, len(r.Authorities), r.Scheme)
	}
	for _, name := range slices.Concat(r.Authorities, r.Accept) {
		if authorities[name] == nil {
			return fmt.Errorf("%w: authority %q is not configured", ErrConfig, name)
		}
	}
	switch r.Keys {
	case KeysDirect:
	case KeysManaged:
		if _, ok := authorities[r.Authorities[0]].(authority.Manager); !ok {
			return fmt.Errorf("%w: keys: managed needs an authority that manages keys, as local: does; %q does not", ErrConfig, r.Authorities[0])
		}
	default:
		return fmt.Errorf("%w: keys is %q, want %q or %q", ErrConfig, r.Keys, KeysDirect, KeysManaged)
	}
	if len(r.Context) > maxContext {
		return fmt.Errorf("%w: context of %d pairs, at most %d", ErrConfig, len(r.Context), maxContext)
	}
	for name, value := range r.Context {
		if name == "" || strings.HasPrefix(name, envelope.ReservedPrefix) || len(name)+len(value) > envelope.MaxContextString {
			return fmt.Errorf("%w: context name %q is empty, reserved or longer than %d bytes with its value", ErrConfig, name, envelope.MaxContextString)
		}
	}
	core := r.core("scope")
	if _, err := core.Append(nil); err != nil {
		return fmt.Errorf("%w: %v", ErrConfig, err)
	}
	return nil
}
