// Package natstest gives tests a real nats-server that can be stopped and
// restarted, a TCP proxy that cuts, freezes and slows connections, and a way to
// wait for a condition without sleeping.
//
//	s := natstest.New(t)
//	p := natstest.NewProxy(t, s.Addr())
//	nc := s.Conn(t)
//	...
//	p.Cut()
//	natstest.Eventually(t, 5*time.Second, func() error { ... })
//
// Everything ends with the test. Failures end the test at once.
package natstest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/embednats"
)

// stopTimeout is how long a server may take to stop.
const stopTimeout = 30 * time.Second

// Option changes what New starts.
type Option func(*embednats.Options)

// Server is a nats-server with JetStream on a free port of the loopback
// interface. Its address and its store survive Stop and Restart. Its methods are
// safe for concurrent use; they fail t, the test it was made for, and so belong
// in that test's goroutine.
type Server struct {
	t    testing.TB
	opts embednats.Options // Listen holds the real port after the first start
	url  string

	mu  sync.Mutex
	srv *embednats.Server // nil while stopped; guarded by mu
}

// New starts a server with file storage in a temporary directory. It stops
// before that directory is removed.
func New(t testing.TB, opts ...Option) *Server {
	t.Helper()
	s := &Server{t: t, opts: embednats.Options{Name: "natstest", Listen: "127.0.0.1:0", StoreDir: t.TempDir()}}
	for _, o := range opts {
		o(&s.opts)
	}
	srv, err := embednats.Start(s.opts)
	if err != nil {
		t.Fatalf("starting test server: %v", err)
	}
	s.srv, s.url = srv, srv.ClientURL()
	s.opts.Listen = strings.TrimPrefix(s.url, "nats://")
	t.Cleanup(s.Stop)
	return s
}

// ClientURL is nats://host:port; it does not change.
func (s *Server) ClientURL() string { return s.url }

// Addr is host:port, for a proxy.
func (s *Server) Addr() string { return s.opts.Listen }

// Embedded returns the running server, nil while stopped.
func (s *Server) Embedded() *embednats.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.srv
}

// Stop shuts the server down and waits; nothing happens if it is stopped.
func (s *Server) Stop() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := s.srv.Shutdown(ctx); err != nil {
		s.t.Fatalf("stopping test server: %v", err)
	}
	s.srv = nil
}

// Restart stops the server if it runs and starts it again on the same address
// with the same store.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	// A connection to somewhere else may hold the port as its own for a moment.
	Eventually(s.t, 10*time.Second, func() error {
		srv, err := embednats.Start(s.opts)
		var le *embednats.ListenError
		if err != nil && !errors.As(err, &le) {
			s.t.Fatalf("restarting test server: %v", err)
		}
		s.srv = srv
		return err
	})
}

// Conn connects over TCP, with quick and endless reconnects unless opts say
// otherwise. The connection is closed when t ends.
func (s *Server) Conn(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	return Connect(t, s.url, opts...)
}

// JetStream connects like Conn and returns its JetStream.
func (s *Server) JetStream(t testing.TB, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(s.Conn(t, opts...))
	if err != nil {
		t.Fatalf("opening JetStream: %v", err)
	}
	return js
}

// Connect is Conn for any URL, a proxy's for instance.
func Connect(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	defaults := []nats.Option{
		nats.MaxReconnects(-1),
		nats.ReconnectWait(20 * time.Millisecond),
		nats.ReconnectJitter(0, 0),
	}
	nc, err := nats.Connect(url, append(defaults, opts...)...)
	if err != nil {
		t.Fatalf("connecting to %s: %v", url, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Eventually calls f every 10 ms until it returns nil, and fails t with its last
// error when that has not happened within the time. f runs in the calling
// goroutine, at least once, and must not block for long.
func Eventually(t testing.TB, within time.Duration, f func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); ; <-tick.C {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %v", within, err)
			return
		}
	}
}
