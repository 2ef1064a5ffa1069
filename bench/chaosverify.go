package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/streams"
)

// sealedStream is the sealed stream of a partition, as the gateway names it.
func sealedStream(partition, partitions int) string {
	if partitions == 1 {
		return chaosSealed
	}
	return fmt.Sprintf("%s-%d", chaosSealed, partition)
}

// stream is the sealed stream of a partition.
func (c *chaos) stream(partition int) string {
	if c.Shared {
		return chaosSealed
	}
	return sealedStream(partition, c.Partitions)
}

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

// verify reads all of the sealed streams through package streams.
func (c *chaos) verify(ctx context.Context) error {
	opener, err := streams.NewFromProfile(ctx, c.nc, profilePath(c.Dir))
	if err != nil {
		return err
	}
	defer func() { _ = opener.Close() }() // only drops keys
	v := newVerifier(c.report, c.topics(), c.Shared, c.publisher.acked)
	n := c.Partitions
	if c.Shared {
		n = 1
	}
	for p := range n {
		if err := c.verifyStream(ctx, opener, v, p); err != nil {
			return err
		}
	}
	source, err := c.js.Stream(ctx, chaosSource)
	if err != nil {
		return fmt.Errorf("reading source stream: %w", err)
	}
	state := source.CachedInfo().State
	v.end(int(state.LastSeq) - len(c.publisher.acked))
	c.report.Unreleased = int(state.Msgs)
	return nil
}

// verifyStream reads the sealed stream of one partition.
func (c *chaos) verifyStream(ctx context.Context, opener *streams.Opener, v *verifier, partition int) error {
	stream, err := c.js.Stream(ctx, c.stream(partition))
	if err != nil {
		return fmt.Errorf("reading sealed stream: %w", err)
	}
	v.begin(partition)
	last := stream.CachedInfo().State.LastSeq
	if last == 0 {
		return nil
	}
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
		case errors.Is(err, streams.ErrCheckpoint) && c.Shared:
		case errors.Is(err, streams.ErrUnavailable), ctx.Err() != nil:
			return fmt.Errorf("verifying: %w", err)
		default:
			fmt.Fprintf(c.Log, "does not open: %v\n", err)
			c.report.Undecryptable++
		}
		if meta.Sequence.Stream >= last {
			return nil
		}
	}
}

// verifier counts what is wrong, in constant time per message.
type verifier struct {
	r      *ChaosReport
	topics topics
	acked  []uint64 // source sequence by message, as the publisher was told
	seen   []bool   // by message
	last   []uint64 // by subject, the highest source sequence seen
	odd    int      // messages at another source sequence than the acknowledged one

	shared bool // all partitions are in the stream that is read
	// Of the stream that is read.
	partition int
	ends      []chainEnd // by partition
}

// chainEnd is how far a partition was read.
type chainEnd struct {
	main streams.ChainID            // the last chain that is not one of released messages
	at   map[streams.ChainID]uint64 // by chain, the sequence of the message before
}

func newVerifier(r *ChaosReport, t topics, shared bool, acked []uint64) *verifier {
	v := &verifier{r: r, topics: t, shared: shared, acked: acked, seen: make([]bool, len(acked)), last: make([]uint64, t.subjects)}
	v.begin(0)
	return v
}

// begin starts with the sealed stream of a partition.
func (v *verifier) begin(partition int) {
	v.partition, v.ends = partition, make([]chainEnd, v.topics.partitions)
	for i := range v.ends {
		v.ends[i].at = make(map[streams.ChainID]uint64)
	}
}

// of is the partition that m belongs to, by its subject; whether the subject is
// right shows by the payload.
func (v *verifier) of(m opened) int {
	if !v.shared {
		return v.partition
	}
	rest, _ := strings.CutPrefix(m.Subject(), chaosPrefix+"p")
	number, _, _ := strings.Cut(rest, ".")
	p, err := strconv.Atoi(number)
	if err != nil || p < 0 || p >= len(v.ends) {
		return 0
	}
	return p
}

// link checks that a message names its predecessor. Messages that were held form
// chains of their own beside the main one, each of which proves its beginning.
func (v *verifier) link(end *chainEnd, m opened) {
	chain := m.Chain()
	first, released := chain.ReleasedFrom(m.Sequence(), m.Previous())
	switch {
	case released && chain == envelope.ReleaseChain(end.main, first):
	case chain != end.main:
		if len(end.at) > 0 {
			v.r.BrokenLinks++ // the source is one and the same
		}
		end.main = chain
		clear(end.at)
	}
	if m.Previous() != end.at[chain] {
		v.r.BrokenLinks++
	}
	end.at[chain] = m.Sequence()
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
	partition := v.of(m)
	v.link(&v.ends[partition], m)
	subject, n := named(m.Data())
	t := v.topics
	i := n*t.subjects + subject
	if subject < 0 || subject >= t.subjects || n < 0 || n > len(v.acked)/t.subjects || i >= len(v.acked) ||
		m.Subject() != t.subject(subject) || subject%t.partitions != partition || !bytes.Equal(m.Data(), chaosPayload(subject, n)) {
		v.r.Mismatched++
		return
	}
	at := v.acked[i]
	switch {
	case m.Sequence() != at:
		v.odd++ // see end
		return
	case v.seen[i]:
		v.r.Duplicated++
	case at < v.last[subject]:
		v.r.OutOfOrder++
	}
	v.seen[i] = true
	v.last[subject] = max(v.last[subject], at)
}

// named reads the numbers at the beginning of a payload, -1 if there are none.
func named(data []byte) (subject, n int) {
	parts := strings.SplitN(string(data), " ", 3)
	if len(parts) < 3 {
		return -1, -1
	}
	subject, err1 := strconv.Atoi(parts[0])
	n, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil {
		return -1, -1
	}
	return subject, n
}

// end counts what is missing. extra is how many messages the source stream took
// beyond those that were published: a second try that it did not recognise. So
// many of the copies in the sealed stream are the source's.
func (v *verifier) end(extra int) {
	for _, seen := range v.seen {
		if !seen {
			v.r.Lost++
		}
	}
	v.r.SourceDuplicated = min(v.odd, max(extra, 0))
	v.r.Mismatched += v.odd - v.r.SourceDuplicated
}
