package config

// Keysvc configures the key service.
type Keysvc struct {
	// NATS is the name of the connection it serves on. Required.
	NATS string `yaml:"nats"`
	// Store is the directory of the key service's own store; it is created,
	// readable by the owner only. Required.
	Store string `yaml:"store"`
	// Identity is the seed (SN...) of the service, made by "keyweir identity new
	// --service". Gateways and readers pin its public key. Required.
	Identity SecretRef `yaml:"identity"`
	// Authorities names the holders of wrapping keys by URI:
	//   awskms:///arn:aws:kms:REGION:ACCOUNT:key/ID
	//   local:///DIRECTORY?domain-key=file:PATH
	//   local:///DIRECTORY?domain-key=env:NAME&key=ALIAS
	//   transit://HOST:PORT/MOUNT/KEY?token=file:PATH
	//   exec:///PROGRAM?key=KEY&arg=ARGUMENT
	// Their parameters are in docs/authorities.md.
	// A name stands in every key record, so it stays. At least one.
	Authorities map[string]string `yaml:"authorities"`
	// Scopes are tried in order; the first match wins and no match is refused.
	// At least one.
	Scopes []Scope `yaml:"scopes"`
	// Principals are the enrolled identities by name: public keys (U...).
	Principals map[string]string `yaml:"principals"`
	// Grants say who may do what. What no grant allows is denied.
	Grants []Grant `yaml:"grants"`
	// Directory is the KV bucket that lets readers resolve keys by reference.
	Directory Directory `yaml:"directory"`
	// Workers is how many requests are answered at a time. Default: 32.
	Workers int `yaml:"workers"`
	// Cache is how many opened data keys are kept in memory, and of how many
	// scopes the current key. Default: 100000.
	Cache int `yaml:"cache"`
	// Confirm is how long an authority's answer about a managed key counts as
	// fresh; keys in use are confirmed ahead of it. Default: 1m.
	Confirm Duration `yaml:"confirm"`
	// AuthorityTimeout bounds one call to an authority. Default: 10s.
	AuthorityTimeout Duration `yaml:"authority_timeout"`
}

// Scope is a rule: which subjects share a data key, and how it is kept.
type Scope struct {
	// Match is a NATS subject pattern over origin subjects. Required.
	Match string `yaml:"match"`
	// Scope is the name of what shares a data key; {{wildcard(n)}} stands for
	// the token that the n-th * of match met. Required.
	Scope string `yaml:"scope"`
	// Keys is "direct", each data key is made by the authority under the managed
	// key of its URI, or "managed", each scope has a managed key of its own in a
	// local: authority. Default: direct.
	Keys KeysMode `yaml:"keys"`
	// Scheme says which authorities must act to open a data key: "single".
	// Default: single.
	Scheme SchemeName `yaml:"scheme"`
	// Authorities are names of the authorities section, in order; as many as the
	// scheme needs. Required.
	Authorities []string `yaml:"authorities"`
	// Accept names further authorities whose keys of this scope may still be
	// opened, after a change of authorities. Default: none.
	Accept []string `yaml:"accept"`
	// Context adds pairs to the encryption context of every wrap. Names starting
	// keyweir- are refused. The pairs are readable and not secret.
	Context map[string]string `yaml:"context"`
	// Reuse is how long a data key may seal new messages. Default: 5m.
	Reuse Duration `yaml:"reuse"`
	// Lease is how long a client may keep an opened key before it asks again,
	// which bounds how long a revocation takes. Default: 5m.
	Lease Duration `yaml:"lease"`
	// Stale says how long to go on while the authority cannot be reached.
	Stale Stale `yaml:"stale"`
	// Budget ends every session of a sealer, at the latest.
	Budget Budget `yaml:"budget"`
}

// Stale limits apply to outages only, never when an authority answered that a
// key is denied or disabled.
type Stale struct {
	// Seal is for sealing. Default: 1h.
	Seal Duration `yaml:"seal"`
	// Open is for opening. Default: 4h.
	Open Duration `yaml:"open"`
}

// Budget bounds what is sealed in one session.
type Budget struct {
	// Messages is their number. Default: 4294967295.
	Messages int64 `yaml:"messages"`
	// Bytes counts payload and sealed headers; at most 64GiB. Default: 64GiB.
	Bytes Size `yaml:"bytes"`
}

// Grant allows one principal some operations on some scopes.
type Grant struct {
	// To is a name of the principals section. Required.
	To string `yaml:"to"`
	// May lists operations: generate (seal), open (read), route-key (the key that
	// authenticates the position of a gateway's route). Required.
	May []GrantOp `yaml:"may"`
	// Scopes are scope names, or beginnings of them ending in *. For route-key a
	// scope is route/ and the name of the route. Required.
	Scopes []string `yaml:"scopes"`
	// Expires ends the grant: a date (2027-01-01, 00:00 UTC) or a time
	// (RFC 3339). Default: never.
	Expires Time `yaml:"expires"`
}

// Directory is the KV bucket KEYWEIR_<service>_keys of key records. The service
// makes it if it is missing and never changes it.
type Directory struct {
	// Replicas is 1, 3 or 5. Default: 1.
	Replicas int `yaml:"replicas"`
	// TTL removes older records; shorter than the retention of messages sealed
	// by reference it makes those unreadable. Default: they stay.
	TTL Duration `yaml:"ttl"`
	// Signers are former public keys (N...) of the service whose entries still
	// count. Default: none.
	Signers []string `yaml:"signers"`
}
