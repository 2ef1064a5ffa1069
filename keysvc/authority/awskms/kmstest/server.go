package kmstest

import (
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keyweir/keyweir/internal/toolbuild"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
)

// Region and account of the emulators' keys.
const (
	Region  = "eu-west-1"
	account = "111122223333" // local-kms; moto has its own
)

// Server is a running emulator with two symmetric keys, the first of which has an
// alias.
type Server struct {
	Name     string
	Endpoint string               // http://127.0.0.1:PORT
	Keys     []string             // bare key IDs
	ARNs     []string             // of the same keys
	Alias    string               // "alias/..." of the first key
	Admin    *kms.Client          // for what an administrator does
	Quirks   authoritytest.Quirks // where the emulator is not like KMS
}

// Credentials are accepted by both emulators, which check none.
func Credentials() aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider("AKIATESTTESTTESTTEST", "kmstest-secret", "")
}

// Keys of LocalKMS.
const (
	localKey1 = "bc436485-5092-42b8-92a3-0aa8b93536dc"
	localKey2 = "1f5c2e6a-8b0d-4d0e-9a67-2f4c1f7b6f11"
)

// LocalKMS builds local-kms by package toolbuild and starts it with an empty
// store.
func LocalKMS(t testing.TB) *Server {
	t.Helper()
	bin := toolbuild.Build(t, "local-kms")
	dir := t.TempDir()
	seed := filepath.Join(dir, "seed.yaml")
	text := "Keys:\n  Symmetric:\n    Aes:\n"
	for i, id := range []string{localKey1, localKey2} {
		// The emulator's master keys: constants, they protect test data only.
		key := hex.EncodeToString([]byte(strings.Repeat(string(rune('A'+i)), 32)))
		text += "      - Metadata:\n          KeyId: " + id + "\n        BackingKeys:\n          - " + key + "\n"
	}
	text += "Aliases:\n  - AliasName: alias/keyweir\n    TargetKeyId: " + localKey1 + "\n"
	if err := os.WriteFile(seed, []byte(text), 0o600); err != nil {
		t.Fatalf("kmstest: writing the seed: %v", err)
	}
	s := &Server{
		Name:   "local-kms",
		Keys:   []string{localKey1, localKey2},
		Alias:  "alias/keyweir",
		Quirks: authoritytest.Quirks{JoinedContext: true, Exempt: exemptLocalKMS},
	}
	for _, id := range s.Keys {
		s.ARNs = append(s.ARNs, "arn:aws:kms:"+Region+":"+account+":key/"+id)
	}
	s.Endpoint = start(t, s.Name, func(port string) *exec.Cmd {
		cmd := exec.Command(bin)
		cmd.Dir = dir
		cmd.Env = environ("PORT="+port, "KMS_SEED_PATH="+seed, "KMS_DATA_PATH="+filepath.Join(dir, "data-"+port),
			"KMS_ACCOUNT_ID="+account, "KMS_REGION="+Region)
		return cmd
	})
	s.Admin = admin(s.Endpoint)
	return s
}

// exemptLocalKMS: a blob is length, ARN, version (4), nonce (12), ciphertext, tag
// (16). Given a key ID, local-kms does not look at the ARN; and it takes the
// nonce without asking whether it is there, so that a short blob kills the
// connection.
func exemptLocalKMS(genuine, damaged []byte) string {
	const version, nonce = 4, 12
	if len(genuine) == 0 || len(damaged) == 0 {
		return ""
	}
	arn := int(damaged[0])
	if arn > 255-1-version-1 || len(damaged) >= 1+arn+version+1 && len(damaged) < 1+arn+version+nonce {
		return "local-kms panics on it"
	}
	if len(damaged) > 1+arn && string(damaged[1+arn:]) == string(genuine[1+int(genuine[0]):]) {
		return "local-kms does not check the key named inside"
	}
	return ""
}

// Moto starts moto_server and creates two keys. The test fails without it if the
// environment sets KEYWEIR_REQUIRE_MOTO and is skipped otherwise.
func Moto(t testing.TB) *Server {
	t.Helper()
	bin, err := exec.LookPath("moto_server")
	if err != nil {
		if os.Getenv("KEYWEIR_REQUIRE_MOTO") != "" {
			t.Fatalf("kmstest: %v", err)
		}
		t.Skip("kmstest: moto_server is not on the PATH")
	}
	s := &Server{Name: "moto", Alias: "alias/keyweir"}
	s.Endpoint = start(t, s.Name, func(port string) *exec.Cmd {
		cmd := exec.Command(bin, "-H", "127.0.0.1", "-p", port)
		cmd.Dir = t.TempDir()
		cmd.Env = environ()
		return cmd
	})
	s.Admin = admin(s.Endpoint)
	for range 2 {
		out, err := s.Admin.CreateKey(t.Context(), &kms.CreateKeyInput{})
		if err != nil {
			t.Fatalf("kmstest: creating a key: %v", err)
		}
		s.Keys = append(s.Keys, aws.ToString(out.KeyMetadata.KeyId))
		s.ARNs = append(s.ARNs, aws.ToString(out.KeyMetadata.Arn))
	}
	if _, err := s.Admin.CreateAlias(t.Context(), &kms.CreateAliasInput{
		AliasName: aws.String(s.Alias), TargetKeyId: aws.String(s.Keys[0]),
	}); err != nil {
		t.Fatalf("kmstest: creating an alias: %v", err)
	}
	s.Quirks = motoQuirks()
	return s
}

func admin(endpoint string) *kms.Client {
	return kms.New(kms.Options{Region: Region, BaseEndpoint: aws.String(endpoint), Credentials: Credentials()})
}

// Disable disables a key as an administrator would.
func (s *Server) Disable(t testing.TB, key string) {
	t.Helper()
	if _, err := s.Admin.DisableKey(context.WithoutCancel(t.Context()), &kms.DisableKeyInput{KeyId: aws.String(key)}); err != nil {
		t.Fatalf("kmstest: disabling a key: %v", err)
	}
}

// Enable enables a key again; it may run in a cleanup.
func (s *Server) Enable(t testing.TB, key string) {
	t.Helper()
	if _, err := s.Admin.EnableKey(context.WithoutCancel(t.Context()), &kms.EnableKeyInput{KeyId: aws.String(key)}); err != nil {
		t.Fatalf("kmstest: enabling a key: %v", err)
	}
}

// ScheduleDeletion schedules the deletion of a key, as an administrator would.
func (s *Server) ScheduleDeletion(t testing.TB, key string) {
	t.Helper()
	if _, err := s.Admin.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{
		KeyId: aws.String(key), PendingWindowInDays: aws.Int32(7),
	}); err != nil {
		t.Fatalf("kmstest: scheduling the deletion of a key: %v", err)
	}
}

// MoveAlias points the alias at another key.
func (s *Server) MoveAlias(t testing.TB, key string) {
	t.Helper()
	if _, err := s.Admin.UpdateAlias(t.Context(), &kms.UpdateAliasInput{
		AliasName: aws.String(s.Alias), TargetKeyId: aws.String(key),
	}); err != nil {
		t.Fatalf("kmstest: moving the alias: %v", err)
	}
}
