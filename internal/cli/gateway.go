package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/telemetry"
	"github.com/keyweir/keyweir/keysvc"
)

func newGateway(u *ui) *cobra.Command {
	var (
		path     string
		resume   []string
		instance string
	)
	cmd := &cobra.Command{
		Use: "gateway", Short: "Run the gateway: seal what is published", Args: noArgs,
		Long: `Runs the routes of the gateway section of a configuration until it is interrupted.
A first SIGINT or SIGTERM finishes what was begun, a second one ends at once;
neither loses a message.

--resume-from answers a route that stopped because it could not tell where it
stands: it names the first source sequence to seal. It is ignored while the
position is sound.`,
		Example: "  keyweir gateway --config keyweir.yaml\n  keyweir gateway --config keyweir.yaml --resume-from orders=120034",
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := parseResume(resume)
			if err != nil {
				return err
			}
			f, err := loadConfig(path)
			if err != nil {
				return err
			}
			if f.Gateway == nil {
				return fmt.Errorf("%s has no gateway section", path)
			}
			return runGateway(cmd.Context(), u, f, from, instance)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringArrayVar(&resume, "resume-from", nil, "ROUTE=SEQUENCE; may be repeated")
	cmd.Flags().StringVar(&instance, "instance", "", "name of this process in claims and logs (default: host name and process ID)")
	return cmd
}

// parseResume reads ROUTE=SEQUENCE pairs.
func parseResume(pairs []string) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, p := range pairs {
		name, seq, ok := strings.Cut(p, "=")
		n, err := strconv.ParseUint(seq, 10, 64)
		if !ok || name == "" || err != nil || n == 0 {
			return nil, usagef("--resume-from %q is not ROUTE=SEQUENCE", p)
		}
		if _, twice := out[name]; twice {
			return nil, usagef("--resume-from names route %q twice", name)
		}
		out[name] = n
	}
	return out, nil
}

func runGateway(ctx context.Context, u *ui, f *config.File, resume map[string]uint64, instance string) (err error) {
	if err := noCoreDumps(); err != nil {
		return err
	}
	if err := f.CheckSecrets(); err != nil {
		return err
	}
	tel, stop, err := setupTelemetry(ctx, u, f.Telemetry, "keyweir-gateway")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	log := tel.Logger()
	conns := newConnections(f, "gateway", log)
	defer conns.close()
	keys, err := gatewayKeys(f, conns)
	if err != nil {
		return err
	}
	cfg := gateway.Config{
		Keys: keys, Instance: instance, ClaimTTL: f.Gateway.ClaimTTL.Or(0), Logger: log,
		MeterProvider: tel.MeterProvider(), TracerProvider: tel.TracerProvider(),
	}
	for _, r := range f.Gateway.Routes {
		route, err := toRoute(r, conns)
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
		return usagef("--resume-from: the configuration has no route %q", name)
	}
	g, err := gateway.New(cfg)
	if err != nil {
		return err
	}
	addReadiness(tel.Readiness(), g)
	log.Info("gateway started", "routes", len(cfg.Routes), "version", readVersion().Version)
	err = g.Run(ctx)
	if err == nil {
		log.Info("gateway stopped")
	}
	return err
}

func gatewayKeys(f *config.File, conns *connections) (*keysvc.Client, error) {
	id, err := loadIdentity(f.Gateway.Identity)
	if err != nil {
		return nil, fmt.Errorf("loading gateway identity: %w", err)
	}
	nc, err := conns.get(f.Gateway.Keysvc.NATS)
	if err != nil {
		return nil, err
	}
	return keysvc.NewClient(keysvc.ClientConfig{
		Conn: nc, Service: f.Service, Pins: f.Gateway.Keysvc.Pins, Identity: id, Timeout: f.Gateway.Keysvc.Timeout.Or(0),
	})
}

// addReadiness makes the process ready when every route runs, or waits for an
// instance that does.
func addReadiness(r *telemetry.Readiness, g *gateway.Gateway) {
	for i, s := range g.Stats() {
		r.Add("route "+s.Name, func() error {
			s := g.Stats()[i]
			switch s.State {
			case gateway.StateRunning, gateway.StateWaiting:
				return nil
			}
			if s.LastError != nil {
				return fmt.Errorf("%v: %w", s.State, s.LastError)
			}
			return fmt.Errorf("%v", s.State)
		})
	}
}

// toRoute makes a route of the gateway of one of the configuration.
func toRoute(r config.Route, conns *connections) (gateway.Route, error) {
	out := gateway.Route{
		Name: r.Name, PadTo: int(r.PadTo), RandomNonce: r.Nonces == "random", PassHeaders: r.PassHeaders, Window: r.Window,
		Source: gateway.Source{Stream: r.Source.Stream, Subjects: r.Source.Subjects},
		Sealed: gateway.Sealed{
			Stream: r.Sealed.Stream, Subject: r.Sealed.Subject, SyncInterval: r.Sealed.SyncInterval.Interval.Or(0),
		},
	}
	var err error
	if out.Engine, err = gateway.ParseEngine(string(r.Engine)); err != nil {
		return out, err
	}
	if out.Source.Conn, err = conns.get(r.Source.NATS); err != nil {
		return out, err
	}
	if out.Sealed.Conn, err = conns.get(r.Sealed.NATS); err != nil {
		return out, err
	}
	if out.Source.AfterSeal, err = gateway.ParseAfterSeal(string(r.Source.AfterSeal)); err != nil {
		return out, err
	}
	if out.Source.OnSourceGap, err = gateway.ParseOnSourceGap(string(r.Source.OnSourceGap)); err != nil {
		return out, err
	}
	start, err := config.ParseStart(r.Source.Start)
	if err != nil {
		return out, err
	}
	switch {
	case start.First:
		out.Source.Start = gateway.StartFirst()
	case start.New:
		out.Source.Start = gateway.StartNew()
	case start.Sequence > 0:
		out.Source.Start = gateway.StartSequence(start.Sequence)
	default:
		out.Source.Start = gateway.StartTime(start.Time)
	}
	if r.Record != "" {
		if out.Record, err = envelope.ParseRecordMode(string(r.Record)); err != nil {
			return out, err
		}
	}
	if r.Sealed.SyncInterval.Always {
		out.Sealed.SyncInterval = gateway.SyncAlways
	}
	if c := r.Sealed.Create; c != nil {
		out.Sealed.Create = &gateway.CreateSealed{Replicas: c.Replicas, MaxAge: c.MaxAge.Or(0), MaxBytes: int64(c.MaxBytes)}
		if c.Storage == "memory" {
			out.Sealed.Create.Storage = gateway.MemoryStorage
		}
	}
	return out, nil
}

// connections opens the connections of a configuration when they are needed, one
// for each name.
type connections struct {
	file *config.File
	what string
	log  *slog.Logger
	open map[string]*nats.Conn
}

func newConnections(f *config.File, what string, log *slog.Logger) *connections {
	return &connections{f, what, log, map[string]*nats.Conn{}}
}

func (c *connections) get(name string) (*nats.Conn, error) {
	if nc := c.open[name]; nc != nil {
		return nc, nil
	}
	nc, err := dialService(c.file.NATS[name], name, c.what, c.log)
	if err != nil {
		return nil, err
	}
	c.open[name] = nc
	return nc, nil
}

// close sends what is buffered and closes all.
func (c *connections) close() {
	for _, nc := range c.open {
		if nc.IsConnected() {
			_ = nc.FlushTimeout(time.Second) // nothing that matters is unacknowledged by now
		}
		nc.Close()
	}
}
