package gateway_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
)

func TestRelayEndToEnd(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	const n = 5000
	f.publish(1, n/2)
	run := f.start()
	f.publish(n/2+1, n)
	f.sealedCount(n, 20*time.Second)
	run.eventually("position", func(s gatewayStats) bool { return s.Position == n && s.Messages == n && s.Lag == 0 })
	if err := run.stop(); err != nil {
		t.Errorf("Run = %v after cancellation", err)
	}
	got := f.verify(1, n)
	inline := 0
	for _, o := range got {
		if o.inline {
			inline++
		}
		if o.header.Get("Keyweir") != "1" || o.meta.Published == 0 || o.meta.PreviousOnSubject != envelope.NotKept || o.meta.Gap != 0 {
			t.Fatalf("sealed message %d: headers %v, meta %+v", o.seq, o.header, o.meta)
		}
	}
	if inline != 7 {
		t.Errorf("%d messages carry their key record, want the first of 7 sessions", inline)
	}
	if calls, asked, _ := f.keys.counts(); calls > 7 || asked != 7 {
		t.Errorf("%d key requests for %d subjects, want one grant for each of 7 scopes", calls, asked)
	}
	info := f.info(sealed).Config
	if info.Metadata["keyweir-mode"] != "relayed" || info.Metadata["keyweir-route"] != "r" {
		t.Errorf("metadata of the sealed stream: %v", info.Metadata)
	}
}

func TestRestartGoesOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	for round := range 3 {
		f.publish(round*100+1, round*100+100)
		run := f.start()
		f.sealedCount(uint64(round*100+100), 10*time.Second)
		if err := run.stop(); err != nil {
			t.Fatalf("Run = %v", err)
		}
	}
	f.verify(1, 300)
}
