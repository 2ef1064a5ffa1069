package gateway

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fastEngine publishes batches under the server's flow control (ADR-50, fast
// ingest): the server stores every message as it comes, like any other, and
// acknowledges every so many of them instead of each. What message of which batch
// it is, says the reply subject:
//
//	<inbox>.<batch>.<flow>.fail.<number in batch>.<operation>.$FI
//
// "fail" makes the server end the batch at the first message that it misses or
// refuses, so no later one of the batch can be stored over a hole; and every
// message names the sequence it must follow all the same. A next batch begins only
// after the last one was acknowledged to its end.
//
// A batch ends with the last message that waits in the source, for now: then
// nothing stays unacknowledged, and replicas, which learn of an end only by a
// message, need not wait for a time-out. Where the source promised more that does
// not come, an empty end of batch does it after fastQuiet.
//
// jetstreamext.FastPublisher is not used: it waits for the first answer of every
// batch, hands out errors under its lock, and has nothing to end a quiet batch.
type fastEngine struct {
	ledger
	signer *signer
	first  message // of a batch
	rest   message
	inbox  string
	id     string // of all batches of this engine
	flow   uint64 // the server acknowledges after so many messages, or fewer
	quiet  time.Duration

	// Taken with mu held: what is decided under mu leaves in the same order.
	sending sync.Mutex

	// Guarded by mu, like the ledger.
	number  uint64 // of the batch
	reply   string // its reply subjects begin so
	base    uint64 // sealed sequence before its first message
	sent    uint64 // messages in it; 0: none is open
	closing bool   // its end is published, and not acknowledged
	subject string // of its last message
	moved   time.Time
	timer   *time.Timer
	armed   bool
	closed  bool
}

// fastQuiet is how long acknowledgement may lag behind a source that fell silent.
const fastQuiet = 20 * time.Millisecond

// maxFlow is the server's own limit.
const maxFlow = 500

// Operations of the protocol.
const (
	fastStart = iota
	fastAdd
	fastCommit
	fastEnd // commits without a message
)

func newFast(cfg engineConfig) (*fastEngine, error) {
	e := &fastEngine{
		signer: cfg.signer, first: newMessage(&cfg), rest: newRest(&cfg), inbox: cfg.nc.NewInbox(), id: rand.Text(),
		flow: uint64(min(max(cfg.window/4, 1), maxFlow)), quiet: fastQuiet,
	}
	e.init(&cfg, cfg.window)
	e.ready = func() bool { return !e.closing && e.room() }
	e.timer = time.AfterFunc(time.Hour, e.tick)
	e.timer.Stop()
	if err := e.listen(e.inbox+".>", cfg.ackTimeout, e.receive); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *fastEngine) publish(ctx context.Context, m *outgoing) error {
	if err := e.await(ctx); err != nil {
		return err
	}
	unacked := e.next-1 > e.last.sealed
	seq := e.enter(m)
	op, msg := fastAdd, &e.rest
	if e.sent == 0 {
		op, msg = fastStart, &e.first
		e.number++
		e.base = seq - 1
		e.reply = e.inbox + "." + e.id + "-" + strconv.FormatUint(e.number, 10) + "." + strconv.FormatUint(e.flow, 10) + ".fail."
	}
	if m.last {
		op = fastCommit
		e.closing = true
	}
	e.sent++
	e.subject = m.subject
	if !unacked {
		e.moved = time.Now()
	}
	if !m.last && !e.armed {
		e.armed = true
		e.timer.Reset(e.quiet)
	}
	reply := e.replyLocked(e.sent, op)
	e.sending.Lock()
	e.mu.Unlock()

	msg.Reply = reply
	msg.follows[0] = strconv.FormatUint(seq-1, 10)
	err := msg.send(e.nc, m.subject, m.data, e.signer.header(seq, m.source, m.previous, m.timestamp), m.clear)
	e.sending.Unlock()
	if err != nil {
		e.fail(err)
	}
	return err
}

func (e *fastEngine) replyLocked(number uint64, op int) string {
	var buf [128]byte
	b := append(buf[:0], e.reply...)
	b = strconv.AppendUint(b, number, 10)
	b = append(b, '.', byte('0'+op))
	return string(append(b, ".$FI"...))
}

// tick ends a batch to which nothing was added for a while. While so much is
// unacknowledged that the server will say something by itself, it waits.
func (e *fastEngine) tick() {
	e.mu.Lock()
	if e.closed || e.failure != nil || e.sent == 0 || e.closing {
		e.armed = false
		e.mu.Unlock()
		return
	}
	if left := e.quiet - time.Since(e.moved); left > 0 || e.next-1-e.last.sealed >= e.flow {
		e.timer.Reset(max(left, e.quiet/4))
		e.mu.Unlock()
		return
	}
	e.armed = false
	e.end()
}

// end ends the open batch without a message; mu is held, and released.
func (e *fastEngine) end() {
	e.closing = true
	m := nats.Msg{
		Subject: e.subject, Reply: e.replyLocked(e.sent+1, fastEnd),
		// Nothing of this is stored. A server that does not know the protocol would
		// take it for a message, and refuses it for this.
		Header: nats.Header{jetstream.ExpectedLastSeqHeader: {"0"}},
	}
	e.sending.Lock()
	e.mu.Unlock()
	err := e.nc.PublishMsg(&m)
	e.sending.Unlock()
	if err != nil {
		e.fail(fmt.Errorf("ending a batch: %w", err))
	}
}

// fastAnswer is any answer of the server: a flow acknowledgement, a gap, an error,
// or the acknowledgement of the whole batch.
type fastAnswer struct {
	Type     string              `json:"type"` // "" for the last
	Sequence uint64              `json:"seq"`  // number in the batch; without a type, in the stream
	Count    uint64              `json:"count"`
	Error    *jetstream.APIError `json:"error"`
}

func (e *fastEngine) receive(m *nats.Msg) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failure != nil || e.sent == 0 || !strings.HasPrefix(m.Subject, e.reply) {
		return // of a batch that was acknowledged to its end
	}
	var a fastAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil || a.Error != nil {
		e.failLocked(refusal(m))
		return
	}
	switch {
	case a.Type == "ack" && a.Sequence <= e.sent:
		if seq := e.base + a.Sequence; seq > e.last.sealed {
			e.moved = time.Now()
			e.reach(seq)
		}
	case a.Type == "gap":
		e.failLocked(fmt.Errorf("%w: the server missed a message", errAckLost))
	case a.Type == "" && e.closing && a.Count == e.sent && a.Sequence == e.base+e.sent:
		e.sent, e.closing = 0, false
		if a.Sequence > e.last.sealed {
			e.reach(a.Sequence)
		}
		e.signal()
	case a.Type == "" && a.Sequence > 0:
		e.failLocked(fmt.Errorf("%w: the server ended a batch of %d after %d", errAckLost, e.sent, a.Count))
	default:
		e.failLocked(fmt.Errorf("%w: unexpected answer %.100q", errRefused, m.Data))
	}
}

// drain ends the open batch, so that the server does not keep it, and waits.
func (e *fastEngine) drain(ctx context.Context) error {
	e.mu.Lock()
	if e.failure == nil && e.sent > 0 && !e.closing {
		e.end()
	} else {
		e.mu.Unlock()
	}
	return e.settle(ctx, func() bool { return e.closing })
}

func (e *fastEngine) close() {
	e.mu.Lock()
	e.closed = true
	e.timer.Stop()
	e.sending.Lock() // a tick may be publishing
	e.mu.Unlock()
	e.sending.Unlock()
	e.stop()
}

var _ engine = (*fastEngine)(nil)
