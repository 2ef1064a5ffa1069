package authoritytest

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// checkManager checks the life of keys, on keys it creates itself.
func checkManager(t *testing.T, h Harness) {
	a := h.Open(t)
	_, ok := a.(authority.Manager)
	if err := a.Close(); err != nil {
		t.Fatalf("Close = %v", err)
	}
	if !ok {
		t.Skip("the authority does not implement Manager")
	}
	for _, c := range []struct {
		name string
		f    func(*testing.T, Harness, authority.Authority, authority.Manager)
	}{
		{"Create", checkCreate},
		{"Rotate", checkRotate},
		{"DisableEnable", checkDisableEnable},
		{"Destroy", checkDestroy},
		{"List", checkList},
		{"Unknown", checkManageUnknown},
		{"Cancelled", checkManageCancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := open(t, h)
			c.f(t, h, a, a.(authority.Manager))
		})
	}
}

func create(t testing.TB, m authority.Manager, alias string) authority.KeyInfo {
	t.Helper()
	k, err := m.CreateKey(t.Context(), alias)
	if err != nil {
		t.Fatalf("CreateKey(%q) = %v", alias, err)
	}
	return k
}

func describe(t testing.TB, m authority.Manager, key string) authority.KeyInfo {
	t.Helper()
	k, err := m.DescribeKey(t.Context(), key)
	if err != nil {
		t.Fatalf("DescribeKey(%q) = %v", key, err)
	}
	return k
}

// newAlias returns an alias no key has.
func newAlias() string {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	b := random(12)
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return "conformance-" + string(b)
}

func checkCreate(t *testing.T, _ Harness, a authority.Authority, m authority.Manager) {
	plain, alias := create(t, m, ""), newAlias()
	named := create(t, m, alias)
	for _, k := range []authority.KeyInfo{plain, named} {
		if k.KeyID == "" || len(k.KeyID) > authority.MaxKeyID || k.Version == "" || k.State != authority.StateEnabled {
			t.Errorf("CreateKey = %+v, want an ID, a version and state enabled", k)
		}
		if diff := cmp.Diff(k, describe(t, m, k.KeyID)); diff != "" {
			t.Errorf("DescribeKey differs from CreateKey (-created +described):\n%s", diff)
		}
		p := random(32)
		w := wrap(t, a, k.KeyID, p, someContext())
		if w.KeyID != k.KeyID || w.Version != k.Version {
			t.Errorf("a wrap names %s version %s, want %s version %s", w.KeyID, w.Version, k.KeyID, k.Version)
		}
		unwrap(t, a, w, someContext(), p)
	}
	if plain.KeyID == named.KeyID || plain.Alias != "" || named.Alias != alias {
		t.Errorf("created %+v and %+v, want two keys, the second with alias %q", plain, named, alias)
	}

	if diff := cmp.Diff(named, describe(t, m, alias)); diff != "" {
		t.Errorf("DescribeKey by alias differs (-want +got):\n%s", diff)
	}
	p := random(32)
	w := wrap(t, a, alias, p, someContext())
	if w.KeyID != named.KeyID {
		t.Errorf("a wrap through the alias names %q, want %q", w.KeyID, named.KeyID)
	}
	unwrap(t, a, w, someContext(), p)

	_, err := m.CreateKey(t.Context(), alias)
	refused(t, "CreateKey with a taken alias", err, authority.ErrInvalid)
}

func checkRotate(t *testing.T, _ Harness, a authority.Authority, m authority.Manager) {
	k := create(t, m, newAlias())
	p := random(32)
	old := wrap(t, a, k.KeyID, p, someContext())
	seen := []string{k.Version}
	for range 3 {
		r, err := m.RotateKey(t.Context(), k.KeyID)
		if err != nil {
			t.Fatalf("RotateKey = %v", err)
		}
		if slices.Contains(seen, r.Version) || r.KeyID != k.KeyID || r.Alias != k.Alias || r.State != authority.StateEnabled {
			t.Errorf("RotateKey = %+v after versions %q of %+v", r, seen, k)
		}
		seen = append(seen, r.Version)
		if diff := cmp.Diff(r, describe(t, m, k.KeyID)); diff != "" {
			t.Errorf("DescribeKey differs from RotateKey (-rotated +described):\n%s", diff)
		}
		w := wrap(t, a, k.KeyID, p, someContext())
		if w.Version != r.Version {
			t.Errorf("a new wrap has version %q, want %q", w.Version, r.Version)
		}
		unwrap(t, a, w, someContext(), p)
		unwrap(t, a, old, someContext(), p)

		mixed := old
		mixed.Version = r.Version
		refusedUnwrap(t, "another version of the key", a, mixed, someContext(), authority.ErrInvalid, p)
	}
}

func checkDisableEnable(t *testing.T, h Harness, a authority.Authority, m authority.Manager) {
	k := create(t, m, newAlias())
	p := random(32)
	w := wrap(t, a, k.KeyID, p, someContext())
	for range 2 { // repeating is no error
		if err := m.DisableKey(t.Context(), k.KeyID); err != nil {
			t.Fatalf("DisableKey = %v", err)
		}
	}
	if got := describe(t, m, k.KeyID); got.State != authority.StateDisabled || got.Version != k.Version {
		t.Errorf("a disabled key is described as %+v", got)
	}
	each(t.Context(), a, w, someContext(), func(op string, err error) {
		refused(t, op+" under a disabled key", err, authority.ErrDisabled, p)
	})
	unwrap(t, a, wrap(t, a, h.Keys[0], p, someContext()), someContext(), p)
	for range 2 {
		if err := m.EnableKey(t.Context(), k.KeyID); err != nil {
			t.Fatalf("EnableKey = %v", err)
		}
	}
	unwrap(t, a, w, someContext(), p)
	if diff := cmp.Diff(k, describe(t, m, k.KeyID)); diff != "" {
		t.Errorf("disabling and enabling changed the key (-before +after):\n%s", diff)
	}
}

func checkDestroy(t *testing.T, h Harness, a authority.Authority, m authority.Manager) {
	k := create(t, m, "")
	p := random(32)
	old := wrap(t, a, k.KeyID, p, someContext())
	if _, err := m.RotateKey(t.Context(), k.KeyID); err != nil {
		t.Fatalf("RotateKey = %v", err)
	}
	current := wrap(t, a, k.KeyID, p, someContext())
	for range 2 { // repeating is no error
		if err := m.DestroyKey(t.Context(), k.KeyID); err != nil {
			t.Fatalf("DestroyKey = %v", err)
		}
	}
	gone := func(a authority.Authority, when string) {
		t.Helper()
		for _, w := range []authority.Wrapped{old, current} {
			each(t.Context(), a, w, someContext(), func(op string, err error) {
				refused(t, op+" under a destroyed key"+when, err, authority.ErrDestroyed, p)
			})
		}
		m := a.(authority.Manager)
		if got := describe(t, m, k.KeyID); got.State != authority.StateDestroyed || got.KeyID != k.KeyID {
			t.Errorf("a destroyed key is described as %+v%s", got, when)
		}
		_, err := m.RotateKey(t.Context(), k.KeyID)
		refused(t, "RotateKey of a destroyed key"+when, err, authority.ErrDestroyed)
		refused(t, "EnableKey of a destroyed key"+when, m.EnableKey(t.Context(), k.KeyID), authority.ErrDestroyed)
		refused(t, "DisableKey of a destroyed key"+when, m.DisableKey(t.Context(), k.KeyID), authority.ErrDestroyed)
	}
	gone(a, "")
	unwrap(t, a, wrap(t, a, h.Keys[0], p, someContext()), someContext(), p)
	if err := a.Close(); err != nil {
		t.Fatalf("Close = %v", err)
	}
	gone(open(t, h), " after reopening")
}

func checkList(t *testing.T, _ Harness, _ authority.Authority, m authority.Manager) {
	enabled, disabled, destroyed := create(t, m, newAlias()), create(t, m, ""), create(t, m, "")
	if err := m.DisableKey(t.Context(), disabled.KeyID); err != nil {
		t.Fatalf("DisableKey = %v", err)
	}
	if err := m.DestroyKey(t.Context(), destroyed.KeyID); err != nil {
		t.Fatalf("DestroyKey = %v", err)
	}
	list, err := m.ListKeys(t.Context())
	if err != nil {
		t.Fatalf("ListKeys = %v", err)
	}
	for i := 1; i < len(list); i++ {
		if list[i-1].KeyID >= list[i].KeyID {
			t.Fatalf("ListKeys: %q stands before %q", list[i-1].KeyID, list[i].KeyID)
		}
	}
	for _, k := range []authority.KeyInfo{enabled, disabled, destroyed} {
		i := slices.IndexFunc(list, func(l authority.KeyInfo) bool { return l.KeyID == k.KeyID })
		if i < 0 {
			t.Errorf("ListKeys misses %q", k.KeyID)
			continue
		}
		if diff := cmp.Diff(describe(t, m, k.KeyID), list[i]); diff != "" {
			t.Errorf("ListKeys differs from DescribeKey (-described +listed):\n%s", diff)
		}
	}
}

func checkManageUnknown(t *testing.T, h Harness, _ authority.Authority, m authority.Manager) {
	eachManage(t.Context(), m, h.UnknownKey, func(op string, err error) {
		if op != "CreateKey" && op != "ListKeys" {
			refused(t, op+" of an unknown key", err, authority.ErrNotFound)
		}
	})
}

func checkManageCancelled(t *testing.T, _ Harness, _ authority.Authority, m authority.Manager) {
	k := create(t, m, "")
	before, err := m.ListKeys(t.Context())
	if err != nil {
		t.Fatalf("ListKeys = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	eachManage(ctx, m, k.KeyID, func(op string, err error) {
		refused(t, op+" with a cancelled context", err, authority.ErrUnavailable)
	})
	after, err := m.ListKeys(t.Context())
	if err != nil {
		t.Fatalf("ListKeys = %v", err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("cancelled calls changed the keys (-before +after):\n%s", diff)
	}
}

// eachManage calls every operation of Manager and hands the errors to f.
func eachManage(ctx context.Context, m authority.Manager, key string, f func(op string, err error)) {
	_, err := m.CreateKey(ctx, "")
	f("CreateKey", err)
	_, err = m.DescribeKey(ctx, key)
	f("DescribeKey", err)
	_, err = m.ListKeys(ctx)
	f("ListKeys", err)
	_, err = m.RotateKey(ctx, key)
	f("RotateKey", err)
	f("DisableKey", m.DisableKey(ctx, key))
	f("EnableKey", m.EnableKey(ctx, key))
	f("DestroyKey", m.DestroyKey(ctx, key))
}
