package keysvc

import (
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// Names outside this module for types of the envelope.
type (
	// DataKey is an opened data key: opaque, printed as "[redacted]".
	DataKey = envelope.DataKey
	// KeyID names one data key.
	KeyID = envelope.KeyID
	// Grant is the right to seal one session; it does not open anything.
	Grant = envelope.Grant
)

// Record asks for one data key: by its key record, or by reference alone.
type Record struct {
	KeyID KeyID
	// Bytes is the key record in wire form, nil to let the key service resolve
	// the key ID from its directory.
	Bytes []byte
}

// OpenedKey is the answer to one [Record].
type OpenedKey struct {
	KeyID  KeyID
	Record []byte  // the key record as the service knows it; its core hashes to KeyID (checked)
	Key    DataKey // matches the record's commitment (checked); zero if Err
	// NotAfter is the hard end of the lease, RefreshAt when to ask again. Both
	// carry a monotonic reading and count from the sending of the request.
	NotAfter, RefreshAt time.Time
	Err                 error // wraps one sentinel of this package
}

// SealKey is a session grant for one scope.
type SealKey struct {
	Scope string
	Grant *Grant
	// Messages and Bytes are the budget of the session; the service's own choice,
	// never 0 and never above the envelope's hard limits.
	Messages, Bytes uint64
	// NotAfter ends sealing under the grant, RefreshAt is when to ask for the
	// next one. Both carry a monotonic reading, counted from the sending of the request.
	NotAfter, RefreshAt time.Time
	Err                 error // wraps one sentinel of this package
}

// RouteKey is the MAC key of one route's positions: 32 bytes, printed as "[redacted]".
type RouteKey = envelope.DataKey

// Status is what a key service says about itself.
type Status struct {
	Service     string   `json:"service"`
	Instance    string   `json:"instance"`
	Version     string   `json:"version"`
	Ops         []string `json:"ops"`
	Suites      []string `json:"suites"` // exchange suites, preferred first
	UptimeMs    int64    `json:"uptime_ms"`
	AuditHead   string   `json:"audit_head"`  // hash of the last audit record, hexadecimal
	AuditCount  uint64   `json:"audit_count"` // records written
	DataKeys    uint64   `json:"data_keys"`   // generated since the store was made
	CacheHits   uint64   `json:"cache_hits"`  // key requests answered without an authority, since start
	CacheMisses uint64   `json:"cache_misses"`
	// AuthorityCalls counts calls to authorities since start, AuthorityErrors
	// those that failed.
	AuthorityCalls  uint64 `json:"authority_calls"`
	AuthorityErrors uint64 `json:"authority_errors"`
}
