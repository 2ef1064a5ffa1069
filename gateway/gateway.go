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
	cfg     Config // without routes and keys
	tune    tuning
	log     *slog.Logger
	metrics *instruments
	started atomic.Bool
	opens   bool // made by NewUnseal

	requests chan reconfiguration // to Run
	wake     chan struct{}        // capacity 1: a route ended
	ended    chan struct{}        // closed when Run returned
	answers  map[string]uint64    // see answered; of Run's goroutine

	mu      sync.Mutex // guards what follows; once Run was called, only its goroutine writes
	keys    Keys
	runners []*runner // in the order of the configuration

	guard atomic.Pointer[[]string] // subjects that core ingest must not answer to, see guardReplies
}

// New checks cfg and makes a gateway. It does not block and asks no server.
// Errors wrap [ErrConfig].
func New(cfg Config) (*Gateway, error) {
	if cfg.Keys == nil {
		return nil, fmt.Errorf("%w: a gateway needs keys", ErrConfig)
	}
	g := &Gateway{
		tune: defaultTuning, log: cfg.Logger, keys: cfg.Keys,
		requests: make(chan reconfiguration), wake: make(chan struct{}, 1), ended: make(chan struct{}),
		answers: make(map[string]uint64),
	}
	if cfg.ClaimTTL != 0 {
		if cfg.ClaimTTL < time.Second {
			return nil, fmt.Errorf("%w: claim TTL %v, at least 1s", ErrConfig, cfg.ClaimTTL)
		}
		g.tune.claimTTL = cfg.ClaimTTL
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "gateway"
		}
		cfg.Instance = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	cfg.Instance += "-" + rand.Text()
	var meter metric.Meter
	var err error
	if g.metrics, meter, err = newInstruments(cfg.MeterProvider); err != nil {
		return nil, err
	}
	routes, err := checkRoutes(cfg.Routes)
	if err != nil {
		return nil, err
	}
	cfg.Routes, cfg.Keys = nil, nil
	g.cfg = cfg
	for _, r := range routes {
		g.answered(&r)
		n, err := g.newRunner(g.keys, r)
		if err != nil {
			return nil, err
		}
		g.runners = append(g.runners, n)
	}
	g.guardReplies()
	if cfg.MeterProvider != nil {
		if err := g.observe(meter); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// checkRoutes checks routes by themselves and beside each other, and fills in
// their defaults.
func checkRoutes(routes []Route) ([]Route, error) {
	if len(routes) == 0 {
		return nil, fmt.Errorf("%w: a gateway needs at least one route", ErrConfig)
	}
	out := make([]Route, 0, len(routes))
	names, streams := make(map[string]bool), make(map[*nats.Conn]map[string]bool)
	for _, r := range routes {
		r, err := r.withDefaults()
		if err != nil {
			return nil, err
		}
		if streams[r.Sealed.Conn] == nil {
			streams[r.Sealed.Conn] = make(map[string]bool)
		}
		bad := names[r.Name]
		names[r.Name] = true
		for _, s := range append(r.sealedStreams(), r.Hold.streams(&r)...) {
			open, taken := streams[r.Sealed.Conn][s]
			bad = bad || taken && !(open && r.Ingest != nil)
			streams[r.Sealed.Conn][s] = r.Ingest != nil
		}
		if bad {
			return nil, &RouteError{r.Name, fmt.Errorf("%w: route name, sealed stream and hold stream belong to one route only", ErrConfig)}
		}
		out = append(out, r)
	}
	return out, checkIngests(out)
}

// newRunner makes a runner of a route with defaults.
func (g *Gateway) newRunner(keys Keys, r Route) (*runner, error) {
	if r.Ingest != nil {
		in, err := g.newIngest(keys, r)
		if err != nil {
			return nil, err
		}
		return &runner{route: r, parts: []*partRunner{{relay: in}}, done: make(chan struct{})}, nil
	}
	n := &runner{route: r, done: make(chan struct{})}
	parts, of, err := g.parts(&r)
	if err != nil {
		return nil, err
	}
	n.share = of.share
	for i, p := range parts {
		of.number = uint32(i)
		w, err := g.newWorker(keys, p, of)
		if err != nil {
			return nil, err
		}
		n.parts = append(n.parts, &partRunner{relay: w})
	}
	return n, nil
}

// parts splits a route. The part returned is what its partitions have in common.
func (g *Gateway) parts(r *Route) ([]Route, part, error) {
	prefix, err := r.prefix()
	if err != nil {
		return nil, part{}, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
	}
	parts := r.split()
	of := part{layout: newLayout(r, parts, prefix)}
	if r.Source.Partitions != nil {
		of.share = newShare(r.Name, g.cfg.Instance, len(parts), g.log.With("route", r.Name))
	}
	return parts, of, nil
}

// newWorker makes the worker of one partition, which r is reduced to.
func (g *Gateway) newWorker(keys Keys, r Route, of part) (*worker, error) {
	w := &worker{
		route: r, part: of, prefix: of.layout.Prefix, instance: g.cfg.Instance, tune: g.tune, keys: keys, log: g.log.With("route", r.Name),
	}
	w.board.s = RouteStats{Name: r.Name, Partition: int(of.number), Partitions: int(of.count()), SealedStream: r.Sealed.Stream, State: StateIdle}
	w.metrics = newRouteMetrics(g.metrics, w.board.s.attributes()...)
	if of.share != nil {
		w.log = w.log.With("partition", of.number)
	}
	if _, ok := keys.(KeyOpener); r.Hold != nil && !ok {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: hold needs keys that are a KeyOpener", ErrConfig)}
	}
	var err error
	if w.sourceJS, err = jetstream.New(r.Source.Conn); err != nil {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
	}
	if w.sealedJS, err = jetstream.New(r.Sealed.Conn); err != nil {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
	}
	if g.cfg.TracerProvider != nil {
		w.tracer, w.propagator = g.cfg.TracerProvider.Tracer(instrumentation), otel.GetTextMapPropagator()
	}
	return w, nil
}

// Run relays until ctx ends, and then drains: it stops reading, waits for the
// acknowledgements on their way, writes the position records, releases what may
// be released and gives up the claims. It then returns nil, or the [*RouteError]s
// of the routes that had stopped, joined. One route's stop does not touch the
// others, nor one partition's; Run returns early only when all have stopped or are
// drained. It blocks, and may be called once. [Gateway.Reconfigure] changes the
// routes meanwhile.
func (g *Gateway) Run(ctx context.Context) error {
	if g.started.Swap(true) {
		return errors.New("gateway: Run was called before")
	}
	defer close(g.ended)
	for _, r := range g.runners {
		r.start(ctx, g.wake)
	}
	tick := time.NewTicker(g.tune.progress)
	defer tick.Stop()
	for !g.over() {
		select {
		case <-g.wake:
		case q := <-g.requests:
			c, err := g.reconfigure(ctx, q)
			q.answer <- reconfigured{c, err}
		case now := <-tick.C:
			for _, r := range g.runners {
				r.look(now, g.log)
			}
		}
	}
	var errs []error
	for _, r := range g.runners {
		r.cancel()
		errs = append(errs, r.err)
	}
	return errors.Join(errs...)
}

// over reports whether every route ended.
func (g *Gateway) over() bool {
	for _, r := range g.runners {
		if !r.ended() {
			return false
		}
	}
	return true
}

// Stats returns a snapshot of every route, in the order of the configuration; of
// a partitioned route, one of each partition.
func (g *Gateway) Stats() []RouteStats {
	g.mu.Lock()
	runners := g.runners
	g.mu.Unlock()
	out := make([]RouteStats, 0, len(runners))
	for _, r := range runners {
		out = append(out, r.stats()...)
	}
	return out
}
