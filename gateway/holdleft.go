package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// errHeld marks the errors of a route that would leave held messages behind.
var errHeld = errors.New("messages are held")

// heldIn counts what a hold stream has, but for fences. info is nil if the stream
// does not exist.
func (w *worker) heldIn(ctx context.Context, stream string, subjects holdSubjects) (n uint64, info *jetstream.StreamInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := w.sealedJS.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil, nil
	}
	if err == nil {
		info, err = s.Info(ctx, jetstream.WithSubjectFilter(subjects.fence()))
	}
	if err != nil {
		return 0, nil, fmt.Errorf("reading hold stream %s: %w", stream, err)
	}
	return info.State.Msgs - min(info.State.Msgs, info.State.Subjects[subjects.fence()]), info, nil
}

// checkUnheld makes sure that a route that does not hold leaves nothing behind in
// a hold stream: it would be overtaken.
func (w *worker) checkUnheld(ctx context.Context, rec *record) error {
	if rec == nil || rec.Hold == "" || w.route.Hold != nil && w.route.Hold.Stream == rec.Hold {
		return nil
	}
	n, _, err := w.heldIn(ctx, rec.Hold, w.holdSubjects())
	if err == nil && n > 0 {
		err = fmt.Errorf("%w: %w: stream %s has %d messages that the route held and did not release; go on with on_scope_unavailable: hold and that stream until it is empty", ErrHold, errHeld, rec.Hold, n)
	}
	return err
}

// checkOldHold makes sure that a partition that was drained left nothing in its hold
// stream, and that nothing can come into it: the new layout may have its subjects.
func (w *worker) checkOldHold(ctx context.Context, old *layout, number uint32, rec *record) error {
	if rec.Hold == "" {
		return nil
	}
	subjects := holdSubjectsOf(old.Route, number, old.Split)
	n, info, err := w.heldIn(ctx, rec.Hold, subjects)
	switch {
	case err != nil || info == nil:
		return err
	case n > 0:
		return fmt.Errorf("%w: %w: partition %d left %d of them in stream %s", ErrLayout, errHeld, number, n, rec.Hold)
	}
	for _, s := range info.Config.Subjects {
		if patternsOverlap(s, subjects.all()) {
			return fmt.Errorf("%w: hold stream %s of the recorded %v is empty and still takes %s: delete it", ErrLayout, rec.Hold, old, s)
		}
	}
	return nil
}
