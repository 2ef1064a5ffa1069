package envelope

import (
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
// fmt ignores methods on unexported fields and under a wrong %p and falls back
// to reflection. Secret bytes therefore stand behind a pointer inside these
// types, so that reflection prints an address.
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
type secret struct{ b [32]byte }
