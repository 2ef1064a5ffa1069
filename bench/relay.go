package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/plainrelay"
)

// RelayConfig says what [Relay] measures.
type RelayConfig struct {
	// Command starts keyweir: the program and what comes before its subcommand.
	// Required.
	Command []string
	// Messages are relayed in each round, Size bytes of payload each. 0: 50,000 and
	// 1,024.
	Messages, Size int
	// Rounds is how often each relay takes its turn; one more is not counted. 0: 7.
	Rounds int
	// Memory stores all streams in memory, else on file.
	Memory bool
	// SyncAlways is the server's sync_interval: always; file storage only.
	SyncAlways bool
	// Engine publishes the relays' messages. Empty: auto.
	Engine string
	// Partitions are those of the relays, each with a copy of its own; the stream
	// source has as many. 0: 1; at most 16.
	Partitions int
	// Embedded runs the server in the gateway's process.
	Embedded bool
	// Rate is how many messages per second are published while the latency is
	// measured, over all three alike. 0: 5,000, or a quarter of what the slowest
	// relays if that is less: the publisher and the reader need their part too.
	Rate int
	// LatencyTime is how long, for each relay. 0: 5 s; negative: not at all.
	LatencyTime time.Duration
	// Profiles is a directory, made if it is not there, that gets a CPU profile of
	// each process for each round and way that counts: <way>-<process>-<round>.pprof.
	// Profiling costs a little itself. Empty: none.
	Profiles string
	// Progress is told how many of all parts are done. Optional.
	Progress func(done, of int)
}

// RelayReport compares three ways of copying one stream into another, on one
// machine, in turns.
type RelayReport struct {
	Messages   int    `json:"messages"` // in each round
	Size       int    `json:"size"`     // bytes of payload
	Rounds     int    `json:"rounds"`
	Storage    string `json:"storage"`
	SyncAlways bool   `json:"sync_always"`
	Engine     string `json:"engine"` // that was used
	Partitions int    `json:"partitions"`
	Embedded   bool   `json:"embedded"`

	Plain  RelayResult `json:"plain"`  // the gateway, its seal switched off
	Sealed RelayResult `json:"sealed"` // the gateway
	Source RelayResult `json:"source"` // the server itself: a stream source

	// SealedToPlain is how many messages per second the sealed relay has for one of
	// the plain one: the median of the rounds, and the quartiles.
	SealedToPlain         float64    `json:"sealed_to_plain"`
	SealedToPlainQuartile [2]float64 `json:"sealed_to_plain_quartiles"`
	// CPUToSource is the processor time of the sealed relay, server and gateway, for
	// one second of the stream source.
	CPUToSource float64 `json:"cpu_to_source"`
	// CPUToPlain is the same for one second of the plain relay.
	CPUToPlain float64 `json:"cpu_to_plain"`
	// LatencyRate is how many messages per second were published while latencies were
	// measured; 0: they were not.
	LatencyRate int `json:"latency_rate,omitempty"`
}

// RelayResult is one way.
type RelayResult struct {
	// MessagesPerSecond is the median of the rounds, from the first tenth of the
	// messages to the last message.
	MessagesPerSecond float64  `json:"messages_per_second"`
	CPU               CPUShare `json:"cpu_us_per_message"`
	// Latency is from when a message was due to be published to its arrival at a
	// reader of the copy.
	Latency *Latency `json:"latency_us,omitempty"`
}

// CPUShare is processor time, user and system, in microseconds.
type CPUShare struct {
	Server  float64 `json:"server"`
	Gateway float64 `json:"gateway"` // 0 for a stream source, and where the server is in the same process
	Total   float64 `json:"total"`
}

// relayWay is one of the three.
type relayWay int

const (
	wayPlain relayWay = iota
	waySealed
	waySource
	ways = 3
)

var wayNames = [ways]string{"plain", "sealed", "source"}

func (w relayWay) String() string { return wayNames[w] }

// Relay measures how fast and at which cost the gateway relays, beside the same
// gateway without sealing and the server's own stream source: all three copy the
// same messages, one after the other, round by round. The server and the gateway
// are processes of their own, unless Embedded says otherwise.
func Relay(ctx context.Context, cfg RelayConfig) (report *RelayReport, err error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	if cfg.Profiles != "" {
		if cfg.Profiles, err = filepath.Abs(cfg.Profiles); err == nil {
			err = os.MkdirAll(cfg.Profiles, 0o700)
		}
		if err != nil {
			return nil, fmt.Errorf("making directory: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "keyweir-relay-")
	if err != nil {
		return nil, fmt.Errorf("making directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &relayBench{RelayConfig: cfg, launcher: newLauncher(cfg.Command, dir)}
	defer b.close()
	if err := b.start(ctx); err != nil {
		return nil, fmt.Errorf("starting: %w", err)
	}
	return b.run(ctx)
}

func (c *RelayConfig) fill() error {
	for _, f := range []struct {
		v   *int
		def int
	}{{&c.Messages, 50_000}, {&c.Size, 1024}, {&c.Rounds, 7}, {&c.Partitions, 1}} {
		if *f.v < 0 {
			return errors.New("preparing relays: negative number")
		}
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	if c.LatencyTime == 0 {
		c.LatencyTime = 5 * time.Second
	}
	if c.Engine == "" {
		c.Engine = gateway.EngineAuto.String()
	}
	switch _, err := gateway.ParseEngine(c.Engine); {
	case err != nil:
		return fmt.Errorf("preparing relays: %w", err)
	case len(c.Command) == 0:
		return errors.New("preparing relays: no command")
	case c.Rate < 0:
		return errors.New("preparing relays: negative number")
	case c.Messages < 100 || c.Size > 900<<10:
		return errors.New("preparing relays: 100 messages at least, of 900 KiB at most")
	case c.Partitions > relaySubjects:
		return fmt.Errorf("preparing relays: %d partitions, at most %d", c.Partitions, relaySubjects)
	case c.Memory && c.SyncAlways:
		return errors.New("preparing relays: memory is not synced")
	}
	return nil
}

// relayBench is one run.
type relayBench struct {
	RelayConfig
	launcher *launcher
	server   *workerProcess
	gateway  *workerProcess // the same as server if embedded
	url      string
	nc       *nats.Conn
	js       jetstream.JetStream
	streams  int // made so far
	engine   string
	progress int
}

func (b *relayBench) start(ctx context.Context) error {
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	if b.server, err = b.launcher.startWorker("server"); err != nil {
		return err
	}
	listen := fmt.Sprintf("127.0.0.1:%d", ports[0])
	order := &serverOrder{Name: "bench", Listen: listen, Store: filepath.Join(b.launcher.dir, "nats"), SyncAlways: b.SyncAlways}
	if _, err := b.server.ask(ctx, &workerOrder{Op: opStart, Server: order}); err != nil {
		return err
	}
	if b.gateway = b.server; !b.Embedded {
		b.url = "nats://" + listen
		if b.gateway, err = b.launcher.startWorker("gateway"); err != nil {
			return err
		}
	}
	if b.nc, err = connect("nats://" + listen); err != nil {
		return err
	}
	if b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncMaxPending(2048)); err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	return nil
}

func (b *relayBench) close() {
	if b.nc != nil {
		b.nc.Close()
	}
	for _, w := range []*workerProcess{b.gateway, b.server} {
		if w != nil {
			w.drop()
		}
	}
}

// done counts the parts of the run: rounds, and latencies.
func (b *relayBench) done() {
	b.progress++
	if b.Progress != nil {
		of := 1 + ways*(b.Rounds+1)
		if b.LatencyTime > 0 {
			of += ways
		}
		b.Progress(b.progress, of)
	}
}

func (b *relayBench) run(ctx context.Context) (*RelayReport, error) {
	r := &RelayReport{
		Messages: b.Messages, Size: b.Size, Rounds: b.Rounds, Storage: "file", SyncAlways: b.SyncAlways,
		Partitions: b.Partitions, Embedded: b.Embedded,
	}
	if b.Memory {
		r.Storage = "memory"
	}
	if err := b.fillSource(ctx); err != nil {
		return nil, err
	}
	b.done()
	var all [ways][]turn
	for round := range b.Rounds + 1 {
		for i := range ways {
			way := relayWay((round + i) % ways)
			t, err := b.turn(ctx, way, round)
			if err != nil {
				return nil, fmt.Errorf("round %d, %v: %w", round, way, err)
			}
			if round > 0 { // the first one warms up
				all[way] = append(all[way], t)
			}
			b.done()
		}
	}
	results := [ways]*RelayResult{&r.Plain, &r.Sealed, &r.Source}
	slowest := 0.0
	for way, x := range results {
		x.MessagesPerSecond = median(all[way], func(t turn) float64 { return t.rate })
		x.CPU = CPUShare{
			Server:  mean(all[way], func(t turn) float64 { return t.server.Seconds() }) * 1e6 / float64(b.Messages),
			Gateway: mean(all[way], func(t turn) float64 { return t.gateway.Seconds() }) * 1e6 / float64(b.Messages),
		}
		x.CPU.Total = x.CPU.Server + x.CPU.Gateway
		if slowest == 0 || x.MessagesPerSecond < slowest {
			slowest = x.MessagesPerSecond
		}
	}
	var ratios []float64
	for i, t := range all[waySealed] {
		ratios = append(ratios, t.rate/all[wayPlain][i].rate)
	}
	slices.Sort(ratios)
	r.SealedToPlain = ratios[len(ratios)/2]
	r.SealedToPlainQuartile = [2]float64{ratios[len(ratios)/4], ratios[len(ratios)*3/4]}
	r.CPUToSource = r.Sealed.CPU.Total / r.Source.CPU.Total
	r.CPUToPlain = r.Sealed.CPU.Total / r.Plain.CPU.Total
	r.Engine = b.engine
	if b.LatencyTime < 0 {
		return r, nil
	}
	if r.LatencyRate = b.Rate; r.LatencyRate == 0 {
		r.LatencyRate = min(5000, max(100, int(slowest/4)))
	}
	for way, x := range results {
		var err error
		if x.Latency, err = b.latency(ctx, relayWay(way), r.LatencyRate); err != nil {
			return nil, fmt.Errorf("latency, %v: %w", relayWay(way), err)
		}
		b.done()
	}
	return r, nil
}

func jetstreamStorage(memory bool) jetstream.StorageType {
	if memory {
		return jetstream.MemoryStorage
	}
	return jetstream.FileStorage
}

func median[T any](of []T, f func(T) float64) float64 {
	v := make([]float64, len(of))
	for i, t := range of {
		v[i] = f(t)
	}
	slices.Sort(v)
	return v[len(v)/2]
}

func mean[T any](of []T, f func(T) float64) float64 {
	sum := 0.0
	for _, t := range of {
		sum += f(t)
	}
	return sum / float64(len(of))
}

// target names a new stream to copy to.
func (b *relayBench) target(way relayWay) string {
	b.streams++
	if way == wayPlain {
		return plainrelay.Stream(fmt.Sprint(b.streams))
	}
	return fmt.Sprintf("%sCOPY_%d", relayPrefix, b.streams)
}
