package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// workerProcess is a process that runs [Worker].
type workerProcess struct {
	*process
	in  io.WriteCloser
	out io.ReadCloser

	mu      sync.Mutex // one order at a time
	answers *json.Decoder
}

// workerArgs is the subcommand that runs Worker.
var workerArgs = []string{"bench", "worker"}

func (l *launcher) startWorker(name string) (*workerProcess, error) {
	p, in, out, err := l.startPiped(name, workerArgs...)
	if err != nil {
		return nil, err
	}
	return &workerProcess{process: p, in: in, out: out, answers: json.NewDecoder(out)}, nil
}

// orderTimeout bounds one order: to start a server with much in its store takes
// the longest.
const orderTimeout = 2 * time.Minute

// ask gives an order and waits for the answer.
func (w *workerProcess) ask(ctx context.Context, o *workerOrder) (workerAnswer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var a workerAnswer
	b, err := json.Marshal(o)
	if err != nil {
		return a, fmt.Errorf("encoding order: %w", err)
	}
	if _, err := w.in.Write(append(b, '\n')); err != nil {
		return a, fmt.Errorf("%s: giving order %s: %w\n%s", w.name, o.Op, err, w.tail())
	}
	got := make(chan error, 1)
	go func() { got <- w.answers.Decode(&a) }()
	timeout := time.NewTimer(orderTimeout)
	defer timeout.Stop()
	select {
	case err = <-got:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout.C:
		err = fmt.Errorf("no answer within %v", orderTimeout)
	}
	if err != nil {
		w.kill() // ends the Decode, too
		return workerAnswer{}, fmt.Errorf("%s: order %s: %w\n%s", w.name, o.Op, err, w.tail())
	}
	if a.Error != "" {
		return a, &workerError{w.name, o.Op, a.Error}
	}
	return a, nil
}

// workerError is a refusal of a worker process.
type workerError struct{ name, op, text string }

func (e *workerError) Error() string { return fmt.Sprintf("%s: order %s: %s", e.name, e.op, e.text) }

// cpu is the processor time that the process has used.
func (w *workerProcess) cpu(ctx context.Context) (time.Duration, error) {
	a, err := w.ask(ctx, &workerOrder{Op: opUsage})
	return a.CPU, err
}

// drop kills the process and closes the pipes.
func (w *workerProcess) drop() {
	w.kill()
	_ = w.in.Close()
	_ = w.out.Close()
}

// servers are one nats-server process, or a cluster of three, that can be killed
// and started again on the same ports and stores.
type servers struct {
	l      *launcher
	orders []serverOrder

	mu    sync.Mutex
	procs []*workerProcess // by server; guarded by mu
}

// startServers starts n servers and returns when they accept connections.
func startServers(ctx context.Context, l *launcher, n int, syncAlways bool) (*servers, error) {
	s := &servers{l: l, procs: make([]*workerProcess, n)}
	ports, err := freePorts(2 * n)
	if err != nil {
		return nil, err
	}
	var routes []string
	for i := range n {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[n+i]))
	}
	for i := range n {
		o := serverOrder{
			Name: fmt.Sprintf("server-%d", i+1), Listen: fmt.Sprintf("127.0.0.1:%d", ports[i]),
			Store: filepath.Join(l.dir, fmt.Sprintf("nats-%d", i+1)), SyncAlways: syncAlways,
		}
		if n > 1 {
			o.Config = fmt.Sprintf("cluster { name: bench, listen: \"127.0.0.1:%d\", routes: [%s] }", ports[n+i], strings.Join(routes, ", "))
		}
		s.orders = append(s.orders, o)
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = s.start(ctx, i) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// start starts server i. A client that has just lost the server may hold its port
// for a moment, so a taken port is tried again.
func (s *servers) start(ctx context.Context, i int) error {
	for end := time.Now().Add(20 * time.Second); ; {
		w, err := s.l.startWorker(s.orders[i].Name)
		if err != nil {
			return err
		}
		_, err = w.ask(ctx, &workerOrder{Op: opStart, Server: &s.orders[i]})
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.procs[i] = w
			return nil
		}
		w.drop()
		if refused := (*workerError)(nil); !errors.As(err, &refused) || time.Now().After(end) {
			return err
		}
		if err := pauseFor(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// kill is kill -9 of server i.
func (s *servers) kill(i int) { s.proc(i).drop() }

func (s *servers) proc(i int) *workerProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[i]
}

// named returns the number of a server, -1 if there is none of that name.
func (s *servers) named(name string) int {
	for i, o := range s.orders {
		if o.Name == name {
			return i
		}
	}
	return -1
}

// url is where clients connect: all servers, separated by commas.
func (s *servers) url() string {
	var urls []string
	for _, o := range s.orders {
		urls = append(urls, "nats://"+o.Listen)
	}
	return strings.Join(urls, ",")
}

func (s *servers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.procs {
		if p != nil {
			p.drop()
		}
	}
}

// freePorts finds ports to listen on. They lie below the range that systems take
// the ports of outgoing connections from: a client that tries to reach a killed
// server from the server's own port would connect to itself, and keep it.
func freePorts(n int) ([]int, error) {
	var ports []int
	for try := 0; len(ports) < n; try++ {
		if try > 1000 {
			return nil, errors.New("finding free ports: too many are taken")
		}
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer func() { _ = l.Close() }() // all are held until all are found, so that none comes twice
		ports = append(ports, port)
	}
	return ports, nil
}
