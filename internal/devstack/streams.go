package devstack

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// createSource makes the plaintext stream in memory: it never reaches a disk.
func createSource(ctx context.Context, nc *nats.Conn, o *Options) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: o.Source, Subjects: o.Subjects, Storage: jetstream.MemoryStorage,
		Description: "plaintext, purged once it is sealed",
	}); err != nil {
		return fmt.Errorf("creating stream %s: %w", o.Source, err)
	}
	return nil
}
