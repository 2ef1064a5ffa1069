package transit

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// bindingLabel begins what is bound into every wrap.
const bindingLabel = "keyweir/v1/transit-context"

// maxContextBytes bounds names and values of one context together.
const maxContextBytes = 8 << 10

// BindingBytes returns what is sent, in base64, as context or associated_data, so
// that a wrap can be decrypted without Keyweir:
//
//	26    "keyweir/v1/transit-context"
//	2     number of pairs
//	      for each pair, sorted by name: 4 length of the name, name,
//	      4 length of the value, value
//
// Integers are big-endian. An empty or oversized context, an empty name and text
// that is not UTF-8 are authority.ErrInvalid.
func BindingBytes(ec authority.Context) ([]byte, error) {
	if len(ec) == 0 || len(ec) > authority.MaxContext {
		return nil, fmt.Errorf("encryption context of %d pairs, want 1 to %d: %w", len(ec), authority.MaxContext, authority.ErrInvalid)
	}
	size := 0
	for name, value := range ec {
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return nil, fmt.Errorf("encryption context of empty names or not UTF-8: %w", authority.ErrInvalid)
		}
		size += len(name) + len(value)
	}
	if size > maxContextBytes {
		return nil, fmt.Errorf("encryption context of %d bytes, limit %d: %w", size, maxContextBytes, authority.ErrInvalid)
	}
	b := append(make([]byte, 0, len(bindingLabel)+2+8*len(ec)+size), bindingLabel...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(ec)))
	for _, name := range slices.Sorted(maps.Keys(ec)) {
		for _, s := range []string{name, ec[name]} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
			b = append(b, s...)
		}
	}
	return b, nil
}

var (
	// namePattern is what the engine accepts as the name of a key.
	namePattern = regexp.MustCompile(`^[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,254}[A-Za-z0-9_])?$`)
	blobPattern = regexp.MustCompile(`^vault:v([1-9][0-9]{0,9}):([A-Za-z0-9+/]+={0,2})$`)
)

// checkName accepts the name of a key. The error does not repeat the text, which
// may be anything.
func checkName(name string) error {
	if len(name) > authority.MaxKeyID || !namePattern.MatchString(name) {
		return errors.New("malformed key name, want letters, digits, _ . -")
	}
	return nil
}

// parseBlob returns the key version of a ciphertext. It accepts one spelling only:
// the engine ignores line breaks and stray bits of base64, which would let two
// blobs be one wrap.
func parseBlob(blob []byte) (version string, err error) {
	if len(blob) == 0 || len(blob) > authority.MaxBlob {
		return "", fmt.Errorf("blob of %d bytes, want 1 to %d", len(blob), authority.MaxBlob)
	}
	m := blobPattern.FindSubmatch(blob)
	if m == nil {
		return "", errors.New("malformed ciphertext, want vault:vVERSION:BASE64")
	}
	if _, err := base64.StdEncoding.Strict().DecodeString(string(m[2])); err != nil {
		return "", errors.New("malformed ciphertext")
	}
	return string(m[1]), nil
}
