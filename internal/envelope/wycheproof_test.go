package envelope_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

func wycheproofFile(t *testing.T, name string, v any) {
	t.Helper()
	raw, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
}

// TestWycheproofGCM runs Project Wycheproof's vectors for the sizes of suite 1
// through the primitives that sessions and readers use.
func TestWycheproofGCM(t *testing.T) {
	var file struct {
		TestGroups []struct {
			IVSize, KeySize, TagSize int
			Tests                    []struct {
				TcID                               int
				Comment                            string
				Key, IV, AAD, Msg, CT, Tag, Result string
			}
		}
	}
	wycheproofFile(t, "aes_gcm_test.json", &file)
	valid, invalid, sealed := 0, 0, 0
	for _, g := range file.TestGroups {
		if g.KeySize != 256 || g.IVSize != 96 || g.TagSize != 128 {
			continue
		}
		for _, c := range g.Tests {
			block, err := aes.NewCipher(unhex(c.Key))
			if err != nil {
				t.Fatal(err)
			}
			reader, err := cipher.NewGCMWithRandomNonce(block)
			if err != nil {
				t.Fatal(err)
			}
			in := bytes.Join([][]byte{unhex(c.IV), unhex(c.CT), unhex(c.Tag)}, nil)
			got, err := reader.Open(nil, nil, in, unhex(c.AAD))
			second, secondErr := gcmOpen(unhex(c.Key), unhex(c.IV), unhex(c.AAD), in[12:])
			switch c.Result {
			case "valid":
				valid++
				if err != nil || secondErr != nil || !bytes.Equal(got, unhex(c.Msg)) || !bytes.Equal(second, unhex(c.Msg)) {
					t.Errorf("case %d (%s): Open = %x, %v; second implementation %x, %v", c.TcID, c.Comment, got, err, second, secondErr)
				}
				want := in[12:]
				if out := gcmSeal(unhex(c.Key), unhex(c.IV), unhex(c.AAD), unhex(c.Msg)); !bytes.Equal(out, want) {
					t.Errorf("case %d (%s): second implementation seals %x, want %x", c.TcID, c.Comment, out, want)
				}
				writer, err := cipher.NewGCM(block)
				if err != nil {
					if !fips140.Enabled() {
						t.Fatal(err)
					}
					continue // refused under fips140=only: counter nonces do not exist there
				}
				sealed++
				if out := writer.Seal(nil, unhex(c.IV), unhex(c.Msg), unhex(c.AAD)); !bytes.Equal(out, want) {
					t.Errorf("case %d (%s): Seal = %x, want %x", c.TcID, c.Comment, out, want)
				}
			case "invalid":
				invalid++
				if err == nil || got != nil || secondErr == nil {
					t.Errorf("case %d (%s): Open = %x, %v; second implementation %v; want errors", c.TcID, c.Comment, got, err, secondErr)
				}
			default:
				t.Errorf("case %d: unknown result %q", c.TcID, c.Result)
			}
		}
	}
	t.Logf("%d valid, %d invalid, %d sealed", valid, invalid, sealed)
	if valid < 30 || invalid < 10 || (sealed == 0 && !fips140.Enabled()) {
		t.Errorf("ran %d valid, %d invalid and sealed %d vectors: too few", valid, invalid, sealed)
	}
}

func TestWycheproofHKDF(t *testing.T) {
	var file struct {
		TestGroups []struct {
			Tests []struct {
				TcID                         int
				Comment                      string
				IKM, Salt, Info, OKM, Result string
				Size                         int
			}
		}
	}
	wycheproofFile(t, "hkdf_sha256_test.json", &file)
	valid, invalid, short, second := 0, 0, 0, 0
	for _, g := range file.TestGroups {
		for _, c := range g.Tests {
			ikm, salt, info := unhex(c.IKM), unhex(c.Salt), unhex(c.Info)
			got, err := hkdf.Key(sha256.New, ikm, salt, string(info), c.Size)
			switch c.Result {
			case "valid":
				if err != nil && fips140.Enabled() && len(ikm) < 14 {
					short++ // keys under 112 bits are refused under fips140=only; ours have 256
					continue
				}
				valid++
				if err != nil || !bytes.Equal(got, unhex(c.OKM)) {
					t.Errorf("case %d (%s): Key = %x, %v", c.TcID, c.Comment, got, err)
				}
				if c.Size <= 32 && (len(salt) == 0 || len(salt) >= 14) {
					second++
					if out := hkdf32(ikm, salt, info)[:c.Size]; !bytes.Equal(out, unhex(c.OKM)) {
						t.Errorf("case %d (%s): second implementation %x", c.TcID, c.Comment, out)
					}
				}
			case "invalid":
				invalid++
				if err == nil {
					t.Errorf("case %d (%s): no error", c.TcID, c.Comment)
				}
			default:
				t.Errorf("case %d: unknown result %q", c.TcID, c.Result)
			}
		}
	}
	t.Logf("%d valid, %d invalid, %d too short for this mode, %d by the second implementation", valid, invalid, short, second)
	if valid < 30 || invalid == 0 || second == 0 {
		t.Errorf("ran %d valid, %d invalid, %d second: too few", valid, invalid, second)
	}
}
