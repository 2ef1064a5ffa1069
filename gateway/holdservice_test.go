package gateway_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
	"github.com/keyweir/keyweir/keysvc/keyserver"
	"github.com/keyweir/keyweir/streams"
)

// switchable is a policy that denies one scope for a while.
type switchable struct {
	*policy.Grants
	mu     sync.Mutex
	scope  string // denied; "": none
	denied int    // requests
}

func (p *switchable) Decide(r policy.Request) policy.Decision {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.scope != "" && r.Scope == p.scope && r.Action == keysvc.OpGenerate {
		p.denied++
		return policy.Decision{Reason: "for a while"}
	}
	return p.Grants.Decide(r)
}

func (p *switchable) deny(scope string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scope = scope
}

func (p *switchable) denials() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.denied
}

// keyService is a real key service on the fixture's server, of which a gateway
// seals and holds, and "billing" opens.
type keyService struct {
	f       *fixture
	policy  *switchable
	service keysvc.Identity
	gateway keysvc.Identity
	billing keysvc.Identity
	scopes  []keysvc.ScopeRule
}

func (f *fixture) keyService() *keyService {
	f.t.Helper()
	t := f.t
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &keyService{f: f, scopes: []keysvc.ScopeRule{{Match: "in.*.>", Scope: "tenant/{{wildcard(1)}}"}, {Match: "keyweir.hold.*", Scope: "hold/{{wildcard(1)}}"}}}
	for to, kind := range map[*keysvc.Identity]keysvc.Kind{&s.service: keysvc.KindService, &s.gateway: keysvc.KindRequester, &s.billing: keysvc.KindRequester} {
		id, _, err := keysvc.NewIdentity(kind)
		must(err)
		*to = id
	}
	public := map[string]string{"gateway": s.gateway.Public(), "billing": s.billing.Public()}
	people, err := policy.NewPrincipals(public)
	must(err)
	grants, err := policy.NewGrants(people, []policy.Grant{
		{To: []string{"gateway"}, May: []string{"generate"}, Scopes: []string{"tenant/*"}},
		{To: []string{"gateway"}, May: []string{"generate", "open"}, Scopes: []string{"hold/r"}},
		{To: []string{"gateway"}, May: []string{"route-key"}, Scopes: []string{"route/r"}},
		{To: []string{"billing"}, May: []string{"open"}, Scopes: []string{"tenant/*"}},
	})
	must(err)
	s.policy = &switchable{Grants: grants}
	kms, err := local.NewEphemeral()
	must(err)
	t.Cleanup(func() { _ = kms.Close() })
	auth, err := keycache.HMACAuthenticator(make([]byte, 32))
	must(err)
	store, err := keycache.OpenMemory(keycache.Options{Authenticator: auth, Sequencer: &audit.Chain{Instance: "one"}})
	must(err)
	t.Cleanup(func() { _ = store.Close() })
	var rules []keyserver.ScopeRule
	for _, r := range s.scopes {
		rules = append(rules, keyserver.ScopeRule{Match: r.Match, Scope: r.Scope, Authorities: []string{"local"}, Reuse: time.Second, Lease: time.Second})
	}
	srv, err := keyserver.New(t.Context(), keyserver.Config{
		Conn: f.srv.Conn(t), Service: "prod", Identity: s.service, Store: store, Authorities: map[string]authority.Authority{"local": kms},
		Scopes: rules, Principals: public, Policy: s.policy, Directory: keyserver.Directory{Memory: true},
	})
	must(err)
	t.Cleanup(func() { _ = srv.Close() })
	return s
}

func (s *keyService) client(nc *nats.Conn, id keysvc.Identity) *keysvc.Client {
	s.f.t.Helper()
	c, err := keysvc.NewClient(keysvc.ClientConfig{Conn: nc, Service: "prod", Pins: []string{s.service.Public()}, Identity: id})
	if err != nil {
		s.f.t.Fatal(err)
	}
	return c
}

// start runs an instance behind a proxy, keys included.
func (s *keyService) start() (*running, *natstest.Proxy) {
	f := s.f
	f.t.Helper()
	p := natstest.NewProxy(f.t, f.srv.Addr())
	r := f.route
	r.Source.Conn, r.Sealed.Conn = natstest.Connect(f.t, p.ClientURL()), natstest.Connect(f.t, p.ClientURL())
	g, err := gateway.New(gateway.Config{Routes: []gateway.Route{r}, Keys: s.client(natstest.Connect(f.t, p.ClientURL()), s.gateway), Logger: f.log})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.run(g), p
}

// read opens all of the sealed stream as billing does, and checks what verifyTenants
// checks, and the order evidence.
func (s *keyService) read(n int) {
	f := s.f
	f.t.Helper()
	rules, err := keysvc.NewScopeRules(s.scopes)
	if err != nil {
		f.t.Fatal(err)
	}
	o, err := streams.New(streams.Config{
		Keys: s.client(f.srv.Conn(f.t), s.billing),
		Accept: streams.Accept{Rules: []streams.AcceptRule{{
			Scopes: []string{"tenant/*"}, Schemes: []streams.Scheme{streams.SchemeSingle}, Authorities: [][]string{{"local"}},
		}}, ScopeRules: rules},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	defer o.Close()
	c, err := f.js.OrderedConsumer(f.t.Context(), sealed, jetstream.OrderedConsumerConfig{})
	if err != nil {
		f.t.Fatal(err)
	}
	v, err := streams.NewVerifier(c, streams.VerifierConfig{FromStart: true})
	if err != nil {
		f.t.Fatal(err)
	}
	seen, last := make(map[int]bool), make(map[string]int)
	for m, err := range o.Messages(f.t.Context(), c) {
		if err != nil {
			f.t.Fatal(err)
		}
		if es, err := v.Observe(m); err != nil || len(es) > 0 {
			f.t.Fatalf("after %d messages: %v, %v", len(seen), es, err)
		}
		i, err := strconv.Atoi(strings.TrimPrefix(string(m.Data()), "m"))
		if err != nil || seen[i] || m.Subject() != tenantSubject(i) || i < last[m.Subject()] {
			f.t.Fatalf("%q on %s, seen %v, after %d", m.Data(), m.Subject(), seen[i], last[m.Subject()])
		}
		seen[i], last[m.Subject()] = true, i
		if len(seen) == n {
			break
		}
	}
	if got := f.info(sealed).State.LastSeq; got != uint64(n) {
		f.t.Errorf("%d messages sealed, want %d", got, n)
	}
}

// One scope is denied by the policy of a real key service, and allowed again, while
// instances race each other, or take over from frozen ones that wake up later.
func TestHoldRealKeys(t *testing.T) {
	for _, racing := range []bool{false, true} {
		t.Run(fmt.Sprintf("racing=%v", racing), func(t *testing.T) {
			t.Parallel() // waits for most of its time
			f := newHoldFixture(t, jetstream.StreamConfig{Storage: jetstream.MemoryStorage})
			f.route.Source.AfterSeal = gateway.AfterSealPurge
			f.tune.NoClaim, f.tune.ClaimTTL = racing, time.Second
			s := f.keyService()
			a, pa := s.start()
			b, pb := s.start()
			runs, proxies := []*running{a, b}, []*natstest.Proxy{pa, pb}
			n := 0
			publish := func() {
				f.publishTenants(n+1, n+500)
				n += 500
			}
			// reached waits until an instance other than the frozen one has dealt with
			// everything, and holds something or nothing.
			reached := func(frozen int, holds bool) {
				t.Helper()
				natstest.Eventually(t, 60*time.Second, func() error {
					for i, r := range runs {
						if st := r.stats(); i != frozen && st.Position == uint64(n) && (st.MessagesHeld > 0) == holds && st.SealedSequence+st.MessagesHeld == uint64(n) {
							return nil
						}
					}
					return fmt.Errorf("%d messages published: %+v, %+v", n, a.stats(), b.stats())
				})
			}
			publish()
			reached(-1, false)
			rounds := 2
			for round := range rounds {
				s.policy.deny(tenant(7))
				before, at := s.policy.denials(), time.Now()
				natstest.Eventually(t, 60*time.Second, func() error { // the sessions of both end, after two seconds
					f.publishTenants(n+1, n+tenants)
					n += tenants
					if s.policy.denials() == before || time.Since(at) < 3*time.Second {
						return fmt.Errorf("nothing was denied, or not yet to both")
					}
					return nil
				})
				publish()
				reached(-1, true)
				frozen := round % 2
				proxies[frozen].Pause()
				publish()
				reached(frozen, true) // the other one goes on, holding
				s.policy.deny("")
				publish()
				reached(frozen, false)
				proxies[frozen].Resume()
				publish()
				reached(-1, false)
			}
			f.holdEmpty()
			f.sourceEmpty()
			for _, r := range runs {
				if err := r.stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
			}
			s.read(n)
		})
	}
}
