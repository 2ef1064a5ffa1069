package envelope_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

// refused opens attacked the way the reading library does, comparing the record
// too, and demands one documented class, no data and an untouched input.
func refused(t *testing.T, v *sample, attacked []byte, what string) {
	t.Helper()
	before := bytes.Clone(attacked)
	dst := append(make([]byte, 0, 2<<10), "prefix"...)
	e, err := envelope.Parse(attacked)
	var o envelope.Opened
	switch {
	case err != nil:
		if e.Record != nil || e.Sealed != nil || !e.KeyID.IsZero() || e.Flags != 0 || e.Suite != 0 || e.Salt != (envelope.Salt{}) {
			t.Fatalf("%s: %s: Parse fails and returns %+v", v.name, what, e)
		}
	default:
		if err = e.CheckRecord(v.record); err == nil {
			if o, err = v.reader.Open(dst, &e); err != nil && (o.Payload != nil || o.Meta.Sequence != 0 || o.Meta.SealedSubject() != "") {
				t.Fatalf("%s: %s: Open fails and returns data", v.name, what)
			}
		}
	}
	switch {
	case err == nil:
		t.Fatalf("%s: %s: opened", v.name, what)
	case !errors.Is(err, envelope.ErrTampered) && !errors.Is(err, envelope.ErrMalformed) && !errors.Is(err, envelope.ErrUnsupported) &&
		!errors.Is(err, envelope.ErrNotEnvelope) && !errors.Is(err, envelope.ErrOtherWraps):
		t.Fatalf("%s: %s: undocumented error %v", v.name, what, err)
	case !bytes.Equal(before, attacked):
		t.Fatalf("%s: %s: input changed", v.name, what)
	case string(dst) != "prefix" || (len(v.text) > 0 && bytes.Contains(dst[:cap(dst)], v.text)):
		t.Fatalf("%s: %s: output buffer changed or holds plaintext", v.name, what)
	}
}

func TestEveryBitFlip(t *testing.T) {
	for i, v := range samples(t) {
		if raceDetector && i%8 != 0 {
			continue // slow there, and nothing runs concurrently
		}
		attacked := bytes.Clone(v.sealed)
		for i := range attacked {
			for bit := range 8 {
				attacked[i] ^= 1 << bit
				refused(t, &v, attacked, fmt.Sprintf("bit %d of byte %d of %d flipped", bit, i, len(attacked)))
				attacked[i] ^= 1 << bit
			}
		}
	}
}

func TestEveryTruncationAndExtension(t *testing.T) {
	for _, v := range samples(t) {
		for n := range len(v.sealed) {
			refused(t, &v, v.sealed[:n:n], fmt.Sprintf("cut to %d of %d bytes", n, len(v.sealed)))
			refused(t, &v, v.sealed[len(v.sealed)-n:], fmt.Sprintf("last %d of %d bytes", n, len(v.sealed)))
		}
		for n := 1; n <= 64; n++ {
			for _, fill := range []byte{0, 0xff, v.sealed[len(v.sealed)-1]} {
				more := bytes.Repeat([]byte{fill}, n)
				refused(t, &v, append(bytes.Clone(v.sealed), more...), fmt.Sprintf("%d bytes %#x added", n, fill))
				refused(t, &v, append(more, v.sealed...), fmt.Sprintf("%d bytes %#x in front", n, fill))
			}
		}
	}
}

// field cuts an envelope at the borders of one of its fields.
type field struct {
	name       string
	start, end func(e *envelope.Envelope, size int) int
}

func fixed(n int) func(*envelope.Envelope, int) int {
	return func(*envelope.Envelope, int) int { return n }
}

func afterRecord(n int) func(*envelope.Envelope, int) int {
	return func(e *envelope.Envelope, _ int) int { return envelope.HeaderSize + len(e.Record) + n }
}

func fromEnd(n int) func(*envelope.Envelope, int) int {
	return func(_ *envelope.Envelope, size int) int { return size - n }
}

func TestFieldSwaps(t *testing.T) {
	fields := []field{
		{"flags", fixed(4), fixed(5)},
		{"record length", fixed(6), fixed(8)},
		{"key ID", fixed(8), fixed(40)},
		{"salt", fixed(40), fixed(56)},
		{"key ID and salt", fixed(8), fixed(56)},
		{"record", fixed(56), afterRecord(0)},
		{"header", fixed(0), fixed(56)},
		{"nonce", afterRecord(0), afterRecord(12)},
		{"ciphertext", afterRecord(12), fromEnd(16)},
		{"ciphertext and tag", afterRecord(12), fromEnd(0)},
		{"tag", fromEnd(16), fromEnd(0)},
	}
	all := samples(t)
	valid := map[string]bool{}
	for _, v := range all {
		valid[string(v.sealed)] = true
	}
	swaps := 0
	for i := range all {
		if raceDetector && i%8 != 0 {
			continue // slow there, and nothing runs concurrently
		}
		a, err := envelope.Parse(all[i].sealed)
		if err != nil {
			t.Fatal(err)
		}
		for j := range all {
			b, err := envelope.Parse(all[j].sealed)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fields {
				x, y := all[i].sealed, all[j].sealed
				attacked := bytes.Clone(x[:f.start(&a, len(x))])
				attacked = append(attacked, y[f.start(&b, len(y)):f.end(&b, len(y))]...)
				attacked = append(attacked, x[f.end(&a, len(x)):]...)
				if valid[string(attacked)] {
					continue // the field is the same in both
				}
				swaps++
				for _, v := range []*sample{&all[i], &all[j]} {
					refused(t, v, attacked, fmt.Sprintf("%s taken from %s", f.name, all[j].name))
				}
			}
		}
	}
	if swaps < 10_000 && !raceDetector {
		t.Errorf("only %d swaps changed anything", swaps)
	}
}

// TestWhatIsNotBound pins down what docs/envelope.md says can be changed.
func TestWhatIsNotBound(t *testing.T) {
	key, record := newKey(t)
	r := newReader(t, key, record, 0)
	m := benchMeta
	inline := seal(t, newSession(t, key, record, envelope.SessionConfig{Record: envelope.RecordInline}), &m, []byte("payload"))
	e, err := envelope.Parse(inline)
	if err != nil {
		t.Fatal(err)
	}
	e.Record, e.Flags = nil, e.Flags&^envelope.FlagRecord
	if _, err := openWith(r, record, e.Append(nil)); err != nil {
		t.Errorf("record removed: %v", err)
	}
	rewrapped := *record
	rewrapped.Wraps = []envelope.Wrap{{ManagedKey: "lk-2", Version: "2", Bytes: []byte("other")}}
	if e.Record, err = rewrapped.Append(nil); err != nil {
		t.Fatal(err)
	}
	e.Flags |= envelope.FlagRecord
	changed := e.Append(nil)
	if e, err = envelope.Parse(changed); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(nil, &e); err != nil {
		t.Errorf("wraps replaced, record not compared: %v", err)
	}
	if err := e.CheckRecord(record); !errors.Is(err, envelope.ErrOtherWraps) {
		t.Errorf("CheckRecord of replaced wraps = %v, want ErrOtherWraps", err)
	}
	if err := e.CheckRecord(&rewrapped); err != nil {
		t.Errorf("CheckRecord of the wraps that replaced them = %v", err)
	}
	broken := rewrapped
	broken.Wraps = nil
	if err := e.CheckRecord(&broken); !errors.Is(err, envelope.ErrMalformed) {
		t.Errorf("CheckRecord against a broken record = %v, want ErrMalformed", err)
	}
}

// TestHandMadeEnvelopes: what Parse would never return does not open either.
func TestHandMadeEnvelopes(t *testing.T) {
	v := samples(t)[0]
	good, err := envelope.Parse(v.sealed)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := v.record.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*envelope.Envelope){
		"zero":                   func(e *envelope.Envelope) { *e = envelope.Envelope{} },
		"only key ID":            func(e *envelope.Envelope) { *e = envelope.Envelope{KeyID: e.KeyID} },
		"unknown flag":           func(e *envelope.Envelope) { e.Flags |= 0x80 },
		"record without flag":    func(e *envelope.Envelope) { e.Record = raw },
		"flag without record":    func(e *envelope.Envelope) { e.Flags |= envelope.FlagRecord },
		"other suite":            func(e *envelope.Envelope) { e.Suite = 2 },
		"nothing sealed":         func(e *envelope.Envelope) { e.Sealed = nil },
		"too little sealed":      func(e *envelope.Envelope) { e.Sealed = e.Sealed[:28] },
		"record of another size": func(e *envelope.Envelope) { e.Flags |= envelope.FlagRecord; e.Record = make([]byte, 5000) },
	} {
		e := good
		change(&e)
		if o, err := v.reader.Open(nil, &e); err == nil || o.Payload != nil {
			t.Errorf("%s: Open = %v, %v", name, o, err)
		}
	}
}

func TestWrongKeys(t *testing.T) {
	key, record := newKey(t)
	if _, err := envelope.NewDataKey(make([]byte, 32)); !errors.Is(err, envelope.ErrInvalid) {
		t.Errorf("NewDataKey(zeros) = %v, want ErrInvalid", err)
	}
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := envelope.NewDataKey(bytes.Repeat([]byte{1}, n)); !errors.Is(err, envelope.ErrInvalid) {
			t.Errorf("NewDataKey of %d bytes = %v, want ErrInvalid", n, err)
		}
	}
	cleared, err := envelope.NewDataKey(envelope.ExposeDataKey(key))
	if err != nil || !cleared.Equal(key) {
		t.Fatalf("a copy of the key differs: %v", err)
	}
	cleared.Clear()
	wrong := map[string]envelope.DataKey{"zero": {}, "cleared": cleared, "other": envelope.GenerateDataKey()}
	for bit := range 256 {
		raw := envelope.ExposeDataKey(key)
		raw[bit/8] ^= 1 << (bit % 8)
		k, err := envelope.NewDataKey(raw)
		if err != nil {
			t.Fatal(err)
		}
		wrong[fmt.Sprintf("bit %d flipped", bit)] = k
	}
	for name, k := range wrong {
		if k.Equal(key) || key.Equal(k) {
			t.Errorf("%s key equals the right one", name)
		}
		if _, err := envelope.NewKeyReader(record, k, 0); !errors.Is(err, envelope.ErrWrongKey) {
			t.Errorf("NewKeyReader(%s key) = %v, want ErrWrongKey", name, err)
		}
		if _, err := envelope.NewGrant(k, record); !errors.Is(err, envelope.ErrWrongKey) {
			t.Errorf("NewGrant(%s key) = %v, want ErrWrongKey", name, err)
		}
	}
	if (envelope.DataKey{}).Equal(envelope.DataKey{}) || !cleared.IsZero() {
		t.Error("a zero key counts as a key")
	}
	raw, err := record.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envelope.GrantFromParts(raw, envelope.Salt{1}, make([]byte, 32)); !errors.Is(err, envelope.ErrInvalid) {
		t.Errorf("GrantFromParts(zero subkey) = %v, want ErrInvalid", err)
	}
}

// TestParseChecksTheHeader: what is wrong with the header is found before a key is asked for.
func TestParseChecksTheHeader(t *testing.T) {
	for _, v := range samples(t) {
		for at, want := range map[int]error{0: envelope.ErrNotEnvelope, 1: envelope.ErrNotEnvelope, 2: envelope.ErrUnsupported, 3: envelope.ErrUnsupported, 5: envelope.ErrMalformed} {
			attacked := bytes.Clone(v.sealed)
			attacked[at] ^= 0x80
			if _, err := envelope.Parse(attacked); !errors.Is(err, want) {
				t.Errorf("%s: byte %d changed: %v, want %v", v.name, at, err, want)
			}
		}
		for bit := 3; bit < 8; bit++ {
			attacked := bytes.Clone(v.sealed)
			attacked[4] |= 1 << bit
			if _, err := envelope.Parse(attacked); !errors.Is(err, envelope.ErrMalformed) {
				t.Errorf("%s: flag bit %d set: %v, want ErrMalformed", v.name, bit, err)
			}
		}
	}
}
