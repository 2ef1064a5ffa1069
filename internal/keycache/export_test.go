package keycache

import "github.com/cockroachdb/pebble/v2/vfs"

// OpenFS is Open on another file system.
func OpenFS(fs vfs.FS, dir string, o Options) (*Store, error) { return open(fs, dir, o) }

// HeadSlot is the size of a slot of the file HEAD.
const HeadSlot = headSlot

// Pending is how many batches wait for the committer.
func (s *Store) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// Fatal injects what Pebble does when a write fails, on the caller's goroutine.
func (s *Store) Fatal(err error) { pebbleLogger{s}.Fatalf("%v", err) }
