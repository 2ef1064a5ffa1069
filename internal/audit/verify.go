package audit

import (
	"encoding/hex"
	"fmt"
	"iter"

	"github.com/keyweir/keyweir/internal/keycache"
)

// Fault is what is wrong with a chain. The zero Fault is invalid.
type Fault int

// The faults.
const (
	Altered Fault = iota + 1 // the record's bytes are not the ones written
	Missing                  // the record was removed
	Moved                    // the record stands at another place
	Surplus                  // there is a record beyond the end, or one twice
)

func (f Fault) String() string {
	switch f {
	case Altered:
		return "altered"
	case Missing:
		return "missing"
	case Moved:
		return "moved"
	case Surplus:
		return "surplus"
	}
	return fmt.Sprintf("Fault(%d)", int(f))
}

// ChainError names the first record that is wrong.
type ChainError struct {
	Seq    uint64 // number of the record
	Fault  Fault
	Detail string
}

func (e *ChainError) Error() string {
	return fmt.Sprintf("audit record %d is %s: %s", e.Seq, e.Fault, e.Detail)
}

// Verify checks that the raw records are, without exception, the ones written
// after from, and returns where they end. The first one that was altered,
// removed or moved is named by a *[ChainError]; errors of the iterator are
// returned as they are. To name a fault, it reads on at most to the end.
//
// Verify cannot see that records are missing at the end: compare the result
// with a [Position] kept elsewhere, or use [VerifyStore].
func Verify(records iter.Seq2[[]byte, error], from Position) (Position, error) {
	next, stop := iter.Pull2(records)
	defer stop()
	at := from
	for {
		raw, err, ok := next()
		if !ok {
			return at, nil
		}
		if err != nil {
			return Position{}, err
		}
		r, hash, err := parse(raw)
		want := at.Seq + 1
		switch {
		case err != nil:
			return Position{}, &ChainError{want, Altered, err.Error()}
		case r.Seq > want:
			return Position{}, absent(next, want, r.Seq)
		case r.Seq < want:
			return Position{}, &ChainError{r.Seq, Surplus, fmt.Sprintf("stands where record %d is expected", want)}
		case r.Prev != hex.EncodeToString(at.Hash[:]):
			return Position{}, broken(next, from, r, hash)
		}
		at = Position{Seq: r.Seq, Hash: hash}
	}
}

// absent decides whether record want, in whose place got stands, comes later.
func absent(next func() ([]byte, error, bool), want, got uint64) error {
	for {
		raw, err, ok := next()
		if !ok {
			return &ChainError{want, Missing, fmt.Sprintf("record %d stands in its place", got)}
		}
		if err != nil {
			return err
		}
		if r, _, err := parse(raw); err == nil && r.Seq == want {
			return &ChainError{want, Moved, fmt.Sprintf("record %d stands in its place", got)}
		}
	}
}

// broken decides which of two neighbours was altered and given a new hash: r,
// which is right in itself but names another record before it, or the one
// before. If the record after r names r, r is the one that was written.
func broken(next func() ([]byte, error, bool), from Position, r Record, hash [32]byte) error {
	raw, err, ok := next()
	if err != nil {
		return err
	}
	if ok {
		after, _, err := parse(raw)
		if err == nil && after.Prev != hex.EncodeToString(hash[:]) {
			return &ChainError{r.Seq, Altered, "neither neighbour fits it"}
		}
	}
	if r.Seq == from.Seq+1 { // from is trusted
		return &ChainError{r.Seq, Altered, fmt.Sprintf("does not follow %v", from)}
	}
	return &ChainError{r.Seq - 1, Altered, fmt.Sprintf("record %d follows another one", r.Seq)}
}

// VerifyStore checks the whole log of a store against its authenticated head.
// Records appended while it runs are not looked at.
func VerifyStore(s *keycache.Store) (Position, error) {
	end, err := End(s)
	if err != nil {
		return Position{}, err
	}
	got, err := Verify(upTo(s, end.Seq), Position{})
	if err != nil {
		return Position{}, err
	}
	switch {
	case got.Seq < end.Seq:
		return Position{}, &ChainError{got.Seq + 1, Missing, fmt.Sprintf("the head names %v", end)}
	case got.Hash != end.Hash:
		return Position{}, &ChainError{got.Seq, Altered, fmt.Sprintf("this one, or an earlier one and every hash since: the head names %v", end)}
	}
	return end, nil
}

// upTo yields at most the first n records in the store.
func upTo(s *keycache.Store, n uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if n == 0 {
			return
		}
		var i uint64
		for raw, err := range Read(s, 0) {
			if !yield(raw, err) || err != nil {
				return
			}
			if i++; i == n {
				return
			}
		}
	}
}
