package awskms

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// keyRef is a parsed name of a managed key: a key ID, an alias, or the ARN of either.
type keyRef struct {
	text string // as it goes to KMS

	partition, region, account string // of an ARN, else ""

	id    string // key ID, or "alias/NAME"
	alias bool
}

var (
	arnPattern   = regexp.MustCompile(`^arn:(aws[a-z-]{0,20}):kms:([a-z0-9-]{1,32}):([0-9]{12}):(key/.+|alias/.+)$`)
	idPattern    = regexp.MustCompile(`^[A-Za-z0-9-]{1,256}$`)
	aliasPattern = regexp.MustCompile(`^alias/[A-Za-z0-9/_-]{1,250}$`)
)

// parseKey accepts the four forms KMS accepts. Errors wrap no sentinel and do not
// repeat the text, which may be anything.
func parseKey(s string) (keyRef, error) {
	if len(s) > authority.MaxKeyID {
		return keyRef{}, fmt.Errorf("key ID of %d bytes, want at most %d", len(s), authority.MaxKeyID)
	}
	ref, isKey := keyRef{text: s, id: s}, true
	if strings.HasPrefix(s, "arn:") {
		m := arnPattern.FindStringSubmatch(s)
		if m == nil {
			return keyRef{}, errors.New("malformed key ARN")
		}
		ref.partition, ref.region, ref.account = m[1], m[2], m[3]
		ref.id, isKey = strings.CutPrefix(m[4], "key/")
	}
	switch {
	case isKey && idPattern.MatchString(ref.id):
	case aliasPattern.MatchString(ref.id) && (!isKey || ref.region == ""): // arn:...:key/alias/x is neither
		ref.alias = true
	default:
		return keyRef{}, errors.New("malformed key ID")
	}
	return ref, nil
}

// answers reports whether KMS may name r when asked was asked for: the same key,
// or, asked by alias, any key. The account was compared where both are known.
func (r keyRef) answers(asked keyRef) bool {
	if asked.region != "" && r.region != "" &&
		(r.partition != asked.partition || r.region != asked.region || r.account != asked.account) {
		return false
	}
	return asked.alias || r.id == asked.id
}
