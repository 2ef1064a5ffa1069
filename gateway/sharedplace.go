package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
)

// locateShared is locate for a partition that shares its sealed stream: what the
// last message says there, its last checkpoint says here.
//
// When that is gone, by age or by hand, the record counts if nothing can have been
// stored since: it says so itself (Clean), or its checkpoint was the last message of
// the whole stream.
func (w *worker) locateShared(ctx context.Context, d *destination, rec *record, recErr error) (*place, error) {
	own := rec != nil && rec.Sealed == w.home.sealed && rec.Route == w.home.route && rec.Partition == w.home.partition && rec.Source == w.home.source
	same := own && rec.SealedCreated == w.home.sealedCreated
	if d.tip == nil {
		switch {
		case recErr != nil:
			return nil, fmt.Errorf("%w: sealed stream %s has no checkpoint of partition %d, and the %w", ErrPosition, d.config.Name, w.part.number, recErr)
		case rec == nil:
			return nil, w.checkUnbegun(ctx, d)
		case same && (rec.Clean || rec.LastSeq > 0 && rec.LastSeq == d.streamLast):
			return w.placeOfShared(rec, 0)
		case same:
			return nil, fmt.Errorf("%w: the checkpoint of partition %d was removed from sealed stream %s, and its position record, of sequence %d, does not say whether anything was sealed after it", ErrPosition, w.part.number, d.config.Name, rec.LastSeq)
		}
		return nil, fmt.Errorf("%w: sealed stream %s has no checkpoint of partition %d, and %s: it was made again", ErrPosition, d.config.Name, w.part.number, recordText(rec, nil))
	}
	current := same && rec.LastSeq == d.tip.seq
	if d.tip.bad != nil {
		if current && rec.Resumed {
			return w.placeOfShared(rec, d.tip.seq) // known, and overruled
		}
		return nil, fmt.Errorf("%w: message %d, the last checkpoint of partition %d in sealed stream %s, was written by somebody else: %v", ErrPosition, d.tip.seq, w.part.number, d.config.Name, d.tip.bad)
	}
	if current && rec.Resumed {
		return w.placeOfShared(rec, d.tip.seq)
	}
	// One that was stored alone on top of the recorded one says the same.
	current = current || same && d.tip.Messages == 0 && d.tip.Follows == rec.LastSeq
	if !current {
		if err := w.checkShard(ctx, d, rec, same); err != nil {
			return nil, err
		}
	}
	p := &place{chain: d.tip.Chain, created: d.tip.Created, lastSeq: d.tip.seq, cursor: d.tip.cursor()}
	switch {
	case recErr != nil:
		w.log.Warn("overwriting a position record of somebody else", "error", recErr)
	case current && rec.Chain == p.chain.String() && rec.Previous == p.cursor.previous && rec.Position >= p.cursor.scanned:
		p.cursor.scanned, p.cursor.since, p.cursor.until, p.gap, p.clean = rec.Position, rec.Since, rec.Until, rec.Gap, rec.Clean
	case same && rec.LastSeq > d.tip.seq:
		w.log.Warn("the sealed stream lost messages it had acknowledged; sealing them again", "checkpoint", d.tip.seq, "recorded", rec.LastSeq)
	}
	return p, nil
}

// placeOfShared is placeOf, where the last checkpoint is at a sequence; 0: none is.
func (w *worker) placeOfShared(rec *record, tip uint64) (*place, error) {
	p, err := placeOf(rec)
	if err == nil {
		p.clean, p.lastSeq = rec.Clean, tip
	}
	return p, err
}

// checkUnbegun makes sure that a partition without checkpoint and record has not
// relayed anything: the stream held nothing when the layout was recorded.
func (w *worker) checkUnbegun(ctx context.Context, d *destination) error {
	if d.unused {
		return nil
	}
	if w.plan != nil && w.plan.Unused != d.created.UnixNano() {
		return fmt.Errorf("%w: sealed stream %s has held messages, and neither a checkpoint of partition %d nor a position record is left", ErrPosition, d.config.Name, w.part.number)
	}
	for _, s := range w.route.targets(w.prefix) {
		m, err := getFromLeader(ctx, w.route.Sealed.Conn, d.config.Name, getRequest{LastFor: s})
		if err == nil {
			return fmt.Errorf("%w: message %d of sealed stream %s is on a subject of partition %d, which has neither a checkpoint nor a position record", ErrPosition, m.seq, d.config.Name, w.part.number)
		}
		if !errors.Is(err, errNoMessage) {
			return err
		}
	}
	return nil
}

// checkShard makes sure that the last checkpoint does not deny sealed messages of
// its partition. The MAC of one that ended a batch holds wherever it is stored, so
// whoever may publish there could store an old one once more, and a batch with it.
// The messages themselves tell: their MACs cover their links, which may only rise,
// from those that the record says to the one that the checkpoint says.
func (w *worker) checkShard(ctx context.Context, d *destination, rec *record, same bool) error {
	broken := func(seq uint64, format string, args ...any) error {
		return fmt.Errorf("%w: message %d of sealed stream %s %s: somebody else wrote in between", ErrPosition, seq, d.config.Name, fmt.Sprintf(format, args...))
	}
	base, known := uint64(0), false
	var before position
	if d.tip.seq > maxWindow {
		base = d.tip.seq - maxWindow
	}
	if same && rec.LastSeq < d.tip.seq {
		p, err := placeOf(rec)
		if err != nil {
			return err
		}
		base, known = rec.LastSeq, true
		before = position{chain: p.chain, sequence: p.cursor.previous}
	}
	s := &scanner{nc: w.route.Sealed.Conn, js: w.sealedJS, stream: d.config.Name, filters: append(w.route.targets(w.prefix), checkpoint.Subject(d.config.Name, w.part.number)), heartbeat: w.tune.heartbeat, at: base}
	defer s.close(ctx)
	for {
		it, err := s.next(ctx)
		if err != nil {
			return fmt.Errorf("reading the end of the sealed stream: %w", err)
		}
		if it == nil || it.seq > d.tip.seq {
			// Replaced a moment ago, or not yet at the replica that was asked.
			return fmt.Errorf("reading the end of the sealed stream: checkpoint %d is not there; looking again", d.tip.seq)
		}
		if it.seq == d.tip.seq {
			break
		}
		pos, err := readPosition(w.routeKey, &w.home, it.seq, it.msg.Header.Get(HeaderSource))
		switch {
		case err != nil:
			return broken(it.seq, "is not ours (%v)", err)
		case !known: // the first that is left
		case pos.chain != before.chain && pos.previous != 0:
			return broken(it.seq, "is of another chain")
		case pos.chain == before.chain && pos.previous < before.sequence:
			return broken(it.seq, "is source message %d and follows %d, not %d", pos.sequence, pos.previous, before.sequence)
		}
		before, known = pos, true
	}
	if known && (before.chain != d.tip.Chain && d.tip.Last != 0 || before.chain == d.tip.Chain && before.sequence != d.tip.Last) {
		return broken(d.tip.seq, "is a checkpoint behind source message %d, and the last one sealed is %d", d.tip.Last, before.sequence)
	}
	return nil
}

// take begins a tenure of a partition that shares its sealed stream: from here on
// every earlier one is shut out. Then the record stops saying that nothing was
// stored behind it, or the tenure ends before it stores anything.
//
// Where there is no checkpoint, the condition on the stream's last sequence alone
// stands against a tenure that came and went since the position was read, and whose
// checkpoints are gone, too. Each has written its record before its first
// checkpoint: so the record must not have moved after the last sequence was read.
func (w *worker) take(ctx context.Context, d *destination, p *place, store *recordStore) (*marker, error) {
	m := w.marker(d, p)
	m.still = store.unmoved
	if err := m.mark(ctx); err != nil {
		return nil, err
	}
	m.still = nil
	p.lastSeq, p.resumed, p.clean = m.follows, false, false
	return m, store.save(ctx, w.recordOf(p))
}

// newTenure gives what this attempt records another name than every other one.
func (w *worker) newTenure() {
	if w.route.shard != nil {
		w.tenure = rand.Text()
	}
}

// checkDrained makes sure that a partition of a layout that shared one stream ended
// where its record says, and has not moved since.
func (w *worker) checkDrained(ctx context.Context, stream *jetstream.StreamInfo, subject string, rec *record) (bool, error) {
	if stream.Created.UnixNano() != rec.SealedCreated {
		return false, nil
	}
	m, err := getFromLeader(ctx, w.route.Sealed.Conn, stream.Config.Name, getRequest{LastFor: subject})
	if errors.Is(err, errNoMessage) {
		return rec.Clean, nil
	}
	return err == nil && m.seq == rec.LastSeq, err
}
