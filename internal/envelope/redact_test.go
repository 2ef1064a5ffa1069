package envelope_test

import (
	"bytes"
	"encoding"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

// spellings lists how a printer might write any run of 4 bytes of the secrets:
// in lower case, and as is.
func spellings(secrets ...[]byte) (lower, exact []string) {
	for _, s := range secrets {
		for i := 0; i+4 <= len(s); i++ {
			part := s[i : i+4]
			var dec, goHex, spaced []string
			for _, b := range part {
				dec = append(dec, strconv.Itoa(int(b)))
				goHex = append(goHex, fmt.Sprintf("0x%x", b))
				spaced = append(spaced, fmt.Sprintf("%02x", b))
			}
			lower = append(lower, hex.EncodeToString(part), strings.Join(dec, " "), strings.Join(dec, ","), strings.Join(dec, ", "),
				strings.Join(goHex, ", "), strings.Join(goHex, " "), strings.Join(spaced, " "), strings.Join(spaced, ":"))
			exact = append(exact, string(part), strings.Trim(strconv.Quote(string(part)), `"`))
		}
		for i := 0; i+4 <= len(s); i += 4 { // an expanded AES key begins with the key as words
			for _, word := range []uint32{binary.BigEndian.Uint32(s[i:]), binary.LittleEndian.Uint32(s[i:])} {
				lower = append(lower, strconv.FormatUint(uint64(word), 10), fmt.Sprintf("0x%x", word))
			}
		}
		for _, e := range []interface{ EncodeToString([]byte) string }{base64.RawStdEncoding, base64.RawURLEncoding, base32.StdEncoding} {
			for i := 0; i < 3; i++ { // base64 has three phases
				text := e.EncodeToString(s[i : i+24])
				exact = append(exact, text[:len(text)-8])
			}
		}
	}
	return lower, exact
}

// leaks returns a spelling of the secrets that out contains.
func leaks(out string, lower, exact []string) string {
	small := strings.ToLower(out)
	for _, s := range lower {
		if strings.Contains(small, s) {
			return s
		}
	}
	for _, s := range exact {
		if strings.Contains(out, s) {
			return s
		}
	}
	return ""
}

func TestLeaksFinds(t *testing.T) {
	s := seq(0x81, 32)
	lower, exact := spellings(s)
	for _, out := range []string{
		fmt.Sprintf("%x", s), fmt.Sprintf("%X", s), fmt.Sprintf("% x", s), fmt.Sprintf("%v", s), fmt.Sprintf("%#v", s), fmt.Sprintf("%q", s),
		fmt.Sprint(binary.BigEndian.Uint32(s[4:])), fmt.Sprintf("%#x", binary.LittleEndian.Uint32(s[8:])), string(s), fmt.Sprintf("%d", [32]byte(s)), "x" + base64.StdEncoding.EncodeToString(s[1:]), base64.URLEncoding.EncodeToString(s),
	} {
		if leaks(out, lower, exact) == "" {
			t.Errorf("not seen in %q", out)
		}
	}
	if got := leaks("[redacted] 0xc000012345", lower, exact); got != "" {
		t.Errorf("seen where nothing is: %q", got)
	}
}

func TestRedaction(t *testing.T) {
	key, err := envelope.NewDataKey(vKey2) // 80 81 82 ..: findable in any spelling
	if err != nil {
		t.Fatal(err)
	}
	record, err := envelope.ParseRecord(vSingle(vKey2))
	if err != nil {
		t.Fatal(err)
	}
	grant, err := envelope.NewGrant(key, record)
	if err != nil {
		t.Fatal(err)
	}
	session := newSession(t, key, record, envelope.SessionConfig{})
	reader := newReader(t, key, record, 0)
	m := benchMeta
	if _, err := openWith(reader, record, seal(t, session, &m, nil)); err != nil { // so that it keeps a session
		t.Fatal(err)
	}
	id := record.Core.ID()
	salt := session.Salt()
	keep, err := envelope.NewGrant(key, record)
	if err != nil {
		t.Fatal(err)
	}
	_, grantSalt, _ := envelope.ExposeGrant(keep)
	secrets := [][]byte{vKey2, vSubkey(vKey2, salt[:], id[:]), vSubkey(vKey2, grantSalt[:], id[:])}

	lower, exact := spellings(secrets...)

	type holder struct {
		Public  any
		private any
		Key     envelope.DataKey
		key     envelope.DataKey
		Grant   *envelope.Grant
		session *envelope.Session
		readers map[string]*envelope.KeyReader
	}
	h := holder{key, session, key, key, grant, session, map[string]*envelope.KeyReader{"a": reader}}
	values := map[string]any{
		"key": key, "*key": &key, "grant": grant, "session": session, "reader": reader,
		"holder": h, "*holder": &h, "[]key": []envelope.DataKey{key}, "[1]key": [1]envelope.DataKey{key},
		"map": map[string]envelope.DataKey{"k": key}, "map key": map[envelope.DataKey]int{key: 1}, "[]any": []any{key, &key, session, reader, grant},
		"session by value": struct{ s envelope.Session }{*session}, "aead": struct{ s *envelope.Session }{session},
		"struct": struct{ k envelope.DataKey }{key}, "*struct": &struct{ k *envelope.DataKey }{&key}, "error": fmt.Errorf("with %v and %+v", key, session),
	}
	checked := map[string]bool{}
	check := func(name, how, out string) {
		t.Helper()
		if checked[out] {
			return
		}
		checked[out] = true
		if found := leaks(out, lower, exact); found != "" {
			t.Errorf("%s of %s leaks %s: %s", how, name, found, out)
		}
	}
	for name, v := range values {
		for c := byte(' '); c < 0x7f; c++ {
			if raceDetector && c < 'a' {
				continue // slow there, and nothing runs concurrently
			}
			for _, flags := range []string{"", "+", "#", " ", "#+", ".3"} {
				format := "%" + flags + string(c)
				check(name, format, fmt.Sprintf(format, v))
			}
		}
		check(name, "Sprint", fmt.Sprint(v)+fmt.Sprintln(v))
		for how, handler := range map[string]func(*bytes.Buffer) slog.Handler{
			"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
			"slog JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
		} {
			var b bytes.Buffer
			slog.New(handler(&b)).With("with", v).WithGroup("g").Info("message", "value", v, slog.Group("group", "value", v))
			check(name, how, b.String())
		}
		for how, marshal := range map[string]func(any) ([]byte, error){
			"JSON": json.Marshal,
			"XML":  xml.Marshal,
			"gob": func(v any) ([]byte, error) {
				var b bytes.Buffer
				err := gob.NewEncoder(&b).Encode(v)
				return b.Bytes(), err
			},
		} {
			out, err := marshal(v)
			check(name, how, fmt.Sprint(string(out), err))
		}
		if m, ok := v.(encoding.TextMarshaler); ok {
			out, err := m.MarshalText()
			check(name, "text", fmt.Sprint(string(out), err))
			if string(out) != "[redacted]" {
				t.Errorf("text of %s = %q", name, out)
			}
		}
	}
	for name, v := range map[string]any{"key": key, "grant": grant, "session": session, "reader": reader} {
		if got := fmt.Sprintf("%v %+v %#v %s %x %q %d", v, v, v, v, v, v, v); got != strings.TrimSpace(strings.Repeat("[redacted] ", 7)) {
			t.Errorf("%s prints as %q", name, got)
		}
		if _, err := v.(encoding.BinaryMarshaler).MarshalBinary(); err == nil {
			t.Errorf("%s marshals as binary", name)
		}
		if err := gob.NewEncoder(&bytes.Buffer{}).Encode(v); err == nil {
			t.Errorf("gob takes a %s", name)
		}
	}
}
