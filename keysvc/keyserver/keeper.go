package keyserver

import (
	"context"
	"errors"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
)

// keptKey is an opened key on its way to the store.
type keptKey struct {
	o      *openedKey
	record bool // the key record too: it came from elsewhere
}

const maxKept = 256 // keys in one batch

// remember has a key stored in the background, sealed under its cache key, so that
// a restart needs no call for it. When the queue is full it is left out: the
// record is enough to open it again.
func (e *engine) remember(o *openedKey, record bool) {
	select {
	case e.keep <- keptKey{o, record}:
	default:
		e.log.Debug("opened key not stored: queue full", "key_id", o.id.String())
	}
}

// keeper writes them until the queue is closed.
func (e *engine) keeper() {
	defer close(e.kept)
	for first := range e.keep {
		group := []keptKey{first}
		for more := true; more && len(group) < maxKept; {
			select {
			case k, ok := <-e.keep:
				if more = ok; ok {
					group = append(group, k)
				}
			default:
				more = false
			}
		}
		var b keycache.Batch
		for _, k := range group {
			if k.record {
				b.Put(recordRow(k.o.id), k.o.raw)
			}
			e.sealKept(&b, k.o)
		}
		if err := e.apply(&b); err != nil {
			e.log.Error("storing opened keys failed", "keys", len(group))
		}
		b.Reset()
	}
}

// sealKept adds the row of one key, if it can have one. Scopes with a managed key
// of their own have no cache key: their authority is the store next door.
func (e *engine) sealKept(b *keycache.Batch, o *openedKey) {
	if o.rule.Keys != KeysDirect {
		return
	}
	ctx, cancel := context.WithTimeout(e.keepCtx, e.cfg.AuthorityTimeout)
	defer cancel()
	c, err := o.managed.ensureCacheKey(ctx)
	if err != nil {
		e.log.Debug("opened key not stored: no cache key", "key_id", o.id.String(), "err", err)
		return
	}
	var sealed []byte
	err = o.use(func(key envelope.DataKey) error {
		plain := envelope.ExposeDataKey(key)
		defer clear(plain)
		var err error
		sealed, err = c.seal(false, plain, o.managed.openedAAD(o.id))
		return err
	})
	if err != nil {
		if !errors.Is(err, errDropped) && !errors.Is(err, errCacheKey) {
			e.log.Error("sealing opened key failed", "key_id", o.id.String(), "err", err)
		}
		return
	}
	b.Put(openedRow(o.managed.up.name, o.managed.id, o.id), sealed)
}
