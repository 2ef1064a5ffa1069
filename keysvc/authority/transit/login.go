package transit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// Source returns a secret. It is called at every login, so a file that was
// replaced counts from then on. Its error must not repeat the secret.
type Source func() (string, error)

// defaultJWT is where Kubernetes mounts the token of the service account.
const defaultJWT = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// maxSecret bounds the file of a secret.
const maxSecret = 16 << 10

// parseSource reads "file:/absolute/path" or "env:NAME". A private file may be
// read by its owner only. The text may be a secret pasted by mistake: no error
// shows it.
func parseSource(text string, private bool) (Source, error) {
	kind, what, _ := strings.Cut(text, ":")
	switch {
	case kind == "file" && filepath.IsAbs(what):
		return func() (string, error) { return readSecret(what, private) }, nil
	case kind == "env" && what != "":
		return func() (string, error) {
			s := strings.TrimSpace(os.Getenv(what))
			if s == "" {
				return "", fmt.Errorf("environment variable %q is not set", what)
			}
			return s, nil
		}, nil
	}
	return nil, errors.New("neither file:/absolute/path nor env:NAME")
}

func readSecret(path string, private bool) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	if mode := fi.Mode().Perm(); private && runtime.GOOS != "windows" && mode&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %04o, others may read it: chmod 600 it", path, mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	defer clear(b)
	if err != nil {
		return "", err
	}
	if len(b) > maxSecret {
		return "", fmt.Errorf("%s has more than %d bytes", path, maxSecret)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return s, nil
}

// secretOf reads a source for a login. That it cannot be read is no decision of
// the authority: a file that is being replaced is back in a moment.
func secretOf(s Source, what string) (string, *fault) {
	text, err := s()
	if err != nil {
		return "", &fault{sentinel: authority.ErrUnavailable, detail: fmt.Sprintf("reading %s: %v", what, err)}
	}
	return text, nil
}

// fixedToken is a token from outside.
type fixedToken struct{ source Source }

func (fixedToken) fixed() bool { return true }

// obtain reads the token and asks for its life. A token whose policies do not let
// it look itself up is used as it is.
func (m fixedToken) obtain(ctx context.Context, c *client, last lease) (lease, *fault) {
	text, f := secretOf(m.source, "token")
	if f != nil {
		return lease{}, f
	}
	if !validToken(text) {
		return lease{}, &fault{sentinel: authority.ErrUnavailable, detail: "reading token: not a token"}
	}
	l := lease{token: text}
	ans, f := c.attempts(ctx, func() (answer, *fault) {
		return c.try(ctx, http.MethodGet, "auth/token/lookup-self", text, nil)
	})
	if f != nil && errors.Is(f.sentinel, authority.ErrDenied) {
		switch {
		case text != last.token:
			return l, nil // the call that wants it tells more
		case !last.expires.IsZero() && time.Until(last.expires) < clockSlack:
			// Nobody decided anything: whoever brings the next token is late.
			return lease{}, &fault{sentinel: authority.ErrUnavailable, detail: "the token has expired"}
		default:
			return lease{}, &fault{sentinel: authority.ErrDenied, status: f.status, detail: "the token is not accepted any more"}
		}
	}
	if f == nil {
		ans, f = ans.object("data")
	}
	if f != nil {
		return lease{}, f
	}
	defer clear(ans["id"])
	var seconds int64
	if strictjson.Unmarshal(ans["ttl"], &seconds) != nil || seconds < 0 || seconds > 1<<32 {
		return lease{}, garbage("no usable description of the token")
	}
	if raw, ok := ans["renewable"]; ok && strictjson.Unmarshal(raw, &l.renewable) != nil {
		return lease{}, garbage("no usable description of the token")
	}
	if _, ends := ans["expire_time"]; ends && seconds == 0 {
		seconds = 1 // less than a second is left
	}
	l.live(time.Duration(seconds) * time.Second)
	return l, nil
}

// clockSlack is how far the end of a token, as this side knows it, can lie behind
// its true end: lives are given in whole seconds, and an answer takes its time.
const clockSlack = 2 * time.Second

// login logs in at an auth method.
type login struct {
	path   string // auth/MOUNT/login
	fields map[string]field
}

// field is one member of a login request: a text or a secret.
type field struct {
	text   string
	source Source
}

func (*login) fixed() bool { return false }

func (m *login) obtain(ctx context.Context, c *client, _ lease) (lease, *fault) {
	body := map[string]string{}
	for name, fd := range m.fields {
		body[name] = fd.text
		if fd.source != nil {
			text, f := secretOf(fd.source, name)
			if f != nil {
				return lease{}, f
			}
			body[name] = text
		}
	}
	b, err := json.Marshal(body)
	if err != nil {
		return lease{}, &fault{sentinel: authority.ErrUnavailable, detail: "login: malformed request"}
	}
	defer clear(b)
	ans, f := c.attempts(ctx, func() (answer, *fault) { return c.try(ctx, http.MethodPost, m.path, "", b) })
	if f != nil {
		f.unclear = false
		// Bad credentials are 400 or 403, a missing auth method is 404.
		if f.status >= 400 && f.status < 500 && !authority.IsOutage(f.sentinel) {
			f.sentinel = authority.ErrDenied
		}
		f.detail = "login: " + f.detail
		return lease{}, f
	}
	return leaseOf(ans)
}
