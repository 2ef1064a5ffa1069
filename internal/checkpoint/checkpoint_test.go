package checkpoint_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/envelope"
)

func sample() checkpoint.Checkpoint {
	return checkpoint.Checkpoint{Chain: envelope.ChainID{1, 2}, Position: 40, Last: 39, Created: 5, Timestamp: -6, Follows: 7, Messages: 8, MAC: bytes.Repeat([]byte{9}, 32)}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		last := rapid.Uint64().Draw(t, "last")
		c := checkpoint.Checkpoint{
			Last: last, Position: rapid.Uint64Min(last).Draw(t, "position"),
			Created: rapid.Int64().Draw(t, "created"), Timestamp: rapid.Int64().Draw(t, "timestamp"), Follows: rapid.Uint64().Draw(t, "follows"),
			MAC: rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "mac"),
		}
		copy(c.Chain[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "chain"))
		if last > 0 {
			c.Messages = rapid.Uint64().Draw(t, "messages")
		}
		got, err := checkpoint.Parse(string(c.Append(nil)))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c, got); d != "" {
			t.Fatal(d)
		}
	})
}

func TestStrict(t *testing.T) {
	s := sample()
	value := string(s.Append(nil))
	for i := range value {
		if _, err := checkpoint.Parse(value[:i]); err == nil {
			t.Errorf("Parse accepts %q", value[:i])
		}
	}
	for _, bad := range []string{
		value + ":", value + "=", " " + value, strings.ToUpper(value), strings.Replace(value, ":40:", ":040:", 1), strings.Replace(value, ":40:", ":+40:", 1),
		strings.Replace(value, ":40:39:", ":38:39:", 1), strings.Replace(value, ":40:39:", ":40:0:", 1), strings.Replace(value, ":-6:", ":-06:", 1),
		strings.Replace(value, ":7:", ":18446744073709551616:", 1),
	} {
		if c, err := checkpoint.Parse(bad); err == nil || cmp.Diff(checkpoint.Checkpoint{}, c) != "" {
			t.Errorf("Parse(%q) = %+v, %v", bad, c, err)
		}
	}
}

func TestSubjects(t *testing.T) {
	if s := checkpoint.Subject("S_1-a", 31); s != "keyweir.checkpoint.S_1-a.31" {
		t.Error(s)
	}
	for subject, want := range map[string]bool{
		"keyweir.checkpoint.S.0": true, "keyweir.checkpoint.S.31": true, "keyweir.checkpoint.S.32": false, "keyweir.checkpoint.S.00": false,
		"keyweir.checkpoint.S": false, "keyweir.checkpoint.S.0.0": false, "keyweir.checkpoint..0": false, "keyweir.checkpoint.S.": false,
		"keyweir.checkpoint.S.-1": false, "keyweir.checkpoint.S.+1": false, "sealed.keyweir.checkpoint.S.0": false, "": false,
	} {
		if _, _, ok := checkpoint.ParseSubject(subject); ok != want {
			t.Errorf("ParseSubject(%q) = %v", subject, ok)
		}
	}
}

func TestRead(t *testing.T) {
	s := sample()
	good := map[string][]string{checkpoint.HeaderVersion: {"1"}, checkpoint.Header: {string(s.Append(nil))}}
	if p, c, err := checkpoint.Read("S", "keyweir.checkpoint.S.3", good, nil); err != nil || p != 3 || cmp.Diff(s, c) != "" {
		t.Errorf("Read = %d, %+v, %v", p, c, err)
	}
	with := func(name string, values ...string) map[string][]string {
		h := map[string][]string{checkpoint.HeaderVersion: good[checkpoint.HeaderVersion], checkpoint.Header: good[checkpoint.Header]}
		h[name] = values
		return h
	}
	value := good[checkpoint.Header][0]
	for name, c := range map[string]struct {
		subject string
		header  map[string][]string
		data    string
	}{
		"body":                     {"keyweir.checkpoint.S.3", good, "x"},
		"another stream":           {"keyweir.checkpoint.T.3", good, ""},
		"a data subject":           {"sealed.S.3", good, ""},
		"no header":                {"keyweir.checkpoint.S.3", with(checkpoint.Header), ""},
		"two headers":              {"keyweir.checkpoint.S.3", with(checkpoint.Header, value, value), ""},
		"no version":               {"keyweir.checkpoint.S.3", with(checkpoint.HeaderVersion), ""},
		"another version":          {"keyweir.checkpoint.S.3", with(checkpoint.HeaderVersion, "2"), ""},
		"not what a gateway wrote": {"keyweir.checkpoint.S.3", with(checkpoint.Header, value+" "), ""},
	} {
		if _, _, err := checkpoint.Read("S", c.subject, c.header, []byte(c.data)); err == nil {
			t.Errorf("%s: Read accepts it", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	s := sample()
	f.Add(string(s.Append(nil)))
	f.Add("")
	f.Add(":::::::")
	f.Fuzz(func(t *testing.T, value string) {
		c, err := checkpoint.Parse(value)
		if err == nil && string(c.Append(nil)) != value {
			t.Errorf("Parse(%q) is not canonical: %s", value, c.Append(nil))
		}
	})
}
