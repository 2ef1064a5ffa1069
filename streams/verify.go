package streams

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
)

// ErrNoOrder: order cannot be verified with this consumer, this message or this
// state. It says nothing about the messages; [Verifier.Observe] changed nothing.
var ErrNoOrder = errors.New("streams: order cannot be verified")

// OrderLink says which link between messages a [Verifier] follows.
type OrderLink uint8

const (
	// LinkChain follows all messages of a stream: [Message.Previous].
	LinkChain OrderLink = iota
	// LinkSubject follows the messages of one origin subject:
	// [Message.PreviousOnSubject]. Routes that do not keep this link cannot be
	// verified so; those of the gateway do not keep it yet.
	LinkSubject
)

func (l OrderLink) String() string {
	switch l {
	case LinkChain:
		return "chain"
	case LinkSubject:
		return "subject"
	}
	return fmt.Sprintf("OrderLink(%d)", uint8(l))
}

// VerifierConfig says what a [Verifier] follows. The zero value follows whole
// chains, and takes the first message it sees for granted.
type VerifierConfig struct {
	Link OrderLink
	// Open says that several writers seal to the stream, each with a chain of its
	// own, as the stream's metadata keyweir-mode: open has it, or keyweir-shared where
	// the partitions of a route share it. Chains may then
	// alternate. Those of core ingest keep no links, since the stream may refuse
	// what was sealed (duplicates above all), so of these a Verifier finds what was
	// repeated or moved, and nothing that is missing. What the metadata say is the
	// broker's word: Open comes from the reader's own configuration. Only with
	// LinkChain, and without FromStart.
	Open bool
	// FromStart demands that the first message be the first of its chain. Not for
	// streams whose limits remove old messages. Ignored with a State.
	FromStart bool
	// State of an earlier Verifier, to go on behind its last message. Start the
	// consumer at State.Stream+1 or before; what is read again is reported as
	// duplicate. Nil: the first message anchors.
	State *VerifierState
}

// VerifierState is where a [Verifier] stands. It marshals to a few hundred bytes
// of JSON without payload or keys, and grows to 100 KB at most in a stream full of
// gaps. Store it where those whom it checks cannot write.
type VerifierState struct {
	Version int    `json:"version"` // 1
	Link    string `json:"link"`    // as OrderLink.String
	Open    bool   `json:"open,omitempty"`
	Subject string `json:"subject,omitempty"` // with LinkSubject
	// Stream is the sealed stream's sequence of the last message observed, 0 where
	// unknown.
	Stream uint64 `json:"stream_sequence"`
	// Observed is how many messages were, repeated ones included.
	Observed uint64 `json:"observed"`
	// Chains are the current chain, which is the last, and up to 15 before it; of an
	// open stream up to 255, the one observed last at the end.
	Chains []ChainState `json:"chains"`
	// Released are the last 256 chains of messages that the gateway held back, see
	// [Verifier], the one observed last at the end.
	Released []ChainState `json:"released,omitempty"`
	// ReleasedForgotten is the number of the highest such chain that is not among
	// them any more, which is the sequence of its first message.
	ReleasedForgotten uint64 `json:"released_forgotten,omitempty"`
}

const stateVersion = 1

// Verifier checks what a reader got against the order evidence that the gateway
// put under the seal of every message: the message's sequence on its chain, and
// that of the message before it. Sequences may skip, links may not.
//
//	consumer, err := js.OrderedConsumer(ctx, "SEALED_ORDERS", jetstream.OrderedConsumerConfig{})
//	verifier, err := streams.NewVerifier(consumer, streams.VerifierConfig{})
//	for m, err := range opener.Messages(ctx, consumer) {
//		...
//		events, err := verifier.Observe(m)
//		for _, e := range events {
//			if e.Kind.Alarm() { ... }
//		}
//	}
//
// Messages that the gateway held back while their scope had no key come later than
// others of their time, in a chain of their own for each row of them, which runs
// beside the chain of the others. That is no event, and each of those chains is
// followed like any other; of more than 256, those not heard of for longest are
// forgotten, and what is missing of them before they come again does not show.
//
// It finds every message that is missing, repeated, moved or taken from another
// chain between the first message it observed and the last, with these limits:
//
//   - The first message anchors: what was removed before it does not show, unless
//     VerifierConfig.FromStart or a State of an earlier run says what it had to
//     follow.
//   - The end proves nothing. That messages were cut off after the last one read
//     (or after the last one of a chain that another chain replaced) shows only
//     against a position from elsewhere, signed by somebody who is not the broker:
//     compare it with the last ChainState of [Verifier.State].
//   - A message that did not open has no evidence to offer: to a Verifier it is
//     missing.
//   - Keys are symmetric. A reader who works together with the broker can make
//     messages with any evidence that he likes, and nobody who holds the same keys
//     can tell.
//
// A Verifier belongs to one goroutine.
type Verifier struct {
	link     OrderLink
	whole    bool
	open     bool
	subject  string // with LinkSubject; "" until the first message
	stream   uint64
	observed uint64
	chains   chains
}

// NewVerifier makes a Verifier for the messages of a consumer: an ordered
// consumer of a whole stream, or with LinkSubject of exactly one subject. Others
// see a selection, or messages twice, or not in order, and so are [ErrNoOrder]. A
// nil consumer is for callers who read every message in order by themselves, with
// [Opener.OpenRaw] for instance. A State that was altered is ErrNoOrder as well.
func NewVerifier(c jetstream.Consumer, cfg VerifierConfig) (*Verifier, error) {
	if cfg.Link > LinkSubject {
		return nil, fmt.Errorf("%w: %v", ErrNoOrder, cfg.Link)
	}
	if c != nil {
		if err := checkOrdered(c, cfg.Link); err != nil {
			return nil, err
		}
	}
	if cfg.Open && (cfg.Link != LinkChain || cfg.FromStart) {
		return nil, fmt.Errorf("%w: an open stream has links of chains at most, and no first message that can be demanded", ErrNoOrder)
	}
	v := &Verifier{link: cfg.Link, whole: cfg.FromStart, open: cfg.Open}
	if cfg.State != nil {
		if err := v.restore(cfg.State); err != nil {
			return nil, fmt.Errorf("%w: reading state: %v", ErrNoOrder, err)
		}
	}
	return v, nil
}

// checkOrdered refuses consumers that cannot show order.
func checkOrdered(c jetstream.Consumer, l OrderLink) error {
	info := c.CachedInfo()
	if !ordered(c) || info == nil {
		return fmt.Errorf("%w: not an ordered consumer; any other may deliver twice, out of order or to several readers", ErrNoOrder)
	}
	cfg := &info.Config
	filters := cfg.FilterSubjects
	if cfg.FilterSubject != "" {
		filters = []string{cfg.FilterSubject}
	}
	switch {
	case cfg.DeliverPolicy == jetstream.DeliverLastPerSubjectPolicy:
		return fmt.Errorf("%w: the consumer delivers the last message of each subject only", ErrNoOrder)
	case cfg.HeadersOnly:
		return fmt.Errorf("%w: the consumer delivers headers only", ErrNoOrder)
	case l == LinkChain && len(filters) > 0 && !(len(filters) == 1 && filters[0] == ">"):
		return fmt.Errorf("%w: the consumer is filtered by subject, and the links of a chain go through all subjects", ErrNoOrder)
	case l == LinkSubject && (len(filters) != 1 || wild(filters[0])):
		return fmt.Errorf("%w: the links of a subject need a consumer of exactly one subject", ErrNoOrder)
	}
	return nil
}

func wild(subject string) bool {
	for t := range strings.SplitSeq(subject, ".") {
		if t == "*" || t == ">" {
			return true
		}
	}
	return false
}

// Observe takes the next message and returns what is wrong with its place, nil if
// nothing is. Call it for every message, in the order of the consumer, before or
// after handling it. Errors wrap [ErrNoOrder]: a message without the link to
// follow, or on another subject.
func (v *Verifier) Observe(m *Message) ([]OrderEvent, error) {
	if m == nil || m.body == nil {
		return nil, fmt.Errorf("%w: no message", ErrNoOrder)
	}
	l := link{chain: m.body.chain, sequence: m.body.sequence, previous: m.body.previous}
	if v.link == LinkSubject {
		if m.body.onSubject == envelope.NotKept {
			return nil, fmt.Errorf("%w: the route keeps no link per subject", ErrNoOrder)
		}
		if v.observed > 0 && m.body.subject != v.subject {
			return nil, fmt.Errorf("%w: a message of another subject", ErrNoOrder)
		}
		l.previous = m.body.onSubject
	}
	unlinked := false
	if l.previous == envelope.NotKept {
		if !v.open {
			return nil, fmt.Errorf("%w: the message was sealed without links, as in an open stream", ErrNoOrder)
		}
		// Its writer counts without gaps, and says nothing of what became of them.
		unlinked = true
		l.previous = max(l.sequence, 1) - 1
	}
	if l.previous >= l.sequence {
		return nil, fmt.Errorf("%w: message %d says that %d came before it", ErrNoOrder, l.sequence, l.previous)
	}
	var stream uint64
	if meta, err := m.Metadata(); err == nil {
		stream = meta.Sequence.Stream
	}
	v.observed++
	v.stream = stream
	if v.link == LinkSubject {
		v.subject = m.body.subject
	}
	var events []OrderEvent
	var taken bool
	if v.open {
		events, taken = v.chains.observeOpen(l, unlinked)
	} else {
		events, taken = v.chains.observe(l, v.whole)
	}
	if taken && m.body.gap > 0 {
		e := OrderEvent{Kind: OrderSourceLoss, Before: l.chain, Count: m.body.gap}
		if len(events) > 0 {
			e.Before, e.Last = events[0].Before, events[0].Last
		}
		events = append(events, e)
	}
	for i := range events {
		e := &events[i]
		e.Stream, e.Chain, e.Sequence, e.Previous = stream, l.chain, l.sequence, l.previous
	}
	return events, nil
}

// State returns where v stands, for a later [NewVerifier]. It shares nothing with v.
func (v *Verifier) State() VerifierState {
	s := VerifierState{
		Version: stateVersion, Link: v.link.String(), Open: v.open, Subject: v.subject, Stream: v.stream, Observed: v.observed,
		Chains: make([]ChainState, len(v.chains.tracks)),
	}
	for i, t := range v.chains.tracks {
		s.Chains[i] = t.state()
	}
	for _, t := range v.chains.released {
		s.Released = append(s.Released, t.state())
	}
	s.ReleasedForgotten = v.chains.forgotten
	return s
}

// ParseVerifierState reads what [json.Marshal] wrote of a VerifierState. What the
// state says is checked by [NewVerifier]. Errors wrap [ErrNoOrder].
func ParseVerifierState(b []byte) (*VerifierState, error) {
	var s VerifierState
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%w: reading state: %v", ErrNoOrder, err)
	}
	return &s, nil
}

func (v *Verifier) restore(s *VerifierState) error {
	switch {
	case s.Version != stateVersion:
		return fmt.Errorf("version %d, want %d", s.Version, stateVersion)
	case s.Link != v.link.String():
		return fmt.Errorf("it follows the link %.16q, not %q", s.Link, v.link)
	case s.Open != v.open:
		return fmt.Errorf("open %v, not %v", s.Open, v.open)
	case v.link == LinkChain && s.Subject != "", v.link == LinkSubject && s.Observed > 0 && s.Subject == "":
		return fmt.Errorf("subject %.64q under link %v", s.Subject, v.link)
	case (len(s.Chains)+len(s.Released) == 0) != (s.Observed == 0):
		return fmt.Errorf("%d messages on %d chains", s.Observed, len(s.Chains))
	}
	if err := v.chains.restore(s.Chains, s.Released, s.ReleasedForgotten, v.open); err != nil {
		return err
	}
	v.subject, v.stream, v.observed = s.Subject, s.Stream, s.Observed
	return nil
}
