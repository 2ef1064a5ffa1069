package awskms_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/awskms"
	"github.com/keyweir/keyweir/keysvc/authority/awskms/kmstest"
)

const (
	testID    = "1234abcd-12ab-34cd-56ef-1234567890ab"
	testARN   = "arn:aws:kms:" + kmstest.Region + ":111122223333:key/" + testID
	otherARN  = "arn:aws:kms:" + kmstest.Region + ":111122223333:key/99999999-12ab-34cd-56ef-1234567890ab"
	testAlias = "arn:aws:kms:" + kmstest.Region + ":111122223333:alias/keyweir"
)

var (
	testContext = authority.Context{"scope": "tenant/7"}
	secret      = []byte("0123456789abcdef0123456789ABCDEF")
)

// quick are limits that let a test fail soon; the pauses stay jittered.
func quick() awskms.Limits {
	return awskms.Limits{AttemptTimeout: 5 * time.Second, CallTimeout: 20 * time.Second, MaxAttempts: 3, MaxBackoff: 4 * time.Millisecond}
}

// stubbed opens an authority on a proxy without an emulator behind it.
func stubbed(t testing.TB, l awskms.Limits) (*awskms.Authority, *kmstest.Proxy) {
	t.Helper()
	p := kmstest.NewProxy(t, "")
	return open(t, awskms.Config{KeyID: testARN, Endpoint: p.URL, Limits: l}), p
}

// operations are the three calls, each with its error and whatever data it gave.
func operations(ctx context.Context, a *awskms.Authority) map[string]func() ([]byte, error) {
	return map[string]func() ([]byte, error){
		"Wrap": func() ([]byte, error) {
			w, err := a.Wrap(ctx, "", secret, testContext)
			return w.Blob, err
		},
		"GenerateDataKey": func() ([]byte, error) {
			p, w, err := a.GenerateDataKey(ctx, "", testContext)
			return append(p, w.Blob...), err
		},
		"Unwrap": func() ([]byte, error) {
			return a.Unwrap(ctx, authority.Wrapped{KeyID: testARN, Blob: []byte("blob")}, testContext)
		},
	}
}

// failAll requires that each operation fails with want, with no data.
func failAll(t *testing.T, a *awskms.Authority, want error, check func(op string, err error)) {
	t.Helper()
	for op, f := range operations(t.Context(), a) {
		data, err := f()
		if cerr := authoritytest.CheckError(err, want, secret); cerr != nil {
			t.Errorf("%s: %v", op, cerr)
		}
		if len(data) != 0 {
			t.Errorf("%s failed and returned %d bytes", op, len(data))
		}
		if check != nil && err != nil {
			check(op, err)
		}
	}
}

func TestErrorMapping(t *testing.T) {
	const ciphertextRefers = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access."
	for _, c := range []struct {
		status        int
		code, message string
		want          error
		retried       bool
	}{
		{400, "NotFoundException", "Key 'x' does not exist", authority.ErrNotFound, false},

		{400, "AccessDeniedException", "User: x is not authorized to perform: kms:Decrypt", authority.ErrDenied, false},
		{400, "AccessDeniedException", "", authority.ErrDenied, false},
		{403, "AccessDenied", "", authority.ErrDenied, false},
		{400, "UnrecognizedClientException", "The security token included in the request is invalid.", authority.ErrDenied, false},
		{403, "InvalidClientTokenId", "", authority.ErrDenied, false},
		{400, "InvalidSignatureException", "The request signature we calculated does not match", authority.ErrDenied, false},
		{403, "SignatureDoesNotMatch", "", authority.ErrDenied, false},
		{400, "IncompleteSignatureException", "", authority.ErrDenied, false},
		{400, "MissingAuthenticationTokenException", "", authority.ErrDenied, false},
		{400, "NotAuthorizedException", "", authority.ErrDenied, false},
		{403, "OptInRequired", "", authority.ErrDenied, false},
		{400, "InvalidGrantTokenException", "", authority.ErrDenied, false},
		{403, "SomeNewAuthException", "", authority.ErrDenied, false},
		{401, "SomeNewAuthException", "", authority.ErrDenied, false},

		{400, "DisabledException", "x is disabled.", authority.ErrDisabled, false},
		{400, "KMSInvalidStateException", "x is pending deletion.", authority.ErrDisabled, false},
		{400, "KMSInvalidStateException", "x is pending import.", authority.ErrDisabled, false},
		{400, "KMSInvalidStateException", "x is pending replica deletion.", authority.ErrDisabled, false},
		{400, "KMSInvalidStateException", "something new", authority.ErrDisabled, false},
		{400, "KMSInvalidStateException", "", authority.ErrDisabled, false},
		{400, "KMSInvalidStateException", "alias/x is unavailable is pending deletion.", authority.ErrDisabled, false},
		{400, "KMSInvalidStateException", "x is unavailable.", authority.ErrUnavailable, false},
		{400, "KMSInvalidStateException", "x is creating.", authority.ErrUnavailable, false},
		{400, "KMSInvalidStateException", "The external key store proxy did not respond to the request in time.", authority.ErrUnavailable, false},
		{400, "KMSInvalidStateException", "The external key store proxy denied access to the specified key.", authority.ErrDisabled, false},

		{400, "InvalidCiphertextException", "", authority.ErrInvalid, false},
		{400, "IncorrectKeyException", "", authority.ErrInvalid, false},
		{400, "AccessDeniedException", ciphertextRefers, authority.ErrInvalid, false},
		{400, "InvalidKeyUsageException", "", authority.ErrInvalid, false},
		{400, "InvalidArnException", "", authority.ErrInvalid, false},
		{400, "ValidationException", "", authority.ErrInvalid, false},
		{400, "SerializationException", "", authority.ErrInvalid, false},
		{400, "UnsupportedOperationException", "", authority.ErrInvalid, false},
		{400, "DryRunOperationException", "", authority.ErrInvalid, false},
		{400, "MissingParameterException", "", authority.ErrInvalid, false},
		{400, "SomeNewException", "", authority.ErrInvalid, false},

		{400, "ThrottlingException", "Rate exceeded", authority.ErrThrottled, true},
		{400, "LimitExceededException", "", authority.ErrThrottled, true},
		{400, "RequestLimitExceeded", "", authority.ErrThrottled, true},
		{429, "TooManyRequestsException", "", authority.ErrThrottled, true},
		{429, "SomeNewThrottle", "", authority.ErrThrottled, true},
		{503, "ThrottlingException", "", authority.ErrThrottled, true},

		{503, "DependencyTimeoutException", "", authority.ErrUnavailable, true},
		{500, "KMSInternalException", "", authority.ErrUnavailable, true},
		{500, "KeyUnavailableException", "", authority.ErrUnavailable, true},
		{500, "InternalFailure", "", authority.ErrUnavailable, true},
		{503, "ServiceUnavailableException", "", authority.ErrUnavailable, true},
		{500, "SomeNewException", "", authority.ErrUnavailable, true},
		{400, "RequestTimeoutException", "", authority.ErrUnavailable, true},

		{400, "ExpiredTokenException", "The security token included in the request is expired", authority.ErrUnavailable, false},
		{403, "ExpiredToken", "", authority.ErrUnavailable, false},
		{403, "RequestExpired", "", authority.ErrUnavailable, false},
		{400, "InvalidSignatureException", "Signature expired: 20260101T000000Z is now earlier than 20260101T000500Z", authority.ErrUnavailable, false},
		{400, "InvalidSignatureException", "Signature not yet current: x", authority.ErrUnavailable, false},
	} {
		t.Run(c.code+"/"+http.StatusText(c.status)+"/"+c.message, func(t *testing.T) {
			l := quick()
			a, p := stubbed(t, l)
			for op, f := range operations(t.Context(), a) {
				// What KMS writes beside the code must not reach our text.
				p.Script(kmstest.Exception(c.status, c.code, c.message))
				data, err := f()
				if cerr := authoritytest.CheckError(err, c.want); cerr != nil {
					t.Errorf("%s: %v", op, cerr)
					continue
				}
				if len(data) != 0 {
					t.Errorf("%s failed and returned %d bytes", op, len(data))
				}
				if text := err.Error(); !strings.Contains(text, c.code) || c.message != "" && strings.Contains(text, c.message) ||
					!strings.Contains(text, "request 0f1e2d3c") || !strings.Contains(text, testARN) {
					t.Errorf("%s: the text %q should name code, request and key, and not the message", op, text)
				}
				want := 1
				if c.retried {
					want = l.MaxAttempts
				}
				if got := p.Calls(); got != want {
					t.Errorf("%s: %d attempts, want %d", op, got, want)
				}
			}
		})
	}
}

func TestMessageIsNotShown(t *testing.T) {
	// An emulator (and, who knows, a service) quotes the request in its message;
	// something that poses as KMS can put it into the code.
	a, p := stubbed(t, quick())
	p.Script(kmstest.Exception(400, "ValidationException", "Value '"+string(secret)+"' at 'plaintext' failed"))
	failAll(t, a, authority.ErrInvalid, nil)
	p.Script(kmstest.Exception(400, "Value '"+string(secret)+"'", ""))
	failAll(t, a, authority.ErrUnavailable, nil)
	p.Script(kmstest.Exception(400, "", string(secret)))
	failAll(t, a, authority.ErrUnavailable, nil)
}

func TestNotAnAnswerOfKMS(t *testing.T) {
	big := strings.Repeat("x", 1<<20)
	for name, h := range map[string]http.HandlerFunc{
		"page 403":    kmstest.Status(403),
		"page 404":    kmstest.Status(404),
		"page 407":    kmstest.Status(407),
		"page 429":    kmstest.Status(429),
		"page 502":    kmstest.Status(502),
		"page 503":    kmstest.Status(503),
		"reset":       kmstest.Reset,
		"empty 200":   func(http.ResponseWriter, *http.Request) {},
		"html 200":    kmstest.Status(200),
		"not json":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"KeyId":`)) },
		"not base64":  kmstest.Answer(map[string]any{"KeyId": testARN, "Plaintext": "%%%", "CiphertextBlob": "%%%"}),
		"wrong types": kmstest.Answer(map[string]any{"KeyId": 7, "Plaintext": true, "CiphertextBlob": []int{1}}),
		"endless":     kmstest.Answer(map[string]any{"KeyId": testARN, "Plaintext": big, "CiphertextBlob": big}),
		"array":       kmstest.Answer([]string{"KeyId"}),
		"no fields":   kmstest.Answer(map[string]any{}),
		"null fields": kmstest.Answer(map[string]any{"KeyId": nil, "Plaintext": nil, "CiphertextBlob": nil}),
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
		"redirect back": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusPermanentRedirect) },
	} {
		t.Run(name, func(t *testing.T) {
			l := quick()
			a, p := stubbed(t, l)
			p.Script(h)
			failAll(t, a, authority.ErrUnavailable, nil)
			if got, most := p.Calls(), 3*l.MaxAttempts; got < 3 || got > most {
				t.Errorf("%d attempts of three calls, want 3 to %d", got, most)
			}
		})
	}
}

func TestLyingAnswers(t *testing.T) {
	type body = map[string]any
	good := body{"KeyId": testARN, "Plaintext": secret, "CiphertextBlob": []byte("blob")}
	change := func(name string, value any) body {
		b := body{}
		for k, v := range good {
			b[k] = v
		}
		b[name] = value
		return b
	}
	all := []string{"Wrap", "GenerateDataKey", "Unwrap"}
	for _, c := range []struct {
		name string
		body body
		ops  []string
	}{
		{"another key", change("KeyId", otherARN), all},
		{"a key of another account", change("KeyId", "arn:aws:kms:eu-west-1:999999999999:key/"+testID), all},
		{"a key of another region", change("KeyId", "arn:aws:kms:us-east-1:111122223333:key/"+testID), all},
		{"a key of another partition", change("KeyId", "arn:aws-cn:kms:eu-west-1:111122223333:key/"+testID), all},
		{"an alias", change("KeyId", testAlias), all},
		{"no key", change("KeyId", ""), all},
		{"a malformed key", change("KeyId", "arn:aws:s3:::bucket"), all},
		{"an oversized key", change("KeyId", strings.Repeat("k", authority.MaxKeyID+1)), all},
		{"an empty blob", change("CiphertextBlob", []byte{}), all[:2]},
		{"no blob", change("CiphertextBlob", nil), all[:2]},
		{"an oversized blob", change("CiphertextBlob", make([]byte, authority.MaxBlob+1)), all[:2]},
		{"an empty plaintext", change("Plaintext", []byte{}), all[1:]},
		{"no plaintext", change("Plaintext", nil), all[1:]},
		{"an oversized plaintext", change("Plaintext", make([]byte, authority.MaxPlaintext+1)), all[1:]},
		{"a short data key", change("Plaintext", secret[:16]), all[1:2]},
		{"a long data key", change("Plaintext", append(secret[:32:32], 0)), all[1:2]},
		{"a data key of zeros", change("Plaintext", make([]byte, authority.DataKeySize)), all[1:2]},
	} {
		a, p := stubbed(t, quick())
		calls := operations(t.Context(), a)
		for _, op := range c.ops {
			p.Script(kmstest.Answer(c.body))
			data, err := calls[op]()
			if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret); cerr != nil {
				t.Errorf("%s answered with %s: %v", op, c.name, cerr)
			}
			if len(data) != 0 {
				t.Errorf("%s answered with %s returned %d bytes", op, c.name, len(data))
			}
		}
		p.Script(kmstest.Answer(good))
		for _, op := range all {
			if _, err := calls[op](); err != nil {
				t.Fatalf("%s with a good answer = %v", op, err)
			}
		}
	}
}

func TestLyingAnswersToAnAlias(t *testing.T) {
	for _, home := range []string{"alias/keyweir", testAlias} {
		p := kmstest.NewProxy(t, "")
		a := open(t, awskms.Config{KeyID: home, Endpoint: p.URL, Limits: quick()})
		for id, want := range map[string]error{
			testARN:  nil,
			otherARN: nil, // an alias may name any key of its account
			testID:   nil,
			"arn:aws:kms:us-east-1:111122223333:key/" + testID: authority.ErrUnavailable,
			testAlias:       authority.ErrUnavailable,
			"alias/keyweir": authority.ErrUnavailable,
		} {
			p.Script(kmstest.Answer(map[string]any{"KeyId": id, "Plaintext": secret, "CiphertextBlob": []byte("blob")}))
			_, w, err := a.GenerateDataKey(t.Context(), "", testContext)
			if want == nil && (err != nil || w.KeyID != id) {
				t.Errorf("%s answered with %s: %q, %v", home, id, w.KeyID, err)
			}
			if want != nil {
				if cerr := authoritytest.CheckError(err, want, secret); cerr != nil {
					t.Errorf("%s answered with %s: %v", home, id, cerr)
				}
			}
		}
	}
}

func TestRetriesSucceed(t *testing.T) {
	s := kmstest.LocalKMS(t)
	p := kmstest.NewProxy(t, s.Endpoint)
	a := open(t, awskms.Config{KeyID: s.ARNs[0], Endpoint: p.URL, Limits: quick()})
	w, err := a.Wrap(t.Context(), "", secret, testContext)
	if err != nil {
		t.Fatalf("Wrap = %v", err)
	}
	for name, fault := range map[string]http.HandlerFunc{
		"throttled": kmstest.Exception(400, "ThrottlingException", "Rate exceeded"),
		"500":       kmstest.Exception(500, "KMSInternalException", ""),
		"502":       kmstest.Status(502),
		"503":       kmstest.Status(503),
		"reset":     kmstest.Reset,
	} {
		for op, f := range map[string]func() ([]byte, error){
			"Wrap": func() ([]byte, error) {
				_, err := a.Wrap(t.Context(), "", secret, testContext)
				return secret, err
			},
			"GenerateDataKey": func() ([]byte, error) {
				_, _, err := a.GenerateDataKey(t.Context(), "", testContext)
				return secret, err
			},
			"Unwrap": func() ([]byte, error) { return a.Unwrap(t.Context(), w, testContext) },
		} {
			p.Script(nil, kmstest.Times(2, fault)...)
			got, err := f()
			if err != nil || string(got) != string(secret) {
				t.Errorf("%s after two times %s: %v", op, name, err)
			}
			if n := p.Calls(); n != 3 {
				t.Errorf("%s after two times %s took %d attempts, want 3", op, name, n)
			}
		}
	}
	// A decision is final: no second question.
	s.Disable(t, s.Keys[0])
	defer s.Enable(t, s.Keys[0])
	p.Script(nil)
	if _, err := a.Unwrap(t.Context(), w, testContext); !errors.Is(err, authority.ErrDisabled) || p.Calls() != 1 {
		t.Errorf("Unwrap under a disabled key = %v after %d attempts, want ErrDisabled after 1", err, p.Calls())
	}
}

func TestKeyPendingDeletion(t *testing.T) {
	s := kmstest.LocalKMS(t)
	a := open(t, awskms.Config{KeyID: s.ARNs[0], Endpoint: s.Endpoint})
	w, err := a.Wrap(t.Context(), "", secret, testContext)
	if err != nil {
		t.Fatalf("Wrap = %v", err)
	}
	s.ScheduleDeletion(t, s.Keys[0])
	for op, f := range map[string]func() error{
		"Wrap":            func() error { _, err := a.Wrap(t.Context(), "", secret, testContext); return err },
		"GenerateDataKey": func() error { _, _, err := a.GenerateDataKey(t.Context(), "", testContext); return err },
		"Unwrap":          func() error { _, err := a.Unwrap(t.Context(), w, testContext); return err },
	} {
		if cerr := authoritytest.CheckError(f(), authority.ErrDisabled, secret); cerr != nil {
			t.Errorf("%s under a key pending deletion: %v", op, cerr)
		}
	}
}

func TestMovedAliasKeepsOldWraps(t *testing.T) {
	s := kmstest.LocalKMS(t)
	a := open(t, awskms.Config{KeyID: s.Alias, Endpoint: s.Endpoint})
	old, err := a.Wrap(t.Context(), "", secret, testContext)
	if err != nil || old.KeyID != s.ARNs[0] {
		t.Fatalf("Wrap = %q, %v, want %q", old.KeyID, err, s.ARNs[0])
	}
	s.MoveAlias(t, s.Keys[1])
	moved, err := a.Wrap(t.Context(), "", secret, testContext)
	if err != nil || moved.KeyID != s.ARNs[1] {
		t.Fatalf("Wrap after moving the alias = %q, %v, want %q", moved.KeyID, err, s.ARNs[1])
	}
	for _, w := range []authority.Wrapped{old, moved} {
		if got, err := a.Unwrap(t.Context(), w, testContext); err != nil || string(got) != string(secret) {
			t.Errorf("Unwrap of a wrap under %s = %v", w.KeyID, err)
		}
	}
	old.KeyID = s.Alias
	if _, err := a.Unwrap(t.Context(), old, testContext); !errors.Is(err, authority.ErrInvalid) {
		t.Errorf("Unwrap through an alias = %v, want ErrInvalid", err)
	}
}
