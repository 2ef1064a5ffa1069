package transit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Scheme is the URI scheme of this provider.
const Scheme = "transit"

// Open opens an authority by URI; it is an authority.Opener.
//
//	transit://HOST[:PORT]/MOUNT/KEY?PARAMETERS
//
// The last element of the path is the key, what stands before it the mount of the
// engine. The server is asked over TLS. Secrets are references, file:/absolute/path
// or env:NAME, and are read at every login; the files of token and secret-id must
// be readable by their owner only. One way to a token is required:
//
//	token=REF                      a token; it is renewed if it can be
//	role-id=REF [secret-id=REF]    AppRole
//	kubernetes-role=ROLE [jwt=REF] Kubernetes; by default the pod's own token
//
// Optional parameters:
//
//	login=MOUNT                    of the auth method; default approle or kubernetes
//	namespace=PATH                 of OpenBao or Vault Enterprise
//	ca=/PATH                       PEM file of certificate authorities to accept
//	                               instead of the system's
//	cert=/PATH key=/PATH           client certificate, read at every handshake
//	server-name=NAME               expected in the certificate instead of HOST
//	tls=off                        plain http, on loopback only (a local agent)
//
// A malformed URI is authority.ErrInvalid; errors never show it.
func Open(ctx context.Context, uri string, o authority.Options) (authority.Authority, error) {
	c, err := parseURI(uri, true)
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

// CheckURI reports what is wrong with a URI without reading any file. Errors are
// authority.ErrInvalid and never show it.
func CheckURI(uri string) error {
	c, err := parseURI(uri, false)
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return invalid("reading the uri", "%v", err)
	}
	return nil
}

// parseURI reads a URI and, if files is set, the certificates it names.
func parseURI(uri string, files bool) (Config, error) {
	const op = "reading the uri"
	u, err := url.Parse(uri)
	if err != nil { // the text repeats the URI, which may hold what it should not
		return Config{}, invalid(op, "malformed")
	}
	mount, key, ok := cutLast(strings.TrimPrefix(u.Path, "/"))
	switch {
	case u.Scheme != Scheme:
		return Config{}, invalid(op, "scheme is not transit")
	case u.User != nil:
		return Config{}, invalid(op, "credentials do not belong in a uri")
	case u.Host == "" || u.Opaque != "" || !ok:
		return Config{}, invalid(op, "want transit://HOST[:PORT]/MOUNT/KEY")
	case u.Fragment != "":
		return Config{}, invalid(op, "unexpected fragment")
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, invalid(op, "malformed parameters")
	}
	c := Config{Address: "https://" + u.Host, Mount: mount, Key: key}
	p := map[string]string{}
	for name, values := range params {
		if len(values) != 1 || values[0] == "" {
			return Config{}, invalid(op, "a parameter that is repeated or empty")
		}
		switch name {
		case "token", "role-id", "secret-id", "kubernetes-role", "jwt", "login", "namespace", "ca", "cert", "key", "server-name", "tls":
			p[name] = values[0]
		default:
			return Config{}, invalid(op, "unknown parameter %.40q", name)
		}
	}
	switch p["tls"] {
	case "":
	case "off":
		c.Address = "http://" + u.Host
		for _, name := range []string{"ca", "cert", "key", "server-name"} {
			if p[name] != "" {
				return Config{}, invalid(op, "parameter %q with tls=off", name)
			}
		}
	default:
		return Config{}, invalid(op, "parameter \"tls\" is not off")
	}
	c.Namespace = p["namespace"]
	if err := c.ways(p); err != nil {
		return Config{}, err
	}
	if c.TLS, err = tlsConfig(p, files); err != nil {
		return Config{}, err
	}
	return c, nil
}

// ways reads the parameters that lead to a token.
func (c *Config) ways(p map[string]string) error {
	const op = "reading the uri"
	source := func(name string, private bool) (Source, error) {
		if p[name] == "" {
			return nil, nil
		}
		s, err := parseSource(p[name], private)
		if err != nil {
			return nil, invalid(op, "parameter %q is %v", name, err)
		}
		return s, nil
	}
	var role, secret, jwt Source
	var err error
	if c.Token, err = source("token", true); err != nil {
		return err
	}
	if role, err = source("role-id", false); err != nil {
		return err
	}
	if secret, err = source("secret-id", true); err != nil {
		return err
	}
	if jwt, err = source("jwt", false); err != nil {
		return err
	}
	switch {
	case secret != nil && role == nil:
		return invalid(op, "parameter \"secret-id\" without \"role-id\"")
	case jwt != nil && p["kubernetes-role"] == "":
		return invalid(op, "parameter \"jwt\" without \"kubernetes-role\"")
	case p["login"] != "" && role == nil && p["kubernetes-role"] == "":
		return invalid(op, "parameter \"login\" without a login")
	}
	if role != nil {
		c.AppRole = &AppRole{RoleID: role, SecretID: secret, Mount: p["login"]}
	}
	if p["kubernetes-role"] != "" {
		c.Kubernetes = &Kubernetes{Role: p["kubernetes-role"], JWT: jwt, Mount: p["login"]}
	}
	return nil
}

func tlsConfig(p map[string]string, files bool) (*tls.Config, error) {
	const op = "reading the uri"
	for _, name := range []string{"ca", "cert", "key"} {
		if p[name] != "" && !filepath.IsAbs(p[name]) {
			return nil, invalid(op, "parameter %q is not an absolute path", name)
		}
	}
	if (p["cert"] == "") != (p["key"] == "") {
		return nil, invalid(op, "parameters \"cert\" and \"key\" go together")
	}
	c := &tls.Config{ServerName: p["server-name"], MinVersion: tls.VersionTLS12}
	if !files {
		return c, nil
	}
	if p["ca"] != "" {
		pem, err := os.ReadFile(p["ca"])
		if err != nil {
			return nil, invalid(op, "reading ca: %v", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalid(op, "no certificate in %s", p["ca"])
		}
	}
	if p["cert"] != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(p["cert"], p["key"])
			return &cert, err
		}
		if _, err := load(); err != nil { // the text names files and what is wrong with them, never key bytes
			return nil, invalid(op, "reading the client certificate: %v", err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}

// cutLast splits MOUNT/KEY at the last slash.
func cutLast(path string) (mount, key string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 1 || i == len(path)-1 {
		return "", "", false
	}
	return path[:i], path[i+1:], true
}
