package keysvc_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc"
)

// answer is a decoded request and what a service may answer to it.
type answer struct {
	*exchange
	hash [32]byte
	good fields // of a reply with a result
}

const secretText = "0123456789abcdef0123456789abcdef"

func newAnswer(t testing.TB) *answer {
	t.Helper()
	x := newExchange(t)
	a := &answer{exchange: x, hash: keysvc.RequestHash(x.signed(t, x.good))}
	a.good = fields{
		{"request", quote(a.hash[:])},
		{"instance", `"one"`},
		{"time", "1790000000000"},
		{"sealed", quote(a.seal(t, `{"key":"`+string(base64Text([]byte(secretText)))+`"}`))},
	}
	return a
}

func (a *answer) seal(t testing.TB, result string) []byte {
	t.Helper()
	sealed, err := keysvc.SealResult(a.eph.PublicKey(), a.hash, []byte(result))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// decode decodes data as the answer and fails t if a refusal leaves anything.
func (a *answer) decode(t testing.TB, data []byte) (string, error) {
	t.Helper()
	var res keysvc.RouteKeyResult
	err := keysvc.DecodeReply(data, a.service.Public(), a.hash, a.eph, &res)
	if err != nil && res.Key != nil {
		t.Error("a refused reply left a key behind")
	}
	return string(res.Key), err
}

func (a *answer) signed(t testing.TB, f fields) []byte {
	return sign(t, a.service, keysvc.PurposeReply, f.json())
}

func TestDecodeReply(t *testing.T) {
	a := newAnswer(t)
	if key, err := a.decode(t, a.signed(t, a.good)); err != nil || key != secretText {
		t.Errorf("decoded %q, %v", key, err)
	}
	r := keysvc.NewRequest("route-key", a.hash, a.eph.PublicKey())
	reply, err := keysvc.EncodeReply(a.service, "one", r, keysvc.RouteKeyResult{Key: []byte(secretText)})
	if err != nil {
		t.Fatal(err)
	}
	if key, err := a.decode(t, reply); err != nil || key != secretText {
		t.Errorf("decoded %q, %v", key, err)
	}
	for _, f := range forms([]byte(secretText))[:3] {
		if bytes.Contains(reply, []byte(f)) {
			t.Error("the key stands in the reply")
		}
	}
	for code, sentinel := range sentinels {
		reply, err := keysvc.EncodeError(a.service, "one", a.hash, sentinel)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.decode(t, reply); !errors.Is(err, sentinel) {
			t.Errorf("%s: decoded %v", code, err)
		}
	}
	reply, err = keysvc.EncodeError(a.service, "one", a.hash, &keysvc.ClockSkewError{Offset: -2 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	var skew *keysvc.ClockSkewError
	if _, err := a.decode(t, reply); !errors.As(err, &skew) || skew.Offset != -2*time.Minute {
		t.Errorf("clock skew: decoded %v", err)
	}
}

func TestDecodeReplyRefused(t *testing.T) {
	a, other := newAnswer(t), newAnswer(t)
	request := []byte(a.exchange.good.json())
	otherSuite, err := hpke.DHKEM(ecdh.P256()).GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	sealedTo := func(k hpke.PublicKey, hash [32]byte, result string) fields {
		b, err := keysvc.SealResult(k, hash, []byte(result))
		if err != nil {
			t.Fatal(err)
		}
		return a.good.with("sealed", quote(b))
	}
	errorMember := [2]string{"error", `{"code":"denied","text":"no","offset_ms":0}`}
	add := func(m ...[2]string) fields { return append(slices.Clone(a.good), m...) }
	good := `{"key":"` + string(base64Text([]byte(secretText))) + `"}`
	tests := map[string][]byte{
		"nothing":                      nil,
		"garbage":                      random(300),
		"unsigned":                     append(make([]byte, keysvc.SignatureSize), a.good.json()...),
		"body alone":                   []byte(a.good.json()),
		"signed by another service":    sign(t, other.service, keysvc.PurposeReply, a.good.json()),
		"signed by the requester":      sign(t, a.requester, keysvc.PurposeReply, a.good.json()),
		"signed as a request":          sign(t, a.service, keysvc.PurposeRequest, a.good.json()),
		"signed as a directory entry":  sign(t, a.service, keysvc.PurposeDirectory, a.good.json()),
		"the request itself":           sign(t, a.requester, keysvc.PurposeRequest, string(request)),
		"to another request":           a.signed(t, a.good.with("request", quote(other.hash[:]))),
		"to a shorter hash":            a.signed(t, a.good.with("request", quote(a.hash[:31]))),
		"to a longer hash":             a.signed(t, a.good.with("request", quote(append(a.hash[:], 0)))),
		"to no request":                a.signed(t, a.good.without("request")),
		"another request's whole":      sign(t, a.service, keysvc.PurposeReply, other.good.json()),
		"another request's result":     a.signed(t, a.good.with("sealed", other.good[3][1])),
		"sealed for another request":   a.signed(t, sealedTo(a.eph.PublicKey(), other.hash, good)),
		"sealed to another key":        a.signed(t, sealedTo(other.eph.PublicKey(), a.hash, good)),
		"sealed in another suite":      a.signed(t, sealedTo(otherSuite.PublicKey(), a.hash, good)),
		"nothing sealed":               a.signed(t, a.good.without("sealed")),
		"empty sealed":                 a.signed(t, a.good.with("sealed", `""`)),
		"result in clear":              a.signed(t, a.good.with("sealed", quote([]byte(good)))),
		"a result and an error":        a.signed(t, add(errorMember)),
		"unknown member":               a.signed(t, add([2]string{"extra", "1"})),
		"duplicate member":             a.signed(t, add(a.good[0])),
		"case variant":                 a.signed(t, add([2]string{"Sealed", a.good[3][1]})),
		"case variant instead":         a.signed(t, append(a.good.without("request"), [2]string{"Request", a.good[0][1]})),
		"unknown member of the error":  a.signed(t, append(a.good.without("sealed"), [2]string{"error", `{"code":"denied","text":"","offset_ms":0,"x":1}`})),
		"case variant in the error":    a.signed(t, append(a.good.without("sealed"), [2]string{"error", `{"Code":"denied"}`})),
		"error as text":                a.signed(t, append(a.good.without("sealed"), [2]string{"error", `"denied"`})),
		"not JSON":                     sign(t, a.service, keysvc.PurposeReply, "hello"),
		"an array":                     sign(t, a.service, keysvc.PurposeReply, "["+a.good.json()+"]"),
		"something after it":           sign(t, a.service, keysvc.PurposeReply, a.good.json()+"{}"),
		"result: unknown member":       a.signed(t, sealedTo(a.eph.PublicKey(), a.hash, good[:len(good)-1]+`,"x":1}`)),
		"result: duplicate member":     a.signed(t, sealedTo(a.eph.PublicKey(), a.hash, good[:len(good)-1]+`,"key":"AA=="}`)),
		"result: case variant":         a.signed(t, sealedTo(a.eph.PublicKey(), a.hash, strings.Replace(good, "key", "Key", 1))),
		"result: null":                 a.signed(t, sealedTo(a.eph.PublicKey(), a.hash, "null")),
		"result: of another operation": a.signed(t, sealedTo(a.eph.PublicKey(), a.hash, `{"grants":[]}`)),
		"result: empty":                a.signed(t, sealedTo(a.eph.PublicKey(), a.hash, "")),
	}
	for name, data := range tests {
		if key, err := a.decode(t, data); key != "" || !errors.Is(err, keysvc.ErrBadReply) {
			t.Errorf("%s: decoded %q, %v; want ErrBadReply", name, key, err)
		}
	}
	for _, sentinel := range sentinels {
		forged, err := keysvc.EncodeError(other.service, "one", a.hash, sentinel)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.decode(t, forged); !errors.Is(err, keysvc.ErrBadReply) || errors.Is(err, sentinel) {
			t.Errorf("%v, signed by another service: %v", sentinel, err)
		}
		if forged, err = keysvc.EncodeError(a.service, "one", other.hash, sentinel); err != nil {
			t.Fatal(err)
		}
		if _, err := a.decode(t, forged); !errors.Is(err, keysvc.ErrBadReply) {
			t.Errorf("%v, to another request: %v", sentinel, err)
		}
	}
}

// TestReplyBits flips every bit of a signed reply and cuts it everywhere.
func TestReplyBits(t *testing.T) {
	t.Parallel()
	a := newAnswer(t)
	denied, err := keysvc.EncodeError(a.service, "one", a.hash, keysvc.ErrDenied)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{a.signed(t, a.good), denied} {
		for i := 0; i < len(data)*8; i += bitStep() {
			bad := bytes.Clone(data)
			bad[i/8] ^= 1 << (i % 8)
			if _, err := a.decode(t, bad); !errors.Is(err, keysvc.ErrBadReply) {
				t.Fatalf("bit %d of %d: %v", i, len(data)*8, err)
			}
		}
		for i := range data {
			if _, err := a.decode(t, data[:i]); !errors.Is(err, keysvc.ErrBadReply) {
				t.Fatalf("cut to %d of %d bytes: %v", i, len(data), err)
			}
		}
	}
}

func TestReplyMaxima(t *testing.T) {
	a := newAnswer(t)
	body := a.good.json()
	pad := func(n int) []byte {
		return sign(t, a.service, keysvc.PurposeReply, body+strings.Repeat(" ", n-keysvc.SignatureSize-len(body)))
	}
	if key, err := a.decode(t, pad(keysvc.MaxReply)); err != nil || key != secretText {
		t.Errorf("the longest reply: %v", err)
	}
	if _, err := a.decode(t, pad(keysvc.MaxReply+1)); !errors.Is(err, keysvc.ErrBadReply) {
		t.Errorf("a byte more: %v", err)
	}
	huge := make([]byte, 64<<20)
	if n := testing.AllocsPerRun(10, func() { _, _ = a.decode(t, huge) }); n > 6 {
		t.Errorf("64 MiB cost %v allocations", n)
	}
	r := keysvc.NewRequest("open", a.hash, a.eph.PublicKey())
	if reply, err := keysvc.EncodeReply(a.service, "one", r, strings.Repeat("x", keysvc.MaxReply)); reply != nil || !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("encoding a result too long: %d bytes, %v", len(reply), err)
	}
}

// TestEncodeReplyFaults: nothing leaves when anything fails on the way.
func TestEncodeReplyFaults(t *testing.T) {
	a := newAnswer(t)
	r := keysvc.NewRequest("open", a.hash, a.eph.PublicKey())
	broken := errors.New("token removed")
	if b, err := keysvc.EncodeReply(faulty{a.service, nil, broken}, "one", r, 1); b != nil || !errors.Is(err, broken) {
		t.Errorf("a failing signer: %x, %v", b, err)
	}
	if b, err := keysvc.EncodeError(faulty{a.service, nil, broken}, "one", a.hash, keysvc.ErrBusy); b != nil || !errors.Is(err, broken) {
		t.Errorf("a failing signer of errors: %x, %v", b, err)
	}
	if b, err := keysvc.EncodeReply(a.service, "one", r, make(chan int)); b != nil || err == nil {
		t.Errorf("a result that does not marshal: %x, %v", b, err)
	}
	// An X25519 point of low order makes the shared secret zero: HPKE refuses.
	kem, err := keysvc.SuiteKEM(keysvc.SuiteX25519)
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range [][]byte{make([]byte, 32), append([]byte{1}, make([]byte, 31)...)} {
		low, err := kem.NewPublicKey(point)
		if err != nil {
			continue // refused even earlier
		}
		if b, err := keysvc.EncodeReply(a.service, "one", keysvc.NewRequest("open", a.hash, low), 1); b != nil || err == nil {
			t.Errorf("a point of low order: %x, %v", b, err)
		}
	}
}
