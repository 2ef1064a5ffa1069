package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

// TestReadable: a search that finds nothing must be able to find something.
func TestReadable(t *testing.T) {
	payload := []byte(strings.Repeat("the quick brown fox ", 20))
	noise := make([]byte, 4096)
	rand.Read(noise)
	hide := func(piece []byte) []byte { return append(append(bytes.Clone(noise), piece...), noise...) }
	tests := []struct {
		name    string
		payload []byte
		sealed  []byte
		headers nats.Header
		want    bool
	}{
		{"noise", payload, noise, nil, false},
		{"whole", payload, hide(payload), nil, true},
		{"a part", payload, hide(payload[100:180]), nil, true},
		{"value of a header", payload, noise, nats.Header{"X": {string(payload[40:120])}}, true},
		{"name of a header", payload, noise, nats.Header{string(payload[40:120]): {"x"}}, true},
		{"short", []byte(`{"a":1}`), hide([]byte(`{"a":1}`)), nil, true},
		{"short, elsewhere", []byte(`{"a":1}`), noise, nats.Header{"X": {`{"a":1}`}}, false},
		{"too short", []byte("1"), []byte("1"), nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := readable(tt.payload, tt.sealed, tt.headers); got != tt.want {
				t.Errorf("readable = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestScan finds payload in files, over the edges of the scanner's buffer too.
func TestScan(t *testing.T) {
	p := newPieces()
	for i := range 5000 {
		p.add(fmt.Appendf(nil, `{"number":%d,"text":"nobody would write this by chance %d"}`, i, i*i))
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 600<<10)
	rand.Read(noise)
	write := func(b []byte) {
		if err := os.WriteFile(filepath.Join(dir, "a/b/file"), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(noise)
	if hits, files, size, err := p.scanDir(dir); err != nil || hits != 0 || files != 1 || size != int64(len(noise)) {
		t.Errorf("scanDir(noise) = %d, %d, %d, %v", hits, files, size, err)
	}
	payload := []byte(`{"number":7,"text":"nobody would write this by chance 49"}`)
	for _, at := range []int{0, 256<<10 - 20, 256<<10 - 50, 512<<10 - 40, len(noise) - len(payload)} {
		b := bytes.Clone(noise)
		copy(b[at:], payload)
		write(b)
		if hits, _, _, err := p.scanDir(dir); err != nil || hits == 0 {
			t.Errorf("scanDir with payload at %d = %d, %v", at, hits, err)
		}
	}
}

func TestLedger(t *testing.T) {
	l := newLedger()
	pub := func(s, p string) {
		if err := l.publish(t.Context(), s, []byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	pub("a", "1")
	pub("b", "2")
	pub("a", "3")
	pub("a", "4")
	if !l.read("b", []byte("2")) || !l.read("a", []byte("1")) {
		t.Error("what came next was refused")
	}
	if l.read("a", []byte("4")) {
		t.Error("another order was accepted")
	}
	if l.left() != 1 {
		t.Errorf("%d left, want 1", l.left())
	}
	if !l.read("a", []byte("4")) || l.read("a", []byte("4")) || l.read("c", nil) {
		t.Error("a message was accepted twice, or on a subject nobody published to")
	}
	if l.left() != 0 || !l.room.TryAcquire(aheadBytes) {
		t.Errorf("%d left, want 0 and all room free", l.left())
	}
}

// TestLedgerBounds: neither many small messages nor a few large ones get in
// beyond the bounds.
func TestLedgerBounds(t *testing.T) {
	for _, tt := range []struct{ size, fit int }{{1, aheadMessages}, {4 << 20, aheadBytes / (4 << 20)}} {
		l, payload := newLedger(), make([]byte, tt.size)
		for range tt.fit {
			if err := l.publish(t.Context(), "a", payload); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.publish(ctx, "a", payload); err == nil {
			t.Errorf("message %d of %d bytes fits", tt.fit+1, tt.size)
		}
		if l.left() != tt.fit {
			t.Errorf("%d left, want %d", l.left(), tt.fit)
		}
	}
}
