package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Readiness is a set of checks that must all pass before the process may get
// work. The zero value has none and is not ready: a process that has not said
// what it waits for is still starting. It is safe for concurrent use.
type Readiness struct {
	mu     sync.Mutex
	checks []*check // guarded by mu
}

type check struct {
	name string
	fn   func() error
}

// Add registers a check. fn returns nil or why not; it is called for every
// request, from several goroutines, and must not block. The returned function
// takes the check out again and may be called twice.
func (r *Readiness) Add(name string, fn func() error) (remove func()) {
	c := &check{name, fn}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks = append(r.checks, c)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.checks = slices.DeleteFunc(r.checks, func(have *check) bool { return have == c })
	}
}

// Check returns nil if every check passes, else an error with one line
// "name: reason" for each that does not, ordered by name.
func (r *Readiness) Check() error {
	r.mu.Lock()
	checks := slices.Clone(r.checks)
	r.mu.Unlock()
	if len(checks) == 0 {
		return errors.New("starting")
	}
	slices.SortStableFunc(checks, func(a, b *check) int { return cmp.Compare(a.name, b.name) })
	var errs []error
	for _, c := range checks {
		if err := c.fn(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

func newHandler(g prometheus.Gatherer, r *Readiness) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := r.Check(); err != nil {
			answer(w, http.StatusServiceUnavailable, "not ready\n"+err.Error())
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	return mux
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// A client that went away is no error of ours.
	_, _ = w.Write([]byte(strings.TrimSuffix(text, "\n") + "\n"))
}

// httpServer is a listening server and the goroutine that serves it.
type httpServer struct {
	addr string
	http *http.Server
	done chan struct{} // closed when the serving goroutine has ended
}

// serve takes over ln.
func serve(ln net.Listener, h http.Handler, log *slog.Logger) *httpServer {
	s := &httpServer{addr: ln.Addr().String(), done: make(chan struct{}), http: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serving metrics", "error", err)
		}
	}()
	return s
}

// close lets running requests end within ctx, then cuts them off.
func (s *httpServer) close(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.done
	return err
}
