package tracecarrier_test

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyweir/keyweir/internal/telemetry/tracecarrier"
)

const (
	traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tracestate  = "vendor=1"
)

func TestRoundTrip(t *testing.T) {
	prop := propagation.TraceContext{}
	in := nats.Header{"traceparent": {traceparent}, "tracestate": {tracestate}, "X": {"y"}}
	ctx := prop.Extract(context.Background(), tracecarrier.HeaderCarrier(in))
	if !trace.SpanContextFromContext(ctx).IsRemote() {
		t.Fatal("nothing extracted")
	}
	out := nats.Header{}
	prop.Inject(ctx, tracecarrier.HeaderCarrier(out))
	want := nats.Header{"traceparent": {traceparent}, "tracestate": {tracestate}}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("injected: %s", diff)
	}
}

func TestCanonicalNames(t *testing.T) {
	prop := propagation.TraceContext{}
	h := nats.Header{"Traceparent": {traceparent}}
	ctx := prop.Extract(context.Background(), tracecarrier.HeaderCarrier(h))
	if !trace.SpanContextFromContext(ctx).IsValid() {
		t.Error("a publisher's Traceparent was not read")
	}
	// The exact name wins, and writing leaves one.
	h["traceparent"] = []string{"00-00000000000000000000000000000001-0000000000000001-00"}
	c := tracecarrier.HeaderCarrier(h)
	if got := c.Get("traceparent"); got != h["traceparent"][0] {
		t.Errorf("Get = %q, want the exact name's value", got)
	}
	prop.Inject(ctx, c)
	if diff := cmp.Diff(nats.Header{"traceparent": {traceparent}}, h); diff != "" {
		t.Errorf("after Inject: %s", diff)
	}
}

func TestReading(t *testing.T) {
	c := tracecarrier.HeaderCarrier{"a": {"1", "2"}, "empty": {}}
	if got := c.Get("a"); got != "1" {
		t.Errorf("Get(a) = %q", got)
	}
	if got := c.Values("a"); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("Values(a) = %q", got)
	}
	if got := c.Get("empty"); got != "" {
		t.Errorf("Get(empty) = %q", got)
	}
	keys := c.Keys()
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"a", "empty"}) {
		t.Errorf("Keys() = %q", keys)
	}
	var none tracecarrier.HeaderCarrier
	if none.Get("a") != "" || none.Values("a") != nil || len(none.Keys()) != 0 {
		t.Error("a nil header has values")
	}
}
