package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
)

// fleet is a key service and two gateways, each a process.
type fleet struct {
	cfg  *ChaosConfig
	js   jetstream.JetStream
	died chan *process // ended without being told to

	mu       sync.Mutex
	keysvc   *process
	gateways []*process
	started  int
}

func newFleet(cfg *ChaosConfig, js jetstream.JetStream) *fleet {
	return &fleet{cfg: cfg, js: js, died: make(chan *process, 1)}
}

// startAll starts the key service, and the gateways once it answers.
func (f *fleet) startAll(ctx context.Context) error {
	p, err := f.start("keysvc", "keysvc")
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.keysvc = p
	f.mu.Unlock()
	if err := p.logged(ctx, "key service started"); err != nil {
		return err
	}
	for range 2 {
		if err := f.startGateway(); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) startGateway() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started++
	name := fmt.Sprintf("gateway-%03d", f.started)
	p, err := f.start(name, "gateway", "--instance", name)
	if err != nil {
		return err
	}
	f.gateways = append(f.gateways, p)
	return nil
}

// start runs a subcommand, whose output goes to a file.
func (f *fleet) start(name, sub string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(f.cfg.Dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("creating log: %w", err)
	}
	defer func() { _ = log.Close() }() // the process has it
	argv := append(append(append([]string(nil), f.cfg.Command...), sub, "--config", configPath(f.cfg.Dir)), args...)
	p := &process{name: name, log: log.Name(), cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
		if !p.told() {
			select {
			case f.died <- p:
			default:
			}
		}
	}()
	return p, nil
}

// working waits until one of the gateways holds the claim, and returns it.
func (f *fleet) working(ctx context.Context) (*process, error) {
	for {
		p, err := f.holder(ctx)
		if p != nil || err != nil {
			return p, err
		}
		if err := pauseFor(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// holder finds the gateway that the claim names, nil if it is none of the living.
func (f *fleet) holder(ctx context.Context) (*process, error) {
	kv, err := f.js.KeyValue(ctx, gateway.ClaimsBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading claims: %w", err)
	}
	keys, err := kv.Keys(ctx)
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading claims: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range keys {
		e, err := kv.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading claims: %w", err)
		}
		for _, p := range f.gateways {
			if p.alive() && strings.Contains(string(e.Value()), p.name) {
				return p, nil
			}
		}
	}
	return nil, nil
}

// stopGateways asks all gateways to end, and wants them to end well.
func (f *fleet) stopGateways(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.gateways {
		if !p.alive() {
			continue
		}
		// A process that has only begun does not listen to signals yet.
		if err := p.logged(ctx, "gateway started"); err != nil {
			return err
		}
		if err := p.stop(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) killAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range append(f.gateways, f.keysvc) {
		if p != nil {
			p.kill()
		}
	}
}

func (f *fleet) tails() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, p := range append(f.gateways, f.keysvc) {
		if p.alive() {
			fmt.Fprintf(&b, "%s:\n%s\n", p.name, p.tail())
		}
	}
	return b.String()
}

// process is one running keyweir.
type process struct {
	name, log string
	cmd       *exec.Cmd
	done      chan struct{} // closed when it ended
	err       error         // set before done is closed

	mu    sync.Mutex
	asked bool // to end
}

func (p *process) told() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *process) tell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = true
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return !p.told()
	}
}

// kill is kill -9, and waits for the end.
func (p *process) kill() {
	p.tell()
	_ = p.cmd.Process.Kill() // it may be over
	<-p.done
}

// stop is an interrupt, and wants exit code 0.
func (p *process) stop(ctx context.Context) error {
	p.tell()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(chaosPatience):
		return fmt.Errorf("stopping %s: it goes on\n%s", p.name, p.tail())
	}
	if p.err != nil {
		return fmt.Errorf("stopping %s: %w\n%s", p.name, p.err, p.tail())
	}
	return nil
}

// logged waits until the log holds text.
func (p *process) logged(ctx context.Context, text string) error {
	for end := time.Now().Add(chaosPatience); ; {
		b, err := os.ReadFile(p.log)
		if err != nil {
			return fmt.Errorf("reading log: %w", err)
		}
		if bytes.Contains(b, []byte(text)) {
			return nil
		}
		if !p.alive() || time.Now().After(end) {
			return fmt.Errorf("%s did not start\n%s", p.name, p.tail())
		}
		if err := pauseFor(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// tail returns the end of the log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(b) > 4096 {
		b = b[len(b)-4096:]
	}
	return string(b)
}
