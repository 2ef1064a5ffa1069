package streamstest_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// Every kind of sealing opens with what its sealer says a reader accepts.
func TestSealings(t *testing.T) {
	for name, cfg := range map[string]streamstest.Sealing{
		"smallest":  {Scope: "x"},
		"inline":    {Scope: "x", Record: "inline", RandomNonce: true},
		"reference": {Scope: "x", Record: "reference", Prefix: "s."},
		"split":     {Scope: "tenant/acme", Authorities: []string{"a", "b"}},
		"chain":     {Scope: "x", Authorities: []string{"a", "b"}, Scheme: streams.SchemeChain},
		"any":       {Scope: "x", Authorities: []string{"a", "b"}, Scheme: streams.SchemeAny},
		"threshold": {Scope: "x", Authorities: []string{"a", "b", "c"}, Scheme: streams.SchemeThreshold},
	} {
		t.Run(name, func(t *testing.T) {
			keys := streamstest.NewKeys()
			s := keys.NewSealer(t, cfg)
			o, err := streams.New(streams.Config{Keys: keys, Accept: s.Accept()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = o.Close() }()
			headers := nats.Header{"A": {"1", "2"}, "b": {"3"}}
			for i := uint64(1); i <= 3; i++ {
				sent := s.Seal(t, "orders.new", headers, []byte("hello"))
				if sent.Subject != s.SealedSubject("orders.new") || bytes.Contains(sent.Data, []byte("hello")) {
					t.Fatalf("sealed message on %q", sent.Subject)
				}
				m, err := o.OpenRaw(t.Context(), "S", &jetstream.RawStreamMsg{Subject: sent.Subject, Data: sent.Data, Sequence: i})
				if err != nil {
					t.Fatal(err)
				}
				if m.Subject() != "orders.new" || string(m.Data()) != "hello" || !cmp.Equal(m.Headers(), headers) ||
					m.Sequence() != i || m.Previous() != i-1 || m.Chain() != s.Chain() || m.KeyID() != s.KeyID() || m.Scope() != cfg.Scope {
					t.Errorf("opened %v: %q with %v on %q", m, m.Data(), m.Headers(), m.Subject())
				}
			}
			if calls, n := keys.Calls(); calls != 1 || n != 1 {
				t.Errorf("%d calls for %d keys, want one for one", calls, n)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	keys := streamstest.NewKeys()
	s := keys.NewSealer(t, streamstest.Sealing{Scope: "x"})
	ask := func() error {
		t.Helper()
		got, err := keys.OpenKeys(t.Context(), []keysvc.Record{{KeyID: s.KeyID()}})
		if err != nil {
			return err
		}
		if (got[0].Err == nil) == got[0].Key.IsZero() {
			t.Fatalf("answer %+v has both or neither of key and error", got[0])
		}
		got[0].Key.Clear() // as a reader does: the next answer is not affected
		return got[0].Err
	}
	want := func(target error) {
		t.Helper()
		if err := ask(); !errors.Is(err, target) {
			t.Errorf("OpenKeys = %v, want %v", err, target)
		}
	}
	want(nil)
	want(nil)
	keys.Refuse("x", keysvc.ErrSuspended)
	want(keysvc.ErrSuspended)
	keys.Refuse("x", nil)
	want(nil)
	keys.Hook = func(context.Context, []keysvc.Record) error { return keysvc.ErrUnavailable }
	want(keysvc.ErrUnavailable)
	keys.Hook = nil
	keys.SetLease(time.Minute)
	got, err := keys.OpenKeys(t.Context(), []keysvc.Record{{KeyID: s.KeyID()}, {KeyID: s.KeyID(), Bytes: []byte("no record")}})
	if err != nil || time.Until(got[0].NotAfter) > time.Minute || !got[0].RefreshAt.Before(got[0].NotAfter) || !errors.Is(got[1].Err, keysvc.ErrInvalid) {
		t.Errorf("OpenKeys = %+v, %v", got, err)
	}
	keys.Forget(s.KeyID())
	want(keysvc.ErrNotFound)
	if _, err := keys.OpenKeys(t.Context(), nil); !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("OpenKeys of nothing = %v, want ErrInvalid", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := keys.OpenKeys(ended, []keysvc.Record{{}}); !errors.Is(err, keysvc.ErrUnavailable) {
		t.Errorf("OpenKeys after the end of its context = %v, want ErrUnavailable", err)
	}
}
