package keyserver

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// freshKey is a new data key whose wrap was opened again and matched.
type freshKey struct {
	id      envelope.KeyID
	record  *envelope.Record
	raw     []byte
	key     envelope.DataKey
	managed *managedKey
}

func (f *freshKey) clear() { f.key.Clear() }

// createDataKey lets the authority generate a data key for a scope and opens its
// wrap again: two calls. A wrap that does not open to the same key is discarded
// with it, since a message nobody can open is the worst failure there is.
//
// Errors are those of authorities, or errLied.
func (e *engine) createDataKey(ctx context.Context, r *rule, scope string) (*freshKey, error) {
	up := e.up[r.Authorities[0]]
	core := r.core(scope)
	core.Created = time.Now().Unix()
	ec := authority.Context(core.WrapContext(0))
	name := ""
	if r.Keys == KeysManaged {
		name = ManagedAlias(scope)
	}
	plain, w, err := up.generate(ctx, name, ec)
	if r.Keys == KeysManaged && errors.Is(err, authority.ErrNotFound) {
		if err = e.createManagedKey(ctx, up, r, scope); err == nil {
			plain, w, err = up.generate(ctx, name, ec)
		}
	}
	if err != nil {
		if k := e.defaultKey(up, name); k != nil {
			k.met(err)
		}
		return nil, err
	}
	defer clear(plain)
	again, err := up.unwrap(ctx, w, ec)
	if err != nil {
		if errors.Is(err, authority.ErrInvalid) {
			return nil, fmt.Errorf("%w: it does not open the wrap it just made", errLied)
		}
		return nil, err
	}
	defer clear(again)
	if subtle.ConstantTimeCompare(plain, again) != 1 {
		return nil, fmt.Errorf("%w: the wrap opens to another key", errLied)
	}
	f, err := sealRecord(core, plain, w)
	if err != nil {
		return nil, err
	}
	f.managed = e.managed.known(up, w.KeyID)
	f.managed.sample(f.record)
	f.managed.answered(nil)
	e.noteDefault(up, name, f.managed)
	e.met.created.Add(1)
	return f, nil
}

// sealRecord completes a core with the commitments of the key and makes the record.
func sealRecord(core envelope.Core, plain []byte, w authority.Wrapped) (*freshKey, error) {
	key, err := envelope.NewDataKey(plain)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errLied, err) // all zero
	}
	core.Commitment = key.Commit()
	if core.Authorities[0].Commitment, err = envelope.PartCommitment(plain, core.RecordID, 1); err != nil {
		return nil, fmt.Errorf("%w: %v", errLied, err)
	}
	rec := &envelope.Record{Core: core, Wraps: []envelope.Wrap{{ManagedKey: w.KeyID, Version: w.Version, Bytes: w.Blob}}}
	raw, err := rec.Append(nil)
	if err != nil {
		key.Clear()
		return nil, fmt.Errorf("%w: its wrap does not fit a key record: %v", errLied, err)
	}
	return &freshKey{id: core.ID(), record: rec, raw: raw, key: key}, nil
}

// ManagedAlias is the alias of the managed key of a scope with keys: managed. The
// prefix keeps a scope, which comes from a subject, from naming another key.
func ManagedAlias(scope string) string { return "scope/" + scope }

// createManagedKey makes the managed key of a scope on its first use. A scope
// that had one before gets no second: what is missing then was destroyed or lost.
func (e *engine) createManagedKey(ctx context.Context, up *upstream, r *rule, scope string) error {
	used, err := e.get(currentRow(r.Authorities[0], scope))
	if err != nil {
		return err
	}
	m, ok := up.a.(authority.Manager)
	if used != nil || !ok {
		return fmt.Errorf("%w: the managed key of a used scope is gone", authority.ErrNotFound)
	}
	alias := ManagedAlias(scope)
	return up.do(ctx, "create", func(ctx context.Context) error {
		info, err := m.DescribeKey(ctx, alias)
		switch {
		case err == nil && info.State == authority.StateDestroyed:
			return fmt.Errorf("%w: managed key of the scope", authority.ErrDestroyed)
		case err == nil:
			return nil // another instance was quicker
		case !errors.Is(err, authority.ErrNotFound):
			return err
		}
		if _, err = m.CreateKey(ctx, alias); errors.Is(err, authority.ErrInvalid) {
			// Taken since, or refused as a name: the next call tells.
			if _, again := m.DescribeKey(ctx, alias); again == nil {
				return nil
			}
		}
		return err
	})
}

// openRecord unwraps the data key of a record and checks it against the record's
// commitment. Errors are those of authorities, or errLied.
func (e *engine) openRecord(ctx context.Context, up *upstream, rec *envelope.Record) (envelope.DataKey, error) {
	w, ec := wrapOf(rec)
	plain, err := up.unwrap(ctx, w, ec)
	if err != nil {
		return envelope.DataKey{}, err
	}
	defer clear(plain)
	key, err := e.checkKey(rec, plain)
	if err != nil {
		return envelope.DataKey{}, fmt.Errorf("%w: %v", errLied, err)
	}
	k := e.managed.known(up, w.KeyID)
	k.sample(rec)
	k.answered(nil)
	return key, nil
}

// checkKey makes plain a data key if it is the one the record commits to.
func (*engine) checkKey(rec *envelope.Record, plain []byte) (envelope.DataKey, error) {
	key, err := envelope.NewDataKey(plain)
	if err == nil {
		if err = rec.Core.Verify(key); err != nil {
			key.Clear()
		}
	}
	if err != nil {
		return envelope.DataKey{}, err
	}
	return key, nil
}
