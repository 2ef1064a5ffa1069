package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/telemetry/tracecarrier"
)

// outgoing is one sealed message on its way. It is valid until the next one is
// sealed: engines copy what they keep.
type outgoing struct {
	subject   string
	data      []byte
	clear     nats.Header // headers in clear besides the engine's own; nil if none
	source    uint64      // sequence; with own set, up to which the source is sealed or held
	previous  uint64      // source sequence of the message before it on the route's chain
	timestamp int64       // of the source message; with own set, of the one at previous
	own       *link       // of a message that was held back, see position
	payload   int         // bytes of the application's payload
	last      bool        // nothing is known to wait behind it: an engine need not wait for more
}

// after is the last source message on the route's chain when m is stored.
func (m *outgoing) after() uint64 {
	if m.own != nil {
		return m.previous
	}
	return m.source
}

// sealer turns source messages into envelopes. It belongs to the worker's
// goroutine and reuses its buffers for every message, which is right because the
// connection copies what it publishes.
type sealer struct {
	keys  *keyring
	pass  []string
	rule  ReservedHeaders
	chain envelope.ChainID
	// maxSize is what the sealed stream's server takes in one message, headers
	// included; fixed is what the engine's headers need of it.
	maxSize, fixed int

	tracer     trace.Tracer // nil: no tracing
	propagator propagation.TextMapPropagator

	meta   envelope.Meta
	out    outgoing
	buffer []byte
}

// errNextSession: the session has ended between two messages of a batch; prepare
// gets the next one.
var errNextSession = errors.New("session ended")

// seal seals one message for which keyring.prepare found a session. previous and
// gap go into the meta. Errors: errNextSession, and as the message's own fault
// ErrTooLarge, ErrHeaders, ErrReserved.
func (s *sealer) seal(it *item, previous, gap uint64, now time.Time) (*outgoing, error) {
	k := s.keys.subject(it.msg.Subject)
	if k.err != nil {
		return nil, k.err
	}
	if s.keys.plain {
		return s.passOn(it, previous, k.sealed), nil
	}
	if k.key == nil || !k.key.usable(now) {
		return nil, errNextSession
	}
	return s.sealWith(k.key, k.sealed, it, previous, gap)
}

// sealWith is seal with a usable session, for a subject.
func (s *sealer) sealWith(key *scopeKey, subject string, it *item, previous, gap uint64) (*outgoing, error) {
	m := &s.meta
	var err error
	if m.Headers, err = sealedHeaders(m.Headers[:0], it.msg.Header, s.rule); err != nil {
		return nil, fmt.Errorf("%w, message %d on %s", err, it.seq, it.msg.Subject)
	}
	m.Chain, m.Sequence, m.Previous, m.PreviousOnSubject = s.chain, it.seq, previous, envelope.NotKept
	m.Gap, m.Published = gap, it.timestamp
	m.SealedSubject, m.OriginSubject = subject, it.msg.Subject

	o := &s.out
	o.subject, o.source, o.previous, o.timestamp, o.own, o.payload = subject, it.seq, previous, it.timestamp, nil, len(it.msg.Data)
	clearSize := s.clearHeaders(it.msg)
	// The largest this envelope can be, whether or not it carries the key record
	// this time: so that it depends on the message alone which one is too large.
	size, err := key.session.SealedSize(m, len(it.msg.Data))
	if err != nil {
		return nil, fmt.Errorf("%w: message %d on %s: %v", ErrTooLarge, it.seq, it.msg.Subject, err)
	}
	if size += s.fixed + clearSize; size > s.maxSize {
		return nil, fmt.Errorf("%w: message %d on %s has up to %d bytes with its headers, the server takes %d", ErrTooLarge, it.seq, it.msg.Subject, size, s.maxSize)
	}
	s.buffer, err = sealInto(s.buffer, key.session, m, it.msg.Data)
	if errors.Is(err, envelope.ErrSessionEnded) {
		// Usable, but not for a message of this size.
		if sealed, _ := key.session.Sealed(); sealed == 0 {
			return nil, fmt.Errorf("%w: message %d on %s exceeds the %d bytes that a session of scope %s may seal", ErrTooLarge, it.seq, it.msg.Subject, key.bytes, key.scope)
		}
		key.end()
		return nil, errNextSession
	}
	if err != nil {
		return nil, fmt.Errorf("sealing message %d on %s: %w", it.seq, it.msg.Subject, err)
	}
	o.data = s.buffer
	return o, nil
}

// sealInto seals into b from its beginning; on an error it returns b, emptied.
func sealInto(b []byte, s *envelope.Session, m *envelope.Meta, payload []byte) ([]byte, error) {
	out, err := s.Seal(b[:0], m, payload)
	if err != nil {
		return b[:0], err
	}
	return out, nil
}

// clearHeaders fills out.clear with the headers that the route passes and the
// trace context, and returns their size on the wire.
func (s *sealer) clearHeaders(m *nats.Msg) int {
	clear(s.out.clear)
	size := 0
	for _, name := range s.pass {
		for _, v := range m.Header[name] {
			s.addClear(name, v)
		}
	}
	if s.tracer != nil {
		ctx := s.propagator.Extract(context.Background(), tracecarrier.HeaderCarrier(m.Header))
		ctx, span := s.tracer.Start(ctx, "keyweir seal", trace.WithSpanKind(trace.SpanKindProducer))
		if s.out.clear == nil {
			s.out.clear = make(nats.Header)
		}
		s.propagator.Inject(ctx, tracecarrier.HeaderCarrier(s.out.clear))
		span.End()
	}
	for name, values := range s.out.clear {
		if reservedHeader(name) { // whatever a propagator thinks of
			delete(s.out.clear, name)
			continue
		}
		for _, v := range values {
			size += len(name) + len(v) + 4
		}
	}
	return size
}

func (s *sealer) addClear(name, value string) {
	if s.out.clear == nil {
		s.out.clear = make(nats.Header)
	}
	s.out.clear[name] = append(s.out.clear[name], value)
}
