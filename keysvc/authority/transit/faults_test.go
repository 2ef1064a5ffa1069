package transit_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/transit"
	"github.com/keyweir/keyweir/keysvc/authority/transit/transittest"
)

// warm returns an authority that has described its key, and a wrap under it.
func warm(t testing.TB, s *transittest.Server, c transit.Config) (*transit.Authority, authority.Wrapped) {
	t.Helper()
	a := open(t, c)
	w, err := a.Wrap(t.Context(), "", secret, testContext)
	if err != nil {
		t.Fatalf("Wrap = %v", err)
	}
	return a, w
}

func TestErrors(t *testing.T) {
	t.Parallel()
	echo := base64.StdEncoding.EncodeToString(secret)
	for _, c := range []struct {
		what    string
		answer  http.HandlerFunc
		want    error
		asked   int // requests of decrypt, refusals answered with the key's description not counted
		persist bool
	}{
		{"400", transittest.Fail(400, "no idea "+echo), authority.ErrInvalid, 1, false},
		{"400 no token", transittest.Fail(400, "missing client token"), authority.ErrDenied, 1, false},
		{"400 too old", transittest.Fail(400, "ciphertext or signature version is disallowed by policy (too old)"), authority.ErrDenied, 1, false},
		{"400 soft-deleted", transittest.Fail(400, "key is soft-deleted "+echo), authority.ErrDisabled, 1, false},
		{"400 without the api", transittest.Raw(400, echo), authority.ErrUnavailable, 1, false},
		{"401", transittest.Fail(401, echo), authority.ErrDenied, 1, false},
		{"403", transittest.Fail(403, "permission denied "+echo), authority.ErrDenied, 1, false},
		{"403 of a proxy", transittest.Raw(403, "<html>"), authority.ErrUnavailable, 1, false},
		{"404 no engine", transittest.Fail(404, "no handler for route \"transit\". route entry not found."), authority.ErrNotFound, 1, false},
		{"404 of a proxy", transittest.Raw(404, "not here"), authority.ErrUnavailable, 1, false},
		{"405", transittest.Fail(405, "unsupported operation"), authority.ErrInvalid, 1, false},
		{"413", transittest.Fail(413, "too large"), authority.ErrInvalid, 1, false},
		{"307", transittest.Raw(307, ""), authority.ErrUnavailable, 1, false},
		{"429", transittest.Fail(429, "rate limit quota exceeded"), authority.ErrThrottled, 3, true},
		{"429 of a proxy", transittest.Raw(429, ""), authority.ErrThrottled, 3, true},
		{"412", transittest.Fail(412, "required index state not present"), authority.ErrUnavailable, 3, true},
		{"472", transittest.Fail(472, "standby"), authority.ErrUnavailable, 3, true},
		{"500", transittest.Fail(500, "internal error "+echo), authority.ErrUnavailable, 3, true},
		{"502 of a proxy", transittest.Raw(502, echo), authority.ErrUnavailable, 3, true},
		{"503 sealed", transittest.Fail(503, "Vault is sealed"), authority.ErrUnavailable, 3, true},
		{"200 without data", transittest.Data(nil), authority.ErrUnavailable, 1, false},
		{"200 empty", transittest.Raw(200, ""), authority.ErrUnavailable, 1, false},
		{"200 html", transittest.Raw(200, "<html>"+echo), authority.ErrUnavailable, 1, false},
		{"200 a name twice", transittest.Raw(200, `{"data":{"plaintext":"`+echo+`","plaintext":"`+echo+`"}}`), authority.ErrUnavailable, 1, false},
		{"200 no plaintext", transittest.Data(map[string]any{"ciphertext": "vault:v1:AAAA"}), authority.ErrUnavailable, 1, false},
		{"200 empty plaintext", transittest.Data(map[string]any{"plaintext": ""}), authority.ErrUnavailable, 1, false},
		{"200 a number", transittest.Data(map[string]any{"plaintext": 7}), authority.ErrUnavailable, 1, false},
		{"200 malformed base64", transittest.Data(map[string]any{"plaintext": echo[:len(echo)-1] + "!"}), authority.ErrUnavailable, 1, false},
		{"200 a long plaintext", transittest.Data(map[string]any{"plaintext": strings.Repeat("QUFB", 400)}), authority.ErrUnavailable, 1, false},
		{"200 a flood", transittest.Raw(200, `{"data":{"plaintext":"`+strings.Repeat("A", 2<<20)+`"}}`), authority.ErrUnavailable, 1, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			s := stand(t, true)
			log := &buffer{}
			conf := configOf(s)
			conf.Logger = log.logger()
			a, w := warm(t, s, conf)
			before := s.Calls("decrypt")
			script := []http.HandlerFunc{c.answer}
			if c.persist {
				script = append(script, c.answer, c.answer)
			}
			if c.want == authority.ErrDenied && strings.HasPrefix(c.what, "4") { // the token is looked at before it is given up
				script = append(script, nil)
			}
			s.Script(script...)
			got, err := a.Unwrap(t.Context(), w, testContext)
			if cerr := authoritytest.CheckError(err, c.want, secret, []byte(s.Root), []byte(echo)); cerr != nil {
				t.Error(cerr)
			}
			if got != nil {
				t.Errorf("an error and %d bytes", len(got))
			}
			if n := s.Calls("decrypt") - before; n != c.asked {
				t.Errorf("%d attempts, want %d", n, c.asked)
			}
			s.Script()
			if got, err := a.Unwrap(t.Context(), w, testContext); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("Unwrap afterwards = %v", err)
			}
			if text := log.String(); strings.Contains(text, echo) || strings.Contains(text, s.Root) || strings.Contains(text, string(secret)) {
				t.Error("the log shows a secret")
			}
		})
	}
}

// TestLyingEngine: answers to generating that would make data unreadable.
func TestLyingEngine(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	a, _ := warm(t, s, configOf(s))
	key := base64.StdEncoding.EncodeToString(secret)
	for what, data := range map[string]map[string]any{
		"a short key":         {"plaintext": key[:20] + "==", "ciphertext": "vault:v1:AAAA", "key_version": 1},
		"zeros":               {"plaintext": base64.StdEncoding.EncodeToString(make([]byte, 32)), "ciphertext": "vault:v1:AAAA"},
		"no wrap":             {"plaintext": key},
		"an empty wrap":       {"plaintext": key, "ciphertext": ""},
		"a wrap of nothing":   {"plaintext": key, "ciphertext": "vault:v1:"},
		"another key version": {"plaintext": key, "ciphertext": "vault:v1:AAAA", "key_version": 2},
		"a huge wrap":         {"plaintext": key, "ciphertext": "vault:v1:" + strings.Repeat("AAAA", 600)},
		"no key":              {"ciphertext": "vault:v1:AAAA"},
	} {
		s.Script(transittest.Data(data))
		k, w, err := a.GenerateDataKey(t.Context(), "", testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret); cerr != nil {
			t.Errorf("%s: %v", what, cerr)
		}
		if k != nil || w.KeyID != "" || w.Blob != nil {
			t.Errorf("%s: an error and a result", what)
		}
	}
}

func TestRetriesHelp(t *testing.T) {
	t.Parallel()
	s := stand(t, true)
	conf := configOf(s)
	conf.Limits.AttemptTimeout = 300 * time.Millisecond
	a, w := warm(t, s, conf)
	for what, slow := range map[string]http.HandlerFunc{
		"an outage": transittest.Fail(503, "Vault is sealed"), "a rate limit": transittest.Fail(429, "slow down"), "no answer": transittest.Hang,
	} {
		s.Script(slow, slow)
		if _, err := a.Unwrap(t.Context(), w, testContext); err != nil {
			t.Errorf("Unwrap after %s = %v", what, err)
		}
	}
}

func TestCancelAndCloseDuringCall(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(a *transit.Authority, cancel context.CancelFunc){
		"cancel": func(_ *transit.Authority, cancel context.CancelFunc) { cancel() },
		"close":  func(a *transit.Authority, _ context.CancelFunc) { a.Close() },
	} {
		s := stand(t, true)
		a, w := warm(t, s, configOf(s))
		asked := make(chan struct{}, 8)
		s.Script(func(w http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			transittest.Hang(w, r)
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := a.Unwrap(ctx, w, testContext)
			done <- err
		}()
		<-asked
		start := time.Now()
		end(a, cancel)
		err := <-done
		cancel()
		if d := time.Since(start); d > 2*time.Second { // an attempt may take 5 s
			t.Errorf("%s: the call ended %v later", name, d)
		}
		if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret); cerr != nil {
			t.Errorf("%s: %v", name, cerr)
		}
		if want := name == "cancel"; errors.Is(err, context.Canceled) != want {
			t.Errorf("%s: %v wraps context.Canceled: %v, want %v", name, err, !want, want)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	a := open(t, transit.Config{Address: "http://" + addr, Key: "orders", Token: fixed("t"), Limits: quick()})
	_, err = a.Wrap(t.Context(), "", secret, testContext)
	if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret); cerr != nil {
		t.Error(cerr)
	}
}
