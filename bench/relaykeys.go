package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// relayKeys is what the relay benchmark seals with: a data key that nobody else
// ever has, so that nothing it seals can be opened. A key service is asked once in
// minutes, so that its part would not show.
type relayKeys struct {
	key    envelope.DataKey
	record *envelope.Record
	rules  *keysvc.ScopeRules
	route  keysvc.RouteKey
}

var _ gateway.Keys = (*relayKeys)(nil)

func newRelayKeys(pattern string) (*relayKeys, error) {
	key, id := envelope.GenerateDataKey(), envelope.NewRecordID()
	part, err := envelope.PartCommitment(envelope.ExposeDataKey(key), id, 1)
	if err != nil {
		return nil, fmt.Errorf("making keys: %w", err)
	}
	rules, err := keysvc.NewScopeRules([]keysvc.ScopeRule{{Match: pattern, Scope: "{{wildcard(2)}}"}})
	if err != nil {
		return nil, fmt.Errorf("making keys: %w", err)
	}
	return &relayKeys{key, &envelope.Record{
		Core: envelope.Core{
			Scheme: envelope.SchemeSingle, K: 1, N: 1, RecordID: id, Created: time.Now().Unix(), Commitment: key.Commit(),
			Context:     []envelope.Pair{{Name: envelope.ContextScope, Value: "bench"}},
			Authorities: []envelope.PartHolder{{Authority: "bench", Commitment: part}},
		},
		// About the size that AWS KMS makes of a data key.
		Wraps: []envelope.Wrap{{ManagedKey: "bench", Version: "1", Bytes: make([]byte, 184)}},
	}, rules, envelope.GenerateDataKey()}, nil
}

func (k *relayKeys) Scopes(context.Context) (*keysvc.ScopeRules, error) { return k.rules, nil }

func (k *relayKeys) RouteKey(context.Context, string) (keysvc.RouteKey, error) {
	return k.route, nil
}

func (k *relayKeys) Generate(_ context.Context, subjects []string) ([]keysvc.SealKey, error) {
	out := make([]keysvc.SealKey, len(subjects))
	for i, s := range subjects {
		scope, _, err := k.rules.Scope(s)
		if err != nil {
			return nil, err
		}
		grant, err := envelope.NewGrant(k.key, k.record)
		if err != nil {
			return nil, fmt.Errorf("granting: %w", err)
		}
		out[i] = keysvc.SealKey{
			Scope: scope, Grant: grant, Messages: envelope.MaxSessionMessages, Bytes: envelope.MaxSessionBytes,
			NotAfter: time.Now().Add(time.Hour), RefreshAt: time.Now().Add(50 * time.Minute),
		}
	}
	return out, nil
}
