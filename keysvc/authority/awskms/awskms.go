// Package awskms is the authority that keeps its managed keys in AWS KMS.
//
// [Open] opens one by URI, [New] by [Config]:
//
//	a, err := awskms.Open(ctx, "awskms:///arn:aws:kms:eu-west-1:111122223333:key/1234abcd", authority.Options{})
//	if err != nil { ... }
//	defer a.Close()
//	dek, wrap, err := a.GenerateDataKey(ctx, "", authority.Context{"scope": "tenant/7"})
//
// Opening asks nobody: a missing key or permission shows at the first call. The
// encryption context goes into every call. A wrap names the key that KMS says it
// used, never an alias, and unwrapping passes that key on, so that neither a
// re-pointed alias nor another key's wrap is accepted. A wrap's blob is the
// ciphertext of KMS, nothing around it: "aws kms decrypt" opens it.
//
// Calls are retried by the SDK with exponential backoff and jitter within the
// limits of Config; a retry never outlives the caller's context. Errors name the
// operation, the key, the code of KMS, the HTTP status and the request ID, never
// the message KMS sent, which can repeat the request. What no one but KMS can
// decide is only taken from a well-formed answer of KMS: everything else,
// answers that do not fit the question included, is authority.ErrUnavailable and
// yields no key. See errors.go for the mapping.
//
// The SDK encodes requests and answers into buffers of its own; those copies of
// key material live until the garbage collector reuses them.
package awskms

import (
	"context"
	"fmt"
	"log/slog"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// Client is the part of the KMS client that an authority uses; *kms.Client
// implements it.
type Client interface {
	Encrypt(context.Context, *kms.EncryptInput, ...func(*kms.Options)) (*kms.EncryptOutput, error)
	Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
	GenerateDataKey(context.Context, *kms.GenerateDataKeyInput, ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error)
}

// Authority is an authority.Authority over AWS KMS. It is safe for concurrent
// use. The zero value is not usable; see [New].
type Authority struct {
	client Client
	limits Limits
	home   keyRef // the key of ""
	region string // "" if unknown (a client of the caller's)
	log    *slog.Logger

	life  context.Context // done once closed
	close context.CancelFunc
	idle  func() // closes idle connections
}

var (
	_ authority.Authority = (*Authority)(nil)
	_ authority.Opener    = Open
)

// Wrap implements authority.Authority by kms:Encrypt.
func (a *Authority) Wrap(ctx context.Context, key string, plaintext []byte, ec authority.Context) (authority.Wrapped, error) {
	const op = "wrapping"
	if len(plaintext) == 0 || len(plaintext) > authority.MaxPlaintext {
		return authority.Wrapped{}, invalid(op, "plaintext of %d bytes, want 1 to %d", len(plaintext), authority.MaxPlaintext)
	}
	ref, err := a.resolve(op, key, ec)
	if err != nil {
		return authority.Wrapped{}, err
	}
	out, err := call(ctx, a, op, ref, func(ctx context.Context) (*kms.EncryptOutput, error) {
		return a.client.Encrypt(ctx, &kms.EncryptInput{
			KeyId:               aws.String(ref.text),
			Plaintext:           plaintext,
			EncryptionContext:   ec,
			EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
		})
	})
	if err != nil {
		return authority.Wrapped{}, err
	}
	return a.wrapped(op, ref, out.KeyId, out.CiphertextBlob)
}

// Unwrap implements authority.Authority by kms:Decrypt.
func (a *Authority) Unwrap(ctx context.Context, w authority.Wrapped, ec authority.Context) ([]byte, error) {
	const op = "unwrapping"
	switch {
	case w.KeyID == "":
		return nil, invalid(op, "the wrap names no key")
	case w.Version != "":
		return nil, invalid(op, "the wrap names a key version, KMS hides them")
	case len(w.Blob) == 0 || len(w.Blob) > authority.MaxBlob:
		return nil, invalid(op, "blob of %d bytes, want 1 to %d", len(w.Blob), authority.MaxBlob)
	}
	ref, err := a.resolve(op, w.KeyID, ec)
	if err != nil {
		return nil, err
	}
	if ref.alias {
		return nil, invalid(op, "the wrap names an alias, not a key")
	}
	out, err := call(ctx, a, op, ref, func(ctx context.Context) (*kms.DecryptOutput, error) {
		return a.client.Decrypt(ctx, &kms.DecryptInput{
			KeyId:               aws.String(ref.text),
			CiphertextBlob:      w.Blob,
			EncryptionContext:   ec,
			EncryptionAlgorithm: types.EncryptionAlgorithmSpecSymmetricDefault,
		})
	})
	if err != nil {
		return nil, err
	}
	if _, why := a.answered(ref, out.KeyId); why != "" {
		clear(out.Plaintext)
		return nil, a.garbage(op, ref, why)
	}
	if n := len(out.Plaintext); n == 0 || n > authority.MaxPlaintext {
		clear(out.Plaintext)
		return nil, a.garbage(op, ref, fmt.Sprintf("plaintext of %d bytes", n))
	}
	return out.Plaintext, nil
}

// GenerateDataKey implements authority.Authority by kms:GenerateDataKey.
func (a *Authority) GenerateDataKey(ctx context.Context, key string, ec authority.Context) ([]byte, authority.Wrapped, error) {
	const op = "generating a data key"
	ref, err := a.resolve(op, key, ec)
	if err != nil {
		return nil, authority.Wrapped{}, err
	}
	out, err := call(ctx, a, op, ref, func(ctx context.Context) (*kms.GenerateDataKeyOutput, error) {
		return a.client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId:             aws.String(ref.text),
			KeySpec:           types.DataKeySpecAes256,
			EncryptionContext: ec,
		})
	})
	if err != nil {
		return nil, authority.Wrapped{}, err
	}
	w, err := a.wrapped(op, ref, out.KeyId, out.CiphertextBlob)
	if err != nil {
		clear(out.Plaintext)
		return nil, authority.Wrapped{}, err
	}
	if n := len(out.Plaintext); n != authority.DataKeySize {
		clear(out.Plaintext)
		return nil, authority.Wrapped{}, a.garbage(op, ref, fmt.Sprintf("data key of %d bytes", n))
	}
	if allZero(out.Plaintext) {
		return nil, authority.Wrapped{}, a.garbage(op, ref, "data key of zeros")
	}
	return out.Plaintext, w, nil
}

// Close implements authority.Authority. Calls under way end with
// authority.ErrUnavailable.
func (a *Authority) Close() error {
	a.close()
	a.idle()
	return nil
}

// resolve checks what every call gets: the key ("" is the home key) and the context.
func (a *Authority) resolve(op, key string, ec authority.Context) (keyRef, error) {
	if len(ec) == 0 || len(ec) > authority.MaxContext {
		return keyRef{}, invalid(op, "encryption context of %d pairs, want 1 to %d", len(ec), authority.MaxContext)
	}
	for name, value := range ec {
		// JSON would replace other bytes, and so let two contexts become one.
		if name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return keyRef{}, invalid(op, "an encryption context of empty names or not UTF-8")
		}
	}
	if key == "" {
		return a.home, nil
	}
	ref, err := parseKey(key)
	if err != nil {
		return keyRef{}, invalid(op, "%v", err)
	}
	if why := a.foreign(ref); why != "" {
		return keyRef{}, invalid(op, "%s", why)
	}
	return ref, nil
}

// foreign returns why a key argument or an answer lies outside the authority, ""
// if it does not. Opened by an ARN, an authority stays in the account and region
// of that ARN: a forged wrap cannot make it ask under a key of somebody else.
func (a *Authority) foreign(ref keyRef) string {
	switch {
	case ref.region == "":
		return ""
	case a.region != "" && ref.region != a.region:
		return fmt.Sprintf("a key in region %s, the authority is in %s", ref.region, a.region)
	case a.home.region != "" && (ref.partition != a.home.partition || ref.region != a.home.region || ref.account != a.home.account):
		return "a key outside the account of the authority's own"
	}
	return ""
}

// wrapped checks the answer to Encrypt or GenerateDataKey.
func (a *Authority) wrapped(op string, asked keyRef, keyID *string, blob []byte) (authority.Wrapped, error) {
	id, why := a.answered(asked, keyID)
	if why != "" {
		return authority.Wrapped{}, a.garbage(op, asked, why)
	}
	if len(blob) == 0 || len(blob) > authority.MaxBlob {
		return authority.Wrapped{}, a.garbage(op, asked, fmt.Sprintf("blob of %d bytes", len(blob)))
	}
	return authority.Wrapped{KeyID: id, Blob: blob}, nil
}

// answered checks the key an answer names: a key, not an alias, and the one that
// was asked for. why is "" if it is.
func (a *Authority) answered(asked keyRef, keyID *string) (id, why string) {
	if keyID == nil {
		return "", "no key named"
	}
	got, err := parseKey(*keyID)
	switch {
	case err != nil:
		return "", "a malformed key named"
	case got.alias:
		return "", "an alias named"
	case a.foreign(got) != "":
		return "", a.foreign(got)
	case !got.answers(asked):
		return "", "another key named"
	}
	return got.text, ""
}

// call runs one operation within the authority's time limit and lifetime.
func call[T any](ctx context.Context, a *Authority, op string, ref keyRef, f func(context.Context) (*T, error)) (*T, error) {
	callCtx, cancel := context.WithTimeout(ctx, a.limits.CallTimeout)
	defer cancel()
	defer context.AfterFunc(a.life, cancel)()
	if err := a.stopped(ctx, op); err != nil {
		return nil, err
	}
	out, err := f(callCtx)
	if err == nil && out == nil {
		return nil, a.garbage(op, ref, "no answer")
	}
	if err == nil {
		return out, nil
	}
	fault := classify(err)
	if fault.code == "" { // not an answer of KMS: the reason may be on this side
		if err := a.stopped(ctx, op); err != nil {
			return nil, err
		}
		if callCtx.Err() != nil {
			fault.detail = fmt.Sprintf("no answer within %v", a.limits.CallTimeout)
		}
	}
	a.log.DebugContext(ctx, "kms call failed", "op", op, "key", ref.text, "fault", fault.String())
	return nil, fmt.Errorf("awskms: %s under %s: %s: %w", op, ref.text, fault, fault.sentinel)
}

// stopped returns the error of a closed authority or an ended ctx, nil if neither.
func (a *Authority) stopped(ctx context.Context, op string) error {
	if a.life.Err() != nil {
		return fmt.Errorf("awskms: %s: closed: %w", op, authority.ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("awskms: %s: %w: %w", op, err, authority.ErrUnavailable)
	}
	return nil
}

// garbage is the error for an answer that does not fit the question. It says
// nothing about the key, so it is no decision; it is worth a line in the log,
// because KMS does not do this and something that poses as KMS might.
func (a *Authority) garbage(op string, ref keyRef, why string) error {
	a.log.Warn("kms answer refused", "op", op, "key", ref.text, "why", why)
	return fmt.Errorf("awskms: %s under %s: unusable answer: %s: %w", op, ref.text, why, authority.ErrUnavailable)
}

func invalid(op, format string, args ...any) error {
	return fmt.Errorf("awskms: %s: %s: %w", op, fmt.Sprintf(format, args...), authority.ErrInvalid)
}

func allZero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}

// String names the authority by its key.
func (a *Authority) String() string { return "awskms(" + a.home.text + ")" }

// Format prints what String returns under every verb.
func (a *Authority) Format(f fmt.State, _ rune) { fmt.Fprint(f, a.String()) }

// LogValue logs what String returns.
func (a *Authority) LogValue() slog.Value { return slog.StringValue(a.String()) }
