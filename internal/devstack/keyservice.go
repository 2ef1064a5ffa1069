package devstack

import (
	"context"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/keyhead"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/keyserver"
)

func (s *Stack) openAuthority(ctx context.Context) (err error) {
	dir := ""
	if s.opts.KeepKeys {
		dir = s.keyDir()
	}
	if s.auth, err = newAuthority(ctx, dir, authority.Options{Logger: s.log.With("part", "authority")}); err != nil {
		return err
	}
	s.onClose(func(context.Context) error { return s.auth.Close() })
	return nil
}

func (s *Stack) startKeyserver(ctx context.Context) error {
	store, err := keycache.Open(filepath.Join(s.dir, "keysvc"), keycache.Options{
		Authenticator: keyhead.New(s.ids.service), Sequencer: &audit.Chain{}, Logger: s.log.With("part", "store"),
	})
	if err != nil {
		return err
	}
	s.onClose(func(context.Context) error { return store.Close() })
	principals := map[string]string{gatewayName: s.ids.gateway.Public(), readerName: s.ids.reader.Public()}
	people, err := policy.NewPrincipals(principals)
	if err != nil {
		return err
	}
	grants, err := policy.NewGrants(people, []policy.Grant{
		{To: []string{gatewayName}, May: []string{"generate"}, Scopes: []string{"*"}},
		{To: []string{gatewayName}, May: []string{"route-key"}, Scopes: []string{"route/" + routeName}},
		{To: []string{readerName}, May: []string{"open"}, Scopes: []string{"*"}},
	})
	if err != nil {
		return err
	}
	conn, err := s.connect(s.hub, "keysvc")
	if err != nil {
		return err
	}
	var scopes []keyserver.ScopeRule
	for _, r := range s.opts.Scopes {
		scopes = append(scopes, keyserver.ScopeRule{
			Match: r.Match, Scope: r.Scope, Authorities: []string{authorityName}, Reuse: s.opts.Reuse,
		})
	}
	var meter metric.Meter = noop.Meter{}
	if s.opts.Meter != nil {
		meter = s.opts.Meter.Meter("github.com/keyweir/keyweir/keysvc/keyserver")
	}
	srv, err := keyserver.New(ctx, keyserver.Config{
		Conn: conn, Service: serviceName, Identity: s.ids.service, Store: store,
		Authorities: map[string]authority.Authority{authorityName: s.auth}, Scopes: scopes,
		Principals: principals, Policy: grants,
		Confirm: time.Hour, // the authority is in this process
		Logger:  s.log.With("part", "keysvc"), Meter: meter,
	})
	if err != nil {
		return err
	}
	s.onClose(func(context.Context) error { return srv.Close() })
	return nil
}
