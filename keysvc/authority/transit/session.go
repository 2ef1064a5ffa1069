package transit

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// session holds the token. It is obtained at the first call, renewed in the
// background after two thirds of its lease, and replaced by a new login when it
// cannot be renewed or is not accepted any more.
type session struct {
	c      *client
	method method
	pause  time.Duration // between logins that did not help
	log    *slog.Logger
	done   chan struct{}

	sem chan struct{} // held while a token is obtained or renewed

	mu      sync.Mutex
	tok     lease
	gen     uint64        // counts tokens
	renewAt time.Time     // zero: not
	changed chan struct{} // closed when renewAt changes
	asked   time.Time     // of the last attempt to obtain a token
	refused *fault        // of that attempt
	vain    time.Time     // when another token was last found not to help
}

// lease is a token and its life.
type lease struct {
	token     string
	first     time.Duration // life when it was obtained
	expires   time.Time     // zero: never
	renewable bool
}

func (lease) String() string   { return "[redacted]" }
func (lease) GoString() string { return "[redacted]" }

// method obtains a token.
type method interface {
	// obtain returns a token; last is the one before, zero at first.
	obtain(ctx context.Context, c *client, last lease) (lease, *fault)
	// fixed reports that obtain does not make new tokens.
	fixed() bool
}

func newSession(c *client, m method, pause time.Duration, log *slog.Logger) *session {
	return &session{
		c: c, method: m, pause: pause, log: log,
		done: make(chan struct{}), sem: make(chan struct{}, 1), changed: make(chan struct{}),
	}
}

// wait returns when keep has ended.
func (s *session) wait() { <-s.done }

// send makes a request with the token, with retries and, if the token is not
// accepted, once more with a new one. body is marshalled; nil sends none.
func (s *session) send(ctx context.Context, method, path string, body any) (answer, *fault) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, &fault{sentinel: authority.ErrInvalid, detail: "malformed request"}
		}
		defer clear(b)
	}
	again := false
	return s.c.attempts(ctx, func() (answer, *fault) {
		for {
			token, gen, f := s.current(ctx)
			if f != nil {
				return nil, f
			}
			ans, f := s.c.try(ctx, method, path, token, b)
			if f == nil || !f.refused {
				return ans, f
			}
			if again {
				s.inVain()
				return nil, f
			}
			again = true
			if other, g := s.replace(ctx, gen); g != nil {
				return nil, g
			} else if !other {
				return nil, f
			}
		}
	})
}

// attempts repeats f with pauses while its fault is worth it.
func (c *client) attempts(ctx context.Context, f func() (answer, *fault)) (answer, *fault) {
	for n := 1; ; n++ {
		ans, fl := f()
		if fl == nil || !fl.retry || n >= c.limits.MaxAttempts || ctx.Err() != nil {
			return ans, fl
		}
		if !sleep(ctx, pause(c.limits.MaxBackoff, n, fl)) {
			return nil, fl
		}
	}
}

// current returns the token, obtaining it if there is none or it has expired.
func (s *session) current(ctx context.Context) (token string, gen uint64, f *fault) {
	if token, gen, ok := s.valid(); ok {
		return token, gen, nil
	}
	if f := s.lock(ctx); f != nil {
		return "", 0, f
	}
	defer s.unlock()
	if token, gen, ok := s.valid(); ok {
		return token, gen, nil
	}
	if f := s.obtain(ctx); f != nil {
		return "", 0, f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tok.token, s.gen, nil
}

func (s *session) valid() (token string, gen uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok = s.tok.token != "" && (s.tok.expires.IsZero() || time.Now().Before(s.tok.expires))
	return s.tok.token, s.gen, ok
}

// replace obtains another token after that of gen was not accepted. It reports
// whether there is another now; a refusal that follows a fresh login is one of
// policy.
func (s *session) replace(ctx context.Context, gen uint64) (bool, *fault) {
	if f := s.lock(ctx); f != nil {
		return false, f
	}
	defer s.unlock()
	s.mu.Lock()
	moved, recent := s.gen != gen, time.Since(s.vain) < s.pause
	s.mu.Unlock()
	if moved {
		return true, nil
	}
	if recent {
		return false, nil
	}
	f := s.obtain(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	other := f == nil && s.gen != gen
	if !other {
		s.vain = time.Now()
	}
	return other, f
}

// inVain notes that a new token was not accepted either: policy says no.
func (s *session) inVain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vain = time.Now()
}

func (s *session) lock(ctx context.Context) *fault {
	select {
	case s.sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return unreachable(ctx.Err())
	}
}

func (s *session) unlock() { <-s.sem }

// obtain gets a token; the caller holds sem. A refusal stands for a while, so
// that wrong credentials do not become a flood.
func (s *session) obtain(ctx context.Context) *fault {
	s.mu.Lock()
	last, since, refused := s.tok, time.Since(s.asked), s.refused
	s.mu.Unlock()
	if refused != nil && since < s.pause {
		again := *refused
		return &again
	}
	l, f := s.method.obtain(ctx, s.c, last)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.refused = time.Now(), nil
	if f != nil {
		f.refused = false // of a login: another login does not help
		if errors.Is(f.sentinel, authority.ErrDenied) {
			s.refused = f
			s.log.Warn("transit login refused", "fault", f.String())
		}
		return f
	}
	if l.token != last.token {
		s.gen++
	}
	s.set(l)
	return nil
}

// set takes a lease over and plans its renewal; the caller holds mu.
func (s *session) set(l lease) {
	s.tok, s.renewAt = l, time.Time{}
	if left := time.Until(l.expires); !l.expires.IsZero() && (l.renewable || !s.method.fixed()) {
		s.renewAt = time.Now().Add(left*2/3 - rand.N(left/10+1))
	}
	s.wake()
}

// wake tells keep of a change; the caller holds mu.
func (s *session) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// keep renews the token until life ends.
func (s *session) keep(life context.Context) {
	defer close(s.done)
	for failures := 0; ; {
		s.mu.Lock()
		at, changed := s.renewAt, s.changed
		s.mu.Unlock()
		if !s.due(life, at, changed) {
			if life.Err() != nil {
				return
			}
			continue
		}
		if f := s.renew(life, at); f != nil && life.Err() == nil {
			failures++
			wait := min(time.Second<<min(failures-1, 5), 30*time.Second)
			s.log.Warn("transit token not renewed", "fault", f.String(), "failures", failures)
			s.mu.Lock()
			if s.renewAt.Equal(at) {
				s.renewAt = time.Now().Add(wait/2 + rand.N(wait/2+1))
			}
			s.mu.Unlock()
		} else {
			failures = 0
		}
	}
}

// due waits for the time at (zero: for ever) and reports whether it has come
// before life ended or the plan changed.
func (s *session) due(life context.Context, at time.Time, changed <-chan struct{}) bool {
	var c <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		c = t.C
	}
	select {
	case <-life.Done():
		return false
	case <-changed:
		return false
	case <-c:
		return true
	}
}

// renew renews the token that was due at the given time, or logs in again.
func (s *session) renew(life context.Context, due time.Time) *fault {
	ctx, cancel := context.WithTimeout(life, s.c.limits.CallTimeout)
	defer cancel()
	if f := s.lock(ctx); f != nil {
		return f
	}
	defer s.unlock()
	s.mu.Lock()
	old, moved := s.tok, !s.renewAt.Equal(due)
	s.mu.Unlock()
	if moved {
		return nil
	}
	if old.renewable {
		ans, f := s.c.try(ctx, http.MethodPost, "auth/token/renew-self", old.token, []byte("{}"))
		var l lease
		if f == nil {
			l, f = leaseOf(ans)
		}
		switch {
		case f == nil:
			l.token, l.first = old.token, old.first
			// Close to the end of the longest life the renewals bring ever less.
			if enough := l.expires.IsZero() || time.Until(l.expires) >= old.first/4; enough || s.method.fixed() {
				l.renewable = l.renewable && enough
				if !enough {
					s.log.Warn("transit token reaches the end of its longest life", "expires", l.expires)
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				s.set(l)
				return nil
			}
		case authority.IsOutage(f.sentinel):
			return f
		case s.method.fixed():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.renewAt = time.Time{}
			s.log.Warn("transit token cannot be renewed", "fault", f.String())
			return nil
		}
	}
	return s.obtain(ctx)
}

// leaseOf reads the auth member of a login or renewal.
func leaseOf(ans answer) (lease, *fault) {
	auth, f := ans.object("auth")
	if f != nil {
		return lease{}, f
	}
	var (
		l       lease
		seconds int64
	)
	defer clear(auth["client_token"])
	if strictjson.Unmarshal(auth["client_token"], &l.token) != nil ||
		strictjson.Unmarshal(auth["lease_duration"], &seconds) != nil ||
		strictjson.Unmarshal(auth["renewable"], &l.renewable) != nil ||
		!validToken(l.token) || seconds < 0 || seconds > 1<<32 {
		return lease{}, garbage("no usable token")
	}
	l.live(time.Duration(seconds) * time.Second)
	return l, nil
}

// live starts the life of a lease; 0 is without end.
func (l *lease) live(ttl time.Duration) {
	if ttl > 0 {
		l.first, l.expires = ttl, time.Now().Add(ttl)
	}
}

// validToken accepts what can stand in a header.
func validToken(s string) bool {
	if s == "" || len(s) > 8<<10 {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
