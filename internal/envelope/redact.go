package envelope

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redactedText = "[redacted]"

// redacted, embedded in a type that holds key material, makes the type print as
// "[redacted]" under every fmt verb, slog, JSON and text, and refuse to be
// serialised as binary or gob.
//
// fmt ignores methods on unexported fields and falls back to reflection; there
// it prints pointers as addresses, except that a verb which does not fit a
// pointer (%s, %q, %t, ...) makes it follow one pointer. Secrets therefore stand
// behind two pointers inside these types, see secret and hidden.
type redacted struct{}

func (redacted) String() string                 { return redactedText }
func (redacted) GoString() string               { return redactedText }
func (redacted) Format(f fmt.State, _ rune)     { _, _ = io.WriteString(f, redactedText) }
func (redacted) LogValue() slog.Value           { return slog.StringValue(redactedText) }
func (redacted) MarshalText() ([]byte, error)   { return []byte(redactedText), nil }
func (redacted) MarshalJSON() ([]byte, error)   { return []byte(`"` + redactedText + `"`), nil }
func (redacted) MarshalBinary() ([]byte, error) { return nil, errSerialise }
func (redacted) GobEncode() ([]byte, error)     { return nil, errSerialise }

var errSerialise = errors.New("envelope: key material is not serialised")

// secret is 32 bytes of key material, always held by pointer.
type secret struct{ b *[32]byte }

func newSecret(b [32]byte) *secret { return &secret{&b} }

// hidden is a cipher, whose key schedule is as good as the key, always held by pointer.
type hidden struct{ cipher.AEAD }
