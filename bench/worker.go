package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/pprof"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/embednats"
)

// workerOrder is one line that a worker process reads from its standard input.
// Each is answered by a line.
type workerOrder struct {
	Op     string       `json:"op"`
	Server *serverOrder `json:"server,omitempty"` // start: run this server
	Relay  *relayOrder  `json:"relay,omitempty"`  // relay: begin
	File   string       `json:"file,omitempty"`   // profile: where it goes; "" ends it
}

const (
	opStart   = "start"   // runs a server, answered when it accepts connections
	opUsage   = "usage"   // answered with what the process has used so far
	opRelay   = "relay"   // begins to relay
	opStop    = "stop"    // ends it, answered with the engine that was used
	opProfile = "profile" // begins or ends a profile of the process's CPU time
)

// serverOrder is a nats-server on the loopback interface.
type serverOrder struct {
	Name, Listen, Store string
	SyncAlways          bool
	Config              string // nats-server configuration, for a cluster
}

// workerAnswer is what comes back.
type workerAnswer struct {
	Error  string        `json:"error,omitempty"`
	CPU    time.Duration `json:"cpu,omitempty"`
	Engine string        `json:"engine,omitempty"`
}

// Worker is the other end of the processes that [Chaos], [Relay] and [Soak] start:
// it runs the server, the relay or both that the lines of in ask for, and ends
// when in does. What it relays is limited to streams of the benchmark.
func Worker(ctx context.Context, in io.Reader, out io.Writer, log *slog.Logger) (err error) {
	w := &benchWorker{log: log}
	defer func() { err = errors.Join(err, w.close()) }()
	// A signal is meant for whoever started this process, and closes in.
	ctx = context.WithoutCancel(ctx)
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o workerOrder
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading orders: %w", err)
		}
		a, err := w.do(ctx, &o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
	}
}

// benchWorker is what one worker process runs.
type benchWorker struct {
	log            *slog.Logger
	server         *embednats.Server
	source, sealed *nats.Conn
	relay          *workerRelay
	profile        *os.File // being written; nil: none
}

func (w *benchWorker) do(ctx context.Context, o *workerOrder) (a workerAnswer, err error) {
	switch o.Op {
	case opStart:
		return a, w.start(o.Server)
	case opUsage:
		a.CPU, err = cpuTime()
		return a, err
	case opRelay:
		if o.Relay == nil || w.relay != nil {
			return a, errors.New("relaying: nothing to do, or at work already")
		}
		w.relay, err = startRelay(ctx, o.Relay, w)
		return a, err
	case opProfile:
		return a, w.profileTo(o.File)
	case opStop:
		if w.relay == nil {
			return a, errors.New("stopping: no relay")
		}
		a.Engine, err = w.relay.stop()
		w.relay = nil
		return a, err
	}
	return a, fmt.Errorf("unknown order %q", o.Op)
}

// profileTo ends the profile that is being written, if any, and begins one in file.
func (w *benchWorker) profileTo(file string) error {
	if w.profile != nil {
		pprof.StopCPUProfile()
		err := w.profile.Close()
		w.profile = nil
		if err != nil {
			return fmt.Errorf("ending profile: %w", err)
		}
	}
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("creating profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return errors.Join(fmt.Errorf("beginning profile: %w", err), f.Close())
	}
	w.profile = f
	return nil
}

// start runs the server.
func (w *benchWorker) start(s *serverOrder) (err error) {
	if s == nil || w.server != nil {
		return errors.New("starting: no server, or one already")
	}
	w.server, err = embednats.Start(embednats.Options{
		Name: s.Name, Listen: s.Listen, StoreDir: s.Store, SyncAlways: s.SyncAlways, Config: s.Config, Logger: w.log,
	})
	return err
}

// connect opens the relay's two connections, in process if the server is here.
func (w *benchWorker) connect(url string) (err error) {
	for _, nc := range []**nats.Conn{&w.source, &w.sealed} {
		if *nc != nil {
			continue
		}
		if url == "" && w.server != nil {
			*nc, err = w.server.Connect(nats.MaxReconnects(-1))
		} else {
			*nc, err = nats.Connect(url, nats.MaxReconnects(-1))
		}
		if err != nil {
			return fmt.Errorf("connecting: %w", err)
		}
	}
	return nil
}

func (w *benchWorker) close() error {
	errs := []error{w.profileTo("")}
	if w.relay != nil {
		_, err := w.relay.stop()
		errs = append(errs, err)
	}
	for _, nc := range []*nats.Conn{w.source, w.sealed} {
		if nc != nil {
			nc.Close()
		}
	}
	if w.server != nil {
		errs = append(errs, w.server.Shutdown(context.Background()))
	}
	return errors.Join(errs...)
}
