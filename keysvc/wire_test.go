package keysvc_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestSecretRedacted(t *testing.T) {
	secret := random(32)
	// What callers of the client hold: redacted whatever is done to it.
	for name, v := range map[string]any{
		"OpenedKey":    keysvc.OpenedKey{Key: dataKey(t, secret)},
		"*OpenedKey":   &keysvc.OpenedKey{Key: dataKey(t, secret)},
		"[]OpenedKey":  []keysvc.OpenedKey{{Key: dataKey(t, secret)}},
		"[]*OpenedKey": []*keysvc.OpenedKey{{Key: dataKey(t, secret)}},
		"RouteKey":     dataKey(t, secret),
		"SealKey":      sealKey(t, secret),
		"*SealKey":     []any{sealKey(t, secret), map[string]*keysvc.SealKey{"k": {Grant: sealKey(t, secret).Grant}}},
	} {
		checkHidden(t, name, printed(v), secret)
	}
	// What only the two codecs hold. Inside results a Secret marshals as base64;
	// verbs that fit no struct (%p, %w) and pointers inside containers are left to vet.
	for name, v := range map[string]any{
		"Secret":         keysvc.Secret(secret),
		"WireKey":        keysvc.WireKey{KeyID: "id", Key: secret, LeaseMs: 1},
		"OpenResult":     keysvc.OpenResult{Keys: []keysvc.WireKey{{Key: secret}}},
		"WireGrant":      keysvc.WireGrant{Scope: "s", Subkey: secret},
		"GenerateResult": keysvc.GenerateResult{Grants: []keysvc.WireGrant{{Subkey: secret}}},
		"RouteKeyResult": keysvc.RouteKeyResult{Key: secret},
		"map":            map[string]keysvc.Secret{"k": secret},
		"[]Secret":       []keysvc.Secret{secret},
	} {
		text := verbs(v, formats[:len(formats)-2])
		checkHidden(t, name, text, secret)
		if !strings.Contains(text, "[redacted]") {
			t.Errorf("%s does not say [redacted]: %s", name, text)
		}
	}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", keysvc.Secret(secret))
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", keysvc.Secret(secret))
	checkHidden(t, "a logged Secret", b.String(), secret)
}

func dataKey(t *testing.T, b []byte) envelope.DataKey {
	k, err := envelope.NewDataKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sealKey(t *testing.T, subkey []byte) keysvc.SealKey {
	record, _ := testRecord(t, "tenant/acme")
	g, err := envelope.GrantFromParts(record, envelope.Salt{1}, subkey)
	if err != nil {
		t.Fatal(err)
	}
	return keysvc.SealKey{Scope: "tenant/acme", Grant: g}
}

// testRecord makes a key record of the single scheme with a wrap that nobody opens.
func testRecord(t testing.TB, scope string) ([]byte, envelope.DataKey) {
	t.Helper()
	key := envelope.GenerateDataKey()
	core := envelope.Core{
		Scheme: envelope.SchemeSingle, K: 1, N: 1, RecordID: envelope.NewRecordID(), Created: 1_790_000_000,
		Commitment:  key.Commit(),
		Context:     envelope.SortContext(map[string]string{envelope.ContextScope: scope}),
		Authorities: []envelope.PartHolder{{Authority: "local"}},
	}
	raw := envelope.ExposeDataKey(key)
	part, err := envelope.PartCommitment(raw, core.RecordID, 1)
	if err != nil {
		t.Fatal(err)
	}
	core.Authorities[0].Commitment = part
	record := envelope.Record{Core: core, Wraps: []envelope.Wrap{{ManagedKey: "k", Version: "1", Bytes: random(60)}}}
	b, err := record.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b, key
}

func TestSecretJSON(t *testing.T) {
	in := keysvc.WireKey{KeyID: "id", Key: keysvc.Secret{1, 2, 3}}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"id":"id","key":"AQID"}` {
		t.Fatalf("marshalled %s, %v", b, err)
	}
	var out keysvc.WireKey
	if err := json.Unmarshal(b, &out); err != nil || !bytes.Equal(out.Key, in.Key) {
		t.Errorf("came back as %x, %v", []byte(out.Key), err)
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "prod", "Prod-2_x", "0", strings.Repeat("x", keysvc.MaxName)} {
		if err := keysvc.CheckName(name); err != nil {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
	for _, name := range []string{
		"", strings.Repeat("x", keysvc.MaxName+1), "a.b", "a b", "*", ">", "a*", "ü", "a\n", "a\x00", "a/b", "$SYS", "a\xff", ".",
	} {
		if err := keysvc.CheckName(name); !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("CheckName(%q) = %v, want ErrInvalid", name, err)
		}
	}
	if got := keysvc.Subject("prod", keysvc.OpOpen); got != "keyweir.v1.prod.open" {
		t.Errorf("subject %q", got)
	}
}

// TestLargestBatchFits holds the maxima against each other: a full batch of the
// longest records fits a request, and the answer to it a reply.
func TestLargestBatchFits(t *testing.T) {
	record := random(envelope.MaxRecordSize)
	id := newIdentity(t, keysvc.KindRequester)
	service := newIdentity(t, keysvc.KindService)
	for _, suite := range keysvc.Suites() {
		kem, err := keysvc.SuiteKEM(suite)
		if err != nil {
			t.Fatal(err)
		}
		eph, err := kem.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		var args keysvc.OpenArgs
		var result keysvc.OpenResult
		var grants keysvc.GenerateResult
		for range keysvc.MaxBatch {
			name := strings.Repeat("f", 64)
			args.Keys = append(args.Keys, keysvc.WireRecord{KeyID: name, Record: record})
			result.Keys = append(result.Keys, keysvc.WireKey{KeyID: name, Record: record, Key: record[:32], LeaseMs: 1 << 62})
			grants.Grants = append(grants.Grants, keysvc.WireGrant{
				Scope: strings.Repeat("\x01", keysvc.MaxScope), Record: record, Salt: record[:16], Subkey: record[:32],
				Messages: 1 << 63, Bytes: 1 << 63, ReuseMs: 1 << 62,
			})
		}
		data, hash, err := keysvc.EncodeRequest(id, service.Public(), keysvc.OpOpen, suite, eph, args)
		if err != nil {
			t.Fatalf("%s: %v", suite, err)
		}
		t.Logf("%s: request of %d bytes", suite, len(data))
		r := keysvc.NewRequest(keysvc.OpOpen, hash, eph.PublicKey())
		for _, res := range []any{result, grants} {
			reply, err := keysvc.EncodeReply(service, strings.Repeat("i", keysvc.MaxName), r, res)
			if err != nil {
				t.Errorf("%s: %v", suite, err)
			}
			t.Logf("%s: reply of %d bytes", suite, len(reply))
		}
	}
}
