package bench

import (
	"context"
	"runtime"
	"slices"
	"time"
)

// minRounds is how often every operation is timed at least, so that a median
// means something.
const minRounds = 31

// interleave times ops in turn, a batch of each per round, until the time is up,
// and returns the median nanoseconds of one call for each. Taking turns spreads
// what else the machine does evenly over all of them.
func interleave(ctx context.Context, total time.Duration, ops []func() error) ([]float64, error) {
	batch, err := batchSize(ops)
	if err != nil {
		return nil, err
	}
	times := make([][]time.Duration, len(ops))
	end := time.Now().Add(total)
	for round := 0; round < minRounds || time.Now().Before(end); round++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for i := range ops {
			op := ops[(round+i)%len(ops)]
			start := time.Now()
			for range batch {
				if err := op(); err != nil {
					return nil, err
				}
			}
			times[(round+i)%len(ops)] = append(times[(round+i)%len(ops)], time.Since(start))
		}
	}
	medians := make([]float64, len(ops))
	for i, t := range times {
		slices.Sort(t)
		medians[i] = float64(t[len(t)/2]) / float64(batch)
	}
	return medians, nil
}

// batchSize doubles the batch until the quickest operation needs 50 µs, which is
// far above the resolution of the clock and far below a time slice.
func batchSize(ops []func() error) (int, error) {
	for n := 8; ; n *= 2 {
		least := time.Duration(1 << 62)
		for _, op := range ops {
			start := time.Now()
			for range n {
				if err := op(); err != nil {
					return 0, err
				}
			}
			least = min(least, time.Since(start))
		}
		if least >= 50*time.Microsecond || n >= 1<<20 {
			return n, nil
		}
	}
}

// allocs counts heap allocations of one call: the least of several runs, because
// other goroutines' allocations are counted as well.
func allocs(op func() error) (uint64, error) {
	const runs, calls = 5, 200
	least := ^uint64(0)
	var before, after runtime.MemStats
	for range runs {
		runtime.ReadMemStats(&before)
		for range calls {
			if err := op(); err != nil {
				return 0, err
			}
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	return least / calls, nil
}
