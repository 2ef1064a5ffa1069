package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ledger is what engines have in common: which messages await their
// acknowledgement, how far all of them came, why the engine failed. Engines embed
// it. The lock guards an engine's own state too.
type ledger struct {
	nc     *nats.Conn
	window uint64
	onAck  func(took time.Duration)
	ready  func() bool // whether the next message may be entered; called with mu held

	sub    *nats.Subscription
	status chan nats.Status
	quit   chan struct{} // closed by stop
	done   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	next    uint64     // sequence the next message will be stored at
	payload uint64     // bytes entered
	last    acked
	ring    []flight
	failure error
	broken  chan struct{} // closed with failure set
	wake    chan struct{} // capacity 1: last moved, ready may have changed, or failure
	probe   uint64        // sealed sequence whose acknowledgement is being timed; 0: none
	probed  time.Time
}

// flight is a message not yet acknowledged, at ring[sequence % window].
type flight struct {
	source    uint64
	previous  uint64 // see acked
	timestamp int64
	payload   uint64 // of it and all before
}

func (l *ledger) init(cfg *engineConfig, window int) {
	l.nc, l.window, l.onAck, l.ready = cfg.nc, uint64(window), cfg.onAck, l.room
	l.status = l.nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	l.quit, l.broken, l.wake = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	l.next, l.last, l.ring = cfg.lastSeq+1, acked{sealed: cfg.lastSeq, stored: cfg.lastSeq}, make([]flight, window)
}

// listen subscribes to acknowledgements and begins to watch over them. After an
// error the ledger needs no stop.
func (l *ledger) listen(subject string, ackTimeout time.Duration, receive nats.MsgHandler) error {
	sub, err := l.nc.Subscribe(subject, receive)
	if err == nil {
		l.sub = sub
		// One acknowledgement per message in flight is all there can be.
		err = sub.SetPendingLimits(-1, -1)
	}
	if err != nil {
		if l.sub != nil {
			_ = l.sub.Unsubscribe() // fails only on a closed connection
		}
		l.nc.RemoveStatusListener(l.status)
		return fmt.Errorf("subscribing to acknowledgements: %w", err)
	}
	l.done.Go(func() { l.watch(ackTimeout) })
	return nil
}

// stop ends watching and listening; it is safe to call twice.
func (l *ledger) stop() {
	select {
	case <-l.quit:
		return
	default:
	}
	close(l.quit)
	_ = l.sub.Unsubscribe() // fails only on a closed connection
	l.done.Wait()
	l.nc.RemoveStatusListener(l.status)
}

// room reports whether the window takes another message; mu is held.
func (l *ledger) room() bool { return l.next-1-l.last.sealed < l.window }

// await waits until ready, and returns nil with mu held; after an error it is not.
func (l *ledger) await(ctx context.Context) error {
	l.mu.Lock()
	for l.failure == nil && !l.ready() {
		l.mu.Unlock()
		select {
		case <-l.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		l.mu.Lock()
	}
	if l.failure != nil {
		defer l.mu.Unlock()
		return l.failure
	}
	return nil
}

// enter gives m its sequence; mu is held.
func (l *ledger) enter(m *outgoing) uint64 {
	seq := l.next
	l.next++
	l.payload += uint64(m.payload)
	l.ring[seq%l.window] = flight{m.source, m.after(), m.timestamp, l.payload}
	if l.probe == 0 && l.onAck != nil {
		l.probe, l.probed = seq, time.Now()
	}
	return seq
}

// reach notes that everything up to seq is acknowledged; mu is held, and seq is
// one that was given out, above the last.
func (l *ledger) reach(seq uint64) {
	f := l.ring[seq%l.window]
	l.last = acked{seq, seq, f.source, f.previous, f.timestamp, f.payload}
	if l.probe != 0 && l.probe <= seq {
		l.onAck(time.Since(l.probed))
		l.probe = 0
	}
	l.signal()
}

// signal wakes whoever awaits or drains.
func (l *ledger) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

func (l *ledger) failLocked(err error) {
	if l.failure != nil {
		return
	}
	l.failure = err
	close(l.broken)
	l.signal()
}

// watch fails the engine when an acknowledgement is overdue, or the connection
// was lost, with which acknowledgements are.
func (l *ledger) watch(timeout time.Duration) {
	t := time.NewTicker(timeout / 4)
	defer t.Stop()
	var seen uint64
	still := 0
	for {
		select {
		case <-l.quit:
			return
		case s := <-l.status:
			if s == nats.CLOSED {
				l.fail(fmt.Errorf("%w: sealed", ErrConnection))
			}
			l.fail(fmt.Errorf("%w: the connection to the sealed stream was lost", errAckLost))
			return
		case <-t.C:
		}
		l.mu.Lock()
		waiting := l.next-1 > l.last.sealed
		if !waiting || l.last.sealed != seen {
			seen, still = l.last.sealed, 0
		} else {
			still++
		}
		l.mu.Unlock()
		if still > 4 {
			err := fmt.Errorf("%w: none for %v", errAckLost, timeout)
			if last := l.nc.LastError(); errors.Is(last, nats.ErrPermissionViolation) {
				err = fmt.Errorf("%w (%v)", err, last)
			}
			l.fail(err)
			return
		}
	}
}

func (l *ledger) acked() acked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *ledger) failed() <-chan struct{} { return l.broken }

func (l *ledger) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

// settle waits until everything entered is acknowledged, and whatever else open
// reports is done; open is called with mu held.
func (l *ledger) settle(ctx context.Context, open func() bool) error {
	for {
		l.mu.Lock()
		err, waiting := l.failure, l.next-1 > l.last.sealed || open()
		l.mu.Unlock()
		if err != nil || !waiting {
			return err
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return fmt.Errorf("waiting for acknowledgements: %w", context.Cause(ctx))
		}
	}
}

// message is a nats.Msg that is filled again and again: the connection copies what
// it publishes.
type message struct {
	nats.Msg
	position []string // the value of HeaderSource, in Header
	follows  []string // of ExpectedLastSeqHeader, in Header
}

// newMessage makes a message with the headers that all engines set.
func newMessage(cfg *engineConfig) message {
	m := newRest(cfg)
	m.Header[jetstream.ExpectedStreamHeader] = []string{cfg.stream}
	return m
}

// newRest makes the same for all messages of a batch but the first, which do not
// name the stream. A batch belongs to the stream that took its first message. Had
// another stream got the subject of a later one meanwhile, that message would be
// missing in the batch, which is then refused, or ends there. The server looks for
// some twenty headers in every message, through all that it has, so each one costs.
func newRest(cfg *engineConfig) message {
	m := message{position: []string{""}, follows: []string{""}}
	m.Header = nats.Header{HeaderSource: m.position, jetstream.ExpectedLastSeqHeader: m.follows}
	if !cfg.plain {
		m.Header[HeaderVersion] = []string{"1"}
	}
	return m
}

// send publishes with more headers, which it takes out again.
func (m *message) send(nc *nats.Conn, subject string, data []byte, position string, more nats.Header) error {
	m.Subject, m.Data = subject, data
	m.position[0] = position
	for name, values := range more {
		m.Header[name] = values
	}
	err := nc.PublishMsg(&m.Msg)
	if len(more) > 0 {
		for name := range more {
			delete(m.Header, name)
		}
	}
	if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	return nil
}
