package keysvc_test

import (
	"bytes"
	"crypto/fips140"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/keysvc"
)

func TestSuites(t *testing.T) {
	// IDs of the IANA registry of HPKE KEMs; a change breaks every other language.
	want := map[string]uint16{"mlkem768-x25519": 0x647a, "mlkem768-p256": 0x0050, "x25519": 0x0020, "p256": 0x0010}
	got := map[string]uint16{}
	for _, name := range keysvc.Suites() {
		kem, err := keysvc.SuiteKEM(name)
		if err != nil {
			t.Fatal(err)
		}
		got[name] = kem.ID()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if s := keysvc.Suites(); s[0] != keysvc.SuiteMLKEM768X25519 || !slices.Contains(s, keysvc.DefaultSuite()) {
		t.Errorf("suites %v, default %q", s, keysvc.DefaultSuite())
	}
	def := keysvc.SuiteMLKEM768X25519
	if fips140.Enabled() {
		def = keysvc.SuiteMLKEM768P256
	}
	if keysvc.DefaultSuite() != def {
		t.Errorf("default suite %q, want %q", keysvc.DefaultSuite(), def)
	}
	for _, name := range []string{"", "X25519", "x25519 ", "p384", strings.Repeat("x", 1000)} {
		if _, err := keysvc.SuiteKEM(name); !errors.Is(err, keysvc.ErrUnsupported) || len(err.Error()) > 200 {
			t.Errorf("suite %.20q: %.300v", name, err)
		}
	}
}

// TestExchange seals a result in every suite and opens it with every wrong key,
// hash and byte.
func TestExchange(t *testing.T) {
	t.Parallel()
	secret := []byte(`{"key":"` + string(base64Text(random(32))) + `"}`)
	hash, other := keysvc.RequestHash([]byte("a")), keysvc.RequestHash([]byte("b"))
	for _, suite := range keysvc.Suites() {
		t.Run(suite, func(t *testing.T) {
			kem, err := keysvc.SuiteKEM(suite)
			if err != nil {
				t.Fatal(err)
			}
			eph, err := kem.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			stranger, err := kem.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			to, err := kem.NewPublicKey(eph.PublicKey().Bytes())
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := keysvc.SealResult(to, hash, secret)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := keysvc.OpenSealed(eph, hash, sealed); err != nil || !bytes.Equal(got, secret) {
				t.Fatalf("opened %q, %v", got, err)
			}
			again, err := keysvc.SealResult(to, hash, secret)
			if err != nil || bytes.Equal(again, sealed) {
				t.Errorf("sealing twice gives the same bytes (%v)", err)
			}
			if bytes.Contains(sealed, secret[8:20]) {
				t.Error("the secret stands in what was sealed")
			}
			refused := func(what string, got []byte, err error) {
				if got != nil || !errors.Is(err, keysvc.ErrBadReply) {
					t.Errorf("%s: opened %q, %v; want nil and ErrBadReply", what, got, err)
				}
			}
			got, err := keysvc.OpenSealed(stranger, hash, sealed)
			refused("another key", got, err)
			got, err = keysvc.OpenSealed(eph, other, sealed)
			refused("another request", got, err)
			for i := range sealed {
				bad := bytes.Clone(sealed)
				bad[i] ^= 1 << (i % 8)
				got, err := keysvc.OpenSealed(eph, hash, bad)
				refused("a flipped bit", got, err)
			}
			for _, n := range []int{0, 1, 16, 31, 32, len(sealed) - len(secret) - 16, len(sealed) - 1} {
				got, err := keysvc.OpenSealed(eph, hash, sealed[:n])
				refused("cut", got, err)
			}
			got, err = keysvc.OpenSealed(eph, hash, append(bytes.Clone(sealed), 0))
			refused("extended", got, err)
		})
	}
}
