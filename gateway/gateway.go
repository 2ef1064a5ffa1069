package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// Config says what a gateway is.
type Config struct {
	Routes []Route // at least one
	Keys   Keys    // required
	// Instance names this process in claims and logs. Zero: host name and process
	// ID. A random part is always added.
	Instance string
	// ClaimTTL is how long a claim outlives a killed holder, at least 1 s; it counts
	// when the gateway creates the bucket of claims, afterwards the bucket's own TTL
	// does. Zero: 10 s.
	ClaimTTL time.Duration
	// Logger gets what an operator should see; nil discards.
	Logger *slog.Logger
	// MeterProvider and TracerProvider report to OpenTelemetry; nil: nothing. With a
	// TracerProvider, trace context is carried from source to sealed messages by
	// the global propagator (otel.SetTextMapPropagator).
	MeterProvider  metric.MeterProvider
	TracerProvider trace.TracerProvider
}

// Gateway runs routes. Stats may be called at any time, Run once.
type Gateway struct {
	workers []*worker
	started atomic.Bool
}

// New checks cfg and makes a gateway. It does not block and asks no server.
// Errors wrap [ErrConfig].
func New(cfg Config) (*Gateway, error) {
	if cfg.Keys == nil || len(cfg.Routes) == 0 {
		return nil, fmt.Errorf("%w: a gateway needs keys and at least one route", ErrConfig)
	}
	tune := defaultTuning
	if cfg.ClaimTTL != 0 {
		if cfg.ClaimTTL < time.Second {
			return nil, fmt.Errorf("%w: claim TTL %v, at least 1s", ErrConfig, cfg.ClaimTTL)
		}
		tune.claimTTL = cfg.ClaimTTL
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "gateway"
		}
		cfg.Instance = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	instance := cfg.Instance + "-" + rand.Text()
	inst, meter, err := newInstruments(cfg.MeterProvider)
	if err != nil {
		return nil, err
	}
	g := &Gateway{}
	names, streams := make(map[string]bool), make(map[*nats.Conn]map[string]bool)
	for _, r := range cfg.Routes {
		r, err := r.withDefaults()
		if err != nil {
			return nil, err
		}
		if streams[r.Sealed.Conn] == nil {
			streams[r.Sealed.Conn] = make(map[string]bool)
		}
		if names[r.Name] || streams[r.Sealed.Conn][r.Sealed.Stream] {
			return nil, &RouteError{r.Name, fmt.Errorf("%w: route name and sealed stream belong to one route only", ErrConfig)}
		}
		names[r.Name], streams[r.Sealed.Conn][r.Sealed.Stream] = true, true
		w := &worker{route: r, instance: instance, tune: tune, keys: cfg.Keys, log: log.With("route", r.Name), metrics: newRouteMetrics(inst, r.Name)}
		if w.prefix, err = sealedPrefix(r.Sealed.Subject, r.Source.Subjects); err != nil {
			return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
		}
		if w.sourceJS, err = jetstream.New(r.Source.Conn); err != nil {
			return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
		}
		if w.sealedJS, err = jetstream.New(r.Sealed.Conn); err != nil {
			return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
		}
		if cfg.TracerProvider != nil {
			w.tracer, w.propagator = cfg.TracerProvider.Tracer(instrumentation), otel.GetTextMapPropagator()
		}
		w.board.s = RouteStats{Name: r.Name, State: StateIdle}
		g.workers = append(g.workers, w)
	}
	if cfg.MeterProvider != nil {
		if err := g.observe(meter); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Run relays until ctx ends, and then drains: it stops reading, waits for the
// acknowledgements on their way, writes the position records, releases what may
// be released and gives up the claims. It then returns nil, or the [*RouteError]s
// of the routes that had stopped, joined. One route's stop does not touch the
// others; Run returns early only when all have stopped. It blocks, and may be
// called once.
func (g *Gateway) Run(ctx context.Context) error {
	if g.started.Swap(true) {
		return errors.New("gateway: Run was called before")
	}
	errs := make([]error, len(g.workers))
	var wg sync.WaitGroup
	for i, w := range g.workers {
		wg.Go(func() { errs[i] = w.run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Stats returns a snapshot of every route, in the order of the configuration.
func (g *Gateway) Stats() []RouteStats {
	out := make([]RouteStats, len(g.workers))
	for i, w := range g.workers {
		out[i] = w.board.get()
	}
	return out
}
