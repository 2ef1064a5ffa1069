// Package embednats runs a NATS server with JetStream inside this process, for
// the demo, the development stack and tests.
//
// [Start] returns when the server accepts connections. It opens one TCP
// listener at most, for clients (and one for routes if a cluster is
// configured): no WebSocket, MQTT, leafnode, gateway or monitoring listener,
// whatever the configuration says. [Server.Connect] does not use the network.
//
//	s, err := embednats.Start(embednats.Options{Name: "dev", Listen: "127.0.0.1:4222", StoreDir: dir})
//	...
//	defer s.Shutdown(ctx)
//	nc, err := s.Connect()
package embednats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// readyTimeout bounds the wait for the listeners, which comes after the
// (unbounded) recovery of the stored streams.
const readyTimeout = 10 * time.Second

// Options says what to run. The zero value is an in-process server with
// JetStream in memory.
type Options struct {
	// Name is the server's name in NATS. Optional; zero: a generated one. A
	// server that keeps streams should keep its name.
	Name string
	// Listen is the client address as host:port, port 0 for a free one. Zero: no
	// TCP listener at all, only in-process connections.
	Listen string
	// StoreDir is where JetStream keeps file streams; it is created if missing,
	// readable by the owner only. Two servers must not share it. Zero: memory
	// streams only, asking for a file stream is an error.
	StoreDir string
	// MaxMemory and MaxStore limit JetStream, in bytes. Zero: three quarters of
	// the machine's memory, and of the free disk. Negative is an error.
	MaxMemory, MaxStore int64
	// SyncAlways flushes every write to the disk before it is acknowledged. Zero:
	// the server's default, every two minutes.
	SyncAlways bool
	// Config is a piece of nats-server configuration, for accounts, users, limits
	// and TLS. It may not set what the fields above set. Optional.
	Config string
	// Configure changes the server's options last, before they are checked.
	// Optional.
	Configure func(*server.Options)
	// Logger gets the server's warnings and errors, and its notices at debug
	// level. Nil discards. Protocol traces, which hold payloads, are never logged.
	Logger *slog.Logger
}

// Server is a running NATS server. Its methods are safe for concurrent use.
type Server struct {
	ns      *server.Server
	listen  bool
	tempDir string // removed at shutdown; "" if the caller owns the store

	stopOnce sync.Once
	stopped  chan struct{} // closed when shutdown is complete
	stopErr  error         // set before stopped is closed
}

// Start runs a server and returns when it accepts connections. An address that
// cannot be listened on is a [*ListenError].
func Start(o Options) (*Server, error) {
	s := &Server{listen: o.Listen != "", stopped: make(chan struct{})}
	opts, err := o.serverOptions()
	if err != nil {
		return nil, err
	}
	if opts.StoreDir == "" {
		// Memory streams too need a place for (empty) bookkeeping.
		if s.tempDir, err = os.MkdirTemp("", "keyweir-nats-"); err != nil {
			return nil, fmt.Errorf("creating temporary directory: %w", err)
		}
		opts.StoreDir = s.tempDir
	} else if err := os.MkdirAll(opts.StoreDir, 0o700); err != nil {
		return nil, fmt.Errorf("creating store directory: %w", err)
	}
	if err := s.run(opts, o.Logger); err != nil {
		return nil, errors.Join(err, s.removeTemp())
	}
	return s, nil
}

func (s *Server) run(opts *server.Options, logger *slog.Logger) error {
	if s.listen && opts.Port > 0 {
		// The server reports a taken port as text only; ask for it first.
		l, err := net.Listen("tcp", net.JoinHostPort(opts.Host, fmt.Sprint(opts.Port)))
		if err != nil {
			return &ListenError{Addr: net.JoinHostPort(opts.Host, fmt.Sprint(opts.Port)), Err: err}
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("closing trial listener: %w", err)
		}
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("configuring nats-server: %w", err)
	}
	log := newServerLog(logger)
	ns.SetLoggerV2(log, log.debug(), false, false)
	ns.Start()
	if err := ready(ns, log); err != nil {
		ns.Shutdown()
		return fmt.Errorf("starting nats-server: %w", err)
	}
	s.ns = ns
	return nil
}

// ready waits for the listeners, or for the error that kept one from opening.
func ready(ns *server.Server, log *serverLog) error {
	for end := time.Now().Add(readyTimeout); ; {
		if err := log.fatal(); err != nil {
			return err
		}
		if ns.ReadyForConnections(100 * time.Millisecond) {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("not ready after %v", readyTimeout)
		}
	}
	if !ns.JetStreamEnabled() {
		return errors.New("jetstream did not start")
	}
	return nil
}

// ClientURL is where clients connect over TCP, nats://host:port with the real
// port; "" for a server without a listener.
func (s *Server) ClientURL() string {
	if !s.listen {
		return ""
	}
	return s.ns.ClientURL()
}

// Connect opens an in-process connection, which the caller closes. A server with
// users wants credentials in opts as over TCP; refused ones take ten seconds to
// report, because the pipe to the server holds no bytes.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect("", append([]nats.Option{nats.InProcessServer(s.ns)}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connecting to embedded nats-server: %w", err)
	}
	return nc, nil
}

// NATS returns the server itself, for what this package does not cover.
func (s *Server) NATS() *server.Server { return s.ns }

// Shutdown closes all connections, flushes the store and waits until that is
// done or ctx ends; the shutdown itself goes on then. It is safe to call twice.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopOnce.Do(func() {
		go func() {
			defer close(s.stopped)
			s.ns.Shutdown()
			s.ns.WaitForShutdown()
			s.stopErr = s.removeTemp()
		}()
	})
	select {
	case <-s.stopped:
		return s.stopErr
	case <-ctx.Done():
		return fmt.Errorf("shutting down nats-server: %w", ctx.Err())
	}
}

func (s *Server) removeTemp() error {
	if s.tempDir == "" {
		return nil
	}
	if err := os.RemoveAll(s.tempDir); err != nil {
		return fmt.Errorf("removing temporary directory: %w", err)
	}
	return nil
}
