package gateway_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/keyweir/keyweir/gateway"
)

// Whoever was taken before the shutdown is answered: with an acknowledgement if its
// key comes in time, with an error if not. Whoever comes later is not taken.
func TestIngestDrain(t *testing.T) {
	t.Parallel()
	for _, inTime := range []bool{true, false} {
		f, _ := newIngest(t)
		f.route.Ingest.KeyWait = time.Minute
		f.tune.Drain = 10 * time.Second
		if !inTime {
			f.tune.Drain = 300 * time.Millisecond
		}
		keys := &gatedKeys{f.keys, "in.b.x", make(chan struct{})}
		run := f.startWith(func(c *gateway.Config) { c.Keys = keys })
		run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
		nc := f.srv.Conn(t)
		sub, err := nc.SubscribeSync("answer")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := nc.PublishRequest("in.b.x", "answer", []byte("waits")); err != nil {
				t.Fatal(err)
			}
		}
		run.eventually("waits", func(s gateway.RouteStats) bool { return s.Ingest.Waiting == 3 })
		run.cancel()
		// It left the queue group: others are told so at once.
		deadline := time.Now().Add(5 * time.Second)
		for {
			_, err := nc.Request("in.a.x", nil, 100*time.Millisecond)
			if err == nats.ErrNoResponders {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("request after the shutdown began: %v", err)
			}
		}
		if inTime {
			close(keys.gate)
		}
		for range 3 {
			m, err := sub.NextMsg(5 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			a := decodeAnswer(t, m.Data)
			if inTime && (a.Error != nil || a.Sequence == 0) || !inTime && (a.Error == nil || int(a.Error.ErrorCode) != gateway.RefusalCode+int(gateway.RefusedKey)) {
				t.Errorf("answer with the key in time %v: %s", inTime, m.Data)
			}
		}
		if err := run.stop(); err != nil {
			t.Error(err)
		}
		if s := run.stats(); s.State != gateway.StateIdle || s.Ingest.Waiting != 0 {
			t.Errorf("after the shutdown: %v, %+v", s.State, s.Ingest)
		}
	}
}

func TestIngestMetrics(t *testing.T) {
	t.Parallel()
	f, js := newIngest(t)
	reader := metric.NewManualReader()
	mp := metric.NewMeterProvider(metric.WithReader(reader))
	defer mp.Shutdown(context.Background())
	run := f.startWith(func(c *gateway.Config) { c.MeterProvider = mp })
	run.eventually("running", func(s gateway.RouteStats) bool { return s.State == gateway.StateRunning })
	for range 5 {
		mustPublish(t, js, "in.a.x", "four")
	}
	_, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a.x", Header: nats.Header{"Nats-Incr": {"1"}}})
	refusedWith(t, err, gateway.RefusedHeader)
	if err := f.srv.Conn(t).PublishMsg(&nats.Msg{Subject: "in.a.x", Header: nats.Header{"Nats-Incr": {"1"}}}); err != nil {
		t.Fatal(err)
	}
	run.eventually("dropped", func(s gateway.RouteStats) bool { return s.Ingest.Dropped[gateway.RefusedHeader] == 1 })
	if err := run.stop(); err != nil { // reports the last batch
		t.Fatal(err)
	}
	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	values := make(map[string]int64)
	for _, sm := range got.ScopeMetrics {
		for _, m := range sm.Metrics {
			if d, ok := m.Data.(metricdata.Sum[int64]); ok {
				for _, p := range d.DataPoints {
					reason, _ := p.Attributes.Value("reason")
					values[m.Name+" "+reason.AsString()] += p.Value
				}
			}
		}
	}
	for name, want := range map[string]int64{
		"keyweir.gateway.ingest.received ": 7, "keyweir.gateway.ingest.refused header": 1, "keyweir.gateway.ingest.dropped header": 1,
		"keyweir.gateway.ingest.dropped full": 0, "keyweir.gateway.ingest.overrun ": 0, "keyweir.gateway.messages ": 5, "keyweir.gateway.bytes ": 20,
	} {
		if v, ok := values[name]; !ok || v != want {
			t.Errorf("%s = %d (there: %v), want %d", name, v, ok, want)
		}
	}
}
