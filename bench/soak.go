package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/keyweir/keyweir/gateway"
)

// SoakConfig says what [Soak] does.
type SoakConfig struct {
	// Command starts keyweir: the program and what comes before its subcommand.
	// Required.
	Command []string
	// Time is how long messages are published at the rate. 0: 20 minutes.
	Time time.Duration
	// RatePercent is the rate, of the most that this machine sustains. 0: 70.
	RatePercent int
	// Trial is how long that is measured. 0: 15 s.
	Trial time.Duration
	// Size is the payload, in bytes, at least 16. 0: 1,024.
	Size int
	// Engine is the route's. Empty: auto.
	Engine string
	// Log is told of the rates. Nil: nobody is.
	Log io.Writer
	// Progress is told how many seconds are over. Optional.
	Progress func(seconds int64)
}

// SoakReport is how the processes fared.
type SoakReport struct {
	Seconds              float64 `json:"seconds"`
	RatePercent          int     `json:"rate_percent"`
	MaxMessagesPerSecond float64 `json:"max_messages_per_second"` // of the trial
	MessagesPerSecond    float64 `json:"messages_per_second"`     // published
	Messages             int64   `json:"messages"`                // acknowledged by the source stream
	Unsealed             int64   `json:"unsealed"`                // of these; should be 0
	MaxBehind            int64   `json:"max_behind"`              // messages that waited to be sealed at a time

	Processes []SoakProcess `json:"processes"`
}

// SoakProcess is one process. Start is the median of the second tenth of the time,
// when caches are filled, end of the last one.
type SoakProcess struct {
	Name             string       `json:"name"`
	RSSStart         int64        `json:"rss_start_bytes"`
	RSSEnd           int64        `json:"rss_end_bytes"`
	RSSGrowthPercent float64      `json:"rss_growth_percent"`
	GoroutinesStart  int          `json:"goroutines_start"`
	GoroutinesEnd    int          `json:"goroutines_end"`
	DescriptorsStart int          `json:"descriptors_start"`
	DescriptorsEnd   int          `json:"descriptors_end"`
	CPUPercent       float64      `json:"cpu_percent"` // of one core, over the whole time
	Samples          []SoakSample `json:"samples"`
}

// SoakSample is a process at one time.
type SoakSample struct {
	Seconds     float64 `json:"seconds"`
	RSS         int64   `json:"rss_bytes"`
	Goroutines  int     `json:"goroutines"`
	Descriptors int     `json:"descriptors"`
	cpu         float64
}

var soakTopics = topics{subjects: soakSubjects, scopes: soakSubjects, partitions: 1}

// soakSubjects is how many subjects, and scopes, the messages have; soakBytes
// bounds the sealed stream, whose oldest messages go.
const (
	soakSubjects = 64
	soakBytes    = "256MiB"
	// soakPeriod is how long a data key seals, half as long as it is kept. With the
	// hours of the default, caches would fill for as long as a soak takes, and hide
	// what leaks.
	soakPeriod  = time.Minute
	soakAhead   = 20_000
	soakSamples = 120
)

// Soak runs a nats-server, a key service and two gateways as real processes, finds
// out how many messages per second they sustain, publishes at a part of that rate
// for a long time, and follows memory, goroutines and descriptors of what is ours.
func Soak(ctx context.Context, cfg SoakConfig) (report *SoakReport, err error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "keyweir-soak-")
	if err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &soak{SoakConfig: cfg, launcher: newLauncher(cfg.Command, dir)}
	defer s.close()
	if err := s.start(ctx); err != nil {
		return nil, fmt.Errorf("starting: %w", err)
	}
	return s.run(ctx)
}

func (c *SoakConfig) fill() error {
	switch {
	case len(c.Command) == 0:
		return errors.New("preparing soak: no command")
	case c.Time < 0 || c.Trial < 0 || c.RatePercent < 0 || c.RatePercent > 100 || c.Size < 0 || c.Size > 900<<10:
		return errors.New("preparing soak: negative number, more than 100 percent or than 900 KiB")
	}
	if c.Time == 0 {
		c.Time = 20 * time.Minute
	}
	if c.RatePercent == 0 {
		c.RatePercent = 70
	}
	if c.Trial == 0 {
		c.Trial = 15 * time.Second
	}
	if c.Size == 0 {
		c.Size = 1024
	}
	if c.Engine == "" {
		c.Engine = gateway.EngineAuto.String()
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	_, err := gateway.ParseEngine(c.Engine)
	return err
}

// soak is one run.
type soak struct {
	SoakConfig
	launcher *launcher
	servers  *servers
	nc       *nats.Conn
	js       jetstream.JetStream
	fleet    *fleet

	sent, acked atomic.Int64
	failed      chan error // capacity 1: a publish was refused
	sealed      counter    // sequences of the sealed stream
}

func (s *soak) start(ctx context.Context) (err error) {
	if s.servers, err = startServers(ctx, s.launcher, 1, false); err != nil {
		return err
	}
	if s.nc, err = connect(s.servers.url()); err != nil {
		return err
	}
	s.failed = make(chan error, 1)
	if s.js, err = jetstream.New(s.nc, jetstream.WithPublishAsyncMaxPending(4096), jetstream.WithPublishAsyncErrHandler(
		func(_ jetstream.JetStream, _ *nats.Msg, err error) {
			select {
			case s.failed <- err:
			default:
			}
		}), jetstream.WithPublishAsyncAckHandler(func(jetstream.JetStream, *nats.Msg, *jetstream.PubAck) { s.acked.Add(1) })); err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	if err := createStream(ctx, s.js, jetstream.StreamConfig{
		Name: chaosSource, Subjects: []string{chaosPrefix + ">"}, Storage: jetstream.MemoryStorage, Duplicates: time.Second,
	}); err != nil {
		return err
	}
	if err := s.launcher.writeFiles(ctx, plan{url: s.servers.url(), engine: s.Engine, replicas: 1, topics: soakTopics, maxBytes: soakBytes, period: soakPeriod, stale: 2 * soakPeriod}); err != nil {
		return err
	}
	s.fleet = newFleet(s.launcher, s.js, 1)
	if err := s.fleet.startAll(ctx, 2); err != nil {
		return err
	}
	_, err = s.fleet.working(ctx)
	return err
}

func (s *soak) close() {
	if s.fleet != nil {
		s.fleet.killAll()
	}
	if s.nc != nil {
		s.nc.Close()
	}
	if s.servers != nil {
		s.servers.close()
	}
}

func (s *soak) run(ctx context.Context) (*SoakReport, error) {
	g, gctx := errgroup.WithContext(ctx)
	wctx, cancel := context.WithCancel(gctx)
	defer cancel()
	g.Go(func() error { return s.watch(wctx) })
	r := &SoakReport{RatePercent: s.RatePercent}
	g.Go(func() error {
		defer cancel() // the watcher's work is done
		most, err := s.trial(gctx)
		if err != nil {
			return fmt.Errorf("finding the rate: %w", err)
		}
		r.MaxMessagesPerSecond = most
		rate := most * float64(s.RatePercent) / 100
		fmt.Fprintf(s.Log, "%.0f messages per second at most, publishing %.0f for %v\n", most, rate, s.Time)
		return s.soak(gctx, r, rate)
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return r, nil
}

// watch follows the sealed stream, and ends the run when a process ended by itself.
func (s *soak) watch(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-s.launcher.died:
			return fmt.Errorf("%s ended by itself: %w\n%s", p.name, p.err, p.tail())
		case err := <-s.failed:
			return fmt.Errorf("publishing: %w", err)
		case <-tick.C:
		}
		if st, err := s.js.Stream(ctx, chaosSealed); err == nil {
			s.sealed.set(int64(st.CachedInfo().State.LastSeq))
		}
	}
}
