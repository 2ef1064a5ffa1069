package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
)

// maxSeries bounds the attribute sets of one instrument; more go into a series
// marked otel.metric.overflow.
const maxSeries = 2000

// SecondsBuckets returns the bucket bounds of histograms with unit "s": 1 µs,
// sealing a small message, to 30 s, a KMS on its last retry.
func SecondsBuckets() []float64 {
	return []float64{
		1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4,
		1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
	}
}

// BytesBuckets returns the bucket bounds of histograms with unit "By": 64 B to
// 8 MiB, the largest payload a NATS server sensibly takes.
func BytesBuckets() []float64 {
	return []float64{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20}
}

func meterOptions() []sdkmetric.Option {
	buckets := func(unit string, bounds []float64) sdkmetric.View {
		return sdkmetric.NewView(
			sdkmetric.Instrument{Name: "*", Kind: sdkmetric.InstrumentKindHistogram, Unit: unit},
			sdkmetric.Stream{Aggregation: sdkmetric.AggregationExplicitBucketHistogram{Boundaries: bounds}},
		)
	}
	return []sdkmetric.Option{
		sdkmetric.WithCardinalityLimit(maxSeries),
		sdkmetric.WithView(buckets("s", SecondsBuckets()), buckets("By", BytesBuckets())),
	}
}

// newRegistry returns a registry with the Go runtime's and the process's
// collectors and the reader that puts our instruments into it.
func newRegistry() (*prometheus.Registry, sdkmetric.Reader, error) {
	r := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := r.Register(c); err != nil {
			return nil, nil, err
		}
	}
	reader, err := otelprom.New(otelprom.WithRegisterer(r), otelprom.WithoutScopeInfo())
	if err != nil {
		return nil, nil, err
	}
	return r, reader, nil
}
