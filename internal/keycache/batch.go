package keycache

import "fmt"

// Entry is one row.
type Entry struct{ Key, Value []byte }

// Batch collects changes for [Store.Apply]. The zero Batch is empty and ready.
// Later changes of a key win over earlier ones. A Batch is not safe for
// concurrent use and may not be touched while Apply runs; it can be applied again.
type Batch struct {
	ops     []op
	records []any
	size    int
	err     error // the first change that was out of bounds
}

type op struct {
	key, value []byte // copies; key starts with userSpace
	del        bool
}

// Put sets a row. Key and value are copied. A key is 1 to MaxKey bytes, a value
// up to MaxValue; Apply reports what is out of bounds.
func (b *Batch) Put(key, value []byte) {
	if len(value) > MaxValue && b.err == nil {
		b.err = fmt.Errorf("value has %d bytes, limit %d: %w", len(value), MaxValue, ErrInvalid)
	}
	b.add(key, value, false)
}

// Delete removes a row; a missing one is no error.
func (b *Batch) Delete(key []byte) { b.add(key, nil, true) }

// Attach adds a record for the store's [Sequencer], which turns it into rows of
// the same commit. The record must not be changed until Apply returned.
func (b *Batch) Attach(record any) { b.records = append(b.records, record) }

// Len is the number of changes and records.
func (b *Batch) Len() int { return len(b.ops) + len(b.records) }

// Reset empties the batch and wipes the copies of keys and values it held.
func (b *Batch) Reset() {
	for _, o := range b.ops {
		clear(o.value)
	}
	clear(b.ops)
	clear(b.records)
	*b = Batch{ops: b.ops[:0], records: b.records[:0]}
}

func (b *Batch) add(key, value []byte, del bool) {
	b.size += len(key) + len(value)
	switch {
	case b.err != nil:
		return
	case len(key) == 0 || len(key) > MaxKey:
		b.err = fmt.Errorf("key has %d bytes, want 1 to %d: %w", len(key), MaxKey, ErrInvalid)
		return
	case b.size > MaxBatch:
		b.err = fmt.Errorf("batch exceeds %d bytes: %w", MaxBatch, ErrInvalid)
		return
	}
	b.ops = append(b.ops, op{key: userKey(key), value: append([]byte(nil), value...), del: del})
}

func userKey(key []byte) []byte {
	k := make([]byte, 0, 1+len(key))
	return append(append(k, userSpace), key...)
}

// Sequencer turns records attached to batches into rows in commit order, for
// example a hash chain. Its methods run on the store's committer: they must be
// quick, and may not call [Store.Apply] or [Store.Close].
type Sequencer interface {
	// Check is called by Open with the state the head vouches for (nil for a
	// new store) and refuses rows that do not agree with it.
	Check(r Reader, state []byte) error
	// Sequence returns the rows for the records of one batch and the state
	// after them, at most MaxState bytes. It is a function of its arguments
	// (and a clock): state is kept by the store. An error refuses the batch,
	// and nothing of it is written.
	Sequence(state []byte, records []any) (rows []Entry, next []byte, err error)
}

// MaxState is the largest state of a [Sequencer] in bytes.
const MaxState = 128
