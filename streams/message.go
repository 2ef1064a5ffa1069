package streams

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// Message is an opened message. Subject, Headers and Data are what the
// application published, all from the sealed copy; metadata and
// acknowledgements are those of the delivered message. It owns its bytes and
// prints without them. Safe for concurrent use as far as nobody changes Data or Headers.
type Message struct {
	raw  jetstream.Msg // nil if there was no JetStream delivery
	meta *jetstream.MsgMetadata
	body *body // behind a pointer: printing a copy shows an address
}

var (
	_ jetstream.Msg  = (*Message)(nil)
	_ fmt.Formatter  = Message{}
	_ slog.LogValuer = Message{}
)

type body struct {
	data    []byte
	headers nats.Header
	subject string
	sealed  string // subject it was sealed for
	chain   ChainID
	keyID   keysvc.KeyID
	scope   string
	layered bool

	sequence, previous, onSubject, gap uint64
	published                          int64
}

func newBody(o *envelope.Opened, origin, sealed string, k *heldKey) *body {
	m := &o.Meta
	return &body{
		data: o.Payload, headers: natsHeader(m.Headers()), subject: origin, sealed: sealed,
		chain: m.Chain, keyID: k.id, scope: k.scope, layered: m.Layered(),
		sequence: m.Sequence, previous: m.Previous, onSubject: m.PreviousOnSubject, gap: m.Gap, published: m.Published,
	}
}

func natsHeader(hs []envelope.Header) nats.Header {
	if hs == nil {
		return nil
	}
	out := make(nats.Header, len(hs))
	for _, h := range hs {
		out[h.Name] = append(out[h.Name], h.Value)
	}
	return out
}

// Subject returns the subject the application published to.
func (m *Message) Subject() string { return m.body.subject }

// Headers returns the headers the application published, nil if none.
func (m *Message) Headers() nats.Header { return m.body.headers }

// Data returns the plaintext.
func (m *Message) Data() []byte { return m.body.data }

// SealedSubject returns the subject of the sealed stream the gateway published to.
func (m *Message) SealedSubject() string { return m.body.sealed }

// Chain returns the chain the message belongs to.
func (m *Message) Chain() ChainID { return m.body.chain }

// Sequence returns the place on the chain: the sequence in the source stream, or
// the chain's own count where an application sealed.
func (m *Message) Sequence() uint64 { return m.body.sequence }

// Previous returns the Sequence of the message before this one on the chain; 0
// for the first, and math.MaxUint64 where the writer keeps no links, as core
// ingest does.
func (m *Message) Previous() uint64 { return m.body.previous }

// PreviousOnSubject is Previous among the messages of this subject, where the
// route keeps that link.
func (m *Message) PreviousOnSubject() (sequence uint64, ok bool) {
	if m.body.onSubject == envelope.NotKept {
		return 0, false
	}
	return m.body.onSubject, true
}

// Gap returns how many source messages were lost to limits before this one was
// sealed; 0 normally.
func (m *Message) Gap() uint64 { return m.body.gap }

// Published returns when the source stream stored the message.
func (m *Message) Published() time.Time { return time.Unix(0, m.body.published) }

// KeyID returns the ID of the data key that sealed the message.
func (m *Message) KeyID() keysvc.KeyID { return m.body.keyID }

// Scope returns the scope of that key, which this reader's rules confirmed.
func (m *Message) Scope() string { return m.body.scope }

// Layered reports whether Data is itself an envelope.
func (m *Message) Layered() bool { return m.body.layered }

// Metadata returns the metadata of the sealed stream's delivery.
// [jetstream.ErrNotJSMessage] if there was none.
func (m *Message) Metadata() (*jetstream.MsgMetadata, error) {
	switch {
	case m.raw != nil:
		return m.raw.Metadata()
	case m.meta != nil:
		meta := *m.meta
		return &meta, nil
	}
	return nil, jetstream.ErrNotJSMessage
}

// Reply returns the acknowledgement subject, "" if there is none.
func (m *Message) Reply() string {
	if m.raw == nil {
		return ""
	}
	return m.raw.Reply()
}

// settle calls f on the delivered message; [jetstream.ErrMsgNotBound] if there is none.
func (m *Message) settle(f func(jetstream.Msg) error) error {
	if m.raw == nil {
		return jetstream.ErrMsgNotBound
	}
	return f(m.raw)
}

// Ack acknowledges the message.
func (m *Message) Ack() error { return m.settle(jetstream.Msg.Ack) }

// DoubleAck acknowledges the message and waits for the server's word.
func (m *Message) DoubleAck(ctx context.Context) error {
	return m.settle(func(r jetstream.Msg) error { return r.DoubleAck(ctx) })
}

// Nak asks for redelivery at once; it counts against MaxDeliver.
func (m *Message) Nak() error { return m.settle(jetstream.Msg.Nak) }

// NakWithDelay asks for redelivery after a delay; it counts against MaxDeliver.
func (m *Message) NakWithDelay(d time.Duration) error {
	return m.settle(func(r jetstream.Msg) error { return r.NakWithDelay(d) })
}

// InProgress restarts the server's AckWait.
func (m *Message) InProgress() error { return m.settle(jetstream.Msg.InProgress) }

// Term ends delivery of the message.
func (m *Message) Term() error { return m.settle(jetstream.Msg.Term) }

// TermWithReason is Term with a reason for the advisory. Do not put payload into it.
func (m *Message) TermWithReason(reason string) error {
	return m.settle(func(r jetstream.Msg) error { return r.TermWithReason(reason) })
}

// String names the message without anything that was sealed.
func (m Message) String() string {
	if m.body == nil {
		return "streams.Message{}"
	}
	return fmt.Sprintf("streams.Message{sealed subject %q, %d bytes}", m.body.sealed, len(m.body.data))
}

// Format prints String under every verb.
func (m Message) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, m.String()) }

// LogValue is String.
func (m Message) LogValue() slog.Value { return slog.StringValue(m.String()) }
