package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"

	"github.com/keyweir/keyweir/internal/telemetry"
)

const (
	traceID     = "0af7651916cd43dd8448eb211c80319c"
	traceparent = "00-" + traceID + "-b7ad6b7169203331-01"
)

// remote returns a context with the sampled span of a publisher.
func remote(t *testing.T) context.Context {
	return propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": traceparent})
}

func attr(i int) attribute.KeyValue { return attribute.Int("n", i) }

// TestInstall is the only test that changes what is global.
func TestInstall(t *testing.T) {
	previous := slog.Default()
	defer slog.SetDefault(previous)
	var out bytes.Buffer
	tel := setup(t, telemetry.Config{LogWriter: &out})
	tel.Install()
	slog.Info("through the default logger")
	otel.Handle(errors.New("an export that failed"))
	for _, want := range []string{"through the default logger", "an export that failed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %q: %s", want, out.String())
		}
	}
	c, err := otel.Meter("test").Int64Counter("global.counter")
	if err != nil {
		t.Fatal(err)
	}
	c.Add(t.Context(), 1)
	families, err := tel.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		found = found || f.GetName() == "global_counter_total"
	}
	if !found {
		t.Error("the global meter does not feed the registry")
	}
	carrier := propagation.MapCarrier{}
	otel.GetTextMapPropagator().Inject(remote(t), carrier)
	if carrier["traceparent"] != traceparent {
		t.Errorf("the global propagator wrote %v", carrier)
	}
	if got := otel.GetTextMapPropagator().Fields(); len(got) != 2 {
		t.Errorf("the propagator writes %v, want traceparent and tracestate only", got)
	}
}
