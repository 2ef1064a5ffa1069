package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func setup(t *testing.T, c telemetry.Config) *telemetry.Telemetry {
	t.Helper()
	if c.Service == "" {
		c.Service = "test"
	}
	if c.LogWriter == nil {
		c.LogWriter = io.Discard
	}
	tel, err := telemetry.Setup(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, tel) })
	return tel
}

func shutdown(t *testing.T, tel *telemetry.Telemetry) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// get fetches a page of the telemetry server on a connection of its own.
func get(t *testing.T, tel *telemetry.Telemetry, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+tel.Addr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestMetricsPage(t *testing.T) {
	tel := setup(t, telemetry.Config{Service: "keyweir-test", Version: "v1.2.3", Instance: "i1", Listen: "127.0.0.1:0"})
	m := tel.MeterProvider().Meter("test")
	count, err := m.Int64Counter("keyweir.messages", metric.WithDescription("messages sealed"))
	if err != nil {
		t.Fatal(err)
	}
	seconds, err := m.Float64Histogram("keyweir.seal.duration", metric.WithUnit("s"))
	if err != nil {
		t.Fatal(err)
	}
	sizes, err := m.Int64Histogram("keyweir.payload.size", metric.WithUnit("By"))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := m.Float64Histogram("keyweir.other")
	if err != nil {
		t.Fatal(err)
	}
	count.Add(t.Context(), 3)
	seconds.Record(t.Context(), 2e-6)
	sizes.Record(t.Context(), 100)
	plain.Record(t.Context(), 1)

	status, page := get(t, tel, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("status = %d", status)
	}
	for _, line := range []string{
		"# HELP keyweir_messages_total messages sealed\n",
		"keyweir_messages_total 3\n",
		`keyweir_seal_duration_seconds_bucket{le="1e-06"} 0` + "\n",
		`keyweir_seal_duration_seconds_bucket{le="2.5e-06"} 1` + "\n",
		`keyweir_seal_duration_seconds_bucket{le="30"} 1` + "\n",
		"keyweir_seal_duration_seconds_count 1\n",
		`keyweir_payload_size_bytes_bucket{le="64"} 0` + "\n",
		`keyweir_payload_size_bytes_bucket{le="256"} 1` + "\n",
		`service_name="keyweir-test"`, `service_version="v1.2.3"`, `service_instance_id="i1"`,
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(page, line) {
			t.Errorf("/metrics lacks %q", line)
		}
	}
	if strings.Contains(page, `keyweir_other_bucket{le="1e-06"}`) {
		t.Error("a histogram without a unit got the buckets of seconds")
	}
	if strings.Contains(page, "otel_scope_name") {
		t.Error("scope labels on every series")
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestSeriesAreBounded(t *testing.T) {
	tel := setup(t, telemetry.Config{})
	c, err := tel.MeterProvider().Meter("test").Int64Counter("many")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		c.Add(t.Context(), 1, metric.WithAttributes(attr(i)))
	}
	families, err := tel.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "many_total" {
			if n := len(f.GetMetric()); n > 2000 {
				t.Errorf("%d series, want at most 2000", n)
			}
			return
		}
	}
	t.Error("no metric many_total")
}

func TestHealthAndReadiness(t *testing.T) {
	tel := setup(t, telemetry.Config{Listen: "127.0.0.1:0"})
	expect := func(path string, status int, body string) {
		t.Helper()
		if gotStatus, got := get(t, tel, path); gotStatus != status || got != body {
			t.Errorf("GET %s = %d %q, want %d %q", path, gotStatus, got, status, body)
		}
	}
	expect("/healthz", 200, "ok\n")
	expect("/readyz", 503, "not ready\nstarting\n")

	var mu sync.Mutex
	var reason error
	tel.Readiness().Add("route orders", func() error {
		mu.Lock()
		defer mu.Unlock()
		return reason
	})
	expect("/readyz", 200, "ready\n")
	mu.Lock()
	reason = errors.New("source stream not found")
	mu.Unlock()
	remove := tel.Readiness().Add("key service", func() error { return errors.New("no answer") })
	expect("/readyz", 503, "not ready\nkey service: no answer\nroute orders: source stream not found\n")
	remove()
	remove()
	expect("/readyz", 503, "not ready\nroute orders: source stream not found\n")
	expect("/healthz", 200, "ok\n")
	if status, _ := get(t, tel, "/other"); status != http.StatusNotFound {
		t.Errorf("GET /other = %d", status)
	}
}

func TestNotServedByDefault(t *testing.T) {
	tel := setup(t, telemetry.Config{})
	if got := tel.Addr(); got != "" {
		t.Errorf("Addr() = %q, want none", got)
	}
	w := httptest.NewRecorder()
	tel.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if w.Code != http.StatusOK {
		t.Errorf("Handler: status %d", w.Code)
	}
	ctx, span := tel.TracerProvider().Tracer("test").Start(remote(t), "work")
	defer span.End()
	if span.IsRecording() {
		t.Error("spans are recorded without an endpoint")
	}
	if got := trace.SpanContextFromContext(ctx).TraceID().String(); got != traceID {
		t.Errorf("trace ID = %s, want the publisher's", got)
	}
}

// receiver is an OTLP/HTTP receiver that keeps what it gets.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string][]byte // path -> bodies
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{seen: make(map[string][]byte)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen[req.URL.Path] = append(r.seen[req.URL.Path], b...)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) has(path, text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Contains(r.seen[path], []byte(text))
}

func TestOTLP(t *testing.T) {
	r := newReceiver(t)
	before := goleak.IgnoreCurrent()
	tel := setup(t, telemetry.Config{Service: "otlp-service", Version: "v9", OTLPEndpoint: r.URL + "/base/", Listen: "127.0.0.1:0"})
	c, err := tel.MeterProvider().Meter("test").Int64Counter("exported.counter")
	if err != nil {
		t.Fatal(err)
	}
	c.Add(t.Context(), 1)
	tracer := tel.TracerProvider().Tracer("test")
	_, span := tracer.Start(remote(t), "span-of-a-sampled-message")
	span.End()
	_, span = tracer.Start(t.Context(), "span-without-parent") // ratio 0
	span.End()
	get(t, tel, "/healthz")

	shutdown(t, tel) // exports
	if err := goleak.Find(before); err != nil {
		t.Errorf("after Shutdown: %v", err)
	}
	for path, texts := range map[string][]string{
		"/base/v1/metrics": {"exported.counter", "otlp-service", "v9"},
		"/base/v1/traces":  {"span-of-a-sampled-message", "otlp-service", "v9"},
	} {
		for _, text := range texts {
			if !r.has(path, text) {
				t.Errorf("%s got no %q", path, text)
			}
		}
	}
	if r.has("/base/v1/traces", "span-without-parent") {
		t.Error("an unsampled span was exported")
	}
	shutdown(t, tel) // again
	if _, err := net.DialTimeout("tcp", tel.Addr(), time.Second); err == nil {
		t.Error("still listening after Shutdown")
	}
}

func TestTraceRatioOne(t *testing.T) {
	r := newReceiver(t)
	tel := setup(t, telemetry.Config{OTLPEndpoint: r.URL, TraceRatio: 1})
	_, span := tel.TracerProvider().Tracer("test").Start(t.Context(), "root-span")
	span.End()
	shutdown(t, tel)
	if !r.has("/v1/traces", "root-span") {
		t.Error("a root span was not exported at ratio 1")
	}
}

func TestShutdownWithReceiverDown(t *testing.T) {
	r := newReceiver(t)
	r.Close()
	tel, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "s", LogWriter: io.Discard, OTLPEndpoint: r.URL})
	if err != nil {
		t.Fatal(err)
	}
	c, err := tel.MeterProvider().Meter("test").Int64Counter("c")
	if err != nil {
		t.Fatal(err)
	}
	c.Add(t.Context(), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	first := tel.Shutdown(ctx)
	if first == nil {
		t.Error("Shutdown lost metrics without an error")
	}
	if again := tel.Shutdown(context.Background()); again != first {
		t.Errorf("second Shutdown = %v, want %v", again, first)
	}
}

func TestSetupRefuses(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tests := []struct {
		name string
		c    telemetry.Config
		want string
	}{
		{"no service", telemetry.Config{}, "service name"},
		{"format", telemetry.Config{Service: "s", LogFormat: "xml"}, `"xml"`},
		{"interval", telemetry.Config{Service: "s", OTLPInterval: -1}, "interval"},
		{"ratio", telemetry.Config{Service: "s", TraceRatio: 1.1}, "ratio"},
		{"ratio NaN", telemetry.Config{Service: "s", TraceRatio: math.NaN()}, "ratio"},
		{"taken address", telemetry.Config{Service: "s", Listen: ln.Addr().String()}, "address already in use"},
		{"password", telemetry.Config{Service: "s", OTLPEndpoint: "http://user:hunter2@host"}, "credentials"},
		{"scheme", telemetry.Config{Service: "s", OTLPEndpoint: "host:4318"}, "http://"},
		{"no host", telemetry.Config{Service: "s", OTLPEndpoint: "http://"}, "http://"},
		{"malformed", telemetry.Config{Service: "s", OTLPEndpoint: "http://user:hunter2@ho st"}, "malformed"},
		{"query", telemetry.Config{Service: "s", Listen: "127.0.0.1:0", OTLPEndpoint: "http://host?token=hunter2"}, "query"},
	}
	for _, tt := range tests {
		tel, err := telemetry.Setup(t.Context(), tt.c)
		if err == nil {
			shutdown(t, tel)
			t.Errorf("%s: no error", tt.name)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %q, want one about %q without the secret", tt.name, err, tt.want)
		}
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	tel := setup(t, telemetry.Config{LogWriter: &out, LogFormat: "json", LogLevel: slog.LevelWarn})
	tel.Logger().Info("not this")
	tel.Logger().Warn("this", "route", "orders")
	var line struct{ Level, Msg, Route string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("log %q: %v", out.String(), err)
	}
	if line.Level != "WARN" || line.Msg != "this" || line.Route != "orders" {
		t.Errorf("line = %+v", line)
	}
	out.Reset()
	log, err := telemetry.NewLogger(&out, "", slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("plain text")
	if !strings.Contains(out.String(), `msg="plain text"`) {
		t.Errorf("text format wrote %q", out.String())
	}
}
