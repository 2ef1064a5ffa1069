package streams_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

func TestInspect(t *testing.T) {
	keys := streamstest.NewKeys()
	s := keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme", Authorities: []string{"aws", "customer"}, RandomNonce: true})
	first, second := s.Seal(t, "a", nil, []byte("SECRET")), s.Seal(t, "a", nil, []byte("SECRET"))

	i, err := streams.Inspect(first.Data)
	must(t, err)
	if i.Version != 1 || i.KeyID != s.KeyID().String() || i.Nonce != "random" || i.Layered || len(i.Session) != 32 {
		t.Errorf("Inspect = %+v", i)
	}
	if i.Size != len(first.Data) || i.Clear+i.Sealed+envelope.TagSize != i.Size || i.Sealed < len("SECRET") {
		t.Errorf("sizes %d = %d + %d + tag", i.Size, i.Clear, i.Sealed)
	}
	r := i.Record
	if r == nil || !r.KeyIDMatches || r.Scheme != "split" || r.K != 2 || r.N != 2 || r.Scope != "tenant/acme" ||
		len(r.Authorities) != 2 || r.Authorities[1].Name != "customer" || r.Authorities[1].WrapSize == 0 || r.Created.IsZero() {
		t.Errorf("record %+v", r)
	}
	i, err = streams.Inspect(second.Data)
	must(t, err)
	if i.Record != nil || i.KeyID != s.KeyID().String() {
		t.Errorf("Inspect by reference = %+v", i)
	}

	i2, err := streams.Inspect(s.Seal(t, "a", nil, nil).Data)
	if err != nil || i2.Size >= i.Size {
		t.Errorf("Inspect of a smaller message = %+v, %v", i2, err)
	}
	j, err := json.Marshal(i)
	if err != nil || !strings.Contains(string(j), `"key_id":"`) || strings.Contains(string(j), "record") {
		t.Errorf("as JSON: %s, %v", j, err)
	}

	other := keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"})
	e, err := envelope.Parse(first.Data)
	must(t, err)
	e.KeyID = other.KeyID()
	i, err = streams.Inspect(e.Append(nil))
	if err != nil || i.Record.KeyIDMatches {
		t.Errorf("record of another key: %+v, %v", i.Record, err)
	}
}

func TestInspectErrors(t *testing.T) {
	keys := streamstest.NewKeys()
	b := keys.NewSealer(t, streamstest.Sealing{Scope: "x"}).Seal(t, "a", nil, nil).Data
	future := bytes.Clone(b)
	future[2] = 2
	badRecord := bytes.Clone(b)
	badRecord[56+2+1] = 99 // scheme
	cutRecord := bytes.Clone(b)
	cutRecord[56] = 0xFF // core length
	for name, tc := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":        {nil, streams.ErrPlaintext},
		"plaintext":      {[]byte("hello"), streams.ErrPlaintext},
		"cut short":      {b[:80], streams.ErrTampered},
		"future version": {future, streams.ErrUnsupported},
		"future scheme":  {badRecord, streams.ErrUnsupported},
		"record cut":     {cutRecord, streams.ErrTampered},
	} {
		if i, err := streams.Inspect(tc.b); !errors.Is(err, tc.want) || i != (streams.Info{}) {
			t.Errorf("%s: Inspect = %+v, %v, want %v", name, i, err, tc.want)
		}
	}
}
