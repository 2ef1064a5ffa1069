package envelope_test

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

// TestPythonOpener has an implementation in another language go through the
// golden vectors and through what the package seals right now.
func TestPythonOpener(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skipf("no python3 here (%v); the second implementation in Go runs everywhere", err)
	}
	if out, err := exec.Command(python, "-c", "import cryptography").CombinedOutput(); err != nil {
		t.Skipf("python3 lacks the package cryptography (%v: %s); the second implementation in Go runs everywhere", err, out)
	}
	paths, err := filepath.Glob(filepath.Join(vectorDir, "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vector files: %v", err)
	}
	var fresh []vectorCase
	for _, v := range samples(t) {
		record, err := v.record.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		o, err := openWith(v.reader, v.record, v.sealed)
		if err != nil {
			t.Fatal(err)
		}
		m, payload := toMeta(o), hex.EncodeToString(v.text)
		fresh = append(fresh, vectorCase{
			Name: v.name, Key: hex.EncodeToString(envelope.ExposeDataKey(v.key)), Record: hex.EncodeToString(record),
			Envelope: hex.EncodeToString(v.sealed), Expect: "ok", Meta: &m, Payload: &payload,
		})
	}
	file := filepath.Join(t.TempDir(), "fresh.json")
	if err := os.WriteFile(file, encodeVectors(vectorFile{1, "envelope", "sealed by this test", fresh}), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, append([]string{"testdata/opener.py", file}, paths...)...).CombinedOutput()
	if err != nil {
		t.Errorf("opener.py: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}
