package local_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/local"
)

func TestOpenByFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "domain.key")
	uri := "local://" + filepath.ToSlash(dir) + "/keys?domain-key=" + url.QueryEscape("file:"+file)

	_, err := local.Open(t.Context(), uri, authority.Options{})
	if err := authoritytest.CheckError(err, authority.ErrInvalid); err != nil {
		t.Fatalf("without a domain key: %v", err)
	}
	if !strings.Contains(err.Error(), "make one") {
		t.Errorf("Open = %v: gives no hint", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "keys")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a store was made without a domain key")
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a domain key was made silently")
	}

	if err := local.CreateDomainKey(file); err != nil {
		t.Fatalf("CreateDomainKey: %v", err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := local.CreateDomainKey(file); err == nil {
		t.Error("CreateDomainKey replaced a file")
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the refused CreateDomainKey changed the file: %v", err)
	}
	a, err := local.Open(t.Context(), uri, authority.Options{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	w := mustWrap(t, a, "", []byte("x"))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	// The same store with the key from the environment, as hexadecimal, under
	// another default.
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(before)))
	if err != nil || len(key) != 32 {
		t.Fatalf("the file holds %d bytes, %v", len(key), err)
	}
	t.Setenv("KEYWEIR_TEST_DOMAIN_KEY", hex.EncodeToString(key))
	b, err := local.Open(t.Context(), "local://"+filepath.ToSlash(dir)+"/keys?domain-key=env:KEYWEIR_TEST_DOMAIN_KEY&key=orders", authority.Options{})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	wantOpens(t, b, w, []byte("x"))
	// The default key is made with the store, never later.
	_, err = b.Wrap(t.Context(), "", []byte("x"), ec)
	if err := authoritytest.CheckError(err, authority.ErrNotFound); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	if runtime.GOOS != "windows" {
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		_, err := local.Open(t.Context(), uri, authority.Options{})
		if err := authoritytest.CheckError(err, authority.ErrInvalid, key); err != nil || !strings.Contains(localErr(t, uri), "chmod 600") {
			t.Errorf("with a group-readable domain key: %v", err)
		}
	}
}

func localErr(t *testing.T, uri string) string {
	t.Helper()
	_, err := local.Open(t.Context(), uri, authority.Options{})
	if err == nil {
		t.Fatal("Open succeeded")
	}
	return err.Error()
}

func TestDomainKeyText(t *testing.T) {
	key := bytes.Repeat([]byte{0xfb, 0xef, 0xbe, 0x01}, 8) // - and _ in base64url
	good := []string{
		hex.EncodeToString(key), strings.ToUpper(hex.EncodeToString(key)),
		base64.StdEncoding.EncodeToString(key), base64.RawStdEncoding.EncodeToString(key),
		base64.URLEncoding.EncodeToString(key), base64.RawURLEncoding.EncodeToString(key),
		"  " + base64.StdEncoding.EncodeToString(key) + "\r\n",
	}
	dir := t.TempDir()
	uri := "local://" + filepath.ToSlash(dir) + "/keys?domain-key=env:KEYWEIR_TEST_DOMAIN_KEY"
	for _, text := range good {
		t.Setenv("KEYWEIR_TEST_DOMAIN_KEY", text)
		a, err := local.Open(t.Context(), uri, authority.Options{})
		if err != nil {
			t.Fatalf("Open with a key of %d characters: %v", len(text), err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{
		"", " ", "secret-looking-text", string(key), hex.EncodeToString(key)[:62], hex.EncodeToString(key) + "00",
		base64.StdEncoding.EncodeToString(key[:31]), base64.StdEncoding.EncodeToString(append(key, 1)),
		base64.StdEncoding.EncodeToString(key)[:42] + "#=", strings.Repeat("00", 32),
	} {
		t.Setenv("KEYWEIR_TEST_DOMAIN_KEY", strings.ReplaceAll(text, "\x00", "0"))
		_, err := local.Open(t.Context(), uri, authority.Options{})
		if err := authoritytest.CheckError(err, authority.ErrInvalid, key, []byte(text)); err != nil {
			t.Errorf("text of %d characters: %v", len(text), err)
		}
	}
}

func TestURI(t *testing.T) {
	for _, uri := range []string{
		"", "local:", "local:///", "local:///d", "local:///d?", "local:///d?domain-key=", "local://host/d?domain-key=env:X",
		"local:d?domain-key=env:X", "local:/d#f?domain-key=env:X", "local://u:hunter22@/d?domain-key=env:X", "awskms:///d?domain-key=env:X",
		"local:///d?domain-key=env:", "local:///d?domain-key=file:", "local:///d?domain-key=file:relative", "local:///d?domain-key=hunter22hunter22",
		"local:///d?domain-key=env:X&domain-key=env:Y", "local:///d?domain-key=env:X&Key=a", "local:///d?domain-key=env:X&key=",
		"local:///d?domain-key=env:X;key=a", "local:///d?domain-key=%zz", "local:///%zzhunter22",
	} {
		_, err := local.Open(t.Context(), uri, authority.Options{})
		if err := authoritytest.CheckError(err, authority.ErrInvalid, []byte("hunter22")); err != nil {
			t.Errorf("Open(%q): %v", uri, err)
		}
	}
}
