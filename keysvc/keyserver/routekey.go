package keyserver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc"
)

// A route key is drawn when somebody first asks for it and stays the same for
// ever: positions in a sealed stream are authenticated with it. It is stored
// under the cache key of one managed key, named in front:
//
//	1   row version = 1
//	2   length, authority 0 managed key
//	... nonce || ciphertext || tag of the 32 bytes
//
// It exists in this store only. With the store, or with that managed key, the
// positions written under it can no longer be checked.
const routeKeySize = envelope.DataKeySize

// routeKey returns the key of a route, which the caller clears.
func (e *engine) routeKey(ctx context.Context, route string) (key []byte, created bool, err error) {
	row, err := e.get(routeRow(route))
	if err != nil {
		return nil, false, err
	}
	if row == nil {
		// One at a time: the first row written is the key for ever.
		made, err := flight(ctx, e, "route/"+route, func(ctx context.Context) (bool, error) {
			return e.makeRouteKey(ctx, route)
		})
		if err != nil {
			return nil, false, err
		}
		created = made
		if row, err = e.get(routeRow(route)); err != nil {
			return nil, false, err
		}
	}
	key, err = e.openRouteKey(ctx, route, row)
	return key, created, err
}

func (e *engine) makeRouteKey(ctx context.Context, route string) (bool, error) {
	if row, err := e.get(routeRow(route)); err != nil || row != nil {
		return false, err
	}
	k, c, err := e.homeCacheKey(ctx)
	if err != nil {
		return false, err
	}
	key := make([]byte, routeKeySize)
	rand.Read(key)
	defer clear(key)
	sealed, err := c.seal(true, key, k.routeAAD(route))
	if err != nil {
		return false, err
	}
	home := k.up.name + "\x00" + k.id
	row := binary.BigEndian.AppendUint16([]byte{1}, uint16(len(home)))
	row = append(append(row, home...), sealed...)
	var b keycache.Batch
	b.Put(routeRow(route), row)
	return true, e.apply(&b)
}

func (e *engine) openRouteKey(ctx context.Context, route string, row []byte) ([]byte, error) {
	var home, sealed string
	if len(row) > 3 && row[0] == 1 {
		if n := int(binary.BigEndian.Uint16(row[1:])); n <= len(row)-3 {
			home, sealed = string(row[3:3+n]), string(row[3+n:])
		}
	}
	name, id, ok := strings.Cut(home, "\x00")
	up := e.up[name]
	if !ok || up == nil {
		return nil, fmt.Errorf("%w: the key of route %q is under an authority that is not configured", keysvc.ErrUnavailable, route)
	}
	k := e.managed.find(up, id)
	if k == nil {
		return nil, fmt.Errorf("%w: the cache key that seals the key of route %q is gone", keysvc.ErrDestroyed, route)
	}
	if _, err := k.fresh(ctx, e.routeStale()); err != nil {
		return nil, err
	}
	key, err := k.reopen(ctx).open(true, []byte(sealed), k.routeAAD(route))
	switch {
	case errors.Is(err, errCacheKey):
		return nil, err
	case err != nil || len(key) != routeKeySize:
		e.log.Error("stored route key does not open", "route", route)
		return nil, errInternal
	}
	return key, nil
}

func (k *managedKey) routeAAD(route string) []byte {
	return rowAAD(labelCacheRoutes, k.e.cfg.Service, k.up.name, k.id, route)
}
