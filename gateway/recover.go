package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
)

// place is where a tenure begins: what is sealed, and what comes next.
type place struct {
	chain   envelope.ChainID
	created int64 // of the source stream
	lastSeq uint64
	cursor  cursor
	gap     uint64 // lost messages that the next envelope has to state
	resumed bool   // see record
	stated  uint64 // source sequence up to which the sealed stream itself says that all is sealed or held
	clean   bool   // see record
}

// recoverPlace finds out where the relay stands. The sealed stream is the
// checkpoint: the message at its last sequence says what was sealed last. The
// position record answers where no message can. Anything that leaves a doubt is
// an error of the kind that Route.ResumeFrom overrides. recErr is errBadRecord or nil.
func (w *worker) recoverPlace(ctx context.Context, d *destination, rec *record, recErr error, info *jetstream.StreamInfo) (*place, error) {
	if rec != nil && rec.Sealed == w.home.sealed && (rec.Partition != w.home.partition || rec.Partitions != w.part.count()) {
		return nil, fmt.Errorf("%w: sealed stream %s holds partition %d of %d, configured is %d of %d", ErrLayout, rec.Sealed, rec.Partition, rec.Partitions, w.home.partition, w.part.count())
	}
	locate := w.locate
	if w.route.shard != nil {
		locate = w.locateShared
	}
	p, err := locate(ctx, d, rec, recErr)
	if err == nil && p == nil {
		p, err = w.firstPlace(ctx, d, info)
	}
	if err == nil {
		err = w.checkIdentity(ctx, info, p.created, p.cursor)
	}
	if err == nil {
		var missing uint64
		missing, p.cursor, err = w.checkGap(info, p.cursor)
		p.gap += missing
	}
	if err == nil || w.route.ResumeFrom == nil || w.resumed || !resumable(err) {
		return p, err
	}
	from := *w.route.ResumeFrom
	w.log.Warn("resuming by order of the operator", "from", from, "instead_of", err)
	fresh := place{created: info.Created.UnixNano(), lastSeq: d.lastSeq, cursor: cursor{scanned: from - 1}, resumed: true, clean: true}
	if p != nil && p.created == fresh.created && !errors.Is(err, ErrSourceChanged) {
		// The same source: the chain goes on, and its links show the jump.
		fresh.chain, fresh.cursor.previous, fresh.cursor.timestamp = p.chain, p.cursor.previous, p.cursor.timestamp
		if fresh.cursor.previous > fresh.cursor.scanned {
			fresh.chain, fresh.cursor = envelope.ChainID{}, cursor{scanned: from - 1} // backwards: a new chain
		}
	}
	if fresh.chain == (envelope.ChainID{}) {
		rand.Read(fresh.chain[:])
	}
	if last := info.State.LastSeq; fresh.cursor.scanned > last {
		return nil, fmt.Errorf("%w: told to resume from %d, the source stream ends at %d", ErrPosition, from, last)
	}
	return &fresh, nil
}

func resumable(err error) bool {
	return errors.Is(err, ErrPosition) || errors.Is(err, ErrSourceChanged) || errors.Is(err, ErrSourceGap)
}

// locate reads the position; nil without error means that nothing was relayed
// yet, and nothing decided either.
func (w *worker) locate(ctx context.Context, d *destination, rec *record, recErr error) (*place, error) {
	own := rec != nil && rec.Sealed == w.home.sealed && rec.Route == w.home.route && rec.Partition == w.home.partition && rec.Source == w.home.source
	same := own && rec.SealedCreated == w.home.sealedCreated
	current := same && rec.LastSeq == d.lastSeq // the record says what the last message does, and more
	if d.unused {
		switch {
		case recErr != nil:
			return nil, fmt.Errorf("%w: sealed stream %s is empty, and the %w", ErrPosition, d.config.Name, recErr)
		case rec == nil:
			return nil, nil
		case current:
			return placeOf(rec)
		}
		return nil, fmt.Errorf("%w: sealed stream %s never held a message, its position record says it ended at sequence %d: it was made again, or lost what it held", ErrPosition, d.config.Name, rec.LastSeq)
	}
	m, err := getFromLeader(ctx, w.route.Sealed.Conn, d.config.Name, getRequest{Seq: d.lastSeq})
	if errors.Is(err, errNoMessage) {
		if current {
			return placeOf(rec)
		}
		return nil, fmt.Errorf("%w: message %d, the last of sealed stream %s, was removed, and %s", ErrPosition, d.lastSeq, d.config.Name, recordText(rec, recErr))
	}
	if err != nil {
		return nil, err
	}
	pos, err := readPosition(w.routeKey, &w.home, d.lastSeq, m.header.Get(HeaderSource))
	if err != nil {
		if current && rec.Resumed {
			return placeOf(rec) // known, and overruled
		}
		return nil, fmt.Errorf("%w: message %d, the last of sealed stream %s, was written by somebody else: %v", ErrPosition, d.lastSeq, d.config.Name, err)
	}
	p := &place{
		chain: pos.chain, created: pos.created, lastSeq: d.lastSeq,
		cursor: pos.cursor(), stated: pos.cursor().scanned,
	}
	if !current {
		if err := w.checkTail(ctx, d, rec, same, pos); err != nil {
			return nil, err
		}
	}
	switch {
	case recErr != nil:
		w.log.Warn("overwriting a position record of somebody else", "error", recErr)
	case current && rec.Resumed:
		return placeOf(rec)
	case current && rec.Chain == pos.chain.String() && rec.Previous == p.cursor.previous && rec.Position >= p.cursor.scanned:
		p.cursor.scanned, p.cursor.since, p.cursor.until, p.gap = rec.Position, rec.Since, rec.Until, rec.Gap // nothing matched up to there, or all was held
	case same && rec.LastSeq > d.lastSeq:
		// The server lost acknowledged messages, or an older backup was restored.
		// The source has them still, unless they were released: then a gap shows.
		w.log.Warn("the sealed stream lost messages it had acknowledged; sealing them again", "last_sequence", d.lastSeq, "recorded", rec.LastSeq)
	}
	return p, nil
}

func placeOf(r *record) (*place, error) {
	chain, err := envelope.ParseChainID(r.Chain)
	if err != nil {
		return nil, fmt.Errorf("%w: position record: %v", ErrPosition, err)
	}
	return &place{
		chain: chain, created: r.SourceCreated, lastSeq: r.LastSeq, gap: r.Gap, resumed: r.Resumed,
		cursor: cursor{scanned: r.Position, previous: r.Previous, timestamp: r.Timestamp, since: r.Since, until: r.Until}, stated: r.Previous,
	}, nil
}

func recordText(r *record, err error) string {
	switch {
	case err != nil:
		return "the " + err.Error()
	case r == nil:
		return "there is no position record"
	}
	return fmt.Sprintf("the position record belongs to sequence %d of the stream created %v", r.LastSeq, time.Unix(0, r.SealedCreated).UTC())
}

// firstPlace decides where the very first run begins. The decision goes into the
// position record before anything is published, by compare and swap, so that two
// instances that begin at once agree on chain and start.
func (w *worker) firstPlace(ctx context.Context, d *destination, info *jetstream.StreamInfo) (*place, error) {
	p := &place{created: info.Created.UnixNano(), lastSeq: d.lastSeq, clean: true}
	rand.Read(p.chain[:])
	if at := w.plan.Begin; at != nil {
		p.created, p.cursor = at.SourceCreated, cursor{scanned: at.After, since: at.Since}
		if w.part.number == 0 {
			p.gap = at.Gap
		}
		return p, nil
	}
	var err error
	p.cursor.scanned, err = w.start(ctx, info)
	p.cursor.since = sinceOf(info, p.cursor.scanned)
	return p, err
}

// sinceOf is the since of a cursor that begins at scanned. Without it, what other
// partitions release before this one read anything would look lost to MaxAge.
func sinceOf(info *jetstream.StreamInfo, scanned uint64) int64 {
	if info.State.Msgs == 0 || scanned >= info.State.LastSeq {
		return time.Now().UnixNano() // of what is still to come
	}
	return info.State.FirstTime.UnixNano()
}

// start is the source sequence behind which the route's start says to begin.
func (w *worker) start(ctx context.Context, info *jetstream.StreamInfo) (scanned uint64, err error) {
	switch s := w.route.Source.Start; s.kind {
	case startFirst:
		scanned = max(info.State.FirstSeq, 1) - 1
	case startNew:
		scanned = info.State.LastSeq
	case startSequence:
		scanned = min(s.seq-1, info.State.LastSeq)
		if s.seq-1 > info.State.LastSeq {
			return 0, fmt.Errorf("%w: start %d, but stream %s ends at %d", ErrSource, s.seq, info.Config.Name, info.State.LastSeq)
		}
	case startTime:
		if scanned, err = w.before(ctx, s.at); err != nil {
			return 0, err
		}
	default:
		return 0, ErrNoStart
	}
	if c := &info.Config; c.Retention == jetstream.LimitsPolicy && w.route.Source.AfterSeal == AfterSealPurge && info.State.Msgs > 0 && info.State.FirstSeq <= scanned {
		return 0, fmt.Errorf("%w: start %v leaves messages %d to %d of stream %s unsealed, and after_seal: purge would remove them; purge them first, start at first, or keep", ErrSource, w.route.Source.Start, info.State.FirstSeq, scanned, c.Name)
	}
	return scanned, nil
}

// before returns the sequence that ends just before t, which only a consumer can
// tell.
func (w *worker) before(ctx context.Context, t time.Time) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := w.sourceJS.CreateConsumer(ctx, w.route.Source.Stream, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &t, AckPolicy: jetstream.AckNonePolicy,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: inactive,
	})
	if err != nil {
		return 0, fmt.Errorf("finding the start: %w", err)
	}
	info := c.CachedInfo()
	if err := w.deleteConsumers(ctx, []string{info.Name}); err != nil {
		w.log.Debug("leaving the consumer to expire", "consumer", info.Name, "error", err)
	}
	return info.Delivered.Stream, nil
}

// recordOf is the record of the worker's place as acknowledged.
func (w *worker) recordOf(p *place) record {
	r := record{
		Route: w.home.route, Partition: w.home.partition, Partitions: w.part.count(), Source: w.home.source, SourceCreated: p.created,
		Sealed: w.home.sealed, SealedCreated: w.home.sealedCreated, LastSeq: p.lastSeq, Chain: p.chain.String(),
		Position: p.cursor.scanned, Previous: p.cursor.previous, Timestamp: p.cursor.timestamp, Since: p.cursor.since, Until: p.cursor.until, Gap: p.gap, Resumed: p.resumed,
	}
	if w.route.Hold != nil {
		r.Hold = w.route.Hold.Stream
	}
	if w.route.shard != nil {
		r.Tenure, r.Clean = w.tenure, p.clean
	}
	return r
}
