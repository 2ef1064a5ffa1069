package gateway

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrUnsealed: source messages at or below the position have no sealed copy.
// Only [Purge] returns it.
var ErrUnsealed = errors.New("gateway: source messages without a sealed copy")

// PurgeConfig says what [Purge] does.
type PurgeConfig struct {
	Route Route // as the gateway runs it; Create and ResumeFrom are not used
	Keys  Keys  // required, for the key of the route's positions
	// Partition is the one of a partitioned route that is purged, each by itself.
	Partition int
	DryRun    bool // find out, remove nothing
	// Logger gets what is worth a warning; nil discards.
	Logger *slog.Logger
	// Progress, if set, is called now and then with how many of total sealed
	// messages were looked at.
	Progress func(done, total uint64)
}

// PurgeReport is what [Purge] found and did.
type PurgeReport struct {
	Route    string
	Source   string // stream
	Subjects []string
	Sealed   string // stream
	// Position is the source sequence up to which the route is sealed.
	Position uint64
	// UpTo is the last source sequence that may go; 0: none. It is less than
	// Position where sealed copies are younger than the sync interval, or where
	// nothing between matches.
	UpTo uint64
	// Messages of the route are in the source at or below UpTo. Each has a sealed
	// copy of its own, or a dead letter.
	Messages uint64
	// Parked counts those of Messages whose copy is a dead letter.
	Parked uint64
	// Young counts sealed messages and dead letters that a power failure might
	// still undo; what they are copies of stays, and what came after it.
	Young uint64
	// Purged says that Messages were removed; false after a dry run.
	Purged bool
}

// Purge removes from the source of a route what its sealed stream holds, and
// nothing else: for a route that keeps its source (AfterSealKeep) while history is
// sealed, as the last step. The gateway may run meanwhile.
//
// It takes no position for granted. The route's place is read and proven as at the
// start of a worker, with the same errors: [ErrPosition], [ErrSourceChanged],
// [ErrSource], [ErrDestination]. Then every source message up to there is compared
// with the sealed stream: it must have a sealed copy of this route, of the same
// sequence and time, older than the sync interval. A dead letter of that message,
// with all its parts, is a copy too; the mark of one sent back to the source stands
// for what came of it. If a message has none, since it came before the route's
// start, was skipped by ResumeFrom, or its copy has expired, nothing is removed:
// [ErrUnsealed]. Only the route's subjects are purged.
//
// The source has to be a stream with limits; work queues and interest streams are
// released by the gateway. Errors are [*RouteError]s, except those of ctx. After an
// error the report is nil.
func Purge(ctx context.Context, cfg PurgeConfig) (*PurgeReport, error) {
	r, err := cfg.Route, error(nil)
	r.Sealed.Create, r.ResumeFrom = nil, nil
	if r.DeadLetters != nil {
		own := *r.DeadLetters
		own.Create, r.DeadLetters = nil, &own
	}
	if r, err = r.withDefaults(); err != nil {
		return nil, err
	}
	if r.Ingest != nil || r.unseal != nil {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: the route has no source stream of plaintext", ErrSource)}
	}
	if cfg.Keys == nil {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: purging needs keys", ErrConfig)}
	}
	g := &Gateway{tune: defaultTuning, log: cfg.Logger}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.metrics, _, err = newInstruments(nil); err != nil {
		return nil, err
	}
	parts, of, err := g.parts(&r)
	if err != nil {
		return nil, err
	}
	if cfg.Partition < 0 || cfg.Partition >= len(parts) {
		return nil, &RouteError{r.Name, fmt.Errorf("%w: partition %d of %d", ErrConfig, cfg.Partition, len(parts))}
	}
	of.number = uint32(cfg.Partition)
	w, err := g.newWorker(cfg.Keys, parts[cfg.Partition], of)
	if err != nil {
		return nil, err
	}
	report, err := (&purger{w: w, cfg: &cfg}).run(ctx)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("purging: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, &RouteError{r.Name, err}
	}
	return report, nil
}

// purger is one call of Purge.
type purger struct {
	w   *worker
	cfg *PurgeConfig
}

func (p *purger) run(ctx context.Context) (*PurgeReport, error) {
	w := p.w
	place, d, info, err := p.locate(ctx)
	if err != nil {
		return nil, err
	}
	r := &PurgeReport{
		Route: w.route.Name, Source: info.Config.Name, Subjects: w.route.Source.Subjects, Sealed: d.config.Name,
		Position: place.cursor.scanned,
	}
	if err := p.compare(ctx, place, d, r); err != nil {
		return nil, err
	}
	if p.cfg.DryRun || r.Messages == 0 {
		return r, nil
	}
	// Still the stream that was looked at?
	again, err := w.sourceInfo(ctx)
	if err != nil {
		return nil, err
	}
	if err := w.checkIdentity(ctx, again, place.created, place.cursor); err != nil {
		return nil, err
	}
	if err := (&releaser{w: w}).purge(ctx, r.UpTo); err != nil {
		return nil, err
	}
	r.Purged = true
	return r, nil
}

// locate reads where the route stands, as worker.attempt does, but decides nothing
// and writes nothing.
func (p *purger) locate(ctx context.Context) (*place, *destination, *jetstream.StreamInfo, error) {
	fail := func(err error) (*place, *destination, *jetstream.StreamInfo, error) { return nil, nil, nil, err }
	w := p.w
	if _, err := openDestination(ctx, w.sealedJS, &w.route, w.prefix); err != nil {
		return fail(err)
	}
	var err error
	kctx, cancel := context.WithTimeout(ctx, keysTimeout)
	w.routeKey, err = w.keys.RouteKey(kctx, w.route.Name)
	cancel()
	if err != nil {
		return fail(fmt.Errorf("%w: asking for the route key: %w", ErrKeys, err))
	}
	var rec *record
	var recErr error
	b := &bucket{nc: w.route.Sealed.Conn, js: w.sealedJS, name: PositionsBucket}
	switch _, err := streamInfo(ctx, w.sealedJS, "KV_"+PositionsBucket); {
	case err == nil:
		rec, recErr = (&recordStore{b: b, key: w.key(), route: w.routeKey}).load(ctx)
		if recErr != nil && !errors.Is(recErr, errBadRecord) {
			return fail(recErr)
		}
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return fail(err)
	}
	d, err := openDestination(ctx, w.sealedJS, &w.route, w.prefix)
	if err != nil {
		return fail(err)
	}
	w.home = home{route: w.route.Name, sealed: d.config.Name, sealedCreated: d.created.UnixNano(), partition: w.part.number, source: w.route.Source.Stream, shared: w.route.shard != nil}
	locate := w.locate
	if w.route.shard != nil {
		if err := w.readTip(ctx, d); err != nil {
			return fail(err)
		}
		locate = w.locateShared
	}
	info, err := w.sourceInfo(ctx)
	if err != nil {
		return fail(err)
	}
	if info.Config.Retention != jetstream.LimitsPolicy {
		return fail(fmt.Errorf("%w: stream %s is a work queue or an interest stream: its messages go when the gateway acknowledges them", ErrSource, info.Config.Name))
	}
	if info.Config.DenyPurge || info.Config.Sealed || info.Config.Mirror != nil {
		return fail(fmt.Errorf("%w: stream %s cannot be purged", ErrSource, info.Config.Name))
	}
	place, err := locate(ctx, d, rec, recErr)
	if err != nil {
		return fail(err)
	}
	if place == nil {
		return fail(fmt.Errorf("%w: nothing was sealed to %s yet", ErrPosition, d.config.Name))
	}
	return place, d, info, w.checkIdentity(ctx, info, place.created, place.cursor)
}

// compare walks through the sealed copies and the source side by side, both in
// rising order. It fills in what r says about messages.
//
// What decides is the source as an ordered reader sees it, not the position: UpTo
// is a message that was seen, and so was everything before it.
func (p *purger) compare(ctx context.Context, place *place, d *destination, r *PurgeReport) error {
	w := p.w
	lag, _ := releaseLag(&d.config, w.route.Sealed.SyncInterval)
	now, err := p.serverTime(ctx)
	if err != nil {
		return err
	}
	total := d.lastSeq
	sealed := &scanner{nc: w.route.Sealed.Conn, js: w.sealedJS, stream: d.config.Name, heartbeat: w.tune.heartbeat}
	defer sealed.close(ctx)
	end := d.lastSeq
	if w.route.shard != nil {
		sealed.filters, end = w.route.targets(w.prefix), d.streamLast
	}
	from := &scanner{
		nc: w.route.Source.Conn, js: w.sourceJS, stream: r.Source, filters: r.Subjects, heartbeat: w.tune.heartbeat,
	}
	defer from.close(ctx)
	letters := &letterCopies{w: w, now: now}
	signer, chain := newSigner(w.routeKey, &w.home, place.chain, place.created), place.chain
	var last uint64 // source sequence of the copy before
	var have *item  // the source message not yet compared
	var missing, firstMissing uint64
copies:
	for n := uint64(1); ; n++ {
		it, err := sealed.next(ctx)
		if err != nil {
			return err
		}
		if it == nil || it.seq > end {
			break
		}
		if p.cfg.Progress != nil && n%1024 == 0 {
			p.cfg.Progress(it.seq, total)
		}
		pos, mac, err := parsePosition(it.msg.Header.Get(HeaderSource))
		if err != nil || pos.created != place.created {
			continue // a stranger's, or of a source before this one: no proof of anything
		}
		if pos.chain != chain {
			signer, chain = newSigner(w.routeKey, &w.home, pos.chain, place.created), pos.chain
		}
		if !hmac.Equal(mac, signer.compute(it.seq, pos.sequence, pos.previous, pos.timestamp)) || pos.sequence <= last {
			continue // a stranger's, or sealed once more after ResumeFrom
		}
		last = pos.sequence
		if r.Young > 0 || lag > 0 && now.Sub(time.Unix(0, it.timestamp)) < lag {
			r.Young++
			continue
		}
		for {
			if have == nil {
				if have, err = from.next(ctx); err != nil {
					return err
				}
			}
			if have == nil || have.seq > pos.sequence {
				break // the source no longer holds the original
			}
			lone, at, same := have, have.seq, have.seq == pos.sequence && have.timestamp == pos.timestamp
			have = nil
			if same {
				r.Messages++
				r.UpTo = at
				break
			}
			switch of, err := letters.of(ctx, lone); {
			case err != nil:
				return err
			case of == letterSafe:
				r.count(at)
			case of == letterYoung:
				r.Young += 2 // with the copy before which it stands
				continue copies
			default:
				if missing++; firstMissing == 0 {
					firstMissing = at
				}
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%w: %d messages of stream %s from sequence %d on, while the position is %d", ErrUnsealed, missing, r.Source, firstMissing, r.Position)
	}
	// What was parked behind the last sealed copy.
	for r.Young == 0 {
		if have == nil {
			if have, err = from.next(ctx); err != nil {
				return err
			}
		}
		if have == nil || have.seq > place.cursor.scanned {
			return nil
		}
		of, err := letters.of(ctx, have)
		switch {
		case err != nil:
			return err
		case of == letterYoung:
			r.Young++
		case of == letterNone:
			return nil
		default:
			r.count(have.seq)
		}
		have = nil
	}
	return nil
}

// count adds a message whose dead letter is safe.
func (r *PurgeReport) count(seq uint64) {
	r.Messages++
	r.Parked++
	r.UpTo = seq
}

// serverTime is now on the clock that stamps the sealed messages.
func (p *purger) serverTime(ctx context.Context) (time.Time, error) {
	info, err := streamInfo(ctx, p.w.sealedJS, p.w.route.Sealed.Stream)
	if err != nil {
		return time.Time{}, err
	}
	if info.TimeStamp.IsZero() {
		return time.Now(), nil
	}
	return info.TimeStamp, nil
}
