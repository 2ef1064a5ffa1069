package keyserver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// resolved is a key record that is what its key ID says, and the rule it falls
// under. Nothing about it was decided yet.
type resolved struct {
	id     envelope.KeyID
	record *envelope.Record
	raw    []byte
	rule   *rule
	// brought: only the requester vouches for the record.
	brought bool
}

// resolve finds the record of a key ID: the one known here if there is one, else
// the one the requester brought, else the one in the directory.
func (e *engine) resolve(ctx context.Context, id envelope.KeyID, given []byte) (*resolved, error) {
	var own *envelope.Record
	if len(given) > 0 {
		var err error
		if own, err = parseRecord(id, given); err != nil {
			return nil, err
		}
	}
	if o := e.opened.get(id); o != nil {
		return &resolved{id: id, record: o.record, raw: o.raw, rule: o.rule}, nil
	}
	raw, err := e.get(recordRow(id))
	if err != nil {
		return nil, err
	}
	rec, brought := own, false
	switch {
	case raw != nil:
		if rec, err = parseRecord(id, raw); err != nil {
			e.log.Error("stored key record is damaged", "key_id", id.String(), "err", err)
			return nil, errInternal
		}
	case own != nil:
		raw, brought = given, true
	default:
		if raw, err = e.lookup(ctx, id); err != nil {
			return nil, err
		}
		if rec, err = parseRecord(id, raw); err != nil {
			return nil, err
		}
	}
	r, err := e.rules.forCore(&rec.Core)
	if err != nil {
		return nil, err
	}
	return &resolved{id: id, record: rec, raw: raw, rule: r, brought: brought}, nil
}

// parseRecord reads a record and checks that its core is the one of the key ID.
func parseRecord(id envelope.KeyID, raw []byte) (*envelope.Record, error) {
	rec, err := envelope.ParseRecord(raw)
	if errors.Is(err, envelope.ErrUnsupported) {
		return nil, fmt.Errorf("%w: %v", keysvc.ErrUnsupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", keysvc.ErrInvalid, err)
	}
	if rec.Core.ID() != id {
		return nil, fmt.Errorf("%w: the key record is not the one of key ID %v", keysvc.ErrInvalid, id)
	}
	return rec, nil
}

// lookup asks the directory, once for all who ask for one ID at a time.
func (e *engine) lookup(ctx context.Context, id envelope.KeyID) ([]byte, error) {
	name := "lookup/" + string(id[:])
	if err := e.refused.get(name); err != nil {
		return nil, err
	}
	return flight(ctx, e, name, func(ctx context.Context) ([]byte, error) {
		raw, err := e.dir.Lookup(ctx, id)
		if err != nil {
			e.refused.put(name, err)
		}
		return raw, err
	})
}

// ready is an opened key that may serve now.
type ready struct {
	*openedKey
	left  time.Duration // until the stale limit
	asked bool          // an authority had to be asked for it
}

// open returns the opened key of a record. The caller has decided that the
// requester may have it.
func (e *engine) open(ctx context.Context, rs *resolved, stale time.Duration) (ready, error) {
	asked := false
	for range 3 {
		o := e.opened.get(rs.id)
		if o == nil {
			var called bool
			var err error
			if o, called, err = e.openCold(ctx, rs, stale); err != nil {
				return ready{}, err
			}
			asked = asked || called
		}
		left, err := o.managed.fresh(ctx, stale)
		if err != nil {
			return ready{}, err
		}
		if o.use(func(envelope.DataKey) error { return nil }) == nil {
			return ready{o, left, asked}, nil
		}
		// It was dropped while we waited; the authority has answered again since.
	}
	return ready{}, fmt.Errorf("%w: the key was dropped while it was asked for", keysvc.ErrUnavailable)
}

// openCold opens a key that is not in memory: from the row under the cache key,
// else through the authority (asked). Different wraps of one key are different
// questions, so that a bad wrap somebody brings spoils nobody else's.
func (e *engine) openCold(ctx context.Context, rs *resolved, stale time.Duration) (o *openedKey, asked bool, err error) {
	sum := sha256.Sum256(rs.raw)
	name := "open/" + string(sum[:])
	if err := e.refused.get(name); err != nil {
		return nil, false, err
	}
	type result struct {
		o     *openedKey
		asked bool
	}
	res, err := flight(ctx, e, name, func(ctx context.Context) (result, error) {
		up := e.up[rs.record.Core.Authorities[0].Authority]
		if o := e.openKept(ctx, up, rs, stale); o != nil {
			return result{o, false}, nil
		}
		k := e.managed.find(up, rs.record.Wraps[0].ManagedKey)
		if k != nil {
			if err := k.gate(); err != nil {
				return result{}, err
			}
		}
		key, err := e.openRecord(ctx, up, rs.record)
		if err != nil {
			if k != nil {
				k.met(err)
			}
			out := up.fromAuthority(err)
			if errors.Is(err, errLied) {
				e.log.Error("data key does not match its record", "authority", up.name, "key_id", rs.id.String(), "brought", rs.brought, "err", err)
				if rs.brought {
					out = fmt.Errorf("%w: the key record does not match its data key", keysvc.ErrInvalid)
				}
			}
			e.refused.put(name, out)
			return result{}, out
		}
		k = e.managed.known(up, rs.record.Wraps[0].ManagedKey)
		o := e.opened.add(&openedKey{id: rs.id, raw: rs.raw, record: rs.record, rule: rs.rule, managed: k, key: key})
		e.remember(o, true)
		return result{o, true}, nil
	})
	return res.o, res.asked, err
}

// openKept opens the row that an earlier process, or an entry that was evicted,
// left under the cache key; nil if there is none that opens. The managed key must
// be confirmed, which after a restart is what opens the cache key.
func (e *engine) openKept(ctx context.Context, up *upstream, rs *resolved, stale time.Duration) *openedKey {
	k := e.managed.find(up, rs.record.Wraps[0].ManagedKey)
	if k == nil {
		return nil
	}
	row, err := e.get(openedRow(up.name, k.id, rs.id))
	if err != nil || row == nil {
		return nil
	}
	if _, err := k.fresh(ctx, stale); err != nil {
		return nil // the gate says why
	}
	c := k.reopen(ctx)
	if c == nil {
		return nil
	}
	plain, err := c.open(false, row, k.openedAAD(rs.id))
	if err != nil {
		e.log.Warn("cached key does not open; asking the authority", "key_id", rs.id.String(), "err", err)
		return nil
	}
	defer clear(plain)
	key, err := e.checkKey(rs.record, plain)
	if err != nil {
		e.log.Error("cached key does not match its record; asking the authority", "key_id", rs.id.String(), "err", err)
		return nil
	}
	return e.opened.add(&openedKey{id: rs.id, raw: rs.raw, record: rs.record, rule: rs.rule, managed: k, key: key})
}

// wrapOf is the only wrap of a record of scheme single.
func wrapOf(rec *envelope.Record) (authority.Wrapped, authority.Context) {
	w := rec.Wraps[0]
	return authority.Wrapped{KeyID: w.ManagedKey, Version: w.Version, Blob: w.Bytes}, authority.Context(rec.Core.WrapContext(0))
}
