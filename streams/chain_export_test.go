package streams

import "github.com/keyweir/keyweir/internal/envelope"

// Place is the order evidence of a message without payload.
type Place struct {
	Chain              ChainID
	Sequence, Previous uint64
	OnSubject          uint64 // with Subject
	Subject            string // "": the link is not kept
	Gap                uint64
}

// MessageAt makes a message for a Verifier.
func MessageAt(p Place) *Message {
	b := &body{chain: p.Chain, sequence: p.Sequence, previous: p.Previous, onSubject: envelope.NotKept, gap: p.Gap, subject: "orders.eu"}
	if p.Subject != "" {
		b.subject, b.onSubject = p.Subject, p.OnSubject
	}
	return &Message{body: b}
}
