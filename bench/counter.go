package bench

import (
	"context"
	"sync"
)

// counter is a number that rises and can be waited for. The zero counter is 0.
type counter struct {
	mu      sync.Mutex
	n       int64
	changed chan struct{} // closed at the next change; nil if nobody waits
}

// set raises the counter and reports whether it changed.
func (c *counter) set(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n <= c.n {
		return false
	}
	c.n = n
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
	return true
}

func (c *counter) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// wait waits until the counter is at least n.
func (c *counter) wait(ctx context.Context, n int64) error {
	for {
		c.mu.Lock()
		if c.n >= n {
			c.mu.Unlock()
			return nil
		}
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
