package envelope_test

import (
	"bytes"
	"crypto/fips140"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

const (
	docFile      = "../../docs/envelope.md"
	exampleBegin = "<!-- example: begin -->\n"
	exampleEnd   = "<!-- example: end -->"
)

// workedExample returns the text of section 8 and the envelope in it.
func workedExample() (text string, key, record, sealed []byte) {
	key = vKey
	core := vcore{
		Scheme: 1, K: 1, N: 1, RecordID: hex.EncodeToString(seq(0x10, 16)), Created: 1517363399,
		Commitment:  hex.EncodeToString(vCommitment(key)),
		Context:     [][2]string{{"keyweir-scope", "tenant/acme"}},
		Authorities: []vauthority{{"local", hex.EncodeToString(vPartCommitment(key, seq(0x10, 16), 1))}},
	}
	record = vRecordBytes(core, []vwrap{{"lk-1", "1", hex.EncodeToString([]byte("an authority's wrap"))}})
	coreBytes := vCoreBytes(core)
	id := vKeyID(coreBytes)
	payload := []byte(`{"order":1}`)
	m := baseMeta()
	m.Headers = [][2]string{{"Content-Type", "application/json"}}
	m.Padding = vPad(m, payload, 32)
	sealed = vSeal(key, record, true, false, vSalt, counterNonce(0), m, payload)

	var b strings.Builder
	line := func(name string, v []byte) {
		for i := 0; i == 0 || i < len(v); i += 32 {
			fmt.Fprintf(&b, "%-18s %s\n", name, hex.EncodeToString(v[i:min(len(v), i+32)]))
			name = ""
		}
	}
	b.WriteString("```\n")
	line("data key", key)
	line("record ID", seq(0x10, 16))
	line("commitment", vCommitment(key))
	line("part commitment 1", vPartCommitment(key, seq(0x10, 16), 1))
	line("core", coreBytes)
	line("key ID", id)
	line("record", record)
	line("session salt", vSalt)
	line("session subkey", vSubkey(key, vSalt, id))
	line("AAD", []byte{'K', 'W', 1, 1, 0, 0})
	line("nonce", counterNonce(0))
	line("meta", vMetaBytes(m))
	line("payload", payload)
	line("envelope", sealed)
	b.WriteString("```\n\nThe context of its wrap:\n\n```\n")
	context := vWrapContext(core, 1)
	for _, name := range []string{"keyweir-authorities", "keyweir-part", "keyweir-record", "keyweir-scheme", "keyweir-scope", "keyweir-use"} {
		fmt.Fprintf(&b, "%-20s %s\n", name, context[name])
	}
	b.WriteString("```\n")
	return b.String(), key, record, sealed
}

func splitDoc(tb testing.TB) (before, example, after string) {
	tb.Helper()
	doc, err := os.ReadFile(docFile)
	if err != nil {
		tb.Fatal(err)
	}
	before, rest, found := strings.Cut(string(doc), exampleBegin)
	example, after, ended := strings.Cut(rest, exampleEnd)
	if !found || !ended {
		tb.Fatalf("%s has no example block", docFile)
	}
	return before + exampleBegin, example, exampleEnd + after
}

func writeExample(t *testing.T) {
	t.Helper()
	before, _, after := splitDoc(t)
	text, _, _, _ := workedExample()
	if err := os.WriteFile(docFile, []byte(before+text+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestWorkedExample holds the page to the code.
func TestWorkedExample(t *testing.T) {
	want, key, record, sealed := workedExample()
	if _, got, _ := splitDoc(t); got != want {
		t.Errorf("the example of %s has drifted (go test -run TestVectors -update); want\n%s", docFile, want)
	}
	o, err := openAll(t, key, record, sealed)
	if err != nil || string(o.Payload) != `{"order":1}` {
		t.Fatalf("opening the example: %v", err)
	}
	if fips140.Enabled() {
		t.Log("FIPS mode forces random nonces: not sealing the example again")
		return
	}
	e, err := envelope.Parse(sealed)
	if err != nil {
		t.Fatal(err)
	}
	g, err := envelope.GrantFromParts(record, e.Salt, vSubkey(key, e.Salt[:], e.KeyID[:]))
	if err != nil {
		t.Fatal(err)
	}
	s, err := g.Session(envelope.SessionConfig{PadTo: 32})
	if err != nil {
		t.Fatal(err)
	}
	m := o.Meta.Meta()
	if got := seal(t, s, &m, o.Payload); !bytes.Equal(got, sealed) {
		t.Errorf("the package seals the example as %x", got)
	}
}
