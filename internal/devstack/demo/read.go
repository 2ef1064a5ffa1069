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
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1024))
	if err != nil {
		return fmt.Errorf("reading %s: %w", sealedStream, err)
	}
	defer messages.Stop()
	for !r.allRead() {
		wait, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		raw, err := messages.Next(jetstream.NextContext(wait))
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
				continue // look again whether the last one was the last
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
		if r.Progress != nil && r.result.Opened%256 == 0 {
			r.Progress(r.result.Opened)
		}
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

// allRead reports whether as many messages came back as were published, all told.
func (r *run) allRead() bool { return r.complete.Load() && r.result.Opened >= r.published.Load() }

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
