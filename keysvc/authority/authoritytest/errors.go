package authoritytest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// leakBytes is the shortest run of a secret whose appearance is no coincidence.
const leakBytes = 8

var sentinels = []error{
	authority.ErrNotFound, authority.ErrDenied, authority.ErrDisabled, authority.ErrDestroyed,
	authority.ErrThrottled, authority.ErrUnavailable, authority.ErrInvalid,
}

// CheckError returns nil if err wraps want and no other sentinel of package
// authority, and its text, in every format verb, shows none of the secrets: not
// as bytes, hexadecimal, base64 or a list of numbers. Secrets shorter than eight
// bytes are not looked for.
func CheckError(err, want error, secrets ...[]byte) error {
	if err == nil {
		return fmt.Errorf("succeeded, want %q", want)
	}
	var got []string
	for _, s := range sentinels {
		if errors.Is(err, s) {
			got = append(got, s.Error())
		}
	}
	if len(got) != 1 || !errors.Is(err, want) {
		return fmt.Errorf("got %q, which wraps %q, want exactly %q", err, got, want)
	}
	for e := range tree(err) {
		for _, verb := range []string{"%v", "%+v", "%#v"} {
			text := fmt.Sprintf(verb, e)
			for _, s := range secrets {
				if shows(text, s) {
					return fmt.Errorf("the text of a %T under %s shows key material", e, verb)
				}
			}
		}
	}
	return nil
}

// tree yields err and everything it wraps.
func tree(err error) func(yield func(error) bool) {
	return func(yield func(error) bool) { walk(err, yield) }
}

func walk(err error, yield func(error) bool) bool {
	if err == nil {
		return true
	}
	if !yield(err) {
		return false
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		return walk(u.Unwrap(), yield)
	case interface{ Unwrap() []error }:
		for _, e := range u.Unwrap() {
			if !walk(e, yield) {
				return false
			}
		}
	}
	return true
}

// shows reports whether text shows the first bytes of secret in a usual notation.
func shows(text string, secret []byte) bool {
	if len(secret) < leakBytes {
		return false
	}
	head := secret[:leakBytes]
	decimal := strings.Trim(fmt.Sprint(head), "[]")
	quoted := fmt.Sprintf("%q", head)
	golike := fmt.Sprintf("%#v", head) // []byte{0x1, 0x2}
	golike = strings.TrimSuffix(strings.TrimPrefix(golike, "[]byte{"), "}")
	for _, form := range []string{
		string(head),
		hex.EncodeToString(head),
		strings.ToUpper(hex.EncodeToString(head)),
		base64.StdEncoding.EncodeToString(head)[:10], // the last quantum depends on what follows
		base64.URLEncoding.EncodeToString(head)[:10],
		decimal,
		strings.ReplaceAll(decimal, " ", ","),
		quoted[1 : len(quoted)-1],
		golike,
	} {
		if bytes.Contains([]byte(text), []byte(form)) {
			return true
		}
	}
	return false
}
