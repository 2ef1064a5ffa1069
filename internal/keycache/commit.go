package keycache

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/cockroachdb/pebble/v2"
)

// maxGroup bounds what one commit carries: batches join until it is exceeded.
const maxGroup = 1 << 20

// request is one batch on its way to the committer.
type request struct {
	b     *Batch
	done  chan error // buffered: the committer never waits
	taken bool       // under Store.mu: the committer has it
}

// Apply makes the batch durable. It answers nil only when rows and head are on
// the disk; after [ErrStopped] only a reopened store can tell whether they are.
// Every other error means that nothing of the batch was written. Batches of
// concurrent callers share a commit, in the order of their Apply calls.
//
// ctx counts until the committer took the batch; from then on Apply waits for
// the outcome. An empty batch does nothing.
func (s *Store) Apply(ctx context.Context, b *Batch) error {
	switch {
	case b.err != nil:
		return fmt.Errorf("applying batch: %w", b.err)
	case len(b.records) > 0 && s.seq == nil:
		return fmt.Errorf("applying batch: records without a sequencer: %w", ErrInvalid)
	case ctx.Err() != nil:
		return fmt.Errorf("applying batch: %w", context.Cause(ctx))
	case s.isStopped():
		return s.stopped()
	case b.Len() == 0:
		return nil
	}
	r := &request{b: b, done: make(chan error, 1)}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return fmt.Errorf("%w: closed", ErrStopped)
	}
	s.pending = append(s.pending, r)
	s.mu.Unlock()
	s.signal()

	select {
	case err := <-r.done:
		return err
	case <-s.stop:
		return s.outcome(r)
	case <-ctx.Done():
	}
	if s.withdraw(r) {
		return fmt.Errorf("applying batch: %w", context.Cause(ctx))
	}
	select {
	case err := <-r.done:
		return err
	case <-s.stop:
		return s.outcome(r)
	}
}

// outcome prefers the committer's answer to the store's end.
func (s *Store) outcome(r *request) error {
	select {
	case err := <-r.done:
		return err
	default:
		return s.stopped()
	}
}

// withdraw removes a request the committer has not taken yet.
func (s *Store) withdraw(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.taken {
		return false
	}
	for i, p := range s.pending {
		if p == r {
			s.pending = append(s.pending[:i], s.pending[i+1:]...)
			return true
		}
	}
	return false
}

func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take removes the next group from the queue. No group and false: closing.
func (s *Store) take() (group []*request, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.pending) && (n == 0 || size+s.pending[n].b.size <= maxGroup) {
		size += s.pending[n].b.size
		s.pending[n].taken = true
		n++
	}
	group = append(group, s.pending[:n]...)
	rest := copy(s.pending, s.pending[n:])
	clear(s.pending[rest:])
	s.pending = s.pending[:rest]
	return group, n > 0 || !s.closing
}

// commitLoop is the committer: the one goroutine that writes.
func (s *Store) commitLoop() {
	defer close(s.committed)
	for {
		group, more := s.take()
		switch {
		case len(group) > 0:
			if err := s.commit(group); err != nil {
				s.fail(err)
				return
			}
		case !more:
			return
		default:
			select {
			case <-s.wake:
			case <-s.stop:
				return
			}
		}
	}
}

// commit writes one group and answers its callers. An error is fatal: callers
// get theirs through the stop channel.
func (s *Store) commit(group []*request) error {
	prev := s.head.Load()
	next := prev.clone()
	next.Generation++
	next.previous = prev.Hash
	sum := commitHash(prev)
	batch := s.db.NewBatch()
	accepted := group[:0]
	for _, r := range group {
		rows, state, err := s.sequence(next.State, r.b.records)
		if err != nil {
			r.done <- err
			continue
		}
		next.State = state
		accepted = append(accepted, r)
		for _, o := range append(r.b.ops[:len(r.b.ops):len(r.b.ops)], rows...) {
			sum.op(o)
			next.Records++
			if o.del {
				err = batch.Delete(o.key, nil)
			} else {
				err = batch.Set(o.key, o.value, nil)
			}
			if err != nil {
				return fmt.Errorf("filling commit: %w", err)
			}
		}
	}
	if len(accepted) == 0 {
		_ = batch.Close()
		return nil
	}
	sum.Sum(next.Hash[:0])
	enc, err := encodeHead(&next, s.auth)
	if err != nil {
		return err
	}
	if err := batch.Set(headRow, enc, nil); err != nil {
		return fmt.Errorf("filling commit: %w", err)
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	// A crash here leaves the store one commit ahead of HEAD: loadHead keeps it.
	if err := s.slots.write(next.Generation, enc); err != nil {
		return err
	}
	s.head.Store(&next)
	for _, r := range accepted {
		r.done <- nil
	}
	_ = batch.Close() // after a commit it only recycles memory
	return nil
}

// sequence turns the records of one batch into changes.
func (s *Store) sequence(state []byte, records []any) ([]op, []byte, error) {
	if len(records) == 0 {
		return nil, state, nil
	}
	rows, next, err := s.seq.Sequence(state, records)
	if err != nil {
		return nil, nil, fmt.Errorf("sequencing records: %w", err)
	}
	if len(next) > MaxState {
		return nil, nil, fmt.Errorf("sequencing records: state has %d bytes, limit %d: %w", len(next), MaxState, ErrInvalid)
	}
	var b Batch
	for _, e := range rows {
		b.Put(e.Key, e.Value)
	}
	if b.err != nil {
		return nil, nil, fmt.Errorf("sequencing records: %w", b.err)
	}
	return b.ops, next, nil
}

// hashWriter feeds length-prefixed fields to a hash.
type hashWriter struct{ hash.Hash }

func (w *hashWriter) number(n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	w.Write(b[:])
}

func (w *hashWriter) op(o op) {
	kind := uint64(1)
	if o.del {
		kind = 2
	}
	w.number(kind)
	w.number(uint64(len(o.key)))
	w.Write(o.key)
	w.number(uint64(len(o.value)))
	w.Write(o.value)
}
