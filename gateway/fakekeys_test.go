package gateway_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// fakeKeys is a key service in memory: real data keys, records and grants, no
// authority, and errors on demand.
type fakeKeys struct {
	mu       sync.Mutex
	rules    *keysvc.ScopeRules
	scopes   map[string]scopeEntry
	byID     map[envelope.KeyID]scopeEntry
	err      error            // every Generate fails with it
	scopeErr error            // one scope's element fails with it
	badScope string           // the scope of scopeErr
	refuse   map[string]error // by scope: elements of Generate and OpenKeys fail with it
	routeErr error            // RouteKey fails with it
	rename   string           // Generate answers with this scope
	lease    time.Duration    // 0: an hour
	messages uint64           // budget; 0: unlimited
	bytes    uint64           // likewise
	calls    int              // of Generate
	asked    int              // subjects in them
	grants   int              // given out
}

type scopeEntry struct {
	key    envelope.DataKey
	record *envelope.Record
}

func newFakeKeys(rules ...keysvc.ScopeRule) *fakeKeys {
	if len(rules) == 0 {
		rules = []keysvc.ScopeRule{{Match: "in.*.>", Scope: "tenant/{{wildcard(1)}}"}, {Match: "in.*", Scope: "tenant/{{wildcard(1)}}"}, {Match: "keyweir.hold.*", Scope: "hold/{{wildcard(1)}}"}}
	}
	r, err := keysvc.NewScopeRules(rules)
	if err != nil {
		panic(err)
	}
	return &fakeKeys{rules: r, scopes: make(map[string]scopeEntry), byID: make(map[envelope.KeyID]scopeEntry)}
}

// set changes k under its lock.
func (k *fakeKeys) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

func (k *fakeKeys) counts() (calls, asked, grants int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls, k.asked, k.grants
}

func (k *fakeKeys) Scopes(context.Context) (*keysvc.ScopeRules, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rules, nil
}

func (k *fakeKeys) RouteKey(_ context.Context, route string) (keysvc.RouteKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.routeErr != nil {
		return keysvc.RouteKey{}, k.routeErr
	}
	sum := sha256.Sum256([]byte("test route key " + route))
	return envelope.NewDataKey(sum[:])
}

func (k *fakeKeys) Generate(_ context.Context, subjects []string) ([]keysvc.SealKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	k.asked += len(subjects)
	if k.err != nil {
		return nil, k.err
	}
	sent := time.Now()
	lease := k.lease
	if lease == 0 {
		lease = time.Hour
	}
	out := make([]keysvc.SealKey, len(subjects))
	for i, s := range subjects {
		scope, _, err := k.rules.Scope(s)
		if err == nil && scope == k.badScope {
			err = k.scopeErr
		}
		if err == nil {
			err = k.refuse[scope]
		}
		if err != nil {
			out[i] = keysvc.SealKey{Err: err}
			continue
		}
		grant, err := envelope.NewGrant(k.entry(scope).key, k.entry(scope).record)
		if err != nil {
			return nil, fmt.Errorf("granting: %w", err)
		}
		if k.rename != "" {
			scope = k.rename
		}
		k.grants++
		out[i] = keysvc.SealKey{
			Scope: scope, Grant: grant, Messages: envelope.MaxSessionMessages, Bytes: envelope.MaxSessionBytes,
			NotAfter: sent.Add(lease), RefreshAt: sent.Add(lease * 8 / 10),
		}
		if k.messages != 0 {
			out[i].Messages = k.messages
		}
		if k.bytes != 0 {
			out[i].Bytes = k.bytes
		}
	}
	return out, nil
}

// OpenKeys opens what was sealed under any of the keys, holding scopes only.
func (k *fakeKeys) OpenKeys(_ context.Context, records []keysvc.Record) ([]keysvc.OpenedKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return nil, k.err
	}
	out := make([]keysvc.OpenedKey, len(records))
	for i, r := range records {
		e, ok := k.byID[r.KeyID]
		out[i].KeyID = r.KeyID
		if !ok || !strings.HasPrefix(e.record.Core.Scope(), "hold/") {
			out[i].Err = keysvc.ErrDenied
			continue
		}
		if out[i].Err = k.refuse[e.record.Core.Scope()]; out[i].Err != nil {
			continue
		}
		b, err := e.record.Append(nil)
		if err != nil {
			return nil, err
		}
		key, err := envelope.NewDataKey(envelope.ExposeDataKey(e.key))
		if err != nil {
			return nil, err
		}
		out[i].Record, out[i].Key, out[i].NotAfter = b, key, time.Now().Add(time.Hour)
	}
	return out, nil
}

// entry returns the data key of a scope; k.mu is held.
func (k *fakeKeys) entry(scope string) scopeEntry {
	if e, ok := k.scopes[scope]; ok {
		return e
	}
	key, id := envelope.GenerateDataKey(), envelope.NewRecordID()
	part, err := envelope.PartCommitment(envelope.ExposeDataKey(key), id, 1)
	if err != nil {
		panic(err)
	}
	e := scopeEntry{key, &envelope.Record{
		Core: envelope.Core{
			Scheme: envelope.SchemeSingle, K: 1, N: 1, RecordID: id, Created: 1700000000, Commitment: key.Commit(),
			Context:     []envelope.Pair{{Name: envelope.ContextScope, Value: scope}},
			Authorities: []envelope.PartHolder{{Authority: "local", Commitment: part}},
		},
		Wraps: []envelope.Wrap{{ManagedKey: "k", Version: "1", Bytes: []byte("wrapped")}},
	}}
	k.scopes[scope] = e
	k.byID[e.record.Core.ID()] = e
	return e
}

// readers opens what was sealed under any of the keys.
func (k *fakeKeys) readers() (map[envelope.KeyID]*envelope.KeyReader, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[envelope.KeyID]*envelope.KeyReader)
	for id, e := range k.byID {
		r, err := envelope.NewKeyReader(e.record, e.key, 0)
		if err != nil {
			return nil, err
		}
		out[id] = r
	}
	return out, nil
}
