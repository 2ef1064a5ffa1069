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
	"github.com/keyweir/keyweir/keysvc/authority/execplug"
	"github.com/keyweir/keyweir/keysvc/authority/local"
	"github.com/keyweir/keyweir/keysvc/authority/transit"
)

// provider opens authorities of one scheme. check looks at a URI without opening
// anything.
type provider struct {
	open  authority.Opener
	check func(uri string) error
}

// providers maps the scheme of an authority's URI to who opens it.
var providers = map[string]provider{
	awskms.Scheme:   {awskms.Open, awskms.CheckURI},
	execplug.Scheme: {execplug.Open, execplug.CheckURI},
	local.Scheme:    {local.Open, local.CheckURI},
	transit.Scheme:  {transit.Open, transit.CheckURI},
}

// checkAuthority reports what is wrong with the URI of an authority, in words for
// the configuration file.
func checkAuthority(uri string) error {
	scheme, _, _ := strings.Cut(uri, ":")
	p, ok := providers[scheme]
	if !ok {
		return fmt.Errorf("unknown scheme %.40q; schemes of this release: %s", scheme, schemes())
	}
	if err := p.check(uri); err != nil {
		sentinel := authority.ErrInvalid.Error()
		return errors.New(strings.ReplaceAll(strings.TrimSuffix(err.Error(), ": "+sentinel), sentinel+": ", ""))
	}
	return nil
}

func schemes() string { return strings.Join(slices.Sorted(maps.Keys(providers)), ", ") }

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
		p, ok := providers[scheme]
		if !ok {
			err = withHint(fmt.Errorf("opening authority %q: unknown scheme %q", name, scheme),
				"schemes of this release: %s", schemes())
		} else if as[name], err = p.open(ctx, uris[name], authority.Options{Logger: log.With("authority", name)}); err != nil {
			err = fmt.Errorf("opening authority %q: %w", name, err)
		}
		if err != nil {
			delete(as, name)
			return nil, nil, errors.Join(err, closeAll())
		}
	}
	return as, closeAll, nil
}
