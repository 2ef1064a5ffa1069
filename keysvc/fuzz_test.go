package keysvc_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/keyweir/keyweir/keysvc"
)

// known reports whether err is nil or one that travels.
func known(err error) bool {
	if err == nil {
		return true
	}
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// FuzzDecodeRequest signs what it is given, so that the fuzzer gets past the
// signature, and takes the same bytes as a whole request too.
func FuzzDecodeRequest(f *testing.F) {
	x := newExchange(f)
	id, err := keysvc.ParseIdentity([]byte(loadVectors(f).Requester.Seed))
	if err != nil {
		f.Fatal(err)
	}
	service := loadVectors(f).Service.Public
	x.requester = id
	for _, c := range loadVectors(f).Requests {
		if len(c.Request) > keysvc.SignatureSize {
			f.Add(c.Request[keysvc.SignatureSize:])
		}
	}
	c := x.check()
	c.Audience = service
	f.Fuzz(func(t *testing.T, body []byte) {
		if r, err := keysvc.DecodeRequest(body, c); r != nil || !known(err) || err == nil {
			// Nobody has our seed: nothing given as it is can verify.
			t.Fatalf("unsigned: %+v, %v", r, err)
		}
		data := sign(t, x.requester, keysvc.PurposeRequest, string(body))
		before := bytes.Clone(data)
		r, err := keysvc.DecodeRequest(data, c)
		if !bytes.Equal(before, data) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			if r != nil || !known(err) || len(keysvc.ToWire(err).Text) > keysvc.MaxErrorText {
				t.Fatalf("refused with %+v, %v", r, err)
			}
			return
		}
		var b struct {
			Op, Audience, Principal string
			Nonce                   []byte
			Time                    int64
		}
		if err := json.Unmarshal(body, &b); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if b.Op != c.Op || r.Op != c.Op || b.Audience != service || r.Principal != x.requester.Public() || b.Principal != r.Principal ||
			!bytes.Equal(b.Nonce, r.Nonce) || len(r.Nonce) < keysvc.MinNonce || b.Time != r.Time.UnixMilli() || r.Hash != keysvc.RequestHash(data) {
			t.Fatalf("accepted %+v as %+v", b, r)
		}
		if d := c.Now.Sub(r.Time).Abs(); d > keysvc.Window {
			t.Fatalf("accepted a request %v off", d)
		}
		if !utf8.Valid(body) {
			t.Fatal("accepted invalid UTF-8")
		}
		for _, v := range []any{new(keysvc.OpenArgs), new(keysvc.GenerateArgs), new(keysvc.RouteKeyArgs), new(keysvc.StatusArgs)} {
			if err := r.Args(v); err != nil && !errors.Is(err, keysvc.ErrInvalid) {
				t.Fatalf("args: %v", err)
			}
		}
	})
}

// FuzzDecodeReply signs what it is given as the body of a reply.
func FuzzDecodeReply(f *testing.F) {
	v := loadVectors(f)
	service, err := keysvc.ParseIdentity([]byte(v.Service.Seed))
	if err != nil {
		f.Fatal(err)
	}
	var hash [32]byte
	kem, err := keysvc.SuiteKEM(keysvc.SuiteX25519)
	if err != nil {
		f.Fatal(err)
	}
	var private []byte
	for _, e := range v.Ephemerals {
		if e.Suite == keysvc.SuiteX25519 {
			private = e.Private
		}
	}
	eph, err := kem.NewPrivateKey(private)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range v.Replies {
		if c.Suite != keysvc.SuiteX25519 {
			continue
		}
		hash = [32]byte(mustHex(f, c.HashHex))
		if len(c.Reply) > keysvc.SignatureSize {
			f.Add(c.Reply[keysvc.SignatureSize:])
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var res keysvc.OpenResult
		if err := keysvc.DecodeReply(body, service.Public(), hash, eph, &res); !errors.Is(err, keysvc.ErrBadReply) {
			t.Fatalf("unsigned: %v", err)
		}
		data := sign(t, service, keysvc.PurposeReply, string(body))
		before := bytes.Clone(data)
		err := keysvc.DecodeReply(data, service.Public(), hash, eph, &res)
		if !bytes.Equal(before, data) {
			t.Fatal("the input was changed")
		}
		if err != nil && res.Keys != nil {
			t.Fatal("refused, yet there is a result")
		}
		var b struct {
			Request []byte
			Error   *keysvc.WireError
			Sealed  []byte
		}
		bound := json.Unmarshal(body, &b) == nil && bytes.Equal(b.Request, hash[:])
		switch {
		case errors.Is(err, keysvc.ErrBadReply):
		case !bound:
			t.Fatalf("accepted a reply to another request: %v", err)
		case err == nil && (b.Error != nil || len(b.Sealed) == 0):
			t.Fatal("a result from nothing sealed")
		case !known(err):
			t.Fatalf("refused with %v", err)
		}
	})
}

// FuzzScope compares with nats-server's matching, whatever the rule.
func FuzzScope(f *testing.F) {
	f.Add("orders.*.>", "tenant/{{wildcard(1)}}", "orders.acme.new")
	f.Add("a.*.*", "{{wildcard(2)}}-{{ wildcard( 1 ) }}", "a.1.2")
	f.Add("*", "}}{{wildcard(1)}}{{", "a")
	f.Add(">", "all", "a.b")
	f.Add("a\x00.*", "{{wildcard(+1)}}", "a\x00.\ufffd")
	f.Fuzz(func(t *testing.T, match, scope, subject string) {
		s, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: match, Scope: scope}})
		if err != nil {
			if s != nil || !errors.Is(err, keysvc.ErrInvalid) {
				t.Fatalf("refused with %v, %v", s, err)
			}
			return
		}
		if !server.IsValidSubject(match) {
			t.Fatalf("accepted the pattern %q, nats-server does not", match)
		}
		got, rule, err := s.Scope(subject)
		matched := server.SubjectMatchesFilter(subject, match)
		switch {
		case errors.Is(err, keysvc.ErrInvalid):
			// Stricter than nats-server: blanks, bytes that are not UTF-8.
			if server.IsValidLiteralSubject(subject) && utf8.ValidString(subject) && !strings.ContainsAny(subject, " \t\r\n\f") {
				t.Fatalf("subject %q is refused: %v", subject, err)
			}
		case errors.Is(err, keysvc.ErrNoScope):
			if matched && len(scope)+len(subject)*strings.Count(scope, "{{") <= keysvc.MaxScope {
				t.Fatalf("rule %q does not match %q, nats-server says it does", match, subject)
			}
		case err != nil:
			t.Fatalf("refused with %v", err)
		case !matched:
			t.Fatalf("rule %q matches %q, nats-server says no", match, subject)
		case got == "" || len(got) > keysvc.MaxScope || rule != 0 || !utf8.ValidString(got):
			t.Fatalf("scope %q, rule %d", got, rule)
		case !strings.Contains(scope, "{{") && got != scope:
			t.Fatalf("scope %q, want %q", got, scope)
		}
		if err != nil && got != "" {
			t.Fatalf("scope %q beside %v", got, err)
		}
	})
}
