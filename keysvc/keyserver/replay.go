package keyserver

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/keyweir/keyweir/keysvc"
)

const (
	// nonceLife is how long a nonce is remembered: a request is good for one
	// window around its own time, so for two at most from when it came.
	nonceLife = 2 * keysvc.Window
	// Each principal can always have nonceShare nonces remembered; beyond that
	// all share noncePool. So one that floods is refused before it costs another
	// one its share.
	nonceShare = 1 << 16
	noncePool  = 1 << 20
)

// replayCache remembers nonces by principal.
type replayCache struct {
	share, pool int

	mu     sync.Mutex
	by     map[string]*nonces
	shared int // entries beyond the shares
}

type nonces struct {
	seen  map[nonceKey]bool // value: the replay was reported
	queue []nonceAge        // oldest first
	first int               // index of the oldest in queue
}

type nonceKey [16]byte

type nonceAge struct {
	key   nonceKey
	until time.Time
}

func newReplayCache(share, pool int) *replayCache {
	return &replayCache{share: share, pool: pool, by: map[string]*nonces{}}
}

// verdict of a nonce.
type verdict int

const (
	nonceNew verdict = iota + 1
	nonceReplayed
	nonceReplayedAgain // and the first replay was already told
	nonceFull
)

// check remembers a nonce of a principal that is enrolled and has signed it.
func (c *replayCache) check(principal string, nonce []byte, now time.Time) verdict {
	sum := sha256.Sum256(nonce)
	key := nonceKey(sum[:16])
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.by[principal]
	if n == nil {
		n = &nonces{seen: map[nonceKey]bool{}}
		c.by[principal] = n
	}
	c.expire(n, now)
	if told, ok := n.seen[key]; ok {
		n.seen[key] = true
		if told {
			return nonceReplayedAgain
		}
		return nonceReplayed
	}
	if len(n.seen) >= c.share {
		if c.shared >= c.pool {
			return nonceFull
		}
		c.shared++
	}
	n.seen[key] = false
	n.queue = append(n.queue, nonceAge{key, now.Add(nonceLife)})
	return nonceNew
}

func (c *replayCache) expire(n *nonces, now time.Time) {
	for n.first < len(n.queue) && now.After(n.queue[n.first].until) {
		if len(n.seen) > c.share {
			c.shared--
		}
		delete(n.seen, n.queue[n.first].key)
		n.first++
	}
	if n.first > 1024 && n.first > len(n.queue)/2 {
		n.queue = append([]nonceAge(nil), n.queue[n.first:]...)
		n.first = 0
	}
}

// sweep lets go of what expired, for principals that went silent too.
func (c *replayCache) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, n := range c.by {
		c.expire(n, now)
		if len(n.seen) == 0 {
			delete(c.by, name)
		}
	}
}

var (
	errReplayed   = fmt.Errorf("%w: replayed request", keysvc.ErrMisdelivered)
	errNoncesFull = fmt.Errorf("%w: too many requests of this principal within %v", keysvc.ErrBusy, nonceLife)
)
