package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

const (
	serviceName   = "dev"
	gatewayName   = "gateway"
	readerName    = "reader"
	routeName     = "dev"
	authorityName = "local"
)

// Stack is a running stack. Its methods are safe for concurrent use.
type Stack struct {
	opts    Options
	dir     string
	log     *slog.Logger
	ids     *identities
	auth    *counted
	hub     *embednats.Server
	landing *embednats.Server // the hub, unless OwnLanding
	gateway *gateway.Gateway
	conn    *nats.Conn // to the hub, for Status and Opener

	stopGateway context.CancelFunc
	gatewayDone chan struct{}
	gatewayErr  error // set before gatewayDone is closed

	undo []func(context.Context) error // in the order of starting

	closeOnce sync.Once
	closeErr  error
}

// Start runs the stack and returns when messages can be published. ctx covers the
// start only.
func Start(ctx context.Context, o Options) (*Stack, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Stack{opts: o, log: o.logger()}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *Stack) start(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"directory", s.prepareDir},
		{"identities", s.loadIdentities},
		{"NATS", s.startServers},
		{"authority", s.openAuthority},
		{"key service", s.startKeyserver},
		{"gateway", s.startGateway},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("starting %s: %w", step.what, err)
		}
	}
	return nil
}

// onClose registers what undoes a step; Close runs it in reverse order.
func (s *Stack) onClose(f func(context.Context) error) { s.undo = append(s.undo, f) }

func (s *Stack) prepareDir(context.Context) error {
	if s.opts.Dir == "" {
		dir, err := os.MkdirTemp("", "keyweir-")
		if err != nil {
			return err
		}
		s.dir = dir
		s.onClose(func(context.Context) error { return os.RemoveAll(dir) })
		return nil
	}
	s.dir = s.opts.Dir
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if s.opts.KeepKeys {
		return os.MkdirAll(s.keyDir(), 0o700)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return &NotEmptyError{s.dir}
	}
	return nil
}

// NotEmptyError says that a directory has files that cannot be used: the keys
// they were sealed with were never written down.
type NotEmptyError struct{ Dir string }

func (e *NotEmptyError) Error() string { return fmt.Sprintf("directory %s is not empty", e.Dir) }

// Hint says what a user can do about it.
func (e *NotEmptyError) Hint() string {
	return "the keys of an earlier run were never written down; give a new directory"
}

func (s *Stack) keyDir() string { return filepath.Join(s.dir, "keys") }

func (s *Stack) loadIdentities(context.Context) (err error) {
	if s.opts.KeepKeys {
		s.ids, err = keptIdentities(s.keyDir())
	} else {
		s.ids, err = ephemeralIdentities()
	}
	return err
}

func (s *Stack) startServers(ctx context.Context) error {
	largest := s.opts.maxPayload()
	config := func(payload int) string {
		return fmt.Sprintf("max_payload: %d\nmax_pending: %d\n", payload, 64<<20+4*payload)
	}
	hub := largest
	if s.opts.OwnLanding {
		hub += 64 << 10 // what sealing adds, key record included
	}
	var err error
	s.hub, err = embednats.Start(embednats.Options{
		Name: "keyweir-dev-hub", Listen: s.opts.Listen, StoreDir: filepath.Join(s.dir, "nats"),
		Config: config(hub), Logger: s.log.With("server", "hub"),
	})
	if err != nil {
		return err
	}
	s.onClose(s.hub.Shutdown)
	s.landing = s.hub
	if s.opts.OwnLanding {
		s.landing, err = embednats.Start(embednats.Options{
			Name: "keyweir-dev-landing", Config: config(largest), Logger: s.log.With("server", "landing"),
		})
		if err != nil {
			return err
		}
		s.onClose(s.landing.Shutdown)
	}
	if s.conn, err = s.connect(s.hub, "devstack"); err != nil {
		return err
	}
	source, err := s.connect(s.landing, "devstack source")
	if err != nil {
		return err
	}
	defer source.Close()
	return createSource(ctx, source, &s.opts)
}

// connect makes an in-process connection that Close closes.
func (s *Stack) connect(to *embednats.Server, name string) (*nats.Conn, error) {
	nc, err := to.Connect(nats.Name("keyweir "+name), nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	s.onClose(func(context.Context) error { nc.Close(); return nil })
	return nc, nil
}

func (s *Stack) startGateway(ctx context.Context) error {
	source, err := s.connect(s.landing, "gateway source")
	if err != nil {
		return err
	}
	sealed, err := s.connect(s.hub, "gateway sealed")
	if err != nil {
		return err
	}
	keys, err := s.client(s.ids.gateway)
	if err != nil {
		return err
	}
	// The plaintext stream is a new one at every start, in memory.
	first := uint64(1)
	s.gateway, err = gateway.New(gateway.Config{
		Keys: keys, Logger: s.log.With("part", "gateway"), MeterProvider: s.opts.Meter,
		Routes: []gateway.Route{{
			Name: routeName,
			Source: gateway.Source{
				Conn: source, Stream: s.opts.Source, Subjects: s.opts.Subjects,
				AfterSeal: gateway.AfterSealPurge, Start: gateway.StartFirst(),
			},
			Sealed: gateway.Sealed{
				Conn: sealed, Stream: s.opts.Sealed, Subject: s.opts.SealedSubject,
				Create: &gateway.CreateSealed{},
				// The hub does not really sync always. What is here need not survive
				// a power failure, and the plaintext should go soon.
				SyncInterval: gateway.SyncAlways,
			},
			ResumeFrom: &first,
		}},
	})
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.Background())
	s.stopGateway, s.gatewayDone = cancel, make(chan struct{})
	go func() {
		defer close(s.gatewayDone)
		s.gatewayErr = s.gateway.Run(run)
	}()
	s.onClose(func(context.Context) error {
		cancel()
		<-s.gatewayDone
		if errors.Is(s.gatewayErr, context.Canceled) {
			return nil
		}
		return s.gatewayErr
	})
	return s.waitRunning(ctx)
}

// waitRunning waits until the route relays.
func (s *Stack) waitRunning(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.Stats().State == gateway.StateRunning {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.gatewayDone:
			return s.gatewayErr
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), s.Stats().LastError)
		}
	}
}

func (s *Stack) client(id keysvc.Identity) (*keysvc.Client, error) {
	return keysvc.NewClient(keysvc.ClientConfig{
		Conn: s.conn, Service: serviceName, Pins: []string{s.ids.service.Public()}, Identity: id,
	})
}

// Stats is what the gateway says of its route.
func (s *Stack) Stats() gateway.RouteStats { return s.gateway.Stats()[0] }

// Stopped is closed when the gateway ended, by itself or by Close; Err says why.
func (s *Stack) Stopped() <-chan struct{} { return s.gatewayDone }

// Err is why the gateway stopped; nil while it runs.
func (s *Stack) Err() error {
	select {
	case <-s.gatewayDone:
		return s.gatewayErr
	default:
		return nil
	}
}

// Status asks the key service about itself.
func (s *Stack) Status(ctx context.Context) (keysvc.Status, error) {
	c, err := s.client(s.ids.reader)
	if err != nil {
		return keysvc.Status{}, err
	}
	return c.Status(ctx)
}

// AuthorityCalls is how often the authority was asked, for whatever reason.
func (s *Stack) AuthorityCalls() uint64 { return s.auth.calls.Load() }

// Dir is where the state is.
func (s *Stack) Dir() string { return s.dir }

// URL is where the hub listens; "" if nowhere.
func (s *Stack) URL() string { return s.hub.ClientURL() }

// ConnectLanding connects to the server of the plaintext stream. The caller
// closes the connection.
func (s *Stack) ConnectLanding(o ...nats.Option) (*nats.Conn, error) { return s.landing.Connect(o...) }

// ConnectHub connects to the server of the sealed stream. The caller closes the
// connection.
func (s *Stack) ConnectHub(o ...nats.Option) (*nats.Conn, error) { return s.hub.Connect(o...) }

// Profile is the reader's. Its identity is a file beside it if keys are kept.
func (s *Stack) Profile() *streams.Profile {
	p := &streams.Profile{
		Version: 1, Service: serviceName, Pins: []string{s.ids.service.Public()}, Scopes: s.opts.Scopes,
		Accept: streams.ProfileAccept{Rules: []streams.ProfileRule{{
			Scopes: []string{"*"}, Schemes: []string{"single"}, Authorities: [][]string{{authorityName}},
		}}},
	}
	if s.opts.KeepKeys {
		p.Identity = filepath.Join("keys", readerName+".nk")
	}
	return p
}

// WriteProfile writes the reader's profile into the directory and returns its path.
func (s *Stack) WriteProfile() (string, error) {
	path := filepath.Join(s.dir, readerName+".json")
	return path, s.Profile().WriteFile(path)
}

// Opener opens what the stack sealed, through nc, as the reader. The caller
// closes it before nc.
func (s *Stack) Opener(nc *nats.Conn) (*streams.Opener, error) {
	cfg, err := s.Profile().ConfigAs(nc, s.ids.reader)
	if err != nil {
		return nil, err
	}
	cfg.Logger = s.log.With("part", "reader")
	return streams.New(cfg)
}

// Close stops everything in order: the gateway first, which finishes what it has
// begun. It is safe to call twice.
func (s *Stack) Close(ctx context.Context) error {
	s.closeOnce.Do(func() {
		var errs []error
		for i := len(s.undo) - 1; i >= 0; i-- {
			errs = append(errs, s.undo[i](ctx))
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

func escape(path string) string { return (&url.URL{Path: filepath.ToSlash(path)}).EscapedPath() }
