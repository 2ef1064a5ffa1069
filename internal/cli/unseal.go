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
while the position is sound.

SIGHUP reads the configuration again, as that of the gateway does.`,
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
			return runUnseal(cmd.Context(), u, path, f, from, instance)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringArrayVar(&resume, "resume-from", nil, "ROUTE=SEQUENCE; may be repeated")
	cmd.Flags().StringVar(&instance, "instance", "", "name of this process in claims and logs (default: host name and process ID)")
	return cmd
}

func runUnseal(ctx context.Context, u *ui, path string, f *config.File, resume resumeFrom, instance string) (err error) {
	signals, unhook := hangups()
	defer unhook()
	if err := noCoreDumps(); err != nil {
		return err
	}
	for name, parts := range resume {
		if _, whole := parts[wholeRoute]; !whole {
			return usagef("--resume-from: route %q has no partitions; name it as %s=SEQUENCE", name, name)
		}
		if !slices.ContainsFunc(f.Unseal.Routes, func(r config.UnsealRoute) bool { return r.Name == name }) {
			return usagef("--resume-from: the unseal section has no route %q", name)
		}
	}
	if err := checkUnsealSecrets(f); err != nil {
		return err
	}
	tel, stop, err := setupTelemetry(ctx, u, f.Telemetry, "keyweir-unseal")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	log := tel.Logger()
	p := &unsealProcess{
		path: path, resume: resume, file: f, conns: newConnections(f, "unseal", log), ready: &readiness{checks: tel.Readiness()},
	}
	defer func() { p.conns.close() }()
	var keys *keysvc.Client
	if keys, p.opening, err = newOpening(f, p.conns); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.opening.opener.Close()) }()
	cfg := gateway.UnsealConfig{
		Keys: keys, Opener: p.opening.opener, Instance: instance, ClaimTTL: f.Unseal.ClaimTTL.Or(0), Logger: log, MeterProvider: tel.MeterProvider(),
	}
	if cfg.Routes, err = unsealRoutes(f, p.conns, resume); err != nil {
		return err
	}
	if p.gateway, err = gateway.NewUnseal(cfg); err != nil {
		return err
	}
	p.ready.follow(p.gateway)
	log.Info("unsealing started", "routes", len(cfg.Routes), "version", readVersion().Version)
	err = (&reloader{path, log, p.reload}).run(ctx, p.gateway, signals)
	if err == nil {
		log.Info("unsealing stopped")
	}
	return err
}

// checkUnsealSecrets reads the secrets of this process; the identities of others
// are not its own.
func checkUnsealSecrets(f *config.File) error {
	own := *f
	own.Gateway, own.Keysvc = nil, nil
	return own.CheckSecrets()
}

// unsealRoutes makes the routes of a configuration; resume is that of the command
// line.
func unsealRoutes(f *config.File, conns *connections, resume resumeFrom) ([]gateway.Unseal, error) {
	var out []gateway.Unseal
	for _, r := range f.Unseal.Routes {
		route, err := toUnseal(r, conns)
		if err != nil {
			return nil, err
		}
		route.ResumeFrom, _ = resume.of(r.Name)
		out = append(out, route)
	}
	return out, nil
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
