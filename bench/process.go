package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// launcher starts keyweir's subcommands as processes of their own.
type launcher struct {
	command []string      // the program and what comes before a subcommand
	dir     string        // for logs
	died    chan *process // capacity 1: the first that ended without being told to
}

func newLauncher(command []string, dir string) *launcher {
	return &launcher{command: command, dir: dir, died: make(chan *process, 1)}
}

// start runs a subcommand, whose output goes to a file.
func (l *launcher) start(name string, args ...string) (*process, error) {
	p, err := l.prepare(name, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.stderr.Close() }() // the process has it
	p.cmd.Stdout = p.stderr
	return p, l.run(p)
}

// startPiped is start for a process that is talked to: only its standard error
// goes to the file. The process shall end when in is closed, so that it does not
// outlive this one.
func (l *launcher) startPiped(name string, args ...string) (p *process, in io.WriteCloser, out io.ReadCloser, err error) {
	if p, err = l.prepare(name, args...); err != nil {
		return nil, nil, nil, err
	}
	log := p.stderr
	defer func() { _ = log.Close() }()
	if in, err = p.cmd.StdinPipe(); err != nil {
		return nil, nil, nil, fmt.Errorf("starting %s: %w", name, err)
	}
	// Not StdoutPipe, which Wait closes.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p.cmd.Stdout = w
	err = l.run(p)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, nil, nil, err
	}
	return p, in, r, nil
}

func (l *launcher) prepare(name string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(l.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("creating log: %w", err)
	}
	argv := append(append([]string(nil), l.command...), args...)
	p := &process{name: name, log: log.Name(), stderr: log, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stderr = log
	return p, nil
}

func (l *launcher) run(p *process) error {
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
		if !p.told() {
			select {
			case l.died <- p:
			default:
			}
		}
	}()
	return nil
}

// process is one running keyweir.
type process struct {
	name, log string
	stderr    *os.File // until it runs
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
