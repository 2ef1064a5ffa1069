package envelope_test

import (
	"bytes"
	"crypto/fips140"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

// TestNoncesNeverRepeat reads salts and nonces from what was really sealed.
// Counter sessions must count without a gap from 0; together with distinct
// salts that makes every (salt, nonce) unique. Random ones are collected.
func TestNoncesNeverRepeat(t *testing.T) {
	sessions, messages := 100, 100_000
	if testing.Short() || raceDetector {
		messages = 2_000
		t.Logf("-short or -race: %d instead of 100000 messages per session", messages)
	}
	key, record := newKey(t)
	m := envelope.Meta{SealedSubject: "s", OriginSubject: "s"}
	salts := map[envelope.Salt]bool{}
	seen := make(map[[envelope.NonceSize]byte]struct{}, messages)
	buf := make([]byte, 0, 1024)
	for i := range sessions {
		s := newSession(t, key, record, envelope.SessionConfig{RandomNonce: i%10 == 9})
		clear(seen)
		for n := range messages {
			out, err := s.Seal(buf, &m, nil)
			if err != nil {
				t.Fatal(err)
			}
			e, err := envelope.Parse(out)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				if salts[e.Salt] {
					t.Fatalf("salt %v drawn twice", e.Salt)
				}
				salts[e.Salt] = true
			}
			if e.Salt != s.Salt() || e.KeyID != s.KeyID() {
				t.Fatal("salt or key ID differs from the session's")
			}
			if inline := e.Record != nil; inline != (n%envelope.InlineEvery == 0) {
				t.Fatalf("message %d carries its record: %v", n, inline)
			}
			nonce := [envelope.NonceSize]byte(e.Sealed)
			if e.Flags&envelope.FlagRandomNonce != 0 {
				if _, again := seen[nonce]; again {
					t.Fatalf("random nonce %x came twice", nonce)
				}
				seen[nonce] = struct{}{}
			} else if hi, lo := binary.BigEndian.Uint32(nonce[:]), binary.BigEndian.Uint64(nonce[4:]); hi != 0 || lo != uint64(n) {
				t.Fatalf("message %d has nonce %x", n, nonce)
			}
		}
		if sealed, _ := s.Sealed(); sealed != uint64(messages) {
			t.Fatalf("session counts %d messages, sealed %d", sealed, messages)
		}
	}
	if len(salts) != sessions {
		t.Errorf("%d salts in %d sessions", len(salts), sessions)
	}
}

func TestMessageLimit(t *testing.T) {
	key, record := newKey(t)
	m := benchMeta
	for name, c := range map[string]struct{ limit, want uint64 }{
		"3": {3, 3}, "1": {1, 1}, "hard": {0, envelope.MaxSessionMessages}, "beyond the hard one": {math.MaxUint64, envelope.MaxSessionMessages},
	} {
		s := newSession(t, key, record, envelope.SessionConfig{MaxMessages: c.limit})
		if c.want > 3 {
			s.Advance(c.want-3, 0)
		}
		for n, err := uint64(0), error(nil); ; n++ {
			var out []byte
			if out, err = s.Seal(nil, &m, nil); err == nil {
				continue
			}
			if !errors.Is(err, envelope.ErrSessionEnded) || out != nil || n != min(3, c.want) {
				t.Errorf("limit %s: message %d: %d bytes, %v", name, n, len(out), err)
			}
			break
		}
		if messages, _ := s.Sealed(); messages != c.want {
			t.Errorf("limit %s: ended after %d messages, want %d", name, messages, c.want)
		}
	}
}

func TestByteLimit(t *testing.T) {
	key, record := newKey(t)
	m := benchMeta
	s := newSession(t, key, record, envelope.SessionConfig{})
	seal(t, s, &m, make([]byte, 100))
	_, size := s.Sealed()
	for name, c := range map[string]struct {
		limit, spent uint64
		want         error
	}{
		"exactly to the hard limit":       {0, envelope.MaxSessionBytes - size, nil},
		"one below the hard limit":        {0, envelope.MaxSessionBytes - size - 1, nil},
		"one beyond the hard limit":       {0, envelope.MaxSessionBytes - size + 1, envelope.ErrSessionEnded},
		"a limit beyond the hard one":     {math.MaxUint64, envelope.MaxSessionBytes - size + 1, envelope.ErrSessionEnded},
		"exactly to a limit":              {2 * size, size, nil},
		"one beyond a limit":              {2*size - 1, size, envelope.ErrSessionEnded},
		"limit reached":                   {size, size, envelope.ErrSessionEnded},
		"first message fits exactly":      {size, 0, nil},
		"never fits, not even the first":  {size - 1, 0, envelope.ErrInvalid},
		"never fits, not in this session": {size - 1, 5, envelope.ErrInvalid},
	} {
		s := newSession(t, key, record, envelope.SessionConfig{MaxBytes: c.limit})
		s.Advance(1, c.spent)
		_, err := s.Seal(nil, &m, make([]byte, 100))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		messages, spent := s.Sealed()
		if err != nil && (messages != 1 || spent != c.spent) {
			t.Errorf("%s: a refused message was counted", name)
		}
		// Ended is ended, also for messages that would still fit.
		if _, again := s.Seal(nil, &envelope.Meta{SealedSubject: "s", OriginSubject: "s"}, nil); errors.Is(err, envelope.ErrSessionEnded) && !errors.Is(again, envelope.ErrSessionEnded) {
			t.Errorf("%s: sealed again after its end: %v", name, again)
		}
	}
}

func TestSessionEnds(t *testing.T) {
	key, record := newKey(t)
	m := benchMeta
	s := newSession(t, key, record, envelope.SessionConfig{})
	twin := *s // the mistake under test
	if _, err := twin.Seal(nil, &m, nil); !errors.Is(err, envelope.ErrSessionEnded) {
		t.Errorf("a copied session seals: %v", err)
	}
	seal(t, s, &m, nil)
	s.Close()
	s.Close()
	var zero envelope.Session
	for name, s := range map[string]*envelope.Session{"closed": s, "zero": &zero} {
		if out, err := s.Seal(nil, &m, nil); !errors.Is(err, envelope.ErrSessionEnded) || out != nil {
			t.Errorf("a %s session seals: %v", name, err)
		}
	}
}

func TestGrantIsUsedOnce(t *testing.T) {
	key, record := newKey(t)
	grant := func() *envelope.Grant {
		g, err := envelope.NewGrant(key, record)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	g := grant()
	if _, err := g.Session(envelope.SessionConfig{PadTo: envelope.MaxPadTo + 1}); !errors.Is(err, envelope.ErrInvalid) {
		t.Errorf("PadTo beyond its maximum: %v", err)
	}
	if _, err := g.Session(envelope.SessionConfig{PadTo: -1}); !errors.Is(err, envelope.ErrInvalid) {
		t.Errorf("negative PadTo: %v", err)
	}
	if _, err := g.Session(envelope.SessionConfig{Record: 3}); !errors.Is(err, envelope.ErrInvalid) {
		t.Errorf("unknown record mode: %v", err)
	}
	if _, err := g.Session(envelope.SessionConfig{PadTo: envelope.MaxPadTo}); err != nil {
		t.Errorf("an invalid configuration used the grant up: %v", err)
	}
	if _, err := g.Session(envelope.SessionConfig{}); !errors.Is(err, envelope.ErrSessionEnded) {
		t.Errorf("second session of a grant: %v", err)
	}
	if !g.SubkeyIsCleared() {
		t.Error("a used grant still holds its subkey")
	}
	if _, _, subkey := envelope.ExposeGrant(g); subkey != nil {
		t.Error("a used grant still gives a subkey")
	}

	g = grant()
	if g.SubkeyIsCleared() {
		t.Error("a new grant holds no subkey")
	}
	raw, salt, subkey := envelope.ExposeGrant(g)
	if !g.SubkeyIsCleared() {
		t.Error("an exposed grant still holds its subkey")
	}
	if _, err := g.Session(envelope.SessionConfig{}); !errors.Is(err, envelope.ErrSessionEnded) {
		t.Errorf("session of a grant that was sent away: %v", err)
	}
	if _, _, again := envelope.ExposeGrant(g); again != nil {
		t.Error("a grant was exposed twice")
	}
	received, err := envelope.GrantFromParts(raw, salt, subkey)
	if err != nil {
		t.Fatal(err)
	}
	if received.KeyID() != record.Core.ID() {
		t.Errorf("key ID %v of the received grant, want %v", received.KeyID(), record.Core.ID())
	}
	clear(subkey)
	clear(raw)
	s, err := received.Session(envelope.SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	m := benchMeta
	if o, err := openWith(newReader(t, key, record, 0), record, seal(t, s, &m, []byte("x"))); err != nil || string(o.Payload) != "x" {
		t.Errorf("opening what a received grant sealed: %v", err)
	}
}

func TestFIPSForcesRandomNonces(t *testing.T) {
	key, record := newKey(t)
	m := benchMeta
	e, err := envelope.Parse(seal(t, newSession(t, key, record, envelope.SessionConfig{}), &m, nil))
	if err != nil {
		t.Fatal(err)
	}
	if random := e.Flags&envelope.FlagRandomNonce != 0; random != fips140.Enabled() {
		t.Errorf("random nonce: %v, FIPS mode: %v", random, fips140.Enabled())
	}
}

// TestMetaLimits: whatever Seal takes at its maxima opens, one beyond is refused.
func TestMetaLimits(t *testing.T) {
	key, record := newKey(t)
	r := newReader(t, key, record, 0)
	o, x := strings.Repeat("o", envelope.MaxSubject), strings.Repeat("x", 70_000)
	headers := func(n int) (h []envelope.Header) {
		for range n {
			h = append(h, envelope.Header{Name: "h"})
		}
		return h
	}
	for name, c := range map[string]struct {
		change func(m *envelope.Meta)
		ok     bool
	}{
		"no sealed subject":         {func(m *envelope.Meta) { m.SealedSubject = "" }, false},
		"no origin subject":         {func(m *envelope.Meta) { m.OriginSubject = "" }, false},
		"subjects of 4096 bytes":    {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = o, o }, true},
		"sealed subject of 4097":    {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = "s"+o, o }, false},
		"origin subject of 4097":    {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = o, "s"+o }, false},
		"strip of 255":              {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = x[:255]+"a", "a" }, true},
		"strip of 256":              {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = x[:256]+"a", "a" }, false},
		"add of 255":                {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = "a", x[:255]+"a" }, true},
		"add of 256":                {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = "a", x[:256]+"a" }, false},
		"all of both":               {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = x[:255], o[:255] }, true},
		"64 headers":                {func(m *envelope.Meta) { m.Headers = headers(64) }, true},
		"65 headers":                {func(m *envelope.Meta) { m.Headers = headers(65) }, false},
		"header without a name":     {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Value: "v"}} }, false},
		"headers out of order":      {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: "b"}, {Name: "a"}} }, false},
		"value at the maximum":      {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: "h", Value: x[:32768-7]}} }, true},
		"value one beyond":          {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: "h", Value: x[:32768-6]}} }, false},
		"name at the maximum":       {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: x[:32768-6]}} }, true},
		"name one beyond":           {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: x[:32768-5]}} }, false},
		"name of 65536 bytes":       {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: x[:65536]}} }, false},
		"value of 70000 bytes":      {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: "h", Value: x}} }, false},
		"bytes that are no text":    {func(m *envelope.Meta) { m.Headers = []envelope.Header{{Name: "\xff\x00", Value: "\x00"}} }, true},
		"subject bytes not UTF-8":   {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = "\xff", "\xfe" }, true},
		"subject larger than a u16": {func(m *envelope.Meta) { m.SealedSubject, m.OriginSubject = x, x }, false},
		"headers summing one too far": {func(m *envelope.Meta) {
			m.Headers = []envelope.Header{{Name: "a", Value: x[:16377]}, {Name: "b", Value: x[:16378]}}
		}, false},
		"headers summing exactly": {func(m *envelope.Meta) {
			m.Headers = []envelope.Header{{Name: "a", Value: x[:16377]}, {Name: "b", Value: x[:16377]}}
		}, true},
	} {
		for _, padTo := range []int{0, 1, 2, 127, envelope.MaxPadTo} {
			s := newSession(t, key, record, envelope.SessionConfig{PadTo: padTo})
			m := benchMeta
			c.change(&m)
			dst := []byte("prefix")
			sealed, err := s.Seal(dst, &m, []byte("p"))
			size, sizeErr := s.SealedSize(&m, 1)
			if c.ok != (err == nil) || (err == nil) != (sizeErr == nil) || (err != nil && (!errors.Is(err, envelope.ErrInvalid) || sealed != nil)) {
				t.Errorf("%s, padded to %d: Seal = %v, SealedSize = %v", name, padTo, err, sizeErr)
				continue
			}
			if messages, bytes := s.Sealed(); !c.ok && (messages != 0 || bytes != 0) {
				t.Errorf("%s: a refused message was counted", name)
			}
			if !c.ok {
				continue
			}
			if len(sealed)-len(dst) > size {
				t.Errorf("%s, padded to %d: %d bytes, SealedSize says %d", name, padTo, len(sealed)-len(dst), size)
			}
			opened, err := openWith(r, record, sealed[len(dst):])
			if err != nil {
				t.Errorf("%s, padded to %d: sealed but does not open: %v", name, padTo, err)
				continue
			}
			if got := opened.Meta.Meta(); got.OriginSubject != m.OriginSubject || got.SealedSubject != m.SealedSubject || !bytes.Equal(opened.Payload, []byte("p")) {
				t.Errorf("%s, padded to %d: opened as %q %q", name, padTo, got.OriginSubject, got.SealedSubject)
			}
		}
	}
}

// TestLongestEnvelope needs address space only: nothing reads the pages.
func TestLongestEnvelope(t *testing.T) {
	long := make([]byte, envelope.MaxSize+1)
	copy(long, "KW\x01\x01")
	if _, err := envelope.Parse(long); !errors.Is(err, envelope.ErrMalformed) {
		t.Errorf("Parse of %d bytes = %v, want ErrMalformed", len(long), err)
	}
	if _, err := envelope.Parse(long[:envelope.MaxSize]); err != nil {
		t.Errorf("Parse of %d bytes = %v", envelope.MaxSize, err)
	}
	key, record := newKey(t)
	s := newSession(t, key, record, envelope.SessionConfig{})
	m := benchMeta
	for _, n := range []int{envelope.MaxSize + 1, envelope.MaxSize, envelope.MaxSize - 100} {
		if _, err := s.Seal(nil, &m, long[:n]); !errors.Is(err, envelope.ErrInvalid) {
			t.Errorf("Seal of %d bytes = %v, want ErrInvalid", n, err)
		}
	}
}
