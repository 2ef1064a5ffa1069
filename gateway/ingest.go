package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyweir/keyweir/internal/envelope"
)

// CoreIngest makes a route take plain publishes and requests instead of reading a
// stream: nothing unsealed is ever stored. Its source has a connection and
// subjects only; its sealed stream is [ModeOpen]. Instances share the messages as
// one queue group.
//
// A publisher that asks for an answer, as every JetStream publish does, gets the
// acknowledgement of the sealed stream, or an error in the same form at once; see
// [Refusal]. One that does not is served at most once, and [IngestStats] counts
// what was dropped. The zero value grants nothing and has the usual bounds.
type CoreIngest struct {
	// AllowTTL lets publishers give a message a time to live (Nats-TTL). The sealed
	// stream must allow it; one that the gateway makes does.
	AllowTTL bool
	// AllowExpectedLast lets publishers make a message conditional on the last one
	// stored: Nats-Expected-Last-Sequence, -Last-Subject-Sequence and -Last-Msg-Id,
	// as the sealed stream counts.
	AllowExpectedLast bool
	// QueueMessages and QueueBytes bound what may wait to be sealed, for a key
	// above all: up to 1048576 messages, zero 8192; at least 1 MiB, zero 64 MiB.
	// What does not fit is refused.
	QueueMessages int
	QueueBytes    int64
	// KeyWait is how long the first messages of a scope wait for its key; they, and
	// those after them, are refused then. Zero: 2 s; at most a minute.
	KeyWait time.Duration
}

const (
	defaultQueueMessages = 8192
	maxQueueMessages     = 1 << 20
	defaultQueueBytes    = 64 << 20
	minQueueBytes        = 1 << 20
	defaultKeyWait       = 2 * time.Second
	maxKeyWait           = time.Minute
	defaultRecheck       = 10 * time.Second
)

// QueueGroup is the queue group in which the instances of a core ingest route
// share its messages.
func QueueGroup(route string) string { return "keyweir-" + route }

// ingestDefaults checks the part of r that core ingest adds, and fills it in.
func (r *Route) ingestDefaults() error {
	c := *r.Ingest
	s := &r.Source
	if s.Stream != "" || s.AfterSeal != 0 || s.Start != (Start{}) || s.OnSourceGap != GapStop || r.ResumeFrom != nil || r.Engine != EngineAuto || r.Window != 0 || r.Hold != nil {
		return errors.New("core ingest has no source stream: no stream, after_seal, start, on_source_gap, resume_from, engine, window or hold")
	}
	for _, p := range s.Subjects {
		if first, _, _ := strings.Cut(p, "."); first == "*" || first == ">" || first[0] == '$' || first[0] == '_' {
			return fmt.Errorf("ingest subject %q begins with a wildcard or lies among NATS's own subjects", p)
		}
	}
	if c.QueueMessages == 0 {
		c.QueueMessages = defaultQueueMessages
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = defaultQueueBytes
	}
	if c.KeyWait == 0 {
		c.KeyWait = defaultKeyWait
	}
	if c.QueueMessages < 1 || c.QueueMessages > maxQueueMessages || c.QueueBytes < minQueueBytes {
		return fmt.Errorf("queue of %d messages and %d bytes, want 1 to %d and at least %d", c.QueueMessages, c.QueueBytes, maxQueueMessages, minQueueBytes)
	}
	if c.KeyWait < 0 || c.KeyWait > maxKeyWait {
		return fmt.Errorf("key wait %v, want at most %v", c.KeyWait, maxKeyWait)
	}
	r.Ingest = &c
	return nil
}

// ingest runs one core ingest route. Everything here belongs to the goroutine of
// run, but for board and counts.
type ingest struct {
	route   Route
	prefix  string                    // of sealed subjects
	guard   *atomic.Pointer[[]string] // patterns that no reply subject may match, see answerable
	tune    tuning
	recheck time.Duration // between looks at the streams

	log        *slog.Logger
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	metrics    *routeMetrics
	board      board
	counts     ingestCounts

	sourceJS, sealedJS jetstream.JetStream
	keys               Keys
}

// checkIngests refuses routes that would take the same messages, each as a queue
// group of its own.
func checkIngests(routes []Route) error {
	for i, r := range routes {
		for _, o := range routes[:i] {
			if r.Ingest == nil || o.Ingest == nil || o.Source.Conn != r.Source.Conn {
				continue
			}
			for _, a := range o.Source.Subjects {
				for _, b := range r.Source.Subjects {
					if patternsOverlap(a, b) {
						return &RouteError{r.Name, fmt.Errorf("%w: ingest subject %q overlaps %q of route %s: messages would be sealed twice", ErrConfig, b, a, o.Name)}
					}
				}
			}
		}
	}
	return nil
}

func (g *Gateway) newIngest(keys Keys, r Route) (*ingest, error) {
	in := &ingest{
		route: r, guard: &g.guard, tune: g.tune, recheck: defaultRecheck, keys: keys, log: g.log.With("route", r.Name),
	}
	in.board.s = RouteStats{Name: r.Name, Partitions: 1, SealedStream: r.Sealed.Stream, State: StateIdle}
	in.metrics = newRouteMetrics(g.metrics, in.board.s.attributes()...)
	var err error
	if in.prefix, err = r.prefix(); err != nil {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
	}
	if in.sourceJS, err = jetstream.New(r.Source.Conn); err != nil {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
	}
	if in.sealedJS, err = jetstream.New(r.Sealed.Conn); err != nil {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: %w", ErrConfig, err)}
	}
	if g.cfg.TracerProvider != nil {
		in.tracer, in.propagator = g.cfg.TracerProvider.Tracer(instrumentation), otel.GetTextMapPropagator()
	}
	return in, nil
}

// guardReplies tells core ingest which reply subjects it must not answer: those of
// sealed streams, on whatever route, and its own.
func (g *Gateway) guardReplies() {
	patterns := []string{}
	for _, n := range g.runners {
		r := &n.route
		if prefix, err := r.prefix(); err == nil { // it was checked
			patterns = append(patterns, r.targets(prefix)...)
		}
		if r.Ingest != nil {
			patterns = append(patterns, r.Source.Subjects...)
		}
	}
	g.guard.Store(&patterns)
}

// run takes messages until ctx ends (nil) or the route stops (*RouteError).
func (g *ingest) run(ctx context.Context) error {
	retry := newPause(g.tune.retry, g.tune.retryMax)
	for {
		err := g.attempt(ctx, retry)
		if ctx.Err() != nil {
			g.board.state(StateIdle)
			return nil
		}
		if stops(err) {
			if errors.Is(err, nats.ErrConnectionClosed) {
				err = fmt.Errorf("%w: %v", ErrConnection, err)
			}
			rerr := &RouteError{g.route.Name, err}
			g.board.failed(StateStopped, rerr)
			g.log.Error("route stopped", "error", err, "hint", rerr.Hint())
			return rerr
		}
		state := StateRetrying
		if errors.Is(err, ErrKeys) {
			state = StatePaused
		}
		g.metrics.restarted()
		g.board.failed(state, err)
		g.log.Warn("attempt ended, trying again", "error", err)
		if retry.wait(ctx) != nil {
			g.board.state(StateIdle)
			return nil
		}
	}
}

// attempt checks both sides and takes messages until something fails. Before it
// subscribes, publishers are told at once that nobody responds.
func (g *ingest) attempt(ctx context.Context, retry *pause) error {
	g.board.state(StateStarting)
	d, err := g.check(ctx)
	if err != nil {
		return err
	}
	ring := newKeyring(g.keys, envelope.SessionConfig{Record: g.route.Record, RandomNonce: g.route.RandomNonce, PadTo: g.route.PadTo}, g.prefix, g.metrics)
	defer ring.close()
	if err := ring.loadRules(ctx); err != nil {
		return err
	}
	in := newIntake(g, ring, d)
	return in.run(ctx, retry)
}

// check looks at the sealed stream, and for a stream that would store what
// publishers send in plaintext.
func (g *ingest) check(ctx context.Context) (*destination, error) {
	for c, what := range map[*nats.Conn]string{g.route.Source.Conn: "source", g.route.Sealed.Conn: "sealed"} {
		if c.IsClosed() {
			return nil, fmt.Errorf("%w: the %s connection", ErrConnection, what)
		}
	}
	d, err := openDestination(ctx, g.sealedJS, &g.route, g.prefix)
	if err != nil {
		return nil, err
	}
	for _, p := range g.route.Source.Subjects {
		if err := g.checkPlaintext(ctx, p); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// checkPlaintext refuses ingest subjects that a stream of the publishers' side
// binds. The server answers with every stream of the account whose subjects
// overlap; a server without JetStream has none.
func (g *ingest) checkPlaintext(ctx context.Context, pattern string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	names := g.sourceJS.StreamNames(ctx, jetstream.WithStreamListSubject(pattern))
	for name := range names.Name() {
		return fmt.Errorf("%w: stream %s stores messages of %s in plaintext", ErrSource, name, pattern)
	}
	err := names.Err()
	if err == nil || errors.Is(err, jetstream.ErrEndOfData) || noJetStream(err) {
		return nil
	}
	return fmt.Errorf("looking for streams on %s: %w", pattern, err)
}

// noJetStream reports whether the account has no JetStream, and so no streams.
func noJetStream(err error) bool {
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount)
}
