package gateway

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/embednats"
	"github.com/keyweir/keyweir/internal/natstest"
)

// BenchmarkRelay relays a backlog of b.N messages of 1 KiB from a memory stream,
// server and gateway in this process, with each engine.
func BenchmarkRelay(b *testing.B) {
	for _, place := range []struct {
		name    string
		storage StorageType
		always  bool
	}{{"file", FileStorage, false}, {"memory", MemoryStorage, false}, {"file-sync-always", FileStorage, true}} {
		for _, e := range []Engine{EngineFast, EngineDurable, EngineAsync} {
			b.Run(fmt.Sprintf("%s/%v", place.name, e), func(b *testing.B) {
				srv := natstest.New(b, func(o *embednats.Options) { o.SyncAlways = place.always })
				js := srv.JetStream(b)
				if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "IN", Subjects: []string{"in.>"}, Storage: jetstream.MemoryStorage}); err != nil {
					b.Fatal(err)
				}
				payload := make([]byte, 1024)
				for i := range b.N {
					if _, err := js.PublishAsync(fmt.Sprintf("in.t%d.orders.created", i%16), payload, jetstream.WithStallWait(20*time.Second)); err != nil {
						b.Fatal(err)
					}
				}
				<-js.PublishAsyncComplete()
				nc := srv.Conn(b)
				g, err := New(Config{Keys: newBenchKeys(b), Routes: []Route{{
					Name: "r", Engine: e,
					Source: Source{Conn: nc, Stream: "IN", Subjects: []string{"in.>"}, AfterSeal: AfterSealKeep, Start: StartFirst()},
					Sealed: Sealed{Conn: srv.Conn(b), Stream: "SEALED", Subject: "sealed.>", Create: &CreateSealed{Storage: place.storage}, SyncInterval: SyncAlways},
				}}})
				if err != nil {
					b.Fatal(err)
				}
				g.Tune(Tuning{Tick: 5 * time.Millisecond}) // shows when it is done
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				b.SetBytes(int64(len(payload)))
				b.ResetTimer()
				go func() { done <- g.Run(ctx) }()
				natstest.Eventually(b, 5*time.Minute, func() error {
					if s := g.Stats()[0]; s.Position != uint64(b.N) {
						return fmt.Errorf("relayed %d of %d: %+v", s.Position, b.N, s)
					}
					return nil
				})
				b.StopTimer()
				cancel()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
