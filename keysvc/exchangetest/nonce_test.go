package exchangetest

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/keysvc"
)

// hostile is a NATS server that lets nobody in: it chooses the nonce that a client
// signs to connect, and keeps the signature.
type hostile struct {
	ln net.Listener
	wg sync.WaitGroup

	next   func() (nonceJSON string, body string) // one per connection; called under mu
	mu     sync.Mutex
	caught []caught
}

// caught is one signature that a client made of a nonce of the server's choice.
type caught struct {
	nonce string // as it stood in the JSON of INFO, quotes included
	body  string // the request the server wants signed
	sig   []byte
}

func newHostile(t *testing.T, next func() (string, string)) *hostile {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{ln: ln, next: next}
	h.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			h.wg.Go(func() { h.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		h.wg.Wait()
	})
	return h
}

func (h *hostile) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	h.mu.Lock()
	nonce, body := h.next()
	h.mu.Unlock()
	fmt.Fprintf(c, `INFO {"server_id":"NHOSTILE","version":"2.15.2","proto":1,"headers":true,"max_payload":1048576,"auth_required":true,"nonce":%s}`+"\r\n", nonce)
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		connect, ok := strings.CutPrefix(line, "CONNECT ")
		if !ok {
			continue
		}
		var o struct{ Sig string }
		if json.Unmarshal([]byte(connect), &o) == nil {
			if sig, err := base64.RawURLEncoding.DecodeString(o.Sig); err == nil {
				h.mu.Lock()
				h.caught = append(h.caught, caught{nonce, body, sig})
				h.mu.Unlock()
			}
		}
		fmt.Fprint(c, "-ERR 'Authorization Violation'\r\n")
		return
	}
}

// chosen spells the nonces that could make a request out of a connect: for the
// given body, all forms of what a requester signs. JSON carries text, so bytes
// that are no UTF-8 are written raw, which a careless parser might keep.
func chosen(i int, body string) string {
	sum := sha256.Sum256([]byte(body))
	label := "keyweir/v1/request\x00"
	input := "\xff\x00" + label + string(sum[:])
	escape := func(s string, f func(b byte) string) string {
		var out strings.Builder
		for j := range len(s) {
			out.WriteString(f(s[j]))
		}
		return `"` + out.String() + `"`
	}
	raw := func(s string) string { // as it is, but for what would end the string or the line
		return escape(s, func(b byte) string {
			if b < 0x20 || b == '"' || b == '\\' {
				return fmt.Sprintf(`\u%04x`, b)
			}
			return string([]byte{b})
		})
	}
	unicode := func(s string) string { return escape(s, func(b byte) string { return fmt.Sprintf(`\u%04x`, b) }) }
	switch i % 12 {
	case 0:
		return raw(input)
	case 1:
		return unicode(input)
	case 2:
		return raw(input[2:]) // without 0xFF 0x00
	case 3:
		return unicode(input[2:])
	case 4:
		return raw(body)
	case 5:
		return raw(string(sum[:]))
	case 6:
		return `"` + hex.EncodeToString([]byte(input)) + `"`
	case 7:
		return quote([]byte(input))
	case 8:
		return raw("\xff" + input[2:])
	case 9:
		return `"\ud83f\udc00` + raw(input[2:])[1:] // a surrogate pair that encodes to bytes above 0x7F
	case 10:
		return raw(input + body)
	}
	return quote(label + string(sum[:])) // of ground: exactly what is signed, but for 0xFF 0x00
}

// ground is a body whose SHA-256 happens to be UTF-8, found by trying 62 million:
// a server that tries as long can put the hash of a real request into a nonce.
const ground = `{"ground":62013126}`

// TestHostileServer takes a client that made the mistake the configuration
// refuses, using its enrolled identity as the key of its NATS connection, to a
// server that has it sign 10,000 nonces. No signature becomes a request.
func TestHostileServer(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	misused, err := keysvc.ParseIdentity(seed)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, map[string]keysvc.Identity{"misused": misused}, nil)
	key := w.generate(t, "sealer", "acme")[0].Grant.KeyID()

	// The identity may open, when it signs itself.
	if a, err := w.ask(w.nats.Conn(t), "open", w.request(misused, "open", openArgs(key))); err != nil || a.code != "ok" {
		t.Fatalf("a good request is answered %q, %v", a.code, err)
	}
	before := w.releases(t)

	total, n := 10*trials(), 0
	h := newHostile(t, func() (string, string) {
		body := w.body(misused, "open", openArgs(key), nil)
		if n++; n%12 == 11 {
			body = ground
		}
		return chosen(n, body), body
	})
	connect := nats.GetDefaultOptions()
	connect.Url = "nats://" + h.ln.Addr().String()
	connect.AllowReconnect = false
	connect.Nkey = misused.Public()
	connect.SignatureCB = pair.Sign
	w.parallel(t, total, func(*nats.Conn, int) error {
		o := connect
		nc, err := o.Connect()
		if err == nil {
			nc.Close()
			return fmt.Errorf("the hostile server let somebody in")
		}
		return nil
	})
	h.mu.Lock()
	loot := h.caught
	h.mu.Unlock()
	if len(loot) < total*99/100 {
		t.Fatalf("%d signatures for %d connections", len(loot), total)
	}

	if sum := sha256.Sum256([]byte(ground)); !utf8.Valid(sum[:]) {
		t.Fatal("the ground body shows nothing")
	}
	// The server did get its nonces signed: these are signatures of its choice.
	_, raw, err := nkeys.DecodeSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	public := ed25519.NewKeyFromSeed(raw).Public().(ed25519.PublicKey)
	for i, c := range loot {
		var nonce string
		if err := json.Unmarshal([]byte(c.nonce), &nonce); err != nil {
			t.Fatalf("nonce %s: %v", c.nonce, err)
		}
		if !ed25519.Verify(public, []byte(nonce), c.sig) {
			t.Fatalf("signature %d is not over its nonce", i)
		}
		if keysvc.VerifyPurpose(misused.Public(), keysvc.PurposeRequest, []byte(c.body), c.sig) == nil {
			t.Errorf("nonce %s makes a request", c.nonce)
		}
		if bytes.HasPrefix([]byte(nonce), []byte{0xff}) {
			t.Errorf("nonce %s begins like what requesters sign", c.nonce)
		}
	}

	// And the service takes none of them, for the request it was made for or for
	// the nonce itself as a request.
	w.parallel(t, len(loot), func(nc *nats.Conn, i int) error {
		c := loot[i]
		body := c.body
		if i%2 == 1 {
			if err := json.Unmarshal([]byte(c.nonce), &body); err != nil {
				return err
			}
		}
		a, err := w.ask(nc, "open", append(bytes.Clone(c.sig), body...))
		if err != nil || a.code != "invalid" {
			return fmt.Errorf("nonce %s: answered %q, %v; want invalid", c.nonce, a.code, err)
		}
		return nil
	})
	if n := w.releases(t) - before; n != 0 {
		t.Errorf("%d keys were released", n)
	}
}
