// Package execplug is the authority that keeps its managed keys behind a plug-in:
// a program of the operator's that Keyweir starts and talks to.
//
// [Open] opens one by URI, [New] by [Config]:
//
//	a, err := execplug.Open(ctx, "exec:///opt/keyweir/hsm-plugin?key=orders&arg=--slot&arg=2", authority.Options{})
//	if err != nil { ... }
//	defer a.Close()
//
// # Contract, version 1
//
// The program is started once, without a shell, and answers until its standard
// input ends; then it must exit. Requests come as lines on standard input, replies
// go as lines to standard output: each one JSON object in UTF-8, at most
// [MaxLine] bytes with the line feed. Binary values are standard base64 with
// padding. Names must be spelled as here, none may stand twice and no others may
// be sent back. Several requests can be under way; replies may come in any order.
//
// The first request asks for the version; a program that does not speak it exits:
//
//	{"id":1,"op":"hello","protocol":1}
//	{"id":1,"protocol":1}
//
// The operations are those of authority.Authority. "key" is "" or missing for the
// program's default key, and may be an alias; replies name the key itself.
// "version" is left out by a program that hides versions.
//
//	{"id":2,"op":"generate","key":"orders","context":{"scope":"t/7"}}
//	{"id":2,"key":"orders","version":"3","blob":"...","plaintext":"(32 bytes)"}
//	{"id":3,"op":"wrap","key":"orders","context":{"scope":"t/7"},"plaintext":"..."}
//	{"id":3,"key":"orders","version":"3","blob":"..."}
//	{"id":4,"op":"unwrap","key":"orders","version":"3","blob":"...","context":{"scope":"t/7"}}
//	{"id":4,"plaintext":"..."}
//
// The context must be bound into the wrap: with any other, or another key's or a
// damaged blob, unwrap answers "invalid". A failure is one of the words of
// authority's errors, and nothing else:
//
//	{"id":5,"error":"not_found"}   denied disabled destroyed throttled unavailable invalid
//
// Standard error goes to Keyweir's log, shortened; keys must not be written there.
// The environment holds PATH, HOME and TMPDIR and what the URI passes on; neither
// it nor the arguments ever hold key bytes.
//
// # Failures
//
// A program that exits, does not answer in time, or sends a line that is no reply
// is killed, with its process group; calls under way are authority.ErrUnavailable,
// and the next call starts it again after a pause that doubles from [Limits] to its
// maximum while nothing succeeds. A sample program is in the folder sampleplugin.
package execplug

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Authority is an authority.Authority over a plug-in. It is safe for concurrent
// use. The zero value is not usable; see [New].
type Authority struct {
	c   Config
	log *slog.Logger

	sem chan struct{} // held while the program is started

	mu       sync.Mutex
	p        *process        // the last one started; nil at first
	failures int             // starts since a call succeeded
	life     context.Context // done once closed
	close    context.CancelFunc
}

var (
	_ authority.Authority = (*Authority)(nil)
	_ authority.Opener    = Open
)

// Wrap implements authority.Authority.
func (a *Authority) Wrap(ctx context.Context, key string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	const op = "wrapping"
	if len(plaintext) == 0 || len(plaintext) > authority.MaxPlaintext {
		return authority.Wrapped{}, invalid(op, "plaintext of %d bytes, want 1 to %d", len(plaintext), authority.MaxPlaintext)
	}
	key, err := a.resolve(op, key, ec)
	if err != nil {
		return authority.Wrapped{}, err
	}
	r, err := a.call(ctx, op, request{Op: "wrap", Key: key, Plaintext: plaintext, Context: ec})
	if err != nil {
		return authority.Wrapped{}, err
	}
	clear(r.Plaintext)
	return a.wrapped(op, r, r.Plaintext == nil)
}

// Unwrap implements authority.Authority.
func (a *Authority) Unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	const op = "unwrapping"
	switch {
	case w.KeyID == "":
		return nil, invalid(op, "the wrap names no key")
	case len(w.Blob) == 0 || len(w.Blob) > authority.MaxBlob:
		return nil, invalid(op, "blob of %d bytes, want 1 to %d", len(w.Blob), authority.MaxBlob)
	case w.Version != "" && !validName(w.Version, maxVersion):
		return nil, invalid(op, "malformed key version")
	}
	key, err := a.resolve(op, w.KeyID, ec)
	if err != nil {
		return nil, err
	}
	r, err := a.call(ctx, op, request{Op: "unwrap", Key: key, Version: w.Version, Blob: w.Blob, Context: ec})
	if err != nil {
		return nil, err
	}
	if n := len(r.Plaintext); n == 0 || n > authority.MaxPlaintext || r.Key != "" || r.Version != "" || r.Blob != nil {
		clear(r.Plaintext)
		return nil, a.garbage(op)
	}
	return r.Plaintext, nil
}

// GenerateDataKey implements authority.Authority.
func (a *Authority) GenerateDataKey(ctx context.Context, key string, ec authority.Context) ([]byte, authority.Wrapped, error) {
	const op = "generating a data key"
	key, err := a.resolve(op, key, ec)
	if err != nil {
		return nil, authority.Wrapped{}, err
	}
	r, err := a.call(ctx, op, request{Op: "generate", Key: key, Context: ec})
	if err != nil {
		return nil, authority.Wrapped{}, err
	}
	w, err := a.wrapped(op, r, len(r.Plaintext) == authority.DataKeySize && !allZero(r.Plaintext))
	if err != nil {
		clear(r.Plaintext)
		return nil, authority.Wrapped{}, err
	}
	return r.Plaintext, w, nil
}

// Close implements authority.Authority: the program's input ends, and if it has
// not exited within [Limits].Stop it is killed.
func (a *Authority) Close() error {
	a.close()
	a.sem <- struct{}{} // nobody starts it any more
	defer func() { <-a.sem }()
	a.mu.Lock()
	p := a.p
	a.mu.Unlock()
	if p != nil {
		p.stop(a.c.Limits.Stop)
	}
	return nil
}

// maxVersion bounds the name of a key version.
const maxVersion = 256

// resolve checks what every call gets: the key ("" is that of the URI) and the context.
func (a *Authority) resolve(op, key string, ec authority.Context) (string, error) {
	if len(ec) == 0 || len(ec) > authority.MaxContext {
		return "", invalid(op, "encryption context of %d pairs, want 1 to %d", len(ec), authority.MaxContext)
	}
	size := 0
	for name, value := range ec {
		// JSON would replace other bytes, and so let two contexts become one.
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return "", invalid(op, "an encryption context of empty names or not UTF-8")
		}
		size += len(name) + len(value)
	}
	if size > maxContextBytes {
		return "", invalid(op, "encryption context of %d bytes, limit %d", size, maxContextBytes)
	}
	if key == "" {
		return a.c.Key, nil
	}
	if !validName(key, authority.MaxKeyID) {
		return "", invalid(op, "malformed key ID")
	}
	return key, nil
}

// wrapped takes a wrap out of a reply; fits says whether the rest of it is right.
func (a *Authority) wrapped(op string, r reply, fits bool) (authority.Wrapped, error) {
	if !fits || !validName(r.Key, authority.MaxKeyID) || r.Version != "" && !validName(r.Version, maxVersion) ||
		len(r.Blob) == 0 || len(r.Blob) > authority.MaxBlob {
		return authority.Wrapped{}, a.garbage(op)
	}
	return authority.Wrapped{KeyID: r.Key, Version: r.Version, Blob: r.Blob}, nil
}

// validName accepts printable UTF-8 of 1 to most bytes.
func validName(s string, most int) bool {
	if s == "" || len(s) > most || !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// words maps the failures of the contract.
var words = map[string]error{
	"not_found":   authority.ErrNotFound,
	"denied":      authority.ErrDenied,
	"disabled":    authority.ErrDisabled,
	"destroyed":   authority.ErrDestroyed,
	"throttled":   authority.ErrThrottled,
	"unavailable": authority.ErrUnavailable,
	"invalid":     authority.ErrInvalid,
}

// call asks the program, starting it if need be.
func (a *Authority) call(ctx context.Context, op string, q request) (reply, error) {
	callCtx, cancel := context.WithTimeout(ctx, a.c.Limits.Call)
	defer cancel()
	defer context.AfterFunc(a.life, cancel)()
	if err := a.stopped(ctx, op); err != nil {
		return reply{}, err
	}
	p, err := a.running(callCtx)
	if err == nil {
		var r reply
		if r, err = p.ask(callCtx, q); err == nil {
			return a.answered(op, r)
		}
	}
	if err := a.stopped(ctx, op); err != nil {
		return reply{}, err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", a.c.Limits.Call)
	}
	a.log.DebugContext(ctx, "plug-in call failed", "op", op, "why", err)
	return reply{}, fmt.Errorf("exec: %s: %v: %w", op, err, authority.ErrUnavailable)
}

// answered judges a reply and, as the program works, forgets its failures.
func (a *Authority) answered(op string, r reply) (reply, error) {
	a.mu.Lock()
	a.failures = 0
	a.mu.Unlock()
	if r.Protocol != 0 {
		clear(r.Plaintext)
		return reply{}, a.garbage(op)
	}
	if r.Error == "" {
		return r, nil
	}
	clear(r.Plaintext)
	sentinel, ok := words[r.Error]
	if !ok || r.Plaintext != nil || r.Blob != nil || r.Key != "" || r.Version != "" {
		return reply{}, a.garbage(op)
	}
	return reply{}, fmt.Errorf("exec: %s: the plug-in answers %s: %w", op, r.Error, sentinel)
}

// running returns the program, started and greeted.
func (a *Authority) running(ctx context.Context) (*process, error) {
	if p := a.alive(); p != nil {
		return p, nil
	}
	select {
	case a.sem <- struct{}{}:
		defer func() { <-a.sem }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p := a.alive(); p != nil {
		return p, nil
	}
	a.mu.Lock()
	last, n := a.p, a.failures
	a.mu.Unlock()
	if last != nil {
		last.stop(0) // it is dead; nothing of it stays
		if err := a.rest(ctx, last.ended, n); err != nil {
			return nil, err
		}
	}
	if a.life.Err() != nil {
		return nil, errors.New("closed")
	}
	p, err := startProcess(a.c, a.log)
	if err != nil {
		p = deadProcess(err) // so that the next start waits
	} else {
		// Not the caller's context: the next caller profits from the start.
		greet, cancel := context.WithTimeout(a.life, a.c.Limits.Start)
		defer cancel()
		if err = p.greet(greet); err != nil {
			p.die(err.Error())
		}
	}
	a.mu.Lock()
	a.p = p
	a.failures++
	a.mu.Unlock()
	if err != nil {
		a.log.Warn("plug-in did not start", "why", err)
		return nil, err
	}
	return p, nil
}

func (a *Authority) alive() *process {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.p == nil || a.p.isDead() {
		return nil
	}
	return a.p
}

// rest waits before the program is started again, n starts after it last worked.
func (a *Authority) rest(ctx context.Context, ended time.Time, n int) error {
	if n == 0 {
		return nil
	}
	d := a.c.Limits.MaxPause
	if n < 16 {
		d = min(d, a.c.Limits.Pause<<(n-1))
	}
	t := time.NewTimer(time.Until(ended.Add(d/2 + rand.N(d/2+1))))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errors.New("the plug-in failed and is not started again yet")
	}
}

// stopped returns the error of a closed authority or an ended ctx, nil if neither.
func (a *Authority) stopped(ctx context.Context, op string) error {
	if a.life.Err() != nil {
		return fmt.Errorf("exec: %s: closed: %w", op, authority.ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("exec: %s: %w: %w", op, err, authority.ErrUnavailable)
	}
	return nil
}

// garbage is the error for a reply that does not fit the question.
func (a *Authority) garbage(op string) error {
	a.log.Warn("plug-in reply refused", "op", op)
	return fmt.Errorf("exec: %s: the plug-in's reply does not fit: %w", op, authority.ErrUnavailable)
}

func invalid(op, format string, args ...any) error {
	return fmt.Errorf("exec: %s: %s: %w", op, fmt.Sprintf(format, args...), authority.ErrInvalid)
}

func allZero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}

// String names the authority by its program.
func (a *Authority) String() string { return "exec(" + a.c.Path + ")" }

// Format prints what String returns under every verb.
func (a *Authority) Format(f fmt.State, _ rune) { fmt.Fprint(f, a.String()) }

// LogValue logs what String returns.
func (a *Authority) LogValue() slog.Value { return slog.StringValue(a.String()) }
