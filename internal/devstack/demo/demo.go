// Package demo shows the whole of Keyweir on real data and checks what it shows:
// it publishes the lines of a file, has the real gateway seal them, reads them
// back through the real library, and compares every byte.
//
//	result, err := demo.Run(ctx, demo.Config{Input: file, Field: "net"})
//
// Its memory does not grow with the input: lines are published only so far ahead
// of those read back, the plaintext stream is purged as it is sealed, what is
// expected is kept as hashes, and long inputs are published at a steady pace,
// because the server keeps in memory what it wrote lately. The throughput of a
// long run is therefore no measurement.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/keyweir/keyweir/internal/devstack"
	"github.com/keyweir/keyweir/keysvc"
)

const (
	sourceStream = "DEMO"
	sealedStream = "SEALED_DEMO"
	prefix       = "demo."

	defaultStall = 60 * time.Second

	// settle is how long a reader may be behind a gateway that has finished.
	settle = 10 * time.Second

	// A file store keeps what was written in memory for ten seconds. The pace
	// keeps that below some 110 MiB, whatever the input: the first paceBurst bytes
	// are as fast as they can be, what follows at paceRate per second.
	paceBurst   = 48 << 20
	paceRate    = 6 << 20
	sealedExtra = 512 // of a sealed message, about
)

// Config says what to show.
type Config struct {
	// Input has one JSON object per line. Required.
	Input io.Reader
	// Field is the field whose value becomes the subject, and the scope. Empty:
	// BuiltInField if the first line has it, else all lines share AllToken.
	Field string
	// Dir keeps the state; it must be empty or missing. Empty: a temporary one.
	Dir string
	// Logger gets what the parts log. Nil discards.
	Logger *slog.Logger
	// Progress is told how many messages were read back, now and then. Optional.
	Progress func(opened int64)
	// Stall is how long nothing may move before the run is given up. 0: 60 s.
	Stall time.Duration
}

// Result is what a run found.
type Result struct {
	Published  int64 `json:"published"`  // lines
	Sealed     int64 `json:"sealed"`     // messages in the sealed stream
	Opened     int64 `json:"opened"`     // messages read back
	Mismatched int64 `json:"mismatched"` // read back wrong, out of order, twice, or never
	// PlaintextHits counts sealed messages, and places in files of the state,
	// that hold a readable piece of payload.
	PlaintextHits  int64  `json:"plaintext_hits"`
	DataKeys       int    `json:"data_keys"` // different keys that messages are sealed under
	AuthorityCalls uint64 `json:"authority_calls"`
	// CacheHits is how often a key was needed, once for each message sealed and
	// once for each opened, without asking the authority.
	CacheHits int64 `json:"cache_hits"`
	// OverheadBytesAvg is what the stored message has more than the published
	// one: envelope and headers.
	OverheadBytesAvg  float64 `json:"overhead_bytes_avg"`
	Seconds           float64 `json:"seconds"` // from the first publish to the last message read back
	MessagesPerSecond float64 `json:"messages_per_second"`

	Subjects      int    `json:"-"`
	PayloadBytes  int64  `json:"-"`
	SearchedFiles int    `json:"-"`
	SearchedBytes int64  `json:"-"`
	Sample        Sample `json:"-"`
}

// Sample is one message before, sealed and after.
type Sample struct {
	Subject, SealedSubject string
	Before, Sealed, After  []byte
	Headers                nats.Header // of the sealed message, readable
}

// OK reports whether everything that was published came back, and nothing was readable.
func (r *Result) OK() bool {
	return r.Mismatched == 0 && r.PlaintextHits == 0 && r.Sealed == r.Published && r.Opened == r.Published
}

// Run shows and checks. The error says that it could not be carried through; what
// was found is in the Result.
func Run(ctx context.Context, c Config) (*Result, error) {
	stack, err := devstack.Start(ctx, devstack.Options{
		Dir: c.Dir, OwnLanding: true, MaxPayload: MaxLine,
		Source: sourceStream, Sealed: sealedStream, Subjects: []string{prefix + ">"}, SealedSubject: "sealed.>",
		Scopes: []keysvc.ScopeRule{{Match: prefix + "*", Scope: "{{wildcard(1)}}"}},
		Reuse:  time.Hour, Logger: c.Logger,
	})
	if err != nil {
		return nil, err
	}
	r := &run{Config: c, stack: stack, ledger: newLedger(), pieces: newPieces(), keys: map[keysvc.KeyID]struct{}{}, reading: make(chan struct{})}
	err = r.run(ctx)
	if c.Dir == "" && err == nil {
		err = r.search(stack.Dir()) // Close removes it
	}
	if cerr := stack.Close(context.WithoutCancel(ctx)); cerr != nil {
		err = errors.Join(err, fmt.Errorf("stopping: %w", cerr))
	}
	if c.Dir != "" && err == nil {
		err = r.search(c.Dir) // complete now
	}
	if err != nil {
		return nil, err
	}
	return &r.result, nil
}

// run is one run. Fields without a comment are set once or belong to the reader's
// goroutine.
type run struct {
	Config
	stack  *devstack.Stack
	ledger *ledger
	pieces *pieces
	keys   map[keysvc.KeyID]struct{}
	result Result

	published atomic.Int64 // acknowledged or on its way
	opened    atomic.Int64 // as result.Opened
	complete  atomic.Bool  // published is final
	reading   chan struct{}
	finish    func(bool)   // ends the reading if it is over, or in any case; set before reading is closed
	moved     atomic.Int64 // rises while anything moves
	first     atomic.Pointer[[]byte]
	subjects  atomic.Int64
	bytes     atomic.Int64
}

func (r *run) run(ctx context.Context) error {
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	done := make(chan struct{}) // the reader has read everything
	g.Go(func() error { return r.publish(ctx) })
	g.Go(func() error {
		defer close(done)
		return r.read(ctx)
	})
	g.Go(func() error { return r.watch(ctx, done) })
	if err := g.Wait(); err != nil {
		return err
	}
	res := &r.result
	res.Seconds = time.Since(begin).Seconds()
	res.Published = r.published.Load()
	res.Mismatched += int64(r.ledger.left())
	res.MessagesPerSecond = float64(res.Published) / res.Seconds
	res.DataKeys, res.Subjects, res.PayloadBytes = len(r.keys), int(r.subjects.Load()), r.bytes.Load()
	if res.Opened > 0 {
		res.OverheadBytesAvg /= float64(res.Opened)
	}
	res.Sample.Before = *r.first.Load()
	return r.account(context.WithoutCancel(ctx))
}

// account asks the parts what it took.
func (r *run) account(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status, err := r.stack.Status(ctx)
	if err != nil {
		return fmt.Errorf("asking the key service: %w", err)
	}
	r.result.AuthorityCalls = r.stack.AuthorityCalls()
	r.result.CacheHits = max(0, r.result.Sealed+r.result.Opened-int64(status.CacheMisses))
	return nil
}

// publish publishes every line, never more than the window ahead of the reader.
func (r *run) publish(ctx context.Context) error {
	nc, err := r.stack.ConnectLanding(nats.Name("keyweir demo publisher"))
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer nc.Close()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(aheadMessages), jetstream.WithPublishAsyncErrHandler(
		func(_ jetstream.JetStream, m *nats.Msg, err error) {
			fail(fmt.Errorf("publishing to %s: %w", m.Subject, err))
		}))
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	pace := rate.NewLimiter(paceRate, paceBurst)
	lines := readAhead(ctx, newLineReader(r.Input, r.Field))
	for {
		var l line
		var more bool
		select {
		case l, more = <-lines:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if !more {
			break
		}
		if l.err != nil {
			return l.err
		}
		subject := prefix + l.token
		if err := r.ledger.publish(ctx, subject, l.payload); err != nil {
			return err
		}
		if err := pace.WaitN(ctx, len(l.payload)+sealedExtra); err != nil {
			return context.Cause(ctx)
		}
		r.first.CompareAndSwap(nil, &l.payload)
		if _, err := js.PublishAsync(subject, l.payload); err != nil {
			return fmt.Errorf("publishing line %d: %w", l.n, err)
		}
		r.published.Add(1)
		r.bytes.Add(int64(len(l.payload)))
		r.subjects.Store(int64(l.subjects))
		r.moved.Add(1)
	}
	if r.published.Load() == 0 {
		return errors.New("the input has no line")
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.complete.Store(true)
	select {
	case <-r.reading:
		r.finish(false) // the reader may have got everything before
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// watch gives up when the gateway stops or nothing moves any more.
func (r *run) watch(ctx context.Context, done <-chan struct{}) error {
	stall := r.Stall
	if stall == 0 {
		stall = defaultStall
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last, since := int64(-1), time.Now()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.stack.Stopped():
			return fmt.Errorf("the gateway stopped: %w", r.stack.Err())
		case <-tick.C:
		}
		// An input may take its time; a message on its way may not.
		if now := r.moved.Load(); now != last || r.ledger.left() == 0 {
			last, since = now, time.Now()
			continue
		}
		quiet := time.Since(since)
		s := r.stack.Stats()
		switch {
		case quiet > settle && r.complete.Load() && s.Position >= uint64(r.published.Load()):
			// Everything is sealed, says the gateway: let the result tell what is missing.
			select {
			case <-r.reading:
				r.finish(true)
			default:
			}
		case quiet > stall:
			return fmt.Errorf("nothing moved for %v; %d published, %d opened; the gateway is %v at message %d, last error: %v",
				stall, r.published.Load(), r.opened.Load(), s.State, s.Position, s.LastError)
		}
	}
}

// search looks for payload in the files of the state.
func (r *run) search(dir string) error {
	hits, files, size, err := r.pieces.scanDir(dir)
	if err != nil {
		return err
	}
	r.result.PlaintextHits += int64(hits)
	r.result.SearchedFiles, r.result.SearchedBytes = files, size
	return nil
}
