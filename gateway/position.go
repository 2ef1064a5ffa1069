package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// Headers of a sealed message, in clear.
const (
	HeaderVersion = "Keyweir"        // "1"
	HeaderSource  = "Keyweir-Source" // see position
)

// position is what HeaderSource of a sealed message says: which source message
// it is the sealed copy of.
//
//	<chain>:<sequence>:<previous>:<source created>:<source timestamp>:<mac>
//
// chain is 32 hexadecimal digits, both sequences are decimal, both times unix
// nanoseconds, mac 43 characters of unpadded base64url.
//
// A message that was held back, see holds, is sealed later than its place. Its
// header says where it stood, on a chain of its own, and then where the route is:
//
//	<release chain>:<sequence>:<previous>:<source created>:<source timestamp>:
//	<chain>:<scanned>:<previous>:<source created>:<source timestamp>:<mac>
type position struct {
	chain     envelope.ChainID
	sequence  uint64 // of the message; if own is set, up to which the source is sealed or held
	previous  uint64 // source sequence of the message before this one on the chain; 0: first
	created   int64  // when the source stream was made
	timestamp int64  // when the source stream stored the message; if own is set, the one at previous
	own       *link  // of a message that was held back; nil for all others
}

// link is where a message that was held back stood.
type link struct {
	chain     envelope.ChainID // its release chain
	sequence  uint64
	previous  uint64
	created   int64
	timestamp int64
}

// cursor is where the source has to be read on.
func (p *position) cursor() cursor {
	if p.own != nil {
		return cursor{scanned: p.sequence, previous: p.previous, timestamp: p.timestamp}
	}
	return cursor{scanned: p.sequence, previous: p.sequence, timestamp: p.timestamp}
}

// message is which source message the header stands on.
func (p *position) message() link {
	if p.own != nil {
		return *p.own
	}
	return link{p.chain, p.sequence, p.previous, p.created, p.timestamp}
}

// before reports whether l is of an older source stream than o, or of the same
// one and stood before o.
func (l link) before(o *link) bool {
	return l.created < o.created || l.created == o.created && l.sequence < o.sequence
}

// home is what a position is bound to besides its own fields. Equal names in
// another place, partition or incarnation make another MAC.
type home struct {
	route         string
	sealed        string
	sealedCreated int64
	partition     uint32
	source        string
	shared        bool // with other partitions
}

// Labels of the MACs under a route key; they differ, so that neither can be
// taken for the other.
const (
	labelPosition = "keyweir/v1/position"
	labelShared   = "keyweir/v1/shared-position"
	labelRecord   = "keyweir/v1/position-record"
	labelLetter   = "keyweir/v1/dead-letter"
)

var b64 = base64.RawURLEncoding.Strict()

// signer makes and checks the MACs of positions. It belongs to one goroutine.
//
// The MAC has two levels: a key of its own for everything that stays the same
// during one tenure,
//
//	K = HMAC-SHA-256(route key, "keyweir/v1/position" || route || sealed stream || sealed created ||
//	                 partition || source stream || source created || chain)   strings length-prefixed
//
// and HMAC-SHA-256(K, sealed sequence || source sequence || previous || source
// timestamp) per message. That is as strong as one HMAC over everything and costs two
// compressions a message instead of five.
//
// The sealed sequence is the one the message will have, which the fence makes
// certain beforehand. Without it, anybody who may publish to the sealed subjects
// could store an older, genuine header once more and send the relay back. Where
// partitions share a stream, only checkpoints send anybody anywhere; what is known
// of them beforehand is under their MAC, see checkpointSigner, and the sequence of
// a sealed message counts as 0, under a label of its own.
type signer struct {
	shared  bool
	mac     hash.Hash
	prefix  []byte // "<chain>:"
	middle  []byte // ":<created>:"
	scratch []byte
	sum     [sha256.Size]byte
}

func newSigner(key keysvc.RouteKey, h *home, chain envelope.ChainID, created int64) *signer {
	raw := envelope.ExposeDataKey(key)
	defer clear(raw)
	k := hmac.New(sha256.New, raw)
	label := labelPosition
	if h.shared {
		label = labelShared
	}
	b := appendString(nil, label)
	b = h.append(b)
	b = binary.BigEndian.AppendUint64(b, uint64(created))
	k.Write(append(b, chain[:]...))
	derived := k.Sum(nil)
	defer clear(derived)
	return &signer{
		shared: h.shared,
		mac:    hmac.New(sha256.New, derived),
		prefix: append(hex.AppendEncode(nil, chain[:]), ':'),
		middle: append(strconv.AppendInt([]byte{':'}, created, 10), ':'),
	}
}

func (h *home) append(b []byte) []byte {
	b = appendString(b, h.route)
	b = appendString(b, h.sealed)
	b = binary.BigEndian.AppendUint64(b, uint64(h.sealedCreated))
	b = binary.BigEndian.AppendUint32(b, h.partition)
	return appendString(b, h.source)
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// compute returns the MAC; it is valid until the next call.
func (s *signer) compute(sealedSeq, sequence, previous uint64, timestamp int64) []byte {
	if s.shared {
		sealedSeq = 0
	}
	var in [32]byte
	binary.BigEndian.PutUint64(in[0:], sealedSeq)
	binary.BigEndian.PutUint64(in[8:], sequence)
	binary.BigEndian.PutUint64(in[16:], previous)
	binary.BigEndian.PutUint64(in[24:], uint64(timestamp))
	s.mac.Reset()
	s.scratch = append(s.scratch[:0], in[:]...) // a local would escape through the interface
	s.mac.Write(s.scratch)
	return s.mac.Sum(s.sum[:0])
}

// computeHeld is compute for a message that was held back: the link follows what
// is computed for others, so that no input of one is an input of the other.
func (s *signer) computeHeld(sealedSeq, scanned, previous uint64, timestamp int64, own *link) []byte {
	b := s.scratch[:0]
	for _, n := range []uint64{sealedSeq, scanned, previous, uint64(timestamp)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, own.chain[:]...)
	for _, n := range []uint64{own.sequence, own.previous, uint64(own.created), uint64(own.timestamp)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	s.scratch = b
	s.mac.Reset()
	s.mac.Write(b)
	return s.mac.Sum(s.sum[:0])
}

// sign returns the value of HeaderSource for m, which will be stored at sealedSeq.
func (s *signer) sign(sealedSeq uint64, m *outgoing) string {
	if m.own == nil {
		return s.header(sealedSeq, m.source, m.previous, m.timestamp)
	}
	mac := s.computeHeld(sealedSeq, m.source, m.previous, m.timestamp, m.own)
	b := append(hex.AppendEncode(s.scratch[:0], m.own.chain[:]), ':')
	b = strconv.AppendUint(b, m.own.sequence, 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, m.own.previous, 10)
	b = append(b, ':')
	b = strconv.AppendInt(b, m.own.created, 10)
	b = append(b, ':')
	b = strconv.AppendInt(b, m.own.timestamp, 10)
	b = append(b, ':')
	b = s.route(b, m.source, m.previous, m.timestamp)
	b = b64.AppendEncode(b, mac)
	s.scratch = b
	return string(b)
}

// route appends the fields of a position, up to the MAC.
func (s *signer) route(b []byte, sequence, previous uint64, timestamp int64) []byte {
	b = append(b, s.prefix...)
	b = strconv.AppendUint(b, sequence, 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, previous, 10)
	b = append(b, s.middle...)
	b = strconv.AppendInt(b, timestamp, 10)
	return append(b, ':')
}

// header returns the value of HeaderSource for the message that will be stored
// at sealedSeq.
func (s *signer) header(sealedSeq, sequence, previous uint64, timestamp int64) string {
	mac := s.compute(sealedSeq, sequence, previous, timestamp)
	b := s.route(s.scratch[:0], sequence, previous, timestamp)
	b = b64.AppendEncode(b, mac)
	s.scratch = b
	return string(b)
}

// maxSourceHeader is the longest value of HeaderSource; of a message that was held
// back, it has up to maxOwnHeader more.
const (
	maxOwnHeader    = 32 + 4*(1+20) + 1
	maxSourceHeader = 32 + 4*(1+20) + 1 + 43
)

var errBadPosition = errors.New("not a position of this route")

// readPosition parses and authenticates the HeaderSource of the message stored at
// sealedSeq. Every failure is errBadPosition.
func readPosition(key keysvc.RouteKey, h *home, sealedSeq uint64, value string) (position, error) {
	p, mac, err := parsePosition(value)
	if err != nil {
		return position{}, err
	}
	signer := newSigner(key, h, p.chain, p.created)
	var want []byte
	if p.own != nil {
		want = signer.computeHeld(sealedSeq, p.sequence, p.previous, p.timestamp, p.own)
	} else {
		want = signer.compute(sealedSeq, p.sequence, p.previous, p.timestamp)
	}
	if !hmac.Equal(mac, want) {
		return position{}, fmt.Errorf("%w: wrong MAC", errBadPosition)
	}
	return p, nil
}

// parsePosition accepts exactly what signer.sign writes.
func parsePosition(value string) (p position, mac []byte, err error) {
	malformed := fmt.Errorf("%w: malformed", errBadPosition)
	if value == "" {
		return position{}, nil, fmt.Errorf("%w: no %s header", errBadPosition, HeaderSource)
	}
	f := strings.Split(value, ":")
	if len(value) > maxOwnHeader+maxSourceHeader || len(f) != 6 && len(f) != 11 {
		return position{}, nil, malformed
	}
	if len(f) == 11 {
		own, ok := parseLink(f)
		if !ok || own.previous >= own.sequence {
			return position{}, nil, malformed
		}
		p.own, f = &own, f[5:]
	}
	l, ok := parseLink(f)
	mac, err = b64.DecodeString(f[5])
	if !ok || err != nil || len(mac) != sha256.Size || l.previous > l.sequence || l.previous == l.sequence && p.own == nil {
		return position{}, nil, malformed
	}
	p.chain, p.sequence, p.previous, p.created, p.timestamp = l.chain, l.sequence, l.previous, l.created, l.timestamp
	return p, mac, nil
}

// parseLink reads <chain>:<sequence>:<previous>:<created>:<timestamp>.
func parseLink(f []string) (l link, ok bool) {
	var err error
	if l.chain, err = envelope.ParseChainID(f[0]); err != nil {
		return link{}, false
	}
	seq, err1 := strconv.ParseUint(f[1], 10, 64)
	previous, err2 := strconv.ParseUint(f[2], 10, 64)
	created, err3 := strconv.ParseInt(f[3], 10, 64)
	timestamp, err4 := strconv.ParseInt(f[4], 10, 64)
	if errors.Join(err1, err2, err3, err4) != nil ||
		strconv.FormatUint(seq, 10) != f[1] || strconv.FormatUint(previous, 10) != f[2] ||
		strconv.FormatInt(created, 10) != f[3] || strconv.FormatInt(timestamp, 10) != f[4] {
		return link{}, false
	}
	l.sequence, l.previous, l.created, l.timestamp = seq, previous, created, timestamp
	return l, true
}
