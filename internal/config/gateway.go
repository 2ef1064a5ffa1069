package config

import "github.com/keyweir/keyweir/internal/pattern"

// Gateway configures the workers that seal.
type Gateway struct {
	// Identity is the seed (SU...) of the gateway's enrolled identity, made by
	// "keyweir identity new". It signs requests to the key service and must not
	// be used to connect to NATS. Required.
	Identity SecretRef `yaml:"identity"`
	// Keysvc says which key service is asked.
	Keysvc KeysvcClient `yaml:"keysvc"`
	// ClaimTTL is how long the claim of a killed instance keeps another one
	// waiting, at least 1s. It counts when the first gateway of a sealed stream's
	// server makes the bucket of claims. Default: 10s.
	ClaimTTL Duration `yaml:"claim_ttl"`
	// Routes say what is sealed. At least one; names are unique.
	Routes []Route `yaml:"routes"`
}

// KeysvcClient says how to reach the key service, and which one to believe.
type KeysvcClient struct {
	// NATS is the name of the connection to ask on. Required.
	NATS string `yaml:"nats"`
	// Pins are the public keys (N...) of the key service that are accepted: one,
	// or two during a change. Required.
	Pins []string `yaml:"pins"`
	// Timeout bounds one request. Default: 5s.
	Timeout Duration `yaml:"timeout"`
}

// Route relays one stream of plaintext into one sealed stream, exactly once and
// in order per subject; or, with ingest: core, seals what is published.
type Route struct {
	// Name is the route's name, one token of a NATS subject; it must stay the
	// same for as long as the sealed stream lives. Required.
	Name string `yaml:"name"`
	// Ingest is where plaintext comes from. "stream" reads a stream; "core" takes
	// plain publishes and requests, so that no plaintext is ever stored: every
	// JetStream client that publishes gets the sealed stream's acknowledgement. It
	// needs a sealed stream of its own mode, which other core routes may share, and
	// takes no source.stream, after_seal, start, on_source_gap, engine and window.
	// Default: stream.
	Ingest IngestKind `yaml:"ingest"`
	// AllowTTL lets publishers of a core route give a message a time to live
	// (Nats-TTL). Default: refused.
	AllowTTL bool `yaml:"allow_ttl"`
	// AllowExpectedLast lets publishers of a core route make a message conditional
	// on the last one stored (Nats-Expected-Last-Sequence, -Last-Subject-Sequence
	// and -Last-Msg-Id), as the sealed stream counts. Default: refused.
	AllowExpectedLast bool `yaml:"allow_expected_last"`
	// QueueMessages bounds how many messages of a core route may wait, for keys
	// above all; what does not fit is answered with an error. At most 1048576.
	// Default: 8192.
	QueueMessages int `yaml:"queue_messages"`
	// QueueBytes bounds the same in bytes, at least 1MiB. Default: 64MiB.
	QueueBytes Size `yaml:"queue_bytes"`
	// KeyWait is how long the first message of a scope waits for its key in a core
	// route before it is answered with an error, at most 1m. Default: 2s.
	KeyWait Duration `yaml:"key_wait"`
	// Source is where plaintext is read.
	Source Source `yaml:"source"`
	// Sealed is where envelopes are stored.
	Sealed Sealed `yaml:"sealed"`
	// OnScopeUnavailable says what happens when no data key can be had for a
	// scope: denied, suspended, or its authority is away past the stale limit.
	// "stop" makes the whole route wait until the key is there; "hold" lets the others go on, and keeps
	// the scope's messages, sealed and in order, in the stream that hold names,
	// until the key is back. A key service that does not answer at all is waited
	// for. Default: stop.
	OnScopeUnavailable OnUnavailable `yaml:"on_scope_unavailable"`
	// Hold says where messages are held. Default: see its keys.
	Hold *Hold `yaml:"hold"`
	// Record says where the key record travels: "auto" in the first message of
	// a session and every 1,024th, "inline" in each, "reference" in none.
	// Default: auto.
	Record RecordMode `yaml:"record"`
	// Nonces are "counter", or "random" for hosts whose memory may be
	// snapshotted and restored. In FIPS mode they are random. Default: counter.
	Nonces Nonces `yaml:"nonces"`
	// PadTo pads messages to a multiple of this many bytes, which hides sizes;
	// at most 4KiB. Default: 0, no padding.
	PadTo Size `yaml:"pad_to"`
	// Engine is how the sealed stream is written. "fast" publishes batches under
	// the server's flow control and needs allow_batched (server 2.14); "durable"
	// publishes atomic batches and needs allow_atomic (server 2.12), the fastest
	// where one replica syncs always; "async" publishes message by message. "auto"
	// takes durable for one replica that syncs always, else async. Default: auto.
	Engine EngineName `yaml:"engine"`
	// Window is how many messages may await their acknowledgement, at most 16384;
	// the durable engine does not use it. Default: 512.
	Window int `yaml:"window"`
	// PassHeaders are headers that stay readable on the sealed message, besides
	// being sealed in it. Never Nats-* or Keyweir-*. Default: none.
	PassHeaders []string `yaml:"pass_headers"`
	// ReservedHeaders says what happens to input with headers that belong to NATS
	// or Keyweir: "drop" leaves them out, "reject" makes the message a dead
	// letter. Default: drop.
	ReservedHeaders ReservedHeaders `yaml:"reserved_headers"`
	// DeadLetters is where messages go, sealed, that cannot be sealed as they
	// are. Default: the first of them stops the route.
	DeadLetters *DeadLetters `yaml:"dead_letters"`
}

// DeadLetters says where a route parks what it cannot seal as it is.
type DeadLetters struct {
	// Stream stores dead letters, on the connection of the sealed stream. Routes
	// may share it. Required.
	Stream string `yaml:"stream"`
	// Subject is what their subjects begin with; the names of the route and the
	// chain and the sequence follow. Default: deadletters.
	Subject string `yaml:"subject"`
	// Create makes the stream if it is missing. Default: it must exist.
	Create *Create `yaml:"create"`
	// Quarantine is a subject whose scope seals what has no key of its own scope.
	// The key service needs a scope rule for it. Default: keyweir.quarantine.
	// and the route's name.
	Quarantine string `yaml:"quarantine"`
	// Refused says what happens to messages of a scope whose key policy denies,
	// or whose key is destroyed: "wait" for a grant (a destroyed key stops the
	// route), or "park" them in quarantine. Default: wait.
	Refused Refused `yaml:"refused"`
}

// Prefix returns what the subjects of dead letters begin with.
func (d *DeadLetters) Prefix() string {
	if d.Subject == "" {
		return "deadletters"
	}
	return d.Subject
}

// ReservedHeaders says what reserved headers of the input do.
type ReservedHeaders string

// Values lists what the file may say.
func (ReservedHeaders) Values() []string { return []string{"drop", "reject"} }

// Refused says what a refused scope does.
type Refused string

// Values lists what the file may say.
func (Refused) Values() []string { return []string{"wait", "park"} }

// Hold says where messages wait whose scope has no key. The key service needs a
// scope rule for the subject keyweir.hold.<route>, which gives the scope that held
// messages are sealed under, and the gateway the permissions generate and open on
// it. It needs the engine durable (server 2.12), which auto then is.
type Hold struct {
	// Stream is the hold stream, on the connection of the sealed one; nobody else
	// reads or writes it. With partitions each has one, numbered like sealed streams.
	// Default: the sealed stream's name and _HOLD.
	Stream string `yaml:"stream"`
	// Scope is what the scope rules must say. Default: hold/<route>.
	Scope string `yaml:"scope"`
	// Create makes the stream if it is missing. Default: it must exist.
	Create *HoldCreate `yaml:"create"`
}

// HoldCreate says how a missing hold stream is made. It has no limits, which would
// lose what is held.
type HoldCreate struct {
	// Replicas is 1, 3 or 5. Default: as many as the sealed stream has.
	Replicas int `yaml:"replicas"`
	// Storage is "file" or "memory". Default: file.
	Storage Storage `yaml:"storage"`
}

// EngineName names a way to publish.
type EngineName string

// Values lists what the file may say.
func (EngineName) Values() []string { return []string{"auto", "fast", "durable", "async"} }

// IngestKind names where plaintext comes from.
type IngestKind string

// IngestCore takes plain publishes.
const IngestCore IngestKind = "core"

// Values lists what the file may say.
func (IngestKind) Values() []string { return []string{"stream", "core"} }

// Source is the plaintext side of a route.
type Source struct {
	// NATS is the name of the connection. Required.
	NATS string `yaml:"nats"`
	// Stream holds the plaintext. Memory storage on a server of its own keeps
	// plaintext off disks. Required, save with ingest: core.
	Stream string `yaml:"stream"`
	// Subjects select what is sealed: NATS patterns that do not overlap. Required,
	// unless partitions say them.
	Subjects []string `yaml:"subjects"`
	// Partitions split the route: each is a list of patterns, and every subject of
	// the route must be in exactly one partition. Each has a worker and a sealed
	// stream of its own, and gateway instances share them evenly. Patterns like "0.>"
	// fit a landing stream whose subject transform writes partition(N, ...) in front
	// of each subject. To change them, run "keyweir gateway --drain" first.
	// Default: one partition.
	Partitions [][]string `yaml:"partitions"`
	// AfterSeal is "purge", which removes the plaintext once its sealed copy is
	// safely stored, or "keep". A WorkQueue stream always removes. Required, save
	// with ingest: core.
	AfterSeal AfterSeal `yaml:"after_seal"`
	// Start is where a new route begins: "first", "new", a stream sequence, or a
	// time (RFC 3339). It counts only while the sealed stream has no position.
	// Required, save with ingest: core.
	Start string `yaml:"start"`
	// OnSourceGap says what happens when messages expired before they were
	// sealed: "stop", or "continue", which counts them and tells readers.
	// Default: stop.
	OnSourceGap OnGap `yaml:"on_source_gap"`
}

// SealedStreams are the names of the route's sealed streams, one for each
// partition that does not share it.
func (r *Route) SealedStreams() []string {
	if r.Sealed.Shared {
		return []string{r.Sealed.Stream}
	}
	return pattern.StreamNames(r.Sealed.Stream, len(r.Source.Partitions))
}

// HoldStreams are the names of the streams that the route holds messages in, one
// for each partition; none if it does not hold.
func (r *Route) HoldStreams() []string {
	if r.OnScopeUnavailable != HoldScopes {
		return nil
	}
	name := r.Sealed.Stream + "_HOLD"
	if r.Hold != nil && r.Hold.Stream != "" {
		name = r.Hold.Stream
	}
	return pattern.StreamNames(name, len(r.Source.Partitions))
}

// Sealed is the sealed side of a route.
type Sealed struct {
	// NATS is the name of the connection. Required.
	NATS string `yaml:"nats"`
	// Stream stores the envelopes. One route writes to it, nobody else, or with
	// ingest: core several such routes. With partitions, {partition} in the name
	// stands for the number of each, from 0; without it the names are <stream>-0,
	// <stream>-1 and so on. Required.
	Stream string `yaml:"stream"`
	// Subject is where envelopes are published: a prefix ending in ".>", which
	// the origin subject is appended to ("sealed.>" makes sealed.orders.eu of
	// orders.eu), or one that repeats the beginning of the origin subject
	// ("sealed.orders.>" with the source orders.>). Required.
	Subject string `yaml:"subject"`
	// Shared makes the partitions of the route, at most 32, write to one sealed stream,
	// with the name as it stands: fewer streams, not more messages per second. It takes
	// the engine durable, which auto then is, and no on_scope_unavailable: hold. Each
	// partition keeps its position in a message beside the sealed ones, on
	// keyweir.checkpoint.<stream>.<partition>, which readers skip. Default: false.
	Shared bool `yaml:"shared"`
	// Create makes the stream if it is missing. Default: it must exist.
	Create *Create `yaml:"create"`
	// SyncInterval is the sync_interval of the server that stores the stream,
	// which cannot be asked for: plaintext is released that much later than its
	// sealed copy was acknowledged, since a copy not yet synced may not survive a
	// power failure. "always" if the server syncs every write; streams with
	// three replicas, or in memory, do not wait. Default: 2m, the server's.
	SyncInterval SyncInterval `yaml:"sync_interval"`
}

// Create says how a missing sealed stream is made. An existing one is not
// changed.
type Create struct {
	// Replicas is 1, 3 or 5. Default: 1.
	Replicas int `yaml:"replicas"`
	// MaxAge removes older messages. Default: kept for ever.
	MaxAge Duration `yaml:"max_age"`
	// MaxBytes bounds the stream; the oldest messages go. Default: unbounded.
	MaxBytes Size `yaml:"max_bytes"`
	// Storage is "file" or "memory". Default: file.
	Storage Storage `yaml:"storage"`
}
