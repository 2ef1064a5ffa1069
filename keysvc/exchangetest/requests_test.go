package exchangetest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/keysvc"
)

// TestForgedRequests sends requests that the requester did not make so. Each is
// refused with a signed error; none releases anything.
func TestForgedRequests(t *testing.T) {
	w := newWorld(t, nil, nil)
	key := w.generate(t, "sealer", "acme")[0].Grant.KeyID()
	reader, gateway := w.people["reader"], w.people["gateway"]
	stranger, otherService := identity(t, keysvc.KindRequester), identity(t, keysvc.KindService)
	good := func() []byte { return w.request(reader, "open", openArgs(key)) }

	nc := w.nats.Conn(t)
	if a, err := w.ask(nc, "open", good()); err != nil || a.code != "ok" || !strings.Contains(a.result, `"key":"`) {
		t.Fatalf("a good request gives %+v, %v: these attacks would show nothing", a.code, err)
	}
	before := w.releases(t)
	body := func(change members) string { return w.body(reader, "open", openArgs(key), change) }
	signed := func(change members) []byte { return sign(reader, keysvc.PurposeRequest, body(change)) }
	later := func(d time.Duration) members { return members{"time": time.Now().Add(d).UnixMilli()} }

	kinds := []struct {
		name  string
		op    string // the subject it is sent on
		codes string // of the refusals that are expected
		make  func(i int) []byte
	}{
		{"unsigned", "open", "invalid", func(i int) []byte {
			sig := make([]byte, 64)
			if i%3 == 1 {
				rand.Read(sig)
			}
			b := append(sig, body(nil)...)
			if i%3 == 2 {
				b = b[64:] // the body alone
			}
			return b
		}},
		{"signed by another", "open", "invalid", func(i int) []byte {
			by := []keysvc.Identity{gateway, stranger, otherService, w.service, w.people["sealer"]}[i%5]
			return sign(by, keysvc.PurposeRequest, body(nil))
		}},
		{"by a stranger", "open", "denied", func(int) []byte { return w.request(stranger, "open", openArgs(key)) }},
		{"signed for another purpose", "open", "invalid", func(i int) []byte {
			by := []string{keysvc.PurposeReply, keysvc.PurposeDirectory, keysvc.PurposeAuditHead, keysvc.PurposeStoreHead, ""}[i%5]
			return sign(reader, by, body(nil))
		}},
		{"signature of another request", "open", "invalid", func(int) []byte { return append(good()[:64], body(nil)...) }},
		{"altered", "open", "invalid denied", func(i int) []byte {
			b := good()
			part, before := b[:64], bytes.Clone(b)
			if i%2 == 1 {
				part = b[64:]
			}
			for n := 0; n <= i%3 || bytes.Equal(b, before); n++ {
				bit := mrand.N(len(part) * 8)
				part[bit/8] ^= 1 << (bit % 8)
			}
			return b
		}},
		{"cut or extended", "open", "invalid", func(i int) []byte {
			b := good()
			if i%2 == 0 {
				return b[:mrand.N(len(b))]
			}
			return append(b, " \n}]\x00"[i%5])
		}},
		{"to another audience", "open", "invalid", func(i int) []byte {
			return signed(members{"audience": []string{otherService.Public(), reader.Public(), "", serviceName}[i%4]})
		}},
		{"on another subject", "generate", "misdelivered", func(int) []byte { return good() }},
		{"of another operation", "open", "misdelivered", func(i int) []byte {
			return w.request(reader, []string{"generate", "status", "scopes", "route-key", "Open", ""}[i%6], openArgs(key))
		}},
		{"from another time", "open", "clock_skew busy", func(i int) []byte {
			d := time.Duration(61+mrand.N(100_000)) * time.Second
			if i%2 == 0 {
				d = -d
			}
			return signed(later(d))
		}},
		{"with a bad nonce", "open", "invalid", func(i int) []byte {
			return signed(members{"nonce": make([]byte, []int{0, 1, 15, 33, 64, 4096}[i%6])})
		}},
		{"garbage", "open", "invalid", func(i int) []byte {
			b := make([]byte, mrand.N(2000))
			rand.Read(b)
			return b
		}},
	}
	for _, k := range kinds {
		t.Run(strings.ReplaceAll(k.name, " ", "-"), func(t *testing.T) {
			w.parallel(t, trials(), func(nc *nats.Conn, i int) error {
				a, err := w.ask(nc, k.op, k.make(i))
				if err != nil {
					return err
				}
				if !slices.Contains(strings.Fields(k.codes), a.code) {
					return fmt.Errorf("answered %q, want %s", a.code, k.codes)
				}
				return nil
			})
		})
	}
	if n := w.releases(t) - before; n != 0 {
		t.Errorf("%d keys were released", n)
	}
}

// TestReplayedRequests sends requests again, byte for byte, that were answered.
func TestReplayedRequests(t *testing.T) {
	w := newWorld(t, nil, nil)
	key := w.generate(t, "sealer", "acme")[0].Grant.KeyID()
	before := w.releases(t)
	accepted := trials() / 4
	w.parallel(t, accepted, func(nc *nats.Conn, i int) error {
		data := w.request(w.people["reader"], "open", openArgs(key))
		if i%2 == 1 {
			data = w.request(w.people["sealer"], "generate", keysvc.GenerateArgs{Subjects: []string{"orders.acme.x"}})
		}
		op := []string{"open", "generate"}[i%2]
		for try := range 5 {
			want := "misdelivered"
			if try == 0 {
				want = "ok"
			}
			if a, err := w.ask(nc, op, data); err != nil || a.code != want {
				return fmt.Errorf("sent %d times: %q, %v; want %q", try+1, a.code, err, want)
			}
		}
		return nil
	})
	if n := w.releases(t) - before; n != accepted {
		t.Errorf("%d requests and their copies released %d keys", accepted, n)
	}
}

// TestRacedRequests sends two copies of each request at once, from two
// connections: exactly one is answered with a key.
func TestRacedRequests(t *testing.T) {
	w := newWorld(t, nil, nil)
	key := w.generate(t, "sealer", "acme")[0].Grant.KeyID()
	before := w.releases(t)
	rivals := make(chan *nats.Conn, 8)
	for range cap(rivals) {
		rivals <- w.nats.Conn(t)
	}
	w.parallel(t, trials(), func(nc *nats.Conn, _ int) error {
		rival := <-rivals
		defer func() { rivals <- rival }()
		data := w.request(w.people["reader"], "open", openArgs(key))
		type outcome struct {
			answer
			err error
		}
		second := make(chan outcome, 1)
		go func() {
			a, err := w.ask(rival, "open", data)
			second <- outcome{a, err}
		}()
		a, err := w.ask(nc, "open", data)
		b := <-second
		if err != nil || b.err != nil {
			return fmt.Errorf("no answer: %v, %v", err, b.err)
		}
		codes := []string{a.code, b.code}
		slices.Sort(codes)
		if !slices.Equal(codes, []string{"misdelivered", "ok"}) {
			return fmt.Errorf("two copies were answered %q", codes)
		}
		return nil
	})
	if n := w.releases(t) - before; n != trials() {
		t.Errorf("%d pairs released %d keys", trials(), n)
	}
}
