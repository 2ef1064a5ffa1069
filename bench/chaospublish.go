package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	publishTimeout = 5 * time.Second
	dedupWindow    = 10 * time.Minute // of the source stream
	steadyGroup    = 256
)

// publisher publishes every message until the source stream acknowledged it, with
// an ID that makes a second try harmless, and notes the sequence that the
// acknowledgement names: it is the order that the sealed stream must keep, since
// a try that comes after a failure may change the order of one subject.
//
// For a part of the run it publishes in bursts with pauses between them, in which
// the gateway sees the source as empty: another state, with losses of its own.
type publisher struct {
	c      *chaos
	js     jetstream.JetStream
	random *rand.Rand
	acked  []uint64     // source sequence by message
	others atomic.Int64 // messages acknowledged whose scope is not denied
	ended  atomic.Bool  // with a drill: nothing more is published

	mu      sync.Mutex // held while a group is on its way
	retries int        // messages published again
	pauses  int
}

func newPublisher(c *chaos) (*publisher, error) {
	js, err := jetstream.New(c.nc, jetstream.WithPublishAsyncMaxPending(1024), jetstream.WithPublishAsyncTimeout(publishTimeout))
	if err != nil {
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	return &publisher{c: c, js: js, random: rand.New(rand.NewPCG(c.Seed, 2))}, nil
}

// run publishes all, at the rate if there is one. With a drill nothing holds it up;
// else it keeps ahead of the sealed stream by a bounded number only, and does not
// outrun the faults.
func (p *publisher) run(ctx context.Context) error {
	if p.c.Rate > 0 {
		return p.runPaced(ctx)
	}
	c := p.c
	ahead := c.ahead()
	long := p.longPauses()
	phase, pieces, bursts := 0, p.random.IntN(3), false
	for next := 0; next < c.Messages; {
		if next >= phase { // every third piece of the run is bursts
			phase = next + 1 + p.random.IntN(max(1, c.Messages/8))
			pieces++
			bursts = !c.NoPauses && pieces%3 == 0
		}
		if err := c.allowed.wait(ctx, int64(next+1)); err != nil {
			return err
		}
		n := min(steadyGroup, ahead, c.Messages-next)
		if bursts {
			n = min(1+p.random.IntN(1+p.random.IntN(64)), n)
		}
		if err := c.sealed.wait(ctx, int64(next+n-ahead)); err != nil {
			return err
		}
		if err := p.group(ctx, next, next+n); err != nil {
			return err
		}
		next += n
		var pause time.Duration
		switch {
		case len(long) > 0 && next >= long[0] && next < c.Messages:
			long = long[1:]
			// About as long as the gateway waits for a sign of life of the source.
			pause = 4500*time.Millisecond + time.Duration(p.random.Int64N(int64(1500*time.Millisecond)))
			fmt.Fprintf(c.Log, "publisher pauses %v after message %d\n", pause.Round(time.Millisecond), next)
		case bursts:
			pause = p.shortPause()
		}
		if pause > 0 {
			p.pauses++
			if err := pauseFor(ctx, pause); err != nil {
				return err
			}
		}
	}
	return nil
}

// runPaced publishes what is due by the rate, a moment's worth at a time, and
// makes up for the time that the server was away.
func (p *publisher) runPaced(ctx context.Context) error {
	c := p.c
	begin, next := time.Now(), 0
	for !p.ended.Load() && (c.drill != nil || next < c.Messages) {
		due := int(time.Since(begin).Seconds() * float64(c.Rate))
		n := min(steadyGroup, due-next)
		if c.drill == nil {
			n = min(n, c.ahead(), c.Messages-next)
			if err := c.allowed.wait(ctx, int64(next+1)); err != nil {
				return err
			}
			if err := c.sealed.wait(ctx, int64(next+n-c.ahead())); err != nil {
				return err
			}
		}
		if n > 0 {
			if err := p.group(ctx, next, next+n); err != nil {
				return err
			}
			next += n
		}
		if next >= due {
			if err := pauseFor(ctx, time.Millisecond+time.Duration(p.random.Int64N(int64(30*time.Millisecond)))); err != nil {
				return err
			}
		}
	}
	return nil
}

// longPauses are the messages after which nothing is published for seconds.
func (p *publisher) longPauses() []int {
	if p.c.NoPauses {
		return nil
	}
	n := min(10, p.c.Messages/20_000)
	out := make([]int, n)
	for i := range out {
		out[i] = (i*p.c.Messages + p.random.IntN(p.c.Messages)) / n
	}
	return out
}

// shortPause is mostly about as long as a message needs through the relay.
func (p *publisher) shortPause() time.Duration {
	switch n := p.random.IntN(20); {
	case n < 16:
		return time.Duration(p.random.Int64N(int64(6 * time.Millisecond)))
	case n < 19:
		return time.Duration(p.random.Int64N(int64(60 * time.Millisecond)))
	}
	return time.Duration(p.random.Int64N(int64(400 * time.Millisecond)))
}

// group publishes the messages from..to-1 and returns when all are acknowledged.
func (p *publisher) group(ctx context.Context, from, to int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked = append(p.acked, make([]uint64, to-from)...)
	todo := make([]int, 0, to-from)
	for i := from; i < to; i++ {
		todo = append(todo, i)
	}
	var last error
	for end, again := time.Now().Add(chaosPatience), false; ; again = true {
		left, err := p.try(ctx, todo, again)
		if err != nil {
			last = err
		}
		if len(left) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(left) < len(todo) {
			end = time.Now().Add(chaosPatience)
		}
		if time.Now().After(end) {
			return fmt.Errorf("publishing: nothing was acknowledged for %v: %w", chaosPatience, last)
		}
		todo = left
		if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// try publishes todo once, in order, and returns what was not acknowledged and
// one of the reasons.
func (p *publisher) try(ctx context.Context, todo []int, again bool) (left []int, last error) {
	futures := make([]jetstream.PubAckFuture, len(todo))
	for k, i := range todo {
		subject, n := i%p.c.Subjects, i/p.c.Subjects
		m := &nats.Msg{Subject: p.c.topics().subject(subject), Data: chaosPayload(subject, n)}
		f, err := p.js.PublishMsgAsync(m, jetstream.WithMsgID(strconv.Itoa(i)))
		if err != nil {
			last = err
			break // the rest is not sent
		}
		futures[k] = f
		if again {
			p.retries++
		}
	}
	waiting, cancel := context.WithTimeoutCause(ctx, 2*publishTimeout, errors.New("no answer to a publish"))
	defer cancel()
	for k, f := range futures {
		if f == nil {
			left = append(left, todo[k])
			continue
		}
		select {
		case ack := <-f.Ok():
			p.acked[todo[k]] = ack.Sequence
			if d := p.c.drill; d != nil && !d.denies(todo[k]) {
				p.others.Add(1)
			}
		case err := <-f.Err():
			left, last = append(left, todo[k]), err
		case <-waiting.Done():
			return append(left, todo[k:]...), context.Cause(waiting)
		}
	}
	return left, last
}

// settled waits until what was on its way is acknowledged. A second server kill
// before that could make the source stream take a message twice: it forgets the
// IDs of messages that were sealed and released meanwhile.
func (p *publisher) settled() {
	p.mu.Lock()
	defer p.mu.Unlock()
}
