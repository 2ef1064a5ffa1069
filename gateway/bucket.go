package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Buckets of the relay, on the sealed stream's server.
const (
	ClaimsBucket    = "KEYWEIR_claims"    // who relays what; entries expire
	PositionsBucket = "KEYWEIR_positions" // how far each route is, see record
)

// bucket is a JetStream key-value bucket read through its leader. The nats.go
// one reads through any replica, which may answer with an older revision.
type bucket struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	name string
	ttl  time.Duration // of the bucket as it is; 0: none
}

var (
	errRevision  = errors.New("the entry has another revision")
	errNoTTL     = errors.New("the bucket has no TTL, so a claim would never expire")
	errBadBucket = errors.New("the stream is not a key-value bucket")
)

// openBucket opens the bucket, or creates it with the replicas and storage of
// the sealed stream.
func openBucket(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, name string, ttl time.Duration, like *jetstream.StreamConfig) (*bucket, error) {
	b := &bucket{nc: nc, js: js, name: name}
	info, err := streamInfo(ctx, js, "KV_"+name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if info, err = b.create(ctx, ttl, like); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			info, err = streamInfo(ctx, js, "KV_"+name) // another instance was faster
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening bucket %s: %w", name, err)
	}
	if info.Config.MaxMsgsPerSubject != 1 {
		return nil, fmt.Errorf("opening bucket %s: %w", name, errBadBucket)
	}
	b.ttl = info.Config.MaxAge
	return b, nil
}

func (b *bucket) create(ctx context.Context, ttl time.Duration, like *jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := b.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "KV_" + b.name, Subjects: []string{"$KV." + b.name + ".>"},
		Description: "Keyweir gateway; do not edit",
		MaxAge:      ttl, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true, AllowDirect: true,
		Replicas: like.Replicas, Storage: like.Storage,
	})
	if err != nil {
		return nil, err
	}
	return s.CachedInfo(), nil
}

// get returns an entry and its revision. A missing entry is (nil, 0), a deleted
// one (nil, revision): what put wants to write the key anew.
func (b *bucket) get(ctx context.Context, key string) ([]byte, uint64, error) {
	m, err := getFromLeader(ctx, b.nc, "KV_"+b.name, getRequest{LastFor: b.subject(key)})
	switch {
	case errors.Is(err, errNoMessage):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	case m.header.Get("KV-Operation") != "":
		return nil, m.seq, nil
	}
	return m.data, m.seq, nil
}

// put writes an entry if its revision still is the one given, 0 for none;
// errRevision otherwise.
func (b *bucket) put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return b.publish(ctx, &nats.Msg{Subject: b.subject(key), Data: value}, revision)
}

// del deletes an entry if its revision still is the one given.
func (b *bucket) del(ctx context.Context, key string, revision uint64) error {
	_, err := b.publish(ctx, &nats.Msg{Subject: b.subject(key), Header: nats.Header{"KV-Operation": {"DEL"}}}, revision)
	return err
}

// write writes an entry that only this instance writes, whatever its revision.
func (b *bucket) write(ctx context.Context, key string, value []byte) error {
	_, err := b.send(ctx, &nats.Msg{Subject: b.subject(key), Data: value})
	return err
}

// remove deletes such an entry.
func (b *bucket) remove(ctx context.Context, key string) error {
	_, err := b.send(ctx, &nats.Msg{Subject: b.subject(key), Header: nats.Header{"KV-Operation": {"DEL"}}})
	return err
}

func (b *bucket) publish(ctx context.Context, m *nats.Msg, revision uint64) (uint64, error) {
	return b.send(ctx, m, jetstream.WithExpectLastSequencePerSubject(revision))
}

func (b *bucket) send(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ack, err := b.js.PublishMsg(ctx, m, opts...)
	if err != nil {
		if wrongSequence(err) {
			err = errRevision
		}
		return 0, fmt.Errorf("writing to bucket %s: %w", b.name, err)
	}
	return ack.Sequence, nil
}

func (b *bucket) subject(key string) string { return "$KV." + b.name + "." + key }

// wrongSequence reports whether err says that a condition on the last sequence
// did not hold: 10071, or 10164 from a replicated stream.
func wrongSequence(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
