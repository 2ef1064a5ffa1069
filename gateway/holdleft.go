package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// errHeld marks the errors of a route that would leave held messages behind.
var errHeld = errors.New("gateway: messages are held")

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

// checkOldHolds makes sure that the partitions of a drained layout left nothing in
// their hold streams, and that nothing can come into them: the new layout may have
// the same subjects. streams has the name of each, "" for none.
func (w *worker) checkOldHolds(ctx context.Context, old *layout, streams []string) error {
	takes := ""
	for i, stream := range streams {
		if stream == "" {
			continue
		}
		subjects := holdSubjectsOf(old.Route, uint32(i), old.Split)
		n, info, err := w.heldIn(ctx, stream, subjects)
		switch {
		case err != nil:
			return err
		case n > 0:
			return fmt.Errorf("%w: %w: partition %d left %d of them in stream %s", ErrLayout, errHeld, i, n, stream)
		case info != nil && takes == "" && anyOverlap(info.Config.Subjects, []string{subjects.all()}):
			takes = fmt.Sprintf("hold stream %s is empty and still takes %s: delete it", stream, subjects.all())
		}
	}
	if takes != "" {
		return fmt.Errorf("%w: recorded are %v, configured are %v: %s", ErrLayout, old, w.part.layout, takes)
	}
	return nil
}
