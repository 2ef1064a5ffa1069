// Package keycache is the durable store of the key service: Pebble behind a
// small API, with an authenticated head that notices when the store went back.
//
// [Open] a [Store], collect changes in a [Batch], [Store.Apply] it:
//
//	s, err := keycache.Open(dir, keycache.Options{Authenticator: auth})
//	var b keycache.Batch
//	b.Put([]byte("key/1"), row)
//	err = s.Apply(ctx, &b) // nil only when the batch is durable
//
// # What is promised
//
// A batch is applied as a whole or not at all. Apply answers nil only after the
// write-ahead log and the head reached the disk. Concurrent batches share one
// disk write. A failed write stops the store for good ([ErrStopped]): after a
// failed fsync nobody can say what the disk holds, so the process must exit and
// open the store again.
//
// # The head
//
// Pebble opens a store whose log lost its tail without a word. So each commit
// also writes a [Head] into the file HEAD beside the tables, signed by the
// caller's [Authenticator], and the same head as a row of the same commit. Open
// compares the two and refuses a store that is behind its head ([ErrWentBack])
// or whose head is missing, damaged or foreign ([ErrHead]).
//
// What it cannot see: a complete older copy, HEAD included. Whoever must notice
// that keeps [Store.Head] somewhere else and compares. Nor does the head
// authenticate single rows: callers seal or MAC their values.
package keycache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// formatVersion is named, not "newest": raising it is a decision, because an
// older program cannot open what a newer format wrote.
const formatVersion = pebble.FormatValueSeparation

// Limits of one row and one batch, checked before anything is written.
const (
	MaxKey   = 4 << 10 // bytes of a key
	MaxValue = 1 << 20 // bytes of a value
	MaxBatch = 4 << 20 // bytes of all keys and values of a batch
)

// Rows of callers live under userSpace, rows of the store itself under metaSpace.
const (
	metaSpace = 0x00
	userSpace = 0x01
)

// What a Store can answer beside wrapped I/O errors.
var (
	// ErrNotFound: there is no row with this key.
	ErrNotFound = errors.New("keycache: not found")
	// ErrStopped: the store was closed, or a write failed and it stopped. A
	// batch refused with it was never acknowledged; whether it is on the disk
	// is known only after opening the store again.
	ErrStopped = errors.New("keycache: store stopped")
	// ErrInvalid: a batch or option is out of bounds; nothing was written.
	ErrInvalid = errors.New("keycache: invalid argument")
	// ErrWentBack: the store is older than its head: rows that were
	// acknowledged are gone. Restore a complete, current copy.
	ErrWentBack = errors.New("keycache: store is older than its head")
	// ErrHead: the head file is missing, damaged, or does not belong to the store.
	ErrHead = errors.New("keycache: head does not match the store")
	// ErrOtherKey: the head was signed with another key than the one given. It
	// is reported together with [ErrHead].
	ErrOtherKey = errors.New("keycache: head was signed with another key")
)

// Options configure a Store.
type Options struct {
	// Authenticator signs and verifies the head. Required.
	Authenticator Authenticator
	// Sequencer turns records attached to batches into rows, in commit order.
	// Nil: batches with records are refused.
	Sequencer Sequencer
	// Logger receives what Pebble reports. Nil discards.
	Logger *slog.Logger
	// OnFatal is called once, after the store stopped because a write failed or
	// damaged data was read. It runs on the goroutine that failed, which may
	// hold locks of Pebble: it may call no method but Close. A server exits the
	// process here. Nil logs the error.
	OnFatal func(error)
}

// Store is an open store. It is safe for concurrent use.
type Store struct {
	fs   vfs.FS
	dir  string
	auth Authenticator
	seq  Sequencer
	log  *slog.Logger

	onFatal func(error)
	db      *pebble.DB
	slots   *headFile            // owned by the committer once started
	head    atomic.Pointer[Head] // last durable head; written by the committer

	opened   atomic.Bool   // Open succeeded: from now on OnFatal is called
	stop     chan struct{} // closed when the store stops, whatever the reason
	stopOnce sync.Once
	fatal    error // why, nil after Close; written before stop is closed

	mu      sync.Mutex
	pending []*request // batches the committer has not taken yet
	readers int        // running Get, Last, Scan and Compact calls
	closing bool       // no new readers and batches
	idle    *sync.Cond // on mu: readers fell to 0

	wake      chan struct{} // one token: pending is not empty, or closing
	committed chan struct{} // closed when the committer ended
	cleaned   chan struct{} // one token: Pebble removed a file
	closeOnce sync.Once
	closeErr  error
}

// Open opens the store in dir and creates it, and the directory with mode 0700,
// if it is missing. One process at a time can have a store open.
//
// [ErrWentBack] and [ErrHead] mean that the files are not the ones this key's
// holder wrote last; nothing but a restore helps, and the message says so. After
// a write that failed inside Open the directory stays locked until the process ends.
func Open(dir string, o Options) (*Store, error) {
	return open(vfs.Default, dir, o)
}

// OpenMemory opens a new, empty store that lives in memory and is gone when it
// is closed. For tests and demonstrations.
func OpenMemory(o Options) (*Store, error) {
	return open(vfs.NewMem(), "memory", o)
}

func open(fs vfs.FS, dir string, o Options) (*Store, error) {
	if o.Authenticator == nil {
		return nil, fmt.Errorf("opening store: no authenticator: %w", ErrInvalid)
	}
	s := &Store{
		dir: dir, auth: o.Authenticator, seq: o.Sequencer, log: o.Logger, onFatal: o.OnFatal,
		stop:      make(chan struct{}),
		wake:      make(chan struct{}, 1),
		committed: make(chan struct{}),
		cleaned:   make(chan struct{}, 1),
	}
	s.fs = disk{fs, s}
	s.idle = sync.NewCond(&s.mu)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.onFatal == nil {
		s.onFatal = func(err error) { s.log.Error("key store stopped", "err", err) }
	}
	if err := makeDir(fs, dir); err != nil {
		return nil, fmt.Errorf("creating store directory: %w", err)
	}
	err := s.guard(s.openPebble)
	if err == nil {
		err = s.guard(s.start)
	}
	if s.isStopped() {
		// Something is parked, so nothing can be closed.
		return nil, fmt.Errorf("opening store: %w", s.fatal)
	}
	if err != nil {
		if s.db != nil {
			if cerr := s.guard(s.closeFiles); cerr != nil {
				s.log.Error("closing store after a failed open", "err", cerr)
			}
		}
		return nil, err
	}
	s.opened.Store(true)
	go s.commitLoop()
	return s, nil
}

// openPebble opens the tables and the log. Where HEAD exists they must exist.
func (s *Store) openPebble() error {
	_, err := s.fs.Stat(s.fs.PathJoin(s.dir, headName))
	opts := &pebble.Options{
		FS:                 s.fs,
		FormatMajorVersion: formatVersion,
		Logger:             pebbleLogger{s},
		EventListener:      s.listener(),
		ErrorIfNotExists:   err == nil,
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(s.dir, opts)
	switch {
	case errors.Is(err, pebble.ErrDBDoesNotExist):
		return fmt.Errorf("opening store: %w: %s is there but the tables are gone: restore a complete copy of the directory", ErrWentBack, headName)
	case err != nil:
		return fmt.Errorf("opening store: %w", err)
	}
	s.db = db
	return nil
}

// start compares store and head, repairs what a crash explains, and lets the
// sequencer look at its rows.
func (s *Store) start() error {
	h, err := s.loadHead()
	if err != nil {
		return fmt.Errorf("opening store: %w", err)
	}
	s.head.Store(h)
	if s.seq != nil {
		if err := s.seq.Check(s, h.State); err != nil {
			return fmt.Errorf("opening store: checking sequenced records: %w", err)
		}
	}
	return nil
}

// guard runs f and returns its error, or [ErrStopped] as soon as the store
// stops: f may then be parked inside Pebble for good.
func (s *Store) guard(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-s.stop:
		return s.stopped()
	}
}

// fail stops the store for good. Only the first call does anything.
func (s *Store) fail(err error) {
	s.stopOnce.Do(func() {
		s.fatal = err
		close(s.stop)
		if s.opened.Load() {
			s.onFatal(err)
		}
	})
}

// stopped is the error of a store whose stop channel is closed.
func (s *Store) stopped() error {
	if s.fatal != nil {
		return fmt.Errorf("%w: %w", ErrStopped, s.fatal)
	}
	return fmt.Errorf("%w: closed", ErrStopped)
}

func (s *Store) isStopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// Head returns the last durable head.
func (s *Store) Head() Head { return s.head.Load().clone() }

// Close commits what Apply already accepted, waits for running reads and closes
// the files. It may not be called from inside a Scan loop. After a failed write
// it closes nothing, because Pebble may be parked in the middle of it, and
// returns why the store stopped. Later calls repeat the first answer.
func (s *Store) Close() error {
	if s.isStopped() && s.fatal != nil {
		return s.stopped()
	}
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.signal()
	select {
	case <-s.committed:
	case <-s.stop:
		return s.stopped()
	}
	err := s.guard(func() error {
		s.mu.Lock()
		for s.readers > 0 {
			s.idle.Wait()
		}
		s.mu.Unlock()
		return s.closeFiles()
	})
	s.stopOnce.Do(func() { close(s.stop) })
	if s.fatal != nil {
		return s.stopped()
	}
	if err != nil {
		return fmt.Errorf("closing store: %w", err)
	}
	return nil
}

func (s *Store) closeFiles() error {
	err := s.db.Close()
	if s.slots != nil {
		err = errors.Join(err, s.slots.close())
	}
	return err
}

// enter admits a reader; the caller calls leave when it is done with Pebble.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isStopped() {
		return s.stopped()
	}
	if s.closing {
		return fmt.Errorf("%w: closed", ErrStopped)
	}
	s.readers++
	return nil
}

func (s *Store) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers--; s.readers == 0 {
		s.idle.Broadcast()
	}
}

func newStoreID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}
