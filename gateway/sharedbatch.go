package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// commitMarked is commit where partitions share the sealed stream: the batch ends
// with a checkpoint, and the condition is on that. What is acknowledged is the
// checkpoint's sequence; the messages count from the first one of the tenure.
func (e *durableEngine) commitMarked(b *batch, at, n int) error {
	e.attempt++
	attempt := e.inbox + "." + strconv.FormatUint(e.attempt, 10)
	id := rand.Text()
	h := e.first.Header
	h[headerBatchID], h[headerBatchSeq] = []string{id}, []string{""}
	defer func() {
		delete(h, headerBatchID)
		delete(h, headerBatchSeq)
	}()
	e.mu.Lock()
	e.open = true
	f := e.ring[(b.base+uint64(at+n))%e.window]
	e.mu.Unlock()
	for i := range n {
		h[headerBatchSeq][0] = strconv.Itoa(i + 1)
		e.first.Reply = ""
		if i == 0 {
			e.first.Reply = attempt + ".first" // says why, if the server takes no batch
		}
		m := &b.entries[at+i]
		if err := e.first.send(e.nc, m.subject, b.data[m.from:m.to], m.position, m.clear); err != nil {
			return err
		}
	}
	reached := cursor{scanned: f.source, previous: f.previous, timestamp: f.timestamp}
	last := e.marks.header(e.marks.signer.sign(0, e.marks.follows, uint64(n), reached))
	last[headerBatchID], last[headerBatchSeq], last[headerBatchCommit] = []string{id}, []string{strconv.Itoa(n + 1)}, []string{"1"}
	if err := e.nc.PublishMsg(&nats.Msg{Subject: e.marks.subject, Reply: attempt + ".commit", Header: last}); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	seq, err := e.answer(attempt, id, 0, uint64(n)+1)
	if err != nil {
		e.resolve(err)
		return err
	}
	if seq < e.marks.follows+uint64(n)+1 {
		return fmt.Errorf("%w: got one for sequence %d behind %d", errAckLost, seq, e.marks.follows)
	}
	e.marks.commit(seq, reached)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open = false
	e.stored = seq
	return nil
}

// commit notes that a batch ended with a checkpoint.
func (m *marker) commit(seq uint64, at cursor) {
	m.follows, m.at = seq, at
	m.marked = time.Now()
}

// resolve notes that the server refused a batch, if err is such a refusal: then
// nothing of it was stored.
func (e *durableEngine) resolve(err error) {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return
	}
	switch code := api.ErrorCode; {
	case wrongSequence(api), code == codeStoreFailed, code == codeIncomplete, code == codeTooLarge, code == codeTooMany:
		e.mu.Lock()
		defer e.mu.Unlock()
		e.open = false
	}
}

// settled reports whether the server's answer to every batch is known; it is called
// after close.
func (e *durableEngine) settled() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.open
}

// crowded reports whether a batch was refused by a condition that holds all the same: a
// replicated stream says so (10164) while something else is on its way. Then the
// whole batch is sent again.
func (e *durableEngine) crowded(err error) bool {
	if e.marks == nil || !errors.Is(err, ErrFenced) {
		return false
	}
	moved, merr := e.marks.moved(e.ctx)
	return merr == nil && !moved
}

// renew stores the last checkpoint once more if that is due.
func (e *durableEngine) renew() error {
	due, err := e.marks.due(e.ctx)
	if err == nil && due {
		err = e.marks.mark(e.ctx)
	}
	switch {
	case errors.Is(err, ErrFenced), err != nil && due:
		return err
	case err != nil:
		e.marks.looked = time.Now() // the size is looked at again soon
		return nil
	case due:
		e.mu.Lock()
		defer e.mu.Unlock()
		e.stored = e.marks.follows
		e.last.stored = e.stored
	}
	return nil
}

// withMarks makes the engine one of a partition that shares its sealed stream.
func (e *durableEngine) withMarks(m *marker) {
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if m == nil {
		return
	}
	e.marks = m
	e.limits.count = min(e.limits.count, maxAtomic-1) // and the checkpoint
	delete(e.first.Header, jetstream.ExpectedLastSeqHeader)
}

// maxAtomic is how many messages an atomic batch may have.
const maxAtomic = 1000
