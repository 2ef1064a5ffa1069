package keysvc_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/keysvc"
)

var update = flag.Bool("update", false, "write the files of known answers anew")

const vectorFile = "testdata/exchange.json"

// vectors is the file of known answers for implementations in other languages.
// Byte strings are base64, except where a name ends in _hex. The keys are made
// from fixed texts: they protect nothing.
type vectors struct {
	Comment    string          `json:"comment"`
	Requester  vectorIdentity  `json:"requester"`
	Service    vectorIdentity  `json:"service"`
	Signatures []signatureCase `json:"signatures"`
	Requests   []requestCase   `json:"requests"`
	Ephemerals []ephemeralCase `json:"ephemerals"`
	Replies    []replyCase     `json:"replies"`
	Scopes     []scopeCase     `json:"scopes"`
}

type vectorIdentity struct {
	Seed   string `json:"seed"`
	Public string `json:"public"`
}

// signatureCase is one signature, step by step.
type signatureCase struct {
	Purpose      string `json:"purpose"`
	Public       string `json:"public"`
	Body         string `json:"body"`
	InputHex     string `json:"input_hex"`
	SignatureHex string `json:"signature_hex"`
}

// requestCase is a signed request as it arrives on the subject of Op at Now, at a
// service that knows the requester and has run since NotBefore.
type requestCase struct {
	Name      string `json:"name"`
	Op        string `json:"op"`
	Now       int64  `json:"now_ms"`
	NotBefore int64  `json:"not_before_ms"`
	Request   []byte `json:"request"`
	HashHex   string `json:"hash_hex"`
	Expect    string `json:"expect"` // "ok" or the code of the error
	Offset    int64  `json:"offset_ms,omitempty"`
}

// ephemeralCase is one key pair that results are sealed to.
type ephemeralCase struct {
	Suite   string `json:"suite"`
	KEM     uint16 `json:"kem"`
	Private []byte `json:"private"`
	Public  []byte `json:"public"`
}

// replyCase is a signed reply to the request with the hash, whose results open
// with the private key of the suite.
type replyCase struct {
	Name    string `json:"name"`
	Suite   string `json:"suite"`
	HashHex string `json:"hash_hex"`
	Reply   []byte `json:"reply"`
	Expect  string `json:"expect"` // "ok", the code of the error, or "bad_reply": to be ignored
	Result  string `json:"result,omitempty"`
	Offset  int64  `json:"offset_ms,omitempty"`
}

type scopeCase struct {
	Rules   []keysvc.ScopeRule `json:"rules"`
	Subject string             `json:"subject"`
	Scope   string             `json:"scope,omitempty"`
	Rule    int                `json:"rule"`
	Expect  string             `json:"expect"`
}

func code(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, keysvc.ErrBadReply):
		return "bad_reply"
	}
	return keysvc.ToWire(err).Code
}

func loadVectors(t testing.TB) *vectors {
	t.Helper()
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	v := new(vectors)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	v := loadVectors(t)
	if len(v.Signatures) < 5 || len(v.Requests) < 15 || len(v.Ephemerals) != len(keysvc.Suites()) || len(v.Replies) < 20 || len(v.Scopes) < 5 {
		t.Fatalf("the file has %d, %d, %d, %d and %d cases", len(v.Signatures), len(v.Requests), len(v.Ephemerals), len(v.Replies), len(v.Scopes))
	}
	for _, id := range []vectorIdentity{v.Requester, v.Service} {
		if got, err := keysvc.ParseIdentity([]byte(id.Seed)); err != nil || got.Public() != id.Public {
			t.Errorf("seed %s: %v, %v; want %s", id.Seed, got, err, id.Public)
		}
	}
	t.Run("signatures", func(t *testing.T) {
		for _, c := range v.Signatures {
			// The long way, with nothing of this package.
			seed := v.Requester.Seed
			if c.Public == v.Service.Public {
				seed = v.Service.Seed
			}
			_, raw, err := nkeys.DecodeSeed([]byte(seed))
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256([]byte(c.Body))
			input := slices.Concat([]byte{0xff, 0}, []byte("keyweir/v1/"+c.Purpose), []byte{0}, sum[:])
			sig := ed25519.Sign(ed25519.NewKeyFromSeed(raw), input)
			if hex.EncodeToString(input) != c.InputHex || hex.EncodeToString(sig) != c.SignatureHex {
				t.Errorf("%s: input %x, signature %x; want %s, %s", c.Purpose, input, sig, c.InputHex, c.SignatureHex)
			}
			if err := keysvc.VerifyPurpose(c.Public, c.Purpose, []byte(c.Body), sig); err != nil {
				t.Errorf("%s: %v", c.Purpose, err)
			}
			id, err := keysvc.ParseIdentity([]byte(seed))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := keysvc.SignPurpose(id, c.Purpose, []byte(c.Body)); err != nil || !bytes.Equal(got, sig) {
				t.Errorf("%s: SignPurpose = %x, %v", c.Purpose, got, err)
			}
		}
	})
	t.Run("requests", func(t *testing.T) {
		for _, c := range v.Requests {
			hash := sha256.Sum256(c.Request)
			if hex.EncodeToString(hash[:]) != c.HashHex || keysvc.RequestHash(c.Request) != hash {
				t.Errorf("%s: hash %x, want %s", c.Name, hash, c.HashHex)
			}
			r, err := keysvc.DecodeRequest(c.Request, keysvc.RequestCheck{
				Op: c.Op, Audience: v.Service.Public, Now: time.UnixMilli(c.Now), NotBefore: time.UnixMilli(c.NotBefore),
				Enrolled: func(p string) bool { return p == v.Requester.Public },
			})
			if err == nil && r.Hash != hash {
				t.Errorf("%s: decoded hash %x", c.Name, r.Hash)
			}
			if code(err) != c.Expect || offset(err) != c.Offset {
				t.Errorf("%s: %v, want %s", c.Name, err, c.Expect)
			}
		}
	})
	t.Run("replies", func(t *testing.T) {
		for _, c := range v.Replies {
			i := slices.IndexFunc(v.Ephemerals, func(e ephemeralCase) bool { return e.Suite == c.Suite })
			if i < 0 {
				t.Fatalf("%s: no key of suite %q", c.Name, c.Suite)
			}
			kem, err := keysvc.SuiteKEM(c.Suite)
			if err != nil {
				t.Fatal(err)
			}
			eph, err := kem.NewPrivateKey(v.Ephemerals[i].Private)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(eph.PublicKey().Bytes(), v.Ephemerals[i].Public) || kem.ID() != v.Ephemerals[i].KEM {
				t.Errorf("%s: KEM %#x, public key %x", c.Suite, kem.ID(), eph.PublicKey().Bytes())
			}
			var result json.RawMessage
			err = keysvc.DecodeReply(c.Reply, v.Service.Public, [32]byte(mustHex(t, c.HashHex)), eph, &result)
			if code(err) != c.Expect || string(result) != c.Result || offset(err) != c.Offset {
				t.Errorf("%s: %s, %v; want %s, %s", c.Name, result, err, c.Result, c.Expect)
			}
		}
	})
	t.Run("scopes", func(t *testing.T) {
		for _, c := range v.Scopes {
			s, err := keysvc.NewScopeRules(c.Rules)
			if err != nil {
				t.Fatal(err)
			}
			scope, rule, err := s.Scope(c.Subject)
			if scope != c.Scope || rule != c.Rule || code(err) != c.Expect {
				t.Errorf("%q: %q, %d, %v; want %q, %d, %s", c.Subject, scope, rule, err, c.Scope, c.Rule, c.Expect)
			}
		}
	})
}

func offset(err error) int64 {
	var skew *keysvc.ClockSkewError
	if errors.As(err, &skew) {
		return skew.Offset.Milliseconds()
	}
	return 0
}

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
