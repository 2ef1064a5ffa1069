package kmstest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Proxy stands between an authority and an emulator, or instead of one, and
// answers some requests itself. It is safe for concurrent use.
type Proxy struct {
	URL string

	forward http.Handler

	mu     sync.Mutex
	faults []http.HandlerFunc // for the next requests, in order; nil forwards
	always http.HandlerFunc   // when faults is used up; nil forwards
	calls  int
}

// NewProxy starts a proxy before the upstream endpoint; "" means that there is
// none and that requests without a fault get status 502.
func NewProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	p := &Proxy{forward: Status(http.StatusBadGateway)}
	if upstream != "" {
		u, err := url.Parse(upstream)
		if err != nil {
			t.Fatalf("kmstest: %v", err)
		}
		p.forward = httputil.NewSingleHostReverseProxy(u)
	}
	srv := httptest.NewServer(p)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	p.URL = srv.URL
	return p
}

// Script sets the answers to the next requests, nil forwarding one, and the
// answer to all after them; it forgets the count.
func (p *Proxy) Script(always http.HandlerFunc, next ...http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults, p.always, p.calls = next, always, 0
}

// Calls returns how many requests came since the last Script.
func (p *Proxy) Calls() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A fault that answered before the request was read would break the connection
	// now and then, and the client would try once more than the fault accounts for.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return // the client left
	}
	r.Body = io.NopCloser(bytes.NewReader(body))

	p.mu.Lock()
	p.calls++
	h := p.always
	if len(p.faults) > 0 {
		h, p.faults = p.faults[0], p.faults[1:]
	}
	p.mu.Unlock()
	if h == nil {
		p.forward.ServeHTTP(w, r)
		return
	}
	h(w, r)
}

// Times repeats a fault for Script.
func Times(n int, h http.HandlerFunc) []http.HandlerFunc {
	s := make([]http.HandlerFunc, n)
	for i := range s {
		s[i] = h
	}
	return s
}

// Exception answers like KMS when it refuses.
func Exception(status int, code, message string) http.HandlerFunc {
	body := map[string]string{"__type": code, "message": message}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.Header().Set("X-Amzn-RequestId", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
}

// Answer answers with success and the given body.
func Answer(body any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		_ = json.NewEncoder(w).Encode(body)
	}
}

// Status answers with a bare HTTP status and a page, as a load balancer does.
func Status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(code)
		_, _ = w.Write([]byte("<html><body>" + http.StatusText(code) + "</body></html>"))
	}
}

// Reset kills the connection without an answer.
func Reset(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// Hang does not answer until the client gives up. Like all faults it runs after
// the request was read; the server notices a client that leaves only then.
func Hang(_ http.ResponseWriter, r *http.Request) {
	<-r.Context().Done()
}

// Stall answers the header and the first byte of a body, and no more until the
// client gives up.
func Stall(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("Content-Length", "100")
	_, _ = w.Write([]byte("{"))
	_ = http.NewResponseController(w).Flush()
	Hang(w, r)
}
