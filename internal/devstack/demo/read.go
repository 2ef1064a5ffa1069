package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// errAllRead ends the reading: as many messages came back as were published, or
// no more will.
var errAllRead = errors.New("all messages were read")

// read follows the sealed stream until everything that was published came, and
// checks each message twice: as it is stored, and as the library opens it.
func (r *run) read(ctx context.Context) error {
	nc, err := r.stack.ConnectHub(nats.Name("keyweir demo reader"))
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	opener, err := r.stack.Opener(nc)
	if err != nil {
		return err
	}
	defer func() { _ = opener.Close() }() // only drops keys
	consumer, err := js.OrderedConsumer(ctx, sealedStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return fmt.Errorf("reading %s: %w", sealedStream, err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1024), jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return fmt.Errorf("reading %s: %w", sealedStream, err)
	}
	defer messages.Stop()
	// The iterator notices a lost pull by missing heartbeats, and counts their
	// time anew in every call: so one context for all of them, ended by whoever
	// sees that the last message was read.
	more, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r.finish = func(anyway bool) {
		if anyway || r.complete.Load() && r.opened.Load() >= r.published.Load() {
			stop(errAllRead)
		}
	}
	close(r.reading)
	for {
		raw, err := messages.Next(jetstream.NextContext(more))
		if errors.Is(context.Cause(more), errAllRead) {
			break
		}
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("reading %s: %w", sealedStream, err)
		}
		m, err := opener.Open(ctx, raw)
		if err != nil {
			return err
		}
		r.keys[m.KeyID()] = struct{}{}
		if !r.ledger.read(m.Subject(), m.Data()) {
			r.result.Mismatched++
		}
		if readable(m.Data(), raw.Data(), raw.Headers()) {
			r.result.PlaintextHits++
		}
		r.pieces.add(m.Data())
		if r.result.Opened == 0 {
			r.result.Sample = Sample{
				Subject: m.Subject(), SealedSubject: raw.Subject(), After: m.Data(),
				Sealed: append([]byte(nil), raw.Data()...), Headers: maps.Clone(raw.Headers()),
			}
		}
		r.result.Opened++
		r.result.OverheadBytesAvg += float64(len(raw.Data()) + headerSize(raw.Headers()) - len(m.Data()))
		r.moved.Add(1)
		r.opened.Store(r.result.Opened)
		if r.Progress != nil && r.result.Opened%256 == 0 {
			r.Progress(r.result.Opened)
		}
		r.finish(false)
	}
	if r.Progress != nil {
		r.Progress(r.result.Opened)
	}
	stream, err := js.Stream(ctx, sealedStream)
	if err != nil {
		return fmt.Errorf("asking %s: %w", sealedStream, err)
	}
	r.result.Sealed = int64(stream.CachedInfo().State.Msgs)
	return nil
}

// headerSize is what headers take on the wire.
func headerSize(h nats.Header) int {
	if len(h) == 0 {
		return 0
	}
	n := len("NATS/1.0\r\n") + len("\r\n")
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return n
}
