package kmstest

import (
	"bytes"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
)

// motoQuirks: a blob is key ID (36), nonce (12), tag (16), ciphertext. Moto
// answers AccessDeniedException, without a message, where the key ID inside is
// not the one asked for; KMS answers IncorrectKeyException or
// InvalidCiphertextException.
func motoQuirks() authoritytest.Quirks {
	const keyID = 36
	return authoritytest.Quirks{
		JoinedContext: true,
		ForeignWrap:   authority.ErrDenied,
		Exempt: func(genuine, damaged []byte) string {
			const header = keyID + 12 + 16
			if len(genuine) < keyID || len(damaged) < header || bytes.Equal(genuine[:keyID], damaged[:keyID]) {
				return ""
			}
			return "moto answers access denied where the key named inside is unknown"
		},
	}
}
