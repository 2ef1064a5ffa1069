package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/keyweir/keyweir/internal/embednats"
)

// ChaosConfig says what [Chaos] does.
type ChaosConfig struct {
	// Command starts keyweir: the program and what comes before its subcommand.
	// Required.
	Command []string
	// Messages are published in all, over Subjects. 0: 60,000 and 32.
	Messages, Subjects int
	// Kills are kill -9 of the gateway that works, Zombies are SIGSTOP of it until
	// another one took over, and SIGCONT. 0: none.
	Kills, Zombies int
	// Seed decides what the faults hit and when. 0: a random one; it is in the report.
	Seed uint64
	// Dir is for stores, configuration and logs. Empty: a temporary directory that
	// is removed unless something went wrong.
	Dir string
	// Log is told of every fault. Nil: nobody is.
	Log io.Writer
	// Progress is told how many messages are sealed. Optional.
	Progress func(sealed int64)
}

// ChaosReport is what came of it. All but the figures in the last two groups
// should be 0.
type ChaosReport struct {
	Lost          int `json:"lost"`
	Duplicated    int `json:"duplicated"`
	OutOfOrder    int `json:"out_of_order"`
	Undecryptable int `json:"undecryptable"`
	Mismatched    int `json:"mismatched"`   // opened, but not what was published
	BrokenLinks   int `json:"broken_links"` // messages that do not name their predecessor on the chain
	Unreleased    int `json:"unreleased"`   // plaintext left in the source stream in the end

	Messages int    `json:"messages"`
	Subjects int    `json:"subjects"`
	Kills    int    `json:"kills"`
	Zombies  int    `json:"zombies"`
	Faults   int    `json:"faults"`
	Seed     uint64 `json:"seed"`

	Seconds           float64 `json:"seconds"`
	MessagesPerSecond float64 `json:"messages_per_second"`
}

// OK reports whether nothing was lost, doubled, reordered or damaged.
func (r *ChaosReport) OK() bool {
	return r.Lost == 0 && r.Duplicated == 0 && r.OutOfOrder == 0 && r.Undecryptable == 0 && r.Mismatched == 0 &&
		r.BrokenLinks == 0 && r.Unreleased == 0
}

const (
	chaosSource = "CHAOS"
	chaosSealed = "SEALED_CHAOS"
	chaosPrefix = "chaos."
	chaosRoute  = "chaos"

	// chaosAhead is how far the publisher may be ahead of the sealed stream at
	// most; see chaos.ahead.
	chaosAhead = 2000

	// chaosPatience is how long nothing may move.
	chaosPatience = 60 * time.Second
)

// Chaos runs a key service and two gateways as real processes, publishes, kills
// and freezes the gateway that works, and verifies the sealed stream in the end
// by reading all of it through package streams. An error says that the run could
// not be carried through; what it found is in the report.
func Chaos(ctx context.Context, cfg ChaosConfig) (report *ChaosReport, err error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	if cfg.Dir == "" {
		if cfg.Dir, err = os.MkdirTemp("", "keyweir-chaos-"); err != nil {
			return nil, fmt.Errorf("making directory: %w", err)
		}
		defer func() {
			if err == nil && report.OK() {
				err = os.RemoveAll(cfg.Dir)
			} else if err != nil {
				err = fmt.Errorf("%w (logs are in %s)", err, cfg.Dir)
			}
		}()
	}
	c := &chaos{ChaosConfig: cfg, random: rand.New(rand.NewPCG(cfg.Seed, cfg.Seed)), report: &ChaosReport{
		Messages: cfg.Messages, Subjects: cfg.Subjects, Kills: cfg.Kills, Zombies: cfg.Zombies,
		Faults: cfg.Kills + cfg.Zombies, Seed: cfg.Seed,
	}}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.start(ctx); err != nil {
		return nil, fmt.Errorf("starting: %w", err)
	}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return c.report, nil
}

func (c *ChaosConfig) fill() error {
	switch {
	case len(c.Command) == 0:
		return errors.New("preparing chaos: no command")
	case c.Messages < 0 || c.Subjects < 0 || c.Kills < 0 || c.Zombies < 0:
		return errors.New("preparing chaos: negative number")
	case c.Zombies > 0 && !canFreeze:
		return errors.New("preparing chaos: this system cannot freeze a process")
	}
	if c.Messages == 0 {
		c.Messages = 60_000
	}
	if c.Subjects == 0 {
		c.Subjects = 32
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint64N(1 << 52) // exact in every JSON reader
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	return nil
}

// chaos is one run.
type chaos struct {
	ChaosConfig
	random *rand.Rand // of the goroutine that injects
	report *ChaosReport
	server *embednats.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	fleet  *fleet
	sealed counter // sequences of the sealed stream
}

func (c *chaos) start(ctx context.Context) error {
	var err error
	if c.server, err = embednats.Start(embednats.Options{Name: "chaos", Listen: "127.0.0.1:0", StoreDir: c.Dir + "/nats"}); err != nil {
		return err
	}
	if c.nc, err = nats.Connect(c.server.ClientURL(), nats.MaxReconnects(-1)); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	if c.js, err = jetstream.New(c.nc, jetstream.WithPublishAsyncMaxPending(1024)); err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	if _, err := c.js.CreateStream(ctx, jetstream.StreamConfig{Name: chaosSource, Subjects: []string{chaosPrefix + ">"}}); err != nil {
		return fmt.Errorf("creating source stream: %w", err)
	}
	if err := writeChaosFiles(ctx, &c.ChaosConfig, c.server.ClientURL()); err != nil {
		return err
	}
	c.fleet = newFleet(&c.ChaosConfig, c.js)
	return c.fleet.startAll(ctx)
}

func (c *chaos) close() error {
	var errs []error
	if c.fleet != nil {
		c.fleet.killAll()
	}
	if c.nc != nil {
		c.nc.Close()
	}
	if c.server != nil {
		errs = append(errs, c.server.Shutdown(context.Background()))
	}
	return errors.Join(errs...)
}

func (c *chaos) run(ctx context.Context) error {
	begin := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	g.Go(func() error { return c.watch(gctx, done) })
	g.Go(func() error {
		defer close(done)
		work, wctx := errgroup.WithContext(gctx)
		work.Go(func() error { return c.publish(wctx) })
		work.Go(func() error { return c.inject(wctx) })
		if err := work.Wait(); err != nil {
			return err
		}
		return c.sealed.wait(gctx, int64(c.Messages))
	})
	if err := g.Wait(); err != nil {
		return err
	}
	c.report.Seconds = time.Since(begin).Seconds()
	c.report.MessagesPerSecond = float64(c.Messages) / c.report.Seconds
	// Verified while the key service still runs, after every gateway, woken
	// zombies too, had its chance to do harm.
	if err := c.fleet.stopGateways(ctx); err != nil {
		return err
	}
	return c.verify(ctx)
}

// ahead is how far the publisher may be ahead: less than from one fault to the
// next, so that each meets a relay at work.
func (c *chaos) ahead() int {
	return min(chaosAhead, max(64, c.Messages/(2*(c.report.Faults+1))))
}

// publish keeps ahead of the sealed stream, by a bounded number.
func (c *chaos) publish(ctx context.Context) error {
	failed := make(chan error, 1)
	js, err := jetstream.New(c.nc, jetstream.WithPublishAsyncMaxPending(1024), jetstream.WithPublishAsyncErrHandler(
		func(_ jetstream.JetStream, _ *nats.Msg, err error) {
			select {
			case failed <- err:
			default:
			}
		}))
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	ahead := c.ahead()
	for i := range c.Messages {
		if err := c.sealed.wait(ctx, int64(i-ahead)); err != nil {
			return err
		}
		subject, n := i%c.Subjects, i/c.Subjects
		if _, err := js.PublishAsync(chaosSubject(subject), chaosPayload(subject, n)); err != nil {
			return fmt.Errorf("publishing: %w", err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-failed:
		return fmt.Errorf("publishing: %w", err)
	default:
		return nil
	}
}

// inject spreads the faults, in random order, over the messages.
func (c *chaos) inject(ctx context.Context) error {
	faults := make([]func(context.Context) error, 0, c.report.Faults)
	for range c.Kills {
		faults = append(faults, c.kill)
	}
	for range c.Zombies {
		faults = append(faults, c.freeze)
	}
	c.random.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	step := float64(c.Messages) / float64(len(faults)+1)
	for i, fault := range faults {
		at := step * (float64(i) + 0.7 + 0.6*c.random.Float64())
		if err := c.sealed.wait(ctx, int64(at)); err != nil {
			return err
		}
		if err := fault(ctx); err != nil {
			return fmt.Errorf("fault %d of %d: %w", i+1, len(faults), err)
		}
	}
	return nil
}

// kill ends the gateway that works at once, and starts another one.
func (c *chaos) kill(ctx context.Context) error {
	p, err := c.fleet.working(ctx)
	if err != nil {
		return err
	}
	if err := pauseFor(ctx, time.Duration(c.random.Int64N(int64(20*time.Millisecond)))); err != nil {
		return err
	}
	at := c.sealed.now()
	p.kill()
	fmt.Fprintf(c.Log, "killed %s at message %d\n", p.name, at)
	return c.fleet.startGateway()
}

// freeze stops the gateway that works, as a hung host or a paused machine would,
// and wakes it when its successor is at work.
func (c *chaos) freeze(ctx context.Context) error {
	p, err := c.fleet.working(ctx)
	if err != nil {
		return err
	}
	if err := pauseFor(ctx, time.Duration(c.random.Int64N(int64(20*time.Millisecond)))); err != nil {
		return err
	}
	if err := p.freeze(); err != nil {
		return err
	}
	at := c.sealed.now()
	fmt.Fprintf(c.Log, "froze %s at message %d\n", p.name, at)
	next := p
	for next == p {
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return err
		}
		if next, err = c.fleet.working(ctx); err != nil {
			return err
		}
	}
	// What the frozen one had sent before may still be counted: go well beyond.
	if err := c.sealed.wait(ctx, min(c.sealed.now()+64, int64(c.Messages))); err != nil {
		return err
	}
	fmt.Fprintf(c.Log, "woke %s at message %d, while %s works\n", p.name, c.sealed.now(), next.name)
	return p.wake()
}

// watch follows the sealed stream, and gives up when nothing moves or a process
// ended by itself.
func (c *chaos) watch(ctx context.Context, done <-chan struct{}) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	moved := time.Now()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case p := <-c.fleet.died:
			return fmt.Errorf("%s ended by itself: %w\n%s", p.name, p.err, p.tail())
		case <-tick.C:
		}
		s, err := c.js.Stream(ctx, chaosSealed)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("watching the sealed stream: %w", err)
		}
		now := int64(s.CachedInfo().State.LastSeq)
		if c.sealed.set(now) {
			moved = time.Now()
			if c.Progress != nil {
				c.Progress(now)
			}
		} else if time.Since(moved) > chaosPatience {
			return fmt.Errorf("nothing was sealed for %v after message %d\n%s", chaosPatience, now, c.fleet.tails())
		}
	}
}

func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
