package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// turn is one relay of all messages of the source stream.
type turn struct {
	rate            float64 // messages per second
	server, gateway time.Duration
}

// makeSource makes an empty source stream in place of an earlier one.
func (b *relayBench) makeSource(ctx context.Context) error {
	if err := b.remove(ctx, relaySource); err != nil {
		return err
	}
	return createStream(ctx, b.js, jetstream.StreamConfig{
		Name: relaySource, Subjects: []string{relayPattern}, Storage: jetstreamStorage(b.Memory), Duplicates: time.Second,
	})
}

// removeCopies removes what begin made.
func (b *relayBench) removeCopies(ctx context.Context, streams []string) error {
	var errs []error
	for _, s := range streams {
		errs = append(errs, b.remove(ctx, s))
	}
	return errors.Join(errs...)
}

func isNotFound(err error) bool { return errors.Is(err, jetstream.ErrStreamNotFound) }

func (b *relayBench) remove(ctx context.Context, stream string) error {
	err := b.js.DeleteStream(ctx, stream)
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("removing stream %s: %w", stream, err)
	}
	return nil
}

// fillSource publishes what all turns relay.
func (b *relayBench) fillSource(ctx context.Context) error {
	if err := b.makeSource(ctx); err != nil {
		return err
	}
	payload := make([]byte, b.Size)
	futures := make([]jetstream.PubAckFuture, 0, 1024)
	for i := range b.Messages {
		f, err := b.js.PublishAsync(relaySubject(i, b.Partitions), payload, jetstream.WithStallWait(chaosPatience))
		if err != nil {
			return fmt.Errorf("publishing: %w", err)
		}
		if futures = append(futures, f); len(futures) < cap(futures) && i < b.Messages-1 {
			continue
		}
		for _, f := range futures {
			select {
			case <-f.Ok():
			case err := <-f.Err():
				return fmt.Errorf("publishing: %w", err)
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		futures = futures[:0]
	}
	return nil
}

// begin starts to copy the source stream, into one stream for each partition; end
// ends it and removes them.
func (b *relayBench) begin(ctx context.Context, way relayWay) (streams []string, end func() error, err error) {
	name := b.target(way)
	streams = partitionStreams(name, b.Partitions)
	if way == waySource {
		for i, s := range streams {
			src := &jetstream.StreamSource{Name: relaySource}
			if b.Partitions > 1 {
				src.FilterSubject = partitionPattern(i, b.Partitions)
			}
			if err := createStream(ctx, b.js, jetstream.StreamConfig{
				Name: s, Storage: jetstreamStorage(b.Memory), Sources: []*jetstream.StreamSource{src},
			}); err != nil {
				return nil, nil, err
			}
		}
		return streams, func() error { return b.removeCopies(ctx, streams) }, nil
	}
	if _, err := b.gateway.ask(ctx, &workerOrder{Op: opRelay, Relay: &relayOrder{
		URL: b.url, Source: relaySource, Sealed: name, Partitions: b.Partitions,
		Memory: b.Memory, SyncAlways: b.SyncAlways, Engine: b.Engine, Plain: way == wayPlain,
	}}); err != nil {
		return nil, nil, err
	}
	return streams, func() error {
		a, err := b.gateway.ask(ctx, &workerOrder{Op: opStop})
		if err != nil {
			return err
		}
		b.engine = a.Engine
		return b.removeCopies(ctx, streams)
	}, nil
}

// used is what server and gateway have used so far.
func (b *relayBench) used(ctx context.Context) (server, gateway time.Duration, err error) {
	if server, err = b.server.cpu(ctx); err != nil || b.Embedded {
		return server, 0, err
	}
	gateway, err = b.gateway.cpu(ctx)
	return server, gateway, err
}

// profile has the processes write profiles from now on, until it is called with way
// "".
func (b *relayBench) profile(ctx context.Context, way string, round int) error {
	if b.Profiles == "" || round == 0 {
		return nil
	}
	for _, w := range []*workerProcess{b.server, b.gateway} {
		file := ""
		if way != "" {
			file = filepath.Join(b.Profiles, fmt.Sprintf("%s-%s-%d.pprof", way, w.name, round))
		}
		if _, err := w.ask(ctx, &workerOrder{Op: opProfile, File: file}); err != nil {
			return err
		}
		if b.Embedded {
			break
		}
	}
	return nil
}

// turn relays everything once.
func (b *relayBench) turn(ctx context.Context, way relayWay, round int) (t turn, err error) {
	if err := b.profile(ctx, way.String(), round); err != nil {
		return t, err
	}
	server, gateway, err := b.used(ctx)
	if err != nil {
		return t, err
	}
	streams, end, err := b.begin(ctx, way)
	if err != nil {
		return t, err
	}
	if t.rate, err = b.follow(ctx, streams); err != nil {
		return t, err
	}
	if t.server, t.gateway, err = b.used(ctx); err != nil {
		return t, err
	}
	t.server -= server
	t.gateway -= gateway
	if err := b.profile(ctx, "", round); err != nil {
		return t, err
	}
	return t, end()
}

// How often follow asks. A question costs the server as much as ten messages, and
// the slower a relay is, the more of them there are.
const (
	followLeast = 2 * time.Millisecond // for each stream
	followMost  = 50 * time.Millisecond
)

// follow waits for all messages and returns how many came in a second, from the
// first tenth on: what comes before is the start of a relay.
func (b *relayBench) follow(ctx context.Context, streams []string) (float64, error) {
	least := followLeast * time.Duration(len(streams))
	tick := time.NewTimer(least)
	defer tick.Stop()
	begin, first := time.Now(), 0
	moved, seen := begin, 0
	for {
		n := 0
		for _, stream := range streams {
			if s, err := b.js.Stream(ctx, stream); err == nil {
				n += int(s.CachedInfo().State.Msgs)
			} else if !isNotFound(err) {
				return 0, fmt.Errorf("following the copy: %w", err)
			}
		}
		now := time.Now()
		switch {
		case n >= b.Messages:
			return float64(b.Messages-first) / now.Sub(begin).Seconds(), nil
		case first == 0 && n >= b.Messages/10:
			begin, first = now, n
		}
		if n > seen {
			moved, seen = now, n
		} else if now.Sub(moved) > chaosPatience {
			return 0, fmt.Errorf("nothing came for %v after message %d\n%s", chaosPatience, n, b.gateway.tail())
		}
		wait := followMost / 4
		if first > 0 && n > first { // half of the time that is left, as it looks
			wait = time.Duration(float64(now.Sub(begin)) * float64(b.Messages-n) / float64(n-first) / 2)
		}
		tick.Reset(max(least, min(wait, followMost)))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
