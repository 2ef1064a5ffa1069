package sealedcheck

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	"github.com/keyweir/keyweir/internal/envelope"
)

// dataKey is what the stream says of one data key.
type dataKey struct {
	messages  uint64
	inline    bool // a good record was read
	rewrapped bool
	digest    uint64 // of the last good record
	scope     string
	scheme    string
	authority string // names in order
}

// keys tallies data keys.
type keys struct {
	limit     int
	seed      maphash.Seed
	byID      map[envelope.KeyID]*dataKey
	order     []envelope.KeyID // as they came
	names     map[string]string
	untracked uint64
}

func newKeys(limit int) *keys {
	return &keys{limit: limit, seed: maphash.MakeSeed(), byID: make(map[envelope.KeyID]*dataKey), names: make(map[string]string)}
}

// add takes in an envelope and returns what is wrong with its record, "" if
// nothing is or it has none.
func (k *keys) add(e *envelope.Envelope) (wrong string) {
	d := k.byID[e.KeyID]
	if d == nil {
		if len(k.byID) >= k.limit {
			k.untracked++
			_, wrong = readRecord(e)
			return wrong
		}
		d = &dataKey{}
		k.byID[e.KeyID] = d
		k.order = append(k.order, e.KeyID)
	}
	d.messages++
	if e.Record == nil {
		return ""
	}
	digest := maphash.Bytes(k.seed, e.Record)
	if d.inline && d.digest == digest {
		return ""
	}
	r, wrong := readRecord(e)
	if wrong != "" {
		return wrong
	}
	d.rewrapped = d.rewrapped || d.inline
	d.inline, d.digest = true, digest
	names := make([]string, len(r.Core.Authorities))
	for i, a := range r.Core.Authorities {
		names[i] = a.Authority
	}
	d.scope, d.scheme, d.authority = k.name(r.Core.Scope()), k.name(r.Core.Scheme.String()), k.name(strings.Join(names, " + "))
	return ""
}

// name keeps one copy of equal names.
func (k *keys) name(s string) string {
	if have, ok := k.names[s]; ok {
		return have
	}
	k.names[s] = s
	return s
}

func readRecord(e *envelope.Envelope) (r *envelope.Record, wrong string) {
	if e.Record == nil {
		return nil, ""
	}
	r, err := envelope.ParseRecord(e.Record)
	if err != nil {
		return nil, "the key record cannot be read: " + err.Error()
	}
	if r.Core.ID() != e.KeyID {
		return nil, "the key record is that of another key: every reader rejects the message"
	}
	return r, ""
}

func (k *keys) report(r *Report) {
	r.Keys.Total, r.Keys.Untracked = len(k.byID), k.untracked
	scopes, schemes, authorities := make(tallies), make(tallies), make(tallies)
	for _, id := range k.order {
		d := k.byID[id]
		if !d.inline {
			r.Keys.ReferenceOnly++
			if len(r.Keys.ReferenceOnlyIDs) < MaxFindings {
				r.Keys.ReferenceOnlyIDs = append(r.Keys.ReferenceOnlyIDs, id.String())
			}
			continue
		}
		r.Keys.Inline++
		if d.rewrapped {
			r.Keys.Rewrapped++
		}
		scopes.add(d.scope, d.messages)
		schemes.add(d.scheme, d.messages)
		authorities.add(d.authority, d.messages)
	}
	r.Scopes, r.Schemes, r.Authorities = scopes.list(), schemes.list(), authorities.list()
}

type tallies map[string]Tally

func (t tallies) add(name string, messages uint64) {
	v := t[name]
	v.Name, v.Keys, v.Messages = name, v.Keys+1, v.Messages+messages
	t[name] = v
}

func (t tallies) list() []Tally {
	out := slices.SortedFunc(maps.Values(t), func(a, b Tally) int { return cmp.Compare(a.Name, b.Name) })
	if out == nil {
		out = []Tally{} // [] in JSON
	}
	return out
}
