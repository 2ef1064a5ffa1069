package bench

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// SealConfig says what [Seal] measures.
type SealConfig struct {
	// Sizes are payload sizes in bytes, 0 to 64 MiB. Empty: 64 B to 64 KiB.
	Sizes []int
	// Time is spent on each size, besides set-up. Zero: 300 ms. Negative is an
	// error. At least 31 rounds are run, however long they take.
	Time time.Duration
	// RandomNonce seals with random nonces, as routes for snapshotted hosts do.
	// In FIPS mode nonces are always random.
	RandomNonce bool
	// PadTo pads meta and payload to a multiple of this many bytes. Zero: no
	// padding.
	PadTo int
	// Progress, if not nil, is called after each size with how many are done.
	Progress func(done, total int)
}

const maxBenchSize = 64 << 20

func (c SealConfig) sizes() []int {
	if len(c.Sizes) == 0 {
		return []int{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10}
	}
	return c.Sizes
}

func (c SealConfig) time() time.Duration {
	if c.Time == 0 {
		return 300 * time.Millisecond
	}
	return c.Time
}

// SealResult has the figures of one payload size.
type SealResult struct {
	// Size is the payload in bytes.
	Size int `json:"size"`
	// FloorNs is one bare AES-256-GCM seal with a ready cipher, of the same bytes
	// (payload and sealed meta), into a ready buffer.
	FloorNs float64 `json:"floor_ns"`
	// SealNs and OpenNs are one call of the product; opening includes parsing.
	SealNs float64 `json:"seal_ns"`
	OpenNs float64 `json:"open_ns"`
	// SealRatio and OpenRatio are those divided by FloorNs.
	SealRatio float64 `json:"seal_ratio"`
	OpenRatio float64 `json:"open_ratio"`
	// SealAllocs and OpenAllocs are heap allocations of one call.
	SealAllocs uint64 `json:"seal_allocs"`
	OpenAllocs uint64 `json:"open_allocs"`
	// OverheadBytes is what a sealed message has more than its payload, with a
	// subject of 24 bytes and no headers, key record by reference.
	OverheadBytes int `json:"overhead_bytes"`
}

// Seal measures sealing and opening per payload size. Floor, seal and open take
// turns, and medians are reported, which a busy machine disturbs least.
func Seal(ctx context.Context, cfg SealConfig) (SealReport, error) {
	if cfg.Time < 0 {
		return nil, fmt.Errorf("measuring seal: negative time")
	}
	var report SealReport
	for i, n := range cfg.sizes() {
		if n < 0 || n > maxBenchSize {
			return nil, fmt.Errorf("measuring seal: size %d is not from 0 to %d", n, maxBenchSize)
		}
		r, err := sealOne(ctx, cfg, n)
		if err != nil {
			return nil, fmt.Errorf("measuring seal of %d bytes: %w", n, err)
		}
		report = append(report, r)
		if cfg.Progress != nil {
			cfg.Progress(i+1, len(cfg.sizes()))
		}
	}
	return report, nil
}

func sealOne(ctx context.Context, cfg SealConfig, n int) (SealResult, error) {
	payload := make([]byte, n)
	rand.Read(payload)
	meta := envelope.Meta{
		Sequence: 1 << 33, Previous: 1<<33 - 1, PreviousOnSubject: envelope.NotKept, Published: time.Now().UnixNano(),
		SealedSubject: "sealed.orders.eu.created", OriginSubject: "orders.eu.created",
	}
	rand.Read(meta.Chain[:])
	session, reader, err := newPair(envelope.SessionConfig{
		Record: envelope.RecordReference, RandomNonce: cfg.RandomNonce, PadTo: cfg.PadTo,
	})
	if err != nil {
		return SealResult{}, err
	}
	defer session.Close()
	defer reader.Close()
	sealed, err := session.Seal(nil, &meta, payload)
	if err != nil {
		return SealResult{}, err
	}
	floor, err := newFloor(len(sealed)-envelope.HeaderSize-envelope.NonceSize-envelope.TagSize, cfg.RandomNonce || fips140.Enabled())
	if err != nil {
		return SealResult{}, err
	}
	dst, out := make([]byte, 0, len(sealed)), make([]byte, 0, len(sealed))
	seal := func() error {
		_, err := session.Seal(dst, &meta, payload)
		return err
	}
	open := func() error {
		e, err := envelope.Parse(sealed)
		if err != nil {
			return err
		}
		_, err = reader.Open(out, &e)
		return err
	}
	ns, err := interleave(ctx, cfg.time(), []func() error{floor, seal, open})
	if err != nil {
		return SealResult{}, err
	}
	r := SealResult{
		Size: n, FloorNs: ns[0], SealNs: ns[1], OpenNs: ns[2],
		SealRatio: ns[1] / ns[0], OpenRatio: ns[2] / ns[0], OverheadBytes: len(sealed) - n,
	}
	if r.SealAllocs, err = allocs(seal); err != nil {
		return SealResult{}, err
	}
	if r.OpenAllocs, err = allocs(open); err != nil {
		return SealResult{}, err
	}
	return r, nil
}

// newPair returns a session and a reader of one fresh data key.
func newPair(cfg envelope.SessionConfig) (*envelope.Session, *envelope.KeyReader, error) {
	key := envelope.GenerateDataKey()
	defer key.Clear()
	id := envelope.NewRecordID()
	raw := envelope.ExposeDataKey(key)
	part, err := envelope.PartCommitment(raw, id, 1)
	clear(raw)
	if err != nil {
		return nil, nil, err
	}
	record := &envelope.Record{
		Core: envelope.Core{
			Scheme: envelope.SchemeSingle, K: 1, N: 1, RecordID: id, Created: time.Now().Unix(), Commitment: key.Commit(),
			Context:     []envelope.Pair{{Name: envelope.ContextScope, Value: "bench"}},
			Authorities: []envelope.PartHolder{{Authority: "bench", Commitment: part}},
		},
		Wraps: []envelope.Wrap{{ManagedKey: "bench", Bytes: make([]byte, 64)}},
	}
	grant, err := envelope.NewGrant(key, record)
	if err != nil {
		return nil, nil, err
	}
	session, err := grant.Session(cfg)
	if err != nil {
		return nil, nil, err
	}
	reader, err := envelope.NewKeyReader(record, key, 0)
	if err != nil {
		return nil, nil, err
	}
	return session, reader, nil
}

// newFloor returns one bare AES-256-GCM seal of n bytes.
func newFloor(n int, random bool) (func() error, error) {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plain, dst := make([]byte, n), make([]byte, 0, n+envelope.NonceSize+envelope.TagSize)
	rand.Read(plain)
	if random {
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		return func() error { aead.Seal(dst, nil, plain, nil); return nil }, nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, envelope.NonceSize)
	var counter uint64
	return func() error {
		binary.BigEndian.PutUint64(nonce[4:], counter)
		counter++
		aead.Seal(dst, nonce, plain, nil)
		return nil
	}, nil
}
