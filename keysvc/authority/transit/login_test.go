package transit_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/transit"
	"github.com/keyweir/keyweir/keysvc/authority/transit/transittest"
)

// until polls a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func roundTrip(t testing.TB, a authority.Authority) {
	t.Helper()
	key, w, err := a.GenerateDataKey(t.Context(), "", testContext)
	if err != nil {
		t.Fatalf("GenerateDataKey = %v", err)
	}
	if got, err := a.Unwrap(t.Context(), w, testContext); err != nil || !bytes.Equal(got, key) {
		t.Fatalf("Unwrap = %v", err)
	}
}

func file(t testing.TB, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOpen opens by URI with every way to a token, over TLS, in a namespace.
func TestOpen(t *testing.T) {
	s := transittest.NewTLS(t)
	s.AddKey("orders", "aes256-gcm96", true)
	s.Namespace("team/eu")
	s.AddRole("role-id-1", "secret-id-1", time.Hour, 0)
	s.AddAccount("keyweir", "jwt-of-the-pod", time.Hour)
	t.Setenv("TRANSIT_TEST_ROLE", "role-id-1")
	ca := file(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.HTTP.Certificate().Raw})), 0o644)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, params := range map[string]string{
		"token":      "token=file:" + file(t, "token", s.Root+"\n", 0o600),
		"approle":    "role-id=env:TRANSIT_TEST_ROLE&secret-id=file:" + file(t, "secret", "secret-id-1\n", 0o600),
		"kubernetes": "kubernetes-role=keyweir&jwt=file:" + file(t, "jwt", "jwt-of-the-pod", 0o644),
	} {
		uri := "transit://" + u.Host + "/transit/orders?namespace=team/eu&ca=" + ca + "&" + params
		if err := transit.CheckURI(uri); err != nil {
			t.Errorf("%s: CheckURI = %v", name, err)
		}
		a, err := transit.Open(t.Context(), uri, authority.Options{})
		if err != nil {
			t.Fatalf("%s: Open = %v", name, err)
		}
		roundTrip(t, a)
		if err := a.Close(); err != nil {
			t.Errorf("%s: Close = %v", name, err)
		}
		// Without its certificate authority the server is nobody.
		a, err = transit.Open(t.Context(), strings.Replace(uri, "&ca="+ca, "", 1), authority.Options{})
		if err != nil {
			t.Fatalf("%s: Open = %v", name, err)
		}
		_, err = a.Wrap(t.Context(), "", secret, testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret, []byte(s.Root)); cerr != nil {
			t.Errorf("%s: an unknown certificate: %v", name, cerr)
		}
		a.Close()
	}
}

func TestURIs(t *testing.T) {
	t.Parallel()
	const token = "&token=file:/run/token"
	for _, uri := range []string{
		"transit://h/transit/k?token=env:T",
		"transit://h:8200/team/eu/transit/k?token=file:/run/token&namespace=a/b/&server-name=x",
		"transit://h/transit/k?role-id=env:R&login=approle-eu",
		"transit://h/transit/k?kubernetes-role=r&cert=/c&key=/k&ca=/a",
		"transit://127.0.0.1:8100/transit/k?tls=off" + token,
	} {
		if err := transit.CheckURI(uri); err != nil {
			t.Errorf("CheckURI(%s) = %v", uri, err)
		}
	}
	for what, uri := range map[string]string{
		"another scheme":          "vault://h/transit/k?x" + token,
		"no host":                 "transit:///transit/k?token=env:T",
		"no mount":                "transit://h/k?token=env:T",
		"no key":                  "transit://h/transit/?token=env:T",
		"a dot-dot mount":         "transit://h/a/../b/k?token=env:T",
		"an escaped slash":        "transit://h/transit/k%2Fx/..?token=env:T",
		"credentials":             "transit://u:topsecretpassword@h/transit/k?token=env:T",
		"a fragment":              "transit://h/transit/k?token=env:T#topsecretpassword",
		"a pasted token":          "transit://h/transit/k?token=hvs.topsecretpassword",
		"no way to a token":       "transit://h/transit/k",
		"two ways":                "transit://h/transit/k?role-id=env:R" + token,
		"a secret id alone":       "transit://h/transit/k?secret-id=env:S",
		"a jwt alone":             "transit://h/transit/k?jwt=file:/x" + token,
		"a login without one":     "transit://h/transit/k?login=x" + token,
		"a bad login mount":       "transit://h/transit/k?role-id=env:R&login=../x",
		"a relative path":         "transit://h/transit/k?token=file:run/token",
		"an unknown parameter":    "transit://h/transit/k?tokne=x" + token,
		"a repeated parameter":    "transit://h/transit/k?token=env:T&token=env:T",
		"an empty parameter":      "transit://h/transit/k?namespace=" + token,
		"a relative ca":           "transit://h/transit/k?ca=x" + token,
		"a certificate alone":     "transit://h/transit/k?cert=/x" + token,
		"no tls over the network": "transit://vault.example/transit/k?tls=off" + token,
		"tls=on":                  "transit://h/transit/k?tls=on" + token,
		"tls=off with a ca":       "transit://127.0.0.1/transit/k?tls=off&ca=/x" + token,
	} {
		err := transit.CheckURI(uri)
		if cerr := authoritytest.CheckError(err, authority.ErrInvalid, []byte("topsecretpassword")); cerr != nil {
			t.Errorf("%s: %v", what, cerr)
		}
		if a, err := transit.Open(t.Context(), uri, authority.Options{}); err == nil {
			a.Close()
			t.Errorf("%s: Open succeeded", what)
		}
	}
}

// TestFilesOfSecrets: what cannot be read is an outage, and readable to all is refused.
func TestFilesOfSecrets(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	for what, path := range map[string]string{
		"no file":         "/nonexistent/token",
		"a public file":   file(t, "token", s.Root, 0o644),
		"an empty file":   file(t, "token", "\n", 0o600),
		"a long file":     file(t, "token", strings.Repeat("x", 1<<20), 0o600),
		"two lines":       file(t, "token", s.Root+"\n"+s.Root, 0o600),
		"not even a file": t.TempDir(),
	} {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		a, err := transit.Open(t.Context(), fmt.Sprintf("transit://%s/transit/orders?tls=off&token=file:%s", u.Host, path), authority.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Wrap(t.Context(), "", secret, testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret, []byte(s.Root)); cerr != nil {
			t.Errorf("%s: %v", what, cerr)
		}
		a.Close()
	}
}

func approle(s *transittest.Server) transit.Config {
	c := configOf(s)
	c.Token, c.AppRole = nil, &transit.AppRole{RoleID: fixed("role-id-1"), SecretID: fixed("secret-id-1")}
	return c
}

// TestRevokedTokenLogsInAgain: one refusal, one login, and the call succeeds.
func TestRevokedTokenLogsInAgain(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	s.AddRole("role-id-1", "secret-id-1", time.Hour, 0)
	a := open(t, approle(s))
	roundTrip(t, a)
	s.RevokeAll()
	roundTrip(t, a)
	if n := s.Calls("login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

// TestRefusals: a policy that denies, a token that is not accepted, credentials
// that are not accepted, each without a flood of logins.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		config func(s *transittest.Server) transit.Config
		logins int
	}{
		"a policy": {func(s *transittest.Server) transit.Config {
			c := configOf(s)
			c.Token = fixed(s.AddToken(time.Hour, 0, "datakey"))
			return c
		}, 0},
		"an unknown token": {func(s *transittest.Server) transit.Config {
			c := configOf(s)
			c.Token = fixed("hvs.nobody-knows-this-token")
			return c
		}, 0},
		"a wrong secret id": {func(s *transittest.Server) transit.Config {
			s.AddRole("role-id-1", "another-secret-id", time.Hour, 0)
			return approle(s)
		}, 1},
		"no such login": {func(s *transittest.Server) transit.Config {
			c := approle(s)
			c.AppRole.Mount = "elsewhere"
			return c
		}, 1},
	} {
		s := stand(t, true)
		conf := c.config(s)
		conf.Limits.LoginPause = time.Hour
		log := &buffer{}
		conf.Logger = log.logger()
		a := open(t, conf)
		for range 5 {
			k, _, err := a.GenerateDataKey(t.Context(), "", testContext)
			if cerr := authoritytest.CheckError(err, authority.ErrDenied, []byte("hvs.nobody-knows-this-token"), []byte("secret-id-1")); cerr != nil || k != nil {
				t.Errorf("%s: %v", what, cerr)
			}
		}
		if n := s.Calls("login"); n != c.logins {
			t.Errorf("%s: %d logins, want %d", what, n, c.logins)
		}
		for _, hidden := range []string{"hvs.", "secret-id-1", "role-id-1"} {
			if strings.Contains(log.String(), hidden) {
				t.Errorf("%s: the log shows %s", what, hidden)
			}
		}
	}
}

// TestTokenFileReplaced: a new token in the file counts once the old one is refused.
func TestTokenFileReplaced(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	path := file(t, "token", s.AddToken(time.Hour, 0), 0o600)
	c := configOf(s)
	c.Token = func() (string, error) {
		b, err := os.ReadFile(path)
		return string(b), err
	}
	a := open(t, c)
	roundTrip(t, a)
	s.RevokeAll()
	if err := os.WriteFile(path, []byte(s.AddToken(time.Hour, 0)), 0o600); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, a)
}

// TestTokenWithoutLookup: policies need not let a token look itself up.
func TestTokenWithoutLookup(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	c := configOf(s)
	c.Token = fixed(s.AddToken(time.Hour, 0, "lookup-self"))
	roundTrip(t, open(t, c))
}

// TestRenewal: leases of a second, renewed without a call.
func TestRenewal(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		config func(s *transittest.Server) transit.Config
		again  string // operation that keeps the token alive
	}{
		"token": {func(s *transittest.Server) transit.Config {
			c := configOf(s)
			c.Token = fixed(s.AddToken(time.Second, 0))
			return c
		}, "renew-self"},
		"approle": {func(s *transittest.Server) transit.Config {
			s.AddRole("role-id-1", "secret-id-1", time.Second, 0)
			return approle(s)
		}, "renew-self"},
		"approle at its longest life": {func(s *transittest.Server) transit.Config {
			s.AddRole("role-id-1", "secret-id-1", 2*time.Second, 2*time.Second)
			return approle(s)
		}, "login"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := stand(t, true)
			a := open(t, c.config(s))
			roundTrip(t, a)
			until(t, c.again, func() bool { return s.Calls(c.again) >= 2 })
			roundTrip(t, a)
			if err := a.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}

// TestExpiredToken: a token that ran out and has no successor is an outage, not a
// decision.
func TestExpiredToken(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	c := configOf(s)
	c.Token = fixed(s.AddToken(time.Second, 0, "renew-self"))
	a := open(t, c)
	roundTrip(t, a)
	var err error
	until(t, "the end of the token", func() bool {
		_, err = a.Wrap(t.Context(), "", secret, testContext)
		return err != nil
	})
	if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret); cerr != nil {
		t.Error(cerr)
	}
}

func TestRedaction(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	c := configOf(s)
	a := open(t, c)
	roundTrip(t, a)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		for _, v := range []any{a, c} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, s.Root) {
				t.Errorf("%T under %s shows the token", v, verb)
			}
		}
	}
}

// TestRealServer runs the conformance suite against OpenBao or Vault. It makes,
// and leaves, keys named keyweir-test-*.
func TestRealServer(t *testing.T) {
	addr, token := os.Getenv("KEYWEIR_TEST_TRANSIT_ADDR"), os.Getenv("KEYWEIR_TEST_TRANSIT_TOKEN")
	if addr == "" || token == "" {
		t.Skip("KEYWEIR_TEST_TRANSIT_ADDR (https://host:port) and KEYWEIR_TEST_TRANSIT_TOKEN name no server")
	}
	for _, derived := range []bool{true, false} {
		t.Run(fmt.Sprintf("derived=%v", derived), func(t *testing.T) {
			keys := realKeys(t, addr, token, derived)
			authoritytest.Run(t, authoritytest.Harness{
				Open: func(t testing.TB) authority.Authority {
					return open(t, transit.Config{Address: addr, Key: keys[0], Token: fixed(token)})
				},
				Keys: keys,
			})
		})
	}
}
