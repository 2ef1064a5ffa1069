package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// arrival is a message as it came from a publisher.
type arrival struct {
	msg *nats.Msg
	at  time.Time
}

// intake is one run of a core ingest route: subscriptions that put messages into
// a bounded queue, and a goroutine that seals and publishes them in order. Fields
// belong to that goroutine unless they say otherwise.
//
// Every run is a chain of its own. Sequences count what it sealed; there are no
// links, because whether the sealed stream stored a message is between it and the
// publisher: a duplicate, or one whose condition did not hold, is not stored.
type intake struct {
	g       *ingest
	ctx     context.Context // of requests for keys; outlives the caller's until everything is drained
	ring    *keyring
	sealer  *sealer
	forward *forwarder
	through bool // publishers and sealed stream share a connection, so reply subjects may pass

	queue    chan arrival  // has room for all that is admitted
	ended    chan struct{} // closed when nothing comes any more
	messages atomic.Int64  // admitted and not done; any goroutine
	bytes    atomic.Int64  // likewise
	maxSize  atomic.Int64  // of a sealed message with its headers; set by run's goroutine

	waits   map[string]*scopeWait // by scope
	due     map[string]string     // scope: subject, to be refreshed
	answers chan refreshed
	asking  int
	asks    sync.WaitGroup

	sequence uint64
	item     item
	header   nats.Header
	batch    struct{ messages, bytes int } // not yet reported to the metrics
}

// errFull: too many acknowledgements are owed.
var errFull = errors.New("too many messages await their acknowledgement")

const (
	ingestTick  = 50 * time.Millisecond
	ingestBatch = 256 // messages between looks at anything else
)

var ingestHeaderSize = len("NATS/1.0\r\n\r\n") + len(HeaderVersion) + len(": 1\r\n")

func newIntake(g *ingest, ring *keyring, d *destination) *intake {
	in := &intake{
		g: g, ring: ring, through: g.route.Source.Conn == g.route.Sealed.Conn,
		queue: make(chan arrival, g.route.Ingest.QueueMessages), ended: make(chan struct{}),
		waits: make(map[string]*scopeWait), due: make(map[string]string), answers: make(chan refreshed, maxAsks),
		header: make(nats.Header),
	}
	in.sealer = &sealer{
		keys: ring, pass: g.route.PassHeaders, tracer: g.tracer, propagator: g.propagator,
	}
	in.maxSize.Store(g.maxSize(d))
	rand.Read(in.sealer.chain[:])
	return in
}

// maxSize is what the sealed stream takes in one message, headers included.
func (g *ingest) maxSize(d *destination) int64 {
	n := g.route.Sealed.Conn.MaxPayload()
	if m := int64(d.config.MaxMsgSize); m > 0 {
		n = min(n, m)
	}
	return n
}

// run takes messages until ctx ends or a check fails, and then answers what is in
// flight, within the time for it.
func (in *intake) run(ctx context.Context, retry *pause) error {
	g := in.g
	work, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	in.ctx = work
	var err error
	if in.forward, err = newForwarder(g, g.route.Ingest.QueueMessages); err != nil {
		return err
	}
	defer in.forward.close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.loop()
	}()
	subs, err := in.subscribe(ctx)
	if err == nil {
		g.board.state(StateRunning)
		retry.reset()
		g.log.Info("taking messages", "subjects", g.route.Source.Subjects, "queue_group", QueueGroup(g.route.Name),
			"chain", in.sealer.chain.String(), "replies_passed", in.through)
		err = in.watch(ctx, subs)
	}
	// The server stops delivering to us, so others of the group get what comes now.
	end, over := context.WithTimeout(context.WithoutCancel(ctx), g.tune.drain)
	defer over()
	defer context.AfterFunc(end, giveUp)()
	subs.drain(end)
	close(in.ended)
	<-done
	in.giveUp()
	if ferr := g.route.Sealed.Conn.FlushWithContext(end); ferr != nil {
		g.log.Warn("not everything reached the sealed stream; publishers that asked for an answer will time out", "error", ferr)
	}
	in.forward.drain(end)
	if g.route.Source.Conn != g.route.Sealed.Conn {
		_ = g.route.Source.Conn.FlushWithContext(end) // answers; their loss is a time-out
	}
	giveUp()
	in.asks.Wait()
	return err
}

// subscriptions are those of one intake, with a channel each that is closed when
// the last message of it was handled.
type subscriptions struct {
	subs   []*nats.Subscription
	closed []chan struct{}
}

// subscribe joins the queue group on every subject.
func (in *intake) subscribe(ctx context.Context) (*subscriptions, error) {
	c, r := &subscriptions{}, &in.g.route
	for _, p := range r.Source.Subjects {
		s, err := r.Source.Conn.QueueSubscribe(p, QueueGroup(r.Name), in.arrive)
		if err != nil {
			return c, err
		}
		closed := make(chan struct{})
		s.SetClosedHandler(func(string) { close(closed) })
		c.subs, c.closed = append(c.subs, s), append(c.closed, closed)
		// arrive never waits, so what stands before it is short.
		if err := s.SetPendingLimits(r.Ingest.QueueMessages, int(r.Ingest.QueueBytes)); err != nil {
			return c, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return c, r.Source.Conn.FlushWithContext(ctx)
}

// drain unsubscribes and waits until everything delivered was handled.
func (c *subscriptions) drain(ctx context.Context) {
	for _, s := range c.subs {
		_ = s.Drain() // fails only with the connection; then nothing is delivered any more
	}
	for i, s := range c.subs {
		if !s.IsValid() {
			continue
		}
		select {
		case <-c.closed[i]:
		case <-ctx.Done():
			_ = s.Unsubscribe()
		}
	}
}

// dropped is how many messages the client library dropped.
func (c *subscriptions) dropped() (n uint64) {
	for _, s := range c.subs {
		if d, err := s.Dropped(); err == nil {
			n += uint64(d)
		}
	}
	return n
}

// watch looks at the streams from time to time until ctx ends or one is not as it
// has to be. That they cannot be looked at changes nothing.
func (in *intake) watch(ctx context.Context, subs *subscriptions) error {
	tick := time.NewTicker(in.g.recheck)
	defer tick.Stop()
	before := in.g.counts.overrun.Load()
	defer func() { in.g.counts.overrun.Store(before + subs.dropped()) }()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		in.g.counts.overrun.Store(before + subs.dropped())
		d, err := in.g.check(ctx)
		switch {
		case stops(err):
			return err
		case err == nil:
			in.maxSize.Store(in.g.maxSize(d))
			in.g.board.state(StateRunning)
		case ctx.Err() == nil:
			in.g.board.failed(StateRetrying, err)
			in.g.log.Warn("checking the streams failed, going on", "error", err)
		}
	}
}

// arrive admits a message or refuses it; it runs in the goroutine of a
// subscription and does not wait.
func (in *intake) arrive(m *nats.Msg) {
	g := in.g
	g.counts.received.Add(1)
	a := arrival{m, time.Now()}
	n, b := in.messages.Add(1), in.bytes.Add(int64(m.Size()))
	g.counts.waiting.Add(1)
	switch {
	case m.Reply != "" && !answerable(m.Reply, *g.guard.Load()):
		m.Reply = ""
		in.refuse(&a, RefusedReply, "")
	case n > int64(g.route.Ingest.QueueMessages) || b > g.route.Ingest.QueueBytes:
		in.refuse(&a, RefusedFull, "")
	default:
		in.queue <- a
	}
}

// finish ends a message that was admitted.
func (in *intake) finish(a *arrival) {
	in.messages.Add(-1)
	in.bytes.Add(-int64(a.msg.Size()))
	in.g.counts.waiting.Add(-1)
	clear(a.msg.Data)
}

// refuse answers a message with an error, if its publisher asked for an answer.
func (in *intake) refuse(a *arrival, r Refusal, detail string) {
	in.g.counts.lost(r, a.msg.Reply != "")
	if a.msg.Reply != "" {
		_ = in.g.route.Source.Conn.Publish(a.msg.Reply, refusalAnswer(r, in.g.route.Sealed.Stream, detail)) // else a time-out
	}
	in.finish(a)
}

// refusalOf says what a publisher is told of an error.
func refusalOf(err error) Refusal {
	switch {
	case errors.Is(err, keysvc.ErrNoScope):
		return RefusedScope
	case errors.Is(err, ErrKeys):
		return RefusedKey
	case errors.Is(err, errFull):
		return RefusedFull
	case errors.Is(err, ErrTooLarge), errors.Is(err, nats.ErrMaxPayload):
		return RefusedTooLarge
	case errors.Is(err, ErrHeaders):
		return RefusedHeaders
	}
	return RefusedUnavailable
}

// loop seals until everything that came is done, or the time for it is up.
func (in *intake) loop() {
	tick := time.NewTicker(ingestTick)
	defer tick.Stop()
	defer in.report()
	ended := in.ended
	swept := time.Now()
	for ended != nil || in.messages.Load() > 0 {
		select {
		case a := <-in.queue:
			in.take(&a)
			in.more(ingestBatch)
			in.report()
		case r := <-in.answers:
			in.answered(r)
		case now := <-tick.C:
			in.refreshed(now)
			in.expire(now)
			if now.Sub(swept) >= time.Second {
				in.forward.sweep(now)
				swept = now
			}
		case <-ended:
			ended = nil
		case <-in.ctx.Done():
			in.giveUp()
			return
		}
	}
}

// more takes up to n messages that are there already.
func (in *intake) more(n int) {
	for range n {
		select {
		case a := <-in.queue:
			in.take(&a)
		default:
			return
		}
	}
}

// report hands what was counted to the metrics.
func (in *intake) report() {
	if in.batch.messages > 0 {
		in.g.metrics.sealed(in.batch.messages, in.batch.bytes)
		in.batch.messages, in.batch.bytes = 0, 0
	}
}

// take seals a message, lets it wait for its key or refuses it.
func (in *intake) take(a *arrival) {
	clear(in.header)
	size, name := in.g.route.Ingest.grant(in.header, a.msg.Header)
	if name != "" {
		in.refuse(a, RefusedHeader, name[:min(len(name), 64)])
		return
	}
	if !in.g.route.Sealed.Conn.IsConnected() {
		in.refuse(a, RefusedUnavailable, "")
		return
	}
	for {
		now := time.Now()
		k, err := in.session(a.msg.Subject, now)
		if err == errWait {
			w := in.waits[k.scope]
			w.messages = append(w.messages, *a)
			return
		}
		if err == nil {
			err = in.publish(a, size, now)
		}
		if err == errNextSession {
			continue // the session has ended, so now it waits for the next one
		}
		if err != nil {
			in.refuse(a, refusalOf(err), "")
			return
		}
		in.finish(a)
		return
	}
}

// publish seals a message under the session that was found and sends it, with
// the publisher's reply subject where the sealed stream can answer to it.
func (in *intake) publish(a *arrival, size int, now time.Time) error {
	m := a.msg
	in.item = item{msg: m, seq: in.sequence + 1, timestamp: a.at.UnixNano()}
	in.sealer.fixed, in.sealer.maxSize = ingestHeaderSize+size, int(in.maxSize.Load())
	out, err := in.sealer.seal(&in.item, envelope.NotKept, 0, now)
	if err != nil {
		return err
	}
	in.sequence++
	in.header[HeaderVersion] = versionHeader
	for name, values := range out.clear {
		in.header[name] = values
	}
	reply := m.Reply
	forward := reply == "" || !in.through || !passable(reply)
	if forward {
		if reply = in.forward.add(m.Reply, now); reply == "" {
			return errFull
		}
	}
	// The connection copies what it publishes.
	if err := in.g.route.Sealed.Conn.PublishMsg(&nats.Msg{Subject: out.subject, Reply: reply, Header: in.header, Data: out.data}); err != nil {
		if forward {
			in.forward.take(reply)
		}
		return err
	}
	in.g.counts.published.Add(1)
	in.g.counts.bytes.Add(uint64(out.payload))
	in.batch.messages++
	in.batch.bytes += out.payload
	return nil
}

var versionHeader = []string{"1"}
