package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
)

// Denial is what came of the denial of scopes.
type Denial struct {
	DeniedScopes  int     `json:"denied_scopes"`
	DeniedSeconds float64 `json:"denied_seconds"` // the key service refused them for
	HeldMax       int     `json:"held_max"`       // messages in the hold streams at a time

	// Of the other scopes, while these were denied: published and acknowledged,
	// sealed, and how many of the former were not yet the latter at the worst time.
	OthersPublished int `json:"others_published"`
	OthersSealed    int `json:"others_sealed"`
	OthersBehindMax int `json:"others_behind_max"`

	// Of the kills and zombies, those that hit the gateway that held or released,
	// when it had done a part of that and not all.
	KillsWhileHeld        int `json:"kills_while_held"`
	KillsWhileReleasing   int `json:"kills_while_releasing"`
	ZombiesWhileHeld      int `json:"zombies_while_held"`
	ZombiesWhileReleasing int `json:"zombies_while_releasing"`

	// DrainSeconds is how long it took from when the scopes were allowed again
	// until nothing was held any more, kills included.
	DrainSeconds float64 `json:"drain_seconds"`
}

// drill denies some scopes for a while, during all of which is published, and
// strikes while their messages are held and while they are released.
//
// The denial is the key service's own: it is started again with grants that leave
// these scopes out. Sessions that gateways have go on until their data keys end, so
// these are kept short.
type drill struct {
	c      *chaos
	scopes []int // that are denied
	period time.Duration
	r      *Denial

	released chan int // capacity 1: the partition of a message just released
	lastSeen time.Time
	kept     int // sealed messages of the denied scopes before the release
}

// drillRounds bounds how often scopes are denied again, since no kill hit a
// release: it is short.
const drillRounds = 6

// drillTail is how long is published after everything held was released.
const drillTail = 2 * time.Second

func newDrill(c *chaos) *drill {
	d := &drill{
		c: c, period: min(max(c.DenyFor/10, time.Second), 15*time.Second),
		r: &Denial{DeniedScopes: c.Deny}, released: make(chan int, 1),
	}
	d.scopes = c.random.Perm(c.Scopes)[:c.Deny]
	c.report.Denial = d.r
	return d
}

// denies reports whether the scope of message i is one that is denied at times.
func (d *drill) denies(i int) bool {
	return slices.Contains(d.scopes, i%d.c.Subjects%d.c.Scopes)
}

func (d *drill) run(ctx context.Context) error {
	c := d.c
	defer c.publisher.ended.Store(true)
	for _, scope := range d.scopes {
		sub, err := c.nc.Subscribe(sealedSubjects(scopeName(scope)), d.see)
		if err != nil {
			return fmt.Errorf("watching the release: %w", err)
		}
		defer func() { _ = sub.Unsubscribe() }() // the connection is about to be closed
	}
	if err := c.sealed.wait(ctx, int64(max(2*c.Subjects, c.Rate))); err != nil {
		return err
	}
	held, releasing := d.deal()
	length := c.DenyFor
	for round := 1; ; round++ {
		if err := d.deny(ctx, length, held); err != nil {
			return fmt.Errorf("while scopes were denied: %w", err)
		}
		if err := d.allow(ctx, releasing); err != nil {
			return fmt.Errorf("while held messages were released: %w", err)
		}
		held, releasing = nil, nil
		if d.r.KillsWhileHeld == 0 {
			held = append(held, d.kill)
		}
		if d.r.KillsWhileReleasing == 0 {
			releasing = append(releasing, d.kill)
		}
		n := len(held) + len(releasing)
		if n == 0 {
			break
		}
		if round == drillRounds {
			return fmt.Errorf("no kill hit, in %d rounds (%d while held, %d while released): hold more, by a higher rate or a longer denial", round, d.r.KillsWhileHeld, d.r.KillsWhileReleasing)
		}
		c.report.Kills += n
		c.report.Faults += n
		length = min(length, 10*time.Second)
		fmt.Fprintf(c.Log, "denying again: no kill hit the gateway while it held, or released\n")
	}
	return pauseFor(ctx, drillTail)
}

// strike is a fault at a gateway that holds or releases messages of a partition;
// hit counts it if it did so indeed.
type strike func(ctx context.Context, p *process, partition int, releasing bool) error

// deal spreads the faults over both parts of the drill, in random order.
func (d *drill) deal() (held, releasing []strike) {
	c := d.c
	for _, f := range []struct {
		n, least int // in all, and during the release
		strike   strike
	}{{c.Kills, 1, d.kill}, {c.Zombies, c.random.IntN(2), d.freeze}, {c.ServerKills, 0, d.killServer}} {
		n := min(max(f.n/3, f.least), f.n)
		held = append(held, slices.Repeat([]strike{f.strike}, f.n-n)...)
		releasing = append(releasing, slices.Repeat([]strike{f.strike}, n)...)
	}
	for _, list := range [][]strike{held, releasing} {
		c.random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	return held, releasing
}

func (d *drill) kill(ctx context.Context, p *process, partition int, releasing bool) error {
	n := &d.r.KillsWhileHeld
	if releasing {
		n = &d.r.KillsWhileReleasing
	}
	return d.c.killThis(ctx, p, func() error { return d.hit(ctx, n, p, partition, releasing) })
}

func (d *drill) freeze(ctx context.Context, p *process, partition int, releasing bool) error {
	n := &d.r.ZombiesWhileHeld
	if releasing {
		n = &d.r.ZombiesWhileReleasing
	}
	return d.c.freezeThis(ctx, p, func() error { return d.hit(ctx, n, p, partition, releasing) })
}

func (d *drill) killServer(ctx context.Context, _ *process, _ int, _ bool) error {
	return d.c.killServer(ctx)
}

// hit counts a fault that found messages held.
func (d *drill) hit(ctx context.Context, count *int, p *process, partition int, releasing bool) error {
	h, err := d.held(ctx)
	if err != nil {
		return err
	}
	if h.denied[partition] == 0 {
		return nil
	}
	*count++
	if !releasing {
		fmt.Fprintf(d.c.Log, "hit %s while %d messages of partition %d were held\n", p.name, h.denied[partition], partition)
		return nil
	}
	d.r.HeldMax = max(d.r.HeldMax, h.total) // sample has ended
	s, err := d.sealed(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.c.Log, "hit %s while %d messages of partition %d were held, %d of all had been released\n", p.name, h.denied[partition], partition, s.denied-d.kept)
	return nil
}

// deny lets the key service refuse the scopes, and strikes while others go on.
func (d *drill) deny(ctx context.Context, length time.Duration, faults []strike) error {
	c := d.c
	if err := c.fleet.restartKeysvc(ctx, deniedPath(c.Dir)); err != nil {
		return err
	}
	begin := time.Now()
	fmt.Fprintf(c.Log, "scopes %v denied at message %d\n", d.scopes, c.sealed.now())
	before, err := d.sealed(ctx)
	if err != nil {
		return err
	}
	published := c.publisher.others.Load()
	done := make(chan struct{})
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.sample(gctx, done) })
	g.Go(func() error {
		defer close(done)
		for i, fault := range faults {
			// In the first nine tenths, so that the last one is over in time.
			at := time.Duration(float64(length) * 0.9 * (float64(i) + 0.2 + 0.6*c.random.Float64()) / float64(len(faults)))
			if err := pauseFor(gctx, time.Until(begin.Add(at))); err != nil {
				return err
			}
			p, partition, err := d.holding(gctx)
			if err != nil {
				return err
			}
			if err := fault(gctx, p, partition, false); err != nil {
				return fmt.Errorf("fault %d of %d: %w", i+1, len(faults), err)
			}
		}
		if _, _, err := d.holding(gctx); err != nil {
			return err
		}
		if err := pauseFor(gctx, time.Until(begin.Add(length))); err != nil {
			return err
		}
		return d.caughtUp(gctx, before, published)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	d.r.DeniedSeconds += time.Since(begin).Seconds()
	return nil
}

// caughtUp waits until all of the other scopes is sealed that was published by now,
// and counts that: they must not have waited for those that are denied.
func (d *drill) caughtUp(ctx context.Context, before sealedCount, published int64) error {
	target := d.c.publisher.others.Load()
	for end := time.Now().Add(chaosPatience); ; {
		now, err := d.sealed(ctx)
		if err != nil {
			return err
		}
		if int64(now.others) >= target {
			d.r.OthersPublished += int(target - published)
			d.r.OthersSealed += now.others - before.others
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the scopes that are not denied fall behind: %d of %d messages sealed\n%s", now.others, target, d.c.fleet.tails())
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// allow lets the key service give out the keys again, strikes while the gateways
// release what they held, and waits until all of it is.
func (d *drill) allow(ctx context.Context, faults []strike) error {
	c := d.c
	kept, err := d.sealed(ctx)
	if err != nil {
		return err
	}
	if err := c.fleet.restartKeysvc(ctx, configPath(c.Dir)); err != nil {
		return err
	}
	begin := time.Now()
	fmt.Fprintf(c.Log, "scopes %v allowed at message %d\n", d.scopes, c.sealed.now())
	d.kept, d.lastSeen = kept.denied, begin
	for i, fault := range faults {
		p, partition, err := d.releasing(ctx)
		if err != nil {
			return err
		}
		if p == nil {
			if p, err = c.victim(ctx); err != nil { // all is released, the rest strikes nevertheless
				return err
			}
		}
		if err := fault(ctx, p, partition, true); err != nil {
			return fmt.Errorf("fault %d of %d: %w", i+1, len(faults), err)
		}
	}
	for {
		p, _, err := d.releasing(ctx)
		if err != nil {
			return err
		}
		if p == nil {
			break
		}
	}
	took := time.Since(begin)
	d.r.DrainSeconds = max(d.r.DrainSeconds, took.Seconds())
	fmt.Fprintf(c.Log, "everything held was released after %v\n", took.Round(time.Millisecond))
	return nil
}

// holding waits for a gateway that holds messages of a denied scope.
func (d *drill) holding(ctx context.Context) (*process, int, error) {
	why := errors.New("nothing is held")
	for end := time.Now().Add(d.period + chaosPatience); time.Now().Before(end); {
		h, err := d.held(ctx)
		if err == nil && len(h.denied) > 0 {
			var by map[int]*process
			if by, err = d.c.fleet.byPartition(ctx); err == nil {
				partitions := h.partitions()
				partition := partitions[d.c.random.IntN(len(partitions))]
				if p := by[partition]; p != nil {
					return p, partition, nil
				}
				err = fmt.Errorf("nobody holds the claim of partition %d", partition)
			}
		}
		if err != nil {
			why = err
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return nil, 0, err
		}
	}
	return nil, 0, fmt.Errorf("no gateway held messages of a denied scope: %w\n%s", why, d.c.fleet.tails())
}

// releasing waits until a message that was held has just been published into the
// sealed stream, and mostly not long after that. It returns the gateway at work;
// nil when nothing is held any more.
func (d *drill) releasing(ctx context.Context) (*process, int, error) {
	c := d.c
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	select {
	case <-d.released: // of long ago
	default:
	}
	by := map[int]*process{}
	for {
		select {
		case partition := <-d.released:
			d.lastSeen = time.Now()
			p := by[partition]
			if p == nil || !p.alive() {
				continue
			}
			var wait time.Duration
			switch c.random.IntN(5) {
			case 0:
				wait = time.Duration(c.random.Int64N(int64(3 * time.Millisecond)))
			case 1:
				wait = time.Duration(c.random.Int64N(int64(50 * time.Millisecond)))
			}
			return p, partition, pauseFor(ctx, wait)
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-tick.C:
		}
		now, err := c.fleet.byPartition(ctx)
		if err == nil {
			by = now
		}
		h, err := d.held(ctx)
		if err == nil && h.total == 0 {
			return nil, 0, nil
		}
		d.r.HeldMax = max(d.r.HeldMax, h.total)
		// A refused scope's key is asked for every 30 seconds at least.
		if time.Since(d.lastSeen) > 2*chaosPatience {
			return nil, 0, fmt.Errorf("nothing was released for %v, %d messages are held (%v)\n%s", 2*chaosPatience, h.total, err, c.fleet.tails())
		}
	}
}

// see is told of each message of a denied scope on its way into the sealed stream.
func (d *drill) see(m *nats.Msg) {
	partition, _, ok := topicOf(m.Subject)
	if !ok || !isReleased(m) {
		return
	}
	select {
	case d.released <- partition:
	default:
	}
}
