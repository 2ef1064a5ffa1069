package gateway_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/keyweir/keyweir/gateway"
)

// startWith runs a gateway with a changed configuration.
func (f *fixture) startWith(change func(*gateway.Config)) *running {
	f.t.Helper()
	cfg := gateway.Config{Routes: []gateway.Route{f.route}, Keys: f.keys, Logger: f.log}
	change(&cfg)
	g, err := gateway.New(cfg)
	if err != nil {
		f.t.Fatalf("New: %v", err)
	}
	return f.run(g)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{MaxMsgs: 100})
	f.sealSome(1)
	f.publish(2, 201) // 102.. are left
	f.route.Source.OnSourceGap = gateway.GapContinue
	reader := metric.NewManualReader()
	mp := metric.NewMeterProvider(metric.WithReader(reader))
	defer mp.Shutdown(context.Background())
	run := f.startWith(func(c *gateway.Config) { c.MeterProvider = mp })
	run.eventually("sealed", func(s gatewayStats) bool { return s.Position == 201 })
	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, sm := range got.ScopeMetrics {
		for _, m := range sm.Metrics {
			if m.Description == "" || m.Unit == "" {
				t.Errorf("%s has description %q and unit %q", m.Name, m.Description, m.Unit)
			}
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					values[m.Name] += float64(p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range d.DataPoints {
					state, _ := p.Attributes.Value("state")
					values[m.Name+state.AsString()] += float64(p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					values[m.Name] += float64(p.Count)
					if p.Sum <= 0 || p.Sum > 60 {
						t.Errorf("%s sums up to %v s", m.Name, p.Sum)
					}
				}
			}
		}
	}
	for name, want := range map[string]float64{
		"keyweir.gateway.messages": 100, "keyweir.gateway.source.lost": 100, "keyweir.gateway.key.requests": 7,
		"keyweir.gateway.lag": 0, "keyweir.gateway.staterunning": 1,
	} {
		if v, ok := values[name]; !ok || v != want {
			t.Errorf("%s = %v, want %v", name, v, want)
		}
	}
	if values["keyweir.gateway.bytes"] != 100*4 {
		t.Errorf("bytes = %v, want 400", values["keyweir.gateway.bytes"])
	}
	for _, name := range []string{"keyweir.gateway.seal.duration", "keyweir.gateway.publish.duration"} {
		if values[name] < 1 || values[name] > 100 {
			t.Errorf("%s has %v samples, want a few", name, values[name])
		}
	}
}

// With tracing on, the trace of the publisher goes on in the sealed message; the
// parent is the gateway's own span.
func TestTraceContext(t *testing.T) {
	t.Parallel()
	before := otel.GetTextMapPropagator()
	otel.SetTextMapPropagator(propagation.TraceContext{})
	defer otel.SetTextMapPropagator(before)
	spans := tracetest.NewInMemoryExporter()
	tp := trace.NewTracerProvider(trace.WithSyncer(spans))
	defer tp.Shutdown(context.Background())

	f := newFixture(t, jetstream.StreamConfig{})
	const traceID, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	in := nats.Header{"Traceparent": {"00-" + traceID + "-" + parent + "-01"}}
	if _, err := f.js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a.x", Header: in}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.js.Publish(t.Context(), "in.a.x", nil); err != nil {
		t.Fatal(err)
	}
	run := f.startWith(func(c *gateway.Config) { c.TracerProvider = tp })
	f.sealedCount(2, 10*time.Second)
	run.stop()
	got := f.open()
	first, second := got[0].header.Get("traceparent"), got[1].header.Get("traceparent")
	if !strings.HasPrefix(first, "00-"+traceID+"-") || strings.Contains(first, parent) {
		t.Errorf("traceparent = %q, want the trace %s under a span of the gateway's", first, traceID)
	}
	if second == "" || strings.Contains(second, traceID) {
		t.Errorf("traceparent of an untraced message = %q, want a trace of its own", second)
	}
	if n := len(spans.GetSpans()); n != 2 {
		t.Errorf("%d spans, want 2", n)
	}
	if h := got[0].meta.Headers; len(h) != 1 || h[0].Value != in.Get("Traceparent") {
		t.Errorf("sealed headers %v", h)
	}
}

// One route's stop does not touch the others.
func TestRoutesAreIndependent(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	f.create(jetstream.StreamConfig{Name: "IN2", Subjects: []string{"second.>"}})
	bad := f.route
	bad.Name, bad.Source.Stream, bad.Source.Subjects, bad.Sealed.Stream = "bad", "NONE", []string{"none.>"}, "SEALED2"
	run := f.startWith(func(c *gateway.Config) { c.Routes = append(c.Routes, bad) })
	f.publish(1, 10)
	f.sealedCount(10, 10*time.Second)
	s := run.g.Stats()
	if s[0].Name != "r" || s[0].State != gateway.StateRunning || s[1].Name != "bad" || s[1].State != gateway.StateStopped || s[1].LastError == nil {
		t.Errorf("stats: %+v", s)
	}
	if err := run.stop(); err == nil || !strings.Contains(err.Error(), "route bad: ") || strings.Contains(err.Error(), "route r: ") {
		t.Errorf("Run = %v, want the error of route bad alone", err)
	}
}
