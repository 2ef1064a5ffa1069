package audit

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/keyweir/keyweir/internal/keycache"
)

// Position is a place in the chain: the number and hash of a record. The zero
// Position is before the first record.
type Position struct {
	Seq  uint64
	Hash [32]byte
}

// String gives the number and the whole hash.
func (p Position) String() string { return fmt.Sprintf("record %d, hash %x", p.Seq, p.Hash) }

// A Position in the store's head: 8 bytes number, 32 bytes hash.
func (p Position) state() []byte {
	return append(binary.BigEndian.AppendUint64(nil, p.Seq), p.Hash[:]...)
}

func parseState(b []byte) (p Position, err error) {
	if len(b) == 0 {
		return Position{}, nil
	}
	if len(b) != 8+len(p.Hash) {
		return Position{}, fmt.Errorf("audit state has %d bytes, want %d", len(b), 8+len(p.Hash))
	}
	p.Seq = binary.BigEndian.Uint64(b)
	copy(p.Hash[:], b[8:])
	return p, nil
}

// End is the last durable record according to the store's authenticated head.
func End(s *keycache.Store) (Position, error) {
	p, err := parseState(s.Head().State)
	if err != nil {
		return Position{}, fmt.Errorf("reading audit position: %w", err)
	}
	return p, nil
}

// Rows of the log: prefix and the number, 8 bytes big-endian.
var prefix = []byte("audit/")

func rowKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(prefix), seq)
}

// Chain writes records. It has no state of its own: the end of the chain is in
// the store's head. Give it to the store as its Sequencer.
type Chain struct {
	Instance string           // put into records without one
	Now      func() time.Time // nil means time.Now
}

var _ keycache.Sequencer = (*Chain)(nil)

// Check refuses a store whose last record is not the one its head names.
func (c *Chain) Check(r keycache.Reader, state []byte) error {
	end, err := parseState(state)
	if err != nil {
		return err
	}
	last, err := r.Last(prefix)
	if errors.Is(err, keycache.ErrNotFound) {
		if end.Seq != 0 {
			return fmt.Errorf("audit log is empty, the head names %v", end)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading last audit record: %w", err)
	}
	if end.Seq == 0 {
		return errors.New("audit log has records, the head names none")
	}
	rec, hash, err := parse(last.Value)
	if err != nil {
		return fmt.Errorf("last audit record: %w", err)
	}
	if !bytes.Equal(last.Key, rowKey(end.Seq)) || rec.Seq != end.Seq || hash != end.Hash {
		return fmt.Errorf("audit log ends with record %d, the head names %v", rec.Seq, end)
	}
	return nil
}

// Sequence numbers and links records. Records are of type Record or *Record
// (which is not changed); anything else, and an invalid record, is [ErrInvalid].
func (c *Chain) Sequence(state []byte, records []any) (rows []keycache.Entry, next []byte, err error) {
	at, err := parseState(state)
	if err != nil {
		return nil, nil, err
	}
	for _, rec := range records {
		var r Record
		switch v := rec.(type) {
		case Record:
			r = v
		case *Record:
			r = *v
		default:
			return nil, nil, fmt.Errorf("record of type %T: %w", rec, ErrInvalid)
		}
		row, err := c.link(&at, r)
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, row)
	}
	return rows, at.state(), nil
}

// link makes r the record after at and moves at.
func (c *Chain) link(at *Position, r Record) (keycache.Entry, error) {
	if r.Instance == "" {
		r.Instance = c.Instance
	}
	if r.Time.IsZero() {
		now := c.Now
		if now == nil {
			now = time.Now
		}
		r.Time = now()
	}
	if err := r.check(); err != nil {
		return keycache.Entry{}, err
	}
	r.tidy()
	r.Seq, r.Prev = at.Seq+1, hex.EncodeToString(at.Hash[:])
	hash, err := r.sum(at.Hash)
	if err != nil {
		return keycache.Entry{}, err
	}
	r.Hash = hex.EncodeToString(hash[:])
	value, err := r.encode()
	if err != nil {
		return keycache.Entry{}, err
	}
	*at = Position{Seq: r.Seq, Hash: hash}
	return keycache.Entry{Key: rowKey(r.Seq), Value: value}, nil
}

// Read yields the stored records, oldest first, starting with number from (0
// and 1: the first), as they are: they are not checked. An error ends the loop.
func Read(r keycache.Reader, from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for e, err := range r.ScanFrom(prefix, rowKey(from)) {
			if err != nil {
				yield(nil, fmt.Errorf("reading audit log: %w", err))
				return
			}
			if !yield(e.Value, nil) {
				return
			}
		}
	}
}
