package gateway

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

const instrumentation = "github.com/keyweir/keyweir/gateway"

// instruments are what all routes of one gateway report to.
type instruments struct {
	messages, bytes, keys, refusals, missing, attempts, letters metric.Int64Counter
	sealTime, publishTime                                       metric.Float64Histogram
}

func newInstruments(p metric.MeterProvider) (*instruments, metric.Meter, error) {
	if p == nil {
		p = noop.NewMeterProvider()
	}
	m := p.Meter(instrumentation)
	var i instruments
	counters := []struct {
		to               *metric.Int64Counter
		name, unit, text string
	}{
		{&i.messages, "keyweir.gateway.messages", "{message}", "Messages sealed and handed to the sealed stream."},
		{&i.bytes, "keyweir.gateway.bytes", "By", "Payload bytes sealed."},
		{&i.keys, "keyweir.gateway.key.requests", "{request}", "Session grants asked for, by result."},
		{&i.refusals, "keyweir.gateway.refusals", "{refusal}", "Attempts that ended because another writer was first."},
		{&i.missing, "keyweir.gateway.source.lost", "{message}", "Source messages removed by limits before they were sealed."},
		{&i.letters, "keyweir.gateway.dead_letters", "{message}", "Messages that could not be sealed as they are, parked as dead letters, by reason."},
		{&i.attempts, "keyweir.gateway.restarts", "{restart}", "Attempts that ended with an error and were begun again."},
	}
	for _, c := range counters {
		var err error
		if *c.to, err = m.Int64Counter(c.name, metric.WithUnit(c.unit), metric.WithDescription(c.text)); err != nil {
			return nil, nil, fmt.Errorf("creating counter %s: %w", c.name, err)
		}
	}
	var err error
	if i.sealTime, err = m.Float64Histogram("keyweir.gateway.seal.duration", metric.WithUnit("s"),
		metric.WithDescription("Time to seal one message; one of each batch is measured.")); err != nil {
		return nil, nil, fmt.Errorf("creating histogram: %w", err)
	}
	if i.publishTime, err = m.Float64Histogram("keyweir.gateway.publish.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from publishing to the acknowledgement; one message at a time is measured.")); err != nil {
		return nil, nil, fmt.Errorf("creating histogram: %w", err)
	}
	return &i, m, nil
}

// observe reports what is only looked at when somebody asks.
func (g *Gateway) observe(m metric.Meter) error {
	lag, err := m.Int64ObservableGauge("keyweir.gateway.lag", metric.WithUnit("{message}"), metric.WithDescription("Source messages not yet sealed, as last seen."))
	if err != nil {
		return fmt.Errorf("creating gauge: %w", err)
	}
	backlog, err := m.Int64ObservableGauge("keyweir.gateway.backlog", metric.WithUnit("{message}"), metric.WithDescription("Source messages that waited when the route began to catch up; 0 while it keeps up."))
	if err != nil {
		return fmt.Errorf("creating gauge: %w", err)
	}
	scopesHeld, err := m.Int64ObservableGauge("keyweir.gateway.held.scopes", metric.WithUnit("{scope}"), metric.WithDescription("Scopes without a key whose messages are held."))
	if err != nil {
		return fmt.Errorf("creating gauge: %w", err)
	}
	held, err := m.Int64ObservableGauge("keyweir.gateway.held.messages", metric.WithUnit("{message}"), metric.WithDescription("Messages that wait in the hold stream."))
	if err != nil {
		return fmt.Errorf("creating gauge: %w", err)
	}
	state, err := m.Int64ObservableGauge("keyweir.gateway.state", metric.WithUnit("{state}"), metric.WithDescription("1 for the state the route is in."))
	if err != nil {
		return fmt.Errorf("creating gauge: %w", err)
	}
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, s := range g.Stats() {
			route := metric.WithAttributes(s.attributes()...)
			o.ObserveInt64(lag, int64(s.Lag), route)
			o.ObserveInt64(backlog, int64(s.Backlog), route)
			o.ObserveInt64(scopesHeld, int64(s.ScopesHeld), route)
			o.ObserveInt64(held, int64(s.MessagesHeld), route)
			o.ObserveInt64(state, 1, metric.WithAttributes(append(s.attributes(), attribute.String("state", s.State.String()))...))
		}
		return nil
	}, lag, backlog, scopesHeld, held, state)
	if err != nil {
		return fmt.Errorf("registering gauges: %w", err)
	}
	return g.observeIngest(m)
}

// routeMetrics reports for one route. Attribute sets are made once.
type routeMetrics struct {
	i          *instruments
	attributes []attribute.KeyValue
	route      metric.MeasurementOption
	ok, failed metric.MeasurementOption
}

func newRouteMetrics(i *instruments, route ...attribute.KeyValue) *routeMetrics {
	with := func(result string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(append(slices.Clone(route), attribute.String("result", result))...))
	}
	return &routeMetrics{
		i: i, attributes: route, route: metric.WithAttributeSet(attribute.NewSet(route...)),
		ok: with("ok"), failed: with("error"),
	}
}

func (m *routeMetrics) sealed(messages, bytes int) {
	m.i.messages.Add(context.Background(), int64(messages), m.route)
	m.i.bytes.Add(context.Background(), int64(bytes), m.route)
}

func (m *routeMetrics) sealTook(d time.Duration) {
	m.i.sealTime.Record(context.Background(), d.Seconds(), m.route)
}

func (m *routeMetrics) publishTook(d time.Duration) {
	m.i.publishTime.Record(context.Background(), d.Seconds(), m.route)
}

func (m *routeMetrics) refreshed(n int, err error) {
	o := m.ok
	if err != nil {
		o = m.failed
	}
	m.i.keys.Add(context.Background(), int64(n), o)
}

func (m *routeMetrics) fenced()       { m.i.refusals.Add(context.Background(), 1, m.route) }
func (m *routeMetrics) restarted()    { m.i.attempts.Add(context.Background(), 1, m.route) }
func (m *routeMetrics) lost(n uint64) { m.i.missing.Add(context.Background(), int64(n), m.route) }

func (m *routeMetrics) parked(reason string) {
	m.i.letters.Add(context.Background(), 1, metric.WithAttributes(append(slices.Clone(m.attributes), attribute.String("reason", reason))...))
}

// timesSeal and timesPublish say whether anybody reads the histograms.
func (m *routeMetrics) timesSeal() bool    { return m.i.sealTime.Enabled(context.Background()) }
func (m *routeMetrics) timesPublish() bool { return m.i.publishTime.Enabled(context.Background()) }
