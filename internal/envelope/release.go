package envelope

import "encoding/binary"

// A gateway that held messages back, because their scope had no key for a while,
// seals them later than their place on the chain. They form a chain of their own
// for each row of messages that was held, which runs beside the chain of the
// others:
//
//	8   the first bytes of the chain it runs beside
//	2   "rl"
//	6   sequence of its first message, below 2^48
//
// Sequences and links are those of any chain, source sequences and the one before.
// Since the first sequence stands in the ID, every message proves by itself that it
// may stand between messages of other chains, and the first one that it is the first.

const (
	releaseMark = 'r'<<8 | 'l'
	releaseBits = 48
)

// ReleaseChain returns the chain of the messages held back beside main, of which
// the first is first, a sequence below 2^48.
func ReleaseChain(main ChainID, first uint64) ChainID {
	c := main
	binary.BigEndian.PutUint64(c[8:], releaseMark<<releaseBits|first&(1<<releaseBits-1))
	return c
}

// ReleasedFrom returns the first sequence of a release chain, of which a message
// with this sequence and previous is a part; ok is false for a message of any
// other chain. The random ID of another chain passes with a probability of its
// sequence divided by 2^64.
func (c ChainID) ReleasedFrom(sequence, previous uint64) (first uint64, ok bool) {
	n := binary.BigEndian.Uint64(c[8:])
	first = n & (1<<releaseBits - 1)
	if n>>releaseBits != releaseMark || first == 0 || previous >= sequence {
		return 0, false
	}
	if previous == 0 {
		return first, first == sequence
	}
	return first, first <= previous
}

// Beside reports whether a release chain runs beside main.
func (c ChainID) Beside(main ChainID) bool { return [8]byte(c[:8]) == [8]byte(main[:8]) }
