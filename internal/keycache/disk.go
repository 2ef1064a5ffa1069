package keycache

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is the file system Pebble and the head file write to. It does three things.
//
// The first write that fails stops the store, right here: the goroutine is
// parked for good and Pebble never hears of the error. Pebble would retry some,
// call Fatalf for others and panic for the rest, on goroutines where nothing
// can recover and with locks that make unwinding itself fatal.
//
// A marker file is created only when the names created before it are durable.
// Pebble syncs the directory once, after the marker; a power cut in between may
// keep the marker and lose the manifest it points to, and such a store does not
// open any more.
//
// And a new log is a new file. Pebble would otherwise write it over an old one
// and leave old rows, erased ones too, behind its end.
type disk struct {
	vfs.FS
	s *Store
}

// sure parks the caller if a write failed; it returns only nil.
func (d disk) sure(what, name string, err error) error {
	if err == nil {
		return nil
	}
	d.s.fail(fmt.Errorf("%s %s: %w", what, d.PathBase(name), err))
	select {}
}

// Create implements vfs.FS.
func (d disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(d.PathBase(name), "marker.") {
		if err := syncDir(d, d.PathDir(name)); err != nil {
			return nil, err
		}
	}
	f, err := d.FS.Create(name, c)
	return file{f, d, name}, d.sure("creating", name, err)
}

// OpenReadWrite implements vfs.FS.
func (d disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := d.FS.OpenReadWrite(name, c, o...)
	return file{f, d, name}, d.sure("opening", name, err)
}

// OpenDir implements vfs.FS; directories are opened to be synced.
func (d disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return file{f, d, name}, nil
}

// ReuseForWrite implements vfs.FS, whose contract allows not to reuse.
func (d disk) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.Remove(oldname); err != nil {
		return nil, err
	}
	return d.Create(newname, c)
}

// Link implements vfs.FS.
func (d disk) Link(oldname, newname string) error {
	return d.sure("linking", newname, d.FS.Link(oldname, newname))
}

// Rename implements vfs.FS.
func (d disk) Rename(oldname, newname string) error {
	return d.sure("renaming", newname, d.FS.Rename(oldname, newname))
}

// Remove implements vfs.FS.
func (d disk) Remove(name string) error {
	err := d.FS.Remove(name)
	if errors.Is(err, os.ErrNotExist) {
		return err
	}
	return d.sure("removing", name, err)
}

// Unwrap implements vfs.FS.
func (d disk) Unwrap() vfs.FS { return d.FS }

// file is a file of a disk.
type file struct {
	vfs.File
	d    disk
	name string
}

// Write implements vfs.File.
func (f file) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return n, f.d.sure("writing", f.name, err)
}

// WriteAt implements vfs.File.
func (f file) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	return n, f.d.sure("writing", f.name, err)
}

// Sync implements vfs.File.
func (f file) Sync() error { return f.d.sure("syncing", f.name, f.File.Sync()) }

// SyncData implements vfs.File.
func (f file) SyncData() error { return f.d.sure("syncing", f.name, f.File.SyncData()) }

// SyncTo implements vfs.File.
func (f file) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.d.sure("syncing", f.name, err)
}

// Close implements vfs.File; some file systems report a failed write only here.
func (f file) Close() error { return f.d.sure("closing", f.name, f.File.Close()) }

// makeDir creates dir with mode 0700 and syncs the parents of what it created.
func makeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	var parents []string // of directories that are missing, innermost first
	for d := dir; ; {
		p := fs.PathDir(d)
		parents = append(parents, p)
		if _, err := fs.Stat(p); err == nil || p == d || p == "." {
			break
		}
		d = p
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, p := range parents {
		if err := syncDir(fs, p); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return err
	}
	return d.Close()
}
