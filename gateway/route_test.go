package gateway_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	srv := natstest.New(t)
	nc, other := srv.Conn(t), srv.Conn(t)
	zero := uint64(0)
	good := func() gateway.Route {
		return gateway.Route{
			Name:   "r",
			Source: gateway.Source{Conn: nc, Stream: source, Subjects: []string{"in.>"}, AfterSeal: gateway.AfterSealKeep},
			Sealed: gateway.Sealed{Conn: nc, Stream: sealed, Subject: "sealed.>"},
		}
	}
	if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{good()}, Keys: newFakeKeys()}); err != nil {
		t.Fatalf("New of a good route: %v", err)
	}
	for name, change := range map[string]func(*gateway.Route){
		"no name":                  func(r *gateway.Route) { r.Name = "" },
		"name with dot":            func(r *gateway.Route) { r.Name = "a.b" },
		"long name":                func(r *gateway.Route) { r.Name = strings.Repeat("a", 65) },
		"no source connection":     func(r *gateway.Route) { r.Source.Conn = nil },
		"no sealed connection":     func(r *gateway.Route) { r.Sealed.Conn = nil },
		"no source stream":         func(r *gateway.Route) { r.Source.Stream = "" },
		"source stream with token": func(r *gateway.Route) { r.Source.Stream = "A.B" },
		"no sealed stream":         func(r *gateway.Route) { r.Sealed.Stream = "" },
		"no subjects":              func(r *gateway.Route) { r.Source.Subjects = nil },
		"bad subject":              func(r *gateway.Route) { r.Source.Subjects = []string{"in..x"} },
		"bad wildcard":             func(r *gateway.Route) { r.Source.Subjects = []string{"in.>.x"} },
		"mixed wildcard":           func(r *gateway.Route) { r.Source.Subjects = []string{"in.a*"} },
		"subjects overlap":         func(r *gateway.Route) { r.Source.Subjects = []string{"in.>", "in.a.*"} },
		"no after_seal":            func(r *gateway.Route) { r.Source.AfterSeal = 0 },
		"bad gap policy":           func(r *gateway.Route) { r.Source.OnSourceGap = 7 },
		"start 0":                  func(r *gateway.Route) { r.Source.Start = gateway.StartSequence(0) },
		"resume from 0":            func(r *gateway.Route) { r.ResumeFrom = &zero },
		"no sealed subject":        func(r *gateway.Route) { r.Sealed.Subject = "" },
		"sealed subject literal":   func(r *gateway.Route) { r.Sealed.Subject = "sealed.x" },
		"sealed subject all":       func(r *gateway.Route) { r.Sealed.Subject = ">" },
		"sealed subject wildcard":  func(r *gateway.Route) { r.Sealed.Subject = "*.>" },
		"sealed among $JS":         func(r *gateway.Route) { r.Sealed.Subject = "$KV.x.>" },
		"long prefix":              func(r *gateway.Route) { r.Sealed.Subject = strings.Repeat("a", 256) + ".>" },
		"cycle": func(r *gateway.Route) {
			r.Source.Subjects, r.Sealed.Subject = []string{">"}, "sealed.>"
		},
		"cycle by wildcard": func(r *gateway.Route) {
			r.Source.Subjects, r.Sealed.Subject = []string{"*.in.>", "in.>"}, "sealed.>"
		},
		"negative replicas": func(r *gateway.Route) { r.Sealed.Create = &gateway.CreateSealed{Replicas: -1} },
		"bad storage":       func(r *gateway.Route) { r.Sealed.Create = &gateway.CreateSealed{Storage: 9} },
		"bad record mode":   func(r *gateway.Route) { r.Record = 9 },
		"bad padding":       func(r *gateway.Route) { r.PadTo = -1 },
		"pass Nats header":  func(r *gateway.Route) { r.PassHeaders = []string{"nats-msg-id"} },
		"pass our header":   func(r *gateway.Route) { r.PassHeaders = []string{"KEYWEIR-SOURCE"} },
		"pass bad header":   func(r *gateway.Route) { r.PassHeaders = []string{"a b"} },
		"negative window":   func(r *gateway.Route) { r.Window = -1 },
		"huge window":       func(r *gateway.Route) { r.Window = 1 << 20 },
	} {
		r := good()
		change(&r)
		if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: newFakeKeys()}); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("%s: New = %v, want ErrConfig", name, err)
		}
	}
	twice, sameStream := good(), good()
	twice.Sealed.Stream, sameStream.Name = "OTHER", "s"
	for name, cfg := range map[string]gateway.Config{
		"no routes":       {Keys: newFakeKeys()},
		"no keys":         {Routes: []gateway.Route{good()}},
		"route twice":     {Keys: newFakeKeys(), Routes: []gateway.Route{good(), twice}},
		"stream twice":    {Keys: newFakeKeys(), Routes: []gateway.Route{good(), sameStream}},
		"short claim TTL": {Keys: newFakeKeys(), Routes: []gateway.Route{good()}, ClaimTTL: time.Millisecond},
	} {
		if _, err := gateway.New(cfg); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("%s: New = %v, want ErrConfig", name, err)
		}
	}
	// The same subjects on two servers are no cycle.
	r := good()
	r.Source.Subjects, r.Sealed.Conn = []string{">"}, other
	if _, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: newFakeKeys()}); err != nil {
		t.Errorf("New of a route between two servers: %v", err)
	}
}

func TestParse(t *testing.T) {
	for _, s := range []string{"", "first", "new", "1", "18446744073709551615", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456789Z"} {
		got, err := gateway.ParseStart(s)
		if err != nil || got.String() != s {
			t.Errorf("ParseStart(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"0", "-1", "last", "1.5", "First", "2026-01-02", " 1"} {
		if got, err := gateway.ParseStart(s); !errors.Is(err, gateway.ErrConfig) {
			t.Errorf("ParseStart(%q) = %v, %v, want ErrConfig", s, got, err)
		}
	}
	for _, s := range []string{"purge", "keep"} {
		if a, err := gateway.ParseAfterSeal(s); err != nil || a.String() != s {
			t.Errorf("ParseAfterSeal(%q) = %v, %v", s, a, err)
		}
	}
	for _, s := range []string{"stop", "continue"} {
		if a, err := gateway.ParseOnSourceGap(s); err != nil || a.String() != s {
			t.Errorf("ParseOnSourceGap(%q) = %v, %v", s, a, err)
		}
	}
	if _, err := gateway.ParseAfterSeal(""); !errors.Is(err, gateway.ErrConfig) {
		t.Errorf("ParseAfterSeal of nothing = %v", err)
	}
	if _, err := gateway.ParseOnSourceGap("go"); !errors.Is(err, gateway.ErrConfig) {
		t.Errorf("ParseOnSourceGap(go) = %v", err)
	}
}

func TestRunTwice(t *testing.T) {
	t.Parallel()
	srv := natstest.New(t)
	nc := srv.Conn(t, nats.Name("x"))
	g, err := gateway.New(gateway.Config{Keys: newFakeKeys(), Routes: []gateway.Route{{
		Name:   "r",
		Source: gateway.Source{Conn: nc, Stream: source, Subjects: []string{"in.>"}, AfterSeal: gateway.AfterSealKeep},
		Sealed: gateway.Sealed{Conn: nc, Stream: sealed, Subject: "sealed.>"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Run(t.Context()); !errors.Is(err, gateway.ErrDestination) { // no stream, and not to be created
		t.Errorf("Run = %v", err)
	}
	if err := g.Run(t.Context()); err == nil {
		t.Error("second Run succeeded")
	}
}
