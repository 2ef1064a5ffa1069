package local_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

func TestCacheIsBoundedAndDropped(t *testing.T) {
	const size = 8
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: memoryStore(t), CacheSize: size})
	var ids []string
	var wraps []authority.Wrapped
	for range 3 * size {
		k, err := a.CreateKey(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, k.KeyID)
		wraps = append(wraps, mustWrap(t, a, k.KeyID, []byte(k.KeyID)))
	}
	for range 2 {
		for i, w := range wraps { // every one misses
			wantOpens(t, a, w, []byte(ids[i]))
			if n := a.CacheLen(); n > size {
				t.Fatalf("%d versions in memory, limit %d", n, size)
			}
		}
	}
	last := ids[len(ids)-1]
	if len(a.Cached(last)) != 1 {
		t.Fatal("the last key used is not in memory")
	}
	if err := a.DisableKey(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if len(a.Cached(last)) != 0 {
		t.Error("a disabled key is in memory")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if n := a.CacheLen(); n != 0 {
		t.Errorf("%d versions in memory after Close", n)
	}
}

// Unwrapping races disabling: once DisableKey returned, no call succeeds and
// nothing of the key comes back into memory.
func TestDisableRacesUse(t *testing.T) {
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: memoryStore(t)})
	k, err := a.CreateKey(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	w := mustWrap(t, a, k.KeyID, []byte("x"))
	for range 30 {
		if err := a.EnableKey(t.Context(), k.KeyID); err != nil {
			t.Fatal(err)
		}
		busy, stop := make(chan struct{}, 3), make(chan struct{})
		var wg sync.WaitGroup
		for range cap(busy) {
			wg.Go(func() {
				for first := true; ; first = false {
					_, err := a.Unwrap(t.Context(), w, ec)
					if err != nil && !errors.Is(err, authority.ErrDisabled) {
						t.Errorf("Unwrap: %v", err)
					}
					if first {
						busy <- struct{}{}
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		for range cap(busy) {
			<-busy
		}
		if err := a.DisableKey(t.Context(), k.KeyID); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Unwrap(t.Context(), w, ec); !errors.Is(err, authority.ErrDisabled) {
			t.Errorf("Unwrap after DisableKey = %v", err)
		}
		close(stop)
		wg.Wait()
		if len(a.Cached(k.KeyID)) != 0 {
			t.Fatal("a disabled key came back into memory")
		}
	}
}

func TestDisabledKeyIsNotRotated(t *testing.T) {
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: memoryStore(t)})
	if err := a.DisableKey(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RotateKey(t.Context(), ""); !errors.Is(err, authority.ErrDisabled) {
		t.Errorf("RotateKey = %v, want ErrDisabled", err)
	}
}

func TestAliases(t *testing.T) {
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: memoryStore(t), DefaultKey: "orders"})
	if k, err := a.DescribeKey(t.Context(), ""); err != nil || k.Alias != "orders" {
		t.Errorf("DescribeKey of the default key = %+v, %v", k, err)
	}
	for _, ok := range []string{"tenant/acme", "Zürich 東京", strings.Repeat("a", local.MaxAlias), "a"} {
		if k, err := a.CreateKey(t.Context(), ok); err != nil || k.Alias != ok || len(k.KeyID) != 29 {
			t.Errorf("CreateKey(%q) = %+v, %v", ok, k, err)
		}
	}
	for _, bad := range []string{"lk-x", "a\n", "a\x00", "\xff", strings.Repeat("a", local.MaxAlias+1)} {
		if _, err := a.CreateKey(t.Context(), bad); !errors.Is(err, authority.ErrInvalid) {
			t.Errorf("CreateKey(%q) = %v, want ErrInvalid", bad, err)
		}
	}
	// One of many concurrent creators gets the alias.
	for round := range 50 {
		alias := fmt.Sprintf("contended/%d", round)
		start := make(chan struct{})
		var wg sync.WaitGroup
		errs := make([]error, 16)
		for i := range errs {
			wg.Go(func() {
				<-start
				_, errs[i] = a.CreateKey(t.Context(), alias)
			})
		}
		close(start)
		wg.Wait()
		if n := len(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, authority.ErrInvalid) })); n != 1 {
			t.Fatalf("%d creators got the alias, want 1", n)
		}
	}
}

// Concurrent rotations each make a version, and none is lost.
func TestConcurrentRotation(t *testing.T) {
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: memoryStore(t)})
	const n = 24
	versions := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			k, err := a.RotateKey(t.Context(), "")
			if err != nil {
				t.Errorf("RotateKey: %v", err)
			}
			versions[i] = k.Version
		})
	}
	wg.Wait()
	slices.Sort(versions)
	if len(slices.Compact(versions)) != n {
		t.Errorf("versions %q, want %d different ones", versions, n)
	}
	if k, err := a.DescribeKey(t.Context(), ""); err != nil || k.Version != fmt.Sprint(n+1) {
		t.Errorf("DescribeKey = %+v, %v, want version %d", k, err, n+1)
	}
}

// Listing streams: it stops where the caller stops and where the context ends.
func TestKeysStreams(t *testing.T) {
	a := mustNew(t, local.Config{DomainKey: randomKey(), Store: memoryStore(t)})
	const n = 3000
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := g; i < n; i += 16 {
				if _, err := a.CreateKey(t.Context(), fmt.Sprintf("scope/%d", i)); err != nil {
					t.Errorf("CreateKey: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	count, last := 0, ""
	for k, err := range a.Keys(t.Context()) {
		if err != nil || k.KeyID <= last {
			t.Fatalf("Keys: %q after %q, %v", k.KeyID, last, err)
		}
		last = k.KeyID
		count++
	}
	if count != n+1 {
		t.Errorf("%d keys, want %d", count, n+1)
	}
	for range a.Keys(t.Context()) {
		break
	}
	if n := a.CacheLen(); n != 0 {
		t.Errorf("listing and creating put %d versions in memory", n)
	}
}
