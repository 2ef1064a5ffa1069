// Package kmstest starts KMS emulators for tests, as real processes on free
// loopback ports, and puts a fault-injecting proxy in front of them.
//
// [LocalKMS] builds and starts local-kms, which is right about disabled keys and
// keys pending deletion; [Moto] starts moto_server, which is right about IAM and
// wrong about disabled keys, where it is on the PATH. Neither is right about
// everything: their Quirks say where the conformance suite has to give way.
package kmstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// startTimeout bounds the start of one emulator; Python is slow to import.
const startTimeout = 60 * time.Second

// start runs a server made by command for a free port until it answers HTTP.
// The process ends with the test; its output is logged if the test failed.
func start(t testing.TB, name string, command func(port string) *exec.Cmd) (endpoint string) {
	t.Helper()
	var err error
	for range 3 { // another process may take the port in between
		if endpoint, err = try(t, name, command); err == nil {
			return endpoint
		}
	}
	t.Fatalf("kmstest: starting %s: %v", name, err)
	return ""
}

func try(t testing.TB, name string, command func(port string) *exec.Cmd) (endpoint string, err error) {
	t.Helper()
	port, err := freePort()
	if err != nil {
		return "", err
	}
	out := &output{}
	cmd := command(port)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	endpoint = "http://127.0.0.1:" + port
	if err := answering(t.Context(), endpoint, ended); err != nil {
		stop()
		return "", fmt.Errorf("%w; its output:\n%s", err, out)
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("output of %s:\n%s", name, out)
		}
	})
	return endpoint, nil
}

// answering polls until the endpoint answers any HTTP at all.
func answering(ctx context.Context, endpoint string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			return resp.Body.Close()
		}
		select {
		case <-tick.C:
		case <-ended:
			return errors.New("the process ended")
		case <-ctx.Done():
			return errors.New("no answer in time")
		}
	}
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// environ is the process environment without what would change an emulator.
func environ(extra ...string) []string {
	return append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "GODEBUG=") || strings.HasPrefix(kv, "AWS_") ||
			strings.HasPrefix(kv, "KMS_") || strings.HasPrefix(kv, "MOTO_")
	}), extra...)
}

// output keeps the last part of what a process prints.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const keepOutput = 16 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	if n := o.buf.Len(); n > keepOutput {
		o.buf.Next(n - keepOutput)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
