package envelope

import "encoding/binary"

// A gateway that held messages back, because their scope had no key for a while,
// seals them later than their place on the chain. They form a chain of their own
// for each row of messages that was held, which runs beside the chain of the
// others:
//
//	8   the first bytes of the chain it runs beside
//	8   sequence of its first message, below 2^56
//
// Sequences and links are those of any chain, source sequences and the one before.
// Since the first sequence stands in the ID, every message proves by itself that it
// may stand between messages of other chains, and the first one that it is the first.

// ReleaseChain returns the chain of the messages held back beside main, of which
// the first is first.
func ReleaseChain(main ChainID, first uint64) ChainID {
	c := main
	binary.BigEndian.PutUint64(c[8:], first)
	return c
}

// ReleasedFrom returns the first sequence of a release chain, of which a message
// with this sequence and previous is a part; ok is false for a message of any
// other chain. Random chain IDs pass for release chains once in 2^8 times 2^56
// divided by the sequence.
func (c ChainID) ReleasedFrom(sequence, previous uint64) (first uint64, ok bool) {
	first = binary.BigEndian.Uint64(c[8:])
	if first == 0 || first >= 1<<56 || previous >= sequence {
		return 0, false
	}
	if previous == 0 {
		return first, first == sequence
	}
	return first, first <= previous
}

// Beside reports whether a release chain runs beside main.
func (c ChainID) Beside(main ChainID) bool { return [8]byte(c[:8]) == [8]byte(main[:8]) }
