package keysvc_test

import (
	"bytes"
	"crypto/hpke"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/keysvc"
)

// fields are the members of a request in order: name and JSON value.
type fields [][2]string

func (f fields) json() string {
	parts := make([]string, len(f))
	for i, m := range f {
		parts[i] = `"` + m[0] + `":` + m[1]
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// with returns f with one value replaced.
func (f fields) with(name, value string) fields {
	out := slices.Clone(f)
	for i := range out {
		if out[i][0] == name {
			out[i][1] = value
			return out
		}
	}
	panic("no field " + name)
}

func (f fields) without(name string) fields {
	return slices.DeleteFunc(slices.Clone(f), func(m [2]string) bool { return m[0] == name })
}

func quote(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// exchange is one requester, one service and a request between them.
type exchange struct {
	requester, service keysvc.Identity
	eph                hpke.PrivateKey
	now                time.Time
	good               fields
}

func newExchange(t testing.TB) *exchange {
	t.Helper()
	x := &exchange{
		requester: newIdentity(t, keysvc.KindRequester), service: newIdentity(t, keysvc.KindService),
		now: time.UnixMilli(1_790_000_000_000),
	}
	kem, err := keysvc.SuiteKEM(keysvc.SuiteX25519)
	if err != nil {
		t.Fatal(err)
	}
	if x.eph, err = kem.GenerateKey(); err != nil {
		t.Fatal(err)
	}
	x.good = fields{
		{"op", `"open"`},
		{"audience", quote(x.service.Public())},
		{"principal", quote(x.requester.Public())},
		{"time", fmt.Sprint(x.now.UnixMilli())},
		{"nonce", quote(random(16))},
		{"suite", `"x25519"`},
		{"ephemeral", quote(x.eph.PublicKey().Bytes())},
		{"args", `{"keys":[{"id":"a","record":"AQID"},{"id":"b"}]}`},
	}
	return x
}

func (x *exchange) check() keysvc.RequestCheck {
	return keysvc.RequestCheck{
		Op: "open", Audience: x.service.Public(), Now: x.now, NotBefore: x.now.Add(-time.Minute),
		Enrolled: func(p string) bool { return p == x.requester.Public() },
	}
}

func sign(t testing.TB, id keysvc.Identity, purpose, body string) []byte {
	t.Helper()
	sig, err := keysvc.SignPurpose(id, purpose, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return append(sig, body...)
}

func (x *exchange) signed(t testing.TB, f fields) []byte {
	return sign(t, x.requester, keysvc.PurposeRequest, f.json())
}

func TestDecodeRequest(t *testing.T) {
	x := newExchange(t)
	data := x.signed(t, x.good)
	r, err := keysvc.DecodeRequest(data, x.check())
	if err != nil {
		t.Fatal(err)
	}
	if r.Op != "open" || r.Principal != x.requester.Public() || !r.Time.Equal(x.now) || len(r.Nonce) != 16 || r.Hash != keysvc.RequestHash(data) {
		t.Errorf("decoded %+v", r)
	}
	var args keysvc.OpenArgs
	if err := r.Args(&args); err != nil {
		t.Fatal(err)
	}
	want := keysvc.OpenArgs{Keys: []keysvc.WireRecord{{KeyID: "a", Record: []byte{1, 2, 3}}, {KeyID: "b"}}}
	if diff := cmp.Diff(want, args); diff != "" {
		t.Error(diff)
	}
	var other keysvc.GenerateArgs
	if err := r.Args(&other); !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("args of another operation: %v", err)
	}
}

// TestEncodeRequest takes what a client sends through what a service checks, in
// every suite.
func TestEncodeRequest(t *testing.T) {
	x := newExchange(t)
	nonces := map[string]bool{}
	for _, suite := range keysvc.Suites() {
		kem, err := keysvc.SuiteKEM(suite)
		if err != nil {
			t.Fatal(err)
		}
		eph, err := kem.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			data, hash, err := keysvc.EncodeRequest(x.requester, x.service.Public(), "open", suite, eph, keysvc.OpenArgs{})
			if err != nil {
				t.Fatal(err)
			}
			c := x.check()
			c.Now = time.Now()
			c.NotBefore = c.Now.Add(-time.Second)
			r, err := keysvc.DecodeRequest(data, c)
			if err != nil {
				t.Fatalf("%s: %v", suite, err)
			}
			if r.Hash != hash || nonces[string(r.Nonce)] {
				t.Errorf("%s: hash equal %t, nonce new %t", suite, r.Hash == hash, !nonces[string(r.Nonce)])
			}
			nonces[string(r.Nonce)] = true

			reply, err := keysvc.EncodeReply(x.service, "one", r, keysvc.RouteKeyResult{Key: keysvc.Secret("k")})
			if err != nil {
				t.Fatal(err)
			}
			var got keysvc.RouteKeyResult
			if err := keysvc.DecodeReply(reply, x.service.Public(), hash, eph, &got); err != nil || string(got.Key) != "k" {
				t.Errorf("%s: reply decodes to %q, %v", suite, []byte(got.Key), err)
			}
		}
	}
	_, _, err := keysvc.EncodeRequest(x.requester, x.service.Public(), "generate", "x25519", x.eph,
		keysvc.GenerateArgs{Subjects: []string{strings.Repeat("x", keysvc.MaxRequest)}})
	if !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("a request too long: %v", err)
	}
	broken := errors.New("token removed")
	if data, _, err := keysvc.EncodeRequest(faulty{x.requester, nil, broken}, x.service.Public(), "open", "x25519", x.eph, 1); data != nil || !errors.Is(err, broken) {
		t.Errorf("a failing signer: %x, %v", data, err)
	}
	if data, _, err := keysvc.EncodeRequest(x.requester, x.service.Public(), "open", "x25519", x.eph, make(chan int)); data != nil || err == nil {
		t.Errorf("arguments that do not marshal: %x, %v", data, err)
	}
}

func TestDecodeRequestRefused(t *testing.T) {
	x := newExchange(t)
	other := newExchange(t)
	nonce := func(n int) fields { return x.good.with("nonce", quote(random(n))) }
	at := func(d time.Duration) fields { return x.good.with("time", fmt.Sprint(x.now.Add(d).UnixMilli())) }
	pq := func(n int) fields {
		return x.good.with("suite", `"mlkem768-x25519"`).with("ephemeral", quote(random(n)))
	}
	tests := []struct {
		name string
		f    fields
		err  error
	}{
		{"another operation", x.good.with("op", `"generate"`), keysvc.ErrMisdelivered},
		{"operation in another case", x.good.with("op", `"Open"`), keysvc.ErrMisdelivered},
		{"no operation", x.good.without("op"), keysvc.ErrMisdelivered},
		{"another audience", x.good.with("audience", quote(other.service.Public())), keysvc.ErrInvalid},
		{"audience of the requester", x.good.with("audience", quote(x.requester.Public())), keysvc.ErrInvalid},
		{"no audience", x.good.without("audience"), keysvc.ErrInvalid},
		{"empty audience", x.good.with("audience", `""`), keysvc.ErrInvalid},
		{"another principal", x.good.with("principal", quote(other.requester.Public())), keysvc.ErrDenied},
		{"no principal", x.good.without("principal"), keysvc.ErrDenied},
		{"the service as principal", x.good.with("principal", quote(x.service.Public())), keysvc.ErrDenied},
		{"principal with a line break", x.good.with("principal", quote(x.requester.Public()+"\n")), keysvc.ErrDenied},
		{"a minute late", at(-60*time.Second - time.Millisecond), keysvc.ErrClockSkew},
		{"a minute early", at(60*time.Second + time.Millisecond), keysvc.ErrClockSkew},
		{"no time", x.good.without("time"), keysvc.ErrClockSkew},
		{"time in seconds", x.good.with("time", fmt.Sprint(x.now.Unix())), keysvc.ErrClockSkew},
		{"largest time", x.good.with("time", "9223372036854775807"), keysvc.ErrClockSkew},
		{"smallest time", x.good.with("time", "-9223372036854775808"), keysvc.ErrClockSkew},
		{"time beyond int64", x.good.with("time", "9223372036854775808"), keysvc.ErrInvalid},
		{"time with a fraction", x.good.with("time", "1.5"), keysvc.ErrInvalid},
		{"time as text", x.good.with("time", `"1790000000000"`), keysvc.ErrInvalid},
		{"no nonce", x.good.without("nonce"), keysvc.ErrInvalid},
		{"empty nonce", nonce(0), keysvc.ErrInvalid},
		{"nonce of 15 bytes", nonce(15), keysvc.ErrInvalid},
		{"nonce of 33 bytes", nonce(33), keysvc.ErrInvalid},
		{"nonce not base64", x.good.with("nonce", `"?"`), keysvc.ErrInvalid},
		{"nonce without padding", x.good.with("nonce", quote(strings.TrimRight(string(base64Text(random(16))), "="))), keysvc.ErrInvalid},
		{"nonce as an array", x.good.with("nonce", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"), keysvc.ErrInvalid},
		{"nonce null", x.good.with("nonce", "null"), keysvc.ErrInvalid},
		{"unknown suite", x.good.with("suite", `"rot13"`), keysvc.ErrUnsupported},
		{"no suite", x.good.without("suite"), keysvc.ErrUnsupported},
		{"no ephemeral key", x.good.without("ephemeral"), keysvc.ErrInvalid},
		{"ephemeral key of another suite", x.good.with("suite", `"p256"`), keysvc.ErrInvalid},
		{"short ephemeral key", x.good.with("ephemeral", quote(random(31))), keysvc.ErrInvalid},
		{"long ephemeral key", x.good.with("ephemeral", quote(random(33))), keysvc.ErrInvalid},
		{"ML-KEM key of one byte", pq(1), keysvc.ErrInvalid},
		{"ML-KEM key of random bytes", pq(1216), keysvc.ErrInvalid},
		{"P-256 point at infinity", x.good.with("suite", `"p256"`).with("ephemeral", `"AA=="`), keysvc.ErrInvalid},
		{"P-256 point off the curve", x.good.with("suite", `"p256"`).with("ephemeral", quote(append([]byte{4}, random(64)...))), keysvc.ErrInvalid},
	}
	for _, tt := range tests {
		r, err := keysvc.DecodeRequest(x.signed(t, tt.f), x.check())
		if r != nil || !errors.Is(err, tt.err) {
			t.Errorf("%s: DecodeRequest = %+v, %v; want %v", tt.name, r, err, tt.err)
		}
	}
}

func TestDecodeRequestAccepted(t *testing.T) {
	x := newExchange(t)
	for name, f := range map[string]fields{
		"a minute late":     x.good.with("time", fmt.Sprint(x.now.Add(-keysvc.Window).UnixMilli())),
		"a minute early":    x.good.with("time", fmt.Sprint(x.now.Add(keysvc.Window).UnixMilli())),
		"nonce of 32 bytes": x.good.with("nonce", quote(random(32))),
		"another order":     slices.Concat(x.good[4:], x.good[:4]),
	} {
		if _, err := keysvc.DecodeRequest(x.signed(t, f), x.check()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	blank := "  {\n\t" + strings.ReplaceAll(x.good.json()[1:], ",", " ,\r\n ") + "\n"
	if _, err := keysvc.DecodeRequest(sign(t, x.requester, keysvc.PurposeRequest, blank), x.check()); err != nil {
		t.Errorf("with blank space: %v", err)
	}
}

func TestDecodeRequestChecks(t *testing.T) {
	x := newExchange(t)
	data := x.signed(t, x.good)
	for name, tt := range map[string]struct {
		change func(*keysvc.RequestCheck)
		err    error
	}{
		"nobody enrolled":   {func(c *keysvc.RequestCheck) { c.Enrolled = func(string) bool { return false } }, keysvc.ErrDenied},
		"no enrolment":      {func(c *keysvc.RequestCheck) { c.Enrolled = nil }, keysvc.ErrDenied},
		"everybody":         {func(c *keysvc.RequestCheck) { c.Enrolled = func(string) bool { return true } }, nil},
		"other suites":      {func(c *keysvc.RequestCheck) { c.Suites = []string{"p256"} }, keysvc.ErrUnsupported},
		"no suites":         {func(c *keysvc.RequestCheck) { c.Suites = []string{} }, keysvc.ErrUnsupported},
		"this suite":        {func(c *keysvc.RequestCheck) { c.Suites = []string{"p256", "x25519"} }, nil},
		"unknown suite too": {func(c *keysvc.RequestCheck) { c.Suites = []string{"rot13", "x25519"} }, nil},
		"started since":     {func(c *keysvc.RequestCheck) { c.NotBefore = x.now.Add(time.Millisecond) }, keysvc.ErrBusy},
		"started then":      {func(c *keysvc.RequestCheck) { c.NotBefore = x.now }, nil},
		"zero value":        {func(c *keysvc.RequestCheck) { *c = keysvc.RequestCheck{} }, keysvc.ErrDenied},
	} {
		c := x.check()
		tt.change(&c)
		if _, err := keysvc.DecodeRequest(data, c); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, want %v", name, err, tt.err)
		}
	}
	for _, d := range []time.Duration{-90 * time.Second, 90 * time.Second, -1000 * time.Hour} {
		c := x.check()
		c.Now = x.now.Add(d)
		_, err := keysvc.DecodeRequest(data, c)
		var skew *keysvc.ClockSkewError
		if !errors.As(err, &skew) || skew.Offset != d {
			t.Errorf("the service's clock %v ahead: %v", d, err)
		}
	}
}

// TestUnknownPrincipalCostsNoSignature: enrolment comes before the signature.
func TestUnknownPrincipalCostsNoSignature(t *testing.T) {
	x := newExchange(t)
	data := x.signed(t, x.good)
	clear(data[:keysvc.SignatureSize])
	c := x.check()
	c.Enrolled = func(string) bool { return false }
	if _, err := keysvc.DecodeRequest(data, c); !errors.Is(err, keysvc.ErrDenied) {
		t.Errorf("unknown, with a bad signature: %v, want ErrDenied", err)
	}
	if _, err := keysvc.DecodeRequest(data, x.check()); !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("known, with a bad signature: %v, want ErrInvalid", err)
	}
}

func TestRequestSigner(t *testing.T) {
	x := newExchange(t)
	body := x.good.json()
	both := func(string) bool { return true }
	for name, data := range map[string][]byte{
		"another requester": sign(t, newIdentity(t, keysvc.KindRequester), keysvc.PurposeRequest, body),
		"the service":       sign(t, x.service, keysvc.PurposeRequest, body),
		"no signature":      append(make([]byte, keysvc.SignatureSize), body...),
		"body alone":        []byte(body),
		"another body":      append(x.signed(t, x.good)[:keysvc.SignatureSize], x.good.with("op", `"openX"`).json()...),
		"a blank more":      append(x.signed(t, x.good), ' '),
	} {
		c := x.check()
		c.Enrolled = both
		if r, err := keysvc.DecodeRequest(data, c); r != nil || !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%s: %+v, %v; want ErrInvalid", name, r, err)
		}
	}
	for _, p := range purposes {
		_, err := keysvc.DecodeRequest(sign(t, x.requester, p, body), x.check())
		if ok := p == keysvc.PurposeRequest; ok != (err == nil) {
			t.Errorf("signed as %q: %v", p, err)
		}
	}
}

// bitStep is 1, or in short tests 7: every byte still has a bit flipped.
func bitStep() int {
	if testing.Short() {
		return 7
	}
	return 1
}

// TestRequestBits flips every bit of a signed request.
func TestRequestBits(t *testing.T) {
	t.Parallel()
	x := newExchange(t)
	data := x.signed(t, x.good)
	for i := 0; i < len(data)*8; i += bitStep() {
		bad := bytes.Clone(data)
		bad[i/8] ^= 1 << (i % 8)
		if r, err := keysvc.DecodeRequest(bad, x.check()); r != nil || !errors.Is(err, keysvc.ErrInvalid) && !errors.Is(err, keysvc.ErrDenied) {
			t.Fatalf("bit %d of %d: %+v, %v", i, len(data)*8, r, err)
		}
	}
	for i := range data {
		if _, err := keysvc.DecodeRequest(data[:i], x.check()); err == nil {
			t.Fatalf("cut to %d of %d bytes: accepted", i, len(data))
		}
	}
}
