package awskms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/awskms"
	"github.com/keyweir/keyweir/keysvc/authority/awskms/kmstest"
)

// TestMain takes the machine's AWS configuration out of the tests.
func TestMain(m *testing.M) {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("AWS_CONFIG_FILE", os.DevNull)
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	os.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	os.Exit(m.Run())
}

func TestOpenThroughTheDefaultChain(t *testing.T) {
	s := kmstest.LocalKMS(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "chain-secret")
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	endpoint := "endpoint=" + s.Endpoint
	for _, uri := range []string{
		"awskms:///" + s.ARNs[0] + "?" + endpoint,
		"awskms:///" + s.Keys[0] + "?region=eu-west-1&" + endpoint,
		"awskms:///" + s.Alias + "?region=eu-west-1&" + endpoint,
		"awskms:///arn:aws:kms:eu-west-1:111122223333:" + s.Alias + "?region=eu-west-1&" + endpoint,
	} {
		a, err := awskms.Open(t.Context(), uri, authority.Options{})
		if err != nil {
			t.Fatalf("Open(%s) = %v", uri, err)
		}
		key, w, err := a.GenerateDataKey(t.Context(), "", testContext)
		if err != nil {
			t.Fatalf("%s: GenerateDataKey = %v", uri, err)
		}
		if w.KeyID != s.ARNs[0] || w.Version != "" {
			t.Errorf("%s: the wrap names %q, %q, want %q and no version", uri, w.KeyID, w.Version, s.ARNs[0])
		}
		got, err := a.Unwrap(t.Context(), w, testContext)
		if err != nil || !bytes.Equal(got, key) {
			t.Errorf("%s: Unwrap = %v", uri, err)
		}
		// The blob is what KMS made: any KMS client opens it.
		out, err := s.Admin.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: w.Blob, EncryptionContext: testContext})
		if err != nil || !bytes.Equal(out.Plaintext, key) {
			t.Errorf("%s: decrypting without keyweir = %v", uri, err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	const arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd"
	for _, uri := range []string{
		"",
		"awskms:",
		"awskms://",
		"awskms:///",
		"awskms:" + arn,
		"kms:///" + arn,
		"AWSKMS2:///" + arn,
		"awskms://alias/x?region=eu-west-1",
		"awskms:///alias/?region=eu-west-1",
		"awskms:///alias/x",      // no region anywhere
		"awskms:///1234-abcd",    // likewise
		"awskms:////" + arn,      // a slash too many
		"awskms:///" + arn + "/", // likewise
		"awskms:///" + arn + "?region=us-east-1",
		"awskms:///" + arn + "?regoin=eu-west-1",
		"awskms:///" + arn + "?region=eu-west-1&region=eu-west-1",
		"awskms:///" + arn + "?region=",
		"awskms:///" + arn + "?endpoint=ftp://127.0.0.1",
		"awskms:///" + arn + "?endpoint=127.0.0.1:80",
		"awskms:///" + arn + "?endpoint=http://kms.example.org",
		"awskms:///" + arn + "?endpoint=http://10.0.0.1:8080",
		"awskms:///" + arn + "?endpoint=http://127.0.0.1.example.org",
		"awskms:///" + arn + "?endpoint=https://user:hunter2hunter2@kms.example.org",
		"awskms:///" + arn + "#fragment",
		"awskms:///" + arn + "?%zz",
		"awskms://AKIA:hunter2hunter2@/" + arn,
		"awskms:///arn:aws:s3:eu-west-1:111122223333:key/1234abcd",
		"awskms:///arn:aws:kms:eu-west-1:1111:key/1234abcd",
		"awskms:///arn:aws:kms:eu-west-1:111122223333:key/alias/x",
		"awskms:///arn:aws:kms:eu-west-1:111122223333:grant/1234abcd",
		"awskms:///arn:aws:kms:eu-west-1:111122223333:key/",
		"awskms:///1234%0aabcd?region=eu-west-1",
		"awskms:///a b?region=eu-west-1",
		"awskms:///" + strings.Repeat("k", 3000) + "?region=eu-west-1",
	} {
		a, err := awskms.Open(t.Context(), uri, authority.Options{})
		if cerr := authoritytest.CheckError(err, authority.ErrInvalid, []byte("hunter2hunter2")); cerr != nil {
			t.Errorf("Open(%.90s): %v", uri, cerr)
		}
		if a != nil {
			t.Errorf("Open(%.90s) failed and returned an authority", uri)
		}
	}
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://kms.example.org")
	if _, err := awskms.Open(t.Context(), "awskms:///"+arn, authority.Options{}); !errors.Is(err, authority.ErrInvalid) {
		t.Errorf("Open with a plain http endpoint in the environment = %v, want ErrInvalid", err)
	}
	if _, err := awskms.New(t.Context(), awskms.Config{KeyID: arn, Limits: awskms.Limits{MaxAttempts: -1}}); !errors.Is(err, authority.ErrInvalid) {
		t.Errorf("New with a negative limit = %v, want ErrInvalid", err)
	}
}

func TestForeignKeysAreNotAsked(t *testing.T) {
	a, p := stubbed(t, quick())
	p.Script(nil)
	for _, key := range []string{
		"arn:aws:kms:eu-west-1:999999999999:key/" + testID,
		"arn:aws:kms:us-east-1:111122223333:key/" + testID,
		"arn:aws-cn:kms:eu-west-1:111122223333:key/" + testID,
		"arn:aws:kms:eu-west-1:999999999999:alias/keyweir",
		"not a key", "alias/", "alias/a b", "key/" + testID, "arn:", "\xff",
	} {
		_, err := a.Wrap(t.Context(), key, secret, testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrInvalid, secret); cerr != nil {
			t.Errorf("Wrap under %q: %v", key, cerr)
		}
		_, err = a.Unwrap(t.Context(), authority.Wrapped{KeyID: key, Blob: []byte("blob")}, testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrInvalid); cerr != nil {
			t.Errorf("Unwrap under %q: %v", key, cerr)
		}
	}
	for _, alias := range []string{"alias/keyweir", testAlias} {
		_, err := a.Unwrap(t.Context(), authority.Wrapped{KeyID: alias, Blob: []byte("blob")}, testContext)
		if cerr := authoritytest.CheckError(err, authority.ErrInvalid); cerr != nil {
			t.Errorf("Unwrap under %q: %v", alias, cerr)
		}
	}
	if n := p.Calls(); n != 0 {
		t.Errorf("%d requests were sent, want none", n)
	}
}

// TestRequests checks what goes to KMS: the key, the context, nothing else.
func TestRequests(t *testing.T) {
	a, p := stubbed(t, quick())
	ec := authority.Context{"scope": "tenant/<7>&\"x\" 東京", "keyweir-part": "1/1"}
	var target string
	var body map[string]any
	p.Script(func(w http.ResponseWriter, r *http.Request) {
		target, body = r.Header.Get("X-Amz-Target"), map[string]any{}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Errorf("request body: %v", err)
		}
		if !strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/kms/aws4_request") {
			t.Errorf("Authorization = %q, want a signature for kms in eu-west-1", r.Header.Get("Authorization"))
		}
		kmstest.Answer(map[string]any{"KeyId": testARN, "Plaintext": secret, "CiphertextBlob": []byte("blob")})(w, r)
	})
	context := map[string]any{"scope": ec["scope"], "keyweir-part": "1/1"}
	check := func(op string, err error, wantTarget string, want map[string]any) {
		t.Helper()
		if err != nil {
			t.Errorf("%s = %v", op, err)
		}
		if target != wantTarget {
			t.Errorf("%s asked %q, want %q", op, target, wantTarget)
		}
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("%s sent (-want +got):\n%s", op, diff)
		}
	}
	_, err := a.Wrap(t.Context(), "", []byte("key"), ec)
	check("Wrap", err, "TrentService.Encrypt", map[string]any{
		"KeyId": testARN, "Plaintext": "a2V5", "EncryptionContext": context, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
	})
	_, err = a.Unwrap(t.Context(), authority.Wrapped{KeyID: testARN, Blob: []byte("blob")}, ec)
	check("Unwrap", err, "TrentService.Decrypt", map[string]any{
		"KeyId": testARN, "CiphertextBlob": "YmxvYg==", "EncryptionContext": context, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
	})
	_, _, err = a.GenerateDataKey(t.Context(), "", ec)
	check("GenerateDataKey", err, "TrentService.GenerateDataKey", map[string]any{
		"KeyId": testARN, "KeySpec": "AES_256", "EncryptionContext": context,
	})
}

// failingCredentials is a chain that cannot deliver.
type failingCredentials struct{ err error }

func (f failingCredentials) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, f.err
}

func TestCredentialFailures(t *testing.T) {
	sts := func(code string) error {
		return &smithy.OperationError{ServiceID: "STS", OperationName: "AssumeRole", Err: &smithy.GenericAPIError{
			Code: code, Message: "secret " + string(secret),
		}}
	}
	for name, c := range map[string]struct{ err, want error }{
		"no chain":      {errors.New("no providers: " + string(secret)), authority.ErrUnavailable},
		"role refused":  {sts("AccessDenied"), authority.ErrDenied},
		"token invalid": {sts("InvalidClientTokenId"), authority.ErrDenied},
		"token expired": {sts("ExpiredTokenException"), authority.ErrUnavailable},
		"bad request":   {sts("ValidationError"), authority.ErrUnavailable},
		"not found":     {sts("NotFoundException"), authority.ErrUnavailable},
		"disabled":      {sts("DisabledException"), authority.ErrUnavailable},
		"throttled":     {sts("Throttling"), authority.ErrUnavailable},
	} {
		p := kmstest.NewProxy(t, "")
		a := open(t, awskms.Config{KeyID: testARN, Endpoint: p.URL, Limits: quick(), Credentials: failingCredentials{c.err}})
		for op, f := range operations(t.Context(), a) {
			_, err := f()
			if cerr := authoritytest.CheckError(err, c.want, secret); cerr != nil {
				t.Errorf("%s, %s: %v", name, op, cerr)
			}
			if err != nil && !strings.Contains(err.Error(), "credentials") {
				t.Errorf("%s, %s: %q should name credentials", name, op, err)
			}
		}
		if n := p.Calls(); n != 0 {
			t.Errorf("%s: %d requests without credentials", name, n)
		}
	}
}

func TestNothingLeaks(t *testing.T) {
	const hidden = "very-hidden-secret-key"
	var logged bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug - 8}))
	p := kmstest.NewProxy(t, "")
	c := awskms.Config{
		KeyID: testARN, Endpoint: p.URL, Limits: quick(), Logger: log,
		Credentials: credentials.NewStaticCredentialsProvider("AKIATESTTESTTESTTEST", hidden, "hidden-session"),
	}
	a := open(t, c)
	for _, answer := range []http.HandlerFunc{
		kmstest.Exception(400, "ValidationException", string(secret)),
		kmstest.Exception(500, "KMSInternalException", string(secret)),
		kmstest.Answer(map[string]any{"KeyId": otherARN, "Plaintext": secret, "CiphertextBlob": secret}),
		kmstest.Answer(map[string]any{"KeyId": string(secret), "Plaintext": secret, "CiphertextBlob": secret}),
	} {
		p.Script(answer)
		for op, f := range operations(t.Context(), a) {
			if _, err := f(); err == nil {
				t.Errorf("%s succeeded", op)
			}
		}
	}
	log.Info("config", "config", c, "authority", a)
	if logged.Len() == 0 || !strings.Contains(logged.String(), "kms answer refused") || !strings.Contains(logged.String(), "kms call failed") {
		t.Errorf("nothing or not everything was logged: %s", &logged)
	}
	text := logged.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		for _, v := range []any{c, &c, a} {
			text += fmt.Sprintf(verb, v)
		}
	}
	j, err := json.Marshal(map[string]any{"config": c})
	if err != nil {
		t.Fatal(err)
	}
	text += string(j)
	for _, s := range []string{hidden, "hidden-session", string(secret), "MDEyMzQ1Njc4OWFiY2"} {
		if strings.Contains(text, s) {
			t.Errorf("the log or a format verb shows %q", s)
		}
	}
}
