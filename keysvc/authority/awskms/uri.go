package awskms

import (
	"context"
	"net/url"
	"strings"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Scheme is the URI scheme of this provider.
const Scheme = "awskms"

// Open opens an authority by URI; it is an authority.Opener.
//
//	awskms:///arn:aws:kms:eu-west-1:111122223333:key/1234abcd
//	awskms:///alias/keyweir?region=eu-west-1
//	awskms:///1234abcd-12ab-34cd-56ef-1234567890ab?region=eu-west-1&endpoint=http://127.0.0.1:8080
//
// Parameters are region and endpoint, see [Config]; credentials come from the
// SDK's default chain and never stand in a URI. A malformed URI is
// authority.ErrInvalid.
func Open(ctx context.Context, uri string, o authority.Options) (authority.Authority, error) {
	c, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	c.Logger = o.Logger
	a, err := New(ctx, c)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// CheckURI reports what is wrong with a URI without opening anything; errors are
// authority.ErrInvalid.
func CheckURI(uri string) error {
	_, err := parseURI(uri)
	return err
}

func parseURI(uri string) (Config, error) {
	const op = "reading the uri"
	u, err := url.Parse(uri)
	if err != nil { // the text repeats the URI, which may hold what it should not
		return Config{}, invalid(op, "malformed")
	}
	switch {
	case u.Scheme != Scheme:
		return Config{}, invalid(op, "scheme is not awskms")
	case u.User != nil:
		return Config{}, invalid(op, "credentials do not belong in a uri")
	case u.Host != "" || u.Opaque != "" || !strings.HasPrefix(u.Path, "/"):
		return Config{}, invalid(op, "want awskms:///KEY, with three slashes")
	case u.Fragment != "":
		return Config{}, invalid(op, "unexpected fragment")
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, invalid(op, "malformed parameters")
	}
	c := Config{KeyID: strings.TrimPrefix(u.Path, "/")}
	for name, values := range params {
		if len(values) != 1 || values[0] == "" {
			return Config{}, invalid(op, "a parameter that is repeated or empty")
		}
		switch name {
		case "region":
			c.Region = values[0]
		case "endpoint":
			c.Endpoint = values[0]
		default:
			return Config{}, invalid(op, "unknown parameter, want region or endpoint")
		}
	}
	if _, err := parseKey(c.KeyID); err != nil {
		return Config{}, invalid(op, "%v", err)
	}
	return c, nil
}
