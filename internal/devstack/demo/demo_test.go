package demo_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyweir/keyweir/internal/devstack"
	"github.com/keyweir/keyweir/internal/devstack/demo"
)

// TestBuiltIn runs the demo on the data it ships and wants every figure right.
func TestBuiltIn(t *testing.T) {
	in, err := demo.BuiltIn()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	r, err := demo.Run(t.Context(), demo.Config{Input: in, Field: demo.BuiltInField, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *r)
	if !r.OK() || r.Published != demo.BuiltInLines || r.Subjects != 12 {
		t.Errorf("%d published on %d subjects, %d sealed, %d opened, %d mismatched, %d hits", r.Published, r.Subjects, r.Sealed, r.Opened, r.Mismatched, r.PlaintextHits)
	}
	if r.DataKeys != 12 || r.AuthorityCalls < 12 || r.AuthorityCalls > 2*12+2 {
		t.Errorf("%d data keys, %d authority calls", r.DataKeys, r.AuthorityCalls)
	}
	if r.CacheHits < 2*demo.BuiltInLines-2*12-2 || r.OverheadBytesAvg < 100 || r.OverheadBytesAvg > 600 {
		t.Errorf("%d cache hits, overhead %v", r.CacheHits, r.OverheadBytesAvg)
	}
	if r.SearchedFiles < 3 || r.SearchedBytes < r.PayloadBytes {
		t.Errorf("searched %d files, %d bytes", r.SearchedFiles, r.SearchedBytes)
	}
	if !strings.HasPrefix(string(r.Sample.Before), `{"id":"uw61345682"`) || string(r.Sample.Before) != string(r.Sample.After) {
		t.Errorf("sample = %q, %q", r.Sample.Before, r.Sample.After)
	}
	if _, err := demo.Run(t.Context(), demo.Config{Input: strings.NewReader("{}"), Field: "x", Dir: dir}); !errors.As(err, new(*devstack.NotEmptyError)) {
		t.Errorf("Run in a used directory = %v, want NotEmptyError", err)
	}
}

func TestBadLines(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`{"f":1}` + "\nnot json", "line 2: not a JSON object"},
		{`{"g":1}`, `line 1: no field "f"`},
		{`{"f":{}}`, `line 1: field "f" is not a text, number or boolean`},
		{`{"f":null}`, `line 1: field "f" is not`},
		{"\n\n" + `{"f":""}`, `line 3: field "f" is empty`},
		{`{"f":"` + strings.Repeat("x", 65) + `"}`, "at most 64"},
		{`[1]`, "line 1: not a JSON object"},
		{"", "no line"},
	} {
		_, err := demo.Run(t.Context(), demo.Config{Input: strings.NewReader(tt.in), Field: "f"})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Run(%.40q) = %v, want %q", tt.in, err, tt.want)
		}
	}
}

// TestOddValues: what a subject may not hold is replaced, the payload is not touched.
func TestOddValues(t *testing.T) {
	in := `{"f":"a b.c*>d"}` + "\r\n" + `{"f":3.5}` + "\n\n" + `{"f":true}` + "\n" + `{"f":"é\t"}`
	r, err := demo.Run(t.Context(), demo.Config{Input: strings.NewReader(in), Field: "f"})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || r.Published != 4 || r.Subjects != 4 || r.Sample.Subject != "demo.a_b_c__d" {
		t.Errorf("%+v", *r)
	}
}

// TestInterrupted ends a run whose input would never end.
func TestInterrupted(t *testing.T) {
	pr, pw := io.Pipe()
	defer pw.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := demo.Run(ctx, demo.Config{Input: pr, Field: "f", Progress: func(int64) {}})
		done <- err
	}()
	if _, err := io.WriteString(pw, `{"f":1}`+"\n"); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want canceled", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Run did not end")
	}
}
