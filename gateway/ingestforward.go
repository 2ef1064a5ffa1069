package gateway

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// forwarder carries acknowledgements to publishers whose reply subject cannot be
// passed to the sealed stream's server: those of other accounts, clusters and
// servers. It also learns what became of messages whose publishers did not ask.
// Safe for concurrent use.
type forwarder struct {
	to, from *nats.Conn // of the sealed stream, and of the publishers
	stream   string
	counts   *ingestCounts
	timeout  time.Duration
	limit    int
	prefix   string // of our inboxes
	sub      *nats.Subscription

	mu      sync.Mutex
	next    uint64               // guarded by mu
	pending map[string]forwarded // guarded by mu
	idle    chan struct{}        // closed when nothing is pending any more; guarded by mu
}

type forwarded struct {
	reply string // the publisher's; "" if it did not ask
	until time.Time
}

func newForwarder(g *ingest, limit int) (*forwarder, error) {
	f := &forwarder{
		to: g.route.Sealed.Conn, from: g.route.Source.Conn, stream: g.route.Sealed.Stream, counts: &g.counts,
		timeout: g.tune.ackTimeout, limit: limit, pending: make(map[string]forwarded),
	}
	f.prefix = f.to.NewInbox() + "."
	var err error
	if f.sub, err = f.to.Subscribe(f.prefix+"*", f.answered); err != nil {
		return nil, err
	}
	return f, f.sub.SetPendingLimits(-1, -1) // at most limit answers are owed to us
}

// close ends it; what is pending then counts as unanswered.
func (f *forwarder) close() {
	_ = f.sub.Unsubscribe() // fails only with the connection
	f.sweep(time.Time{})
}

// add returns the reply subject for one publish, "" if too many are pending.
func (f *forwarder) add(reply string, now time.Time) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pending) >= f.limit {
		return ""
	}
	f.next++
	token := strconv.FormatUint(f.next, 36)
	f.pending[token] = forwarded{reply, now.Add(f.timeout)}
	return f.prefix + token
}

// take removes what is pending under a reply subject of ours.
func (f *forwarder) take(subject string) (forwarded, bool) {
	token := strings.TrimPrefix(subject, f.prefix)
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.pending[token]
	delete(f.pending, token)
	f.rest()
	return p, ok
}

// rest tells drain when nothing is pending; f.mu is held.
func (f *forwarder) rest() {
	if f.idle != nil && len(f.pending) == 0 {
		close(f.idle)
		f.idle = nil
	}
}

// answered takes an answer of the sealed stream. It runs in the subscription's
// goroutine.
func (f *forwarder) answered(m *nats.Msg) {
	p, ok := f.take(m.Subject)
	if !ok {
		return // too late
	}
	data := m.Data
	reason := Refusal(0)
	switch {
	case len(data) == 0 && m.Header.Get("Status") == "503":
		reason, data = RefusedUnavailable, refusalAnswer(RefusedUnavailable, f.stream, "")
	case isAckError(data):
		reason = RefusedByStream
	}
	if reason != 0 {
		f.counts.lost(reason, p.reply != "")
	}
	if p.reply != "" {
		_ = f.from.Publish(p.reply, data) // a closed connection is the publisher's time-out
	}
}

// isAckError reports whether a publish acknowledgement is none.
func isAckError(data []byte) bool {
	var ack struct {
		Error *json.RawMessage `json:"error"`
		Seq   uint64           `json:"seq"`
	}
	return json.Unmarshal(data, &ack) != nil || ack.Error != nil || ack.Seq == 0
}

// sweep gives up what is overdue at now, or everything at the zero time. The
// publisher is not told: whether its message was stored is not known.
func (f *forwarder) sweep(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for token, p := range f.pending {
		if now.IsZero() || now.After(p.until) {
			delete(f.pending, token)
			f.counts.lost(RefusedUnanswered, p.reply != "")
		}
	}
	f.rest()
}

// drain waits until nothing is pending or ctx ends.
func (f *forwarder) drain(ctx context.Context) {
	f.mu.Lock()
	if len(f.pending) == 0 {
		f.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	f.idle = idle
	f.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
