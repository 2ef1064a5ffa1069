package exchangetest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// sealed is one message with what its sealer held.
type sealed struct {
	bytes  []byte
	env    envelope.Envelope
	record *envelope.Record
	salt   []byte
	subkey []byte // of the session
}

// seal generates a grant for every tenant and seals a message under each.
func (w *world) seal(t *testing.T, who string, tenants []string) []sealed {
	t.Helper()
	var out []sealed
	for i, k := range w.generate(t, who, tenants...) {
		record, salt, subkey := envelope.ExposeGrant(k.Grant)
		g, err := envelope.GrantFromParts(record, salt, subkey)
		if err != nil {
			t.Fatal(err)
		}
		s, err := g.Session(envelope.SessionConfig{Record: envelope.RecordInline})
		if err != nil {
			t.Fatal(err)
		}
		m := &envelope.Meta{Sequence: 1, SealedSubject: "sealed.x", OriginSubject: "orders." + tenants[i] + ".x"}
		b, err := s.Seal(nil, m, []byte("payload of "+who))
		if err != nil {
			t.Fatal(err)
		}
		e, err := envelope.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		r, err := envelope.ParseRecord(record)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, sealed{b, e, r, salt[:], subkey})
	}
	return out
}

// openWith opens a message with a session key, by the specification of the
// envelope alone.
func openWith(key []byte, m sealed) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	aad := append([]byte(nil), m.bytes[:6]...)
	aad[4] &^= byte(envelope.FlagRecord)
	return gcm.Open(nil, m.env.Sealed[:12], m.env.Sealed[12:], aad)
}

// sessionKey derives the session key of m from something taken for a data key.
func sessionKey(t *testing.T, dek []byte, m sealed) []byte {
	t.Helper()
	info := append([]byte("keyweir/v1/seal"), byte(m.env.Suite))
	k, err := hkdf.Key(sha256.New, dek, m.env.Salt[:], string(append(info, m.env.KeyID[:]...)), 32)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestSealersCannotOpen gives a principal that may only generate everything it
// can come by, and lets it try on messages of another session of the same key.
func TestSealersCannotOpen(t *testing.T) {
	w := newWorld(t, nil, nil)
	spy := w.spy(t)
	tenants := []string{"acme"}
	for i := range 20 {
		tenants = append(tenants, fmt.Sprintf("t%d", i))
	}
	theirs, mine := w.seal(t, "sealer", tenants), w.seal(t, "gateway", tenants)
	again := w.seal(t, "gateway", tenants)

	// The readers of this attack work: they open what they should.
	var rs []keysvc.Record
	for i, m := range theirs {
		if m.env.KeyID != mine[i].env.KeyID || string(m.salt) == string(mine[i].salt) || string(mine[i].salt) == string(again[i].salt) {
			t.Fatal("sessions do not share a key, or share a salt")
		}
		rs = append(rs, keysvc.Record{KeyID: m.env.KeyID, Bytes: m.env.Record})
	}
	keys, err := w.client(t, "reader").OpenKeys(t.Context(), rs)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		if k.Err != nil {
			t.Fatal(k.Err)
		}
		for _, m := range []sealed{theirs[i], mine[i]} {
			if _, err := openWith(sessionKey(t, envelope.ExposeDataKey(k.Key), m), m); err != nil {
				t.Fatalf("a reader cannot open by hand: %v", err)
			}
			if _, err := openWith(m.subkey, m); err != nil {
				t.Fatalf("a session cannot open its own message by hand: %v", err)
			}
		}
	}

	// Asking.
	for _, refs := range [][]keysvc.Record{rs, {{KeyID: rs[0].KeyID}}} {
		ks, err := w.client(t, "gateway").OpenKeys(t.Context(), refs)
		if err != nil {
			t.Fatal(err)
		}
		for i, k := range ks {
			if !errors.Is(k.Err, keysvc.ErrDenied) || !k.Key.IsZero() {
				t.Errorf("key %d: a sealer is answered %v, want ErrDenied", i, k.Err)
			}
		}
	}

	// Everything it holds, as a data key and as a session key, for every message.
	var held [][]byte
	cut := func(b []byte) {
		for i := 0; i+32 <= len(b); i += 4 {
			held = append(held, b[i:i+32])
		}
	}
	for _, ms := range [][]sealed{mine, again} {
		for _, m := range ms {
			cut(m.subkey)
			cut(append(append([]byte(nil), m.salt...), m.salt...))
			cut(m.record.Core.Commitment[:])
			cut(m.record.Core.Authorities[0].Commitment[:])
		}
	}
	cut(mine[0].env.Record)
	for i, m := range mine {
		x := make([]byte, 32) // two subkeys of one data key
		for j := range x {
			x[j] = m.subkey[j] ^ again[i].subkey[j]
		}
		held = append(held, x, m.env.KeyID[:], make([]byte, 32))
	}
	tries := 0
	for _, m := range theirs {
		for _, h := range held {
			tries += 3
			if _, err := openWith(h, m); err == nil {
				t.Error("something a sealer holds opens another session")
			}
			if _, err := openWith(sessionKey(t, h, m), m); err == nil {
				t.Error("something a sealer holds is a data key")
			}
			if k, err := envelope.NewDataKey(h); err == nil {
				if _, err := envelope.NewKeyReader(m.record, k, 0); !errors.Is(err, envelope.ErrWrongKey) {
					t.Errorf("a reader of the library takes it: %v", err)
				}
			}
		}
	}
	t.Logf("%d messages, %d things held, %d tries", len(theirs), len(held), tries)

	// What others were answered, which the broker shows to everybody.
	var replies int
	natstest.Eventually(t, 10*time.Second, func() error {
		replies = 0
		for _, m := range spy.messages() {
			var b struct{ Request, Sealed []byte }
			if len(m.Data) < 65 || json.Unmarshal(m.Data[64:], &b) != nil || len(b.Sealed) == 0 {
				continue
			}
			replies++
			info := append([]byte("keyweir/v1/reply"), b.Request...)
			if _, err := hpke.Open(w.eph, hpke.HKDFSHA256(), hpke.AES256GCM(), info, b.Sealed); err == nil {
				t.Error("a stranger's key opens a reply")
			}
		}
		if replies < 4 {
			return fmt.Errorf("%d replies seen", replies)
		}
		return nil
	})

	// A reply to somebody else's ephemeral key, asked for in one's own name.
	nc := w.nats.Conn(t)
	data := w.request(w.people["gateway"], "open", openArgs(theirs[0].env.KeyID))
	a, err := w.ask(nc, "open", data)
	if err != nil {
		t.Fatal(err)
	}
	var res keysvc.OpenResult
	if err := json.Unmarshal([]byte(a.result), &res); err != nil || len(res.Keys) != 1 || res.Keys[0].Error == nil ||
		res.Keys[0].Error.Code != "denied" || res.Keys[0].Key != nil || res.Keys[0].Record != nil {
		t.Errorf("by hand, a sealer is answered %s", a.result)
	}
	// The salt is the service's own choice.
	salted := fmt.Sprintf(`{"subjects":["orders.acme.x"],"salt":%s}`, quote(theirs[0].salt))
	if a, err := w.ask(nc, "generate", w.request(w.people["gateway"], "generate", json.RawMessage(salted))); err != nil || a.code != "invalid" {
		t.Errorf("a grant for a salt of one's choice is answered %q, %v", a.code, err)
	}
}
