package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyweir/keyweir/internal/cli"
	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/toolbuild"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"keyweir": func() {
			os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
		"stubborn": cli.Stubborn,
	})
}

func params(dir string) testscript.Params {
	return testscript.Params{
		Dir: dir,
		Setup: func(e *testscript.Env) error {
			root, err := filepath.Abs("../..")
			if err != nil {
				return err
			}
			e.Setenv("ROOT", root)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, ".config"))
			e.Setenv("TMPDIR", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": cmdStart, "term": cmdTerm, "json": cmdJSON, "server": cmdServer, "stream": cmdStream, "mode": cmdMode, "nolog": cmdNoLog,
			"crash": cmdCrash, "consume": cmdConsume, "dump": cmdDump, "durable": cmdDurable, "publisher": cmdPublisher, "purge": cmdPurge, "same": cmdSame, "limits": cmdLimits, "holds": cmdHolds, "forget": cmdForget, "reaches": cmdReaches, "close": cmdClose,
		},
		RequireExplicitExec: true, RequireUniqueNames: true,
	}
}

// TestScripts runs the command line as its users do.
func TestScripts(t *testing.T) { testscript.Run(t, params("testdata/script")) }

// TestNATSCLI does so together with the real nats CLI.
func TestNATSCLI(t *testing.T) {
	bin := toolbuild.Build(t, "nats")
	p := params("testdata/natscli")
	setup := p.Setup
	p.Setup = func(e *testscript.Env) error {
		e.Setenv("PATH", filepath.Dir(bin)+string(filepath.ListSeparator)+e.Getenv("PATH"))
		e.Setenv("NATS", bin)
		return setup(e)
	}
	testscript.Run(t, p)
}

// processes are those that start began, by the name it gave.
var processes sync.Map // *testscript.TestScript and name: *process

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended
	err  error         // before done is closed
	mu   sync.Mutex
	out  bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// cmdStart is "start NAME PATTERN COMMAND ARGUMENT...": it starts a program in the
// background and waits until its output matches PATTERN; a first group of it
// becomes the variable NAME.
func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: start NAME PATTERN COMMAND ARGUMENT...")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	path, err := exec.LookPath(args[2])
	if err != nil {
		path = filepath.Join(ts.Getenv("PATH"), args[2])
		for dir := range strings.SplitSeq(ts.Getenv("PATH"), string(filepath.ListSeparator)) {
			if _, err := os.Stat(filepath.Join(dir, args[2])); err == nil {
				path = filepath.Join(dir, args[2])
				break
			}
		}
	}
	p := &process{cmd: exec.Command(path, args[3:]...), done: make(chan struct{})}
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("HOME"), "TMPDIR="+ts.Getenv("TMPDIR"))
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = io.MultiWriter(p, w), io.MultiWriter(p, w)
	ts.Check(p.cmd.Start())
	found := make(chan []string, 1)
	go func() {
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			if m := re.FindStringSubmatch(sc.Text()); m != nil {
				select {
				case found <- m:
				default:
				}
			}
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	go func() {
		p.err = p.cmd.Wait()
		_ = w.Close()
		close(p.done)
	}()
	processes.Store(procKey{ts, args[0]}, p)
	ts.Defer(func() { // the script may have stopped it
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	select {
	case m := <-found:
		if len(m) > 1 {
			ts.Setenv(args[0], m[1])
		}
	case <-p.done:
		ts.Fatalf("%s ended: %v\n%s", args[0], p.err, p)
	case <-time.After(60 * time.Second):
		ts.Fatalf("%s is not ready after 60 s\n%s", args[0], p)
	}
}

type procKey struct {
	ts   *testscript.TestScript
	name string
}

// cmdTerm is "term NAME [PATTERN]": SIGTERM, exit code 0 and output that matches.
func cmdTerm(ts *testscript.TestScript, neg bool, args []string) {
	v, ok := processes.LoadAndDelete(procKey{ts, args[0]})
	if !ok {
		ts.Fatalf("no process %s", args[0])
	}
	p := v.(*process)
	ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		ts.Fatalf("%s goes on after SIGTERM\n%s", args[0], p)
	}
	if (p.err != nil) != neg {
		ts.Fatalf("%s ended: %v\n%s", args[0], p.err, p)
	}
	if len(args) > 1 && !regexp.MustCompile(args[1]).MatchString(p.String()) {
		ts.Fatalf("no %q in the output of %s\n%s", args[1], args[0], p)
	}
}

// cmdJSON is "json FILE PATH OP VALUE", OP one of = != < <= > >= and ~ for a
// regular expression; FILE may be stdout, a PATH goes through objects and arrays,
// as in envelope.record.scope or 0.seal_ns.
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: json FILE PATH OP VALUE")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
	for key := range strings.SplitSeq(args[1], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				ts.Fatalf("no element %s of %s", key, args[1])
			}
			v = x[i]
		default:
			v = nil
		}
	}
	if compare(ts, v, args[2], args[3]) == neg {
		ts.Fatalf("%s is %v, want %s %s", args[1], v, args[2], args[3])
	}
}

func compare(ts *testscript.TestScript, v any, op, want string) bool {
	got := fmt.Sprint(v)
	if f, ok := v.(float64); ok {
		got = strconv.FormatFloat(f, 'f', -1, 64)
	}
	switch op {
	case "=":
		return got == want
	case "!=":
		return got != want
	case "~":
		return regexp.MustCompile(want).MatchString(got)
	}
	a, ok := v.(float64)
	b, err := strconv.ParseFloat(want, 64)
	if !ok || err != nil {
		ts.Fatalf("%v and %s are not both numbers", v, want)
	}
	switch op {
	case "<":
		return a < b
	case "<=":
		return a <= b
	case ">":
		return a > b
	case ">=":
		return a >= b
	}
	ts.Fatalf("unknown operator %s", op)
	return false
}

// cmdServer is "server VARIABLE [FILE]": a nats-server on a free port. FILE has the
// output of config permissions --json: its users for the connection VARIABLE may
// connect, with their name as password, and admin, who may do everything.
func cmdServer(ts *testscript.TestScript, neg bool, args []string) {
	o := embednats.Options{Listen: "127.0.0.1:0", StoreDir: ts.MkAbs(args[0])}
	if len(args) > 1 {
		o.Config = usersConfig(ts, args[0], ts.ReadFile(args[1]))
	}
	s, err := embednats.Start(o)
	ts.Check(err)
	ts.Defer(func() { _ = s.Shutdown(context.Background()) })
	ts.Setenv(args[0], s.ClientURL())
}

func usersConfig(ts *testscript.TestScript, connection, permissions string) string {
	var ps []struct {
		Who, NATS          string
		Publish, Subscribe []string
		Responses          bool
	}
	ts.Check(json.Unmarshal([]byte(permissions), &ps))
	list := func(subjects []string) string {
		b, err := json.Marshal(subjects)
		ts.Check(err)
		return strings.ReplaceAll(string(b), `\u003e`, ">")
	}
	b := new(strings.Builder)
	b.WriteString("authorization { users: [\n{user: admin, password: admin}\n")
	for _, p := range ps {
		if p.NATS != connection {
			continue
		}
		fmt.Fprintf(b, "{user: %s, password: %s, permissions: {publish: {allow: %s}, subscribe: {allow: %s}, allow_responses: %v}}\n",
			p.Who, p.Who, list(p.Publish), list(p.Subscribe), p.Responses)
	}
	b.WriteString("] }\n")
	return b.String()
}

// cmdNoLog is "nolog NAME PATTERN": what the process said so far does not match.
func cmdNoLog(ts *testscript.TestScript, neg bool, args []string) {
	v, ok := processes.Load(procKey{ts, args[0]})
	if !ok {
		ts.Fatalf("no process %s", args[0])
	}
	if regexp.MustCompile(args[1]).MatchString(v.(*process).String()) != neg {
		ts.Fatalf("%q in the output of %s\n%s", args[1], args[0], v)
	}
}

// cmdStream is "stream URL NAME SUBJECT": a stream in memory.
func cmdStream(ts *testscript.TestScript, neg bool, args []string) {
	nc, err := nats.Connect(args[0], nats.UserInfo("admin", "admin")) // ignored where nobody is asked
	ts.Check(err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	ts.Check(err)
	_, err = js.CreateStream(context.Background(), jetstream.StreamConfig{Name: args[1], Subjects: args[2:], Storage: jetstream.MemoryStorage})
	ts.Check(err)
}

// cmdMode is "mode FILE 0600".
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	fi, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", fi.Mode().Perm()); (got == args[1]) == neg {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}
