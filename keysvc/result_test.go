package keysvc_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// opened makes the answer for one record with its key.
func opened(t *testing.T, scope string) (keysvc.KeyID, keysvc.WireKey) {
	t.Helper()
	record, key := testRecord(t, scope)
	r, err := envelope.ParseRecord(record)
	if err != nil {
		t.Fatal(err)
	}
	return r.Core.ID(), keysvc.WireKey{KeyID: r.Core.ID().String(), Record: record, Key: envelope.ExposeDataKey(key), LeaseMs: 300_000}
}

func TestOpenKeys(t *testing.T) {
	w := newWorld(t)
	id, good := opened(t, "tenant/acme")
	otherID, other := opened(t, "tenant/acme")
	key := dataKey(t, good.Key)
	change := func(f func(*keysvc.WireKey)) keysvc.WireKey {
		k := good
		k.Key = bytes.Clone(k.Key)
		f(&k)
		return k
	}
	rewrapped, err := envelope.ParseRecord(good.Record)
	if err != nil {
		t.Fatal(err)
	}
	rewrapped.Wraps[0].Version = "2"
	newer, err := rewrapped.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		wire keysvc.WireKey
		err  error
	}{
		{"good", good, nil},
		{"with newer wraps", change(func(k *keysvc.WireKey) { k.Record = newer }), nil},
		{"denied", keysvc.WireKey{KeyID: good.KeyID, Error: keysvc.ToWire(keysvc.ErrDenied)}, keysvc.ErrDenied},
		{"an error and a key", change(func(k *keysvc.WireKey) { k.Error = keysvc.ToWire(keysvc.ErrSuspended) }), keysvc.ErrSuspended},
		{"nothing", keysvc.WireKey{}, keysvc.ErrUnavailable},
		{"no lease", change(func(k *keysvc.WireKey) { k.LeaseMs = 0 }), keysvc.ErrUnavailable},
		{"negative lease", change(func(k *keysvc.WireKey) { k.LeaseMs = -1 }), keysvc.ErrUnavailable},
		{"no record", change(func(k *keysvc.WireKey) { k.Record = nil }), keysvc.ErrInvalid},
		{"damaged record", change(func(k *keysvc.WireKey) { k.Record = append(bytes.Clone(k.Record), 0) }), keysvc.ErrInvalid},
		{"record of a later version", change(func(k *keysvc.WireKey) { k.Record = bytes.Clone(k.Record); k.Record[2] = 99 }), keysvc.ErrUnsupported},
		{"another key altogether", other, keysvc.ErrInvalid},
		{"another key under this ID", change(func(k *keysvc.WireKey) { k.Record, k.Key = other.Record, other.Key }), keysvc.ErrInvalid},
		{"this record, another ID", change(func(k *keysvc.WireKey) { k.KeyID = otherID.String() }), keysvc.ErrInvalid},
		{"this record, another key", change(func(k *keysvc.WireKey) { k.Key = other.Key }), keysvc.ErrInvalid},
		{"a key of one bit changed", change(func(k *keysvc.WireKey) { k.Key[31] ^= 1 }), keysvc.ErrInvalid},
		{"zeros for a key", change(func(k *keysvc.WireKey) { k.Key = make([]byte, 32) }), keysvc.ErrInvalid},
		{"a short key", change(func(k *keysvc.WireKey) { k.Key = k.Key[:31] }), keysvc.ErrInvalid},
		{"no key", change(func(k *keysvc.WireKey) { k.Key = nil }), keysvc.ErrInvalid},
	}
	var result keysvc.OpenResult
	var args keysvc.OpenArgs
	w.respond(t, w.service, func(r *responder, a asked) {
		if err := a.req.Args(&args); err != nil {
			t.Error(err)
		}
		r.ok(a, result)
	})
	client := w.client(t)
	var records []keysvc.Record
	for _, tt := range tests {
		records = append(records, keysvc.Record{KeyID: id})
		result.Keys = append(result.Keys, tt.wire)
	}
	records[1].Bytes = good.Record
	got, err := client.OpenKeys(within(t, 20*time.Second), records)
	if err != nil {
		t.Fatal(err)
	}
	if len(args.Keys) != len(records) || args.Keys[0].Record != nil || args.Keys[0].KeyID != id.String() || !bytes.Equal(args.Keys[1].Record, good.Record) {
		t.Errorf("asked %+v", args.Keys[:2])
	}
	for i, tt := range tests {
		k := got[i]
		if !errors.Is(k.Err, tt.err) || k.KeyID != id {
			t.Errorf("%s: key ID %v, %v; want %v", tt.name, k.KeyID, k.Err, tt.err)
		}
		if tt.err == nil {
			if !k.Key.Equal(key) || !bytes.Equal(k.Record, tt.wire.Record) || k.NotAfter.IsZero() || !k.RefreshAt.Before(k.NotAfter) {
				t.Errorf("%s: %+v", tt.name, k)
			}
			continue
		}
		if !k.Key.IsZero() || k.Record != nil || !k.NotAfter.IsZero() || !k.RefreshAt.IsZero() {
			t.Errorf("%s: something beside the error: %+v", tt.name, k)
		}
		checkHidden(t, tt.name, printed(k.Err), good.Key, other.Key)
	}

	for _, n := range []int{0, 1, 3} {
		result.Keys = make([]keysvc.WireKey, n)
		if _, err := client.OpenKeys(within(t, 20*time.Second), records[:2]); !errors.Is(err, keysvc.ErrUnavailable) {
			t.Errorf("%d answers to 2 records: %v", n, err)
		}
	}
}

func TestGenerate(t *testing.T) {
	w := newWorld(t)
	record, key := testRecord(t, "tenant/acme")
	r, err := envelope.ParseRecord(record)
	if err != nil {
		t.Fatal(err)
	}
	grant := func() keysvc.WireGrant {
		g, err := envelope.NewGrant(key, r)
		if err != nil {
			t.Fatal(err)
		}
		rec, salt, subkey := envelope.ExposeGrant(g)
		return keysvc.WireGrant{Scope: "tenant/acme", Record: rec, Salt: salt[:], Subkey: subkey, Messages: 10, Bytes: 20, ReuseMs: 60_000}
	}
	change := func(f func(*keysvc.WireGrant)) keysvc.WireGrant {
		g := grant()
		f(&g)
		return g
	}
	tests := []struct {
		name string
		wire keysvc.WireGrant
		err  error
	}{
		{"good", grant(), nil},
		{"budget beyond the limits", change(func(g *keysvc.WireGrant) { g.Messages, g.Bytes = math.MaxUint64, math.MaxUint64 }), nil},
		{"no scope", keysvc.WireGrant{Error: keysvc.ToWire(keysvc.ErrNoScope)}, keysvc.ErrNoScope},
		{"an error and a grant", change(func(g *keysvc.WireGrant) { g.Error = keysvc.ToWire(keysvc.ErrDestroyed) }), keysvc.ErrDestroyed},
		{"nothing", keysvc.WireGrant{}, keysvc.ErrUnavailable},
		{"no salt", change(func(g *keysvc.WireGrant) { g.Salt = nil }), keysvc.ErrUnavailable},
		{"short salt", change(func(g *keysvc.WireGrant) { g.Salt = g.Salt[:15] }), keysvc.ErrUnavailable},
		{"long salt", change(func(g *keysvc.WireGrant) { g.Salt = append(g.Salt, 0) }), keysvc.ErrUnavailable},
		{"no reuse period", change(func(g *keysvc.WireGrant) { g.ReuseMs = 0 }), keysvc.ErrUnavailable},
		{"negative reuse period", change(func(g *keysvc.WireGrant) { g.ReuseMs = -5 }), keysvc.ErrUnavailable},
		{"no messages", change(func(g *keysvc.WireGrant) { g.Messages = 0 }), keysvc.ErrUnavailable},
		{"no bytes", change(func(g *keysvc.WireGrant) { g.Bytes = 0 }), keysvc.ErrUnavailable},
		{"no record", change(func(g *keysvc.WireGrant) { g.Record = nil }), keysvc.ErrInvalid},
		{"record of a later version", change(func(g *keysvc.WireGrant) { g.Record[2] = 99 }), keysvc.ErrUnsupported},
		{"no subkey", change(func(g *keysvc.WireGrant) { g.Subkey = nil }), keysvc.ErrInvalid},
		{"short subkey", change(func(g *keysvc.WireGrant) { g.Subkey = g.Subkey[:31] }), keysvc.ErrInvalid},
		{"zeros for a subkey", change(func(g *keysvc.WireGrant) { clear(g.Subkey) }), keysvc.ErrInvalid},
	}
	var result keysvc.GenerateResult
	var args keysvc.GenerateArgs
	w.respond(t, w.service, func(r *responder, a asked) {
		if err := a.req.Args(&args); err != nil {
			t.Error(err)
		}
		r.ok(a, result)
	})
	client := w.client(t)
	var subjects []string
	for i, tt := range tests {
		subjects = append(subjects, fmt.Sprintf("orders.acme.%d", i))
		result.Grants = append(result.Grants, tt.wire)
	}
	got, err := client.Generate(within(t, 20*time.Second), subjects)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(subjects, args.Subjects); diff != "" {
		t.Error(diff)
	}
	for i, tt := range tests {
		k := got[i]
		if !errors.Is(k.Err, tt.err) || (k.Grant == nil) != (tt.err != nil) {
			t.Errorf("%s: %+v, want %v", tt.name, k, tt.err)
			continue
		}
		if tt.err != nil {
			if k.Scope != "" || k.Messages != 0 || !k.NotAfter.IsZero() {
				t.Errorf("%s: something beside the error: %+v", tt.name, k)
			}
			checkHidden(t, tt.name, printed(k.Err), grant().Subkey, envelope.ExposeDataKey(key))
			continue
		}
		s, err := k.Grant.Session(envelope.SessionConfig{})
		if err != nil || s.KeyID() != r.Core.ID() {
			t.Errorf("%s: session of %v, %v", tt.name, s, err)
		}
		if k.Messages > envelope.MaxSessionMessages || k.Bytes > envelope.MaxSessionBytes || k.Scope != "tenant/acme" {
			t.Errorf("%s: %+v", tt.name, k)
		}
	}
	result.Grants = result.Grants[:1]
	if _, err := client.Generate(within(t, 20*time.Second), subjects[:2]); !errors.Is(err, keysvc.ErrUnavailable) {
		t.Errorf("1 answer to 2 subjects: %v", err)
	}
}

func TestOtherCalls(t *testing.T) {
	w := newWorld(t)
	var result any
	w.respond(t, w.service, func(r *responder, a asked) { r.ok(a, result) })
	client := w.client(t)
	ctx := within(t, 30*time.Second)

	result = keysvc.ScopesResult{Rules: []keysvc.ScopeRule{{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}"}}}
	rules, err := client.Scopes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s, _, err := rules.Scope("orders.acme.x"); s != "tenant/acme" || err != nil {
		t.Errorf("scope %q, %v", s, err)
	}
	result = keysvc.ScopesResult{Rules: []keysvc.ScopeRule{{Match: "orders..", Scope: "x"}}}
	if rules, err := client.Scopes(ctx); rules != nil || !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("a rule that does not compile: %v, %v", rules, err)
	}

	result = keysvc.RouteKeyResult{Key: fixed("route")}
	if k, err := client.RouteKey(ctx, "orders"); err != nil || !k.Equal(dataKey(t, fixed("route"))) {
		t.Errorf("route key: %v", err)
	}
	for _, bad := range [][]byte{{}, make([]byte, 32), fixed("x")[:31]} {
		result = keysvc.RouteKeyResult{Key: bad}
		if k, err := client.RouteKey(ctx, "orders"); !k.IsZero() || !errors.Is(err, keysvc.ErrUnavailable) {
			t.Errorf("a route key of %d bytes: %v", len(bad), err)
		}
	}
	result = status
	if got, err := client.Status(ctx); err != nil || cmp.Diff(status, got) != "" {
		t.Errorf("status %+v, %v", got, err)
	}
}

func TestLease(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.OneOf(rapid.Int64Range(1, 10_000), rapid.Int64Range(1, math.MaxInt64), rapid.Just[int64](math.MaxInt64)).Draw(t, "ms")
		sent := time.Now()
		notAfter, refresh := keysvc.Lease(sent, ms)
		d, r := notAfter.Sub(sent), refresh.Sub(sent)
		if want := time.Duration(min(ms, 30*24*3600*1000)) * time.Millisecond; d != want {
			t.Fatalf("%d ms: lease of %v, want %v", ms, d, want)
		}
		if r < d*8/10 || r > d*9/10+1 || r >= d {
			t.Fatalf("%d ms: refresh after %v of %v", ms, r, d)
		}
	})
}

// TestLeaseCountsFromSending: neither the way there nor the way back is a gift.
func TestLeaseCountsFromSending(t *testing.T) {
	w := newWorld(t)
	id, good := opened(t, "tenant/acme")
	const lease = 300_000 * time.Millisecond
	held := make(chan asked, 64)
	r := w.respond(t, w.service, func(_ *responder, a asked) { held <- a })
	client := w.client(t)
	for _, answered := range []int{0, 1} { // which of two tries
		type answer struct {
			keys []keysvc.OpenedKey
			err  error
		}
		done := make(chan answer, 1)
		start := time.Now()
		go func() {
			ks, err := client.OpenKeys(within(t, 30*time.Second), []keysvc.Record{{KeyID: id}})
			done <- answer{ks, err}
		}()
		tries := []asked{<-held, <-held} // the second is sent RetryAfter later
		r.ok(tries[answered], keysvc.OpenResult{Keys: []keysvc.WireKey{good}})
		a := <-done
		if a.err != nil || a.keys[0].Err != nil {
			t.Fatalf("%v, %+v", a.err, a.keys)
		}
		sent := a.keys[0].NotAfter.Add(-lease)
		earliest, latest := start, tries[0].at
		if answered == 1 {
			earliest, latest = tries[0].at, tries[1].at
		}
		if sent.Before(earliest) || sent.After(latest) {
			t.Errorf("try %d answered: the lease counts from %v, want within %v (after the start of the call)",
				answered, sent.Sub(start), []time.Duration{earliest.Sub(start), latest.Sub(start)})
		}
		for len(held) > 0 {
			<-held
		}
	}
}
