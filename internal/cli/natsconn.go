package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/config"
)

// natsFlags are the connection flags of the nats CLI, with its environment
// variables as defaults.
type natsFlags struct {
	server, creds, nkey, context string
	user                         string
	cert, key, ca                string
	tlsFirst                     bool
	inboxPrefix                  string
	timeout                      time.Duration
}

func (f *natsFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVarP(&f.server, "server", "s", "", "NATS servers, separated by commas (NATS_URL; default nats://127.0.0.1:4222)")
	fs.StringVar(&f.creds, "creds", "", "credentials file (NATS_CREDS)")
	fs.StringVar(&f.nkey, "nkey", "", "seed file of a NATS user (NATS_NKEY)")
	fs.StringVar(&f.context, "context", "", "context of the nats CLI, by name or path (NATS_CONTEXT)")
	fs.StringVar(&f.user, "user", "", "user name or token (NATS_USER); the password comes from NATS_PASSWORD")
	fs.StringVar(&f.cert, "tlscert", "", "TLS client certificate (NATS_CERT)")
	fs.StringVar(&f.key, "tlskey", "", "TLS private key (NATS_KEY)")
	fs.StringVar(&f.ca, "tlsca", "", "TLS certificate authorities (NATS_CA)")
	fs.BoolVar(&f.tlsFirst, "tlsfirst", false, "TLS handshake before the server's greeting")
	fs.StringVar(&f.inboxPrefix, "inbox-prefix", "", "prefix of reply subjects instead of _INBOX")
	fs.DurationVar(&f.timeout, "timeout", 5*time.Second, "time to wait for a server's answer")
}

// endpoint is a server and what to say to it, wherever that was configured.
type endpoint struct {
	url  string
	opts []nats.Option
}

// resolve reads flags, environment and context. A flag beats the environment,
// both beat the context.
func (f *natsFlags) resolve() (endpoint, error) {
	var c config.Context
	if name := cmp.Or(f.context, os.Getenv("NATS_CONTEXT")); name != "" {
		ctx, err := config.LoadContext(name)
		if err != nil {
			return endpoint{}, err
		}
		c = *ctx
	}
	url := cmp.Or(f.server, os.Getenv("NATS_URL"), c.URL, nats.DefaultURL)
	s := settings{
		creds: fileRef(cmp.Or(f.creds, os.Getenv("NATS_CREDS"), c.Creds)),
		nkey:  fileRef(cmp.Or(f.nkey, os.Getenv("NATS_NKEY"), c.NKey)),
		user:  cmp.Or(f.user, os.Getenv("NATS_USER"), c.User),
		ca:    cmp.Or(f.ca, os.Getenv("NATS_CA"), c.CA),
		cert:  cmp.Or(f.cert, os.Getenv("NATS_CERT"), c.Cert), key: cmp.Or(f.key, os.Getenv("NATS_KEY"), c.Key),
		tlsFirst: f.tlsFirst || c.TLSFirst, inboxPrefix: cmp.Or(f.inboxPrefix, c.InboxPrefix),
		password: cmp.Or(os.Getenv("NATS_PASSWORD"), c.Password), token: c.Token,
		jwt: c.UserJWT, seed: c.UserSeed,
	}
	opts, err := s.options()
	return endpoint{url, opts}, err
}

func fileRef(path string) config.SecretRef {
	if path == "" {
		return config.SecretRef{}
	}
	return config.FileRef(path)
}

// configEndpoint makes an endpoint of a connection of the configuration file.
func configEndpoint(n config.Connection) (endpoint, error) {
	if n.Context != "" {
		return (&natsFlags{context: n.Context}).resolveOnlyContext()
	}
	s := settings{
		creds: n.Creds, nkey: n.NKey, user: n.User, ca: n.TLS.CA, cert: n.TLS.Cert, key: n.TLS.Key,
		tlsFirst: n.TLS.First, inboxPrefix: n.InboxPrefix,
	}
	for _, r := range []struct {
		ref config.SecretRef
		to  *string
	}{{n.Password, &s.password}, {n.Token, &s.token}} {
		if r.ref.IsZero() {
			continue
		}
		b, err := r.ref.Read()
		if err != nil {
			return endpoint{}, err
		}
		*r.to = strings.TrimSpace(string(b))
	}
	opts, err := s.options()
	return endpoint{n.URL, opts}, err
}

// resolveOnlyContext ignores the environment: a service does what its file says.
func (f *natsFlags) resolveOnlyContext() (endpoint, error) {
	c, err := config.LoadContext(f.context)
	if err != nil {
		return endpoint{}, err
	}
	s := settings{
		creds: fileRef(c.Creds), nkey: fileRef(c.NKey), user: c.User, password: c.Password, token: c.Token,
		jwt: c.UserJWT, seed: c.UserSeed, ca: c.CA, cert: c.Cert, key: c.Key, tlsFirst: c.TLSFirst, inboxPrefix: c.InboxPrefix,
	}
	opts, err := s.options()
	return endpoint{c.URL, opts}, err
}

// settings are the parts of a connection that become nats.Options.
type settings struct {
	creds, nkey           config.SecretRef
	user, password, token string
	jwt, seed             string
	ca, cert, key         string
	tlsFirst              bool
	inboxPrefix           string
}

func (s *settings) options() ([]nats.Option, error) {
	var opts []nats.Option
	switch {
	case !s.creds.IsZero():
		if path, ok := s.creds.Path(); ok {
			if _, err := os.Stat(path); err != nil {
				return nil, fmt.Errorf("reading credentials: %w", err)
			}
			opts = append(opts, nats.UserCredentials(path))
			break
		}
		b, err := s.creds.Read()
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.UserCredentialBytes(b))
	case !s.nkey.IsZero():
		b, err := s.nkey.Read()
		if err != nil {
			return nil, err
		}
		opt, err := nkeyOption(b)
		if err != nil {
			return nil, fmt.Errorf("reading nkey %v: %w", s.nkey, err)
		}
		opts = append(opts, opt)
	case s.jwt != "" && s.seed != "":
		opts = append(opts, nats.UserJWTAndSeed(s.jwt, s.seed))
	case s.user != "" && s.password == "":
		opts = append(opts, nats.Token(s.user)) // as the nats CLI does
	case s.user != "":
		opts = append(opts, nats.UserInfo(s.user, s.password))
	case s.token != "":
		opts = append(opts, nats.Token(s.token))
	}
	if s.ca != "" {
		opts = append(opts, nats.RootCAs(s.ca))
	}
	if s.cert != "" || s.key != "" {
		opts = append(opts, nats.ClientCert(s.cert, s.key))
	}
	if s.tlsFirst {
		opts = append(opts, nats.TLSHandshakeFirst())
	}
	if s.inboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(s.inboxPrefix))
	}
	return opts, nil
}

func nkeyOption(seed []byte) (nats.Option, error) {
	defer clear(seed)
	kp, err := nkeys.ParseDecoratedNKey(seed)
	if err != nil {
		if kp, err = nkeys.FromSeed([]byte(strings.TrimSpace(string(seed)))); err != nil {
			return nil, errors.New("no seed in it")
		}
	}
	public, err := kp.PublicKey()
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		return nil, errors.New("not the seed of a user")
	}
	return nats.Nkey(public, kp.Sign), nil
}

// dial connects for one command and gives up when no server answers.
func (f *natsFlags) dial(ctx context.Context, what string) (*nats.Conn, error) {
	e, err := f.resolve()
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(e.url, append(e.opts,
		nats.Name("keyweir "+what), nats.Timeout(f.timeout), nats.MaxReconnects(-1), nats.ReconnectWait(250*time.Millisecond))...)
	if err != nil {
		return nil, connectError(e.url, err)
	}
	return nc, ctx.Err()
}

// connectError says where no connection could be had, and what may help.
func connectError(url string, err error) error {
	wrapped := fmt.Errorf("connecting to %s: %w", redactURL(url), err)
	switch {
	case errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrTimeout):
		return withHint(wrapped, "is a NATS server listening there? name another one with --server or NATS_URL, or start \"keyweir dev\"")
	case errors.Is(err, nats.ErrAuthorization):
		return withHint(wrapped, "give credentials with --creds, --nkey or --context")
	}
	return wrapped
}

// redactURL takes user and password out of server URLs.
func redactURL(s string) string {
	parts := strings.Split(s, ",")
	for i, p := range parts {
		scheme, rest, ok := strings.Cut(p, "://")
		if !ok {
			scheme, rest = "", p
		}
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			rest = rest[at+1:]
		}
		if ok {
			rest = scheme + "://" + rest
		}
		parts[i] = rest
	}
	return strings.Join(parts, ",")
}

// dialService connects for a service: it waits for servers as long as it takes,
// now and after every loss.
func dialService(n config.Connection, name, what string, log *slog.Logger) (*nats.Conn, error) {
	e, err := configEndpoint(n)
	if err != nil {
		return nil, fmt.Errorf("connection %q: %w", name, err)
	}
	log = log.With("nats", name)
	nc, err := nats.Connect(e.url, append(e.opts,
		nats.Name("keyweir "+what), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(250*time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.ReconnectBufSize(-1), // nothing is sent later than its sender believes
		nats.PingInterval(10*time.Second), nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(c *nats.Conn) { log.Info("connected", "server", c.ConnectedUrlRedacted()) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { log.Warn("disconnected", "error", err) }),
		nats.ReconnectHandler(func(c *nats.Conn) { log.Info("reconnected", "server", c.ConnectedUrlRedacted()) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			if s != nil {
				log.Warn("NATS error", "subject", s.Subject, "error", err)
				return
			}
			log.Warn("NATS error", "error", err)
		}))...)
	if err != nil {
		return nil, fmt.Errorf("connection %q: %w", name, connectError(e.url, err))
	}
	return nc, nil
}
