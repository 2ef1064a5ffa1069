package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// parking parks messages of one tenure. It belongs to the worker's goroutine.
//
// A dead letter is published on a subject of its own, under the condition that
// nothing is there yet, and waited for. So a crash anywhere leaves it stored or
// not; the next tenure meets the source message again, since the position has not
// passed it, and its second try is refused as stored. The position passes it only
// after that, in the record, which counts as long as the sealed stream ends where
// it ended then; if a later message was sealed, that one's position covers it.
type parking struct {
	w       *worker
	letters DeadLetters
	chain   envelope.ChainID
	atomic  bool // the stream takes atomic batches
	maxSize int  // of one message, headers included
	lag     time.Duration
	known   map[uint64]bool // source sequences parked before this tenure, as subjects say
}

// parked reports whether a source message was parked before this tenure.
func (p *parking) parked(ctx context.Context, it *item) (bool, error) {
	if p == nil || !p.known[it.seq] {
		return false, nil
	}
	if _, err := p.confirm(ctx, it.seq, it.timestamp); err != nil {
		return false, err
	}
	delete(p.known, it.seq)
	return true, nil
}

// confirm checks that what is stored on a dead letter's subject is one that this
// route made of the source message stored at timestamp, and returns it.
// errNoMessage: nothing is.
func (p *parking) confirm(ctx context.Context, seq uint64, timestamp int64) (*stored, error) {
	pos := p.position(seq)
	m, err := getFromLeader(ctx, p.w.route.Sealed.Conn, p.letters.Stream, getRequest{LastFor: pos.Subject(p.letters.Subject, 1)})
	if err != nil {
		return nil, fmt.Errorf("reading dead letter of message %d: %w", seq, err)
	}
	proof, err := deadletter.ParseProof(m.header.Get(deadletter.HeaderProof))
	hash := sha256.Sum256(m.data)
	if err != nil || !hmac.Equal(proof.MAC[:], p.mac(seq, timestamp, proof.Hash)) || m.header.Get(deadletter.HeaderRetried) == "" && hash != proof.Hash {
		return nil, fmt.Errorf("%w: message %d of stream %s, on %s, was written by somebody else, or is of another message", ErrDeadLetters, m.seq, p.letters.Stream, m.subject)
	}
	return m, nil
}

func (p *parking) position(seq uint64) deadletter.Position {
	return deadletter.Position{Route: p.w.route.Name, Chain: p.chain, Sequence: seq}
}

// mac proves that the route itself parked the source message stored at timestamp.
func (p *parking) mac(seq uint64, timestamp int64, hash [32]byte) []byte {
	raw := envelope.ExposeDataKey(p.w.routeKey)
	defer clear(raw)
	m := hmac.New(sha256.New, raw)
	b := appendString(nil, labelLetter)
	b = appendString(b, p.w.route.Name)
	b = appendString(b, p.letters.Stream)
	b = append(b, p.chain[:]...)
	b = binary.BigEndian.AppendUint64(b, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(timestamp))
	m.Write(append(b, hash[:]...))
	return m.Sum(nil)
}

// deadLetter stores a message as one, however long that takes, and moves the
// cursor past it. An error ends the tenure; that of a message that cannot be
// parked either is ErrDeadLetters.
func (t *tenure) deadLetter(ctx context.Context, it *item, gap uint64, reason string, cause error) error {
	if err := t.parking.lay(ctx, it, reason, cause); err != nil {
		return err
	}
	delete(t.parking.known, it.seq)
	t.passed(it, gap)
	t.w.board.state(StateRunning)
	return nil
}

// heldLetter stores a held message as a dead letter, under the chain that it was
// held on: no other message has its sequence there, and whoever tries again has
// the same.
func (t *tenure) heldLetter(ctx context.Context, it *item, held *link, reason string, cause error) error {
	p := *t.parking
	p.chain, p.known = held.chain, nil
	return p.lay(ctx, it, reason, cause)
}

// lay stores a message as a dead letter, or finds it stored.
func (p *parking) lay(ctx context.Context, it *item, reason string, cause error) error {
	w := p.w
	l := &letter{parking: p, it: it, d: deadletter.Description{
		Reason: reason, Detail: cause.Error(), Route: w.route.Name, Stream: w.route.Source.Stream, Chain: p.chain.String(),
		Sequence: it.seq, Subject: it.msg.Subject, Published: it.timestamp,
	}}
	msgs, err := l.seal(ctx)
	if err != nil {
		return err
	}
	stored, err := p.store(ctx, it, msgs)
	if err != nil {
		return err
	}
	if stored {
		w.metrics.parked(reason)
		w.board.update(func(s *RouteStats) { s.DeadLetters++ })
		w.log.Warn("message parked as dead letter", "sequence", it.seq, "reason", reason, "parts", len(msgs), "stream", p.letters.Stream, "error", cause)
	}
	return nil
}

// letter is one message on its way to being parked.
type letter struct {
	*parking
	it *item
	d  deadletter.Description
}

// seal returns the parts, sealed under the key of the message's own scope, or of
// the quarantine where there is none, or the message says nothing that an
// envelope of its own scope can hold.
func (l *letter) seal(ctx context.Context) ([]*nats.Msg, error) {
	switch l.d.Reason {
	case deadletter.ReasonNoScope, deadletter.ReasonDenied, deadletter.ReasonShredded:
	default:
		msgs, err := l.sealAs(ctx, l.it.msg.Subject)
		if err == nil || !errors.Is(err, errQuarantine) {
			return msgs, err
		}
	}
	msgs, err := l.sealAs(ctx, l.letters.Quarantine)
	if errors.Is(err, errQuarantine) || stops(err) && !errors.Is(err, ErrDeadLetters) {
		return nil, fmt.Errorf("%w: message %d on %s (%s), quarantine subject %s: %v", ErrDeadLetters, l.it.seq, l.it.msg.Subject, l.d.Reason, l.letters.Quarantine, err)
	}
	return msgs, err
}

// errQuarantine: the message cannot be sealed under the key of its own scope.
var errQuarantine = errors.New("gateway: no dead letter under this key")

// sealAs seals all parts under the scope of a subject.
func (l *letter) sealAs(ctx context.Context, subject string) ([]*nats.Msg, error) {
	d := l.d
	whole := deadletter.AppendHeader(nil, l.it.msg.Header)
	d.Headers = len(whole)
	whole = append(whole, l.it.msg.Data...)
	d.Size = len(whole)
	overhead, err := d.Overhead()
	if err != nil {
		return nil, err
	}
	k, err := l.key(ctx, subject)
	if err != nil {
		return nil, err
	}
	m := l.meta(subject, deadletter.MaxParts)
	fixed, err := k.session.SealedSize(m, overhead)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errQuarantine, err)
	}
	room := l.maxSize - headerSize(l.message(deadletter.MaxParts, deadletter.MaxParts, true).Header) - fixed
	if most := k.bytes; most < uint64(l.maxSize) {
		room = min(room, int(most)-fixed) // a session's budget
	}
	if room < 1 {
		return nil, fmt.Errorf("%w: message %d on %s: %d bytes leave no room for it", ErrDeadLetters, l.it.seq, l.it.msg.Subject, l.maxSize)
	}
	d.Parts = max(1, (len(whole)+room-1)/room)
	switch {
	case d.Parts > 1 && !l.atomic:
		return nil, fmt.Errorf("%w: message %d on %s needs %d parts, and stream %s has no allow_atomic, which servers have from 2.12", ErrDeadLetters, l.it.seq, l.it.msg.Subject, d.Parts, l.letters.Stream)
	case d.Parts > deadletter.MaxParts:
		return nil, fmt.Errorf("%w: message %d on %s needs %d parts, at most %d", ErrDeadLetters, l.it.seq, l.it.msg.Subject, d.Parts, deadletter.MaxParts)
	}
	id := rand.Text()
	out := make([]*nats.Msg, d.Parts)
	var body []byte
	for i := range out {
		d.Part = i + 1
		chunk := whole[i*room : min(len(whole), (i+1)*room)]
		if body, err = d.AppendPart(body[:0], chunk); err != nil {
			return nil, err
		}
		msg := l.message(d.Part, d.Parts, d.Parts > 1)
		if d.Parts > 1 {
			msg.Header.Set(headerBatchID, id)
		}
		if msg.Data, err = l.sealPart(ctx, subject, d.Part, body); err != nil {
			return nil, err
		}
		out[i] = msg
	}
	clear(body[:cap(body)])
	proof := deadletter.Proof{Hash: sha256.Sum256(out[0].Data)}
	copy(proof.MAC[:], l.mac(l.it.seq, l.it.timestamp, proof.Hash))
	for _, m := range out {
		m.Header.Set(deadletter.HeaderProof, proof.String())
	}
	return out, nil
}

// sealPart seals one part; a session that ends is followed by the next one.
func (l *letter) sealPart(ctx context.Context, subject string, part int, body []byte) ([]byte, error) {
	for {
		k, err := l.key(ctx, subject)
		if err != nil {
			return nil, err
		}
		data, err := k.session.Seal(nil, l.meta(subject, part), body)
		switch {
		case err == nil:
			return data, nil
		case !errors.Is(err, envelope.ErrSessionEnded):
			return nil, fmt.Errorf("%w: sealing message %d on %s: %v", ErrDeadLetters, l.it.seq, l.it.msg.Subject, err)
		}
		k.end()
	}
}

// meta is that of an envelope that a reader of subject's scope opens.
func (l *letter) meta(subject string, part int) *envelope.Meta {
	return &envelope.Meta{
		Chain: l.chain, Sequence: l.it.seq, PreviousOnSubject: envelope.NotKept, Published: l.it.timestamp,
		SealedSubject: l.position(l.it.seq).Subject(l.letters.Subject, part), OriginSubject: subject,
	}
}

// message makes a part without its envelope and proof.
func (l *letter) message(part, parts int, batch bool) *nats.Msg {
	m := nats.NewMsg(l.position(l.it.seq).Subject(l.letters.Subject, part))
	h := m.Header
	h.Set(HeaderVersion, "1")
	h.Set(deadletter.HeaderError, l.d.Reason)
	h.Set(deadletter.HeaderStream, l.d.Stream)
	h.Set(deadletter.HeaderSequence, strconv.FormatUint(l.it.seq, 10))
	h.Set(deadletter.HeaderSubject, l.it.msg.Subject)
	h.Set(deadletter.HeaderPart, deadletter.FormatPart(part, parts))
	h.Set(deadletter.HeaderProof, deadletter.Proof{}.String()) // its length
	h.Set(jetstream.ExpectedStreamHeader, l.letters.Stream)
	h.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	if batch {
		h.Set(headerBatchID, rand.Text())
		h.Set(headerBatchSeq, strconv.Itoa(part))
		if part == parts {
			h.Set(headerBatchCommit, "1")
		}
	}
	return m
}

// headerSize is what a header takes on the wire.
func headerSize(h nats.Header) int {
	size := len("NATS/1.0\r\n\r\n")
	for name, values := range h {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	return size
}

// key returns a usable session for the scope of a subject, waiting for it as the
// relay does. errQuarantine: there will be none.
func (l *letter) key(ctx context.Context, subject string) (*scopeKey, error) {
	w := l.w
	p, slow := newPause(w.tune.key, w.tune.keyMax), newPause(w.tune.keySlow, w.tune.keySlowM)
	items := []item{{msg: &nats.Msg{Subject: subject}, seq: l.it.seq}}
	waiting := false
	for {
		ready, err := w.ring.prepare(ctx, items)
		if ready == 1 {
			return w.ring.subject(subject).key, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if w.route.Hold != nil && holdable(err) && subject != l.letters.Quarantine {
			return nil, fmt.Errorf("%w: %w", errQuarantine, err) // the others go on
		}
		if errors.Is(err, keysvc.ErrNoScope) || errors.Is(err, keysvc.ErrDestroyed) || errors.Is(err, keysvc.ErrDenied) && subject != l.letters.Quarantine && w.parkReason(err) != "" {
			return nil, fmt.Errorf("%w: %w", errQuarantine, err)
		}
		if stops(err) {
			return nil, err
		}
		if !waiting {
			w.log.Warn("no key to seal a dead letter with, waiting", "sequence", l.it.seq, "subject", subject, "error", err)
		}
		waiting = true
		w.board.failed(StatePaused, err)
		wait := p
		if patient(err) {
			wait = slow
		}
		if err := wait.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// maxTaken is how often a dead letter may be refused as stored and yet not be
// there. Once happens: the server refuses what is on its way as well.
const maxTaken = 5

// maxTries is how often storing is tried before everything is looked at again,
// the dead-letter stream too.
const maxTries = 10

// store publishes a dead letter until it is stored, or found stored; stored tells
// which.
func (p *parking) store(ctx context.Context, it *item, msgs []*nats.Msg) (stored bool, err error) {
	w := p.w
	pause := newPause(w.tune.retry, w.tune.retryMax)
	for taken, tries := 0, 1; ; tries++ {
		err := p.publish(ctx, msgs)
		if errors.Is(err, ErrFenced) {
			switch _, cerr := p.confirm(ctx, it.seq, it.timestamp); {
			case cerr == nil:
				return false, nil
			case !errors.Is(cerr, errNoMessage):
				err = cerr
			default:
				if taken++; taken == maxTaken {
					return false, fmt.Errorf("%w: one of the subjects from %s on is taken by somebody else", ErrDeadLetters, msgs[0].Subject)
				}
			}
		}
		if err == nil {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if stops(err) || tries == maxTries {
			return false, err
		}
		w.board.failed(StateRetrying, err)
		w.log.Warn("parking a dead letter failed, trying again", "sequence", it.seq, "error", err)
		if err := pause.wait(ctx); err != nil {
			return false, err
		}
	}
}

// Refusals of dead letters that no second try mends.
const (
	codeNoAtomic  = 10174
	codeSizeLimit = 10054
	codeNotMatch  = 10060
)

// publish tries once to store all of msgs, or none. ErrFenced: one of the
// subjects is taken.
func (p *parking) publish(ctx context.Context, msgs []*nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	nc, n := p.w.route.Sealed.Conn, len(msgs)
	for i, m := range msgs {
		var reply *nats.Msg
		var err error
		if i == 0 || i == n-1 {
			reply, err = nc.RequestMsgWithContext(ctx, m)
		} else {
			err = nc.PublishMsg(m)
		}
		if err == nil && reply != nil {
			err = acknowledged(reply, i == n-1, n)
		}
		var api *jetstream.APIError
		switch {
		case err == nil:
		case errors.Is(err, nats.ErrMaxPayload),
			errors.As(err, &api) && (api.ErrorCode == codeNoAtomic || api.ErrorCode == codeSizeLimit || api.ErrorCode == codeNotMatch || api.ErrorCode == codeTooLarge):
			return fmt.Errorf("%w: storing %s: %v", ErrDeadLetters, m.Subject, err)
		default:
			return fmt.Errorf("storing dead letter %s: %w", m.Subject, err)
		}
	}
	return nil
}

// acknowledged reads the answer to a message, or to the first or last of a batch.
func acknowledged(m *nats.Msg, last bool, count int) error {
	if !last {
		if len(m.Data) == 0 && m.Header.Get("Status") == "" {
			return nil
		}
		return refusal(m)
	}
	var ack struct {
		Sequence uint64              `json:"seq"`
		Count    int                 `json:"count"`
		Error    *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil || ack.Error != nil || ack.Sequence == 0 || count > 1 && ack.Count != count {
		return refusal(m)
	}
	return nil
}
