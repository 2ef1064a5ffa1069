package streams

import (
	"context"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/keysvc"
)

// fly starts one call for all of ws, which are not under way yet, and returns
// their flights. The call does not end with the context of whoever asked first:
// others may wait for it too. mu is held and the cache is open.
func (c *keyCache) fly(ws []want) []*flight {
	flights := make([]*flight, len(ws))
	for i, w := range ws {
		flights[i] = &flight{done: make(chan struct{})}
		c.flights[w.ask()] = flights[i]
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		got, err := c.call(ws)
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, w := range ws {
			c.land(flights[i], w, got, i, err)
		}
	}()
	return flights
}

// land ends one flight. mu is held.
func (c *keyCache) land(f *flight, w want, got []keysvc.OpenedKey, i int, err error) {
	if err == nil && c.closed {
		got[i].Key.Clear()
		err = ErrClosed
	}
	if err == nil {
		f.key, err = c.answer(w, &got[i])
	}
	c.finish(f, w, err)
}

// finish ends one flight with an error or with the key it has. mu is held.
func (c *keyCache) finish(f *flight, w want, err error) {
	ask := w.ask()
	delete(c.flights, ask)
	if f.err = err; err != nil {
		f.key = nil
		c.refuse(ask, err)
	}
	close(f.done)
}

// recheck asks whether a record with other wraps than those known for a held key
// opens by itself. The known form is asked for in the same call: what the service
// says about it is about the key, what it says about the changed form alone is
// about whoever changed it. mu is held and the cache is open.
func (c *keyCache) recheck(k *heldKey, w want) *flight {
	f := &flight{done: make(chan struct{})}
	c.flights[w.ask()] = f
	ws := []want{{k.id, k.known[0]}, w}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		got, err := c.call(ws)
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil {
			c.rethink(k, err)
			c.finish(f, w, err)
			return
		}
		if err = c.refreshed(k, ws[0], &got[0]); err != nil {
			got[1].Key.Clear()
			c.rethink(k, err)
		} else if f.key, err = c.answer(w, &got[1]); err != nil && !transient(err) {
			err = ErrTampered
		}
		c.finish(f, w, err)
	}()
	return f
}

// call asks the key service, in the batch sizes it takes.
func (c *keyCache) call(ws []want) ([]keysvc.OpenedKey, error) {
	ctx, cancel := context.WithTimeout(c.base, c.times.keyCall)
	defer cancel()
	records := make([]keysvc.Record, len(ws))
	for i, w := range ws {
		records[i] = keysvc.Record{KeyID: w.id, Bytes: w.record}
	}
	got, err := c.keys.OpenKeys(ctx, records)
	if err != nil {
		if c.base.Err() != nil {
			return nil, ErrClosed
		}
		return nil, callError(err)
	}
	if len(got) != len(ws) {
		for i := range got {
			got[i].Key.Clear()
		}
		return nil, fmt.Errorf("%w: %d answers to %d questions", ErrUnavailable, len(got), len(ws))
	}
	return got, nil
}

// refresh asks again, in the background and in one call, for the keys that are
// due and were used since the last answer. mu is held and the cache is open.
func (c *keyCache) refresh(now time.Time) {
	var due []*heldKey
	var ws []want
	for el := c.recent.Front(); el != nil && len(due) < keysvc.MaxBatch; el = el.Next() {
		k := el.Value.(*heldKey)
		if k.used && !k.asking && !now.Before(k.refreshAt) {
			k.asking = true
			due = append(due, k)
			ws = append(ws, want{k.id, k.known[0]})
		}
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		got, err := c.call(ws)
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, k := range due {
			k.asking = false
			if err != nil {
				c.rethink(k, err)
			} else if err := c.refreshed(k, ws[i], &got[i]); err != nil {
				c.rethink(k, err)
			}
		}
	}()
}

// refreshed applies the answer about a held key, unless the key was dropped
// meanwhile. mu is held.
func (c *keyCache) refreshed(k *heldKey, w want, o *keysvc.OpenedKey) error {
	if el := c.held[k.id]; c.closed || el == nil || el.Value.(*heldKey) != k {
		o.Key.Clear()
		return fmt.Errorf("%w: the key was dropped while it was checked", ErrUnavailable)
	}
	_, err := c.install(w, o)
	return err
}

// rethink decides about a held key that could not be refreshed: a refusal takes
// it away at once, anything else leaves it until its lease ends. mu is held.
func (c *keyCache) rethink(k *heldKey, err error) {
	k.refreshAt = time.Now().Add(jitter(c.times.refreshRetry))
	if !refused(err) {
		return
	}
	c.drop(k)
	for _, record := range k.known {
		c.refuse(want{k.id, record}.ask(), err)
	}
	c.refuse(want{id: k.id}.ask(), err)
}
