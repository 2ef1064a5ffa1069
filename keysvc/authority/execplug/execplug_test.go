package execplug_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/execplug"
)

var (
	testContext = authority.Context{"keyweir-use": "data-key", "scope": "tenant/7"}
	secret      = []byte("0123456789abcdef0123456789abcdef")
)

// TestMain makes the test binary a program of bad manners, see misbehave.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "misbehave" {
		misbehave(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

// misbehave says hello and then, to every request, something wrong.
func misbehave(how string) {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, execplug.MaxLine)
	key := base64.StdEncoding.EncodeToString(secret)
	if how == "exit" {
		fmt.Fprintln(os.Stderr, "no licence\x1b[31m for this machine")
		os.Exit(1)
	}
	for in.Scan() {
		var q struct {
			ID uint64
			Op string
		}
		if json.Unmarshal(in.Bytes(), &q) != nil {
			os.Exit(3)
		}
		say := func(format string, args ...any) {
			fmt.Printf(`{"id":%d,`+format+"}\n", append([]any{q.ID}, args...)...)
		}
		switch {
		case how == "silent":
			continue
		case q.Op == "hello" && how == "version 2":
			say(`"protocol":2`)
			continue
		case q.Op == "hello":
			say(`"protocol":1`)
			continue
		}
		switch how {
		case "mute":
		case "text":
			fmt.Println("ready when you are " + key)
		case "long line":
			fmt.Println(strings.Repeat("x", execplug.MaxLine+1))
		case "unasked":
			q.ID += 1000
			say(`"key":"k","blob":"AAAA"`)
		case "a name twice":
			say(`"key":"k","key":"l","blob":"AAAA"`)
		case "an unknown name":
			say(`"key":"k","blob":"AAAA","hint":"x"`)
		case "a name in capitals":
			say(`"Key":"k","blob":"AAAA"`)
		case "crash":
			os.Exit(2)
		case "an unknown word":
			say(`"error":"%s"`, key)
		case "a word and a key":
			say(`"error":"denied","plaintext":"%s"`, key)
		case "hello again":
			say(`"protocol":1,"key":"k","blob":"AAAA","plaintext":"%s"`, key)
		case "zeros":
			say(`"key":"k","blob":"AAAA","plaintext":"%s"`, base64.StdEncoding.EncodeToString(make([]byte, 32)))
		case "a short key":
			say(`"key":"k","blob":"AAAA","plaintext":"AAAA"`)
		case "no key":
			say(`"key":"k","blob":"AAAA"`)
		case "no name":
			say(`"blob":"AAAA","plaintext":"%s"`, key)
		case "a control character":
			say(`"key":"k\u0007","blob":"AAAA","plaintext":"%s"`, key)
		case "no wrap":
			say(`"key":"k","plaintext":"%s"`, key)
		case "a huge wrap":
			say(`"key":"k","blob":"%s","plaintext":"%s"`, strings.Repeat("AAAA", 1000), key)
		case "environment":
			fmt.Fprintln(os.Stderr, "env:", strings.Join(os.Environ(), " "), "args:", os.Args[1:])
			say(`"error":"denied"`)
		case "chatter":
			for range 1000 {
				fmt.Fprintln(os.Stderr, "again "+strings.Repeat("x", 5000))
			}
			say(`"error":"throttled"`)
		default:
			say(`"error":"%s"`, how)
		}
	}
}

// bad opens the test binary as a program that misbehaves.
func bad(t testing.TB, how string, change func(*execplug.Config)) *execplug.Authority {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := execplug.Config{
		Path: path, Args: []string{"misbehave", how},
		// Under the race detector a program takes a second to exit.
		Limits: execplug.Limits{Pause: time.Millisecond, MaxPause: 5 * time.Millisecond, Stop: 50 * time.Millisecond},
	}
	if change != nil {
		change(&c)
	}
	a, err := execplug.New(t.Context(), c)
	if err != nil {
		t.Fatalf("New = %v", err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// until polls a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// sample builds the sample plug-in and gives it two keys.
func sample(t testing.TB) (bin, keys string) {
	t.Helper()
	dir := t.TempDir()
	bin = filepath.Join(dir, "sampleplugin")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./sampleplugin").CombinedOutput(); err != nil {
		t.Fatalf("building the sample: %v\n%s", err, out)
	}
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	keys = filepath.Join(dir, "keys.json")
	ks := keyFile{}
	for _, name := range []string{"orders", "other"} {
		ks[name] = keyOf{Versions: [][]byte{bytes.Repeat([]byte(name[:1]), 32), bytes.Repeat([]byte(name[1:2]), 32)}}
	}
	ks.write(t, keys)
	return bin, keys
}

type keyOf struct {
	Versions [][]byte `json:"versions"`
	Disabled bool     `json:"disabled"`
}

type keyFile map[string]keyOf

func (k keyFile) write(t testing.TB, path string) {
	t.Helper()
	b, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func disable(t testing.TB, path, key string, disabled bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var ks keyFile
	if err := json.Unmarshal(b, &ks); err != nil {
		t.Fatal(err)
	}
	k := ks[key]
	k.Disabled = disabled
	ks[key] = k
	ks.write(t, path)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	bin, keys := sample(t)
	uri := "exec://" + bin + "?key=orders&arg=" + keys
	if err := execplug.CheckURI(uri); err != nil {
		t.Fatalf("CheckURI = %v", err)
	}
	authoritytest.Run(t, authoritytest.Harness{
		Open: func(t testing.TB) authority.Authority {
			a, err := execplug.Open(t.Context(), uri, authority.Options{})
			if err != nil {
				t.Fatalf("Open = %v", err)
			}
			return a
		},
		Keys:    []string{"orders", "other"},
		Disable: func(t testing.TB, key string) { disable(t, keys, key, true) },
		Enable:  func(t testing.TB, key string) { disable(t, keys, key, false) },
	})
}

func TestWords(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]error{
		"not_found": authority.ErrNotFound, "denied": authority.ErrDenied, "disabled": authority.ErrDisabled,
		"destroyed": authority.ErrDestroyed, "throttled": authority.ErrThrottled,
		"unavailable": authority.ErrUnavailable, "invalid": authority.ErrInvalid,
	} {
		a := bad(t, word, nil)
		_, err := a.Wrap(t.Context(), "", secret, testContext)
		if cerr := authoritytest.CheckError(err, want, secret); cerr != nil {
			t.Errorf("%s: %v", word, cerr)
		}
		a.Close()
	}
}

// TestMisbehaviour: every call is an outage, shows nothing, and comes to an end.
func TestMisbehaviour(t *testing.T) {
	t.Parallel()
	for _, how := range []string{
		"exit", "silent", "version 2", "mute", "text", "long line", "unasked", "a name twice", "an unknown name",
		"a name in capitals", "crash", "an unknown word", "a word and a key", "hello again", "zeros", "a short key",
		"no key", "no name", "a control character", "no wrap", "a huge wrap",
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			log := &buffer{}
			a := bad(t, how, func(c *execplug.Config) {
				c.Logger = log.logger()
				if how == "mute" || how == "silent" {
					c.Limits.Call, c.Limits.Start = 300*time.Millisecond, 200*time.Millisecond
				}
			})
			for range 2 { // the second time after a restart
				k, w, err := a.GenerateDataKey(t.Context(), "", testContext)
				if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret, []byte(base64.StdEncoding.EncodeToString(secret))); cerr != nil {
					t.Error(cerr)
				}
				if k != nil || w.Blob != nil || w.KeyID != "" {
					t.Error("an error and a result")
				}
			}
			if err := a.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			if text := log.String(); strings.Contains(text, base64.StdEncoding.EncodeToString(secret)) {
				t.Errorf("the log shows a key:\n%s", text)
			}
			if how == "exit" && !strings.Contains(log.String(), `no licence?[31m for this machine`) {
				t.Errorf("the log does not show the program's last words:\n%s", log)
			}
		})
	}
}

// TestHungProgramIsReplaced: even if every caller gives up sooner than the limit.
func TestHungProgramIsReplaced(t *testing.T) {
	t.Parallel()
	log := &buffer{}
	a := bad(t, "mute", func(c *execplug.Config) {
		c.Logger, c.Limits.Call = log.logger(), 500*time.Millisecond
	})
	until(t, "the end of the hung program", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := a.Wrap(ctx, "", secret, testContext)
		if !errors.Is(err, authority.ErrUnavailable) {
			t.Fatalf("Wrap = %v", err)
		}
		return strings.Contains(log.String(), "no answer in time")
	})
}

// TestRestart kills the sample again and again; calls go on after each time.
func TestRestart(t *testing.T) {
	t.Parallel()
	bin, keys := sample(t)
	pids := filepath.Join(t.TempDir(), "pids")
	wrapper := filepath.Join(t.TempDir(), "wrapper")
	// The program is a script here, only to learn its process ID; Keyweir runs no shell.
	if err := os.WriteFile(wrapper, []byte("#!/bin/sh\necho $$ >>\""+pids+"\"\nexec \""+bin+"\" \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := execplug.New(t.Context(), execplug.Config{
		Path: wrapper, Args: []string{keys}, Key: "orders", Limits: execplug.Limits{Pause: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	var (
		key []byte
		w   authority.Wrapped
	)
	// A test that forks at this moment can hold the script open for writing.
	until(t, "the first start", func() bool {
		key, w, err = a.GenerateDataKey(t.Context(), "", testContext)
		return err == nil
	})
	for range 3 {
		b, err := os.ReadFile(pids)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(b))
		var pid int
		if _, err := fmt.Sscan(lines[len(lines)-1], &pid); err != nil {
			t.Fatal(err)
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		until(t, "the restart", func() bool {
			got, err := a.Unwrap(t.Context(), w, testContext)
			if err != nil && !errors.Is(err, authority.ErrUnavailable) {
				t.Fatalf("Unwrap = %v", err)
			}
			return err == nil && bytes.Equal(got, key)
		})
	}
}

// TestEnvironment: nothing of ours but what is asked for, and no key bytes.
func TestEnvironment(t *testing.T) {
	t.Setenv("EXECPLUG_TEST_WANTED", "wanted-value")
	t.Setenv("EXECPLUG_TEST_OTHER", "other-value")
	log := &buffer{}
	a := bad(t, "environment", func(c *execplug.Config) {
		c.Logger, c.Env = log.logger(), []string{"EXECPLUG_TEST_WANTED"}
	})
	_, err := a.Wrap(t.Context(), "", secret, testContext)
	if !errors.Is(err, authority.ErrDenied) {
		t.Fatalf("Wrap = %v", err)
	}
	until(t, "the program's line", func() bool { return strings.Contains(log.String(), "env:") })
	text := log.String()
	if !strings.Contains(text, "wanted-value") || strings.Contains(text, "other-value") {
		t.Errorf("the environment is not what was asked for:\n%s", text)
	}
	if strings.Contains(text, string(secret)) || strings.Contains(text, base64.StdEncoding.EncodeToString(secret)) {
		t.Error("the environment or the arguments hold the key")
	}
}

// TestChatter: standard error is shortened and limited.
func TestChatter(t *testing.T) {
	t.Parallel()
	log := &buffer{}
	a := bad(t, "chatter", func(c *execplug.Config) { c.Logger = log.logger() })
	if _, err := a.Wrap(t.Context(), "", secret, testContext); !errors.Is(err, authority.ErrThrottled) {
		t.Fatalf("Wrap = %v", err)
	}
	a.Close()
	said := strings.Count(log.String(), "again")
	if said == 0 || said > 200 {
		t.Errorf("%d of 1000 lines logged", said)
	}
	for line := range strings.Lines(log.String()) {
		if len(line) > 1000 {
			t.Fatalf("a log line of %d bytes", len(line))
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for what, uri := range map[string]string{
		"a program of everybody": "exec://" + write("open", 0o777),
		"no program":             "exec://" + filepath.Join(dir, "none"),
		"not executable":         "exec://" + write("data", 0o600),
		"a directory":            "exec://" + dir,
		"a host":                 "exec://host/bin/true",
		"no path":                "exec:",
		"a relative path":        "exec:bin/true",
		"an unclean path":        "exec:///bin/../bin/true",
		"an unknown parameter":   "exec:///bin/true?args=x",
		"two keys":               "exec:///bin/true?key=a&key=b",
		"a bad variable":         "exec:///bin/true?env=A=topsecretpassword",
		"credentials":            "exec://u:topsecretpassword@/bin/true",
		"another scheme":         "local:///bin/true",
	} {
		a, err := execplug.Open(t.Context(), uri, authority.Options{})
		if cerr := authoritytest.CheckError(err, authority.ErrInvalid, []byte("topsecretpassword")); cerr != nil {
			t.Errorf("%s: %v", what, cerr)
		}
		if err == nil {
			a.Close()
		}
	}
}
