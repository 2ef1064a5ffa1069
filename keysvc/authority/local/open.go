package local

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Scheme is the URI scheme of this provider.
const Scheme = "local"

var _ authority.Opener = Open

// Open opens the key store a URI names; see the package comment for the
// grammar. Errors never show the URI.
func Open(ctx context.Context, uri string, o authority.Options) (authority.Authority, error) {
	dir, source, def, err := parseURI(uri)
	if err != nil {
		return nil, fmt.Errorf("reading local: URI: %w", err)
	}
	key, err := loadDomainKey(source)
	if err != nil {
		return nil, fmt.Errorf("loading domain key: %w", err)
	}
	defer clear(key)
	a, err := New(ctx, Config{DomainKey: key, Dir: dir, DefaultKey: def, Logger: o.Logger})
	if err != nil {
		return nil, err // not a typed nil
	}
	return a, nil
}

// CheckURI reports what is wrong with a URI without reading the key or the store;
// errors are authority.ErrInvalid and never show it.
func CheckURI(uri string) error {
	if _, _, _, err := parseURI(uri); err != nil {
		return fmt.Errorf("reading local: URI: %w", err)
	}
	return nil
}

func parseURI(uri string) (dir, source, def string, err error) {
	bad := func(what string) (string, string, string, error) {
		return "", "", "", fmt.Errorf("%w: %s, want local:///absolute/dir?domain-key=file:/absolute/path or domain-key=env:NAME, optionally &key=ALIAS",
			authority.ErrInvalid, what)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return bad("malformed")
	}
	if u.Scheme != Scheme || u.Opaque != "" || u.Host != "" || u.User != nil || u.Fragment != "" {
		return bad("not of the form local:///dir")
	}
	dir = filepath.Clean(filepath.FromSlash(u.Path))
	if u.Path == "" || !strings.HasPrefix(u.Path, "/") || dir == string(filepath.Separator) {
		return bad("no directory")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("malformed parameters")
	}
	for name, values := range q {
		if name != "domain-key" && name != "key" {
			return bad(fmt.Sprintf("unknown parameter %.40q", name))
		}
		if len(values) != 1 || values[0] == "" {
			return bad(fmt.Sprintf("parameter %q empty or given twice", name))
		}
	}
	if source = q.Get("domain-key"); source == "" {
		return bad("parameter \"domain-key\" missing")
	}
	return dir, source, q.Get("key"), nil
}

// loadDomainKey reads file:/path or env:NAME. The caller clears the result.
func loadDomainKey(source string) ([]byte, error) {
	kind, what, _ := strings.Cut(source, ":")
	switch {
	case kind == "file" && filepath.IsAbs(what):
		return readDomainKey(what)
	case kind == "env" && what != "":
		text := os.Getenv(what)
		if text == "" {
			return nil, fmt.Errorf("%w: environment variable %q is not set: set it to the base64 text of the store's 32-byte domain key", authority.ErrInvalid, what)
		}
		return decodeDomainKey([]byte(text))
	}
	// The source may be a key pasted by mistake: it is not shown.
	return nil, fmt.Errorf("%w: parameter \"domain-key\" is neither file:/absolute/path nor env:NAME", authority.ErrInvalid)
}

// maxKeyFile is far above any text of a key.
const maxKeyFile = 1024

func readDomainKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: file %s does not exist: restore the domain key this store was made with, or, for a new store, "+
			"make one and keep a copy (head -c 32 /dev/urandom | base64, mode 0600)", authority.ErrInvalid, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", authority.ErrInvalid, err)
	}
	defer func() { _ = f.Close() }() // only read
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %v", authority.ErrInvalid, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", authority.ErrInvalid, path)
	}
	if mode := fi.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, others may read it: chmod 600 it", authority.ErrInvalid, path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	defer clear(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", authority.ErrInvalid, err)
	}
	return decodeDomainKey(text)
}

// decodeDomainKey reads hexadecimal, or base64 of either alphabet with or
// without padding; space around it is ignored.
func decodeDomainKey(text []byte) ([]byte, error) {
	s := strings.TrimSpace(string(text))
	var key []byte
	var err error
	if len(s) == hex.EncodedLen(domainKeySize) {
		key, err = hex.DecodeString(s)
	} else {
		s = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimSuffix(s, "="))
		key, err = base64.RawStdEncoding.Strict().DecodeString(s)
	}
	if err != nil || len(key) != domainKeySize {
		clear(key)
		return nil, fmt.Errorf("%w: the text is not %d bytes in base64 or hexadecimal", authority.ErrInvalid, domainKeySize)
	}
	return key, nil
}

// CreateDomainKey makes a domain key and writes it, as base64, to a new file of
// mode 0600, durably. It never replaces a file. Losing the file loses every key
// sealed under it.
func CreateDomainKey(path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("creating domain key: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(path)
			err = fmt.Errorf("creating domain key: %w", err)
		}
	}()
	key := make([]byte, domainKeySize)
	defer clear(key)
	_, _ = rand.Read(key) // never fails
	text := append(base64.StdEncoding.AppendEncode(nil, key), '\n')
	defer clear(text)
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a new name in dir durable. Windows cannot sync a directory.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
