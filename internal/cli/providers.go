package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/awskms"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

// providers maps the scheme of an authority's URI to who opens it.
var providers = map[string]authority.Opener{
	"awskms": awskms.Open,
	"local":  local.Open,
}

// openAuthorities opens the authorities of a configuration by name. close closes
// them all.
func openAuthorities(ctx context.Context, uris map[string]string, log *slog.Logger) (as map[string]authority.Authority, closeAll func() error, err error) {
	as = map[string]authority.Authority{}
	closeAll = func() error {
		var errs []error
		for _, name := range slices.Sorted(maps.Keys(as)) {
			if err := as[name].Close(); err != nil {
				errs = append(errs, fmt.Errorf("closing authority %q: %w", name, err))
			}
		}
		return errors.Join(errs...)
	}
	for _, name := range slices.Sorted(maps.Keys(uris)) {
		scheme, _, _ := strings.Cut(uris[name], ":")
		open, ok := providers[scheme]
		if !ok {
			err = withHint(fmt.Errorf("opening authority %q: unknown scheme %q", name, scheme),
				"schemes of this release: %s", strings.Join(slices.Sorted(maps.Keys(providers)), ", "))
		} else if as[name], err = open(ctx, uris[name], authority.Options{Logger: log.With("authority", name)}); err != nil {
			err = fmt.Errorf("opening authority %q: %w", name, err)
		}
		if err != nil {
			delete(as, name)
			return nil, nil, errors.Join(err, closeAll())
		}
	}
	return as, closeAll, nil
}
