package keyserver_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
	"github.com/keyweir/keyweir/keysvc/keyserver"
)

// plain hides that an authority manages keys.
type plain struct{ authority.Authority }

func goodConfig(t *testing.T) keyserver.Config {
	t.Helper()
	a, err := local.NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	id, _, err := keysvc.NewIdentity(keysvc.KindService)
	if err != nil {
		t.Fatal(err)
	}
	return keyserver.Config{
		Service: "prod", Identity: id, Store: openStore(t), Policy: allowAll{},
		Authorities: map[string]authority.Authority{"a": a, "p": plain{a}},
		Scopes:      []keyserver.ScopeRule{{Match: "a.*", Scope: "x/{{wildcard(1)}}", Authorities: []string{"a"}}},
	}
}

func TestDefaults(t *testing.T) {
	c, err := goodConfig(t).WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r := c.Scopes[0]
	for _, v := range []struct {
		name      string
		got, want any
	}{
		{"workers", c.Workers, 32},
		{"queue", c.Queue, 1024},
		{"cache", c.Cache, 100_000},
		{"confirm", c.Confirm, time.Minute},
		{"authority timeout", c.AuthorityTimeout, 10 * time.Second},
		{"directory replicas", c.Directory.Replicas, 1},
		{"directory ttl", c.Directory.TTL, time.Duration(0)},
		{"keys", r.Keys, keyserver.KeysDirect},
		{"scheme", r.Scheme, "single"},
		{"reuse", r.Reuse, 5 * time.Minute},
		{"lease", r.Lease, 5 * time.Minute},
		{"stale seal", r.Stale.Seal, time.Hour},
		{"stale open", r.Stale.Open, 4 * time.Hour},
		{"messages", r.Budget.Messages, uint64(1<<32 - 1)},
		{"bytes", r.Budget.Bytes, uint64(64 << 30)},
		{"version", c.Version, "0.0.0"},
	} {
		if v.got != v.want {
			t.Errorf("%s = %v, want %v", v.name, v.got, v.want)
		}
	}
	if c.Logger == nil || c.Meter == nil || c.Tracer == nil {
		t.Error("logger, meter or tracer is nil")
	}
	set := c
	set.Workers, set.Scopes[0].Stale.Seal = 7, time.Minute
	if again, err := set.WithDefaults(); err != nil || again.Workers != 7 || again.Scopes[0].Stale.Seal != time.Minute {
		t.Errorf("what was set is not kept: %v", err)
	}
}

func TestBadConfig(t *testing.T) {
	requester, _, err := keysvc.NewIdentity(keysvc.KindRequester)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*keyserver.Config)
		place  string
	}{
		"no service":         {func(c *keyserver.Config) { c.Service = "" }, "service"},
		"service with dot":   {func(c *keyserver.Config) { c.Service = "a.b" }, "service"},
		"instance":           {func(c *keyserver.Config) { c.Instance = "a b" }, "instance"},
		"no identity":        {func(c *keyserver.Config) { c.Identity = nil }, "identity"},
		"requester identity": {func(c *keyserver.Config) { c.Identity = requester }, "identity"},
		"no store":           {func(c *keyserver.Config) { c.Store = nil }, "store"},
		"no policy":          {func(c *keyserver.Config) { c.Policy = nil }, "policy"},
		"no authority":       {func(c *keyserver.Config) { c.Authorities = nil }, "authorities"},
		"nil authority":      {func(c *keyserver.Config) { c.Authorities["n"] = nil }, `"n"`},
		"authority name":     {func(c *keyserver.Config) { c.Authorities["a b"] = c.Authorities["a"] }, "authorities"},
		"no connection":      {func(*keyserver.Config) {}, "connection"},
		"principal":          {func(c *keyserver.Config) { c.Principals = map[string]string{"x": "U1"} }, `"x"`},
		"service principal":  {func(c *keyserver.Config) { c.Principals = map[string]string{"x": c.Identity.Public()} }, `"x"`},
		"signer":             {func(c *keyserver.Config) { c.Directory.Signers = []string{"N1"} }, "signer"},
		"workers":            {func(c *keyserver.Config) { c.Workers = -1 }, "workers"},
		"queue":              {func(c *keyserver.Config) { c.Queue = -1 }, "queue"},
		"cache":              {func(c *keyserver.Config) { c.Cache = 1 << 30 }, "cache"},
		"replicas":           {func(c *keyserver.Config) { c.Directory.Replicas = 6 }, "replicas"},
		"ttl":                {func(c *keyserver.Config) { c.Directory.TTL = -1 }, "ttl"},
		"confirm":            {func(c *keyserver.Config) { c.Confirm = -1 }, "confirm"},
		"timeout":            {func(c *keyserver.Config) { c.AuthorityTimeout = time.Hour }, "authority_timeout"},
		"reuse":              {func(c *keyserver.Config) { c.Scopes[0].Reuse = -1 }, "reuse"},
		"long reuse":         {func(c *keyserver.Config) { c.Scopes[0].Reuse = 25 * time.Hour }, "scopes[0]"},
		"lease":              {func(c *keyserver.Config) { c.Scopes[0].Lease = time.Millisecond }, "lease"},
		"stale":              {func(c *keyserver.Config) { c.Scopes[0].Stale.Seal = -1 }, "stale.seal"},
		"long stale":         {func(c *keyserver.Config) { c.Scopes[0].Stale.Open = 1 << 62 }, "stale.open"},
		"budget":             {func(c *keyserver.Config) { c.Scopes[0].Budget.Messages = 1<<32 + 1 }, "budget"},
		"bytes":              {func(c *keyserver.Config) { c.Scopes[0].Budget.Bytes = 64<<30 + 1 }, "budget"},
		"keys":               {func(c *keyserver.Config) { c.Scopes[0].Keys = "both" }, "keys"},
		"managed, cannot": {func(c *keyserver.Config) {
			c.Scopes[0].Keys, c.Scopes[0].Authorities = keyserver.KeysManaged, []string{"p"}
		}, "managed"},
		"unknown scheme":    {func(c *keyserver.Config) { c.Scopes[0].Scheme = "double" }, "unknown"},
		"later scheme":      {func(c *keyserver.Config) { c.Scopes[0].Scheme = "split" }, "not supported by this release"},
		"no authorities":    {func(c *keyserver.Config) { c.Scopes[0].Authorities = nil }, "0 authorities"},
		"two authorities":   {func(c *keyserver.Config) { c.Scopes[0].Authorities = []string{"a", "p"} }, "2 authorities"},
		"unknown authority": {func(c *keyserver.Config) { c.Scopes[0].Authorities = []string{"x"} }, `"x"`},
		"unknown accepted":  {func(c *keyserver.Config) { c.Scopes[0].Accept = []string{"x"} }, `"x"`},
		"reserved context":  {func(c *keyserver.Config) { c.Scopes[0].Context = map[string]string{"keyweir-x": "1"} }, "keyweir-x"},
		"long context": {func(c *keyserver.Config) {
			c.Scopes[0].Context = map[string]string{"x": strings.Repeat("v", 1024)}
		}, "context"},
		"match": {func(c *keyserver.Config) { c.Scopes[0].Match = "a..b" }, "rule 1"},
		"scope": {func(c *keyserver.Config) { c.Scopes[0].Scope = "{{wildcard(2)}}" }, "rule 1"},
	} {
		cfg := goodConfig(t)
		if name != "no connection" {
			cfg.Conn = natsConn
		}
		c.change(&cfg)
		s, err := keyserver.New(context.Background(), cfg)
		if s != nil || !errors.Is(err, keyserver.ErrConfig) || !strings.Contains(err.Error(), c.place) {
			t.Errorf("%s: New = %v, %v, want ErrConfig naming %s", name, s, err, c.place)
		}
	}
}

// natsConn is not connected: a configuration is refused before it is used.
var natsConn = new(nats.Conn)

type allowAll struct{}

func (allowAll) Decide(policy.Request) policy.Decision {
	return policy.Decision{Allow: true, Rule: "test", Reason: "test"}
}
