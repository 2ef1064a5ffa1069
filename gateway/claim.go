package gateway

import (
	"context"
	"errors"
	"time"
)

// claim is the right to relay one partition, an entry of ClaimsBucket whose TTL
// is the bucket's: put on an absent entry takes it, put with its revision renews
// it, del with its revision releases it. A per-key TTL would not do, because an
// update drops it.
//
// The claim only saves work: two holders, of which one is late, are harmless,
// since the fence on the sealed stream lets one of them write.
type claim struct {
	b        *bucket
	key      string
	value    []byte // who holds it; unique to this worker, so that it knows its own entry
	revision uint64
}

// takeClaim waits until the claim is free and takes it.
func takeClaim(ctx context.Context, b *bucket, key string, value []byte) (*claim, error) {
	if b.ttl <= 0 {
		return nil, errNoTTL
	}
	poll := min(b.ttl/4, time.Second)
	for {
		if c, err := tryClaim(ctx, b, key, value); c != nil || err != nil {
			return c, err
		}
		if err := sleep(ctx, poll); err != nil {
			return nil, err
		}
	}
}

// tryClaim takes the claim if it is free; nil without error means that it is not.
func tryClaim(ctx context.Context, b *bucket, key string, value []byte) (*claim, error) {
	held, revision, err := b.get(ctx, key)
	if err != nil || held != nil && string(held) != string(value) {
		return nil, err
	}
	if revision, err = b.put(ctx, key, value, revision); errors.Is(err, errRevision) {
		return nil, nil // somebody was faster
	}
	if err != nil {
		return nil, err
	}
	return &claim{b: b, key: key, value: value, revision: revision}, nil
}

// hold renews the claim until ctx ends (nil) or the claim is lost: taken over, or
// not renewed for a whole TTL, counted from the sending of the last renewal.
func (c *claim) hold(ctx context.Context) error {
	renewed := time.Now()
	t := time.NewTicker(c.b.ttl / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		sent := time.Now()
		revision, err := c.b.put(ctx, c.key, c.value, c.revision)
		if errors.Is(err, errRevision) {
			// A renewal whose answer was lost has moved the revision as well.
			var held []byte
			if held, revision, err = c.b.get(ctx, c.key); err == nil && string(held) != string(c.value) {
				return errClaimLost
			}
		}
		if err == nil {
			c.revision, renewed = revision, sent
		} else if ctx.Err() == nil && time.Since(renewed) >= c.b.ttl {
			return errClaimLost
		}
	}
}

// release gives the claim up, so that a successor need not wait for the TTL.
func (c *claim) release(ctx context.Context) error {
	err := c.b.del(ctx, c.key, c.revision)
	if !errors.Is(err, errRevision) {
		return err
	}
	// Somebody else's by now, or a renewal was cut off before its answer came.
	held, revision, err := c.b.get(ctx, c.key)
	if err != nil || string(held) != string(c.value) {
		return err
	}
	return c.b.del(ctx, c.key, revision)
}
