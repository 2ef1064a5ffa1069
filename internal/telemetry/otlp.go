package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// exportTimeout bounds one HTTP request to the receiver.
const exportTimeout = 10 * time.Second

// otlpPipeline sends metrics and traces to one receiver through one client of
// its own, so that its connections end with it.
type otlpPipeline struct {
	client  *http.Client
	reader  sdkmetric.Reader
	tracers *sdktrace.TracerProvider
}

func newOTLP(ctx context.Context, c Config, res *resource.Resource) (*otlpPipeline, error) {
	base, err := endpointURL(c.OTLPEndpoint)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     c.OTLPTLS.Clone(),
		TLSHandshakeTimeout: exportTimeout,
		ForceAttemptHTTP2:   true,
		IdleConnTimeout:     90 * time.Second,
	}
	p := &otlpPipeline{client: &http.Client{Transport: transport, Timeout: exportTimeout}}
	metrics, err := otlpmetrichttp.New(ctx,
		otlpmetrichttp.WithEndpointURL(base.JoinPath("v1", "metrics").String()),
		otlpmetrichttp.WithHTTPClient(p.client))
	if err != nil {
		return nil, fmt.Errorf("creating metric exporter: %w", err)
	}
	traces, err := otlptracehttp.New(ctx,
		otlptracehttp.WithEndpointURL(base.JoinPath("v1", "traces").String()),
		otlptracehttp.WithHTTPClient(p.client))
	if err != nil {
		return nil, fmt.Errorf("creating trace exporter: %w", err)
	}
	p.reader = sdkmetric.NewPeriodicReader(metrics, sdkmetric.WithInterval(c.interval()))
	p.tracers = sdktrace.NewTracerProvider(
		sdktrace.WithResource(res),
		sdktrace.WithBatcher(traces),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.TraceRatio))),
	)
	return p, nil
}

// endpointURL checks the base URL. Its errors do not repeat it: a URL may hold a
// password, which is refused.
func endpointURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("malformed endpoint URL")
	case u.User != nil:
		return nil, errors.New("endpoint URL holds credentials: use OTEL_EXPORTER_OTLP_HEADERS")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, errors.New("endpoint URL must be http://host:port or https://host:port")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("endpoint URL has a query or a fragment")
	}
	return u, nil
}
