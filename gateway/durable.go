package gateway

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// durableEngine publishes atomic batches: the server keeps the messages aside and
// stores all or none at the commit, which costs it one sync. One batch is in
// flight; the next one fills meanwhile, and leaves when it is full, when nothing
// more waits in the source, or when it is old. The first message names the
// sequence the batch must follow, which stands for all.
//
// A refusal that proves that nothing was stored, and says nothing of another
// writer, is answered by sending the same sealed bytes again. Everything else ends
// the engine, and the position is read again.
type durableEngine struct {
	ledger
	stream string
	signer *signer
	limits batchLimits
	patience,
	pause time.Duration // for refusals that pass

	// Of the sender: one alone, or the first of a batch, and the rest of it; the batch
	// and the number in it, in the headers of both.
	first, rest message
	id, number  []string
	numbers     []string
	inbox       string
	attempt     uint64
	answers     chan *nats.Msg
	marks       *marker         // of the sender, once it runs; nil: the stream is nobody else's
	ctx         context.Context // of the requests for marks; ends with close
	cancel      context.CancelFunc
	kick        chan struct{} // capacity 1: the sender shall look again

	// Guarded by mu, like the ledger.
	fill  *batch
	size  int  // of the message that awaits room
	hurry bool // draining: nothing more will come

	// With marks.
	open   bool   // a batch was sent, and what became of it is not known
	stored uint64 // the last checkpoint
}

// batchLimits bound an atomic batch.
type batchLimits struct {
	count, bytes int
	age          time.Duration
}

var defaultBatchLimits = batchLimits{count: 1000, bytes: 1 << 20, age: 20 * time.Millisecond}

// batch holds sealed messages. Its arrays are used again.
type batch struct {
	base    uint64 // sealed sequence before its first message
	entries []entry
	data    []byte
	bytes   int // as they count
	since   time.Time
	due     bool
}

type entry struct {
	subject, position string
	from, to          int // in data
	clear             nats.Header
}

func (b *batch) reset() {
	clear(b.entries)
	*b = batch{entries: b.entries[:0], data: b.data[:0]}
}

func newDurable(cfg engineConfig, limits batchLimits) (*durableEngine, error) {
	e := &durableEngine{
		stream: cfg.stream, signer: cfg.signer, limits: limits, patience: cfg.ackTimeout / 2, pause: 20 * time.Millisecond,
		first: newMessage(&cfg), rest: newRest(&cfg), id: []string{""}, number: []string{""}, inbox: cfg.nc.NewInbox(),
		answers: make(chan *nats.Msg, 16), kick: make(chan struct{}, 1), fill: &batch{},
	}
	delete(e.rest.Header, jetstream.ExpectedLastSeqHeader) // the first says it for all
	e.rest.Header[headerBatchID], e.rest.Header[headerBatchSeq] = e.id, e.number
	e.withMarks(cfg.marks)
	e.init(&cfg, 2*limits.count) // one batch fills, one is in flight
	e.ready, e.stored = e.fits, cfg.lastSeq
	if err := e.listen(e.inbox+".*.*", cfg.ackTimeout, e.receive); err != nil {
		e.cancel()
		return nil, err
	}
	e.done.Go(e.run)
	return e, nil
}

// fits reports whether the batch takes another message of e.size; mu is held.
func (e *durableEngine) fits() bool {
	b := e.fill
	return len(b.entries) == 0 || len(b.entries) < e.limits.count && b.bytes+e.size <= e.limits.bytes
}

func (e *durableEngine) publish(ctx context.Context, m *outgoing) error {
	size := len(m.subject) + len(m.data) + engineHeaderSize(e.stream)
	for name, values := range m.clear {
		for _, v := range values {
			size += len(name) + len(v) + 4
		}
	}
	e.mu.Lock()
	e.size = size
	if !e.fits() {
		e.fill.due = true
		e.look()
	}
	e.mu.Unlock()
	if err := e.await(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	seq := e.enter(m)
	b := e.fill
	if len(b.entries) == 0 {
		b.base, b.since = seq-1, time.Now()
		e.look()
	}
	from := len(b.data)
	b.data = append(b.data, m.data...)
	b.entries = append(b.entries, entry{
		m.subject, e.signer.sign(seq, m), from, len(b.data), maps.Clone(m.clear),
	})
	b.bytes += size
	if m.last || len(b.entries) >= e.limits.count {
		b.due = true
		e.look()
	}
	return nil
}

// look makes the sender look at the batch.
func (e *durableEngine) look() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// run sends batches, one after the other.
func (e *durableEngine) run() {
	age := time.NewTimer(time.Hour)
	defer age.Stop()
	spare := &batch{}
	for {
		e.mu.Lock()
		b := e.fill
		wait := time.Hour
		if len(b.entries) > 0 {
			wait = e.limits.age - time.Since(b.since)
		}
		if e.marks != nil {
			wait = min(wait, e.marks.wait())
		}
		if len(b.entries) > 0 && (b.due || e.hurry || time.Since(b.since) >= e.limits.age) {
			e.fill = spare
			e.signal() // there is room
			e.mu.Unlock()
			if err := e.deliver(b); err != nil {
				e.fail(err)
				return
			}
			b.reset()
			spare = b
			continue
		}
		e.mu.Unlock()
		if e.marks != nil {
			if err := e.renew(); err != nil {
				e.fail(err)
				return
			}
			wait = min(wait, e.marks.wait())
		}
		age.Reset(wait)
		select {
		case <-e.kick:
		case <-age.C:
		case <-e.broken:
			return
		case <-e.quit:
			return
		}
	}
}

// Refusals of atomic batches.
const (
	codeStoreFailed = 10077 // a full stream may have room for a part
	codeIncomplete  = 10176 // the leader changed, or forgot the batch
	codeTooLarge    = 10199 // for this server's max_batch_size
	codeTooMany     = 10210
)

// deliver publishes b until it is acknowledged: in one piece, or in as few as the
// server's limit and the room in the stream allow.
func (e *durableEngine) deliver(b *batch) error {
	deadline := time.Now().Add(e.patience)
	piece := len(b.entries)
	for at := 0; at < len(b.entries); {
		n := min(len(b.entries)-at, piece)
		err := e.commit(b, at, n)
		var api *jetstream.APIError
		switch {
		case err == nil:
			at += n
			e.mu.Lock()
			e.reach(b.base + uint64(at))
			if e.marks != nil {
				e.last.stored = e.stored
			}
			e.mu.Unlock()
			deadline = time.Now().Add(e.patience)
		case errors.Is(err, ErrFenced) && !e.crowded(err) || !errors.As(err, &api):
			return err
		case api.ErrorCode == codeStoreFailed && n > 1:
			piece = n / 2
		case api.ErrorCode == codeTooLarge && n > 1:
			piece = n / 2
			e.mu.Lock()
			e.limits.count = piece // for later batches too
			e.mu.Unlock()
		case api.ErrorCode != codeTooMany && api.ErrorCode != codeIncomplete && !errors.Is(err, ErrFenced) || time.Now().After(deadline):
			return err
		default:
			select {
			case <-time.After(e.pause):
			case <-e.broken:
				return e.err()
			case <-e.quit:
				return errAckLost
			}
		}
	}
	return nil
}

// commit publishes n messages of b and waits for the answer.
func (e *durableEngine) commit(b *batch, at, n int) error {
	if e.marks != nil {
		return e.commitMarked(b, at, n)
	}
	attempt, id, err := e.send(b, at, n)
	if err != nil {
		return err
	}
	_, err = e.answer(attempt, id, b.base+uint64(at+n), uint64(n))
	return err
}

// send publishes n messages of b. One message goes alone, without a batch, which
// costs the server less. Answers come to subjects that begin with attempt.
func (e *durableEngine) send(b *batch, at, n int) (attempt, id string, err error) {
	e.attempt++
	attempt = e.inbox + "." + strconv.FormatUint(e.attempt, 10)
	if n > 1 {
		id = rand.Text()
		e.first.Header[headerBatchID], e.first.Header[headerBatchSeq] = e.id, e.number
	} else {
		delete(e.first.Header, headerBatchID)
		delete(e.first.Header, headerBatchSeq)
	}
	e.id[0] = id
	e.first.follows[0] = strconv.FormatUint(b.base+uint64(at), 10)
	delete(e.rest.Header, headerBatchCommit)
	for i := range n {
		msg := &e.rest
		if i == 0 {
			msg = &e.first
		}
		msg.Reply = ""
		e.number[0] = e.decimal(i + 1)
		switch {
		case i == n-1:
			msg.Reply = attempt + ".commit"
			if id != "" {
				msg.Header[headerBatchCommit] = commits
			}
		case i == 0:
			msg.Reply = attempt + ".first" // says why, if the server takes no batch
		}
		m := &b.entries[at+i]
		if err := msg.send(e.nc, m.subject, b.data[m.from:m.to], m.position, m.clear); err != nil {
			return "", "", err
		}
	}
	return attempt, id, nil
}

var commits = []string{"1"}

// decimal is n in decimal, for numbers that come in every batch.
func (e *durableEngine) decimal(n int) string {
	for len(e.numbers) < n {
		e.numbers = append(e.numbers, strconv.Itoa(len(e.numbers)+1))
	}
	return e.numbers[n-1]
}

// answer waits for what the server says to a commit: the sequence of its last
// message, which has to be last unless that is 0.
func (e *durableEngine) answer(attempt, id string, last, count uint64) (uint64, error) {
	var cause error
	for {
		var m *nats.Msg
		select {
		case m = <-e.answers:
		case <-e.broken:
			return 0, e.err()
		case <-e.quit:
			return 0, errAckLost
		}
		switch m.Subject {
		case attempt + ".first":
			if len(m.Data) > 0 || m.Header.Get("Status") != "" {
				cause = refusal(m)
			}
			continue
		case attempt + ".commit":
		default:
			continue // of an earlier attempt
		}
		var ack struct {
			Sequence  uint64              `json:"seq"`
			Batch     string              `json:"batch"`
			Count     uint64              `json:"count"`
			Duplicate bool                `json:"duplicate"`
			Error     *jetstream.APIError `json:"error"`
		}
		err := json.Unmarshal(m.Data, &ack)
		switch {
		case err != nil || ack.Error != nil:
			err = refusal(m)
			if cause != nil && ack.Error != nil && ack.Error.ErrorCode == codeIncomplete {
				err = cause
			}
			return 0, err
		case ack.Duplicate || last > 0 && ack.Sequence != last || ack.Batch != id || id != "" && ack.Count != count:
			return 0, fmt.Errorf("%w: got one for %d messages up to sequence %d, want %d up to %d", errAckLost, ack.Count, ack.Sequence, count, last)
		}
		return ack.Sequence, nil
	}
}

func (e *durableEngine) receive(m *nats.Msg) {
	select {
	case e.answers <- m:
	case <-e.quit:
	}
}

// flush sends what is there and waits until it is acknowledged. Others may follow.
func (e *durableEngine) flush(ctx context.Context) error {
	e.mu.Lock()
	e.fill.due = len(e.fill.entries) > 0
	e.mu.Unlock()
	e.look()
	return e.settle(ctx, func() bool { return false })
}

// drain sends what is there, without waiting for more.
func (e *durableEngine) drain(ctx context.Context) error {
	e.mu.Lock()
	e.hurry = true
	e.mu.Unlock()
	e.look()
	return e.settle(ctx, func() bool { return false })
}

// close stops the sender. What it published may still be stored: the fence decides.
func (e *durableEngine) close() {
	e.cancel()
	e.stop()
}

var _ engine = (*durableEngine)(nil)
