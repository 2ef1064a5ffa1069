package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
)

// repartition makes sure that the recorded layout has ended, all of it at one
// source sequence, and that nobody can write to its sealed streams any more. It
// returns the configured layout, which begins there. Everything else is ErrLayout.
//
// That an old sealed stream is closed is looked at before its end is read: what is
// read then is final. Its subjects have to go in any case where both layouts have
// the same prefix, since JetStream gives a subject to one stream only. Merely
// having stopped the old gateways would not do: one that was frozen meanwhile
// would seal, under its own fence, what the new layout seals as well.
func (w *worker) repartition(ctx context.Context, b *bucket, old *layout) (*layout, error) {
	refuse := func(format string, args ...any) (*layout, error) {
		return nil, fmt.Errorf("%w: recorded are %v, configured are %v: "+format, append([]any{ErrLayout, old, w.part.layout}, args...)...)
	}
	if w.route.Drain {
		return refuse("only the recorded one can be drained")
	}
	if old.Drain == nil {
		return refuse("the recorded one was not drained")
	}
	if old.Source != w.part.layout.Source {
		return refuse("the recorded one reads stream %s", old.Source)
	}
	info, err := w.sourceInfo(ctx)
	if err != nil {
		return nil, err
	}
	if info.Created.UnixNano() != old.Drain.SourceCreated || info.State.LastSeq < old.Drain.After {
		return nil, fmt.Errorf("%w: stream %s is not the one that was drained up to %d", ErrSourceChanged, info.Config.Name, old.Drain.After)
	}
	next := *w.part.layout
	begin := *old.Drain
	var held []string // hold streams
	for i, p := range old.Parts {
		for _, q := range next.Parts {
			if p.Stream == q.Stream {
				return refuse("sealed stream %s belongs to both; give the new one other names", p.Stream)
			}
		}
		stream, err := streamInfo(ctx, w.sealedJS, p.Stream)
		gone := errors.Is(err, jetstream.ErrStreamNotFound)
		if err != nil && !gone {
			return nil, err
		}
		if !gone {
			for _, s := range stream.Config.Subjects {
				for _, sealed := range sealedPatterns(old.Prefix, p.Subjects) {
					if patternsOverlap(s, sealed) {
						return refuse("sealed stream %s still takes %s", p.Stream, s)
					}
				}
			}
			if stream, err = streamInfo(ctx, w.sealedJS, p.Stream); err != nil {
				return nil, err
			}
		}
		store := &recordStore{b: b, key: fmt.Sprintf("%s.%d", p.Stream, i), route: w.routeKey}
		rec, err := store.load(ctx)
		switch {
		case err != nil && !errors.Is(err, errBadRecord):
			return nil, err
		case err != nil:
			return refuse("partition %d: %v", i, err)
		case rec == nil:
			return refuse("partition %d was never relayed", i)
		case rec.Route != old.Route || rec.Partition != uint32(i) || int(rec.Partitions) != len(old.Parts) || rec.Source != old.Source || rec.Sealed != p.Stream:
			return refuse("partition %d has the position of another one", i)
		case rec.SourceCreated != old.Drain.SourceCreated:
			return refuse("partition %d belongs to another incarnation of stream %s", i, old.Source)
		case rec.Position != old.Drain.After:
			return refuse("partition %d is sealed up to %d, not %d", i, rec.Position, old.Drain.After)
		case old.Shared && !gone:
			ended, err := w.checkDrained(ctx, stream, checkpoint.Subject(p.Stream, uint32(i)), rec)
			if err != nil {
				return nil, err
			}
			if !ended {
				return refuse("the last checkpoint of partition %d in sealed stream %s is not of sequence %d, as its position says: it changed after the drain", i, p.Stream, rec.LastSeq)
			}
		case !gone && (stream.Created.UnixNano() != rec.SealedCreated || stream.State.LastSeq != rec.LastSeq):
			return refuse("sealed stream %s ends at %d, the position of partition %d says %d: it changed after the drain", p.Stream, stream.State.LastSeq, i, rec.LastSeq)
		}
		held = append(held, rec.Hold)
		begin.Gap += rec.Gap
	}
	if err := w.checkOldHolds(ctx, old, held); err != nil {
		return nil, err
	}
	if info.Config.Retention == jetstream.WorkQueuePolicy {
		// The consumers of the old layout overlap with those to come. A work queue
		// keeps what they did not acknowledge.
		if err := w.dropLayoutConsumers(ctx, old); err != nil {
			return nil, err
		}
	}
	next.Begin, next.Drain = &begin, nil
	return &next, nil
}

// dropLayoutConsumers deletes the consumers that the workers of a drained layout
// left on the source stream.
func (w *worker) dropLayoutConsumers(ctx context.Context, old *layout) error {
	lctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := w.sourceJS.Stream(lctx, w.route.Source.Stream)
	if err != nil {
		return fmt.Errorf("listing consumers: %w", err)
	}
	var names []string
	l := s.ListConsumers(lctx)
	for c := range l.Info() {
		sealed, _, _ := strings.Cut(c.Config.Metadata[metadataSealed], "/")
		for _, p := range old.Parts {
			if c.Config.Metadata[MetadataRoute] == old.Route && sealed == p.Stream {
				names = append(names, c.Name)
			}
		}
	}
	if err := l.Err(); err != nil {
		return fmt.Errorf("listing consumers: %w", err)
	}
	return w.deleteConsumers(ctx, names)
}
