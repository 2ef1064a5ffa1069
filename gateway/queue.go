package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Metadata of consumers on the source stream, by which a worker knows its own.
const metadataSealed = "keyweir-sealed"

const (
	// ackWait must outlast every pause of the route and the release lag: a message
	// that is delivered again is only acknowledged again, but that costs.
	ackWait = 24 * time.Hour
	// maxUnreleased bounds what a queue source delivers ahead of the release, and
	// with it the memory that waits for acknowledgements on both sides.
	maxUnreleased = 1 << 20
	// inactive removes a reader without acknowledgements that was not deleted.
	inactive = time.Minute
)

// reader is an open source: a consumer of its own and the pulls on it.
type reader struct {
	*puller
	name  string
	from  uint64   // source sequence behind which it begins
	queue bool     // messages are acknowledged one by one
	waits uint64   // messages that matched and waited when it was made
	old   []string // interest: consumers of earlier tenures, to be deleted after the release lag
}

// openReader makes a consumer that begins behind cur. Its name is new for every
// opening, since CONSUMER.RESET leaves the outstanding pulls of a frozen
// predecessor alive, which then takes, and never seals, part of the messages.
func (w *worker) openReader(ctx context.Context, info *jetstream.StreamInfo, cur cursor) (*reader, error) {
	w.openings++
	r := &reader{name: fmt.Sprintf("%s%d_%d", w.consumerPrefix(), w.epoch, w.openings), from: cur.scanned}
	cfg := jetstream.ConsumerConfig{
		Name: r.name, Description: "Keyweir gateway; do not touch",
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: cur.scanned + 1,
		FilterSubjects: w.route.Source.Subjects,
		Metadata:       map[string]string{MetadataRoute: w.route.Name, metadataSealed: w.sealedIdentity()},
	}
	r.queue = info.Config.Retention != jetstream.LimitsPolicy
	if r.queue {
		cfg.Durable = r.name
		cfg.AckPolicy, cfg.AckWait, cfg.MaxDeliver, cfg.MaxAckPending = jetstream.AckExplicitPolicy, ackWait, -1, maxUnreleased
		var err error
		if r.old, err = w.ownConsumers(ctx); err != nil {
			return nil, err
		}
		if info.Config.Retention == jetstream.WorkQueuePolicy {
			// Two consumers of a work queue may not overlap, and nothing is lost in
			// between. What the old one had delivered comes again: read from the
			// first message left, and acknowledge without sealing what the cursor covers.
			cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverAllPolicy, 0
			if err := w.deleteConsumers(ctx, r.old); err != nil {
				return nil, err
			}
			r.old = nil
		}
		// Interest: the new one first, or the stream drops what nobody waits for.
	} else {
		cfg.AckPolicy, cfg.MemoryStorage, cfg.Replicas, cfg.InactiveThreshold = jetstream.AckNonePolicy, true, 1, inactive
	}
	var err error
	if r.waits, err = w.createConsumer(ctx, cfg); err != nil {
		return nil, err
	}
	if r.puller, err = newPuller(w.route.Source.Conn, w.route.Source.Stream, r.name, w.tune.heartbeat); err != nil {
		return nil, err
	}
	return r, nil
}

// createConsumer returns how many messages the new consumer will deliver by now.
func (w *worker) createConsumer(ctx context.Context, cfg jetstream.ConsumerConfig) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := w.sourceJS.CreateConsumer(ctx, w.route.Source.Stream, cfg)
	if err == nil {
		return c.CachedInfo().NumPending, nil
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && (api.ErrorCode == errCodeWQFilters || api.ErrorCode == errCodeWQUnfiltered) {
		// Ours were deleted; perhaps a racing instance has made one since.
		if own, oerr := w.ownConsumers(ctx); oerr == nil && len(own) == 0 {
			return 0, fmt.Errorf("%w: stream %s is a work queue and another consumer takes the same subjects: %v", ErrSource, w.route.Source.Stream, err)
		}
	}
	return 0, fmt.Errorf("creating consumer: %w", err)
}

// Errors of the server that nats.go does not name.
const (
	errCodeWQUnfiltered jetstream.ErrorCode = 10099 // multiple non-filtered consumers on a work queue
	errCodeWQFilters    jetstream.ErrorCode = 10100 // filtered consumers of a work queue overlap
)

// dropReader deletes the consumer of a closed reader, unless it keeps messages.
func (w *worker) dropReader(ctx context.Context, r *reader) {
	if r.queue {
		return // the next opening deletes it, in its own order
	}
	// Only tidiness: the server removes an unused one by itself.
	if err := w.deleteConsumers(ctx, []string{r.name}); err != nil {
		w.log.Debug("leaving the consumer to expire", "consumer", r.name, "error", err)
	}
}

func (w *worker) consumerPrefix() string {
	return fmt.Sprintf("kw-%s-%d-", w.route.Name, w.home.partition)
}

func (w *worker) sealedIdentity() string {
	return fmt.Sprintf("%s/%d", w.home.sealed, w.home.sealedCreated)
}

// ownConsumers lists the consumers that earlier tenures of this partition, in
// whatever instance, left on the source stream.
func (w *worker) ownConsumers(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := w.sourceJS.Stream(ctx, w.route.Source.Stream)
	if err != nil {
		return nil, fmt.Errorf("listing consumers: %w", err)
	}
	var names []string
	l := s.ListConsumers(ctx)
	for c := range l.Info() {
		epoch, ok := strings.CutPrefix(c.Name, w.consumerPrefix())
		if ok && !strings.Contains(epoch, "-") && c.Config.Metadata[MetadataRoute] == w.route.Name && c.Config.Metadata[metadataSealed] == w.sealedIdentity() {
			names = append(names, c.Name)
		}
	}
	if err := l.Err(); err != nil {
		return nil, fmt.Errorf("listing consumers: %w", err)
	}
	return names, nil
}

func (w *worker) deleteConsumers(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for _, n := range names {
		if err := w.sourceJS.DeleteConsumer(ctx, w.route.Source.Stream, n); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("deleting consumer %s: %w", n, err)
		}
	}
	return nil
}
