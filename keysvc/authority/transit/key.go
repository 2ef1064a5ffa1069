package transit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc/authority"
)

const (
	// describedFor is how long what a key is counts without asking again. What
	// decides its use, the engine checks in every call.
	describedFor = 5 * time.Minute
	// maxKeys bounds how many keys are remembered.
	maxKeys = 4096
)

// cipherTypes are the key types that bind a context.
var cipherTypes = []string{"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}

// description is what must be known of a key to use it. It does not change.
type description struct {
	derived bool
	born    map[string]int64 // version -> creation, Unix seconds
}

// entry is what is remembered of one key.
type entry struct {
	sem chan struct{} // one reader of the key at a time; guards probed and born

	probed bool             // the binding of born was proved
	born   map[string]int64 // of the last description, nil if the key was never seen

	d  *description // nil if none counts; guarded by Authority.mu, as is at
	at time.Time
}

// describe returns what is known of a key, reading and probing it if need be.
func (a *Authority) describe(ctx context.Context, name string) (*description, *fault) {
	a.mu.Lock()
	if e := a.keys[name]; e != nil && e.d != nil && time.Since(e.at) < describedFor {
		defer a.mu.Unlock()
		return e.d, nil
	}
	a.mu.Unlock()
	return a.read(ctx, name, true)
}

// reread asks what the key is now.
func (a *Authority) reread(ctx context.Context, name string) (*description, *fault) {
	return a.read(ctx, name, false)
}

func (a *Authority) read(ctx context.Context, name string, cached bool) (*description, *fault) {
	a.mu.Lock()
	e := a.keys[name]
	if e == nil {
		e = &entry{sem: make(chan struct{}, 1)}
		if len(a.keys) >= maxKeys {
			for other := range a.keys { // any: it is read again when used again
				delete(a.keys, other)
				break
			}
		}
		a.keys[name] = e
	}
	a.mu.Unlock()
	select {
	case e.sem <- struct{}{}:
		defer func() { <-e.sem }()
	case <-ctx.Done():
		return nil, unreachable(ctx.Err())
	}
	if cached { // somebody else may have read it meanwhile
		a.mu.Lock()
		d, at := e.d, e.at
		a.mu.Unlock()
		if d != nil && time.Since(at) < describedFor {
			return d, nil
		}
	}
	d, f := a.load(ctx, name, e)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case f == nil:
		e.d, e.at = d, time.Now()
	case !errors.Is(f.sentinel, authority.ErrUnavailable) && !errors.Is(f.sentinel, authority.ErrThrottled):
		e.d = nil
	}
	if e.born == nil && a.keys[name] == e { // names that never were a key are not kept
		delete(a.keys, name)
	}
	return d, f
}

// load reads the key and, if it is new or was made anew, proves that its wraps
// are bound to their context. The caller holds e.sem.
func (a *Authority) load(ctx context.Context, name string, e *entry) (*description, *fault) {
	ans, f := a.session.send(ctx, http.MethodGet, a.mount+"/keys/"+name, nil)
	if f == nil {
		ans, f = ans.object("data")
	}
	if f != nil {
		if e.born != nil && f.unclear && errors.Is(f.sentinel, authority.ErrNotFound) {
			f.sentinel, f.detail = authority.ErrDestroyed, "key deleted"
		}
		return nil, f
	}
	d, f := a.parseDescription(name, ans)
	if f != nil {
		return nil, f
	}
	for version, born := range d.born {
		if was, ok := e.born[version]; ok && was != born {
			a.log.WarnContext(ctx, "transit key was made anew: what it wrapped before is lost", "key", name)
			e.probed = false
			break
		}
	}
	e.born = d.born
	if !e.probed {
		if f := a.probe(ctx, name, d); f != nil {
			return nil, f
		}
		e.probed = true
	}
	return d, nil
}

// parseDescription checks that a key is fit for wrapping.
func (a *Authority) parseDescription(name string, ans answer) (*description, *fault) {
	var (
		kind, named                                   string
		derived, convergent, softDeleted, exportable  bool
		supportsEncryption, supportsDecryption, badly bool
	)
	field := func(member string, into any, required bool) {
		raw, ok := ans[member]
		if !ok && !required {
			return
		}
		if strictjson.Unmarshal(raw, into) != nil {
			badly = true
		}
	}
	field("name", &named, true)
	field("type", &kind, true)
	field("derived", &derived, true)
	field("supports_encryption", &supportsEncryption, true)
	field("supports_decryption", &supportsDecryption, true)
	field("convergent_encryption", &convergent, false)
	field("soft_deleted", &softDeleted, false)
	field("exportable", &exportable, false)
	switch {
	case badly:
		return nil, garbage("no usable description of the key")
	case named != name:
		return nil, garbage("the description of another key")
	case softDeleted:
		return nil, &fault{sentinel: authority.ErrDisabled, detail: "key soft-deleted"}
	case !slices.Contains(cipherTypes, kind) || !supportsEncryption || !supportsDecryption:
		return nil, &fault{sentinel: authority.ErrInvalid, detail: "the key's type does not bind a context, want aes256-gcm96 or the like"}
	case convergent:
		return nil, &fault{sentinel: authority.ErrInvalid, detail: "the key uses convergent encryption"}
	}
	d := &description{derived: derived, born: map[string]int64{}}
	var versions map[string]json.Number
	if strictjson.Unmarshal(ans["keys"], &versions) != nil || len(versions) == 0 {
		return nil, garbage("a key without versions")
	}
	for version, at := range versions {
		n, err := at.Int64()
		if v, verr := strconv.Atoi(version); err != nil || verr != nil || v < 1 {
			return nil, garbage("a malformed key version")
		}
		d.born[version] = n
	}
	if exportable {
		a.log.Warn("transit key is exportable: it can leave the engine", "key", name)
	}
	return d, nil
}

// probe proves that a wrap does not open under another context. A server that
// predates a parameter ignores it, and would bind nothing.
func (a *Authority) probe(ctx context.Context, name string, d *description) *fault {
	right, wrong := probeBinding("right"), probeBinding("wrong")
	secret := make([]byte, authority.DataKeySize)
	_, _ = rand.Read(secret) // never fails
	defer clear(secret)
	post := func(op string, body opRequest) (answer, *fault) {
		ans, f := a.session.send(ctx, http.MethodPost, a.mount+"/"+op+"/"+name, body)
		if f != nil {
			return nil, f
		}
		return ans.object("data")
	}
	ans, f := post("encrypt", opRequest{Plaintext: secret}.bound(d, right))
	if f != nil {
		return f
	}
	w, f := wrapped(name, ans)
	if f != nil {
		return f
	}
	open := func(bind []byte) ([]byte, *fault) {
		ans, f := post("decrypt", opRequest{Ciphertext: string(w.Blob)}.bound(d, bind))
		if f != nil {
			return nil, f
		}
		return plaintextOf(ans, authority.MaxPlaintext)
	}
	got, f := open(right)
	if f != nil {
		return f
	}
	same := bytes.Equal(got, secret)
	clear(got)
	if !same {
		return garbage("the key does not decrypt what it encrypted")
	}
	got, f = open(wrong)
	clear(got)
	switch {
	case f == nil:
		a.log.Error("transit key does not bind the encryption context: it is not used", "key", name)
		return &fault{
			sentinel: authority.ErrInvalid,
			detail:   "the server does not bind the encryption context: make the key with derived=true, or upgrade to a server that knows associated_data",
		}
	case errors.Is(f.sentinel, authority.ErrInvalid):
		return nil
	}
	return f
}

func probeBinding(which string) []byte {
	b, err := BindingBytes(authority.Context{"keyweir-use": "probe", "binding": which})
	if err != nil {
		panic("transit: internal error: " + err.Error())
	}
	return b
}
