package keyserver_test

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/keyweir/keyweir/keysvc"
)

// TestMetrics: what is counted, and that no label is unbounded.
func TestMetrics(t *testing.T) {
	reader := metric.NewManualReader()
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	w := newWorld(t, func(w *world) { w.cfg.Meter = provider.Meter("keyserver") })
	ctx := context.Background()
	id := w.generate("both", "orders.acme.1", "invoices.1")[0].Grant.KeyID()
	if _, err := w.client("both").OpenKeys(ctx, []keysvc.Record{{KeyID: id}}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.client("stranger").Status(ctx)
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(ctx, &rm); err != nil {
		t.Fatal(err)
	}
	sums := map[string]int64{}
	labels := map[string]bool{}
	for _, scope := range rm.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Description == "" {
				t.Errorf("%s has no description", m.Name)
			}
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					sums[m.Name] += p.Value
					for _, kv := range p.Attributes.ToSlice() {
						labels[string(kv.Key)+"="+kv.Value.AsString()] = true
					}
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					sums[m.Name] += int64(p.Count)
				}
			case metricdata.Gauge[float64]:
				sums[m.Name] += int64(len(d.DataPoints))
			}
		}
	}
	for name, want := range map[string]int64{
		"keyweir.keysvc.requests": 2, "keyweir.keysvc.request.duration": 2, "keyweir.keysvc.requests.refused": 1,
		"keyweir.keysvc.cache.lookups": 2, "keyweir.keysvc.queue.depth": 1, "keyweir.keysvc.stale.remaining": 0,
	} {
		if sums[name] != want {
			t.Errorf("%s = %d, want %d", name, sums[name], want)
		}
	}
	if n := sums["keyweir.keysvc.authority.calls"]; n < 2 || n > 4 {
		t.Errorf("authority calls = %d, want 2 to 4", n)
	}
	allowed := map[string]bool{}
	for _, l := range []string{
		"op=generate", "op=open", "op=status", "outcome=ok", "outcome=partial", "reason=denied", "result=hit", "result=miss",
		"authority=a", "call=generate", "call=unwrap", "call=wrap",
	} {
		allowed[l] = true
	}
	for l := range labels {
		if !allowed[l] {
			t.Errorf("unexpected label %s", l)
		}
	}
}
