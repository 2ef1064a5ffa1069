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

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/checkpoint"
)

// ChaosConfig says what [Chaos] does.
type ChaosConfig struct {
	// Command starts keyweir: the program and what comes before its subcommand.
	// Required.
	Command []string
	// Messages are published in all, over Subjects. 0: 60,000, and 32 or three for
	// each of the scopes. With Deny they are as many as Rate makes of the time that
	// it takes, and Messages must be 0.
	Messages, Subjects int
	// Scopes are what the subjects share data keys by. 0: one for each subject.
	Scopes int
	// Deny is how many scopes the key service refuses for DenyFor, drawn by the
	// seed, while the publisher goes on. The route holds what it cannot seal, and
	// releases it afterwards; kills strike during both. Needs at least two kills
	// and an engine that holds. 0: none, and 5 minutes.
	Deny    int
	DenyFor time.Duration
	// Rate is how many messages are published per second. 0: as many as the relay
	// takes, with Deny 300.
	Rate int
	// Kills are kill -9 of a gateway that works, Zombies are SIGSTOP of one until
	// another one took over, and SIGCONT. 0: none.
	Kills, Zombies int
	// ServerKills are kill -9 of a nats-server, which is started again on the same
	// port and store: the only one, or the leader of one of the streams. 0: none.
	ServerKills int
	// Servers are 1, which syncs every write if it is to be killed, or a cluster of
	// 3 with three replicas of everything. 0: 1.
	Servers int
	// Engine is the route's. Empty: auto.
	Engine string
	// Partitions are the route's, each with a sealed stream, shared by the two
	// gateways. 0: 1.
	Partitions int
	// Shared makes the partitions write to one sealed stream.
	Shared bool
	// NoPauses publishes steadily. False: a part of the messages comes in bursts
	// with pauses between them.
	NoPauses bool
	// Seed decides what the faults hit and when, and how is published. 0: a random
	// one; it is in the report.
	Seed uint64
	// Dir is for stores, configuration and logs. Empty: a temporary directory that
	// is removed unless something went wrong.
	Dir string
	// Log is told of every fault. Nil: nobody is.
	Log io.Writer
	// Progress is told how many messages are sealed. Optional.
	Progress func(sealed int64)
}

// ChaosReport is what came of it. The first group should be 0.
type ChaosReport struct {
	Lost          int `json:"lost"`
	Duplicated    int `json:"duplicated"`
	OutOfOrder    int `json:"out_of_order"`
	Undecryptable int `json:"undecryptable"`
	Mismatched    int `json:"mismatched"`   // opened, but not what was published, or not at its source sequence
	BrokenLinks   int `json:"broken_links"` // messages that do not name their predecessor on the chain
	Unreleased    int `json:"unreleased"`   // plaintext left in the source stream in the end

	Messages    int    `json:"messages"`
	Subjects    int    `json:"subjects"`
	Scopes      int    `json:"scopes"`
	Servers     int    `json:"servers"`
	Engine      string `json:"engine"` // as set
	Partitions  int    `json:"partitions"`
	Shared      bool   `json:"shared"`
	Kills       int    `json:"kills"`
	Zombies     int    `json:"zombies"`
	ServerKills int    `json:"server_kills"`
	Faults      int    `json:"faults"`
	Pauses      int    `json:"pauses"` // of the publisher
	Seed        uint64 `json:"seed"`

	Republished      int `json:"republished"`       // by the publisher, for want of an acknowledgement
	SourceDuplicated int `json:"source_duplicated"` // the source stream took twice, and the sealed stream holds twice

	*Denial // nil: no scope was denied

	// TakeoverSeconds is the longest time from the kill of a gateway until all its
	// claims were taken by others.
	TakeoverSeconds   float64 `json:"takeover_seconds"`
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

	// chaosQuiet is how long nothing must move, when all is published, before the
	// rest counts as lost: longer than a gateway needs to notice that it is cut off.
	chaosQuiet = 30 * time.Second
)

// Chaos runs nats-servers, a key service and two gateways as real processes,
// publishes, kills and freezes them, and verifies the sealed stream in the end
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
			} else {
				fmt.Fprintf(cfg.Log, "stores and logs are in %s\n", cfg.Dir)
			}
		}()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	c := &chaos{ChaosConfig: cfg, random: rand.New(rand.NewPCG(cfg.Seed, cfg.Seed)), report: &ChaosReport{
		Subjects: cfg.Subjects, Scopes: cfg.Scopes, Kills: cfg.Kills, Zombies: cfg.Zombies, ServerKills: cfg.ServerKills,
		Servers: cfg.Servers, Engine: cfg.Engine, Partitions: cfg.Partitions, Shared: cfg.Shared, Faults: cfg.Kills + cfg.Zombies + cfg.ServerKills, Seed: cfg.Seed,
	}}
	defer c.close()
	fmt.Fprintf(cfg.Log, "seed %d\n", cfg.Seed)
	if err := c.start(ctx); err != nil {
		return nil, fmt.Errorf("starting: %w", err)
	}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("%w (seed %d)", err, cfg.Seed)
	}
	return c.report, nil
}

func (c *ChaosConfig) fill() error {
	if c.Subjects == 0 {
		c.Subjects = 32
		if c.Scopes > 0 {
			c.Subjects = 3 * c.Scopes
		}
	}
	if c.Scopes == 0 {
		c.Scopes = c.Subjects
	}
	if c.Deny == 0 && c.Messages == 0 {
		c.Messages = 60_000
	}
	if c.Deny > 0 && c.DenyFor == 0 {
		c.DenyFor = 5 * time.Minute
	}
	if c.Deny > 0 && c.Rate == 0 {
		c.Rate = 300
	}
	if c.Servers == 0 {
		c.Servers = 1
	}
	if c.Partitions == 0 {
		c.Partitions = 1
	}
	if c.Engine == "" {
		c.Engine = gateway.EngineAuto.String()
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint64N(1 << 52) // exact in every JSON reader
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	switch {
	case len(c.Command) == 0:
		return errors.New("preparing chaos: no command")
	case c.Messages < 0 || c.Subjects < 0 || c.Kills < 0 || c.Zombies < 0 || c.ServerKills < 0 || c.Partitions < 0:
		return errors.New("preparing chaos: negative number")
	case c.Servers != 1 && c.Servers != 3:
		return fmt.Errorf("preparing chaos: %d servers, want 1 or 3", c.Servers)
	case c.Shared && c.Partitions < 2:
		return errors.New("preparing chaos: a shared sealed stream needs partitions")
	case c.Shared && c.Deny > 0:
		return errors.New("preparing chaos: a shared sealed stream does not go together with denial")
	case c.Scopes < 0 || c.Deny < 0 || c.DenyFor < 0 || c.Rate < 0:
		return errors.New("preparing chaos: negative number")
	case c.Subjects < c.Partitions || c.Subjects < c.Scopes:
		return errors.New("preparing chaos: fewer subjects than partitions or scopes")
	case c.Deny > 0 && c.Deny >= c.Scopes:
		return errors.New("preparing chaos: the scopes that are denied leave no others")
	case c.Deny > 0 && c.Messages != 0:
		return errors.New("preparing chaos: denial takes as many messages as come in its time")
	case c.Deny > 0 && c.Kills < 2:
		return errors.New("preparing chaos: denial needs two kills, one while messages are held and one while they are released")
	case c.Deny > 0 && c.Engine != gateway.EngineAuto.String() && c.Engine != gateway.EngineDurable.String():
		return fmt.Errorf("preparing chaos: a route with the engine %s cannot hold", c.Engine)
	case c.Zombies > 0 && !canFreeze:
		return errors.New("preparing chaos: this system cannot freeze a process")
	}
	if _, err := gateway.ParseEngine(c.Engine); err != nil {
		return fmt.Errorf("preparing chaos: %w", err)
	}
	return nil
}

// chaos is one run.
type chaos struct {
	ChaosConfig
	random    *rand.Rand // of the goroutine that injects
	report    *ChaosReport
	launcher  *launcher
	servers   *servers
	nc        *nats.Conn
	js        jetstream.JetStream
	fleet     *fleet
	publisher *publisher
	sealed    counter // sequences of the sealed streams, together
	allowed   counter // messages that may be published
	drill     *drill  // nil: no scope is denied
}

func (c *chaos) topics() topics {
	return topics{subjects: c.Subjects, scopes: c.Scopes, partitions: c.Partitions}
}

func (c *chaos) start(ctx context.Context) error {
	var err error
	c.launcher = newLauncher(c.Command, c.Dir)
	if c.servers, err = startServers(ctx, c.launcher, c.Servers, c.Servers == 1 && c.ServerKills > 0); err != nil {
		return err
	}
	if c.nc, err = connect(c.servers.url()); err != nil {
		return err
	}
	if c.js, err = jetstream.New(c.nc, jetstream.WithDefaultTimeout(2*time.Second)); err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	if err := createStream(ctx, c.js, jetstream.StreamConfig{
		Name: chaosSource, Subjects: []string{chaosPrefix + ">"}, Replicas: c.Servers, Duplicates: dedupWindow,
	}); err != nil {
		return err
	}
	p := plan{url: c.servers.url(), engine: c.Engine, replicas: c.Servers, topics: c.topics(), shared: c.Shared}
	if c.Deny > 0 {
		c.drill = newDrill(c)
		p.denied, p.period = c.drill.scopes, c.drill.period
	}
	if err := c.launcher.writeFiles(ctx, p); err != nil {
		return err
	}
	if c.publisher, err = newPublisher(c); err != nil {
		return err
	}
	c.fleet = newFleet(c.launcher, c.js, c.Partitions)
	return c.fleet.startAll(ctx, 2)
}

// connect opens a connection of the benchmark itself, which follows its servers
// quickly and sends nothing later than it was told to.
func connect(url string) (*nats.Conn, error) {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0), nats.ReconnectBufSize(-1))
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return nc, nil
}

// createStream tries until a cluster that has just started has its leader.
func createStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	for end := time.Now().Add(chaosPatience); ; {
		_, err := js.CreateStream(ctx, cfg)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) || cfg.Replicas <= 1 {
			return fmt.Errorf("creating stream %s: %w", cfg.Name, err)
		}
		if err := pauseFor(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func (c *chaos) close() {
	if c.fleet != nil {
		c.fleet.killAll()
	}
	if c.nc != nil {
		c.nc.Close()
	}
	if c.servers != nil {
		c.servers.close()
	}
}

func (c *chaos) run(ctx context.Context) error {
	begin := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	g.Go(func() error { return c.watch(gctx, done) })
	g.Go(func() error {
		defer close(done)
		work, wctx := errgroup.WithContext(gctx)
		work.Go(func() error { return c.publisher.run(wctx) })
		if c.drill != nil {
			work.Go(func() error { return c.drill.run(wctx) })
		} else {
			work.Go(func() error { return c.inject(wctx) })
		}
		if err := work.Wait(); err != nil {
			return err
		}
		return c.settle(gctx)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	c.report.Seconds = time.Since(begin).Seconds()
	c.report.Messages = len(c.publisher.acked)
	c.report.MessagesPerSecond = float64(c.report.Messages) / c.report.Seconds
	c.report.Republished, c.report.Pauses = c.publisher.retries, c.publisher.pauses
	// Verified while the key service still runs, after every gateway, woken
	// zombies too, had its chance to do harm.
	if err := c.fleet.stopGateways(ctx); err != nil {
		return err
	}
	return c.verify(ctx)
}

// settle waits until all is sealed and released, or nothing happens any more: what
// is missing then is lost.
func (c *chaos) settle(ctx context.Context) error {
	moved, at, left := time.Now(), int64(-1), uint64(0)
	for time.Since(moved) < chaosQuiet {
		if n := c.sealed.now(); n != at {
			moved, at = time.Now(), n
		}
		s, err := c.js.Stream(ctx, chaosSource)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			state := s.CachedInfo().State
			if state.Msgs == 0 && at >= int64(state.LastSeq) {
				return nil
			}
			if state.Msgs != left {
				moved, left = time.Now(), state.Msgs
			}
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.Log, "nothing moved for %v: %d sealed, %d left in the source stream\n", chaosQuiet, at, left)
	return nil
}

// watch follows the sealed stream, and gives up when nothing moves or a process
// ended by itself.
func (c *chaos) watch(ctx context.Context, done <-chan struct{}) error {
	tick := time.NewTicker(min(time.Duration(c.Partitions)*10*time.Millisecond, 50*time.Millisecond))
	defer tick.Stop()
	moved := time.Now()
	each := make([]int64, c.Partitions)
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case p := <-c.launcher.died:
			return fmt.Errorf("%s ended by itself: %w\n%s", p.name, p.err, p.tail())
		case <-tick.C:
		}
		var err error
		now := int64(0)
		for i := range each {
			var s jetstream.Stream
			if c.Shared {
				if i == 0 {
					each[0], err = c.countShared(ctx, each[0])
				}
			} else if s, err = c.js.Stream(ctx, sealedStream(i, c.Partitions)); err == nil { // it is not while a server is away
				each[i] = int64(s.CachedInfo().State.LastSeq)
			}
			now += each[i]
		}
		if c.sealed.set(now) {
			moved = time.Now()
			if c.Progress != nil {
				c.Progress(now)
			}
		} else if time.Since(moved) > chaosPatience {
			return fmt.Errorf("nothing was sealed for %v after message %d (%v)\n%s", chaosPatience, now, err, c.fleet.tails())
		}
	}
}

// countShared counts the messages of a shared sealed stream, which has checkpoints
// besides; without an answer it returns what it was given.
func (c *chaos) countShared(ctx context.Context, before int64) (int64, error) {
	s, err := c.js.Stream(ctx, chaosSealed)
	if err != nil {
		return before, err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(checkpoint.Pattern(chaosSealed)))
	if err != nil {
		return before, err
	}
	return int64(info.State.Msgs) - int64(len(info.State.Subjects)), nil
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
