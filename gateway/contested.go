package gateway

import (
	"context"
	"errors"
	"fmt"
)

// contested looks again before source messages count as lost: another worker may
// have sealed and released them since this one read the sealed stream, or was
// frozen. Then the sealed stream does not end at last any more. Where
// partitions share it, the end is the partition's last checkpoint; and one that
// another worker begins at this moment shows messages to a worker that read that
// there is no checkpoint: so that is looked at again, too.
func (w *worker) contested(ctx context.Context, why error, last uint64) error {
	shared := w.route.shard != nil
	if !errors.Is(why, ErrSourceGap) && (!shared || !errors.Is(why, ErrPosition)) {
		return why
	}
	info, err := streamInfo(ctx, w.sealedJS, w.route.Sealed.Stream)
	if err != nil {
		return err
	}
	got := destination{config: info.Config, lastSeq: info.State.LastSeq}
	if shared {
		if err := w.readTip(ctx, &got); err != nil {
			return err
		}
	}
	if got.lastSeq != last {
		return fmt.Errorf("%w: the sealed stream ends at %d, not %d", ErrFenced, got.lastSeq, last)
	}
	return why
}
