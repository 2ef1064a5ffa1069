// Package tracecarrier carries OpenTelemetry context in NATS message headers. It
// links the OpenTelemetry API only, so that libraries can use it.
package tracecarrier

import (
	"net/textproto"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/propagation"
)

// HeaderCarrier lets a propagator read and write a nats.Header, the same one for
// both directions:
//
//	ctx = propagator.Extract(ctx, tracecarrier.HeaderCarrier(msg.Header))
//	propagator.Inject(ctx, tracecarrier.HeaderCarrier(out.Header))
//
// NATS header names are case-sensitive. Names are written as the propagator says,
// which is lower case for W3C ("traceparent"); the form that net/http gives them
// ("Traceparent"), in which many publishers send them, is read where the exact
// name is missing, and replaced on writing. A nil header can be read, not written.
type HeaderCarrier nats.Header

var (
	_ propagation.TextMapCarrier = HeaderCarrier(nil)
	_ propagation.ValuesGetter   = HeaderCarrier(nil)
)

// Get returns the first value of key, "" if there is none.
func (c HeaderCarrier) Get(key string) string {
	if v := c.Values(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Values returns all values of key. The caller must not change them.
func (c HeaderCarrier) Values(key string) []string {
	if v, ok := c[key]; ok {
		return v
	}
	return c[textproto.CanonicalMIMEHeaderKey(key)]
}

// Set replaces all values of key.
func (c HeaderCarrier) Set(key, value string) {
	delete(c, textproto.CanonicalMIMEHeaderKey(key))
	c[key] = []string{value}
}

// Keys returns the names present, in no order.
func (c HeaderCarrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}
