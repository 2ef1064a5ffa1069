package keyserver

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func nonce(i int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 8, 16), uint64(i)) }

func TestReplayCache(t *testing.T) {
	c := newReplayCache(10, 5)
	now := time.Now()
	want := func(who string, i int, at time.Time, want verdict) {
		t.Helper()
		if got := c.check(who, nonce(i), at); got != want {
			t.Fatalf("check(%s, %d) = %d, want %d", who, i, got, want)
		}
	}
	want("a", 0, now, nonceNew)
	want("b", 0, now, nonceNew) // nonces belong to a principal
	want("a", 0, now, nonceReplayed)
	want("a", 0, now, nonceReplayedAgain)
	for i := 1; i < 15; i++ { // its share and the whole pool
		want("a", i, now, nonceNew)
	}
	want("a", 15, now, nonceFull)
	want("a", 3, now, nonceReplayed)
	for i := 1; i < 10; i++ { // the flood costs b nothing of its share
		want("b", i, now, nonceNew)
	}
	want("b", 10, now, nonceFull)
	want("a", 0, now.Add(nonceLife), nonceReplayedAgain)
	later := now.Add(nonceLife + 1)
	want("b", 11, later, nonceNew)
	for i := range 15 {
		want("a", i, later, nonceNew)
	}
	want("a", 16, later, nonceFull)
	c.sweep(later.Add(nonceLife + 1))
	if len(c.by) != 0 || c.shared != 0 {
		t.Errorf("%d principals, %d shared after everything expired, want none", len(c.by), c.shared)
	}
}

// TestReplayCacheRolls: with one new nonce a tick the cache stays as large as the window.
func TestReplayCacheRolls(t *testing.T) {
	c := newReplayCache(1000, 0)
	now := time.Now()
	for i := range 100_000 {
		now = now.Add(nonceLife / 900)
		if got := c.check("a", nonce(i), now); got != nonceNew {
			t.Fatalf("check %d = %d, want new", i, got)
		}
	}
	n := c.by["a"]
	if len(n.seen) > 902 || cap(n.queue) > 8192 || c.shared != 0 {
		t.Errorf("%d remembered, queue of %d, %d shared", len(n.seen), cap(n.queue), c.shared)
	}
}

func TestPool(t *testing.T) {
	p := newPool(4, 8)
	var done atomic.Int32
	hold, started := make(chan struct{}), make(chan struct{}, 100)
	job := func() { started <- struct{}{}; <-hold; done.Add(1) }
	for range 4 {
		if !p.submit(job) {
			t.Fatal("refused with idle workers")
		}
		<-started
	}
	for range 8 {
		if !p.submit(job) {
			t.Fatal("refused with room in the queue")
		}
	}
	if p.submit(job) || p.depth() != 8 {
		t.Fatalf("took a job beyond the queue, depth %d", p.depth())
	}
	var wg sync.WaitGroup
	wg.Go(p.close)
	wg.Go(p.close)
	close(hold)
	wg.Wait()
	if n := done.Load(); n != 12 {
		t.Errorf("%d jobs done at close, want all 12", n)
	}
	if p.submit(job) {
		t.Error("took a job after close")
	}
}

func TestScopeShape(t *testing.T) {
	for _, c := range []struct {
		text, scope string
		want        bool
	}{
		{"a", "a", true},
		{"a", "ab", false},
		{"a", "a\n", false},
		{"a.b", "axb", false},
		{"t/{{wildcard(1)}}", "t/x", true},
		{"t/{{wildcard(1)}}", "t/", false},
		{"t/{{wildcard(1)}}", "t/x.y", false},
		{"t/{{wildcard(1)}}", "t/x y", false},
		{"t/{{ wildcard(1) }}-{{wildcard(2)}}/z", "t/x-y/z", true},
		{"{{wildcard(1)}}", "anything", true},
		{"t/(.*)", "t/x", false},
	} {
		if got := scopeShape(c.text).MatchString(c.scope); got != c.want {
			t.Errorf("shape of %q matches %q = %v, want %v", c.text, c.scope, got, c.want)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	root := make([]byte, 32)
	for i := range root {
		root[i] = 0xA7
	}
	c, err := newCacheKey(root)
	if err != nil {
		t.Fatal(err)
	}
	g := sealGrant{subkey: root}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{c, g, struct{ K *cacheKey }{c}} {
			out := fmt.Sprintf(verb, v)
			for _, leak := range []string{"a7a7a7", "A7A7A7", "167 167 167", "0xa7, 0xa7"} {
				if strings.Contains(out, leak) {
					t.Errorf("%s of %T prints key bytes", verb, v)
				}
			}
		}
	}
}
