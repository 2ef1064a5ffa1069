package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

func newUnseal(u *ui) *cobra.Command {
	var (
		path     string
		resume   []string
		instance string
	)
	cmd := &cobra.Command{
		Use: "unseal", Short: "Open sealed streams into streams of plaintext", Args: noArgs,
		Long: `Runs the routes of the unseal section of a configuration until it is interrupted:
each message of a sealed stream is opened and stored, once and in order, in a stream
of plaintext, for consumers that cannot open envelopes, or to leave Keyweir.

It is a process and a principal of its own, which may open and not seal; the gateway
never runs these routes.

--resume-from answers a route that stopped because it could not tell where it
stands: it names the first sequence of the sealed stream to open. It is ignored
while the position is sound.`,
		Example: "  keyweir unseal --config keyweir.yaml\n  keyweir unseal --config keyweir.yaml --resume-from orders=120034",
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := parseResume(resume)
			if err != nil {
				return err
			}
			f, err := loadConfig(path)
			if err != nil {
				return err
			}
			if f.Unseal == nil {
				return fmt.Errorf("%s has no unseal section", path)
			}
			return runUnseal(cmd.Context(), u, f, from, instance)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringArrayVar(&resume, "resume-from", nil, "ROUTE=SEQUENCE; may be repeated")
	cmd.Flags().StringVar(&instance, "instance", "", "name of this process in claims and logs (default: host name and process ID)")
	return cmd
}

func runUnseal(ctx context.Context, u *ui, f *config.File, resume map[string]uint64, instance string) (err error) {
	if err := noCoreDumps(); err != nil {
		return err
	}
	id, err := unsealIdentity(f)
	if err != nil {
		return err
	}
	own := *f // the identities of others are not this process's
	own.Gateway, own.Keysvc = nil, nil
	if err := own.CheckSecrets(); err != nil {
		return err
	}
	tel, stop, err := setupTelemetry(ctx, u, f.Telemetry, "keyweir-unseal")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	log := tel.Logger()
	conns := newConnections(f, "unseal", log)
	defer conns.close()
	keys, opener, err := unsealKeys(f, id, conns)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opener.Close()) }()
	cfg := gateway.UnsealConfig{
		Keys: keys, Opener: opener, Instance: instance, ClaimTTL: f.Unseal.ClaimTTL.Or(0), Logger: log, MeterProvider: tel.MeterProvider(),
	}
	for _, r := range f.Unseal.Routes {
		route, err := toUnseal(r, conns)
		if err != nil {
			return err
		}
		if seq, ok := resume[r.Name]; ok {
			route.ResumeFrom = &seq
			delete(resume, r.Name)
		}
		cfg.Routes = append(cfg.Routes, route)
	}
	for name := range resume {
		return usagef("--resume-from: the unseal section has no route %q", name)
	}
	g, err := gateway.NewUnseal(cfg)
	if err != nil {
		return err
	}
	(&readiness{checks: tel.Readiness()}).follow(g)
	log.Info("unsealing started", "routes", len(cfg.Routes), "version", readVersion().Version)
	err = g.Run(ctx)
	if err == nil {
		log.Info("unsealing stopped")
	}
	return err
}

// unsealIdentity loads the identity of the unseal section and refuses one that
// seals as well: that of the gateway, where this machine has it, or one that the
// keysvc section allows to generate.
func unsealIdentity(f *config.File) (keysvc.Identity, error) {
	id, err := loadIdentity(f.Unseal.Identity)
	if err != nil {
		return nil, fmt.Errorf("loading unseal identity: %w", err)
	}
	both := withHint(errors.New("the unseal identity may seal as well: who seals and who opens are two principals"),
		"make another identity (keyweir identity new), with grants for open and route-key only")
	if f.Gateway != nil {
		if g, err := loadIdentity(f.Gateway.Identity); err == nil && g.Public() == id.Public() {
			return nil, both
		}
	}
	if f.Keysvc != nil {
		for _, g := range f.Keysvc.Grants {
			if f.Keysvc.Principals[g.To] == id.Public() && slices.Contains(g.May, keysvc.OpGenerate) {
				return nil, both
			}
		}
	}
	return id, nil
}

// unsealKeys makes the client of the key service and the opener that uses it.
func unsealKeys(f *config.File, id keysvc.Identity, conns *connections) (*keysvc.Client, *streams.Opener, error) {
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
	cfg, err := p.ConfigAs(nc, id)
	if err != nil {
		return nil, nil, err
	}
	keys, ok := cfg.Keys.(*keysvc.Client)
	if !ok {
		return nil, nil, fmt.Errorf("profile %s: keys of an unknown kind %T", f.Unseal.Profile, cfg.Keys)
	}
	opener, err := streams.New(cfg)
	return keys, opener, err
}

// toUnseal makes a route of package gateway of one of the configuration.
func toUnseal(r config.UnsealRoute, conns *connections) (gateway.Unseal, error) {
	out := gateway.Unseal{
		Name: r.Name, Window: r.Window,
		Sealed: gateway.UnsealSource{Stream: r.Sealed.Stream, Subjects: r.Sealed.Subjects},
		Plain: gateway.Plain{
			Stream: r.Plain.Stream, Subjects: r.Plain.Subjects, Prefix: r.Plain.Prefix,
			Create: toCreate(r.Plain.Create), SyncInterval: toSyncInterval(r.Plain.SyncInterval),
		},
	}
	var err error
	if out.Engine, err = gateway.ParseEngine(string(r.Engine)); err != nil {
		return out, err
	}
	if out.Sealed.OnSourceGap, err = gateway.ParseOnSourceGap(string(r.Sealed.OnSourceGap)); err != nil {
		return out, err
	}
	if out.OnUndecryptable, err = gateway.ParseOnUndecryptable(string(r.OnUndecryptable)); err != nil {
		return out, err
	}
	if out.Sealed.Start, err = toStart(r.Sealed.Start); err != nil {
		return out, err
	}
	if out.Sealed.Conn, err = conns.get(r.Sealed.NATS); err != nil {
		return out, err
	}
	if out.Plain.Conn, err = conns.get(r.Plain.NATS); err != nil {
		return out, err
	}
	if p := r.Park; p != nil {
		out.Park = gateway.Park{Stream: p.Stream, Subject: p.Subject}
		if p.NATS != "" {
			out.Park.Conn, err = conns.get(p.NATS)
		}
	}
	return out, err
}
