package execplug

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc/authority"
)

const (
	// MaxLine bounds one line of the contract, line feed included.
	MaxLine = 128 << 10
	// protocol is the version of the contract.
	protocol = 1
	// maxContextBytes bounds names and values of one context together. Escaped
	// six times over they still fit a line.
	maxContextBytes = 8 << 10
	// maxAbandoned bounds replies that nobody waits for any more.
	maxAbandoned = 1024
	// lastWords is how long a dead program's output is read.
	lastWords = time.Second
)

// request is a line to the program.
type request struct {
	ID        uint64            `json:"id"`
	Op        string            `json:"op"`
	Protocol  int               `json:"protocol,omitempty"`
	Key       string            `json:"key,omitempty"`
	Version   string            `json:"version,omitempty"`
	Blob      []byte            `json:"blob,omitempty"`
	Plaintext []byte            `json:"plaintext,omitempty"`
	Context   authority.Context `json:"context,omitempty"`
}

// reply is a line from the program.
type reply struct {
	ID        uint64 `json:"id"`
	Error     string `json:"error"`
	Protocol  int    `json:"protocol"`
	Key       string `json:"key"`
	Version   string `json:"version"`
	Blob      []byte `json:"blob"`
	Plaintext []byte `json:"plaintext"`
}

// process is one run of the program.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	outs  []io.Closer   // our ends of its output and standard error
	limit time.Duration // for one answer
	log   *slog.Logger

	lines  chan []byte   // to the writer, which clears them
	dead   chan struct{} // closed by die
	exited chan struct{} // closed when nothing of it runs any more

	mu        sync.Mutex
	next      uint64
	waiting   map[uint64]chan reply // nil values: nobody waits any more
	abandoned int
	why       string    // of its death
	ended     time.Time // of its death; read after dead is closed
}

// startProcess starts the program.
func startProcess(c Config, log *slog.Logger) (*process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir = string(os.PathSeparator)
	cmd.Env = []string{} // not nil, which would be all of ours
	for _, name := range append([]string{"PATH", "HOME", "TMPDIR"}, c.Env...) {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	ownGroup(cmd)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the plug-in: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the plug-in: %w", err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the plug-in: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the plug-in: %w", err)
	}
	p := &process{
		cmd: cmd, stdin: stdin, outs: []io.Closer{stdout, stderr}, limit: c.Limits.Call, log: log,
		lines: make(chan []byte), dead: make(chan struct{}), exited: make(chan struct{}),
		waiting: map[uint64]chan reply{},
	}
	var readers sync.WaitGroup
	readers.Go(func() { p.die(p.read(stdout)) })
	readers.Go(func() { logStderr(stderr, log) })
	go p.write()
	go func() {
		readers.Wait() // Wait closes the pipes under them
		_ = cmd.Wait() // how it ended is in p.why
		close(p.exited)
	}()
	return p, nil
}

// deadProcess stands for a program that could not be started.
func deadProcess(err error) *process {
	p := &process{dead: make(chan struct{}), exited: make(chan struct{}), why: err.Error(), ended: time.Now()}
	close(p.dead)
	close(p.exited)
	return p
}

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// die ends the run: calls under way fail, and the process group is killed.
func (p *process) die(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isDead() {
		return
	}
	p.why, p.ended = why, time.Now()
	close(p.dead)
	p.log.Info("plug-in ended", "why", why)
	_ = p.stdin.Close() // a second time is harmless
	kill(p.cmd)
	// A descendant that left the group can hold the pipes open. What the program
	// wrote last is read before.
	time.AfterFunc(lastWords, func() {
		for _, c := range p.outs {
			_ = c.Close() // only read
		}
	})
}

// stop lets the program exit by itself, kills it after grace, and waits for its end.
func (p *process) stop(grace time.Duration) {
	if p.stdin != nil && !p.isDead() {
		_ = p.stdin.Close() // the writer fails from here on
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-p.exited:
		case <-t.C:
		}
		p.die("closed")
	}
	<-p.exited
}

// greet asks for the version of the contract.
func (p *process) greet(ctx context.Context) error {
	r, err := p.ask(ctx, request{Op: "hello", Protocol: protocol})
	clear(r.Plaintext)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("the plug-in does not say hello")
	case err != nil:
		return err
	case r.Protocol != protocol || r.Error != "" || r.Key != "" || r.Version != "" || r.Blob != nil || r.Plaintext != nil:
		return fmt.Errorf("the plug-in does not speak version %d", protocol)
	}
	return nil
}

// ask sends a request and waits for its reply.
func (p *process) ask(ctx context.Context, q request) (reply, error) {
	ch := make(chan reply, 1)
	p.mu.Lock()
	p.next++
	q.ID = p.next
	p.waiting[q.ID] = ch
	p.mu.Unlock()
	line, err := json.Marshal(q)
	if err != nil || len(line) >= MaxLine {
		clear(line)
		p.forget(q.ID)
		return reply{}, errors.New("the request does not fit a line")
	}
	line = append(line, '\n')
	select {
	case p.lines <- line:
	case <-p.dead:
		clear(line)
		return reply{}, p.death()
	case <-ctx.Done():
		clear(line)
		p.forget(q.ID)
		return reply{}, ctx.Err()
	}
	// Whoever waits, and however short: a program that does not answer is killed.
	watch := time.AfterFunc(p.limit, func() {
		if p.expects(q.ID) {
			p.die("no answer in time")
		}
	})
	select {
	case r := <-ch:
		watch.Stop()
		return r, nil
	case <-p.dead:
		watch.Stop()
		select {
		case r := <-ch:
			return r, nil
		default:
			return reply{}, p.death()
		}
	case <-ctx.Done():
		p.abandon(q.ID)
		select {
		case r := <-ch: // it came meanwhile
			clear(r.Plaintext)
		default:
		}
		return reply{}, ctx.Err()
	}
}

func (p *process) death() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.New("the plug-in ended: " + p.why)
}

// forget takes back a request that was not sent.
func (p *process) forget(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, id)
}

// expects reports whether a reply is still to come.
func (p *process) expects(id uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.waiting[id]
	return ok
}

// abandon expects the reply, but for nobody.
func (p *process) abandon(id uint64) {
	p.mu.Lock()
	flood := false
	if _, ok := p.waiting[id]; ok {
		p.waiting[id] = nil
		p.abandoned++
		flood = p.abandoned > maxAbandoned
	}
	p.mu.Unlock()
	if flood {
		p.die("too many requests without a reply")
	}
}

// write sends lines until the program is dead.
func (p *process) write() {
	for {
		select {
		case line := <-p.lines:
			_, err := p.stdin.Write(line)
			clear(line)
			if err != nil {
				p.die("its input is closed")
				return
			}
		case <-p.dead:
			return
		}
	}
}

// read takes replies until the output ends or is no reply, and says why.
func (p *process) read(stdout io.Reader) string {
	r := bufio.NewReaderSize(stdout, MaxLine)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			clear(line)
			return "a line too long"
		case err != nil:
			clear(line)
			return "its output ended"
		}
		var rep reply
		err = strictjson.Unmarshal(line[:len(line)-1], &rep)
		clear(line)
		if err != nil {
			return "a line that is no reply"
		}
		if !p.deliver(rep) {
			clear(rep.Plaintext)
			return "a reply that nobody asked for"
		}
	}
}

// deliver hands a reply to its caller; false if there never was one.
func (p *process) deliver(r reply) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch, ok := p.waiting[r.ID]
	delete(p.waiting, r.ID)
	switch {
	case !ok:
		return false
	case ch == nil:
		p.abandoned--
		clear(r.Plaintext)
	default:
		ch <- r // room for one
	}
	return true
}
