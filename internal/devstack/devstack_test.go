package devstack_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/devstack"
	"github.com/keyweir/keyweir/keysvc"
)

func options(dir string) devstack.Options {
	return devstack.Options{
		Dir: dir, KeepKeys: true, Source: "A", Sealed: "B", Subjects: []string{"a.>"}, SealedSubject: "sealed.>",
		Scopes: []keysvc.ScopeRule{{Match: "a.*", Scope: "{{wildcard(1)}}"}},
	}
}

// roundTrip publishes one message and reads all of the sealed stream.
func roundTrip(t *testing.T, s *devstack.Stack, payload string, want int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	landing, err := s.ConnectLanding()
	if err != nil {
		t.Fatal(err)
	}
	defer landing.Close()
	js, err := jetstream.New(landing)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "a.x", []byte(payload)); err != nil {
		t.Fatal(err)
	}
	hub, err := s.ConnectHub()
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	opener, err := s.Opener(hub)
	if err != nil {
		t.Fatal(err)
	}
	defer opener.Close()
	if js, err = jetstream.New(hub); err != nil {
		t.Fatal(err)
	}
	c, err := js.OrderedConsumer(ctx, "B", jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for m, err := range opener.Messages(ctx, c) {
		if err != nil {
			t.Fatal(err)
		}
		if out = append(out, string(m.Data())); len(out) == want {
			break
		}
	}
	return out
}

// TestRestart: with kept keys a second start opens what the first one sealed,
// and goes on behind it.
func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd name ?%#")
	for i, want := range []string{"one", "one two"} {
		s, err := devstack.Start(t.Context(), options(dir))
		if err != nil {
			t.Fatal(err)
		}
		got := roundTrip(t, s, strings.Fields(want)[i], i+1)
		if strings.Join(got, " ") != want {
			t.Errorf("start %d: read %q, want %q", i+1, got, want)
		}
		if s.AuthorityCalls() == 0 {
			t.Error("the authority was never asked")
		}
		st, err := s.Status(t.Context())
		if err != nil || st.Service != "dev" {
			t.Errorf("Status = %+v, %v", st, err)
		}
		if s.URL() != "" || s.Err() != nil {
			t.Errorf("URL = %q, Err = %v", s.URL(), s.Err())
		}
		for range 2 {
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-s.Stopped():
		default:
			t.Error("Stopped is open after Close")
		}
	}
}

// TestTemporary: without a directory nothing is left behind.
func TestTemporary(t *testing.T) {
	o := options("")
	o.KeepKeys, o.OwnLanding, o.Listen = false, true, "127.0.0.1:0"
	s, err := devstack.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	roundTrip(t, s, "one", 1)
	dir := s.Dir()
	if _, err := os.Stat(filepath.Join(dir, "keys")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("keys on the disk: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

func TestStartRefuses(t *testing.T) {
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*devstack.Options){
		"no scopes":        func(o *devstack.Options) { o.Scopes = nil },
		"keys without dir": func(o *devstack.Options) { o.Dir = "" },
		"payload":          func(o *devstack.Options) { o.MaxPayload = 1 << 30 },
		"address":          func(o *devstack.Options) { o.Listen = "nonsense" },
		"used directory":   func(o *devstack.Options) { o.Dir, o.KeepKeys = used, false },
		"scope":            func(o *devstack.Options) { o.Scopes = []keysvc.ScopeRule{{Match: "a.*", Scope: "{{wildcard(9)}}"}} },
	} {
		o := options(t.TempDir())
		change(&o)
		if s, err := devstack.Start(t.Context(), o); err == nil {
			t.Errorf("%s: Start = nil error", name)
			_ = s.Close(t.Context())
		}
	}
}
