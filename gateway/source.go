package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// settle is how long a replicated source may take to show what it had before.
const settle = 10 * time.Second

// clockSlack is how far our clock may be from that of the source's server where
// the two are compared.
const clockSlack = time.Minute

// cursor is where reading stands in the source stream.
type cursor struct {
	scanned   uint64 // every matching message up to here was handed on, or is lost and counted
	previous  uint64 // the last message handed on; 0: none
	timestamp int64  // of the message at previous, unix nanoseconds; 0: unknown
	since     int64  // no message after scanned was stored before, give or take clocks; unix nanoseconds; 0: unknown
	until     int64  // no message up to scanned was stored after; unix nanoseconds, by the server's clock; 0: unknown
}

// sourceInfo asks for the source stream and checks that the route can relay it.
func (w *worker) sourceInfo(ctx context.Context) (*jetstream.StreamInfo, error) {
	info, err := streamInfo(ctx, w.sourceJS, w.route.Source.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: stream %s does not exist", ErrSource, w.route.Source.Stream)
	}
	if err != nil {
		return nil, err
	}
	if err := checkSource(&info.Config, &w.route); err != nil {
		return nil, err
	}
	if takesCheckpoints(&info.Config, w.route.Source.Subjects) {
		return nil, fmt.Errorf("%w: partitions share stream %s, and its checkpoints are no messages: name the sealed subjects, not %s", ErrSource, info.Config.Name, strings.Join(w.route.Source.Subjects, ", "))
	}
	if w.part.share != nil {
		return info, checkPartitioned(&info.Config, &w.route)
	}
	return info, nil
}

func checkSource(c *jetstream.StreamConfig, r *Route) error {
	wide := c.Subjects
	if len(wide) > 0 && c.SubjectTransform == nil { // a mirror or a sourced stream has subjects that are not listed, a transform writes others
		for _, s := range r.Source.Subjects {
			any := len(c.Sources) > 0
			for _, have := range wide {
				any = any || patternsOverlap(have, s)
			}
			if !any {
				return fmt.Errorf("%w: stream %s takes %s, never %s", ErrSource, c.Name, strings.Join(wide, ", "), s)
			}
		}
	}
	if c.Retention == jetstream.WorkQueuePolicy {
		if r.Source.AfterSeal == AfterSealKeep {
			return fmt.Errorf("%w: stream %s is a work queue, so after_seal must be purge", ErrSource, c.Name)
		}
		if k := r.Source.Start.kind; k != 0 && k != startFirst {
			return fmt.Errorf("%w: stream %s is a work queue, so start must be first", ErrSource, c.Name)
		}
	}
	if r.Source.AfterSeal == AfterSealPurge && c.Retention == jetstream.LimitsPolicy && (c.DenyPurge || c.Sealed || c.Mirror != nil) {
		return fmt.Errorf("%w: stream %s cannot be purged, so after_seal must be keep", ErrSource, c.Name)
	}
	return nil
}

// checkIdentity makes sure that the stream is the one the cursor belongs to: the
// same incarnation, not shorter, and with the same message where the last one was
// sealed. A stream restored from an older backup reuses sequences under the same
// creation time, so all three are needed; and where the cursor stands behind that
// message, since later ones were parked or held, what is stored there must not be
// younger than they were. Where later ones did not match, only our clock could say
// how old they may be, and a route must not stop because clocks differ. That a
// message is gone is normal: released, or removed by limits.
func (w *worker) checkIdentity(ctx context.Context, info *jetstream.StreamInfo, created int64, c cursor) error {
	name := w.route.Source.Stream
	if got := info.Created.UnixNano(); got != created {
		return fmt.Errorf("%w: stream %s was created %v, the position belongs to one created %v", ErrSourceChanged, name, info.Created.UTC(), time.Unix(0, created).UTC())
	}
	// A replica that has just become the leader may not have caught up.
	began, wait := time.Now(), newPause(w.tune.retry, w.tune.retryMax)
	for info.State.LastSeq < c.scanned {
		if info.Config.Replicas <= 1 || time.Since(began) > settle {
			return fmt.Errorf("%w: stream %s ends at sequence %d, sealed up to %d", ErrSourceChanged, name, info.State.LastSeq, c.scanned)
		}
		if err := wait.wait(ctx); err != nil {
			return err
		}
		again, err := w.sourceInfo(ctx)
		if err != nil {
			return err
		}
		info.State, info.Cluster = again.State, again.Cluster
	}
	if c.previous > 0 && c.timestamp != 0 {
		if at, err := w.storedAt(ctx, c.previous); err != nil {
			return err
		} else if at != 0 && at != c.timestamp {
			return fmt.Errorf("%w: message %d of stream %s was stored %v, the one sealed %v", ErrSourceChanged, c.previous, name, time.Unix(0, at).UTC(), time.Unix(0, c.timestamp).UTC())
		}
	}
	if c.scanned > c.previous && c.until != 0 {
		if at, err := w.storedAt(ctx, c.scanned); err != nil {
			return err
		} else if at > c.until {
			return fmt.Errorf("%w: message %d of stream %s was stored %v, but the stream was read up to there by %v", ErrSourceChanged, c.scanned, name, time.Unix(0, at).UTC(), time.Unix(0, c.until).UTC())
		}
	}
	return nil
}

// storedAt is when a message of the source was stored, unix nanoseconds; 0 if it
// is gone.
func (w *worker) storedAt(ctx context.Context, seq uint64) (int64, error) {
	m, err := getFromLeader(ctx, w.route.Source.Conn, w.route.Source.Stream, getRequest{Seq: seq})
	if errors.Is(err, errNoMessage) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return m.time.UnixNano(), nil
}

// trimmable reports whether limits may have removed messages after the cursor,
// given that the stream begins behind it. For a route that takes everything the
// stream holds, whatever is missing is missing from the route. For one with
// filters the missing sequences may all have been other routes', so only limits
// that were able to act count: MaxAge, if the message at the cursor is itself
// older than that (timestamps rise with sequences, which makes this exact), or the
// time since which the cursor stands there, and any limit of size, where the count
// is an upper bound.
func trimmable(c *jetstream.StreamConfig, subjects []string, cur cursor, now time.Time) bool {
	if len(c.Subjects) > 0 && len(c.Sources) == 0 && c.SubjectTransform == nil && covered(subjects, c.Subjects) {
		return true
	}
	if c.Discard == jetstream.DiscardOld && (c.MaxMsgs > 0 || c.MaxBytes > 0) {
		return true
	}
	if c.MaxAge <= 0 {
		return false
	}
	old := func(t int64, slack time.Duration) bool {
		return t == 0 || now.UnixNano()-t+int64(slack) > int64(c.MaxAge)
	}
	return old(cur.timestamp, 0) && old(cur.since, min(clockSlack, c.MaxAge/2))
}

// checkGap compares the cursor with the beginning of the stream. It returns how
// many source messages were lost before they were read and the cursor behind
// them; ErrSourceGap where the route wants to stop. Our own release never gets
// beyond the cursor. What was removed in the middle of the stream, by a limit per
// subject or by hand, is not counted: compaction is what the publisher asked for.
func (w *worker) checkGap(info *jetstream.StreamInfo, cur cursor) (uint64, cursor, error) {
	first := info.State.FirstSeq
	if first <= cur.scanned+1 || !trimmable(&info.Config, w.route.Source.Subjects, cur, time.Now()) {
		return 0, cur, nil
	}
	missing := first - cur.scanned - 1
	if err := w.reportGap(missing, cur.scanned+1, first-1); err != nil {
		return 0, cur, err
	}
	cur.scanned, cur.until = first-1, 0
	return missing, cur, nil
}

func (w *worker) reportGap(missing, from, to uint64) error {
	if w.route.Source.OnSourceGap != GapContinue {
		return fmt.Errorf("%w: %d messages of stream %s, between sequences %d and %d", ErrSourceGap, missing, w.route.Source.Stream, from, to)
	}
	w.log.Warn("source messages lost before they were sealed", "missing", missing, "from", from, "to", to)
	w.metrics.lost(missing)
	w.board.update(func(s *RouteStats) { s.Lost += missing })
	return nil
}

// batchGap does the same while reading: it is called with messages that arrived
// without a hole in the consumer's sequence. Where source sequences are skipped,
// either filters and deletions did that or the limits overtook the reader. The
// beginning of the stream only ever rises, so if it now stands at or before the
// cursor, no limit was involved.
func (w *worker) batchGap(ctx context.Context, items []item, cur cursor) (gaps map[uint64]uint64, err error) {
	skips, at := false, cur.scanned
	for i := range items {
		skips = skips || items[i].seq > at+1
		at = max(at, items[i].seq)
	}
	if !skips {
		return nil, nil
	}
	info, err := w.sourceInfo(ctx)
	if err != nil {
		return nil, err
	}
	first := info.State.FirstSeq
	if first <= cur.scanned+1 || !trimmable(&info.Config, w.route.Source.Subjects, cur, time.Now()) {
		return nil, nil
	}
	at = cur.scanned
	for i := range items {
		seq := items[i].seq
		if end := min(seq, first); end > at+1 {
			if err := w.reportGap(end-at-1, at+1, end-1); err != nil {
				return nil, err
			}
			if gaps == nil {
				gaps = make(map[uint64]uint64)
			}
			gaps[seq] = end - at - 1
		}
		at = max(at, seq)
	}
	return gaps, nil
}
