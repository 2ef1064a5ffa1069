// Package transittest is a stand-in for the transit engine, the token store and
// the AppRole and Kubernetes logins of OpenBao and Vault, for tests.
//
// It was written from the API documentation of the two and really encrypts:
// AES-GCM with a 96-bit nonce, ciphertexts as "vault:v1:" and the base64 of nonce,
// ciphertext and tag, HKDF-SHA-256 for derived keys, associated data, key
// versions, soft deletion. What the documentation leaves open, error texts above
// all, follows the servers' behaviour where it was known. It holds no secret
// worth the name and must not be used for anything else.
package transittest

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is one stand-in. Its fields do not change; its methods are safe for
// concurrent use.
type Server struct {
	URL   string // http://127.0.0.1:PORT, https:// for NewTLS
	Root  string // a token that may do everything and does not expire
	HTTP  *httptest.Server
	Mount string // of the engine: "transit"

	mu       sync.Mutex
	ns       string // requests must name it
	keys     map[string]*key
	tokens   map[string]*token
	made     int
	roles    map[string]role   // by role ID
	accounts map[string]string // Kubernetes role -> JWT
	jwtLease time.Duration
	script   []http.HandlerFunc
	calls    map[string]int // by operation
	deaf     bool           // ignores associated_data, as old servers do
}

type role struct {
	secret string
	lease  time.Duration
	max    time.Duration
}

type token struct {
	expires time.Time // zero: never
	lease   time.Duration
	dies    time.Time // longest life; zero: none
	denied  map[string]bool
}

// New starts a server that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := newServer()
	s.HTTP = httptest.NewServer(s)
	s.start(t)
	return s
}

// NewTLS starts a server with a certificate of its own, see HTTP.Certificate.
func NewTLS(t testing.TB) *Server {
	t.Helper()
	s := newServer()
	s.HTTP = httptest.NewUnstartedServer(s)
	s.HTTP.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that a test wants to fail
	s.HTTP.StartTLS()
	s.start(t)
	return s
}

func newServer() *Server {
	s := &Server{
		Root: "hvs.root-token-of-the-stand-in", Mount: "transit",
		keys: map[string]*key{}, tokens: map[string]*token{}, roles: map[string]role{},
		accounts: map[string]string{}, calls: map[string]int{},
	}
	s.tokens[s.Root] = &token{}
	return s
}

func (s *Server) start(t testing.TB) {
	s.URL = s.HTTP.URL
	t.Cleanup(func() {
		s.HTTP.CloseClientConnections()
		s.HTTP.Close()
	})
}

// Namespace makes the server refuse requests that do not name ns.
func (s *Server) Namespace(ns string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ns = ns
}

// IgnoreAssociatedData makes the server one that predates the parameter.
func (s *Server) IgnoreAssociatedData() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = true
}

// AddRole adds an AppRole. Its tokens live for lease, and for max with renewals (0: no limit).
func (s *Server) AddRole(roleID, secretID string, lease, max time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[roleID] = role{secretID, lease, max}
}

// AddAccount lets jwt log in under a Kubernetes role, for tokens of the given lease.
func (s *Server) AddAccount(role, jwt string, lease time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts[role], s.jwtLease = jwt, lease
}

// AddToken makes a token that lives for lease; 0 is for ever. Renewals extend it
// up to max (0: no limit). The operations denied (encrypt, lookup-self, ...) are
// refused to it.
func (s *Server) AddToken(lease, max time.Duration, denied ...string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issue(lease, max, denied...)
}

func (s *Server) issue(lease, max time.Duration, denied ...string) string {
	s.made++
	name := fmt.Sprintf("hvs.issued-token-%04d-of-the-stand-in", s.made)
	tok := &token{lease: lease, denied: map[string]bool{}}
	if lease > 0 {
		tok.expires = time.Now().Add(lease)
	}
	if max > 0 {
		tok.dies = time.Now().Add(max)
	}
	for _, op := range denied {
		tok.denied[op] = true
	}
	s.tokens[name] = tok
	return name
}

// RevokeAll revokes every token but Root.
func (s *Server) RevokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.tokens {
		if name != s.Root {
			delete(s.tokens, name)
		}
	}
}

// Script answers the next requests by the given handlers, in order; a nil one
// lets its request through. What comes after them is answered as usual.
func (s *Server) Script(hs ...http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = hs
}

// Calls returns how many requests an operation got: encrypt, decrypt, datakey,
// rewrap, keys, login, lookup-self, renew-self.
func (s *Server) Calls(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	if !ok {
		http.Error(w, "no api here", http.StatusNotFound)
		return
	}
	s.mu.Lock()
	s.calls[operation(path)]++
	var scripted http.HandlerFunc
	if len(s.script) > 0 {
		scripted, s.script = s.script[0], s.script[1:]
	}
	s.mu.Unlock()
	if scripted != nil {
		scripted(w, r)
		return
	}
	body := request{}
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&body); err != nil {
			Fail(400, "failed to parse JSON input")(w, r)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header.Get("X-Vault-Namespace") != s.ns {
		Fail(404, fmt.Sprintf("no handler for route %q. route entry not found.", path))(w, r)
		return
	}
	s.route(w, r, path, body)
}

func operation(path string) string {
	parts := strings.Split(path, "/")
	switch {
	case parts[0] == "auth":
		return parts[len(parts)-1]
	case len(parts) > 1:
		return parts[1]
	}
	return path
}

func (s *Server) route(w http.ResponseWriter, r *http.Request, path string, body request) {
	parts := strings.Split(path, "/")
	if parts[0] == "auth" && parts[len(parts)-1] == "login" {
		s.login(w, r, parts[1], body)
		return
	}
	name := r.Header.Get("X-Vault-Token")
	tok := s.tokens[name]
	if tok != nil && !tok.expires.IsZero() && time.Now().After(tok.expires) {
		delete(s.tokens, name)
		tok = nil
	}
	switch {
	case tok == nil || tok.denied[operation(path)]:
		Fail(403, "permission denied")(w, r)
	case path == "auth/token/lookup-self":
		reply(w, map[string]any{"data": map[string]any{"id": name, "ttl": seconds(tok.expires), "renewable": tok.lease > 0}})
	case path == "auth/token/renew-self":
		s.renew(w, r, name, tok)
	case parts[0] == s.Mount && len(parts) >= 3:
		s.engine(w, r, parts[1:], body)
	default:
		Fail(404, fmt.Sprintf("no handler for route %q. route entry not found.", path))(w, r)
	}
}

func (s *Server) login(w http.ResponseWriter, r *http.Request, mount string, body request) {
	switch mount {
	case "approle":
		ro, ok := s.roles[body.RoleID]
		if !ok || ro.secret != body.SecretID {
			Fail(400, "invalid role or secret ID")(w, r)
			return
		}
		s.issued(w, s.issue(ro.lease, ro.max))
	case "kubernetes":
		if jwt, ok := s.accounts[body.Role]; !ok || jwt != body.JWT {
			Fail(403, "permission denied")(w, r)
			return
		}
		s.issued(w, s.issue(s.jwtLease, 0))
	default:
		Fail(404, fmt.Sprintf("no handler for route \"auth/%s/login\". route entry not found.", mount))(w, r)
	}
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, name string, tok *token) {
	if tok.lease == 0 {
		Fail(400, "lease is not renewable")(w, r)
		return
	}
	tok.expires = time.Now().Add(tok.lease)
	if !tok.dies.IsZero() && tok.expires.After(tok.dies) {
		tok.expires = tok.dies
	}
	s.issued(w, name)
}

func (s *Server) issued(w http.ResponseWriter, name string) {
	tok := s.tokens[name]
	reply(w, map[string]any{"data": nil, "auth": map[string]any{
		"client_token": name, "accessor": "acc", "policies": []string{"default"}, "metadata": map[string]string{},
		"lease_duration": seconds(tok.expires), "renewable": tok.lease > 0, "token_type": "service",
	}})
}

// seconds is what is left until t, rounded up; 0 if t is zero.
func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return int64((time.Until(t) + time.Second - 1) / time.Second)
}

// reply writes an answer with the members that every answer has.
func reply(w http.ResponseWriter, m map[string]any) {
	all := map[string]any{
		"request_id": "4f2a7c1e-0000-4000-8000-000000000001", "lease_id": "", "renewable": false,
		"lease_duration": 0, "data": nil, "wrap_info": nil, "warnings": nil, "auth": nil,
	}
	for name, v := range m {
		all[name] = v
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all) // the client may be gone
}

// Fail answers with a status and the errors of the API.
func Fail(status int, messages ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if messages == nil {
			messages = []string{}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": messages}) // the client may be gone
	}
}

// Raw answers with a status and any body.
func Raw(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // the client may be gone
	}
}

// Data answers 200 with a data member.
func Data(data map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { reply(w, map[string]any{"data": data}) }
}

// Hang does not answer until the client has gone.
func Hang(_ http.ResponseWriter, r *http.Request) {
	buf := make([]byte, 512)
	for { // the server notices that the client is gone only once the body is read
		if _, err := r.Body.Read(buf); err != nil {
			break
		}
	}
	<-r.Context().Done()
}
