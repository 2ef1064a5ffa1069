package config

// Unseal configures the process that opens sealed streams into plaintext ones.
// It is a principal of its own: an identity and grants that no gateway has.
type Unseal struct {
	// Identity is the seed (SU...) of its enrolled identity. It must not be the
	// gateway's, nor one that may seal. Required.
	Identity SecretRef `yaml:"identity"`
	// Profile is the file, written by "keyweir readers add", that says which key
	// service to believe and what to accept. Its own identity is not used. Required.
	Profile string `yaml:"profile"`
	// NATS is the name of the connection to ask the key service on. Required.
	NATS string `yaml:"nats"`
	// ClaimTTL is as in the gateway section. Default: 10s.
	ClaimTTL Duration `yaml:"claim_ttl"`
	// Routes say what is opened. At least one; names are unique.
	Routes []UnsealRoute `yaml:"routes"`
}

// UnsealRoute relays one sealed stream into one stream of plaintext, exactly once
// and in order.
type UnsealRoute struct {
	// Name is the route's name, one token of a NATS subject of at most 57
	// characters; it must stay the same for as long as the plaintext stream lives.
	// Its grant is for route/unseal-NAME. Required.
	Name string `yaml:"name"`
	// Sealed is what is read; nothing is removed from it.
	Sealed UnsealSource `yaml:"sealed"`
	// Plain is where plaintext is stored.
	Plain Plain `yaml:"plain"`
	// OnUndecryptable says what happens to a message that does not open, or whose
	// plaintext cannot be stored as it was: "stop" stops the route, "park" puts it
	// aside, still sealed, and leaves it out. One whose key is only out of reach is
	// waited for. Default: stop.
	OnUndecryptable OnUndecryptable `yaml:"on_undecryptable"`
	// Park says where "park" puts messages.
	Park *Park `yaml:"park"`
	// Engine is how the plaintext stream is written, as in a route of the gateway.
	// Default: auto.
	Engine EngineName `yaml:"engine"`
	// Window is how many messages may await their acknowledgement, at most 16384.
	// Default: 512.
	Window int `yaml:"window"`
}

// OnUndecryptable says what becomes of a message that cannot be unsealed.
type OnUndecryptable string

// The values of OnUndecryptable that the checks know.
const undecryptablePark OnUndecryptable = "park"

// Values lists what the file may say.
func (OnUndecryptable) Values() []string { return []string{"stop", "park"} }

// UnsealSource is the sealed side of an unsealing route.
type UnsealSource struct {
	// NATS is the name of the connection. Required.
	NATS string `yaml:"nats"`
	// Stream holds the envelopes. Required.
	Stream string `yaml:"stream"`
	// Subjects select what is opened: patterns of sealed subjects that do not
	// overlap. Required.
	Subjects []string `yaml:"subjects"`
	// Start is where a new route begins: "first", "new", a sequence of the sealed
	// stream, or a time (RFC 3339). It counts only while the plaintext stream has
	// no position. Required.
	Start string `yaml:"start"`
	// OnSourceGap says what happens when messages expired before they were opened:
	// "stop", or "continue", which counts them. Default: stop.
	OnSourceGap OnGap `yaml:"on_source_gap"`
}

// Plain is the plaintext side of an unsealing route.
type Plain struct {
	// NATS is the name of the connection. Required.
	NATS string `yaml:"nats"`
	// Stream stores the plaintext. One route writes to it, nobody else. Required.
	Stream string `yaml:"stream"`
	// Subjects are patterns of the origin subjects that may come out. Whoever may
	// seal chooses the subject of a message, and this bounds it. Required.
	Subjects []string `yaml:"subjects"`
	// Prefix stands before the origin subject of what is published, and ends in a
	// dot: "clear." makes clear.orders.eu of orders.eu. Default: none.
	Prefix string `yaml:"prefix"`
	// Create makes the stream if it is missing. Default: it must exist.
	Create *Create `yaml:"create"`
	// SyncInterval is the sync_interval of the server that stores the stream, as in
	// a route of the gateway. Default: 2m, the server's.
	SyncInterval SyncInterval `yaml:"sync_interval"`
}

// Park says where messages go that cannot be unsealed, as they are.
type Park struct {
	// NATS is the name of the connection. Default: that of the sealed stream.
	NATS string `yaml:"nats"`
	// Stream stores them; it must exist. Required.
	Stream string `yaml:"stream"`
	// Subject is what their subjects begin with, followed by the route, the chain
	// and the sequence. Required.
	Subject string `yaml:"subject"`
}
