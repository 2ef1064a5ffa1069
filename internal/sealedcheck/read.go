package sealedcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options say what Check reads.
type Options struct {
	Stream string // required
	// From and To are sequences of the sealed stream, both included. Zero: its
	// first, and what is its last when the check begins.
	From, To uint64
	Limits   Limits
	// Progress, if set, is called now and then with how many of total sequences
	// were looked at.
	Progress func(done, total uint64)
}

// ErrRange: From and To hold none of the stream's sequences.
var ErrRange = errors.New("no such sequences")

const (
	idle       = 2 * time.Second  // without a message: ask what comes next
	stalled    = 60 * time.Second // without a message that is known to exist: give up
	maxQueries = 64               // for the front of the stream, at holes
	buffered   = 64 << 20         // bytes of messages on their way
)

// Check reads a stream once and reports. An error means that it could not be
// read, not that something is wrong with it. It reads through an ordered consumer,
// which the server drops soon afterwards, and changes nothing.
func Check(ctx context.Context, nc *nats.Conn, o Options) (*Report, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	s, err := js.Stream(ctx, o.Stream)
	if err != nil {
		return nil, fmt.Errorf("reading stream %s: %w", o.Stream, err)
	}
	info := s.CachedInfo()
	r := &reader{nc: nc, stream: s, opts: &o, checker: newChecker(&info.Config, o.Limits)}
	if err := r.bounds(&info.State); err != nil {
		return nil, err
	}
	if r.at <= r.to {
		if err := r.read(ctx); err != nil {
			return nil, fmt.Errorf("reading stream %s: %w", o.Stream, err)
		}
	}
	return r.checker.report(), nil
}

// reader reads one stream.
type reader struct {
	nc       *nats.Conn
	stream   jetstream.Stream
	opts     *Options
	checker  *checker
	from, to uint64
	at       uint64 // the sequence to come next
	queries  int
}

func (r *reader) bounds(st *jetstream.StreamState) error {
	rep := r.checker.r
	rep.StreamFirst, rep.StreamLast = st.FirstSeq, st.LastSeq
	r.from, r.to = max(r.opts.From, st.FirstSeq, 1), st.LastSeq
	if r.opts.To > 0 {
		r.to = min(r.opts.To, st.LastSeq)
	}
	if r.from > r.to && (r.opts.From > 0 || r.opts.To > 0) {
		return fmt.Errorf("reading stream %s: %w: it has %d to %d", r.opts.Stream, ErrRange, st.FirstSeq, st.LastSeq)
	}
	r.at = r.from
	rep.First, rep.Last = r.from, r.to
	switch {
	case r.from > r.to:
		rep.note("the stream holds no message")
	case r.from > 1 && r.from == st.FirstSeq:
		rep.note("messages before %d are gone: the stream's limits, or somebody, removed them", r.from)
	}
	if r.to < st.LastSeq {
		rep.note("messages after %d were not looked at", r.to)
	}
	return nil
}

// read feeds the checker up to the last sequence.
func (r *reader) read(ctx context.Context) error {
	// One message may have 64 MB; mostly they are small.
	batch := int(min(max(buffered/max(r.nc.MaxPayload(), 1), 16), 1024))
	c, err := r.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: r.at,
	})
	if err != nil {
		return err
	}
	it, err := c.Messages(jetstream.PullMaxMessages(batch), jetstream.WithMessagesErrOnMissingHeartbeat(false))
	if err != nil {
		return err
	}
	defer it.Stop()
	defer context.AfterFunc(ctx, it.Stop)()
	last := time.Now()
	for r.at <= r.to {
		m, err := it.Next(jetstream.NextMaxWait(idle))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoHeartbeat) {
			if more, err := r.more(ctx); err != nil || !more {
				return err
			}
			if time.Since(last) > stalled {
				return fmt.Errorf("message %d and later ones do not come", r.at)
			}
			continue
		}
		if err != nil {
			return err
		}
		last = time.Now()
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		seq := meta.Sequence.Stream
		if seq < r.at {
			continue // the consumer began again
		}
		if seq > r.to {
			return r.lack(ctx, r.to)
		}
		if seq > r.at {
			if err := r.lack(ctx, seq-1); err != nil {
				return err
			}
		}
		r.checker.add(seq, m.Subject(), m.Headers(), m.Data())
		r.at = seq + 1
		if r.opts.Progress != nil && seq%1024 == 0 {
			r.opts.Progress(r.at-r.from, r.to-r.from+1)
		}
		if meta.NumPending == 0 && r.at <= r.to {
			if more, err := r.more(ctx); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// lack accounts for the sequences from r.at to last, which are not in the stream:
// a hole, except for what left at the front in the meantime.
func (r *reader) lack(ctx context.Context, last uint64) error {
	first := r.at
	r.at = last + 1
	if r.queries < maxQueries {
		r.queries++
		info, err := r.stream.Info(ctx)
		if err != nil {
			return err
		}
		if front := info.State.FirstSeq; front > first {
			r.checker.expired(first, min(front-1, last))
			first = front
		}
	}
	if first <= last {
		r.checker.hole(first, last)
	}
	return nil
}

// more asks the stream's leader whether any message up to r.to is left. What a
// consumer says about the end is that of its own replica, which may lag. If
// nothing is left, it accounts for the rest.
func (r *reader) more(ctx context.Context) (bool, error) {
	req, err := json.Marshal(map[string]any{"seq": r.at, "next_by_subj": ">"})
	if err != nil {
		return false, err
	}
	rctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	reply, err := r.nc.RequestWithContext(rctx, "$JS.API.STREAM.MSG.GET."+r.opts.Stream, req)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		return true, nil // no leader at the moment: wait
	}
	var got struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Sequence uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(reply.Data, &got); err != nil {
		return false, fmt.Errorf("asking for the next message: %w", err)
	}
	switch {
	case got.Error != nil && got.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound, got.Error == nil && got.Message.Sequence > r.to:
		return false, r.lack(ctx, r.to)
	case got.Error != nil && got.Error.Code >= 500:
		return true, nil
	case got.Error != nil:
		return false, fmt.Errorf("asking for the next message: %w", got.Error)
	}
	return true, nil
}
