package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/keyweir/keyweir/internal/envelope"
)

var benchSizes = []int{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10}

var benchMeta = envelope.Meta{
	Chain: envelope.ChainID{1}, Sequence: 1 << 33, Previous: 1<<33 - 1, PreviousOnSubject: envelope.NotKept,
	Published: 1517363399650000000, SealedSubject: "sealed.orders.eu.created", OriginSubject: "orders.eu.created",
}

func benchSession(tb testing.TB) (*envelope.Session, *envelope.KeyReader) {
	tb.Helper()
	key, record := newKey(tb)
	g, err := envelope.NewGrant(key, record)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := g.Session(envelope.SessionConfig{Record: envelope.RecordReference})
	if err != nil {
		tb.Fatal(err)
	}
	r, err := envelope.NewKeyReader(record, key, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return s, r
}

// BenchmarkSeal seals meta and payload into the caller's buffer.
func BenchmarkSeal(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := benchSession(b)
			payload := make([]byte, n)
			buf := make([]byte, 0, n+1024)
			m := benchMeta
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Seal(buf, &m, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen opens what BenchmarkSeal seals, session known.
func BenchmarkOpen(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, r := benchSession(b)
			m := benchMeta
			sealed, err := s.Seal(nil, &m, make([]byte, n))
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 0, len(sealed))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				e, err := envelope.Parse(sealed)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.Open(buf, &e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFloor is bare AES-256-GCM with a counter nonce over the bytes that
// Seal encrypts (meta and payload), into own buffers.
func BenchmarkFloor(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := benchSession(b)
			m := benchMeta
			sealed, err := s.Seal(nil, &m, make([]byte, n))
			if err != nil {
				b.Fatal(err)
			}
			block, err := aes.NewCipher([]byte("0123456789abcdef0123456789abcdef"))
			if err != nil {
				b.Fatal(err)
			}
			aead, err := cipher.NewGCM(block)
			if err != nil {
				b.Fatal(err)
			}
			plain := make([]byte, len(sealed)-envelope.HeaderSize-envelope.NonceSize-envelope.TagSize)
			dst := make([]byte, 0, len(plain)+16)
			nonce := make([]byte, 12)
			var ctr uint64
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				binary.BigEndian.PutUint64(nonce[4:], ctr)
				ctr++
				aead.Seal(dst, nonce, plain, nil)
			}
		})
	}
}
