package cli

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

// unsealProcess is keyweir unseal at work, as gatewayProcess is the gateway.
type unsealProcess struct {
	path    string       // of the configuration
	resume  resumeFrom   // --resume-from
	file    *config.File // in force
	conns   *connections
	opening *opening
	gateway *gateway.Gateway
	ready   *readiness
}

// opening is what all routes open with, and what it was made of.
type opening struct {
	opener   *streams.Opener
	profile  *streams.Profile
	identity string // public key
	nc       *nats.Conn
}

// newOpening makes a client of the key service and the opener that uses it, which
// the caller closes.
func newOpening(f *config.File, conns *connections) (*keysvc.Client, *opening, error) {
	return nextOpening(f, conns, nil)
}

// nextOpening is newOpening, but for what is the same as was it returns was and no
// client.
func nextOpening(f *config.File, conns *connections, was *opening) (*keysvc.Client, *opening, error) {
	id, err := unsealIdentity(f)
	if err != nil {
		return nil, nil, err
	}
	p, err := streams.LoadProfile(f.Unseal.Profile)
	if err != nil {
		return nil, nil, withHint(err, "keyweir readers add NAME makes a profile")
	}
	if p.Service != f.Service {
		return nil, nil, fmt.Errorf("profile %s is of the key service %q, the configuration of %q", f.Unseal.Profile, p.Service, f.Service)
	}
	nc, err := conns.get(f.Unseal.NATS)
	if err != nil {
		return nil, nil, err
	}
	if was != nil && was.nc == nc && was.identity == id.Public() && reflect.DeepEqual(was.profile, p) {
		return nil, was, nil
	}
	cfg, err := p.ConfigAs(nc, id)
	if err != nil {
		return nil, nil, err
	}
	keys, ok := cfg.Keys.(*keysvc.Client)
	if !ok {
		return nil, nil, fmt.Errorf("profile %s: keys of an unknown kind %T", f.Unseal.Profile, cfg.Keys)
	}
	opener, err := streams.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	return keys, &opening{opener, p, id.Public(), nc}, nil
}

// reload applies the file as it is now, whole or not at all.
func (p *unsealProcess) reload(ctx context.Context) (c gateway.Changes, err error) {
	f, err := config.Load(p.path)
	if err != nil {
		return c, err
	}
	if f.Unseal == nil {
		return c, fmt.Errorf("%s has no unseal section", p.path)
	}
	if err := checkUnsealSecrets(f); err != nil {
		return c, err
	}
	var changed []string
	if p.file.Telemetry != f.Telemetry {
		changed = append(changed, "telemetry")
	}
	if p.file.Unseal.ClaimTTL != f.Unseal.ClaimTTL {
		changed = append(changed, "unseal.claim_ttl")
	}
	if len(changed) > 0 {
		return c, withHint(fmt.Errorf("%s cannot change while unsealing runs", strings.Join(changed, ", ")),
			"restart it, which loses nothing, or take that change back")
	}
	conns := p.conns.next(f)
	var keys *keysvc.Client
	var next *opening
	defer func() {
		if err != nil {
			if next != nil && next != p.opening {
				_ = next.opener.Close() // only drops keys
			}
			conns.closeBut(p.conns)
		}
	}()
	keys, next, err = nextOpening(f, conns, p.opening)
	if err != nil {
		return c, err
	}
	cfg := gateway.UnsealConfig{Opener: next.opener}
	if keys != nil { // a nil *keysvc.Client would be RouteKeys that are not nil
		cfg.Keys = keys
	}
	if cfg.Routes, err = unsealRoutes(f, conns, p.resume); err != nil {
		return c, err
	}
	if c, err = p.gateway.ReconfigureUnseal(ctx, cfg); err != nil {
		return c, err
	}
	if p.opening != next {
		_ = p.opening.opener.Close() // only drops keys
	}
	p.conns.closeBut(conns)
	p.file, p.conns, p.opening = f, conns, next
	p.ready.follow(p.gateway)
	return c, nil
}
