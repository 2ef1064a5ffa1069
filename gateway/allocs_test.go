//go:build !race

package gateway

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// deafConn is a connection to a server that takes whatever it gets and, once
// connected, says nothing. It allocates nothing then.
type deafConn struct {
	say    chan []byte
	closed chan struct{}
	once   sync.Once
}

// Dial makes deafConn the dialer of itself.
func (c *deafConn) Dial(string, string) (net.Conn, error) { return c, nil }

func (c *deafConn) Read(b []byte) (int, error) {
	select {
	case text := <-c.say:
		return copy(b, text), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *deafConn) Write(b []byte) (int, error) {
	if bytes.HasSuffix(b, []byte("PING\r\n")) {
		c.say <- []byte("PONG\r\n")
	}
	return len(b), nil
}

func (c *deafConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *deafConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *deafConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *deafConn) SetDeadline(time.Time) error      { return nil }
func (c *deafConn) SetReadDeadline(time.Time) error  { return nil }
func (c *deafConn) SetWriteDeadline(time.Time) error { return nil }

// What a message allocates between the source and the connection, exactly: the
// texts that nats.go wants as strings, and its own header. The payload is sealed,
// and handed over, in buffers that are used again. With the race detector more
// escapes to the heap, so it is not built then.
func TestPublishAllocations(t *testing.T) {
	const runs = 8
	conn := &deafConn{say: make(chan []byte, 2), closed: make(chan struct{})}
	conn.say <- []byte(`INFO {"server_id":"deaf","version":"2.15.0","headers":true,"max_payload":1048576}` + "\r\n")
	nc, err := nats.Connect("nats://deaf:4222", nats.SetCustomDialer(conn), nats.PingInterval(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, tt := range []struct {
		kind Engine
		want float64
	}{
		{EngineAsync, 4},   // position, sequence to follow, nats.go's header (2)
		{EngineFast, 5},    // and the reply subject
		{EngineDurable, 3}, // position, nats.go's header (2)
	} {
		t.Run(tt.kind.String(), func(t *testing.T) {
			l := newSealLoop(t, 1024, nats.Header{"Content-Type": {"application/json"}})
			l.batch(t)
			cfg := engineConfig{nc: nc, stream: "SEALED", signer: l.signer, lastSeq: 1000, window: (runs + 3) * batchSize, ackTimeout: time.Hour}
			var e engine
			var sent func()
			if tt.kind == EngineDurable {
				// Its sender never gets anything: the batch is sent here.
				d, err := newDurable(cfg, batchLimits{count: batchSize + 1, bytes: 1 << 30, age: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				e, sent = d, func() {
					if _, _, err := d.send(d.fill, 0, len(d.fill.entries)); err != nil {
						t.Fatal(err)
					}
					d.mu.Lock()
					defer d.mu.Unlock()
					d.fill.reset()
					d.last.sealed = d.next - 1
				}
			} else if e, err = newEngine(tt.kind, cfg); err != nil {
				t.Fatal(err)
			}
			defer e.close()
			if f, ok := e.(*fastEngine); ok {
				f.quiet = time.Hour // nobody would acknowledge the end of a batch
			}
			all := func() {
				for i := range l.items {
					l.seq++
					l.items[i].seq = l.seq
					o, err := l.sealer.seal(&l.items[i], l.seq-1, 0, time.Now())
					if err != nil {
						t.Fatal(err)
					}
					if err := e.publish(ctx, o); err != nil {
						t.Fatal(err)
					}
				}
				if sent != nil {
					sent()
				}
			}
			all() // fills buffers
			// A few more now and then: the batch's own names, and timers.
			if per := testing.AllocsPerRun(runs, all) / batchSize; per < tt.want || per > tt.want+0.05 {
				t.Errorf("%.2f allocations per message, want %v", per, tt.want)
			}
		})
	}
}
