// Package transit is the authority that keeps its managed keys in the transit
// engine of OpenBao or HashiCorp Vault, over their HTTP API.
//
// [Open] opens one by URI, [New] by [Config]:
//
//	a, err := transit.Open(ctx, "transit://bao.example:8200/transit/orders?token=file:/run/keyweir/token", authority.Options{})
//	if err != nil { ... }
//	defer a.Close()
//	dek, wrap, err := a.GenerateDataKey(ctx, "", authority.Context{"scope": "tenant/7"})
//
// Opening asks nobody: a missing key or permission shows at the first call. A
// wrap's blob is the ciphertext of the engine ("vault:v1:..."), nothing around
// it; its version is the key version in that text.
//
// The encryption context is bound in one of two ways, by the kind of the key:
//
//   - a derived key (derived=true): the context is the engine's key derivation
//     context of datakey, encrypt, decrypt and rewrap;
//   - any other key: the context is associated_data of encrypt and decrypt. The
//     datakey endpoint of Vault takes no associated data, so a data key is drawn
//     here and encrypted.
//
// What is sent is described at [BindingBytes]. A server ignores parameters it does
// not know, so before a key is used for the first time, and again if it was made
// anew, a probe is encrypted and must not decrypt under another context.
//
// Calls are retried with exponential backoff and jitter within the limits of
// Config; a retry never outlives the caller's context. Errors name the operation,
// the key and the HTTP status, never what the server wrote, which can repeat the
// request. What no one but the engine can decide is only taken from a well-formed
// answer of it; everything else is authority.ErrUnavailable and yields no key. See
// errors.go for the mapping.
//
// Buffers of this package that held key material are cleared; the copies that
// net/http and encoding/json make live until the garbage collector reuses them.
package transit

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"github.com/keyweir/keyweir/internal/strictjson"
	"github.com/keyweir/keyweir/keysvc/authority"
)

// Authority is an authority.Authority over a transit engine. It is safe for
// concurrent use. The zero value is not usable; see [New].
type Authority struct {
	client  *client
	session *session
	limits  Limits
	mount   string
	home    string // the key of ""
	log     *slog.Logger

	mu   sync.Mutex
	keys map[string]*entry // by name; only keys that existed stay, see key.go

	life  context.Context // done once closed
	close context.CancelFunc
}

var (
	_ authority.Authority = (*Authority)(nil)
	_ authority.Opener    = Open
)

// Wrap implements authority.Authority by encrypt.
func (a *Authority) Wrap(ctx context.Context, key string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	const op = "wrapping"
	if len(plaintext) == 0 || len(plaintext) > authority.MaxPlaintext {
		return authority.Wrapped{}, invalid(op, "plaintext of %d bytes, want 1 to %d", len(plaintext), authority.MaxPlaintext)
	}
	name, bind, err := a.resolve(op, key, ec)
	if err != nil {
		return authority.Wrapped{}, err
	}
	return call(ctx, a, op, name, func(ctx context.Context) (authority.Wrapped, *fault) {
		d, f := a.describe(ctx, name)
		if f != nil {
			return authority.Wrapped{}, f
		}
		return a.encrypt(ctx, name, d, plaintext, bind)
	})
}

// Unwrap implements authority.Authority by decrypt.
func (a *Authority) Unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	const op = "unwrapping"
	name, bind, err := a.resolveWrap(op, w, ec)
	if err != nil {
		return nil, err
	}
	return call(ctx, a, op, name, func(ctx context.Context) ([]byte, *fault) {
		d, f := a.describe(ctx, name)
		if f != nil {
			return nil, f
		}
		return a.decrypt(ctx, name, d, w.Blob, bind)
	})
}

// GenerateDataKey implements authority.Authority, by datakey for a derived key
// and by encrypt of fresh random bytes for any other.
func (a *Authority) GenerateDataKey(ctx context.Context, key string, ec authority.Context) ([]byte, authority.Wrapped, error) {
	const op = "generating a data key"
	name, bind, err := a.resolve(op, key, ec)
	if err != nil {
		return nil, authority.Wrapped{}, err
	}
	type made struct {
		key  []byte
		wrap authority.Wrapped
	}
	m, err := call(ctx, a, op, name, func(ctx context.Context) (made, *fault) {
		d, f := a.describe(ctx, name)
		if f != nil {
			return made{}, f
		}
		if d.derived {
			k, w, f := a.datakey(ctx, name, d, bind)
			return made{k, w}, f
		}
		k := make([]byte, authority.DataKeySize)
		_, _ = rand.Read(k) // never fails
		w, f := a.encrypt(ctx, name, d, k, bind)
		if f != nil {
			clear(k)
			return made{}, f
		}
		return made{k, w}, nil
	})
	return m.key, m.wrap, err
}

// Rewrap returns w encrypted anew under the current version of its key: by the
// engine's rewrap for a derived key, so that the key material does not leave the
// engine, and by decrypt and encrypt for any other, because rewrap takes no
// associated data. Errors are those of Unwrap.
func (a *Authority) Rewrap(ctx context.Context, w authority.Wrapped, ec authority.Context) (authority.Wrapped, error) {
	const op = "rewrapping"
	name, bind, err := a.resolveWrap(op, w, ec)
	if err != nil {
		return authority.Wrapped{}, err
	}
	return call(ctx, a, op, name, func(ctx context.Context) (authority.Wrapped, *fault) {
		d, f := a.describe(ctx, name)
		if f != nil {
			return authority.Wrapped{}, f
		}
		if d.derived {
			ans, f := a.ask(ctx, name, "rewrap/"+name, opRequest{Ciphertext: string(w.Blob), Context: bind})
			if f != nil {
				return authority.Wrapped{}, f
			}
			return wrapped(name, ans)
		}
		plain, f := a.decrypt(ctx, name, d, w.Blob, bind)
		if f != nil {
			return authority.Wrapped{}, f
		}
		defer clear(plain)
		return a.encrypt(ctx, name, d, plain, bind)
	})
}

// Close implements authority.Authority. Calls under way end with
// authority.ErrUnavailable. Tokens from a login are not revoked: they end with
// their lease.
func (a *Authority) Close() error {
	a.close()
	a.session.wait()
	a.client.http.CloseIdleConnections()
	return nil
}

// opRequest is the body of encrypt, decrypt, rewrap and datakey. encoding/json
// writes []byte as the standard base64 that the API wants.
type opRequest struct {
	Plaintext      []byte `json:"plaintext,omitempty"`
	Ciphertext     string `json:"ciphertext,omitempty"`
	Context        []byte `json:"context,omitempty"`
	AssociatedData []byte `json:"associated_data,omitempty"`
	Bits           int    `json:"bits,omitempty"`
}

// bound puts the context where the kind of the key wants it.
func (r opRequest) bound(d *description, bind []byte) opRequest {
	if d.derived {
		r.Context = bind
	} else {
		r.AssociatedData = bind
	}
	return r
}

func (a *Authority) encrypt(ctx context.Context, name string, d *description, plaintext, bind []byte) (authority.Wrapped, *fault) {
	ans, f := a.ask(ctx, name, "encrypt/"+name, opRequest{Plaintext: plaintext}.bound(d, bind))
	if f != nil {
		return authority.Wrapped{}, f
	}
	return wrapped(name, ans)
}

func (a *Authority) decrypt(ctx context.Context, name string, d *description, blob, bind []byte) ([]byte, *fault) {
	ans, f := a.ask(ctx, name, "decrypt/"+name, opRequest{Ciphertext: string(blob)}.bound(d, bind))
	if f != nil {
		return nil, f
	}
	return plaintextOf(ans, authority.MaxPlaintext)
}

func (a *Authority) datakey(ctx context.Context, name string, d *description, bind []byte) ([]byte, authority.Wrapped, *fault) {
	ans, f := a.ask(ctx, name, "datakey/plaintext/"+name, opRequest{Bits: 8 * authority.DataKeySize}.bound(d, bind))
	if f != nil {
		return nil, authority.Wrapped{}, f
	}
	k, f := plaintextOf(ans, authority.DataKeySize)
	if f != nil {
		return nil, authority.Wrapped{}, f
	}
	w, f := wrapped(name, ans)
	if f == nil && (len(k) != authority.DataKeySize || subtle.ConstantTimeCompare(k, make([]byte, authority.DataKeySize)) == 1) {
		f = garbage("a data key of %d bytes or of zeros", len(k))
	}
	if f != nil {
		clear(k)
		return nil, authority.Wrapped{}, f
	}
	return k, w, nil
}

// ask posts to the engine about a key it described, and returns the data of the
// answer. A refusal that can come from the state of the key is judged again by
// reading the key: soft-deleted and deleted keys are not told apart, nor from bad
// input, by the status alone.
func (a *Authority) ask(ctx context.Context, name, path string, body opRequest) (answer, *fault) {
	ans, f := a.session.send(ctx, http.MethodPost, a.mount+"/"+path, body)
	if f == nil {
		return ans.object("data")
	}
	if !f.unclear {
		return nil, f
	}
	if _, g := a.reread(ctx, name); g != nil && authority.IsDecision(g.sentinel) {
		return nil, g
	}
	return nil, f
}

// resolve checks what every call gets: the key ("" is the home key) and the context.
func (a *Authority) resolve(op, key string, ec authority.Context) (name string, bind []byte, err error) {
	if bind, err = BindingBytes(ec); err != nil {
		return "", nil, fmt.Errorf("transit: %s: %w", op, err)
	}
	if key == "" {
		return a.home, bind, nil
	}
	if err := checkName(key); err != nil {
		return "", nil, invalid(op, "%v", err)
	}
	return key, bind, nil
}

func (a *Authority) resolveWrap(op string, w authority.Wrapped, ec authority.Context) (name string, bind []byte, err error) {
	if w.KeyID == "" {
		return "", nil, invalid(op, "the wrap names no key")
	}
	if name, bind, err = a.resolve(op, w.KeyID, ec); err != nil {
		return "", nil, err
	}
	version, err := parseBlob(w.Blob)
	if err != nil {
		return "", nil, invalid(op, "%v", err)
	}
	if version != w.Version {
		return "", nil, invalid(op, "the wrap names another key version than its blob")
	}
	return name, bind, nil
}

// wrapped takes the ciphertext out of an answer.
func wrapped(name string, ans answer) (authority.Wrapped, *fault) {
	var text string
	if err := strictjson.Unmarshal(ans["ciphertext"], &text); err != nil {
		return authority.Wrapped{}, garbage("no ciphertext")
	}
	version, err := parseBlob([]byte(text))
	if err != nil {
		return authority.Wrapped{}, garbage("%v", err)
	}
	if raw, ok := ans["key_version"]; ok {
		var n json.Number
		if err := strictjson.Unmarshal(raw, &n); err != nil || n.String() != version {
			return authority.Wrapped{}, garbage("a key version that is not that of the ciphertext")
		}
	}
	return authority.Wrapped{KeyID: name, Version: version, Blob: []byte(text)}, nil
}

// plaintextOf takes the plaintext out of an answer, and clears the answer's copy.
func plaintextOf(ans answer, most int) ([]byte, *fault) {
	raw := ans["plaintext"]
	defer clear(raw)
	if len(raw) < 2 || len(raw) > base64.StdEncoding.EncodedLen(most)+2 || raw[0] != '"' {
		return nil, garbage("no plaintext of the right size")
	}
	text := raw[1 : len(raw)-1]
	out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(out, text)
	if err != nil || n == 0 || n > most {
		clear(out)
		return nil, garbage("a plaintext of %d bytes or malformed", n)
	}
	return out[:n:n], nil
}

// call runs f under the limits of one call and makes its fault an error.
func call[T any](ctx context.Context, a *Authority, op, name string, f func(context.Context) (T, *fault)) (T, error) {
	var none T
	callCtx, cancel := context.WithTimeout(ctx, a.limits.CallTimeout)
	defer cancel()
	defer context.AfterFunc(a.life, cancel)()
	if err := a.stopped(ctx, op); err != nil {
		return none, err
	}
	out, fl := f(callCtx)
	if fl == nil {
		return out, nil
	}
	if errors.Is(fl.sentinel, authority.ErrUnavailable) && callCtx.Err() != nil { // the reason may be on this side
		if err := a.stopped(ctx, op); err != nil {
			return none, err
		}
		fl.detail = fmt.Sprintf("no answer within %v", a.limits.CallTimeout)
	}
	if fl.garbage {
		// Worth a line: the engine does not do this, and something that poses as
		// it might.
		a.log.WarnContext(ctx, "transit answer refused", "op", op, "key", name, "why", fl.detail)
	} else {
		a.log.DebugContext(ctx, "transit call failed", "op", op, "key", name, "fault", fl.String())
	}
	return none, fmt.Errorf("transit: %s under %s: %s: %w", op, name, fl, fl.sentinel)
}

// stopped returns the error of a closed authority or an ended ctx, nil if neither.
func (a *Authority) stopped(ctx context.Context, op string) error {
	if a.life.Err() != nil {
		return fmt.Errorf("transit: %s: closed: %w", op, authority.ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("transit: %s: %w: %w", op, err, authority.ErrUnavailable)
	}
	return nil
}

func invalid(op, format string, args ...any) error {
	return fmt.Errorf("transit: %s: %s: %w", op, fmt.Sprintf(format, args...), authority.ErrInvalid)
}

// String names the authority by its mount and key.
func (a *Authority) String() string { return "transit(" + a.mount + "/" + a.home + ")" }

// Format prints what String returns under every verb.
func (a *Authority) Format(f fmt.State, _ rune) { fmt.Fprint(f, a.String()) }

// LogValue logs what String returns.
func (a *Authority) LogValue() slog.Value { return slog.StringValue(a.String()) }
