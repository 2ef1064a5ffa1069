package exchangetest

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// impostor answers requests of others, as fast as it can, with everything but the
// service's key.
type impostor struct {
	t       *testing.T
	w       *world
	nc      *nats.Conn
	service string            // whose subjects it sits on
	id      keysvc.Identity   // a service's, pinned by nobody
	member  keysvc.Identity   // an enrolled requester's
	key     envelope.DataKey  // what it would have readers use
	forged  atomic.Int64      // answers given
	seen    map[[32]byte]bool // requests handled; touched by the subscription only

	mu      sync.Mutex
	replies [][]byte // of the true service, to others
}

// codes are all an error reply may carry.
var codes = []string{"denied", "no_scope", "not_found", "suspended", "destroyed", "unavailable", "busy", "clock_skew", "invalid", "misdelivered", "unsupported", "bad_reply", ""}

func newImpostor(t *testing.T, w *world, service string) *impostor {
	t.Helper()
	e := &impostor{
		t: t, w: w, nc: w.nats.Conn(t), service: service, id: identity(t, keysvc.KindService), member: w.people["gateway"],
		key: envelope.GenerateDataKey(), seen: map[[32]byte]bool{},
	}
	if _, err := e.nc.Subscribe(keysvc.Subject(service, "open"), e.request); err != nil {
		t.Fatal(err)
	}
	if _, err := e.nc.Subscribe("_INBOX.>", func(m *nats.Msg) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.replies) < 50 && len(m.Data) > 64 && keysvc.VerifyPurpose(w.service.Public(), keysvc.PurposeReply, m.Data[64:], m.Data[:64]) == nil {
			e.replies = append(e.replies, m.Data)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := e.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return e
}

// request forges answers to one request.
func (e *impostor) request(m *nats.Msg) {
	hash := sha256.Sum256(m.Data)
	if e.seen[hash] {
		return // one of our own copies
	}
	e.seen[hash] = true
	var b struct {
		Suite     string
		Ephemeral []byte
		Args      keysvc.OpenArgs
	}
	if len(m.Data) <= 64 || json.Unmarshal(m.Data[64:], &b) != nil || len(b.Args.Keys) != 1 {
		return // garbage of ours
	}
	say := func(data []byte) {
		e.forged.Add(1)
		if err := e.nc.Publish(m.Reply, data); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			e.t.Error(err)
		}
	}
	// A result as the service makes it, sealed to this very request, with a key
	// that the impostor knows.
	good := e.result(b.Suite, b.Ephemeral, hash, b.Args.Keys[0].KeyID)
	say(sign(e.id, keysvc.PurposeReply, good))
	say(sign(e.member, keysvc.PurposeReply, good))
	say(append(make([]byte, 64), good...))
	say([]byte(good))
	say(nil)
	say(m.Data)
	junk := make([]byte, 700)
	rand.Read(junk)
	say(junk)
	code := codes[int(e.forged.Load())%len(codes)]
	failed := fmt.Sprintf(`{"request":%s,"instance":"one","time":%d,"error":{"code":%q,"text":"","offset_ms":0}}`, quote(hash[:]), time.Now().UnixMilli(), code)
	say(sign(e.id, keysvc.PurposeReply, failed))
	say(append(make([]byte, 64), failed...))
	say([]byte(failed))
	// What the service said to others, and to others with another body.
	e.mu.Lock()
	var old []byte
	if n := len(e.replies); n > 0 {
		old = e.replies[int(hash[0])%n]
	}
	e.mu.Unlock()
	if old != nil {
		say(old)
		say(append(append([]byte(nil), old[:64]...), good...))
	}
	no := nats.NewMsg(m.Reply) // "no responders"
	no.Header.Set("Status", "503")
	_ = e.nc.PublishMsg(no)
	// Make the service itself refuse: copies of the request, here and elsewhere,
	// whose answers go to the requester.
	for _, op := range []string{"generate", "status", "scopes", "route-key", "open", "open"} {
		_ = e.nc.PublishRequest(keysvc.Subject(e.service, op), m.Reply, m.Data)
	}
}

func quote(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// result is the body of a good reply, but for its signer.
func (e *impostor) result(suite string, ephemeral []byte, hash [32]byte, keyID string) string {
	kem := hpke.MLKEM768X25519()
	switch suite {
	case keysvc.SuiteMLKEM768P256:
		kem = hpke.MLKEM768P256()
	case keysvc.SuiteX25519:
		kem = hpke.DHKEM(ecdh.X25519())
	case keysvc.SuiteP256:
		kem = hpke.DHKEM(ecdh.P256())
	}
	to, err := kem.NewPublicKey(ephemeral)
	if err != nil {
		e.t.Error(err)
		return "{}"
	}
	plain := quote(keysvc.OpenResult{Keys: []keysvc.WireKey{{
		KeyID: keyID, Record: []byte("record"), Key: envelope.ExposeDataKey(e.key), LeaseMs: 1 << 40,
	}}})
	sealed, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), append([]byte("keyweir/v1/reply"), hash[:]...), []byte(plain))
	if err != nil {
		e.t.Error(err)
	}
	return fmt.Sprintf(`{"request":%s,"instance":"one","time":%d,"sealed":%s}`, quote(hash[:]), time.Now().UnixMilli(), quote(sealed))
}

// TestForgedReplies lets an impostor answer first, always: the service sits behind
// a slow connection. Every call gets the true key all the same.
func TestForgedReplies(t *testing.T) {
	w := newWorld(t, nil, func(s *natstest.Server) *nats.Conn {
		p := natstest.NewProxy(t, s.Addr())
		p.SetLatency(3 * time.Millisecond)
		return natstest.Connect(t, p.ClientURL())
	})
	key := w.generate(t, "sealer", "acme")[0].Grant.KeyID()
	honest, err := w.client(t, "reader").OpenKeys(t.Context(), []keysvc.Record{{KeyID: key}})
	if err != nil || honest[0].Err != nil {
		t.Fatal(err, honest)
	}
	want := honest[0].Key
	e := newImpostor(t, w, serviceName)

	clients := make(chan *keysvc.Client, 8)
	var all []*keysvc.Client
	for _, suite := range append(keysvc.Suites(), keysvc.Suites()...) {
		c, err := keysvc.NewClient(keysvc.ClientConfig{
			Conn: w.nats.Conn(t), Service: serviceName, Pins: []string{w.service.Public()}, Identity: w.people["reader"], Suite: suite,
		})
		if err != nil {
			t.Fatal(err)
		}
		clients <- c
		all = append(all, c)
	}
	w.parallel(t, trials(), func(*nats.Conn, int) error {
		c := <-clients
		defer func() { clients <- c }()
		ks, err := c.OpenKeys(t.Context(), []keysvc.Record{{KeyID: key}})
		if err != nil {
			return err
		}
		if k := ks[0]; k.Err != nil || !k.Key.Equal(want) || k.Key.Equal(e.key) {
			return fmt.Errorf("another key than the service's, %v", k.Err)
		}
		return nil
	})
	var counted uint64
	for _, c := range all {
		counted += c.BadReplies()
	}
	t.Logf("%d calls, %d forged answers, %d of them reached a call in time", trials(), e.forged.Load(), counted)
	if int(e.forged.Load()) < 10*trials() || int(counted) < 5*trials() {
		t.Errorf("%d forged answers, %d counted, for %d calls: the impostor was too late", e.forged.Load(), counted, trials())
	}
}

// TestOnlyForgedReplies: where the service is silent, the impostor gets nothing
// but the client's patience.
func TestOnlyForgedReplies(t *testing.T) {
	w := newWorld(t, nil, nil)
	key := w.generate(t, "sealer", "acme")[0].Grant.KeyID()
	// The pinned service does not listen under this name: copies of requests stay
	// with the impostor.
	e := newImpostor(t, w, "silent")
	n := trials() / 20
	w.parallel(t, n, func(nc *nats.Conn, _ int) error {
		c, err := keysvc.NewClient(keysvc.ClientConfig{
			Conn: nc, Service: "silent", Pins: []string{w.service.Public()}, Identity: w.people["reader"],
			Suite: keysvc.SuiteX25519, Timeout: 100 * time.Millisecond,
		})
		if err != nil {
			return err
		}
		ks, err := c.OpenKeys(t.Context(), []keysvc.Record{{KeyID: key}})
		if ks != nil || !errors.Is(err, keysvc.ErrUnavailable) || strings.Contains(err.Error(), "destroyed") {
			return fmt.Errorf("got %v, %v; want ErrUnavailable", ks, err)
		}
		return nil
	})
	if e.forged.Load() < int64(5*n) {
		t.Errorf("%d forged answers for %d calls", e.forged.Load(), n)
	}
}
