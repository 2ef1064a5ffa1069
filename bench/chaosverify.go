package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/streams"
)

func chaosSubject(subject int) string { return chaosPrefix + "s" + strconv.Itoa(subject) }

// chaosPayload is message n of a subject: its names, and filling that differs in
// length and content.
func chaosPayload(subject, n int) []byte {
	b := fmt.Appendf(make([]byte, 0, 600), "%d %d ", subject, n)
	fill := byte('a' + (subject+n)%26)
	for range (subject*131 + n*37) % 500 {
		b = append(b, fill)
	}
	return b
}

// verify reads all of the sealed stream through package streams.
func (c *chaos) verify(ctx context.Context) error {
	opener, err := streams.NewFromProfile(ctx, c.nc, profilePath(c.Dir))
	if err != nil {
		return err
	}
	defer func() { _ = opener.Close() }() // only drops keys
	stream, err := c.js.Stream(ctx, chaosSealed)
	if err != nil {
		return fmt.Errorf("reading sealed stream: %w", err)
	}
	last := stream.CachedInfo().State.LastSeq
	v := newVerifier(c.report, c.Messages, c.Subjects)
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return fmt.Errorf("reading sealed stream: %w", err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(2000))
	if err != nil {
		return fmt.Errorf("reading sealed stream: %w", err)
	}
	defer messages.Stop()
	for {
		raw, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("reading sealed stream: %w", err)
		}
		meta, err := raw.Metadata()
		if err != nil {
			return fmt.Errorf("reading metadata: %w", err)
		}
		m, err := opener.Open(ctx, raw)
		switch {
		case err == nil:
			v.message(m)
		case errors.Is(err, streams.ErrUnavailable), ctx.Err() != nil:
			return fmt.Errorf("verifying: %w", err)
		default:
			fmt.Fprintf(c.Log, "does not open: %v\n", err)
			c.report.Undecryptable++
		}
		if meta.Sequence.Stream >= last {
			break
		}
	}
	v.end()
	source, err := c.js.Stream(ctx, chaosSource)
	if err != nil {
		return fmt.Errorf("reading source stream: %w", err)
	}
	c.report.Unreleased = int(source.CachedInfo().State.Msgs)
	return nil
}

// verifier counts what is wrong, in constant time per message.
type verifier struct {
	r        *ChaosReport
	seen     [][]bool // by subject and number
	next     []int    // one above the highest number seen
	sequence uint64   // of the message before
	chain    streams.ChainID
}

func newVerifier(r *ChaosReport, messages, subjects int) *verifier {
	v := &verifier{r: r, seen: make([][]bool, subjects), next: make([]int, subjects)}
	for i := range messages {
		v.seen[i%subjects] = append(v.seen[i%subjects], false)
	}
	return v
}

// opened is what the verifier looks at; *streams.Message is one.
type opened interface {
	Subject() string
	Data() []byte
	Chain() streams.ChainID
	Sequence() uint64
	Previous() uint64
}

func (v *verifier) message(m opened) {
	if v.chain != m.Chain() {
		if v.sequence != 0 {
			v.r.BrokenLinks++ // the source is one and the same
		}
		v.chain, v.sequence = m.Chain(), 0
	}
	if m.Previous() != v.sequence {
		v.r.BrokenLinks++
	}
	v.sequence = m.Sequence()
	parts := strings.SplitN(string(m.Data()), " ", 3)
	subject, err1 := strconv.Atoi(parts[0])
	n, err2 := -1, error(nil)
	if len(parts) == 3 {
		n, err2 = strconv.Atoi(parts[1])
	}
	if err1 != nil || err2 != nil || subject < 0 || subject >= len(v.seen) || n < 0 || n >= len(v.seen[subject]) ||
		m.Subject() != chaosSubject(subject) || !bytes.Equal(m.Data(), chaosPayload(subject, n)) {
		v.r.Mismatched++
		return
	}
	switch {
	case v.seen[subject][n]:
		v.r.Duplicated++
	case n < v.next[subject]:
		v.r.OutOfOrder++
	}
	v.seen[subject][n] = true
	v.next[subject] = max(v.next[subject], n+1)
}

func (v *verifier) end() {
	for _, s := range v.seen {
		for _, seen := range s {
			if !seen {
				v.r.Lost++
			}
		}
	}
}
