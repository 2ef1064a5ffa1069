package envelope_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

// salamander returns a ciphertext and tag that AES-GCM opens under both keys,
// with the plaintext of the first key except for its last whole block, which is
// solved for: GHASH is linear, so one block can make two tags equal.
func salamander(key1, key2, nonce, aad, plaintext []byte) []byte {
	b1, err := aes.NewCipher(key1)
	if err != nil {
		panic(err)
	}
	b2, err := aes.NewCipher(key2)
	if err != nil {
		panic(err)
	}
	if len(plaintext)%16 != 0 {
		panic("plaintext is not in whole blocks")
	}
	c := ctr(b1, nonce, plaintext)
	free := c[len(c)-16:] // enters GHASH times H^2: the length block follows it
	clear(free)
	want := ghash(b1, aad, c).xor(ghash(b2, aad, c)).xor(keystream(b1, nonce, 1)).xor(keystream(b2, nonce, 1))
	h1, h2 := hashKey(b1), hashKey(b2)
	copy(free, want.mul(h1.mul(h1).xor(h2.mul(h2)).inverse()).bytes())
	tag := ghash(b1, aad, c).xor(keystream(b1, nonce, 1))
	return append(c, tag.bytes()...)
}

// salamanderEnvelope makes the collision for the subkeys that both data keys
// give under the key ID of record.
func salamanderEnvelope(key1, key2, record []byte) []byte {
	_, core, _, class := vReadRecord(record)
	if class != "" {
		panic(class)
	}
	nonce, id := counterNonce(0), vKeyID(core)
	payload := bytes.Repeat([]byte("pay the invoice!"), 4)
	m := baseMeta()
	m.Padding = vPad(m, payload, 16)
	sealed := vSeal(key1, record, false, false, vSalt, nonce, m, payload)
	aad := sealed[:6]
	collision := salamander(vSubkey(key1, vSalt, id), vSubkey(key2, vSalt, id), nonce, aad, append(vMetaBytes(m), payload...))
	return append(bytes.Clone(sealed[:68]), collision...)
}

func salamanderCases() []vectorCase {
	var out []vectorCase
	add := func(name string, expect failure, key, record, sealed []byte) {
		c := vectorCase{Name: name, Key: hex.EncodeToString(key), Record: hex.EncodeToString(record), Envelope: hex.EncodeToString(sealed), Expect: expect}
		if expect == "ok" {
			m, payload, _ := vOpen(key, record, sealed)
			p := hex.EncodeToString(payload)
			c.Meta, c.Payload = &m, &p
		}
		out = append(out, c)
	}
	first, second, neither := vSingle(vKey), vSingle(vKey2), vSingle(seq(0xc0, 32))
	sealed := salamanderEnvelope(vKey, vKey2, first)
	add("record commits to the first key, first key", "ok", vKey, first, sealed)
	add("record commits to the first key, second key", "wrong-key", vKey2, first, sealed)
	add("reader of the second key and its record", "tampered", vKey2, second, sealed)
	relabelled := bytes.Clone(sealed)
	copy(relabelled[8:40], vKeyID(second[2:2+int(second[0])<<8+int(second[1])]))
	add("key ID of the second record, second key", "tampered", vKey2, second, relabelled)
	sealed = salamanderEnvelope(vKey, vKey2, neither)
	add("record commits to neither key, first key", "wrong-key", vKey, neither, sealed)
	add("record commits to neither key, second key", "wrong-key", vKey2, neither, sealed)
	return out
}

// TestSalamander shows that the collision is real: bare AES-GCM accepts it under
// both subkeys. That the package does not is TestVectors/salamander.json.
func TestSalamander(t *testing.T) {
	cases := salamanderCases()
	for i, record := range []string{cases[0].Record, cases[4].Record} {
		raw := unhex(record)
		e, err := envelope.Parse(unhex(cases[4*i].Envelope))
		if err != nil {
			t.Fatal(err)
		}
		id := e.KeyID
		if want := vKeyID(raw[2 : 2+int(raw[0])<<8+int(raw[1])]); !bytes.Equal(id[:], want) {
			t.Fatalf("key ID %v, want %x", id, want)
		}
		var texts [][]byte
		for _, key := range [][]byte{vKey, vKey2} {
			block, err := aes.NewCipher(vSubkey(key, e.Salt[:], id[:]))
			if err != nil {
				t.Fatal(err)
			}
			gcm, err := cipher.NewGCMWithRandomNonce(block)
			if err != nil {
				t.Fatal(err)
			}
			text, err := gcm.Open(nil, nil, e.Sealed, []byte("KW\x01\x01\x00\x00"))
			if err != nil {
				t.Fatalf("bare AES-GCM refuses the collision: %v", err)
			}
			texts = append(texts, text)
		}
		if bytes.Equal(texts[0], texts[1]) {
			t.Fatal("both keys open the same plaintext: no collision")
		}
	}
}
