package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// The second implementation brings its own GCM over crypto/aes, straight from
// SP 800-38D: crypto/cipher's takes no nonce in every FIPS mode, and a GCM
// written out gives the attacks something to compute with.

// block128 is an element of GF(2^128) in GCM's bit order: the most significant
// bit of hi is the coefficient of x^0.
type block128 struct{ hi, lo uint64 }

func toBlock(b []byte) block128 {
	var full [16]byte
	copy(full[:], b)
	return block128{binary.BigEndian.Uint64(full[:]), binary.BigEndian.Uint64(full[8:])}
}

func (a block128) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a.hi), a.lo)
}

func (a block128) xor(b block128) block128 { return block128{a.hi ^ b.hi, a.lo ^ b.lo} }

// mul multiplies modulo x^128 + x^7 + x^2 + x + 1.
func (a block128) mul(b block128) (z block128) {
	for i := range 128 {
		word, bit := a.hi, 63-i
		if i >= 64 {
			word, bit = a.lo, 127-i
		}
		if word>>bit&1 == 1 {
			z = z.xor(b)
		}
		carry := b.lo & 1
		b = block128{b.hi >> 1, b.lo>>1 | b.hi<<63}
		if carry == 1 {
			b.hi ^= 0xe1 << 56
		}
	}
	return z
}

// inverse returns a^(2^128-2).
func (a block128) inverse() block128 {
	z, square := block128{hi: 1 << 63}, a
	for range 127 {
		square = square.mul(square)
		z = z.mul(square)
	}
	return z
}

// ghash hashes aad and ciphertext under the block cipher's hash key.
func ghash(block cipher.Block, aad, ciphertext []byte) block128 {
	h := hashKey(block)
	var y block128
	for _, part := range [][]byte{aad, ciphertext} {
		for len(part) > 0 {
			n := min(16, len(part))
			y = y.xor(toBlock(part[:n])).mul(h)
			part = part[n:]
		}
	}
	return y.xor(block128{uint64(len(aad)) * 8, uint64(len(ciphertext)) * 8}).mul(h)
}

func hashKey(block cipher.Block) block128 { return keystream(block, nil, 0) }

// keystream encrypts nonce || counter; a nil nonce is all zero.
func keystream(block cipher.Block, nonce []byte, counter uint32) block128 {
	var in, out [16]byte
	copy(in[:12], nonce)
	binary.BigEndian.PutUint32(in[12:], counter)
	block.Encrypt(out[:], in[:])
	return toBlock(out[:])
}

func ctr(block cipher.Block, nonce, in []byte) []byte {
	out := make([]byte, 0, len(in))
	for counter := uint32(2); len(in) > 0; counter++ {
		n := min(16, len(in))
		out = append(out, toBlock(in[:n]).xor(keystream(block, nonce, counter)).bytes()[:n]...)
		in = in[n:]
	}
	return out
}

func gcmSeal(key, nonce, aad, plaintext []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	out := ctr(block, nonce, plaintext)
	tag := ghash(block, aad, out).xor(keystream(block, nonce, 1))
	return append(out, tag.bytes()...)
}

func gcmOpen(key, nonce, aad, sealed []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	if len(sealed) < 16 {
		return nil, errors.New("too short")
	}
	ciphertext, tag := sealed[:len(sealed)-16], sealed[len(sealed)-16:]
	want := ghash(block, aad, ciphertext).xor(keystream(block, nonce, 1)).bytes()
	if subtle.ConstantTimeCompare(want, tag) != 1 {
		return nil, errors.New("bad tag")
	}
	return ctr(block, nonce, ciphertext), nil
}
