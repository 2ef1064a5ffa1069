package streams_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

func identity(t *testing.T, k keysvc.Kind) (keysvc.Identity, []byte) {
	t.Helper()
	id, seed, err := keysvc.NewIdentity(k)
	must(t, err)
	return id, seed
}

func profile(t *testing.T) *streams.Profile {
	t.Helper()
	service, _ := identity(t, keysvc.KindService)
	return &streams.Profile{
		Version: 1, Service: "prod", Pins: []string{service.Public()}, Identity: "billing.nk",
		Accept: streams.ProfileAccept{
			Rules: []streams.ProfileRule{
				{Scopes: []string{"secret/*"}, Schemes: []string{"split"}, Authorities: [][]string{{"aws", "customer"}}},
				{Scopes: []string{"tenant/*"}, Schemes: []string{"single", "any"}, Authorities: [][]string{{"aws"}, {"test"}}},
			},
			Chains: []string{strings.Repeat("0a", 16)},
		},
		Scopes:    []keysvc.ScopeRule{{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}"}},
		TimeoutMs: 200,
	}
}

func TestProfileRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "billing.json")
	p := profile(t)
	must(t, p.WriteFile(path))
	must(t, p.WriteFile(path)) // and over an older one
	got, err := streams.LoadProfile(path)
	must(t, err)
	if diff := cmp.Diff(p, got, cmpopts.IgnoreUnexported(streams.Profile{})); diff != "" {
		t.Errorf("profile differs (-written +loaded):\n%s", diff)
	}
	b, err := os.ReadFile(path)
	must(t, err)
	if !strings.Contains(string(b), `"orders.*.>"`) {
		t.Errorf("the pattern is not readable in\n%s", b)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files beside the profile, %v", len(entries)-1, err)
	}
}

func TestProfileValidate(t *testing.T) {
	_, seed := identity(t, keysvc.KindRequester)
	user, _ := identity(t, keysvc.KindRequester)
	for name, tc := range map[string]struct {
		change func(*streams.Profile)
		want   string
	}{
		"version":        {func(p *streams.Profile) { p.Version = 2 }, "version 2"},
		"service":        {func(p *streams.Profile) { p.Service = "a.b" }, "service"},
		"no pins":        {func(p *streams.Profile) { p.Pins = nil }, "pins"},
		"user pin":       {func(p *streams.Profile) { p.Pins[0] = user.Public() }, "pins[0]"},
		"seed":           {func(p *streams.Profile) { p.Identity = string(seed) }, "seed"},
		"NUL":            {func(p *streams.Profile) { p.Identity = "a\x00b" }, "identity"},
		"timeout":        {func(p *streams.Profile) { p.TimeoutMs = -1 }, "timeout_ms"},
		"long timeout":   {func(p *streams.Profile) { p.TimeoutMs = 1 << 62 }, "timeout_ms"},
		"no rules":       {func(p *streams.Profile) { p.Accept.Rules = nil }, "accept.rules"},
		"empty rule":     {func(p *streams.Profile) { p.Accept.Rules[1].Authorities = nil }, "accept.rules[1]"},
		"scheme":         {func(p *streams.Profile) { p.Accept.Rules[0].Schemes = []string{"Single"} }, "scheme"},
		"empty set":      {func(p *streams.Profile) { p.Accept.Rules[0].Authorities = [][]string{{}} }, "authorities[0]"},
		"empty name":     {func(p *streams.Profile) { p.Accept.Rules[0].Authorities = [][]string{{"a", ""}} }, "authorities[0]"},
		"threshold":      {func(p *streams.Profile) { p.Accept.Rules[0].Threshold = 99 }, "threshold"},
		"chain":          {func(p *streams.Profile) { p.Accept.Chains = []string{"xy"} }, "accept.chains[0]"},
		"no scopes":      {func(p *streams.Profile) { p.Scopes = nil }, "scopes"},
		"scope template": {func(p *streams.Profile) { p.Scopes[0].Scope = "{{wildcard(2)}}" }, "scope rule 1"},
	} {
		p := profile(t)
		tc.change(p)
		err := p.Validate()
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Validate = %v, want it to name %q", name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), string(seed)) {
			t.Errorf("%s: the error repeats the seed", name)
		}
		path := filepath.Join(t.TempDir(), "p.json")
		if err := p.WriteFile(path); err == nil {
			t.Errorf("%s: WriteFile wrote it", name)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a file appeared (%v)", name, err)
		}
	}
}

func TestParseProfileStrict(t *testing.T) {
	good, err := json.Marshal(profile(t))
	must(t, err)
	if _, err := streams.ParseProfile(good); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"unknown name":   strings.Replace(string(good), `"version"`, `"verzion":1,"version"`, 1),
		"case variant":   strings.Replace(string(good), `"version"`, `"Version"`, 1),
		"duplicate":      strings.Replace(string(good), `"version"`, `"version":1,"version"`, 1),
		"trailing":       string(good) + "{}",
		"null":           strings.Replace(string(good), `"service":"prod"`, `"service":null`, 1),
		"not an object":  `[]`,
		"empty":          ``,
		"unknown nested": strings.Replace(string(good), `"schemes"`, `"scheme":[],"schemes"`, 1),
		"too large":      string(good) + strings.Repeat(" ", 1<<20),
	} {
		if p, err := streams.ParseProfile([]byte(bad)); err == nil || p != nil {
			t.Errorf("%s: ParseProfile = %v, %v", name, p, err)
		}
	}
}

func TestNewFromProfile(t *testing.T) {
	nc := natstest.New(t).Conn(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "billing.json")
	p := profile(t)
	must(t, p.WriteFile(path))
	if _, err := streams.NewFromProfile(t.Context(), nc, path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its identity: %v, want a missing file", err)
	}
	_, seed := identity(t, keysvc.KindRequester)
	must(t, os.WriteFile(filepath.Join(dir, "billing.nk"), seed, 0o644))
	if _, err := streams.NewFromProfile(t.Context(), nc, path); err == nil {
		t.Error("an identity that others can read was accepted")
	}
	must(t, os.Chmod(filepath.Join(dir, "billing.nk"), 0o600))
	o, err := streams.NewFromProfile(t.Context(), nc, path)
	must(t, err)
	defer func() { _ = o.Close() }()

	// What the profile pins is what the opener accepts, and nobody serves keys here.
	keys := streamstest.NewKeys()
	m := keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"}).Seal(t, "orders.acme.a", nil, nil)
	start := time.Now()
	_, err = o.OpenBytes(t.Context(), m.Subject, m.Data)
	wantError(t, err, streams.ErrUnavailable)
	if d := time.Since(start); d < 200*time.Millisecond || d > 5*time.Second {
		t.Errorf("gave up after %v, want the profile's 200ms", d)
	}
	for _, s := range []streamstest.Sealing{
		{Scope: "secret/acme"},
		{Scope: "other"},
		{Scope: "tenant/acme", Authorities: []string{"aws", "test"}},
	} {
		m := keys.NewSealer(t, s).Seal(t, "orders.acme.a", nil, nil)
		_, err = o.OpenBytes(t.Context(), m.Subject, m.Data)
		wantError(t, err, streams.ErrNotAccepted)
	}

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := streams.NewFromProfile(cancelled, nc, path); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	p.Identity = ""
	if _, err := p.Config(nc); err == nil {
		t.Error("Config without an identity succeeded")
	}
	id, _ := identity(t, keysvc.KindRequester)
	cfg, err := p.ConfigAs(nc, id)
	if err != nil || cfg.Keys == nil || len(cfg.Accept.Rules) != 2 || len(cfg.Accept.Chains) != 1 || cfg.KeyTimeout != 200*time.Millisecond {
		t.Errorf("ConfigAs = %+v, %v", cfg, err)
	}
}
