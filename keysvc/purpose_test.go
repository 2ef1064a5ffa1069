package keysvc_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/keysvc"
)

func TestSignInput(t *testing.T) {
	sum := sha256.Sum256([]byte("body"))
	want := append([]byte("\xff\x00keyweir/v1/request\x00"), sum[:]...)
	if got := keysvc.SignInput(keysvc.PurposeRequest, []byte("body")); !bytes.Equal(got, want) {
		t.Errorf("sign input %x, want %x", got, want)
	}
}

var purposes = []string{
	keysvc.PurposeRequest, keysvc.PurposeReply, keysvc.PurposeDirectory, keysvc.PurposeAuditHead, keysvc.PurposeStoreHead,
}

// TestPurposes lets a signature count for its own purpose, body and key only.
func TestPurposes(t *testing.T) {
	ids := []keysvc.Identity{newIdentity(t, keysvc.KindRequester), newIdentity(t, keysvc.KindService)}
	bodies := [][]byte{nil, []byte("{}"), []byte("{} "), keysvc.SignInput(keysvc.PurposeReply, nil)}
	for _, id := range ids {
		for _, purpose := range purposes {
			for i, body := range bodies {
				sig, err := keysvc.SignPurpose(id, purpose, body)
				if err != nil {
					t.Fatal(err)
				}
				for _, other := range ids {
					for _, p := range purposes {
						for j, b := range bodies {
							err := keysvc.VerifyPurpose(other.Public(), p, b, sig)
							if want := other == id && p == purpose && i == j; want != (err == nil) {
								t.Errorf("signature for %q, body %d: VerifyPurpose as %q, body %d = %v", purpose, i, p, j, err)
							}
						}
					}
				}
			}
		}
	}
}

// TestPlainSignature shows that a signature over the bytes as they are, which a
// NATS server obtains from a connection's key, never counts.
func TestPlainSignature(t *testing.T) {
	id := newIdentity(t, keysvc.KindRequester)
	body := []byte(`{"op":"open"}`)
	sum := sha256.Sum256(body)
	for _, nonce := range [][]byte{body, sum[:], []byte("keyweir/v1/request\x00" + string(sum[:])), []byte("\u00ff\x00keyweir/v1/request\x00" + string(sum[:]))} {
		sig, err := id.Sign(nonce)
		if err != nil {
			t.Fatal(err)
		}
		if err := keysvc.VerifyPurpose(id.Public(), keysvc.PurposeRequest, body, sig); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("a signature over %q counts: %v", nonce, err)
		}
	}
}

func TestVerifyPurposeRefused(t *testing.T) {
	id := newIdentity(t, keysvc.KindRequester)
	body := []byte("body")
	sig, err := keysvc.SignPurpose(id, keysvc.PurposeRequest, body)
	if err != nil {
		t.Fatal(err)
	}
	public := id.Public()
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	accountKey, _ := account.PublicKey()
	accountSig, _ := account.Sign(keysvc.SignInput(keysvc.PurposeRequest, body))
	for name, tt := range map[string]struct {
		public string
		sig    []byte
	}{
		"no signature":            {public, nil},
		"short":                   {public, sig[:63]},
		"long":                    {public, append(bytes.Clone(sig), 0)},
		"zeros":                   {public, make([]byte, 64)},
		"no key":                  {"", sig},
		"lower case key":          {strings.ToLower(public), sig},
		"key with a line break":   {public[:20] + "\n" + public[20:], sig},
		"key with a trailing one": {public + "\n", sig},
		"key with blank space":    {" " + public, sig},
		"damaged key":             {public[:20] + "A" + public[21:len(public)-1], sig},
		"account key":             {accountKey, accountSig},
	} {
		if err := keysvc.VerifyPurpose(tt.public, keysvc.PurposeRequest, body, tt.sig); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for i := range 64 * 8 {
		bad := bytes.Clone(sig)
		bad[i/8] ^= 1 << (i % 8)
		if keysvc.VerifyPurpose(public, keysvc.PurposeRequest, body, bad) == nil {
			t.Errorf("bit %d of the signature does not matter", i)
		}
	}
}

// faulty is an identity whose signer fails or answers nonsense.
type faulty struct {
	keysvc.Identity
	sig []byte
	err error
}

func (f faulty) Sign([]byte) ([]byte, error) { return f.sig, f.err }

func TestSignPurposeFaulty(t *testing.T) {
	broken := errors.New("token removed")
	id := newIdentity(t, keysvc.KindRequester)
	if sig, err := keysvc.SignPurpose(faulty{id, nil, broken}, keysvc.PurposeRequest, nil); sig != nil || !errors.Is(err, broken) {
		t.Errorf("a failing signer gives %x, %v", sig, err)
	}
	for _, n := range []int{0, 63, 65} {
		if sig, err := keysvc.SignPurpose(faulty{id, make([]byte, n), nil}, keysvc.PurposeRequest, nil); sig != nil || err == nil {
			t.Errorf("a signature of %d bytes gives %x, %v", n, sig, err)
		}
	}
}
