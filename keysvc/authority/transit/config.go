package transit

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// Config describes one authority. It prints and marshals redacted.
type Config struct {
	// Address is https://HOST[:PORT] of the server. Plain http is accepted for
	// loopback addresses only. Required.
	Address string
	// Mount is the path of the transit engine; "" means "transit".
	Mount string
	// Key is the name of the key of "". Required.
	Key string
	// Namespace of the engine and the auth method; "" means the root.
	Namespace string
	// Token, AppRole and Kubernetes are the ways to a token. Exactly one is set.
	Token      Source
	AppRole    *AppRole
	Kubernetes *Kubernetes
	// TLS is the client's configuration; nil means the system's certificate
	// authorities. TLS 1.2 is the minimum whatever it says.
	TLS *tls.Config
	// Limits bound calls; zero fields mean the defaults.
	Limits Limits
	// Logger gets failed calls (debug), refused answers and renewals that failed
	// (warning); nil discards.
	Logger *slog.Logger
}

// AppRole logs in by a role ID and a secret ID.
type AppRole struct {
	RoleID   Source // required
	SecretID Source // nil: the role needs none
	Mount    string // of the auth method; "" means "approle"
}

// Kubernetes logs in by the token of a service account.
type Kubernetes struct {
	Role  string // required
	JWT   Source // nil: the file that Kubernetes mounts into every pod
	Mount string // of the auth method; "" means "kubernetes"
}

// Limits bound what one call may cost.
type Limits struct {
	AttemptTimeout time.Duration // one HTTP exchange; 0: 5 s
	CallTimeout    time.Duration // one call, attempts, logins and pauses together; 0: 20 s
	MaxAttempts    int           // attempts of one request, the first included; 0: 4
	MaxBackoff     time.Duration // longest pause between two attempts; 0: 2 s
	LoginPause     time.Duration // between logins that did not help; 0: 10 s
}

func (l Limits) withDefaults() (Limits, error) {
	if l.AttemptTimeout < 0 || l.CallTimeout < 0 || l.MaxAttempts < 0 || l.MaxBackoff < 0 || l.LoginPause < 0 {
		return l, errors.New("negative limit")
	}
	for d, def := range map[*time.Duration]time.Duration{
		&l.AttemptTimeout: 5 * time.Second, &l.CallTimeout: 20 * time.Second,
		&l.MaxBackoff: 2 * time.Second, &l.LoginPause: 10 * time.Second,
	} {
		if *d == 0 {
			*d = def
		}
	}
	if l.MaxAttempts == 0 {
		l.MaxAttempts = 4
	}
	return l, nil
}

var mountPattern = regexp.MustCompile(`^[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?(?:/[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)*$`)

// New makes an authority from c. It does not ask the server. A wrong
// configuration is authority.ErrInvalid.
func New(_ context.Context, c Config) (*Authority, error) {
	const op = "opening"
	limits, err := c.Limits.withDefaults()
	if err != nil {
		return nil, invalid(op, "%v", err)
	}
	if c.Mount == "" {
		c.Mount = "transit"
	}
	if err := c.check(); err != nil {
		return nil, invalid(op, "%v", err)
	}
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.MaxResponseHeaderBytes = 64 << 10
	tr.MaxIdleConnsPerHost = 16
	tr.TLSClientConfig = &tls.Config{}
	if c.TLS != nil {
		tr.TLSClientConfig = c.TLS.Clone()
	}
	tr.TLSClientConfig.MinVersion = max(tr.TLSClientConfig.MinVersion, tls.VersionTLS12)
	a := &Authority{
		client: newClient(c, tr, limits), limits: limits, mount: c.Mount, home: c.Key,
		log: log, keys: map[string]*entry{},
	}
	a.session = newSession(a.client, c.method(), limits.LoginPause, log)
	a.life, a.close = context.WithCancel(context.Background())
	go a.session.keep(a.life)
	return a, nil
}

func (c Config) check() error {
	if err := checkAddress(c.Address); err != nil {
		return err
	}
	if err := checkName(c.Key); err != nil {
		return err
	}
	ways := 0
	for _, set := range []bool{c.Token != nil, c.AppRole != nil, c.Kubernetes != nil} {
		if set {
			ways++
		}
	}
	switch {
	case ways != 1:
		return fmt.Errorf("%d ways to a token, want one of token, approle and kubernetes", ways)
	case !mountPattern.MatchString(c.Mount):
		return errors.New("malformed mount")
	case c.Namespace != "" && !mountPattern.MatchString(strings.TrimSuffix(c.Namespace, "/")):
		return errors.New("malformed namespace")
	case c.AppRole != nil && (c.AppRole.RoleID == nil || c.AppRole.Mount != "" && !mountPattern.MatchString(c.AppRole.Mount)):
		return errors.New("approle without role id, or with a malformed mount")
	case c.Kubernetes != nil && (c.Kubernetes.Role == "" || c.Kubernetes.Mount != "" && !mountPattern.MatchString(c.Kubernetes.Mount)):
		return errors.New("kubernetes without role, or with a malformed mount")
	}
	return nil
}

func (c Config) method() method {
	at := func(mount, def string) string {
		if mount == "" {
			mount = def
		}
		return "auth/" + mount + "/login"
	}
	switch {
	case c.AppRole != nil:
		m := &login{path: at(c.AppRole.Mount, "approle"), fields: map[string]field{"role_id": {source: c.AppRole.RoleID}}}
		if c.AppRole.SecretID != nil {
			m.fields["secret_id"] = field{source: c.AppRole.SecretID}
		}
		return m
	case c.Kubernetes != nil:
		jwt := c.Kubernetes.JWT
		if jwt == nil {
			jwt = func() (string, error) { return readSecret(defaultJWT, false) }
		}
		return &login{path: at(c.Kubernetes.Mount, "kubernetes"), fields: map[string]field{
			"role": {text: c.Kubernetes.Role}, "jwt": {source: jwt},
		}}
	}
	return fixedToken{c.Token}
}

// String shows everything but the ways to a token.
func (c Config) String() string {
	return fmt.Sprintf("transit.Config{Address:%q Mount:%q Key:%q Namespace:%q}", c.Address, c.Mount, c.Key, c.Namespace)
}

// Format prints what String returns under every verb.
func (c Config) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// LogValue logs what String returns.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON marshals what String returns.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }
