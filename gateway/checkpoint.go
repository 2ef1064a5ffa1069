package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

const labelCheckpoint = "keyweir/v1/checkpoint"

// checkpointSigner makes and checks the MACs of checkpoints on one chain, in two
// levels like [signer]. The second one is over
//
//	at || follows || messages || position || last || source timestamp
//
// where at is the sequence of a checkpoint that was stored alone, and 0 for one that
// ends a batch, whose sequence nobody knows beforehand. What a copy of the latter
// could do, [worker.checkShard] finds out by the messages it would deny. It belongs
// to one goroutine.
type checkpointSigner struct {
	mac     hash.Hash
	chain   envelope.ChainID
	created int64
}

func newCheckpointSigner(key keysvc.RouteKey, h *home, chain envelope.ChainID, created int64) *checkpointSigner {
	raw := envelope.ExposeDataKey(key)
	defer clear(raw)
	k := hmac.New(sha256.New, raw)
	b := h.append(appendString(nil, labelCheckpoint))
	b = binary.BigEndian.AppendUint64(b, uint64(created))
	k.Write(append(b, chain[:]...))
	derived := k.Sum(nil)
	defer clear(derived)
	return &checkpointSigner{hmac.New(sha256.New, derived), chain, created}
}

func (s *checkpointSigner) compute(at uint64, c *checkpoint.Checkpoint) []byte {
	if c.Messages > 0 {
		at = 0
	}
	var b []byte
	for _, n := range []uint64{at, c.Follows, c.Messages, c.Position, c.Last, uint64(c.Timestamp)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	s.mac.Reset()
	s.mac.Write(b)
	return s.mac.Sum(nil)
}

// sign returns the value of the header. at is where the checkpoint will be stored,
// if it is stored alone.
func (s *checkpointSigner) sign(at, follows, messages uint64, c cursor) string {
	p := checkpoint.Checkpoint{
		Chain: s.chain, Created: s.created, Position: c.scanned, Last: c.previous, Timestamp: c.timestamp, Follows: follows, Messages: messages,
	}
	p.MAC = s.compute(at, &p)
	return string(p.Append(nil))
}

// tip is the last checkpoint of a partition, as it is stored.
type tip struct {
	seq uint64
	checkpoint.Checkpoint
	bad error // not of this partition; then Checkpoint is zero
}

func (t *tip) cursor() cursor {
	return cursor{scanned: t.Position, previous: t.Last, timestamp: t.Timestamp}
}

// readTip reads the partition's last checkpoint, and makes it what d says. It is
// called after the stream's own state was read.
func (w *worker) readTip(ctx context.Context, d *destination) error {
	d.lastSeq, d.tip = 0, nil
	subject := checkpoint.Subject(d.config.Name, w.part.number)
	m, err := getFromLeader(ctx, w.route.Sealed.Conn, d.config.Name, getRequest{LastFor: subject})
	if errors.Is(err, errNoMessage) {
		return nil
	}
	if err != nil {
		return err
	}
	d.lastSeq, d.tip = m.seq, &tip{seq: m.seq}
	_, c, err := checkpoint.Read(d.config.Name, m.subject, m.header, m.data)
	if err == nil && !hmac.Equal(c.MAC, newCheckpointSigner(w.routeKey, &w.home, c.Chain, c.Created).compute(m.seq, &c)) {
		err = fmt.Errorf("%w: wrong MAC", errBadPosition)
	}
	if err != nil {
		d.tip.bad = err
		return nil
	}
	d.tip.Checkpoint = c
	return nil
}

// marker stores checkpoints. It belongs to one goroutine.
type marker struct {
	nc              *nats.Conn
	js              jetstream.JetStream
	stream, subject string
	signer          *checkpointSigner
	patience        time.Duration               // with siblings that are faster again and again
	pause           time.Duration               // after the first of them
	every           time.Duration               // between checkpoints, see durableEngine.renew; 0: none is necessary
	sized           bool                        // see sized
	still           func(context.Context) error // fails if another tenure began; nil once this one has

	follows uint64 // the last checkpoint
	at      cursor // what it says
	marked  time.Time
	looked  time.Time // at the size of the stream
}

// marker makes one for the place p.
func (w *worker) marker(d *destination, p *place) *marker {
	return &marker{
		nc: w.route.Sealed.Conn, js: w.sealedJS, stream: d.config.Name, subject: checkpoint.Subject(d.config.Name, w.part.number),
		signer:   newCheckpointSigner(w.routeKey, &w.home, p.chain, p.created),
		patience: w.tune.ackTimeout, pause: time.Millisecond, every: d.config.MaxAge / 4, sized: sized(&d.config),
		follows: p.lastSeq, at: p.cursor,
	}
}

// header are the headers of a checkpoint, apart from its conditions.
func (m *marker) header(value string) nats.Header {
	return nats.Header{
		HeaderVersion: {"1"}, checkpoint.Header: {value}, jetstream.ExpectedStreamHeader: {m.stream},
		jetstream.MsgRollup: {jetstream.MsgRollupSubject}, jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(m.follows, 10)},
	}
}

// mark stores a checkpoint alone. Siblings that store something at the same moment
// make it try again; ErrFenced means that somebody has written for this partition.
func (m *marker) mark(ctx context.Context) error {
	end, wait := time.Now().Add(m.patience), newPause(m.pause, 50*m.pause)
	for {
		info, err := streamInfo(ctx, m.js, m.stream)
		if err != nil {
			return err
		}
		if m.still != nil { // after the end was read: whoever wrote up to there had begun before
			if err := m.still(ctx); err != nil {
				return err
			}
		}
		at := info.State.LastSeq + 1
		h := m.header(m.signer.sign(at, m.follows, 0, m.at))
		h[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(at-1, 10)}
		seq, err := m.publish(ctx, h)
		switch {
		case err == nil && seq != at:
			return fmt.Errorf("%w: got one for sequence %d, want %d", errAckLost, seq, at)
		case err == nil:
			m.follows, m.marked = seq, time.Now()
			return nil
		case !errors.Is(err, ErrFenced):
			return err
		}
		if moved, merr := m.moved(ctx); merr != nil || moved {
			return errors.Join(merr, err)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: the other partitions were faster for %v: %v", errAckLost, m.patience, err)
		}
		if rand.IntN(2) > 0 { // a pause makes the next guess older: not every time
			if err := wait.wait(ctx); err != nil {
				return err
			}
		}
	}
}

// moved reports whether the last checkpoint on the subject is another one than that
// which the next must follow.
func (m *marker) moved(ctx context.Context) (bool, error) {
	last := uint64(0)
	got, err := getFromLeader(ctx, m.nc, m.stream, getRequest{LastFor: m.subject})
	if err == nil {
		last = got.seq
	} else if !errors.Is(err, errNoMessage) {
		return false, err
	}
	return last != m.follows, nil
}

func (m *marker) publish(ctx context.Context, h nats.Header) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reply, err := m.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: m.subject, Header: h})
	if err != nil {
		return 0, fmt.Errorf("storing a checkpoint: %w", err)
	}
	var ack struct {
		Sequence uint64              `json:"seq"`
		Error    *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil || ack.Error != nil || ack.Sequence == 0 {
		return 0, fmt.Errorf("storing a checkpoint: %w", refusal(reply))
	}
	return ack.Sequence, nil
}

// due reports whether the last checkpoint has to be stored once more, before it
// leaves the stream: every quarter of the time it has there, or when it stands in
// the older half of a stream that is full by size.
func (m *marker) due(ctx context.Context) (bool, error) {
	if m.every > 0 && time.Since(m.marked) >= m.every {
		return true, nil
	}
	if !m.sized || time.Since(m.looked) < lookEvery {
		return false, nil
	}
	info, err := streamInfo(ctx, m.js, m.stream)
	if err != nil {
		return false, err
	}
	m.looked = time.Now()
	first, last := info.State.FirstSeq, info.State.LastSeq
	return m.follows < first+(last-min(first, last))/2, nil
}

// wait is how long until due has to be asked.
func (m *marker) wait() time.Duration {
	d := time.Hour
	if m.every > 0 {
		d = m.every - time.Since(m.marked)
	}
	if m.sized {
		d = min(d, lookEvery-time.Since(m.looked))
	}
	return max(d, time.Millisecond)
}

// lookEvery is between two looks at the size of a stream.
const lookEvery = time.Second
