//go:build unix

package cli_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

// fleet is a key service as a process, and the configuration of gateways.
type fleet struct {
	t      *testing.T
	dir    string
	srv    *natstest.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	public map[string]string
	yaml   string // as written last, before what stands for keys and places was filled in
}

const fleetYAML = `service: test
gateway:
  identity: "file:DIR/gateway.nk"
  keysvc: {nats: hub, pins: [KEYSVC]}
  claim_ttl: 1s
  routes:
ROUTES
keysvc:
  nats: hub
  store: "DIR/keysvc"
  identity: "file:DIR/keysvc.nk"
  authorities: {local: "local://DIR/authority?domain-key=file:DIR/domain.key"}
  scopes:
    - {match: "*.*", scope: "{{wildcard(1)}}", authorities: [local]}
  principals: {gateway: GATEWAY, reader: READER}
  grants:
    - {to: gateway, may: [generate], scopes: ["*"]}
    - {to: gateway, may: [route-key], scopes: ["route/*"]}
    - {to: reader, may: [open], scopes: ["*"]}
    - {to: reader, may: [route-key], scopes: ["route/unseal-*"]}
nats:
  hub: {url: "URL"}
  again: {url: "URL"}
`

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir(), srv: natstest.New(t), public: map[string]string{}}
	f.nc = f.srv.Conn(t)
	var err error
	if f.js, err = jetstream.New(f.nc, jetstream.WithPublishAsyncMaxPending(1024)); err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]keysvc.Kind{"keysvc": keysvc.KindService, "gateway": keysvc.KindRequester, "reader": keysvc.KindRequester} {
		id, seed, err := keysvc.NewIdentity(kind)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(f.dir, name+".nk"), seed, 0o600); err != nil {
			t.Fatal(err)
		}
		f.public[name] = id.Public()
	}
	f.keyweir("domain-key", "new", filepath.Join(f.dir, "domain.key"))
	f.configure(route("none", "", ""))
	f.start("key service started", "keysvc", "--config", f.config())
	return f
}

func (f *fleet) config() string { return filepath.Join(f.dir, "keyweir.yaml") }

// route is a route of a stream of its own, in upper case; what may add settings.
func route(name, source, settings string) string {
	upper := strings.ToUpper(name)
	if source == "" {
		source = "after_seal: purge"
	}
	return fmt.Sprintf(`    - name: %s
      source: {nats: hub, stream: %s, subjects: ["%s.*"], start: first, %s}
      sealed: {nats: hub, stream: SEALED_%s, subject: "sealed.>", create: {}, sync_interval: always}
      %s
`, name, upper, name, source, upper, settings)
}

func (f *fleet) configure(routes ...string) {
	f.t.Helper()
	f.write(strings.Replace(fleetYAML, "ROUTES\n", strings.Join(routes, ""), 1))
}

func (f *fleet) write(yaml string) {
	f.t.Helper()
	f.yaml = yaml
	text := strings.NewReplacer("DIR", f.dir, "URL", f.srv.ClientURL(), "KEYSVC", f.public["keysvc"], "GATEWAY", f.public["gateway"], "READER", f.public["reader"]).Replace(yaml)
	next := f.config() + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(next, f.config()); err != nil {
		f.t.Fatal(err)
	}
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	bin, err := exec.LookPath("keyweir") // this test binary, see TestMain
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(bin, args...)
}

// keyweir runs a command to its end and returns its output.
func (f *fleet) keyweir(args ...string) string {
	f.t.Helper()
	out, err := command(f.t, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		f.t.Fatalf("keyweir %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// start runs a command in the background, and waits until it says ready.
func (f *fleet) start(ready string, args ...string) *process {
	f.t.Helper()
	p := &process{cmd: command(f.t, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	f.t.Cleanup(func() { p.kill() })
	f.said(p, ready, 1)
	return p
}

func (f *fleet) gateway() *process {
	f.t.Helper()
	return f.start("gateway started", "gateway", "--config", f.config())
}

// said waits until the process wrote text so many times.
func (f *fleet) said(p *process, text string, times int) {
	f.t.Helper()
	natstest.Eventually(f.t, 60*time.Second, func() error {
		if n := strings.Count(p.String(), text); n < times {
			select {
			case <-p.done:
				f.t.Fatalf("the process ended: %v\n%s", p.err, p)
			default:
			}
			return fmt.Errorf("%q %d times, want %d:\n%s", text, n, times, p)
		}
		return nil
	})
}

// kill is kill -9; it may be over.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop wants a clean end.
func (f *fleet) stop(p *process) {
	f.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		f.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		f.t.Fatalf("it goes on after SIGTERM\n%s", p)
	}
	if p.err != nil {
		f.t.Fatalf("it ended with %v\n%s", p.err, p)
	}
}

func (f *fleet) stream(name string) {
	f.t.Helper()
	cfg := jetstream.StreamConfig{Name: strings.ToUpper(name), Subjects: []string{name + ".*"}, Storage: jetstream.MemoryStorage}
	if _, err := f.js.CreateStream(f.t.Context(), cfg); err != nil {
		f.t.Fatal(err)
	}
}

const fleetSubjects = 8

// publish stores messages from..to of a stream, in order, on some subjects.
func (f *fleet) publish(name string, from, to int) error {
	for i := from; i <= to; i++ {
		if _, err := f.js.PublishAsync(name+"."+strconv.Itoa(i%fleetSubjects), []byte(name+" "+strconv.Itoa(i)), jetstream.WithStallWait(20*time.Second)); err != nil {
			return fmt.Errorf("publishing: %w", err)
		}
	}
	select {
	case <-f.js.PublishAsyncComplete():
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("publishing: not complete after 30s")
	}
}

// state is a stream's; zero while it does not exist.
func (f *fleet) state(stream string) jetstream.StreamState {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return jetstream.StreamState{}
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return s.CachedInfo().State
}

// sealed waits until the sealed stream of a route ends at a sequence or later.
func (f *fleet) sealed(name string, want int) {
	f.t.Helper()
	natstest.Eventually(f.t, 60*time.Second, func() error {
		if got := f.state("SEALED_" + strings.ToUpper(name)).LastSeq; got < uint64(want) {
			return fmt.Errorf("%d of %d messages of %s are sealed", got, want, name)
		}
		return nil
	})
}

// profile writes one that accepts everything, and returns its path.
func (f *fleet) profile(name string, timeout time.Duration) string {
	f.t.Helper()
	p := &streams.Profile{
		Version: 1, Service: "test", Pins: []string{f.public["keysvc"]}, Identity: "reader.nk", TimeoutMs: timeout.Milliseconds(),
		Scopes: []keysvc.ScopeRule{{Match: "*.*", Scope: "{{wildcard(1)}}"}},
		Accept: streams.ProfileAccept{Rules: []streams.ProfileRule{{
			Scopes: []string{"*"}, Schemes: []string{"single"}, Authorities: [][]string{{"local"}},
		}}},
	}
	path := filepath.Join(f.dir, name+".json")
	if err := p.WriteFile(path); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// verify wants messages 1..n, each once and in order.
func (f *fleet) verify(name string, n int) {
	f.t.Helper()
	path := f.profile(name, 0)
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	opener, err := streams.NewFromProfile(ctx, f.nc, path)
	if err != nil {
		f.t.Fatal(err)
	}
	defer opener.Close()
	s, err := f.js.Stream(ctx, "SEALED_"+strings.ToUpper(name))
	if err != nil {
		f.t.Fatal(err)
	}
	if got := s.CachedInfo().State.LastSeq; got != uint64(n) {
		f.t.Errorf("%s: %d sealed messages, want %d", name, got, n)
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		f.t.Fatal(err)
	}
	it, err := c.Messages(jetstream.PullMaxMessages(2000))
	if err != nil {
		f.t.Fatal(err)
	}
	defer it.Stop()
	for i := 1; i <= n; i++ {
		raw, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			f.t.Fatalf("%s: reading message %d: %v", name, i, err)
		}
		m, err := opener.Open(ctx, raw)
		if err != nil {
			f.t.Fatalf("%s: message %d: %v", name, i, err)
		}
		if got, want := string(m.Data()), name+" "+strconv.Itoa(i); got != want {
			f.t.Fatalf("%s: message %d is %q, want %q", name, i, got, want)
		}
	}
}
