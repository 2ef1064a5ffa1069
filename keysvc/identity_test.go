package keysvc_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/keysvc"
)

// formats are the ways in which a value finds its way into a log.
var formats = []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%e", "%g", "%t", "%p", "%w"}

// verbs is v under each verb, alone and inside something.
func verbs(v any, formats []string) string {
	var b strings.Builder
	for _, f := range formats {
		fmt.Fprintf(&b, f+"\n", v)
		fmt.Fprintf(&b, f+"\n", []any{v})
		fmt.Fprintf(&b, f+"\n", struct{ V any }{v})
	}
	return b.String()
}

// printed is v under every verb and from every log handler.
func printed(v any) string {
	var b strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		slog.New(h).Info("x", "v", v)
	}
	return verbs(v, formats) + b.String()
}

// forms are the spellings under which secret bytes would be found in a text.
func forms(secret []byte) []string {
	return []string{
		string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
		fmt.Sprint(secret), strings.Trim(fmt.Sprint(secret), "[]"), fmt.Sprintf("%#v", secret),
		string(base64Text(secret)), strings.TrimRight(string(base64Text(secret)), "=AEIMQUYcgkosw048"),
	}
}

func base64Text(b []byte) []byte {
	out, _ := json.Marshal(b)
	return bytes.Trim(out, `"`)
}

func checkHidden(t *testing.T, what, text string, secrets ...[]byte) {
	t.Helper()
	for _, s := range secrets {
		for _, f := range forms(s) {
			if strings.Contains(text, f) {
				t.Errorf("%s shows a secret", what)
			}
		}
	}
}

func newIdentity(t testing.TB, k keysvc.Kind) keysvc.Identity {
	t.Helper()
	id, _, err := keysvc.NewIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestIdentityShowsNoSeed(t *testing.T) {
	for _, kind := range []keysvc.Kind{keysvc.KindRequester, keysvc.KindService} {
		id, seed, err := keysvc.NewIdentity(kind)
		if err != nil {
			t.Fatal(err)
		}
		_, raw, err := nkeys.DecodeSeed(seed)
		if err != nil {
			t.Fatal(err)
		}
		text := printed(id) + printed(keysvc.ClientConfig{Identity: id})
		js, err := json.Marshal(map[string]any{"id": id})
		if err != nil {
			t.Fatal(err)
		}
		checkHidden(t, "an identity", text+string(js), seed, raw, seed[2:], ed25519.NewKeyFromSeed(raw)[:32])
		if !strings.Contains(text, id.Public()) {
			t.Error("an identity does not show its public key")
		}
	}
}

func TestParseIdentity(t *testing.T) {
	id, seed, err := keysvc.NewIdentity(keysvc.KindRequester)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{string(seed), string(seed) + "\n", "\r\n\t " + string(seed) + " \n\n"} {
		got, err := keysvc.ParseIdentity([]byte(in))
		if err != nil || got.Public() != id.Public() {
			t.Errorf("ParseIdentity(%q...) = %v, %v; want %v", in[:3], got, err, id)
		}
	}
	copied := bytes.Clone(seed)
	got, err := keysvc.ParseIdentity(copied)
	if err != nil {
		t.Fatal(err)
	}
	clear(copied)
	if sig, err := keysvc.SignPurpose(got, keysvc.PurposeRequest, []byte("x")); err != nil || keysvc.VerifyPurpose(id.Public(), keysvc.PurposeRequest, []byte("x"), sig) != nil {
		t.Error("the identity keeps the caller's seed")
	}
}

func TestParseIdentityRefused(t *testing.T) {
	_, seed, err := keysvc.NewIdentity(keysvc.KindRequester)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte {
		b := bytes.Clone(seed)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return b
	}
	tests := map[string][]byte{
		"empty": nil, "blank": []byte(" \n"), "cut": seed[:len(seed)-1], "twice": append(bytes.Clone(seed), seed...),
		"lower case": bytes.ToLower(seed), "damaged": flip(30), "damaged checksum": flip(len(seed) - 3),
		"with a comment": append([]byte("seed: "), seed...), "a creds file": []byte("-----BEGIN USER NKEY SEED-----\n" + string(seed)),
	}
	for _, prefix := range []nkeys.PrefixByte{nkeys.PrefixByteAccount, nkeys.PrefixByteOperator, nkeys.PrefixByteCluster, nkeys.PrefixByteCurve} {
		pair, err := nkeys.CreatePair(prefix)
		if prefix == nkeys.PrefixByteCurve {
			pair, err = nkeys.CreateCurveKeys()
		}
		if err != nil {
			t.Fatal(err)
		}
		other, err := pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		tests["seed of another kind: "+prefix.String()] = other
	}
	pair, err := nkeys.FromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	public, _ := pair.PublicKey()
	tests["public key"] = []byte(public)
	private, err := pair.PrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	tests["private key"] = private

	for name, in := range tests {
		id, err := keysvc.ParseIdentity(in)
		if id != nil || !errors.Is(err, keysvc.ErrInvalid) {
			t.Errorf("%s: ParseIdentity = %v, %v; want ErrInvalid", name, id, err)
			continue
		}
		text := printed(err)
		if in := bytes.TrimSpace(in); len(in) > 10 && strings.Contains(text, string(in[:10])) || strings.Contains(text, string(seed[4:20])) {
			t.Errorf("%s: the error repeats its input: %v", name, err)
		}
	}
}

func TestLoadIdentity(t *testing.T) {
	dir := t.TempDir()
	id, seed, err := keysvc.NewIdentity(keysvc.KindService)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for mode := fs.FileMode(0o400); mode <= 0o777; mode++ {
		path := file("seed", seed, mode|0o400)
		got, err := keysvc.LoadIdentity(path)
		if ok := mode&0o077 == 0; ok != (err == nil) || ok && got.Public() != id.Public() || !ok && got != nil {
			t.Errorf("mode %v: LoadIdentity = %v, %v", mode|0o400, got, err)
		}
		if err != nil {
			checkHidden(t, "the error about the mode", printed(err), seed)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file("open", seed, 0o644), link); err != nil {
		t.Fatal(err)
	}
	wrong := append(bytes.Repeat([]byte("x"), 10), seed...)
	for name, path := range map[string]string{
		"no file":                      filepath.Join(dir, "missing"),
		"directory":                    dir,
		"link to a readable file":      link,
		"not a seed":                   file("wrong", wrong, 0o600),
		"empty":                        file("empty", nil, 0o600),
		"too long":                     file("long", append(bytes.Repeat([]byte(" "), 1024), seed...), 0o600),
		"too long, beginning well":     file("tail", append(bytes.Clone(seed), bytes.Repeat([]byte("\n"), 1024)...), 0o600),
		"huge, made of nothing":        file("sparse", nil, 0o600),
		"seed of another kind (curve)": file("curve", curveSeed(t), 0o600),
	} {
		if name == "huge, made of nothing" {
			if err := os.Truncate(path, 1<<40); err != nil {
				t.Fatal(err)
			}
		}
		got, err := keysvc.LoadIdentity(path)
		if err == nil || got != nil {
			t.Errorf("%s: LoadIdentity = %v, %v; want an error", name, got, err)
			continue
		}
		checkHidden(t, name, printed(err), seed, seed[4:20])
	}
	if _, err := keysvc.LoadIdentity(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v, want fs.ErrNotExist", err)
	}
}

func curveSeed(t *testing.T) []byte {
	pair, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// TestSeedAsPublicKey gives a seed where a public key belongs, as somebody will.
func TestSeedAsPublicKey(t *testing.T) {
	_, seed, err := keysvc.NewIdentity(keysvc.KindService)
	if err != nil {
		t.Fatal(err)
	}
	err = keysvc.VerifyPurpose(string(seed), keysvc.PurposeReply, nil, make([]byte, keysvc.SignatureSize))
	if !errors.Is(err, keysvc.ErrInvalid) {
		t.Errorf("VerifyPurpose with a seed: %v", err)
	}
	checkHidden(t, "the error of VerifyPurpose", printed(err), seed, seed[4:20])
}
