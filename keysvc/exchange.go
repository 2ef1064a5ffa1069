package keysvc

import (
	"crypto/ecdh"
	"crypto/fips140"
	"crypto/hpke"
	"fmt"
)

// Exchange suites: the KEM of the HPKE exchange (RFC 9180) that carries results,
// always with HKDF-SHA-256 and AES-256-GCM. IDs are those of the IANA registry.
const (
	SuiteMLKEM768X25519 = "mlkem768-x25519" // default: confidential against recorded traffic and quantum computers
	SuiteMLKEM768P256   = "mlkem768-p256"   // default in FIPS mode
	SuiteX25519         = "x25519"          // for other languages
	SuiteP256           = "p256"            // for other languages
)

var suites = []struct {
	name string
	kem  func() hpke.KEM
}{
	{SuiteMLKEM768X25519, hpke.MLKEM768X25519},
	{SuiteMLKEM768P256, hpke.MLKEM768P256},
	{SuiteX25519, func() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }},
	{SuiteP256, func() hpke.KEM { return hpke.DHKEM(ecdh.P256()) }},
}

// Suites lists the exchange suites, preferred first.
func Suites() []string {
	var out []string
	for _, s := range suites {
		out = append(out, s.name)
	}
	return out
}

// DefaultSuite is the suite a client uses unless told otherwise.
func DefaultSuite() string {
	if fips140.Enabled() {
		return SuiteMLKEM768P256
	}
	return SuiteMLKEM768X25519
}

func suiteKEM(name string) (hpke.KEM, error) {
	for _, s := range suites {
		if s.name == name {
			return s.kem(), nil
		}
	}
	return nil, fmt.Errorf("%w: exchange suite %.64q", ErrUnsupported, name)
}

const labelReply = "keyweir/v1/reply"

// sealResult seals a result to the ephemeral key of one request; the request's
// hash is bound, so that a reply fits no other request.
func sealResult(to hpke.PublicKey, request [32]byte, result []byte) ([]byte, error) {
	out, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), replyInfo(request), result)
	if err != nil {
		return nil, fmt.Errorf("sealing result: %w", err)
	}
	return out, nil
}

func openResult(k hpke.PrivateKey, request [32]byte, sealed []byte) ([]byte, error) {
	out, err := hpke.Open(k, hpke.HKDFSHA256(), hpke.AES256GCM(), replyInfo(request), sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: the result does not open", ErrBadReply)
	}
	return out, nil
}

func replyInfo(request [32]byte) []byte {
	return append([]byte(labelReply), request[:]...)
}
