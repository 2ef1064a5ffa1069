package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// asyncEngine publishes message by message, with up to window unacknowledged. It
// does not use jetstream.PublishMsgAsync: acknowledgements need no future each,
// since the fence makes known which sequence each message gets, and one inbox for
// all of them is enough. That costs the client about a third.
type asyncEngine struct {
	ledger
	signer *signer
	msg    message
}

func newAsync(cfg engineConfig) (*asyncEngine, error) {
	e := &asyncEngine{signer: cfg.signer, msg: newMessage(&cfg)}
	e.msg.Reply = cfg.nc.NewInbox()
	e.init(&cfg, cfg.window)
	if err := e.listen(e.msg.Reply, cfg.ackTimeout, e.receive); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *asyncEngine) publish(ctx context.Context, m *outgoing) error {
	if err := e.await(ctx); err != nil {
		return err
	}
	seq := e.enter(m)
	e.mu.Unlock()
	e.msg.follows[0] = strconv.FormatUint(seq-1, 10)
	err := e.msg.send(e.nc, m.subject, m.data, e.signer.header(seq, m.source, m.previous, m.timestamp), m.clear)
	if err != nil {
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
	defer e.mu.Unlock()
	if e.failure != nil {
		return
	}
	if seq != e.last.sealed+1 || seq >= e.next {
		// After a message of ours was refused a later one may have been stored, on
		// top of another writer's. Nothing that follows a hole counts.
		e.failLocked(fmt.Errorf("%w: got one for sequence %d", errAckLost, seq))
		return
	}
	e.reach(seq)
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
		return fmt.Errorf("%w: %w", ErrFenced, ack.Error)
	}
	return fmt.Errorf("%w: %w", errRefused, ack.Error)
}

func (e *asyncEngine) drain(ctx context.Context) error {
	return e.settle(ctx, func() bool { return false })
}

// close stops listening. What is in flight stays in flight: the fence decides.
func (e *asyncEngine) close() { e.stop() }

var _ engine = (*asyncEngine)(nil)
