package streams

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc"
)

const (
	profileVersion = 1
	maxProfile     = 1 << 20 // bytes
	maxTimeout     = time.Hour
)

// Profile is what the platform team hands to an application: which key service
// to ask and what to accept. It is one JSON file without secrets; unknown,
// duplicate and case-variant names in it are errors.
//
//	{
//	  "version": 1,
//	  "service": "prod",
//	  "pins": ["NB..."],
//	  "identity": "billing.nk",
//	  "accept": {"rules": [{"scopes": ["tenant/*"], "schemes": ["single"], "authorities": [["aws"]]}]},
//	  "scopes": [{"match": "orders.*.>", "scope": "tenant/{{wildcard(1)}}"}],
//	  "timeout_ms": 5000
//	}
type Profile struct {
	// Version is 1.
	Version int `json:"version"`
	// Service is the name of the key service.
	Service string `json:"service"`
	// Pins are its public keys (N...), at least one.
	Pins []string `json:"pins"`
	// Identity is the path of the reader's seed file, relative to the profile's
	// directory. Empty: the application brings an identity of its own.
	Identity string        `json:"identity,omitempty"`
	Accept   ProfileAccept `json:"accept"`
	// Scopes are the rules that give an origin subject its scope.
	Scopes []keysvc.ScopeRule `json:"scopes"`
	// TimeoutMs bounds one call to the key service, in milliseconds; 0: the
	// client's default.
	TimeoutMs int64 `json:"timeout_ms,omitempty"`

	dir string // of the file it was loaded from
}

// ProfileAccept is the form of [Accept] in a profile.
type ProfileAccept struct {
	// Rules: the first that matches a scope decides.
	Rules []ProfileRule `json:"rules"`
	// Chains lists chain IDs in hexadecimal; empty: any.
	Chains []string `json:"chains,omitempty"`
	// Checkpoints names streams that those to read are copies of, see [Accept].
	Checkpoints []string `json:"checkpoints,omitempty"`
}

// ProfileRule is the form of [AcceptRule] in a profile.
type ProfileRule struct {
	Scopes      []string   `json:"scopes"`
	Schemes     []string   `json:"schemes"` // "single", "chain", "split", "threshold", "any"
	Authorities [][]string `json:"authorities"`
	Threshold   int        `json:"threshold,omitempty"`
}

// ParseProfile decodes and validates a profile. Its identity is taken as
// relative to the working directory.
func ParseProfile(b []byte) (*Profile, error) {
	if len(b) > maxProfile {
		return nil, fmt.Errorf("reading profile: %d bytes, at most %d", len(b), maxProfile)
	}
	var p Profile
	if err := strictjson.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("reading profile: %w", err)
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return &p, nil
}

// LoadProfile reads a profile from a file.
func LoadProfile(path string) (*Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("loading profile: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err != nil {
		return nil, fmt.Errorf("loading profile: %w", err)
	}
	p, err := ParseProfile(b)
	if err != nil {
		return nil, fmt.Errorf("loading profile %s: %w", path, err)
	}
	p.dir = filepath.Dir(path)
	return p, nil
}

// Validate says what is wrong with p, all of it.
func (p *Profile) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("checking profile: "+format, args...))
	}
	if p.Version != profileVersion {
		bad("version %d, want %d", p.Version, profileVersion)
	}
	if err := keysvc.CheckName(p.Service); err != nil {
		bad("service: %w", err)
	}
	if len(p.Pins) == 0 {
		bad("pins: at least one is needed")
	}
	for i, pin := range p.Pins {
		if !nkeys.IsValidPublicServerKey(pin) {
			bad("pins[%d] is not the public key of a service (N...)", i) // not repeated: it may be a seed
		}
	}
	if _, err := nkeys.FromSeed([]byte(strings.TrimSpace(p.Identity))); err == nil {
		bad("identity is a seed; it is the path of a seed file, and the seed is no longer secret")
	}
	if strings.ContainsRune(p.Identity, 0) {
		bad("identity is not a path")
	}
	if t := time.Duration(p.TimeoutMs); t < 0 || t > maxTimeout/time.Millisecond {
		bad("timeout_ms is %d, want 0 to %d", p.TimeoutMs, maxTimeout/time.Millisecond)
	}
	if _, err := p.accept(); err != nil {
		bad("%w", err)
	}
	return errors.Join(errs...)
}

// accept compiles what the profile accepts.
func (p *Profile) accept() (Accept, error) {
	var a Accept
	for i, r := range p.Accept.Rules {
		rule := AcceptRule{Scopes: r.Scopes, Authorities: r.Authorities, Threshold: r.Threshold}
		if len(r.Scopes) == 0 || len(r.Schemes) == 0 || len(r.Authorities) == 0 {
			return Accept{}, fmt.Errorf("accept.rules[%d]: scopes, schemes and authorities are needed", i)
		}
		for _, s := range r.Schemes {
			scheme, err := envelope.ParseScheme(s)
			if err != nil {
				return Accept{}, fmt.Errorf("accept.rules[%d]: %w", i, err)
			}
			rule.Schemes = append(rule.Schemes, scheme)
		}
		for j, names := range r.Authorities {
			if len(names) == 0 || slices.Contains(names, "") {
				return Accept{}, fmt.Errorf("accept.rules[%d].authorities[%d]: an authority has no name", i, j)
			}
		}
		a.Rules = append(a.Rules, rule)
	}
	if len(a.Rules) == 0 {
		return Accept{}, errors.New("accept.rules: without a rule nothing is accepted")
	}
	a.Checkpoints = p.Accept.Checkpoints
	for i, s := range p.Accept.Chains {
		c, err := envelope.ParseChainID(s)
		if err != nil {
			return Accept{}, fmt.Errorf("accept.chains[%d]: %w", i, err)
		}
		a.Chains = append(a.Chains, c)
	}
	if len(p.Scopes) == 0 {
		return Accept{}, errors.New("scopes: without a rule nothing is accepted")
	}
	var err error
	if a.ScopeRules, err = keysvc.NewScopeRules(p.Scopes); err != nil {
		return Accept{}, fmt.Errorf("scopes: %w", err)
	}
	return a.clone()
}

// WriteFile validates p and writes it as indented JSON. The file appears
// complete or not at all.
func (p *Profile) WriteFile(path string) error {
	if err := p.Validate(); err != nil {
		return err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // patterns hold >
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		return fmt.Errorf("writing profile: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing profile: %w", err)
	}
	_, err = tmp.Write(b.Bytes())
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing profile: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// Config makes a configuration whose keys come from the profile's key service
// through nc, as the profile's identity. The caller may add to it, a policy for
// instance, before [New].
func (p *Profile) Config(nc *nats.Conn) (Config, error) {
	if p.Identity == "" {
		return Config{}, errors.New("checking profile: it names no identity; use ConfigAs")
	}
	path := p.Identity
	if !filepath.IsAbs(path) {
		path = filepath.Join(p.dir, path)
	}
	id, err := keysvc.LoadIdentity(path)
	if err != nil {
		return Config{}, err
	}
	return p.ConfigAs(nc, id)
}

// ConfigAs is Config with an identity that the application brings.
func (p *Profile) ConfigAs(nc *nats.Conn, id keysvc.Identity) (Config, error) {
	if err := p.Validate(); err != nil {
		return Config{}, err
	}
	accept, err := p.accept()
	if err != nil {
		return Config{}, err
	}
	timeout := time.Duration(p.TimeoutMs) * time.Millisecond
	client, err := keysvc.NewClient(keysvc.ClientConfig{
		Conn: nc, Service: p.Service, Pins: slices.Clone(p.Pins), Identity: id, Timeout: timeout,
	})
	if err != nil {
		return Config{}, err
	}
	return Config{Keys: client, Accept: accept, KeyTimeout: timeout}, nil
}

// NewFromProfile makes an Opener from a profile file, with the zero policy:
// stop. It reads the profile and the identity it names; it asks the key service
// nothing yet. ctx covers only that. The caller closes nc after the Opener.
func NewFromProfile(ctx context.Context, nc *nats.Conn, path string) (*Opener, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := LoadProfile(path)
	if err != nil {
		return nil, err
	}
	cfg, err := p.Config(nc)
	if err != nil {
		return nil, err
	}
	return New(cfg)
}
