package exchangetest

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
	"github.com/keyweir/keyweir/keysvc/keyserver"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

const serviceName = "prod"

// scopes is the rule of all tests.
var scopes = keyserver.ScopeRule{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}", Authorities: []string{"a"}}

// trials is how many attacks of one kind are made.
func trials() int {
	if testing.Short() {
		return 100
	}
	return 1000
}

// world is one real key service with its principals.
type world struct {
	nats    *natstest.Server
	store   *keycache.Store
	service keysvc.Identity
	people  map[string]keysvc.Identity
	eph     hpke.PrivateKey // of requests made by hand
}

// newWorld starts a key service. At first, people may be added; at last, the
// connection of the service may be changed.
func newWorld(t *testing.T, extra map[string]keysvc.Identity, connect func(*natstest.Server) *nats.Conn) *world {
	t.Helper()
	a, err := local.NewEphemeral()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	auth, err := keycache.HMACAuthenticator(make([]byte, keycache.MinHMACKey))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{nats: natstest.New(t), service: identity(t, keysvc.KindService), people: map[string]keysvc.Identity{}}
	if w.store, err = keycache.OpenMemory(keycache.Options{Authenticator: auth, Sequencer: &audit.Chain{Instance: "one"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	public := map[string]string{}
	for _, name := range []string{"gateway", "sealer", "reader"} {
		w.people[name] = identity(t, keysvc.KindRequester)
	}
	for name, id := range extra {
		w.people[name] = id
	}
	for name, id := range w.people {
		public[name] = id.Public()
	}
	people, err := policy.NewPrincipals(public)
	if err != nil {
		t.Fatal(err)
	}
	readers := []string{"reader"}
	for name := range extra {
		readers = append(readers, name)
	}
	grants, err := policy.NewGrants(people, []policy.Grant{
		{To: []string{"gateway", "sealer"}, May: []string{"generate"}, Scopes: []string{"tenant/*"}},
		{To: []string{"gateway"}, May: []string{"route-key"}, Scopes: []string{"route/*"}},
		{To: readers, May: []string{"open"}, Scopes: []string{"tenant/*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if w.eph, err = hpke.DHKEM(ecdh.X25519()).GenerateKey(); err != nil {
		t.Fatal(err)
	}
	conn := w.nats.Conn(t)
	if connect != nil {
		conn = connect(w.nats)
	}
	srv, err := keyserver.New(t.Context(), keyserver.Config{
		Conn: conn, Service: serviceName, Identity: w.service, Instance: "one", Store: w.store,
		Authorities: map[string]authority.Authority{"a": a}, Scopes: []keyserver.ScopeRule{scopes},
		Principals: public, Policy: grants,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return w
}

func identity(t *testing.T, k keysvc.Kind) keysvc.Identity {
	t.Helper()
	id, _, err := keysvc.NewIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (w *world) client(t *testing.T, who string) *keysvc.Client {
	t.Helper()
	c, err := keysvc.NewClient(keysvc.ClientConfig{
		Conn: w.nats.Conn(t), Service: serviceName, Pins: []string{w.service.Public()}, Identity: w.people[who], Timeout: 20 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// generate gets one grant for each tenant.
func (w *world) generate(t *testing.T, who string, tenants ...string) []keysvc.SealKey {
	t.Helper()
	client := w.client(t, who)
	var out []keysvc.SealKey
	for batch := range slices.Chunk(tenants, keysvc.MaxBatch) {
		var subjects []string
		for _, name := range batch {
			subjects = append(subjects, "orders."+name+".x")
		}
		ks, err := client.Generate(t.Context(), subjects)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ks...)
	}
	for i, k := range out {
		if k.Err != nil {
			t.Fatalf("%s: %v", tenants[i], k.Err)
		}
	}
	return out
}

// releases counts what the audit log says was released.
func (w *world) releases(t *testing.T) int {
	t.Helper()
	n := 0
	for raw, err := range audit.Read(w.store, 0) {
		if err != nil {
			t.Fatal(err)
		}
		r, err := audit.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if r.Outcome == audit.Allow && r.Action != "start" {
			n++
		}
	}
	return n
}

// members are those of a request body; values are marshalled as they are.
type members map[string]any

// body is a request of id, now, with a fresh nonce.
func (w *world) body(id keysvc.Identity, op string, args any, change members) string {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	m := members{
		"op": op, "audience": w.service.Public(), "principal": id.Public(), "time": time.Now().UnixMilli(), "nonce": nonce,
		"suite": keysvc.SuiteX25519, "ephemeral": w.eph.PublicKey().Bytes(), "args": args,
	}
	for name, v := range change {
		m[name] = v
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func sign(id keysvc.Identity, purpose, body string) []byte {
	sig, err := keysvc.SignPurpose(id, purpose, []byte(body))
	if err != nil {
		panic(err)
	}
	return append(sig, body...)
}

// request is a good signed request.
func (w *world) request(id keysvc.Identity, op string, args any) []byte {
	return sign(id, keysvc.PurposeRequest, w.body(id, op, args, nil))
}

// openArgs asks for one key by reference.
func openArgs(id keysvc.KeyID) keysvc.OpenArgs {
	return keysvc.OpenArgs{Keys: []keysvc.WireRecord{{KeyID: id.String()}}}
}

// answer is what came back for a request made by hand.
type answer struct {
	code   string // of the error, "ok" for a result
	result string
}

// read checks a reply by the documented steps, with nothing of the client.
func (w *world) read(request, reply []byte) (answer, error) {
	if len(reply) <= 64 {
		return answer{}, fmt.Errorf("reply of %d bytes", len(reply))
	}
	if err := keysvc.VerifyPurpose(w.service.Public(), keysvc.PurposeReply, reply[64:], reply[:64]); err != nil {
		return answer{}, err
	}
	var b struct {
		Request, Sealed []byte
		Error           *struct{ Code string }
	}
	if err := json.Unmarshal(reply[64:], &b); err != nil {
		return answer{}, err
	}
	hash := sha256.Sum256(request)
	if string(b.Request) != string(hash[:]) {
		return answer{}, errors.New("reply to another request")
	}
	if b.Error != nil {
		if len(b.Sealed) > 0 {
			return answer{}, errors.New("an error with a result")
		}
		return answer{code: b.Error.Code}, nil
	}
	info := append([]byte("keyweir/v1/reply"), hash[:]...)
	plain, err := hpke.Open(w.eph, hpke.HKDFSHA256(), hpke.AES256GCM(), info, b.Sealed)
	if err != nil {
		return answer{}, err
	}
	return answer{"ok", string(plain)}, nil
}

// ask sends bytes on the subject of op and returns the verified answer.
func (w *world) ask(nc *nats.Conn, op string, data []byte) (answer, error) {
	m, err := nc.Request(keysvc.Subject(serviceName, op), data, 20*time.Second)
	if err != nil {
		return answer{}, err
	}
	return w.read(data, m.Data)
}

// parallel runs f for 0..n-1 on some goroutines, each with its own connection.
// f reports failures itself; after a few the rest is left out.
func (w *world) parallel(t *testing.T, n int, f func(nc *nats.Conn, i int) error) {
	t.Helper()
	const workers = 8
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		nc := w.nats.Conn(t)
		wg.Go(func() {
			for failed.Load() < 5 {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(nc, i); err != nil {
					failed.Add(1)
					t.Errorf("trial %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
}
