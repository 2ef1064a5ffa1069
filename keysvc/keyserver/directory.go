package keyserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// A directory entry says that a key record belongs to this service. The broker
// keeps it but cannot make one:
//
//	4   magic "KWD" and version 1
//	32  key ID
//	8   created, unix milliseconds
//	1   length, public key of the service (N...)
//	2   length, key record
//	64  signature for the purpose "directory" over everything before
//
// It stands in the bucket KEYWEIR_<service>_keys under the key ID in hexadecimal.
const entryMagic = "KWD\x01"

// maxEntry bounds what is parsed.
const maxEntry = 4 + envelope.KeyIDSize + 8 + 1 + 255 + 2 + envelope.MaxRecordSize + 64

// directoryTimeout is for one question to JetStream.
const directoryTimeout = 2 * time.Second

func encodeEntry(id keysvc.Identity, key envelope.KeyID, record []byte, created time.Time) ([]byte, error) {
	public := id.Public()
	b := append([]byte(entryMagic), key[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(created.UnixMilli()))
	b = append(append(b, byte(len(public))), public...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(record)))
	b = append(b, record...)
	sig, err := keysvc.SignPurpose(id, keysvc.PurposeDirectory, b)
	if err != nil {
		return nil, err
	}
	return append(b, sig...), nil
}

var errEntry = fmt.Errorf("%w: directory entry", keysvc.ErrInvalid)

// decodeEntry returns the record of an entry for key that one of the signers signed.
func decodeEntry(b []byte, key envelope.KeyID, signers []string) ([]byte, error) {
	if len(b) > maxEntry || len(b) < len(entryMagic)+len(key)+8+1 || string(b[:4]) != entryMagic {
		return nil, fmt.Errorf("%w: malformed", errEntry)
	}
	if !bytes.Equal(b[4:4+len(key)], key[:]) {
		return nil, fmt.Errorf("%w: of another key", errEntry)
	}
	r := b[4+len(key)+8:]
	n := int(r[0])
	if len(r) < 1+n+2 {
		return nil, fmt.Errorf("%w: malformed", errEntry)
	}
	signer := string(r[1 : 1+n])
	r = r[1+n:]
	n = int(binary.BigEndian.Uint16(r))
	if len(r) != 2+n+64 {
		return nil, fmt.Errorf("%w: malformed", errEntry)
	}
	if !slices.Contains(signers, signer) {
		return nil, fmt.Errorf("%w: not signed by this service", errEntry)
	}
	if keysvc.VerifyPurpose(signer, keysvc.PurposeDirectory, b[:len(b)-64], b[len(b)-64:]) != nil {
		return nil, fmt.Errorf("%w: bad signature", errEntry)
	}
	record := bytes.Clone(r[2 : 2+n])
	if _, err := parseRecord(key, record); err != nil {
		return nil, err
	}
	return record, nil
}

// natsDirectory is the directory in JetStream.
type natsDirectory struct {
	kv      jetstream.KeyValue
	id      keysvc.Identity
	signers []string
	log     *slog.Logger
}

var _ directory = (*natsDirectory)(nil)

// DirectoryBucket is the name of the bucket of a service.
func DirectoryBucket(service string) string { return "KEYWEIR_" + service + "_keys" }

// openDirectory opens the bucket and creates it if it is missing.
func openDirectory(ctx context.Context, cfg *Config) (*natsDirectory, error) {
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("opening key directory: %w", err)
	}
	name := DirectoryBucket(cfg.Service)
	kv, err := js.KeyValue(ctx, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		storage := jetstream.FileStorage
		if cfg.Directory.Memory {
			storage = jetstream.MemoryStorage
		}
		kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: name, Description: "Keyweir key directory: signed key records by key ID",
			History: 1, MaxValueSize: maxEntry,
			Replicas: cfg.Directory.Replicas, TTL: cfg.Directory.TTL, Storage: storage,
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // another instance
			kv, err = js.KeyValue(ctx, name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening key directory %s: %w", name, err)
	}
	return &natsDirectory{
		kv: kv, id: cfg.Identity, log: cfg.Logger,
		signers: append([]string{cfg.Identity.Public()}, cfg.Directory.Signers...),
	}, nil
}

func (d *natsDirectory) Publish(ctx context.Context, id envelope.KeyID, record []byte) error {
	entry, err := encodeEntry(d.id, id, record, time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	_, err = d.kv.Create(ctx, id.String(), entry)
	if errors.Is(err, jetstream.ErrKeyExists) {
		// An earlier try that was not answered, or somebody else's garbage.
		there, gerr := d.kv.Get(ctx, id.String())
		if gerr != nil {
			return fmt.Errorf("publishing directory entry: %w", gerr)
		}
		if _, derr := decodeEntry(there.Value(), id, d.signers); derr == nil {
			return nil
		}
		_, err = d.kv.Update(ctx, id.String(), entry, there.Revision())
	}
	if err != nil {
		return fmt.Errorf("publishing directory entry: %w", err)
	}
	return nil
}

func (d *natsDirectory) Lookup(ctx context.Context, id envelope.KeyID) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	entry, err := d.kv.Get(ctx, id.String())
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrKeyDeleted) {
		return nil, fmt.Errorf("%w: %v", keysvc.ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: key directory: %v", keysvc.ErrUnavailable, err)
	}
	record, err := decodeEntry(entry.Value(), id, d.signers)
	if err != nil {
		d.log.Error("key directory holds an entry that is not ours", "key_id", id.String(), "err", err)
		return nil, err
	}
	return record, nil
}
