package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ahead is how far the publisher may be ahead: less than from one fault to the
// next, so that each meets a relay at work.
func (c *chaos) ahead() int {
	return min(chaosAhead, max(64, c.Messages/(2*(c.report.Faults+1))))
}

// inject spreads the faults, in random order, over the messages. During each, no
// more is published than until the next one: a fault that takes long would leave
// the later ones a relay with nothing to do.
func (c *chaos) inject(ctx context.Context) error {
	faults := make([]func(context.Context) error, 0, c.report.Faults)
	for range c.Kills {
		faults = append(faults, c.kill)
	}
	for range c.Zombies {
		faults = append(faults, c.freeze)
	}
	for range c.ServerKills {
		faults = append(faults, c.killServer)
	}
	c.random.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	step := float64(c.Messages) / float64(len(faults)+1)
	at := make([]int64, len(faults)+1)
	for i := range faults {
		at[i] = int64(step * (float64(i) + 0.7 + 0.6*c.random.Float64()))
	}
	at[len(faults)] = int64(c.Messages)
	c.allowed.set(at[0])
	for i, fault := range faults {
		if err := c.sealed.wait(ctx, at[i]); err != nil {
			return err
		}
		c.allowed.set(at[i+1])
		if err := fault(ctx); err != nil {
			return fmt.Errorf("fault %d of %d: %w", i+1, len(faults), err)
		}
	}
	c.allowed.set(int64(c.Messages))
	return nil
}

// victim waits for a gateway that works, and a moment longer.
func (c *chaos) victim(ctx context.Context) (*process, error) {
	ps, err := c.fleet.working(ctx)
	if err != nil {
		return nil, err
	}
	p := ps[c.random.IntN(len(ps))]
	return p, pauseFor(ctx, time.Duration(c.random.Int64N(int64(20*time.Millisecond))))
}

// kill ends a gateway that works at once, and starts another one.
func (c *chaos) kill(ctx context.Context) error {
	p, err := c.victim(ctx)
	if err != nil {
		return err
	}
	return c.killThis(ctx, p, func() error { return nil })
}

// killThis is kill for one that was chosen; look is called while it is dead and
// nobody took over yet.
func (c *chaos) killThis(ctx context.Context, p *process, look func() error) error {
	at := c.sealed.now()
	p.kill()
	killed := time.Now()
	if err := look(); err != nil {
		return err
	}
	if err := c.fleet.startGateway(); err != nil {
		return err
	}
	if _, err := c.fleet.working(ctx); err != nil {
		return err
	}
	took := time.Since(killed)
	c.report.TakeoverSeconds = max(c.report.TakeoverSeconds, took.Seconds())
	fmt.Fprintf(c.Log, "killed %s at message %d, taken over after %v\n", p.name, at, took.Round(time.Millisecond))
	return nil
}

// freeze stops a gateway that works, as a hung host or a paused machine would,
// and wakes it when its successor is at work.
func (c *chaos) freeze(ctx context.Context) error {
	p, err := c.victim(ctx)
	if err != nil {
		return err
	}
	return c.freezeThis(ctx, p, func() error { return nil })
}

// freezeThis is freeze for one that was chosen; look is called while it is frozen
// and nobody took over yet.
func (c *chaos) freezeThis(ctx context.Context, p *process, look func() error) error {
	if err := p.freeze(); err != nil {
		return err
	}
	at := c.sealed.now()
	if err := look(); err != nil {
		return err
	}
	fmt.Fprintf(c.Log, "froze %s at message %d\n", p.name, at)
	for end := time.Now().Add(chaosPatience); ; {
		ps, err := c.fleet.working(ctx)
		if err != nil {
			return err
		}
		if !slices.Contains(ps, p) {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("nobody took over from %s within %v", p.name, chaosPatience)
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	// What the frozen one had sent before may still be counted: go well beyond.
	beyond := c.sealed.now() + 64
	if c.drill == nil { // else there is no end yet
		beyond = min(beyond, int64(c.Messages))
	}
	c.allowed.set(beyond)
	if err := c.sealed.wait(ctx, beyond); err != nil {
		return err
	}
	fmt.Fprintf(c.Log, "woke %s at message %d\n", p.name, c.sealed.now())
	return p.wake()
}

// killServer ends the only server, or the one that leads the source or a sealed
// stream, and starts it again after a moment.
func (c *chaos) killServer(ctx context.Context) error {
	i := 0
	if c.Servers > 1 {
		var err error
		stream := chaosSource
		if c.random.IntN(2) == 0 {
			stream = c.stream(c.random.IntN(c.Partitions))
		}
		if i, err = c.leader(ctx, stream); err != nil {
			return err
		}
	}
	if err := pauseFor(ctx, time.Duration(c.random.Int64N(int64(20*time.Millisecond)))); err != nil {
		return err
	}
	at := c.sealed.now()
	c.servers.kill(i)
	killed := time.Now()
	away := time.Duration(c.random.Int64N(int64(500 * time.Millisecond)))
	if c.random.IntN(4) == 0 {
		away += time.Duration(c.random.Int64N(int64(3 * time.Second))) // a claim may expire
	}
	if err := pauseFor(ctx, away); err != nil {
		return err
	}
	if err := c.servers.start(ctx, i); err != nil {
		return err
	}
	if err := c.whole(ctx); err != nil {
		return err
	}
	c.publisher.settled()
	fmt.Fprintf(c.Log, "killed %s at message %d, back after %v\n", c.servers.orders[i].Name, at, time.Since(killed).Round(time.Millisecond))
	return ctx.Err()
}

// leader waits until a stream has one, and returns its server.
func (c *chaos) leader(ctx context.Context, stream string) (int, error) {
	for end := time.Now().Add(chaosPatience); time.Now().Before(end); {
		s, err := c.js.Stream(ctx, stream)
		if err == nil && s.CachedInfo().Cluster != nil {
			if i := c.servers.named(s.CachedInfo().Cluster.Leader); i >= 0 {
				return i, nil
			}
		}
		if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("stream %s has no leader", stream)
}

// whole waits until every stream answers and, in a cluster, has all its replicas up
// to date: another kill would take the majority away.
func (c *chaos) whole(ctx context.Context) error {
	why := errors.New("not asked yet")
	for end := time.Now().Add(chaosPatience); time.Now().Before(end); {
		if why = c.complete(ctx); why == nil {
			return nil
		}
		if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the streams did not come back: %w", why)
}

func (c *chaos) complete(ctx context.Context) error {
	list := c.js.ListStreams(ctx)
	n := 0
	for info := range list.Info() {
		n++
		if c.Servers == 1 {
			continue
		}
		name := info.Config.Name
		if info.Cluster == nil || info.Cluster.Leader == "" {
			return fmt.Errorf("stream %s has no leader", name)
		}
		if len(info.Cluster.Replicas) != info.Config.Replicas-1 {
			return fmt.Errorf("stream %s has %d followers", name, len(info.Cluster.Replicas))
		}
		for _, r := range info.Cluster.Replicas {
			if r.Offline || !r.Current {
				return fmt.Errorf("%s is behind on stream %s", r.Name, name)
			}
		}
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("listing streams: %w", err)
	}
	if n < 2 {
		return fmt.Errorf("%d streams answer", n)
	}
	return nil
}
