package authoritytest_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// store holds the keys that all handles of one memory authority share.
type store struct {
	mu   sync.Mutex
	keys map[string]*memoryKey
	bug  string // what this authority does wrong; "" nothing
}

type memoryKey struct {
	info     authority.KeyInfo
	versions [][]byte
}

// memory is a correct authority in memory, or one with a named bug.
type memory struct {
	*store
	home string

	once   sync.Once
	closed chan struct{}
	last   []byte // of bug "shares its result"
}

var _ authority.Manager = (*memory)(nil)

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func newStore(bug string) *store { return &store{keys: map[string]*memoryKey{}, bug: bug} }

func (s *store) open(home string) *memory {
	return &memory{store: s, home: home, closed: make(chan struct{})}
}

func (m *memory) is(bug string) bool { return m.bug == bug }

func wrong(err error, format string, args ...any) error {
	return fmt.Errorf("memory: %s: %w", fmt.Sprintf(format, args...), err)
}

func (m *memory) ready(ctx context.Context) error {
	select {
	case <-m.closed:
		if !m.is("works after close") {
			return wrong(authority.ErrUnavailable, "closed")
		}
	default:
	}
	if err := ctx.Err(); err != nil && !m.is("ignores cancellation") {
		return fmt.Errorf("memory: %w: %w", err, authority.ErrUnavailable)
	}
	return nil
}

// find returns the key of an ID or alias; the caller holds mu.
func (m *memory) find(key string) (*memoryKey, error) {
	if key == "" {
		key = m.home
	}
	if len(key) > authority.MaxKeyID {
		return nil, wrong(authority.ErrInvalid, "long key ID")
	}
	for _, k := range m.keys {
		if k.info.KeyID == key || k.info.Alias == key && key != "" {
			return k, nil
		}
	}
	if m.is("calls an unknown key invalid") {
		return nil, wrong(authority.ErrInvalid, "no such key")
	}
	return nil, wrong(authority.ErrNotFound, "no such key")
}

func (m *memory) usable(key string) (*memoryKey, error) {
	k, err := m.find(key)
	if err != nil {
		return nil, err
	}
	switch {
	case k.info.State == authority.StateDestroyed && !m.is("uses destroyed keys"):
		return nil, wrong(authority.ErrDestroyed, "%s", k.info.KeyID)
	case k.info.State == authority.StateDisabled && !m.is("uses disabled keys"):
		return nil, wrong(authority.ErrDisabled, "%s", k.info.KeyID)
	}
	return k, nil
}

func (m *memory) bind(k *memoryKey, version string, ec authority.Context) ([]byte, error) {
	if len(ec) == 0 && !m.is("takes an empty context") || len(ec) > authority.MaxContext {
		return nil, wrong(authority.ErrInvalid, "context of %d pairs", len(ec))
	}
	pairs := map[string]string{}
	for name, value := range ec {
		if !m.is("replaces invalid utf-8") && (!utf8.ValidString(name) || !utf8.ValidString(value)) {
			return nil, wrong(authority.ErrInvalid, "context not UTF-8")
		}
		switch {
		case m.is("ignores the context"):
			continue
		case m.is("ignores empty values") && value == "":
			continue
		case m.is("ignores case"):
			value = strings.ToLower(value)
		case m.is("binds names only"):
			value = ""
		}
		pairs[name] = value
	}
	if m.is("joins the context") {
		var all string
		for _, name := range slices.Sorted(func(yield func(string) bool) {
			for n := range pairs {
				if !yield(n) {
					return
				}
			}
		}) {
			all += name + pairs[name]
		}
		pairs = map[string]string{"all": all}
	}
	aad, err := json.Marshal([]any{k.info.KeyID, version, pairs})
	return aad, err
}

func aead(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return a
}

func (m *memory) Wrap(ctx context.Context, key string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return authority.Wrapped{}, err
	}
	if len(plaintext) == 0 && !m.is("wraps nothing") || len(plaintext) > authority.MaxPlaintext && !m.is("wraps too much") {
		if m.is("shows the plaintext") {
			return authority.Wrapped{}, wrong(authority.ErrInvalid, "plaintext %x", plaintext)
		}
		return authority.Wrapped{}, wrong(authority.ErrInvalid, "plaintext of %d bytes", len(plaintext))
	}
	return m.wrap(key, plaintext, ec)
}

func (m *memory) wrap(key string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	k, err := m.usable(key)
	if err != nil {
		return authority.Wrapped{}, err
	}
	n := len(k.versions) - 1
	version := fmt.Sprint(n + 1)
	aad, err := m.bind(k, version, ec)
	if err != nil {
		return authority.Wrapped{}, err
	}
	nonce := random(12)
	if m.is("repeats nonces") {
		clear(nonce)
	}
	w := authority.Wrapped{KeyID: k.info.KeyID, Version: version, Blob: aead(k.versions[n]).Seal(nonce, nonce, plaintext, aad)}
	if m.is("keeps the alias") && key == k.info.Alias && key != "" {
		w.KeyID = key
	}
	if m.is("changes its input") {
		clear(plaintext)
	}
	if m.is("stores the plaintext") {
		w.Blob = append(w.Blob, plaintext...)
	}
	return w, nil
}

func (m *memory) Unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return nil, err
	}
	if w.KeyID == "" && !m.is("defaults the key of a wrap") || len(w.Blob) == 0 || len(w.Blob) > authority.MaxBlob {
		return nil, wrong(authority.ErrInvalid, "malformed wrap")
	}
	k, err := m.usable(w.KeyID)
	if err != nil {
		return nil, err
	}
	blob := w.Blob
	if m.is("stores the plaintext") && len(blob) > 12+16 {
		blob = blob[:12+16+(len(blob)-12-16)/2]
	}
	if m.is("ignores trailing bytes") && len(blob) > 12+16+32 && ec["scope"] == "tenant/7" {
		blob = blob[:12+16+32]
	}
	candidates := k.versions
	var n int
	if _, err := fmt.Sscan(w.Version, &n); (err != nil || n < 1 || n > len(k.versions) || fmt.Sprint(n) != w.Version) && !m.is("ignores the version") {
		return nil, wrong(authority.ErrInvalid, "no such version")
	}
	for i, key := range candidates {
		if i+1 != n && !m.is("ignores the version") && !m.is("forgets old versions") {
			continue
		}
		if m.is("forgets old versions") && i != len(candidates)-1 {
			continue
		}
		version := fmt.Sprint(i + 1)
		aad, err := m.bind(k, version, ec)
		if err != nil {
			return nil, err
		}
		if len(blob) < 12 {
			return nil, wrong(authority.ErrInvalid, "short blob")
		}
		plaintext, err := aead(key).Open(nil, blob[:12], blob[12:], aad)
		if err != nil {
			continue
		}
		if m.is("shares its result") {
			if m.last == nil {
				m.last = make([]byte, authority.MaxPlaintext)
			}
			copy(m.last, plaintext)
			return m.last[:len(plaintext)], nil
		}
		return plaintext, nil
	}
	switch {
	case m.is("two sentinels"):
		return nil, fmt.Errorf("memory: %w: %w", authority.ErrDenied, authority.ErrInvalid)
	case m.is("no sentinel"):
		return nil, errors.New("memory: message authentication failed")
	case m.is("answers denied"):
		return nil, wrong(authority.ErrDenied, "message authentication failed")
	case m.is("returns data with an error"):
		return []byte{}, wrong(authority.ErrInvalid, "message authentication failed")
	}
	return nil, wrong(authority.ErrInvalid, "message authentication failed")
}

func (m *memory) GenerateDataKey(ctx context.Context, key string, ec authority.Context) ([]byte, authority.Wrapped, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return nil, authority.Wrapped{}, err
	}
	p := random(authority.DataKeySize)
	switch {
	case m.is("generates short keys"):
		p = p[:16]
	case m.is("generates zeros"):
		clear(p)
	}
	w, err := m.wrap(key, p, ec)
	if err != nil {
		return nil, authority.Wrapped{}, err
	}
	if m.is("wraps another key") {
		p = random(authority.DataKeySize)
	}
	return p, w, nil
}

func (m *memory) Close() error {
	first := false
	m.once.Do(func() { first = true; close(m.closed) })
	if !first && m.is("closes once only") {
		return errors.New("memory: already closed")
	}
	if m.is("loses keys on close") {
		for _, k := range m.keys {
			k.versions = [][]byte{random(32)}
		}
	}
	return nil
}

func (m *memory) CreateKey(ctx context.Context, alias string) (authority.KeyInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return authority.KeyInfo{}, err
	}
	for _, k := range m.keys {
		if alias != "" && k.info.Alias == alias && !m.is("reuses aliases") {
			return authority.KeyInfo{}, wrong(authority.ErrInvalid, "alias taken")
		}
	}
	r := random(16)
	id := fmt.Sprintf("%x-%x-%x-%x-%x", r[:4], r[4:6], r[6:8], r[8:10], r[10:])
	k := &memoryKey{authority.KeyInfo{KeyID: id, Alias: alias, State: authority.StateEnabled, Version: "1"}, [][]byte{random(32)}}
	m.keys[id] = k
	return k.info, nil
}

func (m *memory) DescribeKey(ctx context.Context, key string) (authority.KeyInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return authority.KeyInfo{}, err
	}
	k, err := m.find(key)
	if err != nil {
		return authority.KeyInfo{}, err
	}
	return k.info, nil
}

func (m *memory) ListKeys(ctx context.Context) ([]authority.KeyInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return nil, err
	}
	var list []authority.KeyInfo
	for _, k := range m.keys {
		if !m.is("lists no destroyed keys") || k.info.State != authority.StateDestroyed {
			list = append(list, k.info)
		}
	}
	slices.SortFunc(list, func(a, b authority.KeyInfo) int {
		if m.is("lists in reverse") {
			return strings.Compare(b.KeyID, a.KeyID)
		}
		return strings.Compare(a.KeyID, b.KeyID)
	})
	return list, nil
}

func (m *memory) RotateKey(ctx context.Context, key string) (authority.KeyInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return authority.KeyInfo{}, err
	}
	k, err := m.usable(key)
	if err != nil {
		return authority.KeyInfo{}, err
	}
	if !m.is("rotates nothing") {
		k.versions = append(k.versions, random(32))
	}
	k.info.Version = fmt.Sprint(len(k.versions))
	return k.info, nil
}

func (m *memory) set(ctx context.Context, key string, state authority.KeyState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ready(ctx); err != nil {
		return err
	}
	k, err := m.find(key)
	if err != nil {
		return err
	}
	if k.info.State == authority.StateDestroyed && state != authority.StateDestroyed && !m.is("revives destroyed keys") {
		return wrong(authority.ErrDestroyed, "%s", k.info.KeyID)
	}
	if k.info.State == state && m.is("minds repeating") {
		return wrong(authority.ErrInvalid, "already so")
	}
	k.info.State = state
	return nil
}

func (m *memory) EnableKey(ctx context.Context, key string) error {
	return m.set(ctx, key, authority.StateEnabled)
}

func (m *memory) DisableKey(ctx context.Context, key string) error {
	return m.set(ctx, key, authority.StateDisabled)
}

func (m *memory) DestroyKey(ctx context.Context, key string) error {
	return m.set(ctx, key, authority.StateDestroyed)
}

// create makes the harness's keys.
func (s *store) create(t testing.TB, alias string) string {
	t.Helper()
	k, err := s.open("").CreateKey(t.Context(), alias)
	if err != nil {
		t.Fatalf("CreateKey = %v", err)
	}
	return k.KeyID
}
