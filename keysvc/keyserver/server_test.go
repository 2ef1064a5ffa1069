package keyserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
	"github.com/keyweir/keyweir/keysvc/keyserver"
)

// world is a real NATS server, store and authority, and what is needed to run and
// ask a key service.
type world struct {
	t      testing.TB
	nats   *natstest.Server
	faults *keyserver.Faults
	local  *local.Authority
	store  *keycache.Store
	id     keysvc.Identity
	people map[string]keysvc.Identity
	cfg    keyserver.Config
	srv    *keyserver.Server
}

func openStore(t testing.TB) *keycache.Store {
	t.Helper()
	auth, err := keycache.HMACAuthenticator(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s, err := keycache.OpenMemory(keycache.Options{Authenticator: auth, Sequencer: &audit.Chain{Instance: "one"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newWorld(t testing.TB, change func(*world)) *world {
	t.Helper()
	a, err := local.NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	w := &world{t: t, nats: natstest.New(t), faults: keyserver.NewFaults(a), local: a, store: openStore(t), people: map[string]keysvc.Identity{}}
	public := map[string]string{}
	for _, name := range []string{"gateway", "billing", "both", "temp", "nobody"} {
		id, _, err := keysvc.NewIdentity(keysvc.KindRequester)
		if err != nil {
			t.Fatal(err)
		}
		w.people[name], public[name] = id, id.Public()
	}
	stranger, _, err := keysvc.NewIdentity(keysvc.KindRequester)
	if err != nil {
		t.Fatal(err)
	}
	w.people["stranger"] = stranger
	if w.id, _, err = keysvc.NewIdentity(keysvc.KindService); err != nil {
		t.Fatal(err)
	}
	people, err := policy.NewPrincipals(public)
	if err != nil {
		t.Fatal(err)
	}
	grants, err := policy.NewGrants(people, []policy.Grant{
		{To: []string{"gateway", "both"}, May: []string{"generate"}, Scopes: []string{"tenant/*"}},
		{To: []string{"gateway"}, May: []string{"route-key"}, Scopes: []string{"route/orders"}},
		{To: []string{"billing", "both"}, May: []string{"open"}, Scopes: []string{"tenant/acme", "tenant/b*"}},
		{To: []string{"temp"}, May: []string{"open"}, Scopes: []string{"*"}, Expires: time.Now().Add(-time.Second)},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = keyserver.Config{
		Conn: w.nats.Conn(t), Service: "prod", Identity: w.id, Instance: "one", Version: "v1.2.3", Store: w.store,
		Authorities: map[string]authority.Authority{"a": w.faults},
		Scopes: []keyserver.ScopeRule{
			{Match: "orders.vip.>", Scope: "tenant/vip", Authorities: []string{"a"}},
			{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}", Authorities: []string{"a"}, Lease: 2 * time.Minute, Context: map[string]string{"team": "orders"}},
		},
		Principals: public, Policy: grants,
	}
	if change != nil {
		change(w)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) start() {
	w.t.Helper()
	var err error
	if w.srv, err = keyserver.New(context.Background(), w.cfg); err != nil {
		w.t.Fatalf("New = %v", err)
	}
}

func (w *world) stop() {
	w.t.Helper()
	if err := w.srv.Close(); err != nil {
		w.t.Errorf("Close = %v", err)
	}
}

func (w *world) client(who string) *keysvc.Client {
	w.t.Helper()
	c, err := keysvc.NewClient(keysvc.ClientConfig{
		Conn: w.nats.Conn(w.t), Service: "prod", Pins: []string{w.id.Public()}, Identity: w.people[who], Timeout: 5 * time.Second,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// trail is the audit log without the start records.
func (w *world) trail() []audit.Record {
	w.t.Helper()
	var out []audit.Record
	for raw, err := range audit.Read(w.store, 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		r, err := audit.Parse(raw)
		if err != nil {
			w.t.Fatal(err)
		}
		if r.Action != "start" {
			out = append(out, r)
		}
	}
	if _, err := audit.VerifyStore(w.store); err != nil {
		w.t.Errorf("audit chain: %v", err)
	}
	return out
}

func (w *world) generate(who string, subjects ...string) []keysvc.SealKey {
	w.t.Helper()
	keys, err := w.client(who).Generate(context.Background(), subjects)
	if err != nil {
		w.t.Fatalf("Generate(%v) by %s = %v", subjects, who, err)
	}
	return keys
}

func sealOne(t *testing.T, k keysvc.SealKey, payload string) []byte {
	t.Helper()
	s, err := k.Grant.Session(envelope.SessionConfig{Record: envelope.RecordInline})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.Seal(nil, &envelope.Meta{Sequence: 1, SealedSubject: "x", OriginSubject: "x"}, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFromGenerateToOpen(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	keys := w.generate("gateway", "orders.acme.1", "orders.acme.2", "orders.vip.1", "invoices.1", "orders.*.1", "orders.bcorp.1")
	for i, want := range []struct {
		scope string
		err   error
	}{{scope: "tenant/acme"}, {scope: "tenant/acme"}, {scope: "tenant/vip"}, {err: keysvc.ErrNoScope}, {err: keysvc.ErrInvalid}, {scope: "tenant/bcorp"}} {
		if k := keys[i]; k.Scope != want.scope || !errors.Is(k.Err, want.err) || want.err == nil && k.Err != nil {
			t.Fatalf("grant %d = scope %q, %v, want %+v", i, k.Scope, k.Err, want)
		}
	}
	acme, again, vip, bcorp := keys[0], keys[1], keys[2], keys[5]
	if acme.Grant.KeyID() != again.Grant.KeyID() || acme.Grant.KeyID() == bcorp.Grant.KeyID() {
		t.Fatal("subjects of one scope share a key, scopes do not")
	}
	if acme.Messages != 1<<32-1 || acme.Bytes != 64<<30 {
		t.Errorf("budget = %d messages, %d bytes", acme.Messages, acme.Bytes)
	}
	if left := time.Until(acme.NotAfter); left > 5*time.Minute || left < 4*time.Minute {
		t.Errorf("reuse = %v, want 5m", left)
	}
	sealed := sealOne(t, acme, "hello")
	e, err := envelope.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := acme.Grant.Session(envelope.SessionConfig{}); !errors.Is(err, envelope.ErrSessionEnded) {
		t.Errorf("second session of a grant = %v, want ErrSessionEnded", err)
	}

	opened, err := w.client("billing").OpenKeys(ctx, []keysvc.Record{
		{KeyID: acme.Grant.KeyID()},                      // by reference
		{KeyID: acme.Grant.KeyID(), Bytes: e.Record},     // by record
		{KeyID: vip.Grant.KeyID()},                       // not granted
		{KeyID: envelope.KeyID{1}},                       // unknown
		{KeyID: bcorp.Grant.KeyID(), Bytes: e.Record},    // another key's record
		{KeyID: bcorp.Grant.KeyID()},                     // fine
		{KeyID: acme.Grant.KeyID(), Bytes: []byte("kw")}, // malformed
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{nil, nil, keysvc.ErrDenied, keysvc.ErrNotFound, keysvc.ErrInvalid, nil, keysvc.ErrInvalid} {
		if !errors.Is(opened[i].Err, want) || want == nil && opened[i].Err != nil {
			t.Errorf("key %d: %v, want %v", i, opened[i].Err, want)
		}
	}
	if left := time.Until(opened[0].NotAfter); left > 2*time.Minute || left < time.Minute {
		t.Errorf("lease = %v, want 2m", left)
	}
	rec, err := envelope.ParseRecord(opened[0].Record)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := envelope.NewKeyReader(rec, opened[0].Key, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	got, err := reader.Open(nil, &e)
	if err != nil || string(got.Payload) != "hello" {
		t.Fatalf("Open = %q, %v", got.Payload, err)
	}
	if p := (envelope.Pair{Name: "team", Value: "orders"}); rec.Core.Context[len(rec.Core.Context)-1] != p {
		t.Errorf("context = %v, want the rule's pair in it", rec.Core.Context)
	}

	var lines []string
	for _, r := range w.trail() {
		lines = append(lines, fmt.Sprintf("%s %s %s %s %d", r.Principal, r.Action, r.Outcome, r.Scope, len(r.KeyIDs)))
	}
	for _, want := range []string{
		"gateway generate allow tenant/acme 2", "gateway generate allow tenant/vip 1", "gateway generate deny  0",
		"billing open allow tenant/acme 2", "billing open deny tenant/vip 1", "billing open error  1",
	} {
		if !strings.Contains("\n"+strings.Join(lines, "\n")+"\n", "\n"+want+"\n") {
			t.Errorf("audit log lacks %q:\n%s", want, strings.Join(lines, "\n"))
		}
	}
}

func TestWhoMayWhat(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	id := w.generate("gateway", "orders.acme.1")[0].Grant.KeyID()
	ask := map[string]func(*keysvc.Client) error{
		"generate": func(c *keysvc.Client) error {
			k, err := c.Generate(ctx, []string{"orders.acme.1"})
			if err == nil {
				err = k[0].Err
			}
			return err
		},
		"open": func(c *keysvc.Client) error {
			k, err := c.OpenKeys(ctx, []keysvc.Record{{KeyID: id}})
			if err == nil {
				err = k[0].Err
			}
			return err
		},
		"route-key": func(c *keysvc.Client) error { _, err := c.RouteKey(ctx, "orders"); return err },
		"other-route": func(c *keysvc.Client) error {
			_, err := c.RouteKey(ctx, "invoices")
			return err
		},
		"scopes": func(c *keysvc.Client) error { _, err := c.Scopes(ctx); return err },
		"status": func(c *keysvc.Client) error { _, err := c.Status(ctx); return err },
	}
	for who, may := range map[string]string{
		"gateway": "generate route-key scopes status", "billing": "open scopes status", "both": "generate open scopes status",
		"temp": "status", "nobody": "status", "stranger": "",
	} {
		for op, f := range ask {
			var want error
			if !strings.Contains(" "+may+" ", " "+op+" ") {
				want = keysvc.ErrDenied
			}
			if err := f(w.client(who)); !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("%s by %s = %v, want %v", op, who, err, want)
			}
		}
	}
	denied := map[string]int{}
	for _, r := range w.trail() {
		if r.Outcome == audit.Deny {
			denied[r.Principal+" "+r.Action]++
		}
		if r.Outcome == audit.Allow && (r.Principal == "temp" || r.Principal == "nobody") {
			t.Errorf("audit log allows %+v", r)
		}
	}
	for _, want := range []string{"gateway open", "billing generate", "nobody open", "temp open", "temp scopes", "nobody route-key"} {
		if denied[want] == 0 {
			t.Errorf("denied %q is not in the audit log", want)
		}
	}
	for who := range denied {
		if strings.HasPrefix(who, "stranger") || strings.HasPrefix(who, "U") {
			t.Errorf("a request that was not authenticated is in the audit log: %s", who)
		}
	}
}

func TestScopesAndStatus(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	rules, err := w.client("billing").Scopes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if scope, i, err := rules.Scope("orders.vip.x"); scope != "tenant/vip" || i != 0 || err != nil {
		t.Errorf("Scope = %q, %d, %v: the order of the rules is lost", scope, i, err)
	}
	w.generate("gateway", "orders.acme.1")
	w.generate("gateway", "orders.acme.1")
	natstest.Eventually(t, 5*time.Second, func() error {
		if n := w.faults.Calls(""); n != 4 {
			return fmt.Errorf("%d authority calls, want 4", n)
		}
		return nil
	})
	st, err := w.client("nobody").Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	end, err := audit.End(w.store)
	if err != nil {
		t.Fatal(err)
	}
	if st.Service != "prod" || st.Instance != "one" || st.Version != "v1.2.3" || len(st.Ops) != 5 || len(st.Suites) != 4 || st.UptimeMs < 0 ||
		st.DataKeys != 1 || st.CacheMisses != 1 || st.CacheHits != 1 || st.AuthorityCalls != 4 || st.AuthorityErrors != 0 ||
		st.AuditCount != end.Seq || st.AuditHead != fmt.Sprintf("%x", end.Hash) {
		t.Errorf("Status = %+v", st)
	}
	// Discovery comes from the micro framework.
	reply, err := w.nats.Conn(t).Request("$SRV.INFO."+keyserver.ServiceName, nil, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var info micro.Info
	if err := json.Unmarshal(reply.Data, &info); err != nil || info.Version != "1.2.3" || len(info.Endpoints) != 5 || info.Metadata["service"] != "prod" {
		t.Errorf("micro info = %s, %v", reply.Data, err)
	}
}

func TestManyClientsOneKey(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Queue = 4096 })
	w.faults.Delay(100 * time.Millisecond)
	var wg sync.WaitGroup
	ids := make([]envelope.KeyID, 50)
	for i := range ids {
		c := w.client("both")
		wg.Go(func() {
			k, err := c.Generate(context.Background(), []string{"orders.acme.1"})
			if err != nil || k[0].Err != nil {
				t.Errorf("Generate = %v, %v", k, err)
				return
			}
			ids[i] = k[0].Grant.KeyID()
			o, err := c.OpenKeys(context.Background(), []keysvc.Record{{KeyID: ids[i]}})
			if err != nil || o[0].Err != nil {
				t.Errorf("OpenKeys = %v, %v", o, err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatal("more than one key")
		}
	}
	if n := w.faults.Calls("generate"); n != 1 {
		t.Errorf("%d generate calls for %d clients, want 1", n, len(ids))
	}
}

// TestDirectoryResolves: with another, empty store the directory alone resolves
// references, and only to what the service signed.
func TestDirectoryResolves(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	keys := w.generate("both", "orders.acme.1", "orders.bcorp.1")
	one, two := keys[0].Grant.KeyID(), keys[1].Grant.KeyID()
	w.stop()
	w.store = openStore(t)
	w.cfg.Store = w.store
	js, err := jetstream.New(w.nats.Conn(t))
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(ctx, keyserver.DirectoryBucket("prod"))
	if err != nil {
		t.Fatal(err)
	}
	good, err := kv.Get(ctx, two.String())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(good.Value(), []byte("demo")) || len(good.Value()) > 1024 {
		t.Errorf("entry of %d bytes", len(good.Value()))
	}
	w.start()
	c := w.client("both")
	open := func(id envelope.KeyID) error {
		t.Helper()
		o, err := c.OpenKeys(ctx, []keysvc.Record{{KeyID: id}})
		if err != nil {
			t.Fatal(err)
		}
		return o[0].Err
	}
	if err := open(one); err != nil {
		t.Errorf("open through the directory = %v", err)
	}
	// Whoever can write to the bucket still cannot make an entry.
	other, _, err := keysvc.NewIdentity(keysvc.KindService)
	if err != nil {
		t.Fatal(err)
	}
	rec := good.Value()
	record := rec[4+32+8+1+len(w.id.Public())+2 : len(rec)-64]
	forged, err := keyserver.EncodeEntry(other, two, record, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string][]byte{
		"signed by another": forged,
		"no signature":      rec[:len(rec)-64],
		"bad signature":     append(bytes.Clone(rec[:len(rec)-1]), rec[len(rec)-1]^1),
		"trailing byte":     append(bytes.Clone(rec), 0),
		"empty":             {},
		"junk":              []byte("junk"),
	} {
		if _, err := kv.Put(ctx, two.String(), value); err != nil {
			t.Fatal(err)
		}
		if err := open(two); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%s: open = %v, want ErrInvalid", name, err)
		}
		w.srv.ForgetRefusals()
	}
	if _, err := kv.Put(ctx, two.String(), good.Value()); err != nil {
		t.Fatal(err)
	}
	if err := open(two); err != nil {
		t.Errorf("open with the good entry = %v", err)
	}
	// A former identity of the service counts if it is configured.
	if err := kv.Delete(ctx, two.String()); err != nil {
		t.Fatal(err)
	}
}

func TestRotatedServiceIdentity(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	id := w.generate("both", "orders.acme.1")[0].Grant.KeyID()
	w.stop()
	old := w.id.Public()
	var err error
	if w.id, _, err = keysvc.NewIdentity(keysvc.KindService); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		signers []string
		want    error
	}{{nil, keysvc.ErrInvalid}, {[]string{old}, nil}} {
		w.store = openStore(t)
		w.cfg.Store, w.cfg.Identity, w.cfg.Directory.Signers = w.store, w.id, c.signers
		w.start()
		o, err := w.client("both").OpenKeys(ctx, []keysvc.Record{{KeyID: id}})
		if err != nil || !errors.Is(o[0].Err, c.want) || c.want == nil && o[0].Err != nil {
			t.Errorf("former signers %v: open = %v, %v, want %v", c.signers, o, err, c.want)
		}
		w.stop()
	}
	w.start()
}

// tap records what goes over a subject, as anybody in the account can.
func (w *world) tap(subject string) <-chan *nats.Msg {
	w.t.Helper()
	ch := make(chan *nats.Msg, 256)
	nc := w.nats.Conn(w.t)
	if _, err := nc.ChanSubscribe(subject, ch); err != nil {
		w.t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		w.t.Fatal(err)
	}
	return ch
}

func next(t *testing.T, ch <-chan *nats.Msg) *nats.Msg {
	t.Helper()
	select {
	case m := <-ch:
		return m
	case <-time.After(5 * time.Second):
		t.Fatal("no message")
		return nil
	}
}

// errorOf reads the code of a signed error reply.
func errorOf(t *testing.T, data []byte) string {
	t.Helper()
	var b struct {
		Error *keysvc.WireError `json:"error"`
	}
	if len(data) < 64 {
		t.Fatalf("reply of %d bytes", len(data))
	}
	if err := json.Unmarshal(data[64:], &b); err != nil {
		t.Fatal(err)
	}
	if b.Error == nil {
		return "ok"
	}
	return b.Error.Code
}

func TestReplay(t *testing.T) {
	w := newWorld(t, nil)
	requests := w.tap(keysvc.Subject("prod", keysvc.OpGenerate))
	w.generate("gateway", "orders.acme.1")
	caught := next(t, requests)
	nc := w.nats.Conn(t)
	for range 20 {
		m, err := nc.Request(caught.Subject, caught.Data, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if code := errorOf(t, m.Data); code != "misdelivered" {
			t.Fatalf("replayed request: %s, want misdelivered", code)
		}
	}
	ask := func(subject string, data []byte) string {
		t.Helper()
		m, err := nc.Request(subject, data, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return errorOf(t, m.Data)
	}
	if code := ask(keysvc.Subject("prod", keysvc.OpOpen), caught.Data); code != "misdelivered" {
		t.Errorf("request on another operation's subject: %s, want misdelivered", code)
	}
	for _, junk := range [][]byte{nil, make([]byte, 64), bytes.Repeat([]byte("x"), 1000), append(bytes.Clone(caught.Data), ' ')} {
		if code := ask(caught.Subject, junk); code != "invalid" {
			t.Errorf("junk of %d bytes: %s, want invalid", len(junk), code)
		}
	}
	var replays, all int
	for _, r := range w.trail() {
		all++
		if strings.Contains(r.Reason, "replayed") && r.Outcome == audit.Deny {
			replays++
		}
	}
	if replays != 1 || all != 2 {
		t.Errorf("%d replays in %d audit records, want 1 in 2: neither silence nor a full disk", replays, all)
	}
	// A new instance knows no nonces, so it takes nothing signed before its start.
	w.stop()
	w.start()
	m, err := nc.Request(caught.Subject, caught.Data, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if code := errorOf(t, m.Data); code != "busy" {
		t.Errorf("request from before the start: %s, want busy", code)
	}
	w.generate("gateway", "orders.acme.1")
}

func TestBusy(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Workers, w.cfg.Queue = 1, 1 })
	release := w.faults.Hang()
	requests, replies := w.tap(keysvc.Subject("prod", keysvc.OpGenerate)), w.tap("_INBOX.>")
	var wg sync.WaitGroup
	for range 6 {
		c := w.client("gateway")
		wg.Go(func() {
			k, err := c.Generate(context.Background(), []string{"orders.acme.1"})
			if err != nil || k[0].Err != nil {
				t.Errorf("Generate after busy = %v, %v", k, err)
			}
		})
	}
	for range 6 {
		next(t, requests)
	}
	busy := 0
	for busy < 4 {
		if errorOf(t, next(t, replies).Data) == "busy" {
			busy++
		}
	}
	release()
	wg.Wait()
}

// TestNoAuditNoKey: when the audit record cannot be written, nothing is released
// and the server ends.
func TestNoAuditNoKey(t *testing.T) {
	w := newWorld(t, nil)
	id := w.generate("both", "orders.acme.1")[0].Grant.KeyID()
	replies := w.tap("_INBOX.>")
	c := w.client("both")
	if o, err := c.OpenKeys(context.Background(), []keysvc.Record{{KeyID: id}}); err != nil || o[0].Err != nil {
		t.Fatalf("OpenKeys = %v, %v", o, err)
	}
	if code := errorOf(t, next(t, replies).Data); code != "ok" {
		t.Fatalf("reply: %s", code)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	for range 20 { // the key is in memory, only the log is not writable
		if _, err := c.OpenKeys(context.Background(), []keysvc.Record{{KeyID: id}}); !errors.Is(err, keysvc.ErrUnavailable) {
			t.Fatalf("OpenKeys without an audit log = %v, want ErrUnavailable", err)
		}
		if code := errorOf(t, next(t, replies).Data); code != "unavailable" {
			t.Fatalf("reply without an audit log: %s, want unavailable", code)
		}
	}
	select {
	case <-w.srv.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("Done is not closed")
	}
	if !errors.Is(w.srv.Err(), keycache.ErrStopped) {
		t.Errorf("Err = %v, want ErrStopped", w.srv.Err())
	}
}

func TestCloseDrains(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Workers = 2 })
	requests := w.tap(keysvc.Subject("prod", keysvc.OpGenerate))
	release := w.faults.Hang()
	var wg sync.WaitGroup
	for i := range 8 {
		c := w.client("gateway")
		wg.Go(func() {
			k, err := c.Generate(context.Background(), []string{fmt.Sprintf("orders.x%d.1", i)})
			if err != nil || k[0].Err != nil {
				t.Errorf("Generate during Close = %v, %v", k, err)
			}
		})
	}
	for range 8 {
		next(t, requests)
	}
	// What the tap has seen the service's own connection has been sent as well.
	natstest.Eventually(t, 5*time.Second, func() error {
		if n := w.faults.Calls("generate"); n < 2 {
			return fmt.Errorf("%d requests at work", n)
		}
		return nil
	})
	closed := make(chan error, 1)
	go func() { closed <- w.srv.Close() }()
	release()
	wg.Wait()
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
	if err := w.srv.Close(); err != nil || w.srv.Err() != nil {
		t.Errorf("second Close = %v, Err %v", err, w.srv.Err())
	}
	<-w.srv.Done()
	c := w.client("gateway")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Generate(ctx, []string{"orders.acme.1"}); !errors.Is(err, keysvc.ErrUnavailable) {
		t.Errorf("Generate after Close = %v, want ErrUnavailable", err)
	}
}

// TestNothingSecretOnTheWire: a subscriber on everything sees neither data keys
// nor grants.
func TestNothingSecretOnTheWire(t *testing.T) {
	w := newWorld(t, nil)
	all := w.tap(">")
	id := w.generate("both", "orders.acme.1")[0].Grant.KeyID()
	o, err := w.client("both").OpenKeys(context.Background(), []keysvc.Record{{KeyID: id}})
	if err != nil || o[0].Err != nil {
		t.Fatal(err, o)
	}
	key := envelope.ExposeDataKey(o[0].Key)
	text, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 { // two requests, two replies, and the directory entry
		m := next(t, all)
		if bytes.Contains(m.Data, key) || bytes.Contains(m.Data, bytes.Trim(text, `"`)) {
			t.Errorf("the data key is on %s", m.Subject)
		}
	}
	for e, err := range w.store.Scan(nil) {
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(e.Value, key) {
			t.Errorf("the data key is in row %q", e.Key)
		}
	}
}
