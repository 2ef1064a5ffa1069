package streams

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// feed is the queue between fetching and reading: everything the server has
// delivered and nobody has handled. The message being opened or held is its first.
//
// One goroutine pushes, one reads, one keeps alive.
type feed struct {
	arrived chan struct{} // capacity 1: something was pushed, or the feed ended
	room    chan struct{} // capacity 1: something was taken, or a hold ended

	mu    sync.Mutex // guards the fields below
	items []feedItem
	held  bool
	err   error // why nothing more will come; items may be left
}

type feedItem struct {
	msg jetstream.Msg
	at  time.Time // when it came, or was last reported as in progress
}

func newFeed() *feed {
	return &feed{arrived: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (f *feed) push(m jetstream.Msg) {
	f.mu.Lock()
	f.items = append(f.items, feedItem{m, time.Now()})
	f.mu.Unlock()
	signal(f.arrived)
}

// end says that nothing more will come.
func (f *feed) end(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	signal(f.arrived)
}

// head waits for the first message, without taking it.
func (f *feed) head(ctx context.Context) (jetstream.Msg, error) {
	for {
		f.mu.Lock()
		if len(f.items) > 0 {
			m := f.items[0].msg
			f.mu.Unlock()
			return m, ctx.Err()
		}
		err := f.err
		f.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-f.arrived:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pop takes the first message: from here on its fate is the reader's.
func (f *feed) pop() {
	f.mu.Lock()
	f.items[0] = feedItem{}
	f.items = f.items[1:]
	if len(f.items) == 0 {
		f.items = nil
	}
	f.mu.Unlock()
	signal(f.room)
}

// settle waits a short time until n messages are there.
func (f *feed) settle(ctx context.Context, n int, within time.Duration) {
	t := time.NewTimer(within)
	defer t.Stop()
	for {
		f.mu.Lock()
		enough := len(f.items) >= n || f.err != nil
		f.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-f.arrived:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// waiting returns the messages in the feed, oldest first.
func (f *feed) waiting() []jetstream.Msg {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]jetstream.Msg, len(f.items))
	for i := range f.items {
		out[i] = f.items[i].msg
	}
	return out
}

// hold stops fetching, or lets it go on.
func (f *feed) hold(on bool) {
	f.mu.Lock()
	f.held = on
	f.mu.Unlock()
	signal(f.room)
}

// admit waits until fetching is allowed and at most limit messages wait.
func (f *feed) admit(ctx context.Context, limit int) error {
	for {
		f.mu.Lock()
		ok := !f.held && len(f.items) <= limit
		f.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-f.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stale returns the messages that have waited for d without a sign of life, and
// counts them as just reported.
func (f *feed) stale(d time.Duration) []jetstream.Msg {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []jetstream.Msg
	for i := range f.items {
		if now.Sub(f.items[i].at) >= d {
			f.items[i].at = now
			out = append(out, f.items[i].msg)
		}
	}
	return slices.Clip(out)
}

// keepAlive reports waiting messages as in progress, so that the server neither
// delivers them again nor counts a delivery, until ctx ends. wait is the
// consumer's AckWait; no message goes longer than half of it without a report.
func (f *feed) keepAlive(ctx context.Context, wait time.Duration) {
	every := max(wait/4, time.Millisecond)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, m := range f.stale(every) {
			// An error means a connection that is down: the next tick tries again.
			_ = m.InProgress()
		}
	}
}
