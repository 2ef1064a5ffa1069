package keyserver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
)

// ServiceName is the name of the micro service, for discovery under $SRV.
const ServiceName = "keyweir-keysvc"

// drainTime is how long Close waits for NATS to hand over what it holds.
const drainTime = 2 * time.Second

// Server answers the operations of a key service. Safe for concurrent use.
type Server struct {
	cfg     Config
	log     *slog.Logger
	rules   *rules
	people  *policy.Principals
	keys    *engine
	met     *metrics
	pool    *pool
	replay  *replayCache
	ops     map[string]operation
	started time.Time
	svc     micro.Service

	ctx       context.Context
	cancel    context.CancelFunc
	done      chan struct{}
	failOnce  sync.Once
	closeOnce sync.Once
	closeErr  error
	mu        sync.Mutex // guards err
	err       error
}

// New starts a server: it checks the configuration, writes the first audit
// record, opens the key directory and begins to answer. ctx covers starting only.
// Errors of the configuration wrap [ErrConfig].
func New(ctx context.Context, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Instance == "" {
		var b [6]byte
		rand.Read(b[:])
		cfg.Instance = hex.EncodeToString(b[:])
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Conn == nil {
		return nil, fmt.Errorf("%w: no connection", ErrConfig)
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger.With("service", cfg.Service, "instance", cfg.Instance),
		replay: newReplayCache(nonceShare, noncePool), started: time.Now(), done: make(chan struct{}),
	}
	s.cfg.Logger = s.log
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.start(ctx); err != nil {
		s.stop()
		return nil, fmt.Errorf("starting key service %q: %w", cfg.Service, err)
	}
	s.log.Info("key service is up", "public", cfg.Identity.Public(), "scopes", len(cfg.Scopes), "principals", s.people.Len())
	return s, nil
}

func (s *Server) start(ctx context.Context) error {
	var err error
	if s.rules, err = newRules(s.cfg.Scopes); err != nil {
		return err
	}
	if s.people, err = policy.NewPrincipals(s.cfg.Principals); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	// The log must be writable before anything is answered.
	var b keycache.Batch
	b.Attach(audit.Record{Principal: s.cfg.Service, Action: "start", Outcome: audit.Allow, Instance: s.cfg.Instance, Reason: "version " + s.cfg.Version})
	if err := s.cfg.Store.Apply(ctx, &b); err != nil {
		return fmt.Errorf("writing audit record: %w", err)
	}
	dir, err := openDirectory(ctx, &s.cfg)
	if err != nil {
		return err
	}
	s.met, err = newMetrics(s.cfg.Meter,
		func() float64 { return float64(s.pool.depth()) },
		func() float64 { return s.keys.staleLeft() })
	if err != nil {
		return fmt.Errorf("making metrics: %w", err)
	}
	s.pool = newPool(s.cfg.Workers, s.cfg.Queue)
	if s.keys, err = newEngine(s.cfg, s.rules, dir, s.met, s.fail); err != nil {
		return err
	}
	s.keys.background(s.sweep)
	s.ops = s.operations()
	return s.serveNATS()
}

// semver is what the micro framework takes for a version.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

func (s *Server) serveNATS() error {
	version := strings.TrimPrefix(s.cfg.Version, "v")
	if !semver.MatchString(version) {
		version = "0.0.0"
	}
	svc, err := micro.AddService(s.cfg.Conn, micro.Config{
		Name: ServiceName, Version: version, QueueGroup: "keyweir",
		Description: "Keyweir key service " + s.cfg.Service,
		Metadata:    map[string]string{"service": s.cfg.Service, "instance": s.cfg.Instance, "public": s.cfg.Identity.Public()},
		ErrorHandler: func(_ micro.Service, err *micro.NATSError) {
			s.log.Warn("NATS reports an error", "subject", err.Subject, "err", err)
		},
	})
	if err != nil {
		return fmt.Errorf("adding NATS service: %w", err)
	}
	s.svc = svc
	for op := range s.ops {
		if err := svc.AddEndpoint(op, s.handler(op), micro.WithEndpointSubject(keysvc.Subject(s.cfg.Service, op))); err != nil {
			return fmt.Errorf("adding endpoint %s: %w", op, err)
		}
	}
	// When this returns, the server routes requests here.
	if err := s.cfg.Conn.FlushTimeout(drainTime); err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	return nil
}

func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(nonceLife)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.replay.sweep(time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// Done is closed when the server has ended: by Close, or because its store
// stopped. In the latter case Err says why, every request is answered
// unavailable, and the process should exit: fail-stop is the design, clients live
// on their leases.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is nil until Done is closed, and after a mere Close.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Instance is the name of this process in replies and in the audit log.
func (s *Server) Instance() string { return s.cfg.Instance }

// fail ends the server for a reason. Only the first end counts.
func (s *Server) fail(err error) {
	s.failOnce.Do(func() {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
		s.log.Error("key service stops", "err", err)
		close(s.done)
	})
}

// Close takes no new requests, answers those that arrived, and clears all keys.
// Connection, store and authorities stay open: they are the caller's. Later calls
// do nothing and repeat the first answer.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		s.closeErr = s.stop()
		s.failOnce.Do(func() { close(s.done) })
	})
	return s.closeErr
}

func (s *Server) stop() error {
	var err error
	if s.svc != nil {
		if e := s.svc.Stop(); e != nil && !errors.Is(e, nats.ErrConnectionClosed) {
			err = fmt.Errorf("stopping NATS service: %w", e)
		}
		s.drain()
	}
	if s.pool != nil {
		s.pool.close()
	}
	s.cancel()
	if s.keys != nil {
		s.keys.close()
	}
	if s.met != nil {
		s.met.close()
	}
	return err
}

// drain waits until requests that reached this client are in the pool.
func (s *Server) drain() {
	if s.cfg.Conn.FlushTimeout(drainTime) != nil {
		return // closed or cut off: nothing more will come
	}
	passed := make(chan struct{})
	if s.cfg.Conn.Barrier(func() { close(passed) }) != nil {
		return
	}
	t := time.NewTimer(drainTime)
	defer t.Stop()
	select {
	case <-passed:
	case <-t.C: // a subscription of somebody else on this connection is blocked
	}
}
