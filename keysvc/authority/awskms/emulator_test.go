package awskms_test

import (
	"testing"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/awskms"
	"github.com/keyweir/keyweir/keysvc/authority/awskms/kmstest"
)

func open(t testing.TB, c awskms.Config) *awskms.Authority {
	t.Helper()
	if c.Region == "" {
		c.Region = kmstest.Region
	}
	if c.Credentials == nil {
		c.Credentials = kmstest.Credentials()
	}
	a, err := awskms.New(t.Context(), c)
	if err != nil {
		t.Fatalf("New(%v) = %v", c, err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func TestConformanceLocalKMS(t *testing.T) {
	s := kmstest.LocalKMS(t)
	for name, key := range map[string]string{"ID": s.Keys[0], "ARN": s.ARNs[0], "Alias": s.Alias} {
		t.Run(name, func(t *testing.T) {
			keys := s.Keys
			if name == "ARN" {
				keys = s.ARNs
			}
			authoritytest.Run(t, authoritytest.Harness{
				Open: func(t testing.TB) authority.Authority {
					return open(t, awskms.Config{KeyID: key, Endpoint: s.Endpoint})
				},
				Keys:    keys,
				Alias:   s.Alias,
				Disable: s.Disable,
				Enable:  s.Enable,
				Quirks:  s.Quirks,
			})
		})
	}
}

func TestConformanceMoto(t *testing.T) {
	s := kmstest.Moto(t)
	authoritytest.Run(t, authoritytest.Harness{
		Open: func(t testing.TB) authority.Authority {
			return open(t, awskms.Config{KeyID: s.Keys[0], Endpoint: s.Endpoint})
		},
		Keys:   s.Keys,
		Alias:  s.Alias,
		Quirks: s.Quirks, // no Disable: moto goes on using disabled keys
	})
}
