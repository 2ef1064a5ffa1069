package envelope_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/internal/envelope"
)

var update = flag.Bool("update", false, "write testdata/vectors (never frozen-v1.json) and the example of docs/envelope.md anew")

const (
	vectorDir  = "testdata/vectors"
	frozenFile = "frozen-v1.json"
)

type vectorFile struct {
	Format  int          `json:"format"`
	Kind    string       `json:"kind"`
	Comment string       `json:"comment"`
	Cases   []vectorCase `json:"cases"`
}

type vectorCase struct {
	Name     string  `json:"name"`
	Key      string  `json:"key,omitempty"`
	Record   string  `json:"record,omitempty"`
	Envelope string  `json:"envelope,omitempty"`
	Expect   failure `json:"expect,omitempty"`
	Meta     *vmeta  `json:"meta,omitempty"`
	Payload  *string `json:"payload,omitempty"`

	Core     *vcore              `json:"core,omitempty"`
	Wraps    []vwrap             `json:"wraps,omitempty"`
	Contexts []map[string]string `json:"contexts,omitempty"`

	Salt           string `json:"salt,omitempty"`
	KeyID          string `json:"key_id,omitempty"`
	RecordID       string `json:"record_id,omitempty"`
	Part           int    `json:"part,omitempty"`
	Subkey         string `json:"subkey,omitempty"`
	Commitment     string `json:"commitment,omitempty"`
	PartCommitment string `json:"part_commitment,omitempty"`
}

// class names the failure class of err; every error has exactly one.
func class(tb testing.TB, err error) failure {
	tb.Helper()
	if err == nil {
		return "ok"
	}
	found := failure("")
	for name, sentinel := range map[failure]error{
		"not-envelope": envelope.ErrNotEnvelope, "unsupported": envelope.ErrUnsupported, "malformed": envelope.ErrMalformed,
		"tampered": envelope.ErrTampered, "wrong-key": envelope.ErrWrongKey, "other-wraps": envelope.ErrOtherWraps,
		"invalid": envelope.ErrInvalid, "session-ended": envelope.ErrSessionEnded,
	} {
		if errors.Is(err, sentinel) {
			if found != "" {
				tb.Errorf("error %q is of two classes, %s and %s", err, found, name)
			}
			found = name
		}
	}
	if found == "" {
		tb.Errorf("error %q is of no documented class", err)
	}
	return found
}

func readVectors(tb testing.TB) map[string]*vectorFile {
	tb.Helper()
	paths, err := filepath.Glob(filepath.Join(vectorDir, "*.json"))
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no vector files: %v", err)
	}
	files := map[string]*vectorFile{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		f := &vectorFile{}
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(f); err != nil {
			tb.Fatalf("reading %s: %v", path, err)
		}
		if f.Format != 1 || len(f.Cases) == 0 {
			tb.Fatalf("%s has format %d and %d cases", path, f.Format, len(f.Cases))
		}
		files[filepath.Base(path)] = f
	}
	return files
}

// openAll goes through everything a reader does with a known key and record.
func openAll(tb testing.TB, key, record, sealed []byte) (*envelope.Opened, error) {
	tb.Helper()
	k, err := envelope.NewDataKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	known, err := envelope.ParseRecord(record)
	if err != nil {
		tb.Fatal(err)
	}
	r, err := envelope.NewKeyReader(known, k, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return openWith(r, known, sealed)
}

func openWith(r *envelope.KeyReader, known *envelope.Record, sealed []byte) (*envelope.Opened, error) {
	e, err := envelope.Parse(sealed)
	if err != nil {
		return nil, err
	}
	if err := e.CheckRecord(known); err != nil {
		return nil, err
	}
	o, err := r.Open(nil, &e)
	if err != nil {
		return nil, err
	}
	return &o, nil
}

// toMeta translates what the package opened into the vectors' terms.
func toMeta(o *envelope.Opened) vmeta {
	m := o.Meta.Meta()
	out := vmeta{
		Chain: m.Chain.String(), Sequence: m.Sequence, Previous: m.Previous, PreviousOnSubject: m.PreviousOnSubject,
		Gap: m.Gap, Published: m.Published, SealedSubject: m.SealedSubject, OriginSubject: m.OriginSubject,
		Padding: o.Meta.Padding, Layered: m.Layered,
	}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, [2]string{h.Name, h.Value})
	}
	return out
}

// fromMeta is the other way; padding is the session's affair.
func fromMeta(m vmeta) *envelope.Meta {
	out := &envelope.Meta{
		Chain: envelope.ChainID(unhex(m.Chain)), Sequence: m.Sequence, Previous: m.Previous, PreviousOnSubject: m.PreviousOnSubject,
		Gap: m.Gap, Published: m.Published, SealedSubject: m.SealedSubject, OriginSubject: m.OriginSubject, Layered: m.Layered,
	}
	for _, h := range m.Headers {
		out.Headers = append(out.Headers, envelope.Header{Name: h[0], Value: h[1]})
	}
	return out
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
		writeCorpora(t)
		writeExample(t)
	}
	seen := map[failure]int{}
	total := 0
	for file, f := range readVectors(t) {
		for i := range f.Cases {
			c := &f.Cases[i]
			total++
			seen[c.Expect]++
			t.Run(file+"/"+c.Name, func(t *testing.T) {
				switch f.Kind {
				case "envelope":
					checkEnvelopeVector(t, c)
				case "record":
					checkRecordVector(t, c)
				case "derive":
					checkDeriveVector(t, c)
				default:
					t.Fatalf("unknown kind %q", f.Kind)
				}
			})
		}
	}
	if total < 40 {
		t.Errorf("%d vectors, want at least 40", total)
	}
	for _, want := range []failure{"ok", "not-envelope", "unsupported", "malformed", "tampered", "wrong-key", "other-wraps"} {
		if seen[want] == 0 {
			t.Errorf("no vector expects %q", want)
		}
	}
}

func checkEnvelopeVector(t *testing.T, c *vectorCase) {
	key, record, sealed := unhex(c.Key), unhex(c.Record), unhex(c.Envelope)
	before := bytes.Clone(sealed)
	o, err := openAll(t, key, record, sealed)
	if got := class(t, err); got != c.Expect {
		t.Errorf("package: %s (%v), want %s", got, err, c.Expect)
	}
	if !bytes.Equal(before, sealed) {
		t.Error("opening changed its input")
	}
	m, payload, second := vOpen(key, record, sealed)
	if second == "" {
		second = "ok"
	}
	if second != c.Expect {
		t.Errorf("second implementation: %s, want %s", second, c.Expect)
	}
	if t.Failed() || c.Expect != "ok" {
		return
	}
	if c.Meta == nil || c.Payload == nil {
		t.Fatal("an ok vector without meta and payload")
	}
	if diff := cmp.Diff(*c.Meta, toMeta(o)); diff != "" {
		t.Errorf("package: meta (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(*c.Meta, m); diff != "" {
		t.Errorf("second implementation: meta (-want +got):\n%s", diff)
	}
	if want := unhex(*c.Payload); !bytes.Equal(o.Payload, want) || !bytes.Equal(payload, want) {
		t.Errorf("payload %x and %x, want %x", o.Payload, payload, want)
	}
}

func checkRecordVector(t *testing.T, c *vectorCase) {
	raw := unhex(c.Record)
	r, err := envelope.ParseRecord(raw)
	if got := class(t, err); got != c.Expect {
		t.Errorf("package: %s (%v), want %s", got, err, c.Expect)
	}
	_, core, _, second := vReadRecord(raw)
	if second == "" {
		second = "ok"
	}
	if second != c.Expect {
		t.Errorf("second implementation: %s, want %s", second, c.Expect)
	}
	if t.Failed() || c.Expect != "ok" {
		if r != nil && err != nil {
			t.Error("an error and a record")
		}
		return
	}
	got := vcore{
		Scheme: int(r.Core.Scheme), K: int(r.Core.K), N: int(r.Core.N), RecordID: r.Core.RecordID.String(),
		Created: r.Core.Created, Commitment: hex.EncodeToString(r.Core.Commitment[:]),
	}
	for _, p := range r.Core.Context {
		got.Context = append(got.Context, [2]string{p.Name, p.Value})
	}
	var contexts []map[string]string
	for i, a := range r.Core.Authorities {
		got.Authorities = append(got.Authorities, vauthority{a.Authority, hex.EncodeToString(a.Commitment[:])})
		contexts = append(contexts, r.Core.WrapContext(i))
		if diff := cmp.Diff(c.Contexts[i], vWrapContext(*c.Core, i+1)); diff != "" {
			t.Errorf("second implementation: context %d (-want +got):\n%s", i+1, diff)
		}
	}
	var wraps []vwrap
	for _, w := range r.Wraps {
		wraps = append(wraps, vwrap{w.ManagedKey, w.Version, hex.EncodeToString(w.Bytes)})
	}
	if diff := cmp.Diff([]any{*c.Core, c.Wraps, c.Contexts}, []any{got, wraps, contexts}); diff != "" {
		t.Errorf("package (-want +got):\n%s", diff)
	}
	if id := r.Core.ID(); id.String() != c.KeyID || hex.EncodeToString(vKeyID(core)) != c.KeyID {
		t.Errorf("key ID %s, want %s", id, c.KeyID)
	}
	again, err := r.Append(nil)
	if err != nil || !bytes.Equal(again, raw) {
		t.Errorf("Append(ParseRecord(b)) = %x, %v; want b", again, err)
	}
}

func checkDeriveVector(t *testing.T, c *vectorCase) {
	key, salt, id := unhex(c.Key), unhex(c.Salt), unhex(c.KeyID)
	k, err := envelope.NewDataKey(key)
	if err != nil {
		t.Fatal(err)
	}
	commitment := k.Commit()
	part, err := envelope.PartCommitment(key, envelope.RecordID(unhex(c.RecordID)), uint8(c.Part))
	if err != nil {
		t.Fatal(err)
	}
	subkey := envelope.SessionSubkey(k, envelope.KeyID(id), envelope.Salt(salt))
	got := []string{hex.EncodeToString(subkey), hex.EncodeToString(commitment[:]), hex.EncodeToString(part[:])}
	want := []string{c.Subkey, c.Commitment, c.PartCommitment}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("package (-want +got):\n%s", diff)
	}
	got = []string{
		hex.EncodeToString(vSubkey(key, salt, id)), hex.EncodeToString(vCommitment(key)),
		hex.EncodeToString(vPartCommitment(key, unhex(c.RecordID), c.Part)),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("second implementation (-want +got):\n%s", diff)
	}
}
