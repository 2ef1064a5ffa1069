package keysvc

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
)

// Operations of version 1. The permission a principal needs has the same name,
// except that OpScopes needs OpGenerate or OpOpen and OpStatus needs none.
const (
	OpGenerate = "generate"
	OpOpen     = "open"
	OpRouteKey = "route-key"
	OpScopes   = "scopes"
	OpStatus   = "status"
)

// Maxima of the wire, checked on both sides.
const (
	MaxBatch      = 64         // subjects or records in one request
	MaxRequest    = 512 << 10  // bytes of a signed request
	MaxReply      = 1000 << 10 // bytes of a signed reply; fits the default max_payload of NATS
	MaxName       = 64         // bytes of a service or route name
	MinNonce      = 16         // bytes of random in a request
	MaxNonce      = 32
	signatureSize = 64
)

// Subject returns the subject of one operation of a service.
func Subject(service, op string) string { return "keyweir.v1." + service + "." + op }

// CheckName refuses what cannot be one token of a subject: [ErrInvalid].
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("%w: name of %d bytes, want 1 to %d", ErrInvalid, len(name), MaxName)
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return fmt.Errorf("%w: name %q, want letters, digits, - and _", ErrInvalid, name)
		}
	}
	return nil
}

// Secret is key material inside a result. It marshals as base64, since results
// are sealed as a whole, and prints as "[redacted]". It is for the codecs of both
// sides, which clear it; what callers get is a [DataKey] or a [Grant], which fmt
// cannot see through even when a verb is wrong.
type Secret []byte

func (Secret) String() string             { return "[redacted]" }
func (Secret) GoString() string           { return "[redacted]" }
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }
func (Secret) LogValue() slog.Value       { return slog.StringValue("[redacted]") }

// requestBody is what a requester signs.
type requestBody struct {
	Op        string          `json:"op"`
	Audience  string          `json:"audience"`  // public key of the service
	Principal string          `json:"principal"` // public key of the requester
	Time      int64           `json:"time"`      // unix milliseconds
	Nonce     []byte          `json:"nonce"`
	Suite     string          `json:"suite"`     // exchange suite of the reply
	Ephemeral []byte          `json:"ephemeral"` // HPKE public key of the requester
	Args      json.RawMessage `json:"args"`
}

// replyBody is what a service signs.
type replyBody struct {
	Request  []byte     `json:"request"` // SHA-256 of the signed request
	Instance string     `json:"instance"`
	Time     int64      `json:"time"` // unix milliseconds
	Error    *WireError `json:"error,omitempty"`
	Sealed   []byte     `json:"sealed,omitempty"` // HPKE enc || ciphertext of the result; empty with an error
}

// Arguments and results of the operations.
type (
	// GenerateArgs asks for one session grant per subject; a scope is computed by
	// the service's own rules.
	GenerateArgs struct {
		Subjects []string `json:"subjects"`
	}
	// GenerateResult answers in the order of the subjects.
	GenerateResult struct {
		Grants []WireGrant `json:"grants"`
	}
	// WireGrant is one session grant, or an error and nothing else.
	WireGrant struct {
		Scope    string     `json:"scope,omitempty"`
		Record   []byte     `json:"record,omitempty"`
		Salt     []byte     `json:"salt,omitempty"`
		Subkey   Secret     `json:"subkey,omitempty"`
		Messages uint64     `json:"messages,omitempty"`
		Bytes    uint64     `json:"bytes,omitempty"`
		ReuseMs  int64      `json:"reuse_ms,omitempty"` // how long it may seal, from the sending of the request
		Error    *WireError `json:"error,omitempty"`
	}

	// OpenArgs asks for data keys.
	OpenArgs struct {
		Keys []WireRecord `json:"keys"`
	}
	// WireRecord names one data key; Record may be empty.
	WireRecord struct {
		KeyID  string `json:"id"`
		Record []byte `json:"record,omitempty"`
	}
	// OpenResult answers in the order of the keys.
	OpenResult struct {
		Keys []WireKey `json:"keys"`
	}
	// WireKey is one data key with its record, or an error and nothing else.
	WireKey struct {
		KeyID   string     `json:"id"`
		Record  []byte     `json:"record,omitempty"`
		Key     Secret     `json:"key,omitempty"`
		LeaseMs int64      `json:"lease_ms,omitempty"` // from the sending of the request
		Error   *WireError `json:"error,omitempty"`
	}

	// RouteKeyArgs asks for the MAC key of a route's positions.
	RouteKeyArgs struct {
		Route string `json:"route"`
	}
	// RouteKeyResult is that key: 32 bytes, the same for ever for one route.
	RouteKeyResult struct {
		Key Secret `json:"key"`
	}

	// ScopesArgs asks for the scope rules.
	ScopesArgs struct{}
	// ScopesResult lists them in order.
	ScopesResult struct {
		Rules []ScopeRule `json:"rules"`
	}

	// StatusArgs asks for the service's status.
	StatusArgs struct{}
)
