package local

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// CreateKey implements authority.Manager. The alias of a destroyed key stays
// taken: a name that once meant a key never silently means another.
func (a *Authority) CreateKey(ctx context.Context, alias string) (authority.KeyInfo, error) {
	if err := a.enter(ctx); err != nil {
		return authority.KeyInfo{}, fmt.Errorf("creating key: %w", err)
	}
	defer a.leave()
	k := newKey(alias)
	if alias != "" {
		if err := checkAlias(alias); err != nil {
			return authority.KeyInfo{}, fmt.Errorf("creating key: %w", err)
		}
		defer a.lock(alias).Unlock()
		switch _, err := a.store.Get([]byte(aliasRows + alias)); {
		case err == nil:
			return authority.KeyInfo{}, fmt.Errorf("creating key: %w: alias %q is taken", authority.ErrInvalid, alias)
		case !errors.Is(err, keycache.ErrNotFound):
			return authority.KeyInfo{}, storeError("creating key", err)
		}
	}
	var b keycache.Batch
	defer b.Reset()
	if err := a.putNewKey(&b, k); err != nil {
		return authority.KeyInfo{}, fmt.Errorf("creating key: %w", err)
	}
	if err := a.store.Apply(ctx, &b); err != nil {
		return authority.KeyInfo{}, storeError("creating key", err)
	}
	return k.info(), nil
}

// DescribeKey implements authority.Manager.
func (a *Authority) DescribeKey(ctx context.Context, name string) (authority.KeyInfo, error) {
	if err := a.enter(ctx); err != nil {
		return authority.KeyInfo{}, fmt.Errorf("describing key: %w", err)
	}
	defer a.leave()
	id, err := a.resolve(name)
	if err != nil {
		return authority.KeyInfo{}, fmt.Errorf("describing key: %w", err)
	}
	k, err := a.key(id)
	if err != nil {
		return authority.KeyInfo{}, fmt.Errorf("describing key: %w", err)
	}
	return k.info(), nil
}

// ListKeys implements authority.Manager. With very many keys prefer [Authority.Keys].
func (a *Authority) ListKeys(ctx context.Context) ([]authority.KeyInfo, error) {
	var out []authority.KeyInfo
	for k, err := range a.Keys(ctx) {
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}

// Keys yields every key, ordered by KeyID, as the keys were when the loop began.
// An error ends the loop. Close may not be called from inside the loop.
func (a *Authority) Keys(ctx context.Context) iter.Seq2[authority.KeyInfo, error] {
	return func(yield func(authority.KeyInfo, error) bool) {
		fail := func(err error) { yield(authority.KeyInfo{}, fmt.Errorf("listing keys: %w", err)) }
		if err := a.enter(ctx); err != nil {
			fail(err)
			return
		}
		defer a.leave()
		for e, err := range a.store.Scan([]byte(keyRows)) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				fail(fmt.Errorf("%w: %w", authority.ErrUnavailable, err))
				return
			}
			b, err := a.dom.checked(e.Key, e.Value)
			if err != nil {
				fail(err)
				return
			}
			k, err := decodeKey(string(e.Key[len(keyRows):]), b)
			if err != nil {
				fail(err)
				return
			}
			if !yield(k.info(), nil) {
				return
			}
		}
	}
}

// RotateKey implements authority.Manager. A disabled key cannot be rotated.
func (a *Authority) RotateKey(ctx context.Context, name string) (authority.KeyInfo, error) {
	k, err := a.change(ctx, name, func(b *keycache.Batch, k *key) error {
		if err := k.usable(); err != nil {
			return err
		}
		k.version++
		a.putKey(b, *k)
		return a.putVersion(b, *k)
	})
	if err != nil {
		return authority.KeyInfo{}, fmt.Errorf("rotating key: %w", err)
	}
	return k.info(), nil
}

// EnableKey implements authority.Manager.
func (a *Authority) EnableKey(ctx context.Context, name string) error {
	if err := a.setState(ctx, name, authority.StateEnabled); err != nil {
		return fmt.Errorf("enabling key: %w", err)
	}
	return nil
}

// DisableKey implements authority.Manager. When it returns, no new operation
// uses the key and no version of it is in the cache.
func (a *Authority) DisableKey(ctx context.Context, name string) error {
	if err := a.setState(ctx, name, authority.StateDisabled); err != nil {
		return fmt.Errorf("disabling key: %w", err)
	}
	return nil
}

func (a *Authority) setState(ctx context.Context, name string, to authority.KeyState) error {
	_, err := a.change(ctx, name, func(b *keycache.Batch, k *key) error {
		switch k.state {
		case to:
			return nil
		case authority.StateDestroyed:
			return k.usable()
		}
		k.state = to
		a.putKey(b, *k)
		return nil
	})
	return err
}

// DestroyKey implements authority.Manager: it deletes all versions, keeps a
// tombstone, and rewrites the files that held them. If it fails with
// authority.ErrUnavailable after the deletion became durable (DescribeKey says
// destroyed), calling it again finishes the rewriting.
func (a *Authority) DestroyKey(ctx context.Context, name string) error {
	k, err := a.change(ctx, name, func(b *keycache.Batch, k *key) error {
		if k.state == authority.StateDestroyed {
			return nil
		}
		for e, err := range a.store.Scan([]byte(versionRows + k.id + "/")) {
			if err != nil {
				return storeError("reading key versions", err)
			}
			b.Delete(e.Key)
		}
		k.state = authority.StateDestroyed
		a.putKey(b, *k)
		return nil
	})
	if err != nil {
		return fmt.Errorf("destroying key: %w", err)
	}
	if err := a.enter(ctx); err != nil {
		return fmt.Errorf("erasing destroyed key %s: %w", k.id, err)
	}
	defer a.leave()
	if err := a.store.Erase(ctx, []byte(versionRows+k.id+"/")); err != nil {
		return storeError("erasing destroyed key "+k.id, err)
	}
	return nil
}

// change reads a key, lets f fill a batch, makes it durable and drops the key's
// cached versions unless the key is usable afterwards. An empty batch changes
// nothing, which is no error.
func (a *Authority) change(ctx context.Context, name string, f func(*keycache.Batch, *key) error) (key, error) {
	if err := a.enter(ctx); err != nil {
		return key{}, err
	}
	defer a.leave()
	id, err := a.resolve(name)
	if err != nil {
		return key{}, err
	}
	defer a.lock(id).Unlock()
	k, err := a.key(id)
	if err != nil {
		return key{}, err
	}
	var b keycache.Batch
	defer b.Reset()
	if err := f(&b, &k); err != nil {
		return key{}, err
	}
	if err := a.store.Apply(ctx, &b); err != nil {
		return key{}, storeError("writing key", err)
	}
	if k.usable() != nil {
		a.cacheMu.Lock()
		a.cache.drop(id)
		a.cacheMu.Unlock()
	}
	return k, nil
}
