package devstack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

// identities are those of the stack's three parts.
type identities struct {
	service, gateway, reader keysvc.Identity
}

// ephemeralIdentities live in memory only.
func ephemeralIdentities() (*identities, error) {
	var ids identities
	for _, i := range []struct {
		kind keysvc.Kind
		to   *keysvc.Identity
	}{
		{keysvc.KindService, &ids.service}, {keysvc.KindRequester, &ids.gateway}, {keysvc.KindRequester, &ids.reader},
	} {
		id, seed, err := keysvc.NewIdentity(i.kind)
		if err != nil {
			return nil, err
		}
		clear(seed)
		*i.to = id
	}
	return &ids, nil
}

// keptIdentities are made once and read afterwards.
func keptIdentities(dir string) (*identities, error) {
	var ids identities
	for _, i := range []struct {
		name string
		kind keysvc.Kind
		to   *keysvc.Identity
	}{
		{"keysvc.nk", keysvc.KindService, &ids.service},
		{"gateway.nk", keysvc.KindRequester, &ids.gateway},
		{readerName + ".nk", keysvc.KindRequester, &ids.reader},
	} {
		var err error
		if *i.to, err = keptIdentity(filepath.Join(dir, i.name), i.kind); err != nil {
			return nil, err
		}
	}
	return &ids, nil
}

func keptIdentity(path string, kind keysvc.Kind) (keysvc.Identity, error) {
	id, err := keysvc.LoadIdentity(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	id, seed, err := keysvc.NewIdentity(kind)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	if err := os.WriteFile(path, seed, 0o600); err != nil {
		return nil, fmt.Errorf("writing identity: %w", err)
	}
	return id, nil
}

// newAuthority opens the local authority: in dir, with its domain key beside it,
// or in memory where dir is empty.
func newAuthority(ctx context.Context, dir string, o authority.Options) (*counted, error) {
	if dir == "" {
		a, err := local.NewEphemeral()
		if err != nil {
			return nil, err
		}
		return &counted{Authority: a}, nil
	}
	key := filepath.Join(dir, "domain.key")
	if err := local.CreateDomainKey(key); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding directory: %w", err)
	}
	a, err := local.Open(ctx, fmt.Sprintf("local://%s?domain-key=file:%s",
		escape(filepath.Join(abs, "authority")), escape(filepath.Join(abs, "domain.key"))), o)
	if err != nil {
		return nil, err
	}
	l, ok := a.(*local.Authority)
	if !ok {
		return nil, fmt.Errorf("opening local authority: internal error: got %T", a)
	}
	return &counted{Authority: l}, nil
}

// counted counts what the authority is asked. It counts for itself, so that the
// figure does not depend on the part that is to be measured.
type counted struct {
	*local.Authority
	calls atomic.Uint64
}

var _ authority.Authority = (*counted)(nil)

func (c *counted) Wrap(ctx context.Context, key string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	c.calls.Add(1)
	return c.Authority.Wrap(ctx, key, plaintext, ec)
}

func (c *counted) Unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	c.calls.Add(1)
	return c.Authority.Unwrap(ctx, w, ec)
}

func (c *counted) GenerateDataKey(ctx context.Context, key string, ec authority.Context) ([]byte, authority.Wrapped, error) {
	c.calls.Add(1)
	return c.Authority.GenerateDataKey(ctx, key, ec)
}
