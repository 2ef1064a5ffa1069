package streamstest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

// Authority is the name of the one authority of keys made without Authorities.
const Authority = "test"

// Sealing says how a [Sealer] seals. Scope is required.
type Sealing struct {
	// Scope is what its data key belongs to.
	Scope string
	// Prefix stands before the origin subject in the sealed one. Zero: "sealed.".
	Prefix string
	// Authorities of the key. Zero: Authority alone. More than one: all are
	// needed ([streams.SchemeSplit]).
	Authorities []string
	// Scheme of the key, if another than the number of authorities implies.
	Scheme streams.Scheme
	// Record says where the key record travels: "auto" (zero), "inline" in every
	// message, "reference" never.
	Record string
	// RandomNonce draws nonces instead of counting.
	RandomNonce bool
}

// Sealer seals messages as one gateway worker does: one data key, one session,
// one chain. Safe for concurrent use.
type Sealer struct {
	cfg  Sealing
	keys *Keys

	mu      sync.Mutex // guards the fields below
	session *envelope.Session
	meta    envelope.Meta
	record  *envelope.Record
}

// NewSealer makes a data key, known to k, and a sealer that uses it.
func (k *Keys) NewSealer(t testing.TB, cfg Sealing) *Sealer {
	t.Helper()
	s, err := k.newSealer(cfg)
	if err != nil {
		t.Fatalf("streamstest: making sealer: %v", err)
	}
	return s
}

func (k *Keys) newSealer(cfg Sealing) (*Sealer, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "sealed."
	}
	if cfg.Authorities == nil {
		cfg.Authorities = []string{Authority}
	}
	if cfg.Scheme == 0 {
		cfg.Scheme = streams.SchemeSingle
		if len(cfg.Authorities) > 1 {
			cfg.Scheme = streams.SchemeSplit
		}
	}
	mode := envelope.RecordAuto
	if cfg.Record != "" {
		var err error
		if mode, err = envelope.ParseRecordMode(cfg.Record); err != nil {
			return nil, err
		}
	}
	key := envelope.GenerateDataKey()
	defer key.Clear()
	s := &Sealer{cfg: cfg, keys: k, record: newRecord(key, cfg)}
	grant, err := envelope.NewGrant(key, s.record)
	if err != nil {
		return nil, err
	}
	if s.session, err = grant.Session(envelope.SessionConfig{Record: mode, RandomNonce: cfg.RandomNonce}); err != nil {
		return nil, err
	}
	s.meta.Chain = envelope.ChainID(envelope.NewRecordID())
	return s, k.add(key, s.record)
}

// newRecord describes key. Its wraps are words: only Keys opens them.
func newRecord(key envelope.DataKey, cfg Sealing) *envelope.Record {
	r := &envelope.Record{Core: envelope.Core{
		Scheme: cfg.Scheme, K: uint8(len(cfg.Authorities)), N: uint8(len(cfg.Authorities)),
		RecordID: envelope.NewRecordID(), Created: time.Now().Unix(), Commitment: key.Commit(),
		Context: []envelope.Pair{{Name: envelope.ContextScope, Value: cfg.Scope}},
	}}
	if cfg.Scheme == streams.SchemeAny {
		r.Core.K = 1
	}
	for i, name := range cfg.Authorities {
		r.Core.Authorities = append(r.Core.Authorities, envelope.PartHolder{Authority: name})
		w := envelope.Wrap{ManagedKey: "streamstest", Version: "1"}
		if cfg.Scheme != streams.SchemeChain || i == len(cfg.Authorities)-1 {
			w.Bytes = []byte("not a real wrap of " + r.Core.RecordID.String())
		}
		r.Wraps = append(r.Wraps, w)
	}
	return r
}

// KeyID returns the ID of the sealer's data key.
func (s *Sealer) KeyID() keysvc.KeyID { return s.record.Core.ID() }

// Chain returns the sealer's chain.
func (s *Sealer) Chain() streams.ChainID { return s.meta.Chain }

// SealedSubject returns the subject a message of an origin subject is published to.
func (s *Sealer) SealedSubject(origin string) string { return s.cfg.Prefix + origin }

// Accept returns what a reader of exactly this sealer's messages accepts: its
// scope for every subject, its scheme, its authorities.
func (s *Sealer) Accept() streams.Accept {
	rules, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: ">", Scope: s.cfg.Scope}})
	if err != nil {
		panic("streamstest: internal error: " + err.Error())
	}
	return streams.Accept{
		Rules: []streams.AcceptRule{{
			Scopes: []string{s.cfg.Scope}, Schemes: []streams.Scheme{s.cfg.Scheme},
			Authorities: [][]string{slices.Clone(s.cfg.Authorities)},
		}},
		ScopeRules: rules,
	}
}

// Seal returns the sealed form of a message, ready to be published. Sequence
// and links count up from 1.
func (s *Sealer) Seal(t testing.TB, origin string, headers nats.Header, data []byte) *nats.Msg {
	t.Helper()
	m, err := s.seal(origin, headers, data)
	if err != nil {
		t.Fatalf("streamstest: sealing message: %v", err)
	}
	return m
}

func (s *Sealer) seal(origin string, headers nats.Header, data []byte) (*nats.Msg, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	meta := s.meta
	meta.Sequence, meta.Previous = meta.Sequence+1, meta.Sequence
	meta.PreviousOnSubject = envelope.NotKept
	meta.Published = time.Now().UnixNano()
	meta.OriginSubject, meta.SealedSubject = origin, s.SealedSubject(origin)
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		for _, v := range headers[name] {
			meta.Headers = append(meta.Headers, envelope.Header{Name: name, Value: v})
		}
	}
	b, err := s.session.Seal(nil, &meta, data)
	if err != nil {
		return nil, err
	}
	s.meta.Sequence = meta.Sequence
	m := nats.NewMsg(meta.SealedSubject)
	m.Data = b
	m.Header.Set("Keyweir", "1")
	m.Header.Set("Keyweir-Source", fmt.Sprintf("%v:%d", meta.Chain, meta.Sequence))
	return m, nil
}

// Rewrap replaces the wraps of the sealer's key, as a rotation at an authority
// does. Messages sealed so far, and those to come, carry the old ones; the
// returned function puts the new record into a message sealed with an inline one.
func (s *Sealer) Rewrap(t testing.TB) func(sealed []byte) []byte {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &envelope.Record{Core: s.record.Core, Wraps: slices.Clone(s.record.Wraps)}
	for i := range r.Wraps {
		r.Wraps[i].Version += ".1"
	}
	raw, err := r.Append(nil)
	if err != nil {
		t.Fatalf("streamstest: wrapping again: %v", err)
	}
	s.record = r
	s.keys.mu.Lock()
	defer s.keys.mu.Unlock()
	if known := s.keys.keys[r.Core.ID()]; known != nil {
		known.forms = append(known.forms, raw)
	}
	return func(sealed []byte) []byte {
		e, err := envelope.Parse(sealed)
		if err != nil || e.Record == nil {
			t.Fatalf("streamstest: wrapping again: no inline record (%v)", err)
		}
		e.Record = raw
		return e.Append(nil)
	}
}
