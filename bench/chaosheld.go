package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/envelope"
)

// sealedSubjects matches the sealed messages of a scope.
func sealedSubjects(scope string) string { return "sealed." + chaosPrefix + "*." + scope + ".*" }

// topicOf reads partition and scope off a subject that ends in one of topics.
func topicOf(subject string) (partition int, scope string, ok bool) {
	tokens := strings.Split(subject, ".")
	if len(tokens) < 4 {
		return 0, "", false
	}
	tokens = tokens[len(tokens)-4:]
	partition, err := strconv.Atoi(strings.TrimPrefix(tokens[1], "p"))
	return partition, tokens[2], err == nil && tokens[0]+"." == chaosPrefix
}

// isReleased reports whether a sealed message was held before: its header begins
// with a chain of such messages, its sequence and its predecessor.
func isReleased(m *nats.Msg) bool {
	parts := strings.SplitN(m.Header.Get(gateway.HeaderSource), ":", 4)
	if len(parts) < 4 {
		return false
	}
	chain, err := envelope.ParseChainID(parts[0])
	sequence, err1 := strconv.ParseUint(parts[1], 10, 64)
	previous, err2 := strconv.ParseUint(parts[2], 10, 64)
	if err != nil || err1 != nil || err2 != nil {
		return false
	}
	_, ok := chain.ReleasedFrom(sequence, previous)
	return ok
}

// heldCount is what the hold streams hold.
type heldCount struct {
	total  int
	denied map[int]int // messages of denied scopes by partition, none with 0
}

func (h *heldCount) partitions() []int {
	out := make([]int, 0, len(h.denied))
	for p := range h.denied {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// held counts what is held, as far as it is not removed.
func (d *drill) held(ctx context.Context) (h heldCount, err error) {
	h.denied = make(map[int]int)
	js := d.c.js
	names := js.StreamNames(ctx, jetstream.WithStreamListSubject(gateway.HoldSubject(chaosRoute)+".>"))
	var streams []string
	for name := range names.Name() {
		streams = append(streams, name)
	}
	if err := names.Err(); err != nil {
		return h, fmt.Errorf("finding hold streams: %w", err)
	}
	for _, name := range streams {
		subjects, err := subjectCounts(ctx, js, name)
		if err != nil {
			return h, err
		}
		for subject, n := range subjects {
			partition, scope, ok := topicOf(subject)
			if !ok {
				continue // the gateway's own
			}
			h.total += n
			if d.named(scope) {
				h.denied[partition] += n
			}
		}
	}
	return h, nil
}

// named reports whether a scope is one of those that are denied.
func (d *drill) named(scope string) bool {
	return slices.ContainsFunc(d.scopes, func(n int) bool { return scopeName(n) == scope })
}

// sealedCount is what the sealed streams have.
type sealedCount struct{ others, denied int }

func (d *drill) sealed(ctx context.Context) (s sealedCount, err error) {
	for i := range d.c.Partitions {
		subjects, err := subjectCounts(ctx, d.c.js, sealedStream(i, d.c.Partitions))
		if err != nil {
			return s, err
		}
		for subject, n := range subjects {
			if _, scope, ok := topicOf(subject); ok && d.named(scope) {
				s.denied += n
			} else {
				s.others += n
			}
		}
	}
	return s, nil
}

// subjectCounts counts a stream's messages by subject. A server that is away is
// waited for.
func subjectCounts(ctx context.Context, js jetstream.JetStream, name string) (map[string]int, error) {
	for end := time.Now().Add(chaosPatience); ; {
		s, err := js.Stream(ctx, name)
		if err == nil {
			var info *jetstream.StreamInfo
			if info, err = s.Info(ctx, jetstream.WithSubjectFilter(">")); err == nil {
				out := make(map[string]int, len(info.State.Subjects))
				for subject, n := range info.State.Subjects {
					out[subject] = int(n)
				}
				return out, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("counting messages of stream %s: %w", name, err)
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// sample notes the extremes until done is closed.
func (d *drill) sample(ctx context.Context, done <-chan struct{}) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		published := d.c.publisher.others.Load()
		h, err := d.held(ctx)
		if err != nil {
			continue // a server is away
		}
		s, err := d.sealed(ctx)
		if err != nil {
			return err
		}
		d.r.HeldMax = max(d.r.HeldMax, h.total)
		d.r.OthersBehindMax = max(d.r.OthersBehindMax, int(published)-s.others)
	}
}
