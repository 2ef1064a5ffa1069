package keycache

import (
	"bytes"
	"errors"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"
)

// Reader is the reading half of a [Store].
type Reader interface {
	Get(key []byte) ([]byte, error)
	Last(prefix []byte) (Entry, error)
	Scan(prefix []byte) iter.Seq2[Entry, error]
	ScanFrom(prefix, from []byte) iter.Seq2[Entry, error]
}

var _ Reader = (*Store)(nil)

// Get returns the value of key, or [ErrNotFound]. The slice is the caller's.
func (s *Store) Get(key []byte) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.get(userKey(key))
}

func (s *Store) get(k []byte) ([]byte, error) {
	v, closer, err := s.db.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading row: %w", err)
	}
	out := append([]byte{}, v...)
	if err := closer.Close(); err != nil {
		return nil, fmt.Errorf("reading row: %w", err)
	}
	return out, nil
}

// Scan yields the rows whose key starts with prefix in key order, as they were
// when the loop began; an empty prefix means all. Slices are the caller's. An
// error ends the loop. Breaking the loop releases everything.
func (s *Store) Scan(prefix []byte) iter.Seq2[Entry, error] { return s.ScanFrom(prefix, nil) }

// ScanFrom is [Store.Scan] starting at the first key that is not below from.
func (s *Store) ScanFrom(prefix, from []byte) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := s.enter(); err != nil {
			yield(Entry{}, err)
			return
		}
		defer s.leave()
		it, err := s.iterator(prefix)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		err = s.scan(it, from, yield)
		if cerr := it.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("scanning rows: %w", cerr)
		}
		if err != nil && !errors.Is(err, errBreak) {
			yield(Entry{}, err)
		}
	}
}

// errBreak says that the consumer of a scan left its loop.
var errBreak = errors.New("loop left")

func (s *Store) scan(it *pebble.Iterator, from []byte, yield func(Entry, error) bool) error {
	for ok := it.SeekGE(userKey(from)); ok; ok = it.Next() {
		if s.isStopped() {
			return s.stopped()
		}
		e, err := entry(it)
		if err != nil {
			return err
		}
		if !yield(e, nil) {
			return errBreak
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("scanning rows: %w", err)
	}
	return nil
}

// Last returns the row with the highest key that starts with prefix, or
// [ErrNotFound].
func (s *Store) Last(prefix []byte) (Entry, error) {
	if err := s.enter(); err != nil {
		return Entry{}, err
	}
	defer s.leave()
	it, err := s.iterator(prefix)
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	switch {
	case it.Last():
		e, err = entry(it)
	case it.Error() != nil:
		err = fmt.Errorf("reading last row: %w", it.Error())
	default:
		err = ErrNotFound
	}
	if cerr := it.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("reading last row: %w", cerr)
	}
	if err != nil {
		return Entry{}, err
	}
	return e, nil
}

func (s *Store) iterator(prefix []byte) (*pebble.Iterator, error) {
	lower, upper := bounds(prefix)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("scanning rows: %w", err)
	}
	return it, nil
}

func entry(it *pebble.Iterator) (Entry, error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return Entry{}, fmt.Errorf("reading row: %w", err)
	}
	return Entry{Key: bytes.Clone(it.Key()[1:]), Value: append([]byte{}, v...)}, nil
}

// bounds are the stored keys that start with prefix: lower <= key < upper.
func bounds(prefix []byte) (lower, upper []byte) {
	lower = userKey(prefix)
	upper = bytes.Clone(lower)
	for i := len(upper) - 1; ; i-- { // ends at the latest at userSpace, which is below 0xff
		if upper[i] != 0xff {
			upper[i]++
			return lower, upper[:i+1]
		}
	}
}
