package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// Keys is where a gateway gets what it seals with; *keysvc.Client is one. It is
// called from several goroutines.
type Keys interface {
	// Scopes returns the rules by which subjects share data keys.
	Scopes(ctx context.Context) (*keysvc.ScopeRules, error)
	// Generate returns one session grant per subject, in order, each with an error
	// of its own. At most 64 subjects are asked for at once.
	Generate(ctx context.Context, subjects []string) ([]keysvc.SealKey, error)
	// RouteKey returns the MAC key of a route's positions, always the same one.
	RouteKey(ctx context.Context, route string) (keysvc.RouteKey, error)
}

var _ Keys = (*keysvc.Client)(nil)

const (
	generateBatch = 64
	maxScopes     = 8192    // sessions of one worker, about 2 KB each
	maxSubjects   = 1 << 16 // remembered subjects of one worker
	rulesTTL      = 5 * time.Minute
	keysTimeout   = 10 * time.Second
)

// scopeKey is the current session of one scope.
type scopeKey struct {
	scope   string
	subject string // one of the scope's, to ask with
	session *envelope.Session

	messages, bytes     uint64 // budget of the session
	notAfter, refreshAt time.Time

	next *keysvc.SealKey // fetched ahead; nil if none
}

// subjectKey is what the worker remembers of one origin subject.
type subjectKey struct {
	sealed string // the sealed subject
	scope  string
	err    error // the subject has no scope
	key    *scopeKey
	seen   uint64 // the last batch whose preparation looked at it
}

// keyring holds the sessions of one worker. It belongs to the worker's
// goroutine; refreshes run beside it, one at a time, and hand over through
// results. Subjects and sessions are bounded in number, sessions by NotAfter in
// time, and remembered subjects by the life of the rules.
type keyring struct {
	keys    Keys
	config  envelope.SessionConfig // without budgets
	prefix  string                 // of sealed subjects
	metrics *routeMetrics
	plain   bool // nothing is sealed, see Gateway.RelayPlain

	rules    *keysvc.ScopeRules
	rulesAt  time.Time
	subjects map[string]*subjectKey
	scopes   *simplelru.LRU[string, *scopeKey]
	batches  uint64 // prepared so far

	refused map[string]error // by scope: what the service said to prepare's last question

	results    chan refreshed // capacity 1: one refresh at a time
	refreshing bool
	retryAt    time.Time // after a refresh that failed
	retry      *pause
}

type refreshed struct {
	asked map[string]string // scope: subject
	keys  map[string]*keysvc.SealKey
	rules *keysvc.ScopeRules // nil: not asked for
	err   error
}

func newKeyring(keys Keys, cfg envelope.SessionConfig, prefix string, m *routeMetrics) *keyring {
	scopes, err := simplelru.NewLRU(maxScopes, func(_ string, k *scopeKey) { k.close() })
	if err != nil {
		panic("gateway: internal error: " + err.Error()) // the size is a constant
	}
	return &keyring{
		keys: keys, config: cfg, prefix: prefix, metrics: m, scopes: scopes,
		subjects: make(map[string]*subjectKey), results: make(chan refreshed, 1),
		retry: newPause(250*time.Millisecond, 10*time.Second),
	}
}

// end drops the session; the grant fetched ahead stays.
func (k *scopeKey) end() {
	if k.session != nil {
		k.session.Close()
		k.session = nil
	}
}

func (k *scopeKey) close() {
	k.end()
	k.next = nil
}

// close drops every session.
func (k *keyring) close() {
	k.scopes.Purge()
	clear(k.subjects)
}

// loadRules fetches the scope rules; called before anything else.
func (k *keyring) loadRules(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	r, err := k.keys.Scopes(ctx)
	if err != nil {
		return fmt.Errorf("%w: asking for scope rules: %w", ErrKeys, err)
	}
	k.setRules(r)
	return nil
}

func (k *keyring) setRules(r *keysvc.ScopeRules) {
	if k.rules == nil || !slices.Equal(k.rules.Rules(), r.Rules()) {
		clear(k.subjects)
	}
	k.rules, k.rulesAt = r, time.Now()
}

// subject returns what is known of an origin subject.
func (k *keyring) subject(origin string) *subjectKey {
	if s := k.subjects[origin]; s != nil {
		return s
	}
	s := &subjectKey{sealed: k.prefix + origin}
	if s.scope, _, s.err = k.rules.Scope(origin); s.err != nil && !errors.Is(s.err, keysvc.ErrNoScope) {
		s.err = fmt.Errorf("%w: %v", keysvc.ErrNoScope, s.err) // one that no rule could give a scope
	}
	if len(k.subjects) >= maxSubjects {
		clear(k.subjects) // cheap to compute again
	}
	k.subjects[origin] = s
	return s
}

// prepare makes sure of a usable session for every item, asking once for all
// scopes that miss one, and starts a refresh of those that are due. It returns
// how many leading items can be sealed, and the error of the next one if that is
// not all.
func (k *keyring) prepare(ctx context.Context, items []item) (int, error) {
	if k.plain {
		return len(items), nil
	}
	k.collect()
	k.refused = nil
	k.batches++
	now := time.Now()
	if now.Sub(k.rulesAt) > rulesTTL && !k.refreshing && now.After(k.retryAt) {
		k.refresh(ctx, nil, true)
	}
	var missing map[string]string // scope: subject
	var due map[string]string
	whole := true // every item has a scope
	for i := range items {
		s := k.subject(items[i].msg.Subject)
		if s.seen == k.batches {
			continue // looked at with an item before it
		}
		if s.err != nil {
			if s = k.rescope(ctx, items[i].msg.Subject); s.err != nil {
				items, whole = items[:i+1], false
				break
			}
		}
		s.seen = k.batches
		s.key, _ = k.scopes.Get(s.scope)
		switch {
		case s.key == nil || !s.key.usable(now) && !s.key.swap(k.config, now):
			if missing == nil {
				missing = make(map[string]string)
			}
			missing[s.scope] = items[i].msg.Subject
		case s.key.due(now) && s.key.next == nil:
			if due == nil {
				due = make(map[string]string)
			}
			due[s.scope] = items[i].msg.Subject
		}
	}
	var failed map[string]error
	if len(missing) > 0 {
		failed = k.fetch(ctx, missing)
	}
	if len(due) > 0 && !k.refreshing && now.After(k.retryAt) {
		k.refresh(ctx, due, false)
	}
	if whole && len(missing) == 0 {
		return len(items), nil
	}
	now = time.Now()
	for i := range items {
		s := k.subject(items[i].msg.Subject)
		if s.err != nil {
			return i, s.err
		}
		if s.key, _ = k.scopes.Get(s.scope); s.key == nil || !s.key.usable(now) {
			if err := failed[s.scope]; err != nil {
				return i, err
			}
			return i, fmt.Errorf("%w: the key of scope %s has ended", ErrKeys, s.scope)
		}
	}
	return len(items), nil
}

// rescope looks again at a subject without scope, with fresh rules: its rule may
// have been added a moment ago. The service is asked at most once a second.
func (k *keyring) rescope(ctx context.Context, origin string) *subjectKey {
	if time.Since(k.rulesAt) > time.Second {
		if err := k.loadRules(ctx); err != nil {
			return &subjectKey{err: err}
		}
	}
	delete(k.subjects, origin)
	return k.subject(origin)
}

// usable reports whether the session may seal at now.
func (k *scopeKey) usable(now time.Time) bool {
	if k.session == nil || !now.Before(k.notAfter) {
		return false
	}
	m, b := k.session.Sealed()
	return m < k.messages && b < k.bytes
}

// due reports whether it is time to fetch the next grant: at RefreshAt, or when
// four fifths of the budget are spent.
func (k *scopeKey) due(now time.Time) bool {
	m, b := k.session.Sealed()
	return !now.Before(k.refreshAt) || m >= k.messages-k.messages/5 || b >= k.bytes-k.bytes/5
}

// swap begins the session of the grant fetched ahead, if there is a usable one.
func (k *scopeKey) swap(cfg envelope.SessionConfig, now time.Time) bool {
	if k.next == nil {
		return false
	}
	n := k.next
	k.next = nil
	return now.Before(n.NotAfter) && k.begin(cfg, n) == nil
}

func (k *scopeKey) begin(cfg envelope.SessionConfig, n *keysvc.SealKey) error {
	cfg.MaxMessages, cfg.MaxBytes = n.Messages, n.Bytes
	s, err := n.Grant.Session(cfg)
	if err != nil {
		return fmt.Errorf("%w: starting session: %w", ErrKeys, err)
	}
	if k.session != nil {
		k.session.Close()
	}
	k.session, k.notAfter, k.refreshAt = s, n.NotAfter, n.RefreshAt
	k.messages, k.bytes = min(n.Messages, envelope.MaxSessionMessages), min(n.Bytes, envelope.MaxSessionBytes)
	return nil
}

// fetch asks for the grants of scopes that cannot seal without, and waits. It
// returns an error per scope that failed.
func (k *keyring) fetch(ctx context.Context, asked map[string]string) map[string]error {
	r := k.ask(ctx, asked, false)
	failed := make(map[string]error)
	moved := false
	for scope, subject := range asked {
		key := r.keys[scope]
		err := r.err
		if key != nil && key.Err != nil {
			err = key.Err
			if k.refused == nil {
				k.refused = make(map[string]error)
			}
			k.refused[scope] = err
		}
		switch {
		case key == nil && err == nil:
			err = errors.New("no answer")
		case key != nil && err == nil && key.Scope != scope:
			moved = true
			err = fmt.Errorf("the service puts %s into scope %s, its rules say %s", subject, key.Scope, scope)
		case key != nil && err == nil:
			err = k.install(scope, subject, key)
		}
		if err != nil {
			failed[scope] = fmt.Errorf("%w: scope %s: %w", ErrKeys, scope, err)
		}
	}
	if moved {
		// The rules changed. If the difference stays, so does the error.
		if err := k.loadRules(ctx); err == nil {
			clear(k.subjects)
		}
	}
	return failed
}

// install begins the session of a grant.
func (k *keyring) install(scope, subject string, key *keysvc.SealKey) error {
	entry, _ := k.scopes.Get(scope)
	if entry == nil {
		entry = &scopeKey{scope: scope}
		k.scopes.Add(scope, entry)
	}
	entry.subject = subject
	return entry.begin(k.config, key)
}

// refresh does the same for scopes whose session still seals, beside the worker.
func (k *keyring) refresh(ctx context.Context, asked map[string]string, rules bool) {
	k.refreshing = true
	go func() { k.results <- k.ask(ctx, asked, rules) }() // never blocks: one at a time
}

// collect takes over a finished refresh.
func (k *keyring) collect() {
	var r refreshed
	select {
	case r = <-k.results:
		k.refreshing = false
	default:
		return
	}
	if r.rules != nil {
		k.setRules(r.rules)
	}
	ok := r.err == nil
	now := time.Now()
	for scope := range r.asked {
		key, entry := r.keys[scope], (*scopeKey)(nil)
		if entry, _ = k.scopes.Peek(scope); entry == nil {
			continue
		}
		if key == nil || key.Err != nil || key.Scope != scope {
			ok = false // the session goes on until NotAfter, and the error shows then
			continue
		}
		entry.next = key
		entry.swap(k.config, now)
	}
	if ok {
		k.retry.reset()
	} else {
		k.retryAt = now.Add(k.retry.b.NextBackOff())
	}
}

// ask calls the key service; it touches nothing of k that changes.
func (k *keyring) ask(ctx context.Context, asked map[string]string, rules bool) (r refreshed) {
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	r.asked = asked
	if rules {
		r.rules, r.err = k.keys.Scopes(ctx)
	}
	r.keys = make(map[string]*keysvc.SealKey, len(asked))
	scopes := make([]string, 0, len(asked))
	for scope := range asked {
		scopes = append(scopes, scope)
	}
	slices.Sort(scopes)
	for chunk := range slices.Chunk(scopes, generateBatch) {
		subjects := make([]string, len(chunk))
		for i, scope := range chunk {
			subjects[i] = asked[scope]
		}
		got, err := k.keys.Generate(ctx, subjects)
		k.metrics.refreshed(len(subjects), err)
		if err == nil && len(got) != len(subjects) {
			err = fmt.Errorf("%d answers to %d questions", len(got), len(subjects))
		}
		if err != nil {
			r.err = err
			continue
		}
		for i, scope := range chunk {
			if got[i].Err == nil && got[i].Grant == nil {
				got[i].Err = errors.New("empty grant")
			}
			r.keys[scope] = &got[i]
		}
	}
	return r
}

// patient reports whether a key error is of the kind that takes an operator to
// mend, so that asking often is of no use.
func patient(err error) bool {
	return errors.Is(err, keysvc.ErrDenied) || errors.Is(err, keysvc.ErrSuspended) || errors.Is(err, keysvc.ErrInvalid) || errors.Is(err, keysvc.ErrClockSkew)
}
