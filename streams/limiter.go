package streams

import (
	"sync"
	"time"
)

// limiter is a token bucket. Safe for concurrent use.
type limiter struct {
	every time.Duration // one token
	burst int

	mu     sync.Mutex // guards the fields below
	tokens int
	last   time.Time
}

func newLimiter(every time.Duration, burst int) *limiter {
	return &limiter{every: every, burst: burst, tokens: burst, last: time.Now()}
}

// allow takes a token if there is one.
func (l *limiter) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if n := int(now.Sub(l.last) / l.every); n > 0 {
		l.tokens = min(l.burst, l.tokens+n)
		l.last = l.last.Add(time.Duration(n) * l.every)
	}
	if l.tokens == 0 {
		return false
	}
	l.tokens--
	return true
}
