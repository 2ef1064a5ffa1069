package envelope_test

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

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

// newFloor returns one bare AES-256-GCM seal with a counter nonce over as many
// bytes as sealed holds of meta and payload, into own buffers.
func newFloor(tb testing.TB, sealed []byte) func() {
	tb.Helper()
	block, err := aes.NewCipher([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		tb.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		tb.Skipf("no floor to compare with, counter nonces are refused here: %v", err)
	}
	plain := make([]byte, len(sealed)-envelope.HeaderSize-envelope.NonceSize-envelope.TagSize)
	dst := make([]byte, 0, len(plain)+envelope.TagSize)
	nonce := make([]byte, envelope.NonceSize)
	var counter uint64
	return func() {
		binary.BigEndian.PutUint64(nonce[4:], counter)
		counter++
		aead.Seal(dst, nonce, plain, nil)
	}
}

// BenchmarkFloor is bare AES-256-GCM over the bytes that BenchmarkSeal encrypts.
func BenchmarkFloor(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := benchSession(b)
			m := benchMeta
			sealed, err := s.Seal(nil, &m, make([]byte, n))
			if err != nil {
				b.Fatal(err)
			}
			floor := newFloor(b, sealed)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				floor()
			}
		})
	}
}

// BenchmarkRatio times batches of Seal, Open and the floor in turn and reports
// the ratios of their medians, which a busy machine disturbs least.
func BenchmarkRatio(b *testing.B) {
	const batch = 32
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, r := benchSession(b)
			m, payload := benchMeta, make([]byte, n)
			sealed, err := s.Seal(nil, &m, payload)
			if err != nil {
				b.Fatal(err)
			}
			floor := newFloor(b, sealed)
			buf, out := make([]byte, 0, n+1024), make([]byte, 0, n+1024)
			ops := [3]func(){
				floor,
				func() { _, err = s.Seal(buf, &m, payload) },
				func() {
					var e envelope.Envelope
					if e, err = envelope.Parse(sealed); err == nil {
						_, err = r.Open(out, &e)
					}
				},
			}
			var times [len(ops)][]time.Duration
			for b.Loop() {
				for i, op := range ops {
					start := time.Now()
					for range batch {
						op()
					}
					times[i] = append(times[i], time.Since(start))
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			var median [len(ops)]float64
			for i := range times {
				slices.Sort(times[i])
				median[i] = float64(times[i][len(times[i])/2]) / batch
			}
			b.ReportMetric(0, "ns/op") // of all three together: says nothing
			b.ReportMetric(median[0], "floor-ns")
			b.ReportMetric(median[1]/median[0], "seal/floor")
			b.ReportMetric(median[2]/median[0], "open/floor")
		})
	}
}
