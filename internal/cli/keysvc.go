package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/keyhead"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc/keyserver"
)

const keyserverScope = "github.com/keyweir/keyweir/keysvc/keyserver"

func newKeysvc(u *ui) *cobra.Command {
	var path, instance string
	cmd := &cobra.Command{
		Use: "keysvc", Short: "Run the key service", Args: noArgs,
		Long: `Runs the keysvc section of a configuration until it is interrupted. It is the only
process that holds credentials for the authorities. It stops by itself when its
store can no longer be written: clients go on with the keys they hold, and a
supervisor starts it again.`,
		Example: "  keyweir keysvc --config keyweir.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := loadConfig(path)
			if err != nil {
				return err
			}
			if f.Keysvc == nil {
				return fmt.Errorf("%s has no keysvc section", path)
			}
			return runKeysvc(cmd.Context(), u, f, instance)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVar(&instance, "instance", "", "name of this process in replies and in the audit log (default: a random one)")
	return cmd
}

func runKeysvc(ctx context.Context, u *ui, f *config.File, instance string) (err error) {
	if err := noCoreDumps(); err != nil {
		return err
	}
	if err := f.CheckSecrets(); err != nil {
		return err
	}
	tel, stop, err := setupTelemetry(ctx, u, f.Telemetry, "keyweir-keysvc")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	log := tel.Logger()
	cfg, err := keyserverConfig(f, log)
	if err != nil {
		return err
	}
	cfg.Instance, cfg.Version, cfg.Logger = instance, readVersion().Version, log
	cfg.Meter, cfg.Tracer = tel.MeterProvider().Meter(keyserverScope), tel.TracerProvider().Tracer(keyserverScope)
	fatal := make(chan error, 1)
	cfg.Store, err = keycache.Open(f.Keysvc.Store, keycache.Options{
		Authenticator: keyhead.New(cfg.Identity), Sequencer: &audit.Chain{}, Logger: log,
		OnFatal: func(err error) {
			select {
			case fatal <- err:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("opening store: %w", err)
	}
	defer func() { err = errors.Join(err, cfg.Store.Close()) }()
	var closeAuthorities func() error
	if cfg.Authorities, closeAuthorities, err = openAuthorities(ctx, f.Keysvc.Authorities, log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAuthorities()) }()
	conns := newConnections(f, "keysvc", log)
	defer conns.close()
	if cfg.Conn, err = conns.get(f.Keysvc.NATS); err != nil {
		return err
	}
	srv, err := startKeyserver(ctx, *cfg)
	if err != nil {
		return err
	}
	tel.Readiness().Add("nats", func() error {
		if !cfg.Conn.IsConnected() {
			return errors.New("not connected")
		}
		return nil
	})
	log.Info("key service started", "service", f.Service, "public_key", cfg.Identity.Public(), "instance", srv.Instance())
	select {
	case <-ctx.Done():
	case <-srv.Done():
	case err := <-fatal:
		log.Error("store stopped", "error", err)
	}
	cerr := srv.Close()
	if err := srv.Err(); err != nil {
		return withHint(fmt.Errorf("key service stopped: %w", err), "start it again; the store is checked then")
	}
	log.Info("key service stopped")
	return cerr
}

// startKeyserver starts as soon as the server is there: opening the key directory
// needs it.
func startKeyserver(ctx context.Context, cfg keyserver.Config) (*keyserver.Server, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !cfg.Conn.IsConnected() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return keyserver.New(ctx, cfg)
}

// keyserverConfig translates the configuration; what has to be opened is missing.
func keyserverConfig(f *config.File, log *slog.Logger) (*keyserver.Config, error) {
	k := f.Keysvc
	id, err := loadIdentity(k.Identity)
	if err != nil {
		return nil, fmt.Errorf("loading service identity: %w", err)
	}
	cfg := &keyserver.Config{
		Service: f.Service, Identity: id, Principals: k.Principals,
		Directory: keyserver.Directory{Replicas: k.Directory.Replicas, TTL: k.Directory.TTL.Or(0), Signers: k.Directory.Signers},
		Workers:   k.Workers, Cache: k.Cache, Confirm: k.Confirm.Or(0), AuthorityTimeout: k.AuthorityTimeout.Or(0),
	}
	for _, s := range k.Scopes {
		cfg.Scopes = append(cfg.Scopes, keyserver.ScopeRule{
			Match: s.Match, Scope: s.Scope, Keys: keyserver.Keys(s.Keys), Scheme: string(s.Scheme),
			Authorities: s.Authorities, Accept: s.Accept, Context: s.Context,
			Reuse: s.Reuse.Or(0), Lease: s.Lease.Or(0),
			Stale:  keyserver.Stale{Seal: s.Stale.Seal.Or(0), Open: s.Stale.Open.Or(0)},
			Budget: keyserver.Budget{Messages: uint64(s.Budget.Messages), Bytes: uint64(s.Budget.Bytes)},
		})
	}
	people, err := policy.NewPrincipals(k.Principals)
	if err != nil {
		return nil, fmt.Errorf("reading principals: %w", err)
	}
	var grants []policy.Grant
	for _, g := range k.Grants {
		may := make([]string, len(g.May))
		for i, m := range g.May {
			may[i] = string(m)
		}
		grants = append(grants, policy.Grant{To: []string{g.To}, May: may, Scopes: g.Scopes, Expires: g.Expires.Time})
		if e := g.Expires.Time; !e.IsZero() && time.Until(e) < 14*24*time.Hour {
			log.Warn("a grant expires soon, or has expired", "to", g.To, "expires", e)
		}
	}
	if cfg.Policy, err = policy.NewGrants(people, grants); err != nil {
		return nil, fmt.Errorf("reading grants: %w", err)
	}
	return cfg, nil
}
