package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

func newGateway(u *ui) *cobra.Command {
	var (
		path     string
		resume   []string
		drain    []string
		instance string
	)
	cmd := &cobra.Command{
		Use: "gateway", Short: "Run the gateway: seal what is published", Args: noArgs,
		Long: `Runs the routes of the gateway section of a configuration until it is interrupted.
A first SIGINT or SIGTERM finishes what was begun, a second one ends at once;
neither loses a message.

--resume-from answers a route that stopped because it could not tell where it
stands: it names the first source sequence to seal. It is ignored while the
position is sound. Of a route with partitions, orders=120034 counts for every one
that stopped, orders/2=120034 for that one.

SIGHUP reads the configuration again. Routes that did not change go on untouched;
others drain and start anew, without losing or doubling a message. A file that is
not valid is refused, with a line in the log, and the one before it stays in force.

--drain seals a route up to the present end of its source stream and no further,
and ends when all routes have ended. It comes before a change of a route's
partitions: on every instance, and with the partitions as they were.`,
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
			return runGateway(cmd.Context(), u, path, f, from, drain, instance)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringArrayVar(&resume, "resume-from", nil, "ROUTE=SEQUENCE or ROUTE/PARTITION=SEQUENCE; may be repeated")
	cmd.Flags().StringArrayVar(&drain, "drain", nil, "ROUTE to drain; may be repeated")
	cmd.Flags().StringVar(&instance, "instance", "", "name of this process in claims and logs (default: host name and process ID)")
	return cmd
}

func runGateway(ctx context.Context, u *ui, path string, f *config.File, resume resumeFrom, drain []string, instance string) (err error) {
	signals, unhook := hangups()
	defer unhook()
	gateway.TuneGC()
	if err := noCoreDumps(); err != nil {
		return err
	}
	if err := f.CheckSecrets(); err != nil {
		return err
	}
	if err := resume.check(f); err != nil {
		return err
	}
	for _, name := range drain {
		if _, err := findRoute(f, name); err != nil {
			return usagef("--drain: %v", err)
		}
	}
	tel, stop, err := setupTelemetry(ctx, u, f.Telemetry, "keyweir-gateway")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	log := tel.Logger()
	p := &gatewayProcess{
		path: path, resume: resume, drain: drain, log: log, file: f, conns: newConnections(f, "gateway", log),
		ready: &readiness{checks: tel.Readiness()},
	}
	defer func() { p.conns.close() }()
	id, err := loadIdentity(f.Gateway.Identity)
	if err != nil {
		return fmt.Errorf("loading gateway identity: %w", err)
	}
	p.identity = id.Public()
	keys, err := newKeysClient(f, id, p.conns)
	if err != nil {
		return err
	}
	cfg := gateway.Config{
		Keys: keys, Instance: instance, ClaimTTL: f.Gateway.ClaimTTL.Or(0), Logger: log,
		MeterProvider: tel.MeterProvider(), TracerProvider: tel.TracerProvider(),
	}
	if cfg.Routes, err = gatewayRoutes(f, p.conns, resume, drain); err != nil {
		return err
	}
	if p.gateway, err = gateway.New(cfg); err != nil {
		return err
	}
	p.ready.follow(p.gateway)
	log.Info("gateway started", "routes", len(cfg.Routes), "version", readVersion().Version)
	err = (&reloader{path, log, p.reload}).run(ctx, p.gateway, signals)
	if err == nil {
		log.Info("gateway stopped")
	}
	return err
}

func newKeysClient(f *config.File, id keysvc.Identity, conns *connections) (*keysvc.Client, error) {
	nc, err := conns.get(f.Gateway.Keysvc.NATS)
	if err != nil {
		return nil, err
	}
	return keysvc.NewClient(keysvc.ClientConfig{
		Conn: nc, Service: f.Service, Pins: f.Gateway.Keysvc.Pins, Identity: id, Timeout: f.Gateway.Keysvc.Timeout.Or(0),
	})
}

// gatewayRoutes makes the routes of a configuration; resume and drain are
// those of the command line.
func gatewayRoutes(f *config.File, conns *connections, resume resumeFrom, drain []string) ([]gateway.Route, error) {
	var out []gateway.Route
	for _, r := range f.Gateway.Routes {
		route, err := toRoute(r, conns)
		if err != nil {
			return nil, err
		}
		route.ResumeFrom, route.ResumePartitions = resume.of(r.Name)
		route.Drain = slices.Contains(drain, r.Name)
		out = append(out, route)
	}
	return out, nil
}

// toRoute makes a route of the gateway of one of the configuration.
func toRoute(r config.Route, conns *connections) (gateway.Route, error) {
	out := gateway.Route{
		Name: r.Name, PadTo: int(r.PadTo), RandomNonce: r.Nonces == "random", PassHeaders: r.PassHeaders, Window: r.Window,
		Source: gateway.Source{Stream: r.Source.Stream, Subjects: r.Source.Subjects, Partitions: r.Source.Partitions},
		Sealed: gateway.Sealed{
			Stream: r.Sealed.Stream, Subject: r.Sealed.Subject, Shared: r.Sealed.Shared, SyncInterval: toSyncInterval(r.Sealed.SyncInterval), Create: toCreate(r.Sealed.Create),
		},
	}
	var err error
	if out.Source.Conn, err = conns.get(r.Source.NATS); err != nil {
		return out, err
	}
	if out.Sealed.Conn, err = conns.get(r.Sealed.NATS); err != nil {
		return out, err
	}
	out.Hold = toHold(r)
	if r.Record != "" {
		if out.Record, err = envelope.ParseRecordMode(string(r.Record)); err != nil {
			return out, err
		}
	}
	if r.Ingest == config.IngestCore {
		out.Ingest = &gateway.CoreIngest{
			AllowTTL: r.AllowTTL, AllowExpectedLast: r.AllowExpectedLast,
			QueueMessages: r.QueueMessages, QueueBytes: int64(r.QueueBytes), KeyWait: r.KeyWait.Or(0),
		}
		return out, nil
	}
	if out.Engine, err = gateway.ParseEngine(string(r.Engine)); err != nil {
		return out, err
	}
	if out.Source.AfterSeal, err = gateway.ParseAfterSeal(string(r.Source.AfterSeal)); err != nil {
		return out, err
	}
	if out.Source.OnSourceGap, err = gateway.ParseOnSourceGap(string(r.Source.OnSourceGap)); err != nil {
		return out, err
	}
	if out.Source.Start, err = toStart(r.Source.Start); err != nil {
		return out, err
	}
	if out.ReservedHeaders, err = gateway.ParseReservedHeaders(string(r.ReservedHeaders)); err != nil {
		return out, err
	}
	if d := r.DeadLetters; d != nil {
		out.DeadLetters = &gateway.DeadLetters{Stream: d.Stream, Subject: d.Prefix(), Create: toCreate(d.Create), Quarantine: d.Quarantine}
		if out.DeadLetters.Refused, err = gateway.ParseRefused(string(d.Refused)); err != nil {
			return out, err
		}
	}
	return out, nil
}

func toStart(s string) (gateway.Start, error) {
	start, err := config.ParseStart(s)
	switch {
	case err != nil:
		return gateway.Start{}, err
	case start.First:
		return gateway.StartFirst(), nil
	case start.New:
		return gateway.StartNew(), nil
	case start.Sequence > 0:
		return gateway.StartSequence(start.Sequence), nil
	}
	return gateway.StartTime(start.Time), nil
}

func toSyncInterval(s config.SyncInterval) time.Duration {
	if s.Always {
		return gateway.SyncAlways
	}
	return s.Interval.Or(0)
}

// toCreate makes the settings of a new stream; nil stays nil.
func toCreate(c *config.Create) *gateway.CreateSealed {
	if c == nil {
		return nil
	}
	out := &gateway.CreateSealed{Replicas: c.Replicas, MaxAge: c.MaxAge.Or(0), MaxBytes: int64(c.MaxBytes)}
	if c.Storage == "memory" {
		out.Storage = gateway.MemoryStorage
	}
	return out
}

// connections opens the connections of a configuration when they are needed, one
// for each name.
type connections struct {
	file *config.File
	what string
	log  *slog.Logger
	dial func(n config.Connection, name, what string, log *slog.Logger) (*nats.Conn, error)
	open map[string]*nats.Conn
	kept map[string]*nats.Conn // of the configuration before, with the same settings
}

func newConnections(f *config.File, what string, log *slog.Logger) *connections {
	return &connections{f, what, log, dialService, map[string]*nats.Conn{}, nil}
}

// next is for the configuration that follows: it takes over what is open where
// the settings are the same.
func (c *connections) next(f *config.File) *connections {
	n := newConnections(f, c.what, c.log)
	n.dial, n.kept = c.dial, map[string]*nats.Conn{}
	for name, nc := range c.open {
		if f.NATS[name] == c.file.NATS[name] {
			n.kept[name] = nc
		}
	}
	return n
}

func (c *connections) get(name string) (*nats.Conn, error) {
	nc := c.open[name]
	if nc == nil {
		nc = c.kept[name]
	}
	if nc == nil {
		var err error
		if nc, err = c.dial(c.file.NATS[name], name, c.what, c.log); err != nil {
			return nil, err
		}
	}
	c.open[name] = nc
	return nc, nil
}

// close sends what is buffered and closes all.
func (c *connections) close() { c.closeBut(nil) }

// closeBut closes those that other, if not nil, does not hold as well.
func (c *connections) closeBut(other *connections) {
	for name, nc := range c.open {
		if other != nil && other.open[name] == nc {
			continue
		}
		if nc.IsConnected() {
			_ = nc.FlushTimeout(time.Second) // nothing that matters is unacknowledged by now
		}
		nc.Close()
	}
}

// toHold is nil for a route that waits for its keys.
func toHold(r config.Route) *gateway.Hold {
	if r.OnScopeUnavailable != config.HoldScopes {
		return nil
	}
	h := r.Hold
	if h == nil {
		return &gateway.Hold{}
	}
	out := &gateway.Hold{Stream: h.Stream, Scope: h.Scope}
	if c := h.Create; c != nil {
		out.Create = &gateway.CreateSealed{Replicas: c.Replicas}
		if c.Storage == "memory" {
			out.Create.Storage = gateway.MemoryStorage
		}
	}
	return out
}
