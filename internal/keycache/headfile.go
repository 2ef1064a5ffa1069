package keycache

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The file HEAD has two slots. Generation g is written to slot g%2, so the head
// before it stays whole while it is written. A slot is a signed head and zeros.
const (
	headName    = "HEAD"
	headNewName = "HEAD.new"
	headSlot    = 4096 // no two slots share a disk sector
	headCommand = "restore a complete copy of the store directory, HEAD included"
)

// headRow is the key of the head inside the store.
var headRow = append([]byte{metaSpace}, "head"...)

type headFile struct {
	f vfs.File
}

// write makes an encoded head durable in its slot.
func (hf *headFile) write(generation uint64, encoded []byte) error {
	slot := make([]byte, headSlot)
	copy(slot, encoded)
	if _, err := hf.f.WriteAt(slot, int64(generation%2)*headSlot); err != nil {
		return fmt.Errorf("writing head: %w", err)
	}
	// The file never grows, so syncing the data is enough.
	if err := hf.f.SyncData(); err != nil {
		return fmt.Errorf("syncing head: %w", err)
	}
	return nil
}

func (hf *headFile) close() error { return hf.f.Close() }

// createHead writes the file HEAD of a new store under another name, and renames
// it when it is whole: a HEAD that exists was complete once.
func (s *Store) createHead(h *Head) error {
	enc, err := encodeHead(h, s.auth)
	if err != nil {
		return err
	}
	b := make([]byte, 2*headSlot)
	copy(b, enc)
	copy(b[headSlot:], enc)
	tmp := s.fs.PathJoin(s.dir, headNewName)
	f, err := s.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("creating head: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("creating head: %w", err)
	}
	if err := s.fs.Rename(tmp, s.fs.PathJoin(s.dir, headName)); err != nil {
		return fmt.Errorf("creating head: %w", err)
	}
	if err := syncDir(s.fs, s.dir); err != nil {
		return fmt.Errorf("creating head: %w", err)
	}
	return nil
}

// loadHead compares the head in the store with the file HEAD. The order of
// writing is: commit (synced), then the slot of HEAD (synced), then the answer
// to Apply. So what a crash can leave is
//
//   - nothing at all: the crash came before HEAD was created, and HEAD is
//     created before the first commit;
//   - equal heads;
//   - a store one commit ahead, with the slot of that commit old or torn. The
//     commit was not acknowledged, but it is whole, and is kept.
//
// Everything else is no crash. A damaged slot beside a store that is not ahead,
// in particular, is no torn write.
func (s *Store) loadHead() (*Head, error) {
	row, empty, err := s.headInStore()
	if err != nil {
		return nil, err
	}
	name := s.fs.PathJoin(s.dir, headName)
	if _, err := s.fs.Stat(name); errors.Is(err, os.ErrNotExist) {
		if !empty {
			return nil, fmt.Errorf("%w: the file %s is missing: %s", ErrHead, headName, headCommand)
		}
		if err := s.createHead(&Head{StoreID: newStoreID()}); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("reading head: %w", err)
	}
	f, err := s.fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("reading head: %w", err)
	}
	s.slots = &headFile{f: f}
	top, whole, err := s.readSlots(f)
	if err != nil {
		return nil, err
	}
	return s.reconcile(row, empty, top, whole)
}

// headInStore reads the head row and whether the store has no row at all.
func (s *Store) headInStore() (h *Head, empty bool, err error) {
	b, err := s.get(headRow)
	if errors.Is(err, ErrNotFound) {
		it, err := s.db.NewIter(nil)
		if err != nil {
			return nil, false, fmt.Errorf("reading store: %w", err)
		}
		empty = !it.First()
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			return nil, false, fmt.Errorf("reading store: %w", err)
		}
		if !empty {
			return nil, false, fmt.Errorf("%w: the store has rows but no head row: %s", ErrHead, headCommand)
		}
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	h, rest, err := decodeHead(b, s.auth)
	if err == nil && len(rest) > 0 {
		err = errMalformed
	}
	if err != nil {
		return nil, false, fmt.Errorf("%w: head row: %w", ErrHead, err)
	}
	return h, false, nil
}

// readSlots returns the newest whole head of the file and how many slots are whole.
func (s *Store) readSlots(f vfs.File) (top *Head, whole int, err error) {
	b := make([]byte, 2*headSlot+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("reading head: %w", err)
	}
	if n != 2*headSlot {
		return nil, 0, fmt.Errorf("%w: the file %s has not its size of %d bytes: %s", ErrHead, headName, 2*headSlot, headCommand)
	}
	var heads [2]*Head
	var bad error
	for i := range heads {
		h, rest, err := decodeHead(b[i*headSlot:(i+1)*headSlot], s.auth)
		if err == nil && (!zero(rest) || h.Generation > 0 && h.Generation%2 != uint64(i)) {
			err = errMalformed
		}
		if err != nil {
			bad = fmt.Errorf("%w: slot %d of %s: %w", ErrHead, i, headName, err)
			continue
		}
		heads[i] = h
		whole++
	}
	a, z := heads[0], heads[1]
	switch {
	case whole == 0:
		return nil, 0, fmt.Errorf("%w: %s", bad, headCommand)
	case whole == 1:
		if a == nil {
			a = z
		}
		return a, 1, nil
	case a.equal(z) && a.Generation == 0 || a.follows(z):
		return a, 2, nil
	case z.follows(a):
		return z, 2, nil
	}
	return nil, 0, fmt.Errorf("%w: the slots of %s do not follow each other: %s", ErrHead, headName, headCommand)
}

// reconcile decides between the head in the store (nil: none) and the newest
// one of the file.
func (s *Store) reconcile(row *Head, empty bool, top *Head, whole int) (*Head, error) {
	if empty {
		row = &Head{StoreID: top.StoreID}
	}
	switch {
	case row.StoreID != top.StoreID:
		return nil, fmt.Errorf("%w: the file %s belongs to another store: %s", ErrHead, headName, headCommand)
	case row.Generation < top.Generation:
		return nil, fmt.Errorf("%w: store is at %v, %s at %v: acknowledged changes are missing, %s",
			ErrWentBack, row, headName, top, headCommand)
	case row.equal(top) && whole == 2:
		return row, nil
	case row.equal(top):
		return nil, fmt.Errorf("%w: a slot of %s is damaged, and not by a crash: %s", ErrHead, headName, headCommand)
	case !row.follows(top):
		return nil, fmt.Errorf("%w: store is at %v, %s at %v, which no crash leaves: %s", ErrHead, row, headName, top, headCommand)
	}
	s.log.Warn("repairing head after a crash", "store", row.String(), "file", top.String())
	// The commit may have been read from a log that was never synced: it must
	// be durable before the file vouches for it. Pebble flushes what it replays
	// by itself; this asks for what is relied on.
	if err := s.flush(); err != nil {
		return nil, err
	}
	enc, err := encodeHead(row, s.auth)
	if err != nil {
		return nil, err
	}
	return row, s.slots.write(row.Generation, enc)
}

// flush writes all rows of memory and log into tables.
func (s *Store) flush() error {
	done, err := s.db.AsyncFlush()
	if err != nil {
		return fmt.Errorf("flushing store: %w", err)
	}
	select {
	case <-done:
		return nil
	case <-s.stop:
		return s.stopped()
	}
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
