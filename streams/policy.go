package streams

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/keysvc"
)

// Headers of a parked message. HeaderSubject is the subject it was delivered on:
// [Opener.OpenBytes] wants it as location.
const (
	HeaderError    = "Keyweir-Error" // a word for the class: "tampered", "plaintext", ...
	HeaderStream   = "Keyweir-Stream"
	HeaderSequence = "Keyweir-Sequence"
	HeaderSubject  = "Keyweir-Subject"
)

// Policy says what Messages and Consume do with a message that will not open
// (Verdict Reject). The zero Policy stops. Whatever the policy, a message whose
// key is only out of reach (Verdict Hold) is held, never given up.
type Policy struct {
	kind    policyKind
	js      jetstream.JetStream
	subject string
	hook    func(context.Context, *OpenError) error
}

type policyKind uint8

const (
	policyStop policyKind = iota
	policyPark
	policyDeliver
)

// Stop ends reading with the error and leaves the message unacknowledged. It is
// the zero Policy.
func Stop() Policy { return Policy{} }

// Park publishes the message as it is, still sealed, to a dead-letter subject,
// which a stream must store, and acknowledges the original after the server
// acknowledged the copy. The copy keeps its headers except Nats-*, and says why
// and whence in the Keyweir-* headers above. While it cannot be stored, reading
// holds. A message that was never sealed is parked as it is, too.
func Park(js jetstream.JetStream, subject string) Policy {
	return Policy{kind: policyPark, js: js, subject: subject}
}

// Deliver hands the error to the application: Messages yields it, Consume calls
// hook. The message is then terminated, with the reason in the server's advisory,
// unless the application settled it itself ([OpenError.Sealed]). Breaking the
// loop, or an error from hook, ends reading and leaves it unacknowledged. hook is
// required by Consume and not used by Messages.
func Deliver(hook func(ctx context.Context, err *OpenError) error) Policy {
	return Policy{kind: policyDeliver, hook: hook}
}

// checkPark refuses a dead-letter subject that nothing stores, or that this very
// consumer would read again, for ever. Where the server does not let us ask, the
// first parked message tells.
func (p *Policy) checkPark(ctx context.Context, s *source) error {
	if p.kind != policyPark {
		return nil
	}
	if p.js == nil || p.subject == "" {
		return errors.New("checking dead-letter subject: Park needs a JetStream and a subject")
	}
	stream, err := p.js.StreamNameBySubject(ctx, p.subject)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("checking dead-letter subject %q: no stream stores it: %w", p.subject, err)
	}
	if err == nil && stream == s.stream && s.reads(p.subject) {
		return fmt.Errorf("checking dead-letter subject %q: consumer %s reads it itself", p.subject, s.name)
	}
	return nil
}

// reads reports whether the consumer's filter lets subject through.
func (s *source) reads(subject string) bool {
	for _, f := range s.filters {
		if keysvc.SubjectMatches(f, subject) {
			return true
		}
	}
	return len(s.filters) == 0
}

// errParkFinal marks a dead letter that no retry will store.
var errParkFinal = errors.New("streams: message cannot be parked")

// park publishes one dead letter and waits until it is stored.
func (p *Policy) park(ctx context.Context, s *source, m jetstream.Msg, oe *OpenError) error {
	out := &nats.Msg{Subject: p.subject, Data: m.Data(), Header: make(nats.Header)}
	for name, values := range m.Headers() {
		if len(name) < 5 || !strings.EqualFold(name[:5], "Nats-") {
			out.Header[name] = append([]string(nil), values...)
		}
	}
	out.Header.Set(HeaderError, Code(oe.Err))
	out.Header.Set(HeaderStream, oe.Stream)
	out.Header.Set(HeaderSequence, strconv.FormatUint(oe.Sequence, 10))
	out.Header.Set(HeaderSubject, oe.Subject)
	// A second try, or a second life of this consumer, within the dead-letter
	// stream's window does not store it twice.
	if meta, err := m.Metadata(); err == nil {
		out.Header.Set(jetstream.MsgIDHeader, fmt.Sprintf("keyweir-park-%s-%s-%d-%d",
			meta.Stream, meta.Consumer, meta.Sequence.Stream, meta.Timestamp.UnixNano()))
	}
	ack, err := p.js.PublishMsg(ctx, out)
	switch {
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrConnectionClosed):
		return fmt.Errorf("%w: %w", errParkFinal, err)
	case err != nil:
		return fmt.Errorf("parking message: %w", err)
	case ack.Stream == s.stream && s.reads(p.subject):
		return fmt.Errorf("%w: the consumer reads the dead-letter subject %q itself", errParkFinal, p.subject)
	}
	return nil
}
