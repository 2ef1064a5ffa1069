package deadletter_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/internal/envelope"
)

var position = deadletter.Position{Route: "orders", Chain: envelope.ChainID{1, 2, 255}, Sequence: 18446744073709551615}

func TestSubject(t *testing.T) {
	const main = "a.b.orders.0102ff00000000000000000000000000.18446744073709551615"
	for part, want := range map[int]string{1: main, 2: main + ".2", 1000: main + ".1000"} {
		s := position.Subject("a.b", part)
		if s != want {
			t.Errorf("Subject(%d) = %s, want %s", part, s, want)
		}
		p, prefix, n, err := deadletter.ParseSubject(s)
		if p != position || prefix != "a.b" || n != part || err != nil {
			t.Errorf("ParseSubject(%s) = %v, %s, %d, %v", s, p, prefix, n, err)
		}
	}
	for _, s := range []string{
		"", ".", "a.orders.0102ff00000000000000000000000000", main + ".1", main + ".02", main + ".2.2", main + ".retry",
		"orders.0102ff00000000000000000000000000.7", "a.orders.0102FF00000000000000000000000000.7", "a.orders.0102ff.7",
		"a.orders.0102ff00000000000000000000000000.0", "a.orders.0102ff00000000000000000000000000.07",
	} {
		if p, prefix, n, err := deadletter.ParseSubject(s); err == nil {
			t.Errorf("ParseSubject(%q) = %v, %s, %d, want an error", s, p, prefix, n)
		}
	}
}

func TestRetry(t *testing.T) {
	s := position.RetrySubject("a.b")
	if l, ok := deadletter.ParseRetrySubject(s); l != position.Subject("a.b", 1) || !ok {
		t.Errorf("ParseRetrySubject(%s) = %s, %v", s, l, ok)
	}
	for _, s := range []string{"", ".retry", position.Subject("a", 1), position.Subject("a", 2) + ".retry", s + ".retry"} {
		if l, ok := deadletter.ParseRetrySubject(s); ok {
			t.Errorf("ParseRetrySubject(%s) = %s, want none", s, l)
		}
	}
	if a, b := deadletter.RetryID([]byte("a")), deadletter.RetryID([]byte("b")); a == b || a != deadletter.RetryID([]byte("a")) {
		t.Errorf("RetryID = %s and %s", a, b)
	}
}

func TestPart(t *testing.T) {
	if a, b, err := deadletter.ParsePart("2/3"); a != 2 || b != 3 || err != nil {
		t.Errorf("ParsePart = %d, %d, %v", a, b, err)
	}
	for _, s := range []string{"", "1", "0/1", "2/1", "1/1001", "+1/2", "1/2/3", "01/2", "-1/2"} {
		if _, _, err := deadletter.ParsePart(s); err == nil {
			t.Errorf("ParsePart(%q) was accepted", s)
		}
	}
}

func TestProof(t *testing.T) {
	p := deadletter.Proof{Hash: [32]byte{1}, MAC: [32]byte{2}}
	if got, err := deadletter.ParseProof(p.String()); got != p || err != nil {
		t.Errorf("ParseProof = %v, %v", got, err)
	}
	s := p.String()
	for _, bad := range []string{"", ":", s[1:], s + "A", strings.Replace(s, ":", ";", 1), s[:len(s)-1] + "*", s[:len(s)-1] + "B"} {
		if _, err := deadletter.ParseProof(bad); err == nil {
			t.Errorf("ParseProof(%q) was accepted", bad)
		}
	}
}

// split encodes l in parts of n bytes.
func split(t interface{ Fatal(...any) }, l deadletter.Letter, n int) [][]byte {
	whole := deadletter.AppendHeader(nil, l.Header)
	d := l.Description
	d.Headers = len(whole)
	whole = append(whole, l.Data...)
	d.Size, d.Parts = len(whole), max(1, (len(whole)+n-1)/n)
	overhead, err := d.Overhead()
	if err != nil {
		t.Fatal(err)
	}
	var parts [][]byte
	for i := range d.Parts {
		d.Part = i + 1
		chunk := whole[i*n : min(len(whole), (i+1)*n)]
		b, err := d.AppendPart(nil, chunk)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > overhead+len(chunk) {
			t.Fatal("a part is longer than announced")
		}
		parts = append(parts, b)
	}
	return parts
}

func TestJoinReturnsWhatWasSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := deadletter.Letter{
			Description: deadletter.Description{Reason: deadletter.ReasonTooLarge, Detail: rapid.String().Draw(t, "detail"), Route: "r", Sequence: rapid.Uint64().Draw(t, "seq"), Subject: "a\"b\xff"},
			Header:      rapid.MapOf(rapid.StringN(1, 20, -1), rapid.SliceOfN(rapid.String(), 1, 3)).Draw(t, "header"),
			Data:        rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "data"),
		}
		l.Header["bytes\xff"] = []string{"\xfe\x00", ""}
		parts := split(t, l, rapid.IntRange(1, 200).Draw(t, "part"))
		if len(parts) > deadletter.MaxParts {
			t.Skip("too many parts")
		}
		got, err := deadletter.Join(parts)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(l.Header, got.Header); d != "" || string(got.Data) != string(l.Data) || got.Sequence != l.Sequence || got.Subject != l.Subject {
			t.Fatalf("Join: %+v, headers (-want +got):\n%s", got, d)
		}
	})
}

func TestJoinRefuses(t *testing.T) {
	l := deadletter.Letter{Description: deadletter.Description{Sequence: 7}, Header: map[string][]string{"A": {"b"}}, Data: []byte("0123456789")}
	parts := split(t, l, 10)
	l.Sequence = 8
	other := split(t, l, 10)
	if len(parts) != 2 {
		t.Fatalf("%d parts", len(parts))
	}
	for name, bad := range map[string][][]byte{
		"nothing": nil, "first only": parts[:1], "second only": parts[1:], "swapped": {parts[1], parts[0]},
		"repeated": {parts[0], parts[0]}, "mixed": {parts[0], other[1]}, "cut": {parts[0], parts[1][:len(parts[1])-1]},
		"longer": {parts[0], append(parts[1][:len(parts[1]):len(parts[1])], 0)},
	} {
		if _, err := deadletter.Join(bad); err == nil {
			t.Errorf("%s: Join accepted it", name)
		}
	}
	one := split(t, l, 100)[0]
	for i := range one {
		if _, err := deadletter.Join([][]byte{one[:i]}); err == nil {
			t.Errorf("Join accepted %d of %d bytes", i, len(one))
		}
	}
}
