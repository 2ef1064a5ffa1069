package keyserver

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics counts. No key bytes, subjects, scopes or principals become labels:
// they are unbounded, and some are nobody's business.
type metrics struct {
	requests metric.Int64Counter
	latency  metric.Float64Histogram
	refused  metric.Int64Counter
	calls    metric.Int64Counter
	callTime metric.Float64Histogram
	lookups  metric.Int64Counter

	// What status reports.
	hits, misses             atomic.Uint64
	authCalls, authErrors    atomic.Uint64
	created                  atomic.Uint64 // data keys since start
	gauges                   metric.Registration
	queueDepth, staleSeconds func() float64
}

func newMetrics(m metric.Meter, queueDepth, staleSeconds func() float64) (*metrics, error) {
	x := &metrics{queueDepth: queueDepth, staleSeconds: staleSeconds}
	var err error
	try := func(e error) {
		if err == nil {
			err = e
		}
	}
	var e error
	x.requests, e = m.Int64Counter("keyweir.keysvc.requests",
		metric.WithDescription("Verified requests by operation and outcome."))
	try(e)
	x.latency, e = m.Float64Histogram("keyweir.keysvc.request.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from the pool taking a request to its reply."))
	try(e)
	x.refused, e = m.Int64Counter("keyweir.keysvc.requests.refused",
		metric.WithDescription("Requests that did not verify, or met a full queue, by reason."))
	try(e)
	x.calls, e = m.Int64Counter("keyweir.keysvc.authority.calls",
		metric.WithDescription("Calls to authorities by authority, call and outcome."))
	try(e)
	x.callTime, e = m.Float64Histogram("keyweir.keysvc.authority.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of calls to authorities."))
	try(e)
	x.lookups, e = m.Int64Counter("keyweir.keysvc.cache.lookups",
		metric.WithDescription("Keys asked for, by whether an authority had to be asked."))
	try(e)
	depth, e := m.Float64ObservableGauge("keyweir.keysvc.queue.depth",
		metric.WithDescription("Requests waiting for a worker."))
	try(e)
	stale, e := m.Float64ObservableGauge("keyweir.keysvc.stale.remaining", metric.WithUnit("s"),
		metric.WithDescription("Least time left for opening before an unreachable authority stops a managed key; absent while all answer."))
	try(e)
	if err != nil {
		return nil, err
	}
	x.gauges, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveFloat64(depth, x.queueDepth())
		if left := x.staleSeconds(); left >= 0 {
			o.ObserveFloat64(stale, left)
		}
		return nil
	}, depth, stale)
	return x, err
}

func (x *metrics) close() {
	if x.gauges != nil {
		_ = x.gauges.Unregister()
	}
}

func (x *metrics) request(op, outcome string, d time.Duration) {
	ctx := context.Background()
	x.requests.Add(ctx, 1, metric.WithAttributes(attribute.String("op", op), attribute.String("outcome", outcome)))
	x.latency.Record(ctx, d.Seconds(), metric.WithAttributes(attribute.String("op", op)))
}

func (x *metrics) refuse(op, reason string) {
	x.refused.Add(context.Background(), 1, metric.WithAttributes(attribute.String("op", op), attribute.String("reason", reason)))
}

func (x *metrics) call(authority, call, outcome string, d time.Duration) {
	ctx := context.Background()
	x.authCalls.Add(1)
	if outcome != "ok" {
		x.authErrors.Add(1)
	}
	x.calls.Add(ctx, 1, metric.WithAttributes(
		attribute.String("authority", authority), attribute.String("call", call), attribute.String("outcome", outcome)))
	x.callTime.Record(ctx, d.Seconds(), metric.WithAttributes(attribute.String("authority", authority), attribute.String("call", call)))
}

// lookup counts one key asked for; hit means that no authority was in the way.
func (x *metrics) lookup(hit bool) {
	result := "miss"
	if hit {
		result = "hit"
		x.hits.Add(1)
	} else {
		x.misses.Add(1)
	}
	x.lookups.Add(context.Background(), 1, metric.WithAttributes(attribute.String("result", result)))
}
