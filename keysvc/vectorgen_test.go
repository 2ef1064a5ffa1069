package keysvc_test

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/keysvc"
)

// fixed is 32 bytes made from a text.
func fixed(text string) []byte {
	sum := sha256.Sum256([]byte("keyweir test vector: " + text))
	return sum[:]
}

func fixedIdentity(t *testing.T, prefix nkeys.PrefixByte, text string) (keysvc.Identity, vectorIdentity) {
	t.Helper()
	pair, err := nkeys.FromRawSeed(prefix, fixed(text))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	id, err := keysvc.ParseIdentity(seed)
	if err != nil {
		t.Fatal(err)
	}
	return id, vectorIdentity{string(seed), id.Public()}
}

// writeVectors writes the file anew. Signatures stay as they are; sealed results
// differ each time, since sealing is random.
func writeVectors(t *testing.T) {
	x := &exchange{now: time.UnixMilli(1_790_000_000_000)}
	v := vectors{Comment: "Known answers for the exchange of docs/keysvc.md. The keys are made from fixed texts and protect nothing."}
	x.requester, v.Requester = fixedIdentity(t, nkeys.PrefixByteUser, "requester")
	x.service, v.Service = fixedIdentity(t, nkeys.PrefixByteServer, "service")
	stranger, _ := fixedIdentity(t, nkeys.PrefixByteUser, "stranger")

	keys := map[string]hpke.PrivateKey{}
	for _, suite := range keysvc.Suites() {
		kem, err := keysvc.SuiteKEM(suite)
		if err != nil {
			t.Fatal(err)
		}
		k, err := kem.DeriveKeyPair(fixed("ephemeral " + suite))
		if err != nil {
			t.Fatal(err)
		}
		private, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		keys[suite] = k
		v.Ephemerals = append(v.Ephemerals, ephemeralCase{suite, kem.ID(), private, k.PublicKey().Bytes()})
	}
	x.eph = keys[keysvc.SuiteX25519]

	for i, p := range purposes {
		id := x.service
		if i == 0 {
			id = x.requester
		}
		body := fmt.Sprintf(`{"case":%d}`, i)
		sig, err := keysvc.SignPurpose(id, p, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		v.Signatures = append(v.Signatures, signatureCase{
			p, id.Public(), body, hex.EncodeToString(keysvc.SignInput(p, []byte(body))), hex.EncodeToString(sig),
		})
	}

	x.good = fields{
		{"op", `"open"`},
		{"audience", quote(x.service.Public())},
		{"principal", quote(x.requester.Public())},
		{"time", fmt.Sprint(x.now.UnixMilli())},
		{"nonce", quote(fixed("nonce")[:16])},
		{"suite", `"x25519"`},
		{"ephemeral", quote(x.eph.PublicKey().Bytes())},
		{"args", `{"keys":[{"id":"` + hex.EncodeToString(fixed("key ID")) + `"}]}`},
	}
	request := func(name, expect string, data []byte, offset int64) {
		hash := sha256.Sum256(data)
		v.Requests = append(v.Requests, requestCase{
			name, "open", x.now.UnixMilli(), x.now.Add(-50 * time.Second).UnixMilli(), data, hex.EncodeToString(hash[:]), expect, offset,
		})
	}
	good := x.signed(t, x.good)
	request("open", "ok", good, 0)
	for _, suite := range keysvc.Suites() {
		f := x.good.with("suite", quote(suite)).with("ephemeral", quote(keys[suite].PublicKey().Bytes()))
		request("suite "+suite, "ok", x.signed(t, f), 0)
	}
	at := func(d time.Duration) []byte {
		return x.signed(t, x.good.with("time", fmt.Sprint(x.now.Add(d).UnixMilli())))
	}
	request("members in another order", "ok", x.signed(t, slices.Concat(x.good[5:], x.good[:5])), 0)
	request("60 s ahead", "ok", at(time.Minute), 0)
	request("60.001 s ahead", "clock_skew", at(time.Minute+time.Millisecond), -60_001)
	request("61 s behind", "clock_skew", at(-61*time.Second), 61_000)
	request("before the instance started", "busy", at(-51*time.Second), 0)
	request("unsigned", "invalid", append(make([]byte, 64), good[64:]...), 0)
	request("signature cut", "invalid", good[1:], 0)
	request("signed as a reply", "invalid", sign(t, x.requester, keysvc.PurposeReply, x.good.json()), 0)
	request("signed without the prefix", "invalid", func() []byte {
		sig, err := x.requester.Sign([]byte(x.good.json()))
		if err != nil {
			t.Fatal(err)
		}
		return append(sig, x.good.json()...)
	}(), 0)
	request("not enrolled", "denied", sign(t, stranger, keysvc.PurposeRequest, x.good.with("principal", quote(stranger.Public())).json()), 0)
	request("signed by a stranger", "invalid", sign(t, stranger, keysvc.PurposeRequest, x.good.json()), 0)
	request("another operation", "misdelivered", x.signed(t, x.good.with("op", `"generate"`)), 0)
	request("another audience", "invalid", x.signed(t, x.good.with("audience", quote(x.requester.Public()))), 0)
	request("nonce of 15 bytes", "invalid", x.signed(t, x.good.with("nonce", quote(fixed("nonce")[:15]))), 0)
	request("unknown suite", "unsupported", x.signed(t, x.good.with("suite", `"p521"`)), 0)
	request("key of another suite", "invalid", x.signed(t, x.good.with("suite", `"p256"`)), 0)
	request("unknown member", "invalid", x.signed(t, append(slices.Clone(x.good), [2]string{"extra", "1"})), 0)
	request("duplicate member", "invalid", x.signed(t, append(slices.Clone(x.good), x.good[0])), 0)
	request("case variant", "invalid", x.signed(t, append(x.good.without("op"), [2]string{"Op", `"open"`})), 0)
	request("something after it", "invalid", sign(t, x.requester, keysvc.PurposeRequest, x.good.json()+"{}"), 0)

	hash := sha256.Sum256(good)
	other := sha256.Sum256([]byte("another request"))
	result := `{"keys":[{"id":"` + hex.EncodeToString(fixed("key ID")) + `","record":"AQID","key":"` + string(base64Text(fixed("data key"))) + `","lease_ms":300000}]}`
	body := func(suite string, to, request [32]byte) fields {
		sealed, err := keysvc.SealResult(keys[suite].PublicKey(), to, []byte(result))
		if err != nil {
			t.Fatal(err)
		}
		return fields{{"request", quote(request[:])}, {"instance", `"one"`}, {"time", fmt.Sprint(x.now.UnixMilli())}, {"sealed", quote(sealed)}}
	}
	reply := func(name, suite, expect string, data []byte, offset int64) {
		c := replyCase{Name: name, Suite: suite, HashHex: hex.EncodeToString(hash[:]), Reply: data, Expect: expect, Offset: offset}
		if expect == "ok" {
			c.Result = result
		}
		v.Replies = append(v.Replies, c)
	}
	answer := func(f fields) []byte { return sign(t, x.service, keysvc.PurposeReply, f.json()) }
	for _, suite := range keysvc.Suites() {
		reply("result "+suite, suite, "ok", answer(body(suite, hash, hash)), 0)
		reply("to another request "+suite, suite, "bad_reply", answer(body(suite, hash, other)), 0)
		reply("sealed for another request "+suite, suite, "bad_reply", answer(body(suite, other, hash)), 0)
	}
	const suite = keysvc.SuiteX25519
	plain := body(suite, hash, hash)
	reply("unsigned", suite, "bad_reply", append(make([]byte, 64), plain.json()...), 0)
	reply("signed by another service", suite, "bad_reply", sign(t, stranger, keysvc.PurposeReply, plain.json()), 0)
	reply("signed as a request", suite, "bad_reply", sign(t, x.service, keysvc.PurposeRequest, plain.json()), 0)
	reply("result in clear", suite, "bad_reply", answer(plain.with("sealed", quote([]byte(result)))), 0)
	reply("unknown member", suite, "bad_reply", answer(append(slices.Clone(plain), [2]string{"extra", "1"})), 0)
	reply("duplicate member", suite, "bad_reply", answer(append(slices.Clone(plain), plain[0])), 0)
	reply("case variant", suite, "bad_reply", answer(append(plain.without("request"), [2]string{"Request", plain[0][1]})), 0)
	failed := func(code string, offset int64) fields {
		return append(plain.without("sealed"), [2]string{"error", fmt.Sprintf(`{"code":%q,"text":"why","offset_ms":%d}`, code, offset)})
	}
	for code := range sentinels {
		if code != "clock_skew" {
			reply("error "+code, suite, code, answer(failed(code, 0)), 0)
		}
	}
	slices.SortFunc(v.Replies[len(v.Replies)-len(sentinels)+1:], func(a, b replyCase) int { return strings.Compare(a.Name, b.Name) })
	reply("error clock_skew", suite, "clock_skew", answer(failed("clock_skew", -90_000)), -90_000)
	reply("error of a later release", suite, "unsupported", answer(failed("quantum_flux", 0)), 0)
	reply("a result and an error", suite, "bad_reply", answer(append(slices.Clone(plain), [2]string{"error", `{"code":"denied","text":"","offset_ms":0}`})), 0)

	v.Scopes = vectorScopes(t)
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(bytes.TrimSpace(out), '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func vectorScopes(t *testing.T) []scopeCase {
	rules := []keysvc.ScopeRule{
		{Match: "orders.*.archive", Scope: "archive"},
		{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}"},
		{Match: "a.*.*", Scope: "{{wildcard(2)}}-{{ wildcard( 1 ) }}"},
	}
	s, err := keysvc.NewScopeRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	var out []scopeCase
	for _, subject := range []string{"orders.acme.new", "orders.acme.archive", "orders.acme.a.b", "orders.acme", "a.1.2", "b", "a..2", "a.*.2", "orders.ü.x"} {
		scope, rule, err := s.Scope(subject)
		out = append(out, scopeCase{rules, subject, scope, rule, code(err)})
	}
	return out
}
