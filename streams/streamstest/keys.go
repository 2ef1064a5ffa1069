package streamstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

// DefaultLease is how long an opened key may be kept if [Keys.SetLease] was not
// called.
const DefaultLease = 5 * time.Minute

// Keys is a key service in memory. Safe for concurrent use.
type Keys struct {
	// Hook, if set, sees every call before it is answered. It may block, and an
	// error is the answer to the whole call. Set it before the first call.
	Hook func(ctx context.Context, records []keysvc.Record) error

	mu      sync.Mutex // guards the fields below
	keys    map[keysvc.KeyID]*testKey
	refused map[string]error // by scope
	lease   time.Duration
	calls   int
	asked   int
}

var _ streams.KeyOpener = (*Keys)(nil)

type testKey struct {
	scope string
	key   []byte
	forms [][]byte // records with wraps that open; the first is the service's own
}

// NewKeys makes a key service without keys.
func NewKeys() *Keys {
	return &Keys{keys: make(map[keysvc.KeyID]*testKey), refused: make(map[string]error), lease: DefaultLease}
}

// SetLease changes the lease of keys opened from now on.
func (k *Keys) SetLease(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lease = d
}

// Refuse answers requests for keys of a scope with err, which should wrap a
// sentinel of package keysvc, from now on; nil grants them again. Keys that a
// reader holds already stay with it until it asks again.
func (k *Keys) Refuse(scope string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		delete(k.refused, scope)
	} else {
		k.refused[scope] = err
	}
}

// Forget removes a key, as if it had never been there.
func (k *Keys) Forget(id keysvc.KeyID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.keys, id)
}

// Calls returns how many calls were made, and for how many keys together.
func (k *Keys) Calls() (calls, keys int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls, k.asked
}

// OpenKeys answers as a key service does.
func (k *Keys) OpenKeys(ctx context.Context, records []keysvc.Record) ([]keysvc.OpenedKey, error) {
	sent := time.Now()
	k.mu.Lock()
	k.calls++
	k.asked += len(records)
	k.mu.Unlock()
	if len(records) < 1 || len(records) > keysvc.MaxBatch {
		return nil, fmt.Errorf("%w: batch of %d, want 1 to %d", keysvc.ErrInvalid, len(records), keysvc.MaxBatch)
	}
	if k.Hook != nil {
		if err := k.Hook(ctx, records); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", keysvc.ErrUnavailable, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]keysvc.OpenedKey, len(records))
	for i, r := range records {
		out[i] = k.open(r, sent)
	}
	return out, nil
}

func (k *Keys) open(r keysvc.Record, sent time.Time) keysvc.OpenedKey {
	o := keysvc.OpenedKey{KeyID: r.KeyID}
	known := k.keys[r.KeyID]
	if known == nil {
		o.Err = keysvc.ErrNotFound
		return o
	}
	if err := k.refused[known.scope]; err != nil {
		o.Err = err
		return o
	}
	record := known.forms[0]
	if r.Bytes != nil {
		if record = known.form(r.Bytes); record == nil {
			o.Err = fmt.Errorf("%w: the record does not open", keysvc.ErrInvalid)
			return o
		}
	}
	// A key of its own for every answer: the reader clears it.
	key, err := envelope.NewDataKey(known.key)
	if err != nil {
		o.Err = errors.Join(keysvc.ErrInvalid, err)
		return o
	}
	o.Key, o.Record = key, bytes.Clone(record)
	o.NotAfter, o.RefreshAt = sent.Add(k.lease), sent.Add(k.lease*8/10)
	return o
}

func (t *testKey) form(record []byte) []byte {
	for _, f := range t.forms {
		if bytes.Equal(f, record) {
			return f
		}
	}
	return nil
}

// add registers a new data key of a record that record describes.
func (k *Keys) add(key envelope.DataKey, record *envelope.Record) error {
	raw, err := record.Append(nil)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[record.Core.ID()] = &testKey{
		scope: record.Core.Scope(), key: envelope.ExposeDataKey(key), forms: [][]byte{raw},
	}
	return nil
}
