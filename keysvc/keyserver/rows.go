package keyserver

import (
	"errors"
	"fmt"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/keycache"
)

// Rows of the store. Nothing in them is secret as it stands; what the store's
// head does not authenticate row by row is checked when it is read:
//
//	keysvc/record/<key ID>                      key record; its core hashes to the key ID
//	keysvc/current/<authority> 0 <scope>        key ID; the record names the scope
//	keysvc/cachekey/<authority> 0 <managed key> wrapped cache key, see cacheKeyRow
//	keysvc/opened/<authority> 0 <managed key> 0 <key ID>  data key sealed under the cache key
//	keysvc/route/<name>                         route key sealed under a cache key
//	keysvc/home                                 <authority> 0 <managed key> whose cache key seals new route keys
const (
	recordRows   = "keysvc/record/"
	currentRows  = "keysvc/current/"
	cacheKeyRows = "keysvc/cachekey/"
	openedRows   = "keysvc/opened/"
	routeRows    = "keysvc/route/"
	homeRow      = "keysvc/home"
)

func recordRow(id envelope.KeyID) []byte { return append([]byte(recordRows), id[:]...) }

func currentRow(authority, scope string) []byte {
	return []byte(currentRows + authority + "\x00" + scope)
}

func cacheKeyRowKey(authority, managed string) []byte {
	return []byte(cacheKeyRows + authority + "\x00" + managed)
}

func openedRow(authority, managed string, id envelope.KeyID) []byte {
	return append([]byte(openedRows+authority+"\x00"+managed+"\x00"), id[:]...)
}

func routeRow(name string) []byte { return []byte(routeRows + name) }

// get reads a row; nil and no error if there is none.
func (e *engine) get(key []byte) ([]byte, error) {
	v, err := e.store.Get(key)
	if errors.Is(err, keycache.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, e.storeError("reading", err)
	}
	return v, nil
}

// apply makes a batch durable.
func (e *engine) apply(b *keycache.Batch) error {
	// Not bound to a request: what was decided is written even if the requester left.
	if err := e.store.Apply(e.storeCtx, b); err != nil {
		return e.storeError("writing", err)
	}
	return nil
}

// storeError stops the server if the store has stopped, and says nothing of it
// to the network.
func (e *engine) storeError(doing string, err error) error {
	if errors.Is(err, keycache.ErrStopped) {
		e.fatal(fmt.Errorf("%s store: %w", doing, err))
	}
	e.log.Error("store failed", "doing", doing, "err", err)
	return errInternal
}
