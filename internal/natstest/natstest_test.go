package natstest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/natstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRestartKeepsAddressAndStore(t *testing.T) {
	s := natstest.New(t)
	url := s.ClientURL()
	nc := s.Conn(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s.1", nil); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if s.Embedded() != nil {
		t.Error("Embedded() of a stopped server is not nil")
	}
	if nc, err := nats.Connect(url); err == nil {
		nc.Close()
		t.Error("connected to a stopped server")
	}
	s.Stop() // twice is fine
	s.Restart()
	// A request sent in the moment of reconnecting may go unanswered: ask again.
	natstest.Eventually(t, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		st, err := js.Stream(ctx, "S")
		if err != nil {
			return err
		}
		if n := st.CachedInfo().State.Msgs; n != 1 {
			return fmt.Errorf("%d messages after a restart, want 1", n)
		}
		return nil
	})
	s.Restart() // of a running server
	if got := s.Conn(t).ConnectedUrl(); got != url {
		t.Errorf("URL = %s, want %s", got, url)
	}
}

func TestOptions(t *testing.T) {
	s := natstest.New(t, func(o *embednats.Options) { o.StoreDir, o.Name = "", "other" })
	if got := s.Conn(t).ConnectedServerName(); got != "other" {
		t.Errorf("server name = %q", got)
	}
	if _, err := s.JetStream(t).AccountInfo(t.Context()); err != nil {
		t.Error(err)
	}
}

// recorder is a testing.TB that notes a fatal failure instead of failing.
type recorder struct {
	testing.TB
	fatal string
}

func (r *recorder) Helper()                      {}
func (r *recorder) Fatalf(f string, args ...any) { r.fatal = fmt.Sprintf(f, args...); runtime.Goexit() }

func TestEventually(t *testing.T) {
	n := 0
	natstest.Eventually(t, 5*time.Second, func() error {
		if n++; n < 3 {
			return errors.New("early")
		}
		return nil
	})
	if n != 3 {
		t.Errorf("called %d times, want 3", n)
	}
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		natstest.Eventually(r, 30*time.Millisecond, func() error { return errors.New("never true") })
	}()
	<-done
	if !strings.Contains(r.fatal, "never true") {
		t.Errorf("failure = %q, want the last error in it", r.fatal)
	}
}

// echo is a TCP server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

func dial(t *testing.T, p *natstest.Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// roundTrip sends text and wants it back within the time.
func roundTrip(c net.Conn, text string, within time.Duration) error {
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	return expect(c, text, within)
}

func expect(c net.Conn, text string, within time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("got %q, want %q", got, text)
	}
	return nil
}

func TestProxyCut(t *testing.T) {
	p := natstest.NewProxy(t, echo(t))
	a, b := dial(t, p), dial(t, p)
	for _, c := range []net.Conn{a, b} {
		if err := roundTrip(c, "hello", 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.Cut(); n != 2 {
		t.Errorf("Cut() = %d, want 2", n)
	}
	for _, c := range []net.Conn{a, b} {
		if err := expect(c, "x", 5*time.Second); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading after Cut = %v, want a reset", err)
		}
	}
	if err := roundTrip(dial(t, p), "again", 5*time.Second); err != nil {
		t.Errorf("a new connection after Cut: %v", err)
	}
}

func TestProxyPause(t *testing.T) {
	p := natstest.NewProxy(t, echo(t))
	c := dial(t, p)
	if err := roundTrip(c, "one", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	p.Pause()
	p.Pause()
	var ne net.Error
	if err := roundTrip(c, "two", 50*time.Millisecond); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("reading while paused = %v, want a timeout", err)
	}
	fresh := dial(t, p)
	if err := roundTrip(fresh, "new", 50*time.Millisecond); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("a new connection while paused = %v, want a timeout", err)
	}
	p.Resume()
	p.Resume()
	if err := expect(c, "two", 5*time.Second); err != nil {
		t.Errorf("after Resume: %v", err)
	}
	if err := expect(fresh, "new", 5*time.Second); err != nil {
		t.Errorf("after Resume: %v", err)
	}
	p.Pause()
	if n := p.Cut(); n != 2 { // held bytes do not hold a connection
		t.Errorf("Cut() while paused = %d, want 2", n)
	}
}

func TestProxyLatency(t *testing.T) {
	const delay = 40 * time.Millisecond
	p := natstest.NewProxy(t, echo(t))
	p.SetLatency(delay)
	c := dial(t, p)
	start := time.Now()
	if err := roundTrip(c, "slow", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 2*delay {
		t.Errorf("a round trip took %v, want at least %v", took, 2*delay)
	}
	p.SetLatency(0)
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB, in order, whole
	go func() { _, _ = c.Write(big) }()
	if err := expect(c, string(big), 10*time.Second); err != nil {
		t.Error(err)
	}
}

// TestProxyClose has the server say something and hang up at once.
func TestProxyClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("bye"))
			_ = c.Close()
		}
	}()
	p := natstest.NewProxy(t, ln.Addr().String())
	for range 50 {
		got, err := io.ReadAll(dial(t, p))
		if err != nil || string(got) != "bye" {
			t.Fatalf("read %q, %v; want the last words and EOF", got, err)
		}
	}
}

func TestProxyTargetDown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	p := natstest.NewProxy(t, addr)
	if err := expect(dial(t, p), "x", 5*time.Second); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("reading with the target down = %v, want a closed connection", err)
	}
}

func TestProxyNATS(t *testing.T) {
	s := natstest.New(t)
	p := natstest.NewProxy(t, s.Addr())
	lost := make(chan struct{}, 1)
	nc := natstest.Connect(t, p.ClientURL(), nats.DisconnectErrHandler(func(*nats.Conn, error) {
		select {
		case lost <- struct{}{}:
		default:
		}
	}))
	sub, err := nc.SubscribeSync("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	<-lost
	natstest.Eventually(t, 5*time.Second, func() error {
		if err := nc.Publish("x", []byte("after")); err != nil {
			return err
		}
		if !nc.IsConnected() {
			return errors.New("not reconnected")
		}
		return nc.FlushTimeout(time.Second)
	})
	if m, err := sub.NextMsg(5 * time.Second); err != nil || string(m.Data) != "after" {
		t.Errorf("after a cut: %v %v", m, err)
	}
}
