package gateway_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/plainrelay"
)

// The relay without the seal is the benchmark's alone, and differs in nothing else.
func TestRelayPlain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
	gw := func(stream string) *gateway.Gateway {
		r := f.route
		r.Sealed.Stream = stream
		g, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: f.keys, Logger: f.log})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	stream := plainrelay.Stream("1")
	if err := gw(sealed).RelayPlain(plainrelay.ForBenchmark()); !errors.Is(err, gateway.ErrConfig) {
		t.Errorf("RelayPlain into %s = %v, want %v", sealed, err, gateway.ErrConfig)
	}
	if err := gw(stream).RelayPlain(plainrelay.Permit{}); !errors.Is(err, gateway.ErrConfig) {
		t.Errorf("RelayPlain with the zero permit = %v, want %v", err, gateway.ErrConfig)
	}
	g := gw(stream)
	if err := g.RelayPlain(plainrelay.ForBenchmark()); err != nil {
		t.Fatal(err)
	}
	const n = 700
	for i := range n {
		if _, err := f.js.Publish(t.Context(), "in.a.b", fmt.Appendf(nil, "m%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	run := f.run(g)
	run.eventually("relayed", func(s gatewayStats) bool { return s.Position == n })
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	if err := g.RelayPlain(plainrelay.ForBenchmark()); err == nil {
		t.Error("RelayPlain = nil after Run")
	}
	s, err := f.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		m, err := s.GetMsg(t.Context(), uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("m%d", i); string(m.Data) != want || m.Subject != "sealed.in.a.b" || m.Header.Get(gateway.HeaderSource) == "" {
			t.Fatalf("message %d is %s %q with %s %q, want %q", i+1, m.Subject, m.Data, gateway.HeaderSource, m.Header.Get(gateway.HeaderSource), want)
		}
	}
}
