package transit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// maxAnswer bounds what is read of one answer. A key with a version for each hour
// of a year is described in 160 KiB; all other answers are below 16 KiB.
const maxAnswer = 1 << 20

// client is the HTTP client under an authority: no redirects, which would carry
// key material and tokens elsewhere, a time limit for each attempt, bounded
// answers.
type client struct {
	base      string // https://host:port/v1/
	namespace string
	limits    Limits
	http      *http.Client
}

func newClient(c Config, tr *http.Transport, l Limits) *client {
	return &client{
		base: c.Address + "/v1/", namespace: c.Namespace, limits: l,
		http: &http.Client{
			Transport:     tr,
			Timeout:       l.AttemptTimeout, // headers and body
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// answer is a JSON object of the API whose members were not looked at yet. A
// member that is null is left out.
type answer map[string]json.RawMessage

// parseObject decodes an object: no name twice, valid UTF-8, nothing after it.
// Names are not checked: servers add some.
func parseObject(data []byte) (answer, error) {
	var members map[string]*json.RawMessage
	if err := strictjson.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	a := answer{}
	for name, raw := range members {
		if raw != nil {
			a[name] = *raw
		}
	}
	return a, nil
}

// object returns a member that must be an object.
func (a answer) object(name string) (answer, *fault) {
	defer clear(a[name])
	o, err := parseObject(a[name])
	if err != nil {
		return nil, garbage("no usable %s", name)
	}
	return o, nil
}

// try makes one attempt. body is JSON, or nil; the caller clears it.
func (c *client) try(ctx context.Context, method, path, token string, body []byte) (answer, *fault) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return nil, &fault{sentinel: authority.ErrInvalid, detail: "malformed request"}
	}
	req.Header.Set("X-Vault-Request", "true")
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	if c.namespace != "" {
		req.Header.Set("X-Vault-Namespace", c.namespace)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		req.ContentLength = int64(len(body))
		req.Body = newSent(body)
		req.GetBody = func() (io.ReadCloser, error) { return newSent(body), nil }
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	defer clear(data)
	if err != nil {
		return nil, unreachable(err)
	}
	if len(data) > maxAnswer {
		return nil, garbage("too long")
	}
	if resp.StatusCode >= 300 {
		f := classify(resp.StatusCode, messages(data))
		f.retryAfter = retryAfter(resp.Header)
		return nil, f
	}
	if len(data) == 0 { // 204
		return answer{}, nil
	}
	ans, err := parseObject(data)
	if err != nil {
		return nil, garbage("not the json of the api")
	}
	return ans, nil
}

// messages returns the errors of an answer, nil if it is not one of the API.
func messages(data []byte) []string {
	ans, err := parseObject(data)
	if err != nil {
		return nil
	}
	raw, ok := ans["errors"]
	if !ok {
		return nil
	}
	said := []string{}
	if strictjson.Unmarshal(raw, &said) != nil {
		return nil
	}
	return said
}

// retryAfter reads the pause a server asks for, 0 if none.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 0 || n > 3600 {
		return 0
	}
	return time.Duration(n) * time.Second
}

// sent is a request body: a copy that is cleared once the transport is done with
// it, which can be after the answer is there.
type sent struct {
	mu   sync.Mutex
	copy []byte
	r    bytes.Reader
}

func newSent(body []byte) *sent {
	s := &sent{copy: bytes.Clone(body)}
	s.r.Reset(s.copy)
	return s
}

func (s *sent) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.copy == nil {
		return 0, errors.New("transit: body closed")
	}
	return s.r.Read(p)
}

func (s *sent) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.copy)
	s.copy = nil
	return nil
}

// pause is how long to wait after the given attempt, counted from 1: it doubles
// up to most, and a random half of it spreads the clients. What the server asks
// for counts up to most.
func pause(most time.Duration, attempt int, f *fault) time.Duration {
	d := 50 * time.Millisecond
	if f.status == http.StatusTooManyRequests {
		d = 200 * time.Millisecond
	}
	for i := 1; i < attempt && d < most; i++ {
		d *= 2
	}
	d = min(max(d, f.retryAfter), most)
	return d/2 + rand.N(d/2+1)
}

// sleep waits, or returns false because ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// checkAddress accepts https://HOST[:PORT], and http on loopback: key material and
// tokens cross it.
func checkAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" {
		return errors.New("malformed address, want https://HOST[:PORT]")
	}
	if u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname()) {
		return nil
	}
	return errors.New("address without tls, which is accepted on loopback only")
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
