package gateway

import (
	"context"
	"errors"
	"fmt"
)

// contested looks again before source messages count as lost: another worker may
// have sealed and released them since this one read the sealed stream, or was
// frozen. Then the sealed stream does not end at last any more.
func (w *worker) contested(ctx context.Context, why error, last uint64) error {
	if !errors.Is(why, ErrSourceGap) || w.route.Sealed.Shared { // others write to a shared one all the time
		return why
	}
	info, err := streamInfo(ctx, w.sealedJS, w.route.Sealed.Stream)
	if err != nil {
		return err
	}
	if got := info.State.LastSeq; got != last {
		return fmt.Errorf("%w: the sealed stream ends at %d, not %d", ErrFenced, got, last)
	}
	return why
}
