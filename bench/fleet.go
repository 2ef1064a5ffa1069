package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
)

// fleet is a key service and gateways, each a process.
type fleet struct {
	*launcher
	js     jetstream.JetStream
	claims int // one for each partition

	mu       sync.Mutex
	keysvc   *process
	gateways []*process
	started  int
	restarts int // of the key service
}

func newFleet(l *launcher, js jetstream.JetStream, claims int) *fleet {
	return &fleet{launcher: l, js: js, claims: claims}
}

// startAll starts the key service, and n gateways once it answers.
func (f *fleet) startAll(ctx context.Context, n int) error {
	p, err := f.start("keysvc", "keysvc", "--config", configPath(f.dir))
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.keysvc = p
	f.mu.Unlock()
	if err := p.logged(ctx, "key service started"); err != nil {
		return err
	}
	for range n {
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
	p, err := f.start(name, "gateway", "--config", configPath(f.dir), "--instance", name)
	if err != nil {
		return err
	}
	f.gateways = append(f.gateways, p)
	return nil
}

// working waits until living gateways hold all claims, and returns them. Errors of a server
// that is away for the moment are waited out.
func (f *fleet) working(ctx context.Context) ([]*process, error) {
	for end := time.Now().Add(chaosPatience); ; {
		ps, err := f.holders(ctx)
		if err == nil && ps != nil {
			return ps, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("not every claim was taken within %v (%v)\n%s", chaosPatience, err, f.tails())
		}
		if err := pauseFor(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// restartKeysvc ends the key service, and returns when the next one answers, which
// runs by another configuration.
func (f *fleet) restartKeysvc(ctx context.Context, config string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.keysvc.stop(ctx); err != nil {
		return err
	}
	f.restarts++
	p, err := f.start(fmt.Sprintf("keysvc-%03d", f.restarts), "keysvc", "--config", config)
	if err != nil {
		return err
	}
	f.keysvc = p
	return p.logged(ctx, "key service started")
}

// holders returns the living gateways that hold claims, none twice; nil if there is
// a claim that none of them holds.
func (f *fleet) holders(ctx context.Context) ([]*process, error) {
	by, err := f.byPartition(ctx)
	if err != nil || len(by) < f.claims {
		return nil, err
	}
	var out []*process
	for i := range f.claims {
		if p := by[i]; !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// byPartition returns the living gateway that holds the claim of each partition, as
// far as there is one.
func (f *fleet) byPartition(ctx context.Context) (map[int]*process, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	kv, err := f.js.KeyValue(ctx, gateway.ClaimsBucket)
	if err != nil {
		return nil, fmt.Errorf("reading claims: %w", err)
	}
	keys, err := kv.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading claims: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[int]*process)
	for _, key := range keys {
		if !strings.HasPrefix(key, chaosSealed) { // instances have entries too
			continue
		}
		partition, err := strconv.Atoi(key[strings.LastIndexByte(key, '.')+1:])
		if err != nil || partition < 0 || partition >= f.claims {
			return nil, fmt.Errorf("reading claims: %q is none of a partition", key)
		}
		e, err := kv.Get(ctx, key)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading claims: %w", err)
		}
		for _, p := range f.gateways {
			if p.alive() && strings.Contains(string(e.Value()), p.name) {
				out[partition] = p
			}
		}
	}
	return out, nil
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
