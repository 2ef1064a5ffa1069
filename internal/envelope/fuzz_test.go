package envelope_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/envelope"
)

// The committed corpora under testdata/fuzz come from the golden vectors; go
// test -run TestVectors -update writes them. Every target also compares the
// package with the second implementation.

const corpusDir = "testdata/fuzz"

// corpora returns the seeds of each target, leaving out what is long.
func corpora() map[string][][]byte {
	out := map[string][][]byte{}
	add := func(target string, b []byte) {
		if len(b) < 3000 {
			out[target] = append(out[target], b)
		}
	}
	for _, c := range append(okCases(), badCases()...) {
		sealed := unhex(c.Envelope)
		add("FuzzParse", sealed)
		add("FuzzOpen", sealed)
		if plain, err := gcmOpenEnvelope(unhex(c.Key), sealed); err == nil {
			add("FuzzMeta", plain)
		}
	}
	for _, c := range recordCases() {
		add("FuzzParseRecord", unhex(c.Record))
	}
	return out
}

// gcmOpenEnvelope returns the plaintext of an envelope, broken inside or not.
func gcmOpenEnvelope(key, b []byte) ([]byte, error) {
	e, err := envelope.Parse(b)
	if err != nil {
		return nil, err
	}
	aad := []byte{'K', 'W', 1, 1, byte(e.Flags &^ envelope.FlagRecord), 0}
	return gcmOpen(vSubkey(key, e.Salt[:], e.KeyID[:]), e.Sealed[:12], aad, e.Sealed[12:])
}

func writeCorpora(t *testing.T) {
	t.Helper()
	for target, seeds := range corpora() {
		dir := filepath.Join(corpusDir, target)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i, seed := range seeds {
			text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", seed)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("vector-%03d", i)), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCorporaAreCommitted(t *testing.T) {
	for target, seeds := range corpora() {
		files, err := filepath.Glob(filepath.Join(corpusDir, target, "*"))
		if err != nil || len(files) < len(seeds) || len(seeds) < 10 {
			t.Errorf("%s has %d seeds, want at least %d (%v)", target, len(files), len(seeds), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		e, err := envelope.Parse(b)
		if !bytes.Equal(b, before) {
			t.Fatal("Parse changed its input")
		}
		if err != nil {
			class(t, err)
			if diff := cmp.Diff(envelope.Envelope{}, e); diff != "" {
				t.Fatalf("an error and a result:\n%s", diff)
			}
			return
		}
		if again := e.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("Append(Parse(b)) = %x, want %x", again, b)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := envelope.ParseRecord(b)
		_, core, _, second := vReadRecord(b)
		if got := class(t, err); got != second && !(got == "ok" && second == "") {
			t.Fatalf("package: %s (%v), second implementation: %q", got, err, second)
		}
		if err != nil {
			if r != nil {
				t.Fatalf("an error and a record: %+v", r)
			}
			return
		}
		again, err := r.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("Append(ParseRecord(b)) = %x, %v, want %x", again, err, b)
		}
		if id := r.Core.ID(); !bytes.Equal(id[:], vKeyID(core)) {
			t.Fatalf("key ID %v, want %x", id, vKeyID(core))
		}
		for i := range r.Core.Authorities {
			if n := len(r.Core.WrapContext(i)); n != len(r.Core.Context)+5 {
				t.Fatalf("context of %d pairs from %d", n, len(r.Core.Context))
			}
		}
	})
}

// FuzzOpen: under a fixed key nothing opens but what was sealed with it.
func FuzzOpen(f *testing.F) {
	record := vSingle(vKey)
	known, err := envelope.ParseRecord(record)
	if err != nil {
		f.Fatal(err)
	}
	key, err := envelope.NewDataKey(vKey)
	if err != nil {
		f.Fatal(err)
	}
	r := newReader(f, key, known, 0)
	sealed := map[string]bool{} // what is bound: flags but bit 0, key ID, salt, nonce, ciphertext, tag
	bound := func(e *envelope.Envelope) string {
		return fmt.Sprintf("%d %v %v %x", e.Flags&^envelope.FlagRecord, e.KeyID, e.Salt, e.Sealed)
	}
	for _, c := range append(okCases(), badCases()...) {
		if c.Expect != "ok" && c.Expect != "wrong-key" { // the latter opens under its own key
			continue
		}
		e, err := envelope.Parse(unhex(c.Envelope))
		if err != nil {
			f.Fatal(err)
		}
		sealed[bound(&e)] = true
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		o, err := openWith(r, known, b)
		if !bytes.Equal(b, before) {
			t.Fatal("opening changed its input")
		}
		_, payload, second := vOpen(vKey, record, b)
		if got := class(t, err); got != second && !(got == "ok" && second == "") {
			t.Fatalf("package: %s (%v), second implementation: %q", got, err, second)
		}
		if err != nil {
			if o != nil {
				t.Fatal("an error and data")
			}
			return
		}
		e, err := envelope.Parse(b)
		if err != nil || !sealed[bound(&e)] {
			t.Fatalf("opened what nobody sealed: %x, %v", b, err)
		}
		if !bytes.Equal(o.Payload, payload) {
			t.Fatalf("payload %x, second implementation %x", o.Payload, payload)
		}
	})
}

// FuzzMeta reads any plaintext that a holder of the key could seal.
func FuzzMeta(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		v, payload, ok := envelope.ParseMeta(b)
		second, secondPayload, err := vReadMeta(b)
		if ok != (err == nil) {
			t.Fatalf("package: %v, second implementation: %v", ok, err)
		}
		if !ok {
			return
		}
		m := v.Meta()
		again, err := envelope.AppendMeta(&m, v.Padding)
		if err != nil {
			t.Fatalf("a meta that opens cannot be sealed: %v", err)
		}
		if !bytes.Equal(append(again, payload...), b) {
			t.Fatalf("encoded again: %x, want %x", again, b[:len(b)-len(payload)])
		}
		if diff := cmp.Diff(second, toMeta(&envelope.Opened{Meta: v})); diff != "" || !bytes.Equal(payload, secondPayload) {
			t.Fatalf("payload %x and %x, meta (-second +package):\n%s", payload, secondPayload, diff)
		}
	})
}
