package keysvc

import (
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/keyweir/keyweir/internal/strictjson"
)

// Window is how far the time of a request may be from the service's clock.
// Nonces are remembered for twice as long.
const Window = 60 * time.Second

// Request is a request that passed every check of [DecodeRequest].
type Request struct {
	Op        string
	Principal string // public key of the requester
	Time      time.Time
	Nonce     []byte
	Hash      [32]byte // SHA-256 of the signed request; replies are bound to it
	args      json.RawMessage
	ephemeral hpke.PublicKey
}

// Args decodes the arguments strictly into the args struct of the operation;
// [ErrInvalid] otherwise.
func (r *Request) Args(v any) error {
	if err := strictjson.Unmarshal(r.args, v); err != nil {
		return fmt.Errorf("%w: args: %v", ErrInvalid, err)
	}
	return nil
}

// RequestCheck is what a service holds a request against.
type RequestCheck struct {
	Op       string // the operation of the subject it came on
	Audience string // the service's own public key
	Now      time.Time
	// NotBefore refuses requests signed before it: the start of the instance,
	// which has no memory of older nonces.
	NotBefore time.Time
	// Enrolled says whether a public key is known; nil knows none. Unknown ones
	// cost no signature check.
	Enrolled func(public string) bool
	// Suites are the exchange suites served; nil means all of Suites().
	Suites []string
}

// RequestHash is the hash that replies to a signed request are bound to, whether
// or not the request is valid.
func RequestHash(data []byte) [32]byte { return sha256.Sum256(data) }

// DecodeRequest checks a signed request: sizes, strict JSON, enrolment,
// signature, operation, audience, time window, nonce length, suite and ephemeral
// key. It does not know which nonces were seen: that is the caller's replay
// cache, which refuses with [ErrMisdelivered] what it has seen. Errors:
// [ErrInvalid], [ErrDenied] (not enrolled), [ErrMisdelivered] (operation),
// [*ClockSkewError], [ErrBusy] (signed before NotBefore), [ErrUnsupported] (suite).
func DecodeRequest(data []byte, c RequestCheck) (*Request, error) {
	if len(data) <= signatureSize || len(data) > MaxRequest {
		return nil, fmt.Errorf("%w: request of %d bytes", ErrInvalid, len(data))
	}
	sig, body := data[:signatureSize], data[signatureSize:]
	var b requestBody
	if err := strictjson.Unmarshal(body, &b); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	if c.Enrolled == nil || !c.Enrolled(b.Principal) {
		return nil, fmt.Errorf("%w: principal %.64q is not enrolled", ErrDenied, b.Principal)
	}
	if err := VerifyPurpose(b.Principal, PurposeRequest, body, sig); err != nil {
		return nil, err
	}
	if b.Op != c.Op {
		return nil, fmt.Errorf("%w: request for %.64q sent to %q", ErrMisdelivered, b.Op, c.Op)
	}
	if b.Audience != c.Audience {
		return nil, fmt.Errorf("%w: request addressed to another service", ErrInvalid)
	}
	at := time.UnixMilli(b.Time)
	if d := c.Now.Sub(at); d > Window || d < -Window {
		return nil, &ClockSkewError{Offset: d}
	}
	if at.Before(c.NotBefore) {
		return nil, fmt.Errorf("%w: request signed before this instance started", ErrBusy)
	}
	if len(b.Nonce) < MinNonce || len(b.Nonce) > MaxNonce {
		return nil, fmt.Errorf("%w: nonce of %d bytes, want %d to %d", ErrInvalid, len(b.Nonce), MinNonce, MaxNonce)
	}
	if c.Suites != nil && !slices.Contains(c.Suites, b.Suite) {
		return nil, fmt.Errorf("%w: exchange suite %.64q", ErrUnsupported, b.Suite)
	}
	kem, err := suiteKEM(b.Suite)
	if err != nil {
		return nil, err
	}
	eph, err := kem.NewPublicKey(b.Ephemeral)
	if err != nil {
		return nil, fmt.Errorf("%w: ephemeral key", ErrInvalid)
	}
	return &Request{
		Op: b.Op, Principal: b.Principal, Time: at, Nonce: b.Nonce,
		Hash: RequestHash(data), args: b.Args, ephemeral: eph,
	}, nil
}

// encodeRequest signs a request to audience and returns it with its hash.
func encodeRequest(id Identity, audience, op, suite string, eph hpke.PrivateKey, args any) (data []byte, hash [32]byte, err error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, hash, fmt.Errorf("encoding %s request: %w", op, err)
	}
	nonce := make([]byte, MinNonce)
	rand.Read(nonce)
	body, err := json.Marshal(requestBody{
		Op: op, Audience: audience, Principal: id.Public(), Time: time.Now().UnixMilli(), Nonce: nonce,
		Suite: suite, Ephemeral: eph.PublicKey().Bytes(), Args: raw,
	})
	if err != nil {
		return nil, hash, fmt.Errorf("encoding %s request: %w", op, err)
	}
	sig, err := SignPurpose(id, PurposeRequest, body)
	if err != nil {
		return nil, hash, err
	}
	data = append(sig, body...)
	if len(data) > MaxRequest {
		return nil, hash, fmt.Errorf("%w: request of %d bytes, at most %d", ErrInvalid, len(data), MaxRequest)
	}
	return data, RequestHash(data), nil
}
