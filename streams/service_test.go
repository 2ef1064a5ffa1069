package streams_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
	"github.com/keyweir/keyweir/keysvc/keyserver"
	"github.com/keyweir/keyweir/streams"
)

// service is a real key service behind a real server, with a gateway that may
// seal, a reader "billing" that may open, and "guest", who may not.
type service struct {
	nats *natstest.Server
	js   jetstream.JetStream
	cfg  keyserver.Config
	id   keysvc.Identity
	seed map[string][]byte
	gate keysvc.Identity
	srv  *keyserver.Server
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{nats: natstest.New(t), seed: make(map[string][]byte)}
	s.js = s.nats.JetStream(t)
	s.id, _ = identity(t, keysvc.KindService)
	public := make(map[string]string)
	for _, name := range []string{"gateway", "billing", "guest"} {
		id, seed := identity(t, keysvc.KindRequester)
		s.seed[name], public[name] = seed, id.Public()
		if name == "gateway" {
			s.gate = id
		}
	}
	people, err := policy.NewPrincipals(public)
	must(t, err)
	grants, err := policy.NewGrants(people, []policy.Grant{
		{To: []string{"gateway"}, May: []string{"generate"}, Scopes: []string{"tenant/*"}},
		{To: []string{"billing"}, May: []string{"open"}, Scopes: []string{"tenant/*"}},
	})
	must(t, err)
	kms, err := local.NewEphemeral()
	must(t, err)
	t.Cleanup(func() { _ = kms.Close() })
	auth, err := keycache.HMACAuthenticator(make([]byte, 32))
	must(t, err)
	store, err := keycache.OpenMemory(keycache.Options{Authenticator: auth, Sequencer: &audit.Chain{Instance: "one"}})
	must(t, err)
	t.Cleanup(func() { _ = store.Close() })
	s.cfg = keyserver.Config{
		Conn: s.nats.Conn(t), Service: "prod", Identity: s.id, Store: store,
		Authorities: map[string]authority.Authority{"local": kms},
		Scopes:      []keyserver.ScopeRule{{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}", Authorities: []string{"local"}}},
		Principals:  public, Policy: grants, Directory: keyserver.Directory{Memory: true},
	}
	s.start(t)
	t.Cleanup(func() { _ = s.srv.Close() })
	_, err = s.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: streamName, Subjects: []string{"sealed.>"}, Storage: jetstream.MemoryStorage})
	must(t, err)
	return s
}

func (s *service) start(t *testing.T) {
	t.Helper()
	var err error
	s.srv, err = keyserver.New(t.Context(), s.cfg)
	must(t, err)
}

// seal publishes n messages of each tenant, by turns, as a gateway would.
func (s *service) seal(t *testing.T, n int, mode envelope.RecordMode, tenants ...string) {
	t.Helper()
	client, err := keysvc.NewClient(keysvc.ClientConfig{
		Conn: s.js.Conn(), Service: "prod", Pins: []string{s.id.Public()}, Identity: s.gate,
	})
	must(t, err)
	sessions := make([]*envelope.Session, len(tenants))
	for i, tenant := range tenants {
		keys, err := client.Generate(t.Context(), []string{"orders." + tenant + ".new"})
		must(t, err)
		must(t, keys[0].Err)
		sessions[i], err = keys[0].Grant.Session(envelope.SessionConfig{Record: mode})
		must(t, err)
	}
	for i := range n * len(tenants) {
		origin := "orders." + tenants[i%len(tenants)] + ".new"
		b, err := sessions[i%len(tenants)].Seal(nil, &envelope.Meta{
			Sequence: uint64(i + 1), Previous: uint64(i), SealedSubject: "sealed." + origin, OriginSubject: origin,
		}, fmt.Append(nil, i))
		must(t, err)
		_, err = s.js.PublishMsg(t.Context(), &nats.Msg{Subject: "sealed." + origin, Data: b})
		must(t, err)
	}
}

// opener makes one from a profile file, as an application does.
func (s *service) opener(t *testing.T, who string, change func(*streams.Config)) *streams.Opener {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, who+".json")
	must(t, os.WriteFile(filepath.Join(dir, who+".nk"), s.seed[who], 0o600))
	p := &streams.Profile{
		Version: 1, Service: "prod", Pins: []string{s.id.Public()}, Identity: who + ".nk",
		Accept: streams.ProfileAccept{Rules: []streams.ProfileRule{
			{Scopes: []string{"tenant/*"}, Schemes: []string{"single"}, Authorities: [][]string{{"local"}}},
		}},
		Scopes:    []keysvc.ScopeRule{{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}"}},
		TimeoutMs: 500,
	}
	must(t, p.WriteFile(path))
	var o *streams.Opener
	var err error
	if change == nil {
		o, err = streams.NewFromProfile(t.Context(), s.nats.Conn(t), path)
	} else {
		p, err = streams.LoadProfile(path)
		must(t, err)
		cfg, cerr := p.Config(s.nats.Conn(t))
		must(t, cerr)
		change(&cfg)
		o, err = streams.New(cfg)
	}
	must(t, err)
	streams.Fast(o)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

func (s *service) consumer(t *testing.T) jetstream.Consumer {
	t.Helper()
	c, err := s.js.CreateConsumer(t.Context(), streamName, jetstream.ConsumerConfig{Durable: "reader", AckPolicy: jetstream.AckExplicitPolicy})
	must(t, err)
	return c
}

func TestRealKeyService(t *testing.T) {
	for _, mode := range []envelope.RecordMode{envelope.RecordAuto, envelope.RecordInline, envelope.RecordReference} {
		t.Run(mode.String(), func(t *testing.T) {
			s := newService(t)
			s.seal(t, 40, mode, "acme", "globex")
			c := s.consumer(t)
			wantInOrder(t, read(t, s.opener(t, "billing", nil), c, 80), 0, 80)
			allAcked(t, c)
		})
	}
}

// Who has no grant gets nothing, and loses nothing.
func TestRealDenied(t *testing.T) {
	s := newService(t)
	s.seal(t, 2, envelope.RecordAuto, "acme")
	ctx, cancel := timeout(t)
	var st states
	o := s.opener(t, "guest", func(c *streams.Config) {
		c.OnState = func(x streams.State) { st.add(x); cancel() }
	})
	c := s.consumer(t)
	err := o.Consume(ctx, c, func(context.Context, *streams.Message) error { return errors.New("opened without a grant") })
	if all := st.get(); !errors.Is(err, context.Canceled) || len(all) != 1 || !errors.Is(all[0].Err, streams.ErrDenied) {
		t.Errorf("Consume = %v, states %+v, want a hold for ErrDenied", err, all)
	}
	if i := info(t, c); i.NumAckPending != 2 || i.NumRedelivered != 0 {
		t.Errorf("%d unacknowledged, %d redelivered", i.NumAckPending, i.NumRedelivered)
	}
}

// A key service that is away when the first key is needed, and comes back.
func TestRealOutage(t *testing.T) {
	s := newService(t)
	s.seal(t, 10, envelope.RecordReference, "acme", "globex")
	must(t, s.srv.Close())
	held := make(chan error, 1)
	o := s.opener(t, "billing", func(c *streams.Config) {
		c.OnState = func(x streams.State) {
			if x.Held {
				held <- x.Err
			}
		}
	})
	c := s.consumer(t)
	ctx, cancel := timeout(t)
	var got []string
	done := make(chan error, 1)
	go func() {
		done <- o.Consume(ctx, c, func(_ context.Context, m *streams.Message) error {
			if got = append(got, string(m.Data())); len(got) == 20 {
				cancel()
			}
			return nil
		})
	}()
	select {
	case err := <-held:
		wantError(t, err, streams.ErrUnavailable)
	case <-time.After(20 * time.Second):
		t.Fatal("no hold during the outage")
	}
	s.start(t)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Consume = %v", err)
	}
	wantInOrder(t, got, 0, 20)
	allAcked(t, c)
}

// The real service answers by key ID from what it knows: whoever changed the
// wraps in a message gets nothing opened by that, before and after the key is held.
func TestRealChangedWraps(t *testing.T) {
	s := newService(t)
	s.seal(t, 1, envelope.RecordInline, "acme")
	st, err := s.js.Stream(t.Context(), streamName)
	must(t, err)
	m, err := st.GetMsg(t.Context(), 1)
	must(t, err)
	o := s.opener(t, "billing", nil)
	for i := range 3 {
		e, err := envelope.Parse(m.Data)
		must(t, err)
		r, err := envelope.ParseRecord(e.Record)
		must(t, err)
		r.Wraps[0].Bytes[i] ^= 1
		e.Record, err = r.Append(nil)
		must(t, err)
		b, err := o.OpenBytes(t.Context(), m.Subject, e.Append(nil))
		if wantError(t, err, streams.ErrTampered); b != nil {
			t.Errorf("OpenBytes = %q", b)
		}
		if b, err = o.OpenBytes(t.Context(), m.Subject, m.Data); err != nil || string(b) != "0" {
			t.Errorf("the message as it was sealed: %q, %v", b, err)
		}
	}
}
