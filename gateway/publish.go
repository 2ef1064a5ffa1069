package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// engine publishes sealed messages in order, each under the fence: every publish
// names the sequence it must follow. publish, drain and close belong to the
// worker's goroutine; the rest is safe for concurrent use.
//
// There is one implementation, async. Batches (fast and durable engines) fit the
// same contract.
type engine interface {
	// publish sends a copy of m and returns when it may be forgotten, not when it
	// is stored. It blocks while the window is full. After any error the engine is
	// of no more use: what was not acknowledged may or may not be stored.
	publish(ctx context.Context, m *outgoing) error
	// acked is how far everything was acknowledged, without a hole.
	acked() acked
	// failed is closed when the engine failed; err says why.
	failed() <-chan struct{}
	err() error
	// drain waits until all is acknowledged.
	drain(ctx context.Context) error
	close()
}

// acked is the last message of an unbroken row of acknowledgements.
type acked struct {
	sealed    uint64 // sequence in the sealed stream
	source    uint64 // sequence in the source stream; 0: none of this engine's
	timestamp int64  // of the source message
	payload   uint64 // bytes of payload acknowledged by this engine
}

// asyncEngine publishes message by message, with up to window unacknowledged. It
// does not use jetstream.PublishMsgAsync: acknowledgements need no future each,
// since the fence makes known which sequence each message gets, and one inbox for
// all of them is enough. That costs the client about a third.
type asyncEngine struct {
	nc     *nats.Conn
	stream string
	signer *signer
	window uint64
	onAck  func(took time.Duration) // one at a time is measured; nil: nobody wants to know

	msg    nats.Msg // reused: PublishMsg copies
	sub    *nats.Subscription
	status chan nats.Status
	quit   chan struct{} // closed by close
	done   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	next    uint64     // sequence the next message will be stored at
	payload uint64     // bytes published
	last    acked
	ring    []flight
	failure error
	broken  chan struct{} // closed with failure set
	wake    chan struct{} // capacity 1: last moved, or failure
	probe   uint64        // sealed sequence whose acknowledgement is being timed; 0: none
	probed  time.Time
}

// flight is a message not yet acknowledged, at ring[sequence % window].
type flight struct {
	source    uint64
	timestamp int64
	payload   uint64 // of it and all before
}

// newAsync starts an engine whose first message must follow lastSeq.
func newAsync(nc *nats.Conn, stream string, sign *signer, lastSeq uint64, window int, ackTimeout time.Duration) (*asyncEngine, error) {
	e := &asyncEngine{
		nc: nc, stream: stream, signer: sign, window: uint64(window),
		status: nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED),
		quit:   make(chan struct{}), broken: make(chan struct{}), wake: make(chan struct{}, 1),
		next: lastSeq + 1, last: acked{sealed: lastSeq}, ring: make([]flight, window),
	}
	e.msg.Reply = nc.NewInbox()
	e.msg.Header = nats.Header{
		HeaderVersion: {"1"}, HeaderSource: {""},
		jetstream.ExpectedStreamHeader: {stream}, jetstream.ExpectedLastSeqHeader: {""},
	}
	var err error
	if e.sub, err = nc.Subscribe(e.msg.Reply, e.receive); err != nil {
		nc.RemoveStatusListener(e.status)
		return nil, fmt.Errorf("subscribing to acknowledgements: %w", err)
	}
	// One acknowledgement per message in flight is all there can be.
	if err := e.sub.SetPendingLimits(-1, -1); err != nil {
		e.close()
		return nil, fmt.Errorf("subscribing to acknowledgements: %w", err)
	}
	e.done.Add(1)
	go e.watch(ackTimeout)
	return e, nil
}

// asyncHeaderSize is what the engine's own headers need at most.
func asyncHeaderSize(stream string) int {
	return len("NATS/1.0\r\n\r\n") + len(HeaderVersion) + 1 + len(HeaderSource) + maxSourceHeader +
		len(jetstream.ExpectedStreamHeader) + len(stream) + len(jetstream.ExpectedLastSeqHeader) + 20 + 4*len(": \r\n")
}

func (e *asyncEngine) publish(ctx context.Context, m *outgoing) error {
	e.mu.Lock()
	for e.failure == nil && e.next-1-e.last.sealed >= e.window {
		e.mu.Unlock()
		select {
		case <-e.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		e.mu.Lock()
	}
	if e.failure != nil {
		defer e.mu.Unlock()
		return e.failure
	}
	seq := e.next
	e.next++
	e.payload += uint64(m.payload)
	e.ring[seq%e.window] = flight{m.source, m.timestamp, e.payload}
	if e.probe == 0 && e.onAck != nil {
		e.probe, e.probed = seq, time.Now()
	}
	e.mu.Unlock()

	e.msg.Subject, e.msg.Data = m.subject, m.data
	e.msg.Header[HeaderSource][0] = e.signer.header(seq, m.source, m.previous, m.timestamp)
	e.msg.Header[jetstream.ExpectedLastSeqHeader][0] = strconv.FormatUint(seq-1, 10)
	for name, values := range m.clear {
		e.msg.Header[name] = values
	}
	err := e.nc.PublishMsg(&e.msg)
	for name := range m.clear {
		delete(e.msg.Header, name)
	}
	if err != nil {
		err = fmt.Errorf("publishing: %w", err)
		e.fail(err)
	}
	return err
}

// receive handles one acknowledgement. They come in the order of the messages,
// since one stream's leader stores and answers one after the other.
func (e *asyncEngine) receive(m *nats.Msg) {
	seq, ok := ackedSequence(m.Data)
	if !ok {
		e.fail(refusal(m))
		return
	}
	e.mu.Lock()
	if e.failure != nil {
		e.mu.Unlock()
		return
	}
	if seq != e.last.sealed+1 || seq >= e.next {
		e.mu.Unlock()
		// After a message of ours was refused a later one may have been stored, on
		// top of another writer's. Nothing that follows a hole counts.
		e.fail(fmt.Errorf("%w: got one for sequence %d", errAckLost, seq))
		return
	}
	f := e.ring[seq%e.window]
	e.last = acked{seq, f.source, f.timestamp, f.payload}
	timed := e.probe == seq
	var took time.Duration
	if timed {
		took = time.Since(e.probed)
		e.probe = 0
	}
	e.mu.Unlock()
	if timed {
		e.onAck(took)
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// ackedSequence reads {"stream":"S","seq":7}, and denies anything with an error
// or a duplicate in it.
func ackedSequence(b []byte) (uint64, bool) {
	i := bytes.Index(b, []byte(`"seq":`))
	if !bytes.HasPrefix(b, []byte(`{"stream":`)) || i < 0 || bytes.Contains(b, []byte(`"duplicate":`)) {
		return 0, false
	}
	var n uint64
	digits := 0
	for _, c := range b[i+len(`"seq":`):] {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + uint64(c-'0')
		digits++
	}
	return n, digits > 0 && digits < 20
}

// refusal turns any other answer into an error.
func refusal(m *nats.Msg) error {
	if status := m.Header.Get("Status"); len(m.Data) == 0 && status != "" {
		return fmt.Errorf("%w: no stream answers (status %s)", errRefused, status)
	}
	var ack struct {
		Error     *jetstream.APIError `json:"error"`
		Duplicate bool                `json:"duplicate"`
	}
	if err := json.Unmarshal(m.Data, &ack); err != nil || ack.Error == nil {
		return fmt.Errorf("%w: unexpected answer %.100q", errRefused, m.Data)
	}
	if wrongSequence(ack.Error) {
		return fmt.Errorf("%w: %v", ErrFenced, ack.Error)
	}
	return fmt.Errorf("%w: %v", errRefused, ack.Error)
}

func (e *asyncEngine) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failure != nil {
		return
	}
	e.failure = err
	close(e.broken)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// watch fails the engine when an acknowledgement is overdue, or the connection
// was lost, with which acknowledgements are.
func (e *asyncEngine) watch(timeout time.Duration) {
	defer e.done.Done()
	t := time.NewTicker(timeout / 4)
	defer t.Stop()
	var seen uint64
	still := 0
	for {
		select {
		case <-e.quit:
			return
		case s := <-e.status:
			if s == nats.CLOSED {
				e.fail(fmt.Errorf("%w: sealed", ErrConnection))
			}
			e.fail(fmt.Errorf("%w: the connection to the sealed stream was lost", errAckLost))
			return
		case <-t.C:
		}
		e.mu.Lock()
		waiting := e.next-1 > e.last.sealed
		if !waiting || e.last.sealed != seen {
			seen, still = e.last.sealed, 0
		} else {
			still++
		}
		e.mu.Unlock()
		if still > 4 {
			err := fmt.Errorf("%w: none for %v", errAckLost, timeout)
			if last := e.nc.LastError(); errors.Is(last, nats.ErrPermissionViolation) {
				err = fmt.Errorf("%w (%v)", err, last)
			}
			e.fail(err)
			return
		}
	}
}

func (e *asyncEngine) acked() acked {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

func (e *asyncEngine) failed() <-chan struct{} { return e.broken }

func (e *asyncEngine) err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failure
}

func (e *asyncEngine) drain(ctx context.Context) error {
	for {
		e.mu.Lock()
		err, waiting := e.failure, e.next-1 > e.last.sealed
		e.mu.Unlock()
		if err != nil || !waiting {
			return err
		}
		select {
		case <-e.wake:
		case <-ctx.Done():
			return fmt.Errorf("waiting for acknowledgements: %w", context.Cause(ctx))
		}
	}
}

// close stops listening. What is in flight stays in flight: the fence decides.
func (e *asyncEngine) close() {
	select {
	case <-e.quit:
		return
	default:
	}
	close(e.quit)
	_ = e.sub.Unsubscribe() // fails only on a closed connection
	e.done.Wait()
	e.nc.RemoveStatusListener(e.status)
}

var _ engine = (*asyncEngine)(nil)
