package keysvc

import (
	"crypto/hpke"
	"time"
)

// Names for the tests of this package.
const (
	MaxErrorText  = maxErrorText
	SignatureSize = signatureSize
	RetryAfter    = retryAfter
	EphemeralLife = ephemeralLife
	LabelReply    = labelReply
)

var (
	SignInput     = signInput
	EncodeRequest = encodeRequest
	DecodeReply   = decodeReply
	SealResult    = sealResult
	OpenSealed    = openResult
	SuiteKEM      = suiteKEM
	Lease         = lease
)

// Codes lists the sentinels that travel, with their codes.
func Codes() map[string]error {
	out := map[string]error{}
	for _, c := range codes {
		out[c.code] = c.err
	}
	return out
}

// CodeCount is the length of the table, duplicates included.
func CodeCount() int { return len(codes) }

// NewRequest makes a request as DecodeRequest returns it.
func NewRequest(op string, hash [32]byte, to hpke.PublicKey) *Request {
	return &Request{Op: op, Hash: hash, ephemeral: to}
}

// EphemeralKey is the key pair the client's next call uses.
func (c *Client) EphemeralKey() (hpke.PrivateKey, error) { return c.ephemeralKey() }

// AgeEphemeral makes the key pair d older.
func (c *Client) AgeEphemeral(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.born = c.born.Add(-d)
}
