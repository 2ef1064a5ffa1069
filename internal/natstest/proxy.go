package natstest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy in front of one address that behaves as badly as it is
// told to. Its methods are safe for concurrent use.
type Proxy struct {
	target string
	ln     net.Listener
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	links   map[*link]struct{}
	open    chan struct{} // closed while bytes may pass
	latency time.Duration
}

// link is one client connection and its way to the target.
type link struct {
	client, server *net.TCPConn
	done           chan struct{} // closed by end
	once           sync.Once
}

// chunk is what one read returned, with the time at which it may go on.
type chunk struct {
	data []byte
	due  time.Time
}

// NewProxy listens on a free port of the loopback interface and forwards to
// target, host:port. It is closed when t ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("starting proxy: %v", err)
	}
	p := &Proxy{target: target, ln: ln, links: make(map[*link]struct{}), open: make(chan struct{})}
	close(p.open)
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is the proxy's host:port.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// ClientURL is the proxy's address as a NATS URL.
func (p *Proxy) ClientURL() string { return "nats://" + p.Addr() }

// Cut resets every connection, both halves, and returns how many; bytes on their
// way are lost. New connections are accepted at once.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.links)
	for l := range p.links {
		l.end(true)
		delete(p.links, l)
	}
	return n
}

// Pause holds all bytes in both directions, without closing anything: to each
// side the other one seems frozen. New connections are accepted and held too.
func (p *Proxy) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		p.open = make(chan struct{})
	default:
	}
}

// Resume ends a Pause; what was held goes on, in order.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

// SetLatency delays what is read from now on by d in each direction. It limits
// the throughput only by the bytes it keeps in flight (4 MiB). Zero: no delay.
func (p *Proxy) SetLatency(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency = d
}

// state returns the gate to pass and the time at which bytes read now are due.
func (p *Proxy) state() (gate <-chan struct{}, due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open, time.Now().Add(p.latency)
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.ln.Close()
	p.Cut()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return // closed
		}
		s, err := net.DialTimeout("tcp", p.target, 5*time.Second)
		if err != nil {
			c.Close() // the target is down; to the client so are we
			continue
		}
		l := &link{client: c.(*net.TCPConn), server: s.(*net.TCPConn), done: make(chan struct{})}
		p.mu.Lock()
		if p.closed {
			l.end(true)
		} else {
			p.links[l] = struct{}{}
		}
		p.mu.Unlock()
		p.forward(l, l.client, l.server)
		p.forward(l, l.server, l.client)
	}
}

// forward starts the two goroutines of one direction. They end with the link,
// and the link with the first of them.
func (p *Proxy) forward(l *link, from, to *net.TCPConn) {
	queue := make(chan chunk, 64)
	p.wg.Go(func() {
		defer close(queue)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			_, due := p.state()
			if n > 0 {
				select {
				case queue <- chunk{buf[:n], due}:
				case <-l.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	p.wg.Go(func() {
		defer p.drop(l)
		for c := range queue {
			if !l.wait(time.Until(c.due)) {
				return
			}
			gate, _ := p.state()
			select {
			case <-gate:
			case <-l.done:
				return
			}
			if _, err := to.Write(c.data); err != nil {
				return
			}
		}
	})
}

// drop ends a link that one side closed; what it sent before has been written.
func (p *Proxy) drop(l *link) {
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
	l.end(false)
}

// wait reports false if the link ended first.
func (l *link) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.done:
		return false
	}
}

// end closes both connections, with a reset if asked for. Errors do not matter:
// the connections are gone either way.
func (l *link) end(reset bool) {
	l.once.Do(func() {
		close(l.done)
		for _, c := range []*net.TCPConn{l.client, l.server} {
			if reset {
				_ = c.SetLinger(0)
			}
			_ = c.Close()
		}
	})
}
