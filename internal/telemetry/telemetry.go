// Package telemetry sets up what a Keyweir process tells its operator: logs on
// stderr, metrics for Prometheus, health and readiness over HTTP, and metrics
// and traces over OTLP where an endpoint is configured.
//
// It is the only package that links the OpenTelemetry SDK and its exporters;
// all others use the OpenTelemetry API. [Setup] changes nothing global;
// [Telemetry.Install] does, for a main program.
//
//	tel, err := telemetry.Setup(ctx, telemetry.Config{Service: "keyweir-gateway", Listen: "127.0.0.1:9464"})
//	...
//	tel.Install()
//	defer tel.Shutdown(ctx)
//	tel.Readiness().Add("route orders", route.Ready)
//
// Trace context travels in NATS headers through
// [github.com/keyweir/keyweir/internal/telemetry/tracecarrier].
package telemetry

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// shutdownTimeout bounds Shutdown when its context has no deadline.
const shutdownTimeout = 10 * time.Second

// Config says what to tell and where. It holds no secrets: OTLP request headers
// (tokens) come from OTEL_EXPORTER_OTLP_HEADERS, which the exporters read.
type Config struct {
	// Service is the resource attribute service.name. Required.
	Service string
	// Version is service.version. Optional.
	Version string
	// Instance is service.instance.id. Zero: a random one per process.
	Instance string

	// LogWriter takes the log. Nil: stderr.
	LogWriter io.Writer
	// LogFormat is "text" or "json". Zero: text.
	LogFormat string
	// LogLevel is the least level that is written. Zero: info.
	LogLevel slog.Level

	// Listen is the address, host:port, of /metrics, /healthz and /readyz. Port 0
	// is a free one. Zero: not served.
	Listen string

	// OTLPEndpoint is the base URL of an OTLP/HTTP receiver, for instance
	// http://127.0.0.1:4318; v1/metrics and v1/traces are appended. Zero: no
	// OTLP, and spans are neither recorded nor sent, but trace context passes.
	OTLPEndpoint string
	// OTLPInterval is the time between two exports of metrics. Zero: 30 s;
	// negative is an error.
	OTLPInterval time.Duration
	// OTLPTLS configures https endpoints. Nil: the system's roots.
	OTLPTLS *tls.Config
	// TraceRatio is the share, 0 to 1, of new traces that are sampled; a trace
	// that comes with a message keeps its publisher's decision. Zero: none.
	TraceRatio float64
}

func (c Config) interval() time.Duration {
	if c.OTLPInterval == 0 {
		return 30 * time.Second
	}
	return c.OTLPInterval
}

func (c Config) check() error {
	if c.Service == "" {
		return errors.New("setting up telemetry: no service name")
	}
	if c.OTLPInterval < 0 {
		return errors.New("setting up telemetry: negative OTLP interval")
	}
	if !(c.TraceRatio >= 0 && c.TraceRatio <= 1) {
		return fmt.Errorf("setting up telemetry: trace ratio %v is not between 0 and 1", c.TraceRatio)
	}
	return nil
}

// Telemetry is what Setup made. Its methods are safe for concurrent use.
type Telemetry struct {
	log       *slog.Logger
	registry  *prometheus.Registry
	meters    *sdkmetric.MeterProvider
	tracers   trace.TracerProvider
	readiness Readiness
	handler   http.Handler
	server    *httpServer   // nil if nothing is served
	otlp      *otlpPipeline // nil without an endpoint

	stopOnce sync.Once
	stopErr  error // set once, by stopOnce
}

// Setup builds logger, meters and tracers and starts serving. ctx covers the
// set-up only. An OTLP endpoint that does not answer is no error: exports are
// tried again and failures logged.
func Setup(ctx context.Context, c Config) (*Telemetry, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	w := c.LogWriter
	if w == nil {
		w = os.Stderr
	}
	log, err := NewLogger(w, c.LogFormat, c.LogLevel)
	if err != nil {
		return nil, fmt.Errorf("setting up telemetry: %w", err)
	}
	t := &Telemetry{log: log, tracers: noop.NewTracerProvider()}
	var ln net.Listener
	if c.Listen != "" {
		if ln, err = net.Listen("tcp", c.Listen); err != nil {
			return nil, fmt.Errorf("serving metrics: %w", err)
		}
	}
	if err := t.build(ctx, c); err != nil {
		if ln != nil {
			err = errors.Join(err, ln.Close())
		}
		return nil, err
	}
	if ln != nil {
		t.server = serve(ln, t.handler, log)
	}
	return t, nil
}

// build makes meters, tracers and the HTTP handler.
func (t *Telemetry) build(ctx context.Context, c Config) (err error) {
	res := c.resource()
	options := append(meterOptions(), sdkmetric.WithResource(res))
	var reader sdkmetric.Reader
	if t.registry, reader, err = newRegistry(); err != nil {
		return fmt.Errorf("setting up metrics: %w", err)
	}
	options = append(options, sdkmetric.WithReader(reader))
	if c.OTLPEndpoint != "" {
		if t.otlp, err = newOTLP(ctx, c, res); err != nil {
			return fmt.Errorf("setting up OTLP export: %w", err)
		}
		options = append(options, sdkmetric.WithReader(t.otlp.reader))
		t.tracers = t.otlp.tracers
	}
	t.meters = sdkmetric.NewMeterProvider(options...)
	t.handler = newHandler(t.registry, &t.readiness)
	return nil
}

func (c Config) resource() *resource.Resource {
	id := c.Instance
	if id == "" {
		id = rand.Text()
	}
	attrs := resource.NewWithAttributes(semconv.SchemaURL,
		semconv.ServiceName(c.Service), semconv.ServiceInstanceID(id))
	if c.Version == "" {
		return attrs
	}
	// Two resources of one schema merge without error.
	merged, _ := resource.Merge(attrs, resource.NewWithAttributes(semconv.SchemaURL, semconv.ServiceVersion(c.Version)))
	return merged
}

// Logger writes to the configured log.
func (t *Telemetry) Logger() *slog.Logger { return t.log }

// MeterProvider feeds /metrics and OTLP. Histograms in seconds and bytes get
// buckets that fit, see [SecondsBuckets] and [BytesBuckets].
func (t *Telemetry) MeterProvider() metric.MeterProvider { return t.meters }

// TracerProvider records spans if there is an OTLP endpoint; without one its
// spans only carry the context they were started from.
func (t *Telemetry) TracerProvider() trace.TracerProvider { return t.tracers }

// Propagator reads and writes W3C traceparent and tracestate. It does not pass
// baggage: what a publisher puts there is none of our business.
func (t *Telemetry) Propagator() propagation.TextMapPropagator { return propagation.TraceContext{} }

// Registry holds the Prometheus collectors.
func (t *Telemetry) Registry() *prometheus.Registry { return t.registry }

// Readiness collects the reasons not to be ready.
func (t *Telemetry) Readiness() *Readiness { return &t.readiness }

// Handler serves /metrics, /healthz and /readyz, whether or not it is listened to.
func (t *Telemetry) Handler() http.Handler { return t.handler }

// Addr is the host:port that is served, with the real port; "" if none is.
func (t *Telemetry) Addr() string {
	if t.server == nil {
		return ""
	}
	return t.server.addr
}

// Install makes this the process's telemetry: the default slog logger and the
// global OpenTelemetry providers, propagator and error handler. For main
// programs only.
func (t *Telemetry) Install() {
	slog.SetDefault(t.log)
	otel.SetMeterProvider(t.meters)
	otel.SetTracerProvider(t.tracers)
	otel.SetTextMapPropagator(t.Propagator())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		t.log.Warn("exporting telemetry", "error", err)
	}))
}

// Shutdown exports what is pending, stops serving and ends every goroutine of
// this package, within ctx and 10 s at most if ctx has no deadline. Later calls
// return the first one's result.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	t.stopOnce.Do(func() {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, shutdownTimeout)
			defer cancel()
		}
		errs := []error{t.meters.Shutdown(ctx)}
		if tp, ok := t.tracers.(*sdktrace.TracerProvider); ok {
			errs = append(errs, tp.Shutdown(ctx))
		}
		if t.otlp != nil {
			t.otlp.client.CloseIdleConnections()
		}
		if t.server != nil {
			errs = append(errs, t.server.close(ctx))
		}
		if err := errors.Join(errs...); err != nil {
			t.stopErr = fmt.Errorf("shutting down telemetry: %w", err)
		}
	})
	return t.stopErr
}
