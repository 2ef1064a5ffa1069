package embednats_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/internal/embednats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o embednats.Options) *embednats.Server {
	t.Helper()
	s, err := embednats.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *embednats.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func connect(t *testing.T, s *embednats.Server, opts ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := s.Connect(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// listeners counts the TCP listeners of the server.
func listeners(s *server.Server) int {
	n := 0
	for _, a := range []net.Addr{s.Addr(), s.MonitorAddr(), s.ClusterAddr(), s.ProfilerAddr()} {
		if v, ok := a.(*net.TCPAddr); ok && v != nil {
			n++
		}
	}
	return n
}

func TestInProcessMemory(t *testing.T) {
	s := start(t, embednats.Options{Name: "mem"})
	if got := s.ClientURL(); got != "" {
		t.Errorf("ClientURL() = %q without a listener", got)
	}
	if n := listeners(s.NATS()); n != 0 {
		t.Errorf("%d listeners, want none", n)
	}
	nc, js := connect(t, s)
	if got := nc.ConnectedServerName(); got != "mem" {
		t.Errorf("server name = %q", got)
	}
	ctx := t.Context()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "M", Subjects: []string{"m.>"}, Storage: jetstream.MemoryStorage}); err != nil {
		t.Fatal(err)
	}
	const payload = "a payload that may not reach the disk"
	if _, err := js.Publish(ctx, "m.1", []byte(payload)); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "F", Subjects: []string{"f.>"}, Storage: jetstream.FileStorage}); err == nil {
		t.Error("a memory-only server accepted a file stream")
	}
	dir := s.NATS().StoreDir()
	if hit := findIn(t, dir, payload); hit != "" {
		t.Errorf("payload found in %s", hit)
	}
	stop(t, s)
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary directory after shutdown: %v", err)
	}
}

// findIn returns the first file under dir that holds text.
func findIn(t *testing.T, dir, text string) string {
	t.Helper()
	hit := ""
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			hit = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return hit
}

func TestListenAndStore(t *testing.T) {
	o := embednats.Options{Name: "kept", Listen: "127.0.0.1:0", StoreDir: filepath.Join(t.TempDir(), "new"), SyncAlways: true, MaxStore: 64 << 20, MaxMemory: 32 << 20}
	s := start(t, o)
	if n := listeners(s.NATS()); n != 1 {
		t.Errorf("%d listeners, want 1", n)
	}
	if fi, err := os.Stat(o.StoreDir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("store directory: %v %v, want mode 0700", fi.Mode(), err)
	}
	if cfg := s.NATS().JetStreamConfig(); !cfg.SyncAlways || cfg.MaxStore != 64<<20 || cfg.MaxMemory != 32<<20 {
		t.Errorf("JetStream configuration = %+v", cfg)
	}
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatalf("connecting to %s: %v", s.ClientURL(), err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "F", Subjects: []string{"f.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "f.1", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	stop(t, s)

	again := start(t, o)
	_, js = connect(t, again)
	st, err := js.Stream(t.Context(), "F")
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.GetMsg(t.Context(), 1)
	if err != nil || string(m.Data) != "kept" {
		t.Errorf("after a restart: %v %v", m, err)
	}
}

func TestDefaultSync(t *testing.T) {
	s := start(t, embednats.Options{StoreDir: t.TempDir()})
	if cfg := s.NATS().JetStreamConfig(); cfg.SyncAlways || cfg.SyncInterval != 2*time.Minute {
		t.Errorf("JetStream configuration = %+v, want the server's default sync interval", cfg)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = embednats.Start(embednats.Options{Listen: l.Addr().String()})
	var le *embednats.ListenError
	if !errors.As(err, &le) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("Start on a taken port = %v, want a ListenError of EADDRINUSE", err)
	}
	if want := "listening on " + l.Addr().String() + ": address already in use"; le.Error() != want {
		t.Errorf("error = %q, want %q", le, want)
	}
	if !strings.Contains(le.Hint(), "port 0") {
		t.Errorf("hint = %q", le.Hint())
	}
}

func TestRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		o    embednats.Options
		want string
	}{
		{"websocket", embednats.Options{Config: `websocket { port: 9222, no_tls: true }`}, "websocket"},
		{"mqtt", embednats.Options{Configure: func(o *server.Options) { o.MQTT.Port = -1 }}, "mqtt"},
		{"leafnode", embednats.Options{Config: `leafnodes { port: 7422 }`}, "leafnode"},
		{"leafnode remote", embednats.Options{Config: `leafnodes { remotes = [{url: "nats://127.0.0.1:7422"}] }`}, "leafnode"},
		{"gateway", embednats.Options{Config: `gateway { name: A, port: 7222 }`}, "gateway"},
		{"monitoring", embednats.Options{Config: `http: 8222`}, "monitoring"},
		{"profiling", embednats.Options{Config: `prof_port: 6060`}, "profiling"},
		{"listen in config", embednats.Options{Config: `listen: "0.0.0.0:4222"`}, "address"},
		{"store in config", embednats.Options{Config: `jetstream { store_dir: "x" }`}, "store directory"},
		{"sync in config", embednats.Options{Config: `jetstream { sync_interval: always }`}, "sync"},
		{"name in config", embednats.Options{Config: `server_name: x`}, "name"},
		{"unknown key", embednats.Options{Config: `acounts {}`}, "acounts"},
		{"negative limit", embednats.Options{MaxMemory: -1}, "negative"},
		{"sync without store", embednats.Options{SyncAlways: true}, "store directory"},
		{"store limit without store", embednats.Options{MaxStore: 1}, "store directory"},
		{"no port", embednats.Options{Listen: "127.0.0.1"}, "missing port"},
		{"bad port", embednats.Options{Listen: "127.0.0.1:70000"}, `invalid port "70000"`},
		{"foreign address", embednats.Options{Listen: "192.0.2.1:4222"}, "listening on 192.0.2.1:4222"},
		{"store is a file", embednats.Options{StoreDir: file}, "store directory"},
		{"route address", embednats.Options{Name: "n", Listen: "127.0.0.1:0", Configure: func(o *server.Options) {
			o.Cluster.Name, o.Cluster.Host, o.Cluster.Port = "c", "192.0.2.1", -1
			o.Routes = server.RoutesFromStr("nats://127.0.0.1:1")
		}}, "192.0.2.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := embednats.Start(tt.o)
			if err == nil {
				stop(t, s)
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one about %q", err, tt.want)
			}
		})
	}
}

func TestAccounts(t *testing.T) {
	s := start(t, embednats.Options{Listen: "127.0.0.1:0", Config: `accounts {
		A { jetstream: enabled, users: [{user: a, password: pa}] }
		B { users: [{user: b, password: pb}] }
	}`})
	if nc, err := nats.Connect(s.ClientURL()); !errors.Is(err, nats.ErrAuthorization) {
		nc.Close()
		t.Errorf("connecting without credentials = %v, want %v", err, nats.ErrAuthorization)
	}
	_, js := connect(t, s, nats.UserInfo("a", "pa"))
	if _, err := js.AccountInfo(t.Context()); err != nil {
		t.Errorf("account A: %v", err)
	}
	_, js = connect(t, s, nats.UserInfo("b", "pb"))
	if _, err := js.AccountInfo(t.Context()); err == nil {
		t.Error("account B has JetStream")
	}
}

func TestShutdown(t *testing.T) {
	s := start(t, embednats.Options{Listen: "127.0.0.1:0"})
	nc, _ := connect(t, s)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown with an ended context = %v", err)
	}
	stop(t, s)
	stop(t, s)
	nc.Close()
	if nc, err := s.Connect(nats.MaxReconnects(0)); err == nil {
		nc.Close()
		t.Error("connected after shutdown")
	}
}

// lines collects log output of several goroutines.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestLog(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
		var out lines
		s := start(t, embednats.Options{
			Config: "trace: true\ndebug: true",
			Logger: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})),
		})
		nc, _ := connect(t, s)
		if err := nc.Publish("x", []byte("payload-in-a-trace")); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		stop(t, s)
		text := out.String()
		if got, want := strings.Contains(text, "Server is ready"), level == slog.LevelDebug; got != want {
			t.Errorf("level %v: notices logged: %v, want %v:\n%s", level, got, want, text)
		}
		if strings.Contains(text, "payload-in-a-trace") {
			t.Errorf("level %v: a payload was logged", level)
		}
	}
}
