package keycache

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Erase makes deletions under prefix physical: when it returns nil, no live
// file of the store holds a row under prefix that was deleted or replaced
// before the call. (File systems, snapshots and backups keep their own copies.)
//
// It rewrites the tables that overlap prefix and renews the log, so it costs
// some ten syncs; it waits for running Scan loops that still read old tables.
// Scan loops of the caller's own goroutine must have ended.
func (s *Store) Erase(ctx context.Context, prefix []byte) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	before, err := s.files()
	if err != nil {
		return fmt.Errorf("erasing: %w", err)
	}
	if err := s.guard(func() error { return s.rewrite(ctx, prefix) }); err != nil {
		return fmt.Errorf("erasing: %w", err)
	}
	if err := s.waitGone(ctx, before); err != nil {
		return fmt.Errorf("erasing: %w", err)
	}
	return nil
}

// oldLogs is how many finished logs Pebble keeps for reuse, plus the current
// one and one to spare. A reused log is a new file here (see logFS), so after
// as many renewals the logs written before are gone.
const oldLogs = 5

func (s *Store) rewrite(ctx context.Context, prefix []byte) error {
	if err := s.flush(); err != nil {
		return err
	}
	lower, upper := bounds(prefix)
	if err := s.db.Compact(ctx, lower, upper, false); err != nil {
		return fmt.Errorf("compacting: %w", err)
	}
	for range oldLogs {
		if err := s.flush(); err != nil {
			return err
		}
	}
	return nil
}

// files lists logs and tables.
func (s *Store) files() (map[string]bool, error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool)
	for _, n := range names {
		if isLog(n) || isTable(n) {
			out[n] = true
		}
	}
	return out, nil
}

func isLog(name string) bool   { return strings.HasSuffix(name, ".log") }
func isTable(name string) bool { return strings.HasSuffix(name, ".sst") }

// waitGone waits until Pebble's cleaner removed every log of before and every
// table that is not live any more.
func (s *Store) waitGone(ctx context.Context, before map[string]bool) error {
	// The cleaner signals each removal; the ticker covers a signal that another
	// Erase took.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := s.leftover(before)
		if err != nil || left == 0 {
			return err
		}
		select {
		case <-s.cleaned:
		case <-tick.C:
		case <-s.stop:
			return s.stopped()
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d old files: %w", left, context.Cause(ctx))
		}
	}
}

func (s *Store) leftover(before map[string]bool) (int, error) {
	levels, err := s.db.SSTables()
	if err != nil {
		return 0, fmt.Errorf("listing tables: %w", err)
	}
	live := make(map[string]bool)
	for _, tables := range levels {
		for _, t := range tables {
			live[t.BackingSSTNum.String()+".sst"] = true
		}
	}
	now, err := s.files()
	if err != nil {
		return 0, err
	}
	left := 0
	for n := range now {
		if before[n] && (isLog(n) || !live[n]) {
			left++
		}
	}
	return left, nil
}
