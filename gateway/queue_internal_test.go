package gateway

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
)

// What a reader calls looked at never arrives afterwards. A server stores a message
// before it tells the consumers about it, so that a consumer with nothing pending
// may have messages before it: a gateway that believed it lost them.
func TestLooked(t *testing.T) {
	for _, storage := range []jetstream.StorageType{jetstream.MemoryStorage, jetstream.FileStorage} {
		t.Run(storage.String(), func(t *testing.T) { testLooked(t, storage) })
	}
}

func testLooked(t *testing.T, storage jetstream.StorageType) {
	srv := natstest.New(t)
	nc, js := srv.Conn(t), srv.JetStream(t)
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"in.>", "other"}, Storage: storage})
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{
		route:    Route{Name: "r", Source: Source{Conn: nc, Stream: "S", Subjects: []string{"in.>"}}},
		tune:     tuning{heartbeat: 5 * time.Millisecond},
		sourceJS: js, epoch: 1,
	}
	r, err := w.openReader(t.Context(), s.CachedInfo(), cursor{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()

	const publishers, each = 2, 5000
	var all sync.WaitGroup
	for range publishers {
		pc := srv.Conn(t)
		all.Go(func() {
			for i := range each {
				if err := pc.Publish("in.a", nil); err != nil {
					t.Error(err)
					return
				}
				if i%50 == 49 { // in bursts, so that the reader is idle in between
					<-time.After(time.Duration(rand.IntN(15)) * time.Millisecond)
					if _, err := pc.Request("other", nil, 10*time.Second); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	published := make(chan struct{})
	go func() { all.Wait(); close(published) }()

	var items []item
	got, moves := 0, 0
	look := func() {
		for r.more() {
			looked := r.looked
			// Not by next, which would miss a heartbeat of 5 ms sooner or later.
			if items = r.take(items[:0], <-r.msgs); r.failed != nil {
				t.Fatal(r.failed)
			}
			for _, it := range items {
				if it.seq <= looked {
					t.Fatalf("message %d arrived after everything up to %d was called read", it.seq, looked)
				}
				got++
			}
			if r.looked > looked {
				moves++
			}
		}
	}
	natstest.Eventually(t, 20*time.Second, func() error {
		look()
		// What does not match counts too, once the server has looked at it.
		if last := lastSequence(t, s); got != publishers*each || r.looked != last {
			return fmt.Errorf("%d of %d messages read, up to %d of %d", got, publishers*each, r.looked, last)
		}
		return nil
	})
	<-published
	t.Logf("heard %d times how far the server had looked", moves)
}

func lastSequence(t *testing.T, s jetstream.Stream) uint64 {
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.LastSeq
}
