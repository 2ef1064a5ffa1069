package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Two pulls are always outstanding, so that one is served while the other
// travels. Bytes are bounded too: 4,000 messages of 16 KiB fill a server's
// max_pending, and it then drops the connection with the pulls.
const (
	pullSlots    = 2
	pullMessages = 1000
	pullBytes    = 4 << 20
	pullExpires  = 30 * time.Second
)

// item is one message read from the source.
type item struct {
	msg       *nats.Msg
	seq       uint64 // in the source stream
	timestamp int64  // when the source stream stored it, unix nanoseconds
	pending   uint64 // matching messages behind it, when it was delivered
}

// puller reads one consumer with ordered semantics: whatever could mean that a
// message did not arrive ends it with errReopen, and its owner makes a new
// consumer behind the last message that was handed on. Nothing less is safe
// without acknowledgements: over six cuts, a consumer that only went on lost
// 5,289 of 60,000 messages without an error.
type puller struct {
	nc        *nats.Conn
	consumer  string
	subject   string // of pull requests
	heartbeat time.Duration

	msgs   chan *nats.Msg
	slots  [pullSlots]pullSlot
	status chan nats.Status

	delivered uint64 // last consumer sequence
	looked    uint64 // everything that matches up to this source sequence arrived
	alive     bool   // the server sent a heartbeat
	closed    bool
	failed    error // kept until the items before it are handed on
}

// pullSlot is one outstanding request.
type pullSlot struct {
	sub    *nats.Subscription
	inbox  string
	number int    // of the request
	reply  string // of the request; statuses of an older one are ignored
	left   int    // messages it may still bring
	got    int
	whole  bool // no byte limit: the next message alone exceeds it
}

func newPuller(nc *nats.Conn, stream, consumer string, heartbeat time.Duration) (*puller, error) {
	p := &puller{
		nc: nc, consumer: consumer, heartbeat: heartbeat,
		subject: jetstream.DefaultAPIPrefix + "CONSUMER.MSG.NEXT." + stream + "." + consumer,
		// Never full: what the pulls may bring, and a heartbeat now and then.
		msgs: make(chan *nats.Msg, pullSlots*pullMessages+1024),
		// Registered before the first request, so that no cut goes unnoticed.
		status: nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED),
	}
	for i := range p.slots {
		s := &p.slots[i]
		s.inbox = nc.NewInbox()
		sub, err := nc.ChanSubscribe(s.inbox+".*", p.msgs)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("subscribing to deliveries: %w", err)
		}
		s.sub = sub
	}
	for i := range p.slots {
		if err := p.request(&p.slots[i]); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// close is safe to call twice.
func (p *puller) close() {
	if p.closed {
		return
	}
	p.closed = true
	for i := range p.slots {
		if p.slots[i].sub != nil {
			_ = p.slots[i].sub.Unsubscribe() // fails only on a closed connection
		}
	}
	p.nc.RemoveStatusListener(p.status)
}

type pullRequest struct {
	Expires   time.Duration `json:"expires"`
	Batch     int           `json:"batch"`
	MaxBytes  int           `json:"max_bytes,omitempty"`
	Heartbeat time.Duration `json:"idle_heartbeat"`
}

func (p *puller) request(s *pullSlot) error {
	r := pullRequest{Expires: pullExpires, Batch: pullMessages, MaxBytes: pullBytes, Heartbeat: p.heartbeat}
	if s.whole {
		r.Batch, r.MaxBytes = 1, 0
	}
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding pull request: %w", err)
	}
	s.number++
	s.reply = s.inbox + "." + strconv.Itoa(s.number)
	s.left, s.got = r.Batch, 0
	if err := p.nc.PublishRequest(p.subject, s.reply, body); err != nil {
		return fmt.Errorf("pulling from the source: %w", err)
	}
	return nil
}

// next waits for messages and appends all that are there, at most limit, to out.
// It returns none, and no error, when the server reported that nothing is there.
func (p *puller) next(ctx context.Context, out []item, limit int) ([]item, error) {
	if p.failed != nil {
		return out, p.failed
	}
	idle := time.NewTimer(2*p.heartbeat + p.heartbeat/2)
	defer idle.Stop()
	select {
	case m := <-p.msgs:
		out = p.take(out, m)
	case <-p.status:
		return out, fmt.Errorf("%w: the connection was lost", errReopen)
	case <-idle.C:
		return out, fmt.Errorf("%w: no heartbeat", errReopen)
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
	for len(out) < limit && p.failed == nil {
		select {
		case m := <-p.msgs:
			out = p.take(out, m)
			continue
		default:
		}
		break
	}
	if len(out) == 0 && p.failed != nil {
		return out, p.failed
	}
	return out, nil
}

// more reports whether next would return at once.
func (p *puller) more() bool { return len(p.msgs) > 0 }

// take handles one delivery, which may be a status.
func (p *puller) take(out []item, m *nats.Msg) []item {
	s := &p.slots[0]
	if m.Sub != s.sub {
		s = &p.slots[1]
	}
	if strings.HasPrefix(m.Subject, s.inbox) {
		p.failed = p.state(s, m)
		return out
	}
	consumer, it, dseq, ok := parseReply(m)
	if !ok || consumer != p.consumer {
		return out // not from our consumer, whoever sent it
	}
	if dseq != p.delivered+1 {
		p.failed = fmt.Errorf("%w: delivery %d of the consumer came after %d", errReopen, dseq, p.delivered)
		return out
	}
	p.delivered = dseq
	s.got++
	s.whole = false
	if s.left--; s.left <= 0 {
		p.failed = p.request(s)
	}
	return append(out, it)
}

// state handles a status message.
func (p *puller) state(s *pullSlot, m *nats.Msg) error {
	code, text := m.Header.Get("Status"), m.Header.Get("Description")
	if m.Subject != s.reply {
		return nil // of a request that is complete
	}
	switch {
	case code == "100":
		p.alive = true
		p.heard(m.Header)
		return nil
	case code == "408" || code == "404" || code == "409" && text == "Batch Completed":
		return p.request(s)
	case code == "409" && text == "Message Size Exceeds MaxBytes":
		s.whole = s.got == 0
		return p.request(s)
	}
	return fmt.Errorf("%w: the server says %s %s", errReopen, code, text)
}

// Headers of a heartbeat: the last sequences the consumer delivered and looked at.
const (
	headerLastConsumer = "Nats-Last-Consumer"
	headerLastStream   = "Nats-Last-Stream"
)

// heard takes from a heartbeat how far the server has looked for messages: if it
// delivered no more than arrived, everything up to there was read. Nothing else
// says so. A server stores a message before it tells the consumers about it, so
// that one with nothing pending may have messages before it all the same; to ask
// the stream for its end and the consumer for what is pending lost messages.
func (p *puller) heard(h nats.Header) {
	delivered, err := strconv.ParseUint(h.Get(headerLastConsumer), 10, 64)
	if err != nil || delivered != p.delivered {
		return
	}
	if to, err := strconv.ParseUint(h.Get(headerLastStream), 10, 64); err == nil {
		p.looked = max(p.looked, to)
	}
}

// parseReply reads the acknowledgement subject of a delivery:
//
//	$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>[.<token>]
func parseReply(m *nats.Msg) (consumer string, it item, dseq uint64, ok bool) {
	rest, ok := strings.CutPrefix(m.Reply, "$JS.ACK.")
	if !ok {
		return "", item{}, 0, false
	}
	switch n := strings.Count(rest, "."); {
	case n == 6:
	case n >= 8: // with domain and account hash
		for range 2 {
			_, rest, _ = strings.Cut(rest, ".")
		}
	default:
		return "", item{}, 0, false
	}
	_, rest, _ = strings.Cut(rest, ".") // stream
	consumer, rest, _ = strings.Cut(rest, ".")
	_, rest, _ = strings.Cut(rest, ".") // times delivered
	var f [4]uint64
	for i := range f {
		var t string
		t, rest, _ = strings.Cut(rest, ".")
		n, err := strconv.ParseUint(t, 10, 64)
		if err != nil {
			return "", item{}, 0, false
		}
		f[i] = n
	}
	return consumer, item{msg: m, seq: f[0], timestamp: int64(f[2]), pending: f[3]}, f[1], f[0] > 0
}
