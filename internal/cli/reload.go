package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/internal/telemetry"
	"github.com/keyweir/keyweir/keysvc"
)

// gatewayProcess is a running gateway and the configuration it runs by. Its
// fields belong to one goroutine after another: who starts it, who reloads it, who
// closes it.
type gatewayProcess struct {
	path     string     // of the configuration
	resume   resumeFrom // --resume-from
	drain    []string   // --drain
	log      *slog.Logger
	file     *config.File // in force
	identity string       // public key
	conns    *connections
	gateway  *gateway.Gateway
	ready    *readiness
}

// hangups delivers SIGHUPs; several that come together count once. Until stop is
// called the signal does not end the process.
func hangups() (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// reloader applies a configuration file again at every SIGHUP.
type reloader struct {
	path  string
	log   *slog.Logger
	apply func(context.Context) (gateway.Changes, error) // the file as it is now, whole or not at all
}

// run runs g and reloads at every signal meanwhile.
func (r *reloader) run(ctx context.Context, g *gateway.Gateway, signals <-chan os.Signal) error {
	watching, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.watch(watching, signals)
	}()
	err := g.Run(ctx)
	cancel()
	<-watched
	return err
}

// watch reloads at every signal until ctx ends.
func (r *reloader) watch(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		r.log.Info("reloading the configuration", "config", r.path)
		c, err := r.apply(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, gateway.ErrNotRunning):
			return
		case err != nil:
			r.refused(err)
		default:
			r.log.Info("configuration reloaded", "config", r.path, "unchanged", names(c.Unchanged), "restarted", names(c.Restarted),
				"started", names(c.Started), "removed", names(c.Removed))
		}
	}
}

func names(routes []string) string { return strings.Join(routes, ",") }

// refused logs every problem with its place, and what that means.
func (r *reloader) refused(err error) {
	for _, q := range config.Problems(err) {
		r.log.Error("problem in the configuration", "config", q.File, "line", q.Line, "column", q.Column, "path", q.Path, "reason", q.Reason)
	}
	attrs := []any{"config", r.path, "error", err}
	if h := (interface{ Hint() string })(nil); errors.As(err, &h) && h.Hint() != "" {
		attrs = append(attrs, "hint", h.Hint())
	}
	r.log.Error("reload refused, the configuration before it stays in force", attrs...)
}

// reload applies the file as it is now, whole or not at all.
func (p *gatewayProcess) reload(ctx context.Context) (c gateway.Changes, err error) {
	f, err := config.Load(p.path)
	if err != nil {
		return c, err
	}
	if f.Gateway == nil {
		return c, fmt.Errorf("%s has no gateway section", p.path)
	}
	if err := f.CheckSecrets(); err != nil {
		return c, err
	}
	if changed := needRestart(p.file, f); len(changed) > 0 {
		return c, withHint(fmt.Errorf("%s cannot change while the gateway runs", strings.Join(changed, ", ")),
			"restart the gateway, which loses nothing, or take that change back")
	}
	id, err := loadIdentity(f.Gateway.Identity)
	if err != nil {
		return c, fmt.Errorf("loading gateway identity: %w", err)
	}
	conns := p.conns.next(f)
	defer func() {
		if err != nil {
			conns.closeBut(p.conns)
		}
	}()
	keys, err := p.newKeys(f, id, conns)
	if err != nil {
		return c, err
	}
	routes, err := gatewayRoutes(f, conns, p.resume, p.drain)
	if err != nil {
		return c, err
	}
	// A nil *keysvc.Client would be a Keys that is not nil.
	if keys == nil {
		c, err = p.gateway.Reconfigure(ctx, nil, routes)
	} else {
		c, err = p.gateway.Reconfigure(ctx, keys, routes)
	}
	if err != nil {
		return c, err
	}
	p.conns.closeBut(conns)
	p.file, p.conns, p.identity = f, conns, id.Public()
	p.ready.follow(p.gateway)
	return c, nil
}

// newKeys returns a client of the key service if anything about it changed; nil if
// the one in use stays.
func (p *gatewayProcess) newKeys(f *config.File, id keysvc.Identity, conns *connections) (*keysvc.Client, error) {
	was := p.conns.open[p.file.Gateway.Keysvc.NATS]
	nc, err := conns.get(f.Gateway.Keysvc.NATS)
	if err != nil {
		return nil, err
	}
	a, b := p.file.Gateway.Keysvc, f.Gateway.Keysvc
	if nc == was && p.file.Service == f.Service && id.Public() == p.identity && slices.Equal(a.Pins, b.Pins) && a.Timeout == b.Timeout {
		return nil, nil
	}
	return newKeysClient(f, id, conns)
}

// needRestart names the settings that differ and that a process keeps for life.
func needRestart(a, b *config.File) (changed []string) {
	if a.Telemetry != b.Telemetry {
		changed = append(changed, "telemetry")
	}
	if a.Gateway.ClaimTTL != b.Gateway.ClaimTTL {
		changed = append(changed, "gateway.claim_ttl")
	}
	return changed
}

// readiness keeps one check for each route.
type readiness struct {
	checks *telemetry.Readiness
	remove []func()
}

// follow replaces the checks by those of the routes there are now.
func (r *readiness) follow(g *gateway.Gateway) {
	old := r.remove
	r.remove = nil
	for _, s := range g.Stats() {
		r.remove = append(r.remove, r.checks.Add("route "+s.Label(), func() error { return routeReady(g, s.Label()) }))
	}
	for _, remove := range old { // last, since a process without checks is not ready
		remove()
	}
}

// routeReady is nil for a route that runs, or waits for an instance that does.
func routeReady(g *gateway.Gateway, name string) error {
	for _, s := range g.Stats() {
		if s.Label() != name {
			continue
		}
		switch {
		case s.State == gateway.StateRunning, s.State == gateway.StateWaiting, s.State == gateway.StateDrained:
			return nil
		case s.LastError != nil:
			return fmt.Errorf("%v: %w", s.State, s.LastError)
		}
		return fmt.Errorf("%v", s.State)
	}
	return nil // it was removed a moment ago
}
