package keycache_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/keycache"
)

// filled makes a store with n commits in dir and closes it.
func filled(t *testing.T, dir string, n int) {
	t.Helper()
	s := mustOpen(t, dir)
	for i := range n {
		mustPut(t, s, fmt.Sprintf("k/%04d", i), strings.Repeat("v", 200))
	}
	mustClose(t, s)
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatalf("copying store: %v", err)
	}
}

func wantOpenError(t *testing.T, dir string, want error) {
	t.Helper()
	s, err := keycache.Open(dir, options(t))
	if err == nil {
		_ = s.Close()
	}
	if !errors.Is(err, want) {
		t.Errorf("Open = %v, want %v", err, want)
	}
}

func newest(t *testing.T, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s in the store: %v", pattern, err)
	}
	sort.Strings(names)
	return names[len(names)-1]
}

func TestLostLogTailIsNoticed(t *testing.T) {
	base := t.TempDir()
	filled(t, base, 40)
	fi, err := os.Stat(newest(t, base, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for cut := int64(1); cut <= fi.Size(); cut += 97 {
		dir := filepath.Join(t.TempDir(), "s")
		copyDir(t, base, dir)
		if err := os.Truncate(newest(t, dir, "*.log"), fi.Size()-cut); err != nil {
			t.Fatal(err)
		}
		s, err := keycache.Open(dir, options(t))
		switch {
		case errors.Is(err, keycache.ErrWentBack):
			refused++
		case err != nil:
			// Pebble itself noticed: refused as well.
		default:
			if got := len(rows(t, s, "k/")); got != 40 {
				t.Errorf("cut of %d bytes: opened with %d of 40 rows", cut, got)
			}
			_ = s.Close()
		}
	}
	if refused == 0 {
		t.Error("no cut was answered with ErrWentBack")
	}
}

func TestDamagedStoreIsRefused(t *testing.T) {
	base, older, other := t.TempDir(), filepath.Join(t.TempDir(), "older"), t.TempDir()
	filled(t, base, 10)
	copyDir(t, base, older)
	s := mustOpen(t, base)
	for i := range 3 {
		mustPut(t, s, fmt.Sprintf("l/%d", i), "x")
	}
	if err := s.Erase(t.Context(), nil); err != nil { // so that rows are in tables
		t.Fatal(err)
	}
	mustPut(t, s, "m", "x")
	mustClose(t, s)
	filled(t, other, 14)

	write := func(t *testing.T, path string, change func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	headOf := func(dir string) string { return filepath.Join(dir, "HEAD") }
	remove := func(t *testing.T, name string) {
		t.Helper()
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	anyError := errors.New("any")
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   error
	}{
		{"older copy under a newer head", func(t *testing.T, dir string) {
			head, err := os.ReadFile(headOf(dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			copyDir(t, older, dir)
			write(t, headOf(dir), func([]byte) []byte { return head })
		}, keycache.ErrWentBack},
		{"newer store under an older head", func(t *testing.T, dir string) {
			head, err := os.ReadFile(headOf(older))
			if err != nil {
				t.Fatal(err)
			}
			write(t, headOf(dir), func([]byte) []byte { return head })
		}, keycache.ErrHead},
		{"head of another store", func(t *testing.T, dir string) {
			head, err := os.ReadFile(headOf(other))
			if err != nil {
				t.Fatal(err)
			}
			write(t, headOf(dir), func([]byte) []byte { return head })
		}, keycache.ErrHead},
		{"head missing", func(t *testing.T, dir string) { remove(t, headOf(dir)) }, keycache.ErrHead},
		{"head empty", func(t *testing.T, dir string) {
			write(t, headOf(dir), func([]byte) []byte { return nil })
		}, keycache.ErrHead},
		{"head too long", func(t *testing.T, dir string) {
			write(t, headOf(dir), func(b []byte) []byte { return append(b, 0) })
		}, keycache.ErrHead},
		{"head zeroed", func(t *testing.T, dir string) {
			write(t, headOf(dir), func(b []byte) []byte { return make([]byte, len(b)) })
		}, keycache.ErrHead},
		{"slots swapped", func(t *testing.T, dir string) {
			write(t, headOf(dir), func(b []byte) []byte {
				return append(b[keycache.HeadSlot:len(b):len(b)], b[:keycache.HeadSlot]...)
			})
		}, keycache.ErrHead},
		{"tables and log missing", func(t *testing.T, dir string) {
			names, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if n.Name() != "HEAD" {
					remove(t, filepath.Join(dir, n.Name()))
				}
			}
		}, keycache.ErrWentBack},
		{"log missing", func(t *testing.T, dir string) {
			names, err := filepath.Glob(filepath.Join(dir, "*.log"))
			if err != nil || len(names) == 0 {
				t.Fatalf("no logs: %v", err)
			}
			for _, n := range names {
				remove(t, n)
			}
		}, keycache.ErrWentBack},
		{"table missing", func(t *testing.T, dir string) { remove(t, newest(t, dir, "*.sst")) }, anyError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, control := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "c")
			copyDir(t, base, dir)
			copyDir(t, base, control)
			mustClose(t, mustOpen(t, control)) // the copy itself opens
			tt.damage(t, dir)
			s, err := keycache.Open(dir, options(t))
			if err == nil {
				_ = s.Close()
				t.Fatalf("Open succeeded, want %v", tt.want)
			}
			if tt.want != anyError && !errors.Is(err, tt.want) {
				t.Errorf("Open = %v, want %v", err, tt.want)
			}
			if tt.want != anyError && !strings.Contains(err.Error(), "restore") {
				t.Errorf("Open = %v: says nothing about what to do", err)
			}
		})
	}
}

// A damaged older slot is no torn write: the store would be one commit ahead. A
// damaged newer slot looks like one and is repaired, without loss.
func TestDamagedHeadByte(t *testing.T) {
	base := t.TempDir()
	filled(t, base, 3)
	whole, err := os.ReadFile(filepath.Join(base, "HEAD"))
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range []int{0, keycache.HeadSlot} {
		for _, at := range []int{0, 20, 30, 45, 60, 100, 130, 140, 160, 200, keycache.HeadSlot - 1} {
			b := append([]byte(nil), whole...)
			b[slot+at] ^= 1
			if err := os.WriteFile(filepath.Join(base, "HEAD"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if slot == 0 { // generation 2
				wantOpenError(t, base, keycache.ErrHead)
				continue
			}
			s := mustOpen(t, base)
			if got := len(rows(t, s, "")); got != 3 || s.Head().Generation != 3 {
				t.Errorf("byte %d of the newer slot: opened with %d rows at %v", at, got, s.Head())
			}
			mustClose(t, s)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "HEAD"), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, base))
}

// Cutting the last commit off the log and damaging the slot that knew of it is
// still noticed.
func TestLostTailBehindDamagedSlot(t *testing.T) {
	dir, older := t.TempDir(), filepath.Join(t.TempDir(), "older")
	filled(t, dir, 2)
	copyDir(t, dir, older)
	s := mustOpen(t, dir)
	mustPut(t, s, "last", "x")
	mustClose(t, s)
	b, err := os.ReadFile(filepath.Join(dir, "HEAD"))
	if err != nil {
		t.Fatal(err)
	}
	b[keycache.HeadSlot+60] ^= 1 // generation 3
	if err := os.WriteFile(filepath.Join(older, "HEAD"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	wantOpenError(t, older, keycache.ErrHead)
}

// A crash between commit and head, and one in the middle of writing the head,
// leave the store one commit ahead.
func TestTornHeadIsRepaired(t *testing.T) {
	for _, torn := range []string{"old slot", "torn slot"} {
		t.Run(torn, func(t *testing.T) {
			dir := t.TempDir()
			filled(t, dir, 6)
			before, err := os.ReadFile(filepath.Join(dir, "HEAD"))
			if err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, dir)
			mustPut(t, s, "last", "x")
			want := s.Head()
			mustClose(t, s)
			if torn == "torn slot" { // generation 7 goes to slot 1
				for i := range 100 {
					before[keycache.HeadSlot+50+i] = 0xee
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "HEAD"), before, 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the repair lasts
				s = mustOpen(t, dir)
				if got := s.Head(); got.Hash != want.Hash || got.Generation != 7 {
					t.Errorf("Head() = %v, want %v", got, want)
				}
				if _, err := s.Get([]byte("last")); err != nil {
					t.Errorf("Get: %v", err)
				}
				mustClose(t, s)
			}
			s = mustOpen(t, dir)
			mustPut(t, s, "next", "x")
			mustClose(t, s)
			mustClose(t, mustOpen(t, dir))
		})
	}
}

func TestOtherKeyIsNamed(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir, 1)
	o := options(t)
	o.Authenticator = testAuth(t, "another")
	_, err := keycache.Open(dir, o)
	if !errors.Is(err, keycache.ErrOtherKey) || !errors.Is(err, keycache.ErrHead) {
		t.Errorf("Open with another key = %v, want ErrOtherKey and ErrHead", err)
	}
	_, err = keycache.Open(dir, keycache.Options{})
	if !errors.Is(err, keycache.ErrInvalid) {
		t.Errorf("Open without authenticator = %v, want ErrInvalid", err)
	}
	mustClose(t, mustOpen(t, dir))
}
