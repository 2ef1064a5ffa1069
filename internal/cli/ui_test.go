package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/devstack/demo"
)

func TestFail(t *testing.T) {
	var b bytes.Buffer
	u := newUI(strings.NewReader(""), io.Discard, &b)
	inner := withHint(errors.New("inner"), "do this")
	u.fail(fmt.Errorf("outer: %w", errors.Join(inner, withHint(errors.New("a\nb\x1b[2J"), "do that"), inner)))
	want := `keyweir: error: outer: inner
keyweir: error: a
keyweir: error: b` + "\uFFFD" + `[2J
keyweir: error: inner
keyweir: hint: do this
keyweir: hint: do that
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("fail (-want +got):\n%s", diff)
	}
	if withHint(nil, "x") != nil || hintFor(nil, io.EOF, "x") != nil {
		t.Error("advice without an error")
	}
}

func TestNumbers(t *testing.T) {
	for in, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -999: "-999"} {
		if got := number(in); got != want {
			t.Errorf("number(%d) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 20: "3.0 MiB", 5 << 30: "5.0 GiB"} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %s, want %s", in, got, want)
		}
	}
}

func TestIsText(t *testing.T) {
	for in, want := range map[string]bool{"": true, "a\tb\r\n": true, "é": true, "\x1b[2J": false, "a\x00": false, "\xff": false, "\u0085": false} {
		if got := isText([]byte(in)); got != want {
			t.Errorf("isText(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestRedactURL(t *testing.T) {
	for in, want := range map[string]string{
		"nats://h:4222":                    "nats://h:4222",
		"nats://u:p@h:4222":                "nats://h:4222",
		"nats://tok@h, tls://a:b@c@d:4222": "nats://h, tls://d:4222",
		"u:p@h":                            "h",
	} {
		if got := redactURL(in); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("redactURL(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestParseHeaders(t *testing.T) {
	got, err := parseHeaders([]string{"A: 1", "b:2", "A:  3:4 "})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(nats.Header{"A": {"1", "3:4"}, "b": {"2"}}, got); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	for _, h := range []string{"", "x", ": 1", "a: b\r\nc: d"} {
		if _, err := parseHeaders([]string{h}); err == nil {
			t.Errorf("parseHeaders(%q) = nil, want an error", h)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"/tmp/a-b.c": "/tmp/a-b.c", "/a b": "'/a b'", "it's": `'it'\''s'`, "$x": "'$x'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", in, got, want)
		}
	}
}

// TestWriteDemo shows a result that must alarm, and one with nothing to show.
func TestWriteDemo(t *testing.T) {
	var b bytes.Buffer
	if err := writeDemo(&b, &demo.Result{Published: 2, Sealed: 2, Opened: 2, Mismatched: 1}, "x\x1b"); err != nil {
		t.Fatal(err)
	}
	if s := b.String(); strings.Contains(s, "Everything came back") || strings.Contains(s, "\x1b") {
		t.Errorf("table:\n%s", s)
	}
}

// TestResolve: a flag beats the environment, both beat the context.
func TestResolve(t *testing.T) {
	for _, name := range []string{"NATS_URL", "NATS_CONTEXT", "NATS_CREDS", "NATS_NKEY", "NATS_USER", "NATS_PASSWORD", "NATS_CERT", "NATS_KEY", "NATS_CA"} {
		t.Setenv(name, "")
	}
	url := func(f natsFlags) string {
		t.Helper()
		e, err := f.resolve()
		if err != nil {
			t.Fatal(err)
		}
		return e.url
	}
	if got := url(natsFlags{}); got != nats.DefaultURL {
		t.Errorf("default = %s", got)
	}
	t.Setenv("NATS_URL", "nats://env")
	if got := url(natsFlags{}); got != "nats://env" {
		t.Errorf("environment = %s", got)
	}
	if got := url(natsFlags{server: "nats://flag"}); got != "nats://flag" {
		t.Errorf("flag = %s", got)
	}
	for _, f := range []natsFlags{{creds: "/nonexistent"}, {nkey: "/nonexistent"}, {context: "/nonexistent"}} {
		if _, err := f.resolve(); err == nil {
			t.Errorf("resolve(%+v) = nil, want an error", f)
		}
	}
}
