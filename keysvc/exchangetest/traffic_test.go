package exchangetest

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

// spy records everything that passes the server.
type spy struct {
	mu   sync.Mutex
	seen []*nats.Msg
}

func (w *world) spy(t *testing.T) *spy {
	t.Helper()
	s := &spy{}
	nc := w.nats.Conn(t)
	sub, err := nc.Subscribe(">", func(m *nats.Msg) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = append(s.seen, m)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

// messages returns what was recorded.
func (s *spy) messages() []*nats.Msg {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*nats.Msg(nil), s.seen...)
}

// text is a message as a whole: subjects, headers, data.
func text(m *nats.Msg) string {
	return fmt.Sprintf("%s %s %v %s", m.Subject, m.Reply, m.Header, m.Data)
}

// scanner finds pieces of secrets in any usual spelling.
type scanner struct {
	raw  map[string]string // 8 bytes -> whose
	long map[string]string // 16 characters of a spelling -> whose
}

func newScanner() *scanner { return &scanner{raw: map[string]string{}, long: map[string]string{}} }

func (s *scanner) add(whose string, secret []byte) {
	for i := 0; i+8 <= len(secret); i += 4 {
		s.raw[string(secret[i:i+8])] = whose
	}
	spell := func(text string) {
		for i := 0; i+16 <= len(text); i++ {
			s.long[text[i:i+16]] = whose
		}
	}
	spell(hex.EncodeToString(secret))
	spell(strings.ToUpper(hex.EncodeToString(secret)))
	for shift := range 3 { // the characters that no neighbour decides
		shifted := append(make([]byte, shift), secret...)
		shifted = shifted[:len(shifted)/3*3]
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			spell(e.EncodeToString(shifted)[(shift*4+2)/3:])
		}
	}
	numbers, _ := json.Marshal(func() (out []int) {
		for _, b := range secret {
			out = append(out, int(b))
		}
		return out
	}())
	spell(strings.Trim(string(numbers), "[]"))
}

// find names the first secret of which a piece stands in text.
func (s *scanner) find(text string) string {
	for i := range len(text) {
		if i+8 <= len(text) {
			if whose, ok := s.raw[text[i:i+8]]; ok {
				return whose
			}
		}
		if i+16 <= len(text) {
			if whose, ok := s.long[text[i:i+16]]; ok {
				return whose
			}
		}
	}
	return ""
}

// TestTrafficHoldsNoKey records all traffic of a service that hands out keys of
// 120 scopes, and looks for any of them.
func TestTrafficHoldsNoKey(t *testing.T) {
	w := newWorld(t, nil, nil)
	spy := w.spy(t)
	find := newScanner()
	var tenants []string
	for i := range 120 {
		tenants = append(tenants, fmt.Sprintf("t%d", i))
	}
	grants := w.generate(t, "gateway", tenants...)
	grants = append(grants, w.generate(t, "sealer", tenants...)...)
	var byRecord, byReference []keysvc.Record
	for i, g := range grants {
		record, salt, subkey := envelope.ExposeGrant(g.Grant)
		find.add(fmt.Sprintf("subkey of session %v", salt), subkey)
		if i < len(tenants) {
			byRecord = append(byRecord, keysvc.Record{KeyID: g.Grant.KeyID(), Bytes: record})
			byReference = append(byReference, keysvc.Record{KeyID: g.Grant.KeyID()})
		}
	}
	client := w.client(t, "reader")
	keys := map[keysvc.KeyID]bool{}
	for _, rs := range [][]keysvc.Record{byRecord[:60], byRecord[60:], byReference[:60], byReference[60:]} {
		ks, err := client.OpenKeys(t.Context(), rs)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range ks {
			if k.Err != nil {
				t.Fatal(k.Err)
			}
			keys[k.KeyID] = true
			find.add(fmt.Sprintf("data key %v", k.KeyID), envelope.ExposeDataKey(k.Key))
		}
	}
	gateway := w.client(t, "gateway")
	for i := range 5 {
		k, err := gateway.RouteKey(t.Context(), fmt.Sprintf("route-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		find.add(fmt.Sprintf("key of route %d", i), envelope.ExposeDataKey(k))
	}
	if len(keys) != len(tenants) {
		t.Fatalf("%d data keys for %d tenants", len(keys), len(tenants))
	}

	// Everything was recorded once this marker was.
	if err := w.nats.Conn(t).Publish("marker", nil); err != nil {
		t.Fatal(err)
	}
	var seen []*nats.Msg
	natstest.Eventually(t, 20*time.Second, func() error {
		seen = spy.messages()
		if seen[len(seen)-1].Subject != "marker" {
			return fmt.Errorf("%d messages, no marker", len(seen))
		}
		return nil
	})
	replies := map[string]int{}
	requests, answered, size := 0, 0, 0
	for _, m := range seen {
		whole := text(m)
		size += len(whole)
		if whose := find.find(whole); whose != "" {
			t.Errorf("a piece of the %s travels on %s", whose, m.Subject)
		}
		if strings.HasPrefix(m.Subject, "keyweir.v1.prod.") {
			requests++
			replies[m.Reply]++
		} else if replies[m.Subject] > 0 {
			answered++
		}
	}
	t.Logf("%d messages, %d bytes: %d requests, %d replies", len(seen), size, requests, answered)
	if requests < 13 || answered < 13 || size < 200_000 {
		t.Errorf("the spy saw %d requests, %d replies and %d bytes: not everything", requests, answered, size)
	}
}

// TestScannerFinds plants a secret in every spelling: a scanner that finds
// nothing would prove nothing.
func TestScannerFinds(t *testing.T) {
	secret := make([]byte, 32)
	for i := range secret {
		secret[i] = byte(i*37 + 11)
	}
	find := newScanner()
	find.add("secret", secret)
	in := func(before, after int) []byte {
		return append(append([]byte(strings.Repeat("x", before)), secret...), strings.Repeat("y", after)...)
	}
	plain, _ := json.Marshal([]any{fmt.Sprint(secret[0])})
	if whose := find.find(string(plain)); whose != "" {
		t.Errorf("found %q in nothing", whose)
	}
	for before := range 4 {
		for after := range 4 {
			b := in(before, after)
			for name, text := range map[string]string{
				"raw": string(b), "hex": hex.EncodeToString(b), "HEX": fmt.Sprintf("%X", b),
				"base64": base64.StdEncoding.EncodeToString(b), "base64url": base64.RawURLEncoding.EncodeToString(b),
				"half": string(b[:before+16]), "half in base64": base64.StdEncoding.EncodeToString(b[:before+20]),
				"numbers": fmt.Sprint(strings.ReplaceAll(fmt.Sprint(b), " ", ",")),
			} {
				if find.find(text) == "" {
					t.Errorf("%s with %d bytes before and %d after: not found", name, before, after)
				}
			}
		}
	}
}
