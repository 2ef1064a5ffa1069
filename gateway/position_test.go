package gateway_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/natstest"
)

func (f *fixture) purgeSealed() {
	f.t.Helper()
	s, err := f.js.Stream(f.t.Context(), sealed)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := s.Purge(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) deleteRecord() {
	f.t.Helper()
	kv, err := f.js.KeyValue(f.t.Context(), gateway.PositionsBucket)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := kv.Purge(f.t.Context(), sealed+".0"); err != nil {
		f.t.Fatal(err)
	}
}

// MaxAge removed the last sealed message. The record knows the position.
func TestSealedStreamEmptied(t *testing.T) {
	for _, withRecord := range []bool{true, false} {
		t.Run(fmt.Sprintf("record %v", withRecord), func(t *testing.T) {
			f := newFixture(t, jetstream.StreamConfig{})
			f.route.Sealed.Create.MaxAge = time.Second
			f.sealSome(20)
			natstest.Eventually(t, 10*time.Second, func() error {
				if n := f.info(sealed).State.Msgs; n != 0 {
					return fmt.Errorf("%d sealed messages not yet expired", n)
				}
				return nil
			})
			f.publish(21, 30)
			if withRecord {
				f.start()
				f.sealedCount(30, 10*time.Second)
				got := f.open()
				for i, o := range got {
					if o.meta.Sequence != uint64(21+i) || o.meta.Previous != uint64(20+i) || o.meta.Gap != 0 {
						t.Errorf("message %d: %+v", o.seq, o.meta)
					}
				}
				return
			}
			f.deleteRecord()
			err := f.start().stopped(gateway.ErrPosition)
			if !strings.Contains(err.Error(), "no position record") {
				t.Errorf("Run = %v", err)
			}
			from := uint64(21)
			f.route.ResumeFrom = &from
			f.start()
			f.sealedCount(30, 10*time.Second)
		})
	}
}

// A record that is older than the emptied sealed stream does not count.
func TestStaleRecordDoesNotCount(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(10)
	kv, err := f.js.KeyValue(t.Context(), gateway.PositionsBucket)
	if err != nil {
		t.Fatal(err)
	}
	old, err := kv.Get(t.Context(), sealed+".0")
	if err != nil {
		t.Fatal(err)
	}
	f.publish(11, 20)
	run := f.start()
	f.sealedCount(20, 10*time.Second)
	run.stop()
	if _, err := kv.Put(t.Context(), sealed+".0", old.Value()); err != nil { // genuine, and replayed
		t.Fatal(err)
	}
	run = f.start() // harmless while the sealed stream speaks
	f.publish(21, 22)
	f.sealedCount(22, 10*time.Second)
	run.stop()
	f.verify(1, 22)
	if _, err := kv.Put(t.Context(), sealed+".0", old.Value()); err != nil {
		t.Fatal(err)
	}
	f.purgeSealed()
	f.start().stopped(gateway.ErrPosition)
}

func TestForgedRecord(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(10)
	kv, err := f.js.KeyValue(t.Context(), gateway.PositionsBucket)
	if err != nil {
		t.Fatal(err)
	}
	e, err := kv.Get(t.Context(), sealed+".0")
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	fromJSON(t, e.Value(), &fields)
	for name := range fields {
		if name == "mac" {
			continue
		}
		forged := make(map[string]any)
		for k, v := range fields {
			forged[k] = v
		}
		switch v := forged[name].(type) {
		case float64:
			forged[name] = v + 1
		case string:
			forged[name] = v + "0"
		case bool:
			forged[name] = !v
		}
		if _, err := kv.Put(t.Context(), sealed+".0", mustJSON(t, forged)); err != nil {
			t.Fatal(err)
		}
		if name == "last_seq" {
			// Nothing but the record could tell the position, and it is not believed.
			f.purgeSealed()
		}
		if n := f.info(sealed).State.Msgs; n == 0 {
			f.start().stopped(gateway.ErrPosition)
			continue
		}
		run := f.start()
		run.eventually("running by the message at the last sequence", func(s gatewayStats) bool { return s.State == gateway.StateRunning && s.Position == 10 })
		run.stop()
	}
}

func TestSealedStreamPurged(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(20)
	f.purgeSealed()
	f.publish(21, 25)
	f.start()
	f.sealedCount(25, 10*time.Second)
	if got := f.open(); len(got) != 5 || got[0].meta.Previous != 20 {
		t.Errorf("%d messages, the first after %d", len(got), got[0].meta.Previous)
	}
}

func TestSealedStreamRecreated(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(20)
	if err := f.js.DeleteStream(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	f.start().stopped(gateway.ErrPosition)
	from := uint64(5)
	f.route.ResumeFrom = &from
	run := f.start()
	f.sealedCount(16, 10*time.Second)
	run.stop()
	f.route.ResumeFrom = nil
	f.publish(21, 22)
	f.start()
	f.sealedCount(18, 10*time.Second)
	f.verify(5, 22)
}

// The operator's decision is kept even if nothing was sealed since.
func TestResumeIsKept(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(20)
	f.forge(nats.Header{})
	f.start().stopped(gateway.ErrPosition)
	from := uint64(21)
	f.route.ResumeFrom = &from
	run := f.start()
	run.eventually("running", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	run.stop()
	f.route.ResumeFrom = nil
	run = f.start()
	run.eventually("running without the order", func(s gatewayStats) bool { return s.State == gateway.StateRunning })
	f.publish(21, 22)
	f.sealedCount(23, 10*time.Second)
	natstest.Eventually(t, 5*time.Second, func() error {
		if r := f.record(); r.Resumed || r.LastSeq != 23 {
			return fmt.Errorf("record %+v", r)
		}
		return nil
	})
	run.stop()
	f.forge(nats.Header{}) // it does not cover the next stranger
	f.start().stopped(gateway.ErrPosition)

	beyond := uint64(50)
	f.route.ResumeFrom = &beyond
	f.start().stopped(gateway.ErrPosition)
}

// forge publishes to the sealed stream as another client.
func (f *fixture) forge(h nats.Header) {
	f.t.Helper()
	if _, err := f.js.PublishMsg(f.t.Context(), &nats.Msg{Subject: "sealed.in.a.x", Header: h, Data: []byte("forged")}); err != nil {
		f.t.Fatal(err)
	}
}

func TestForgedPosition(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(20)
	got := f.open()
	genuine := got[19].header.Get(gateway.HeaderSource)
	older := got[9].header.Get(gateway.HeaderSource)
	field := strings.Split(genuine, ":")
	with := func(i int, v string) string {
		c := append([]string(nil), field...)
		c[i] = v
		return strings.Join(c, ":")
	}
	last := uint64(20)
	for name, value := range map[string]string{
		"none":              "",
		"replayed":          genuine,
		"replayed older":    older,
		"sequence":          with(1, "10"),
		"sequence 0":        with(1, "0"),
		"leading zero":      with(1, "020"),
		"sign":              with(1, "+20"),
		"chain":             with(0, strings.Repeat("0", 32)),
		"chain upper case":  with(0, strings.ToUpper(field[0])),
		"previous":          with(2, "18"),
		"previous itself":   with(2, "20"),
		"created":           with(3, "1"),
		"timestamp":         with(4, "1"),
		"mac":               with(5, strings.Repeat("A", 43)),
		"mac empty":         with(5, ""),
		"mac padded":        genuine + "=",
		"trailing":          genuine + ":",
		"cut":               genuine[:len(genuine)-1],
		"huge":              with(1, strings.Repeat("9", 4000)),
		"not authenticated": strings.Join(field[:5], ":"),
	} {
		t.Run(name, func(t *testing.T) {
			h := nats.Header{"Keyweir": {"1"}}
			if value != "" {
				h[gateway.HeaderSource] = []string{value}
			}
			f.forge(h)
			last++
			err := f.start().stopped(gateway.ErrPosition)
			if !strings.Contains(err.Error(), "written by somebody else") {
				t.Errorf("Run = %v", err)
			}
			if got := f.info(sealed).State.LastSeq; got != last {
				t.Errorf("the sealed stream ends at %d, want %d", got, last)
			}
		})
	}
}

// A stranger writes while the route runs: the fence refuses the next message, and
// the route stops rather than believe what it finds.
func TestStrangerWhileRunning(t *testing.T) { eachEngine(t, testStrangerWhileRunning) }

func testStrangerWhileRunning(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	f.publish(1, 10)
	run := f.start()
	f.sealedCount(10, 10*time.Second)
	f.forge(nats.Header{gateway.HeaderSource: {"x"}})
	f.publish(11, 20)
	err := run.stopped(gateway.ErrPosition)
	if text := err.Error(); !strings.Contains(text, "message 11, the last of sealed stream SEALED, was written by somebody else") &&
		!(e == gateway.EngineAsync && strings.Contains(text, "message 11 of sealed stream SEALED is not ours")) { // with others on top, which were in flight
		t.Errorf("Run = %v", err)
	}
	if n := f.info(source).State.Msgs; n != 20 {
		t.Errorf("%d source messages, want 20", n)
	}
	// So does everybody who comes later, with the record and without.
	f.start().stopped(gateway.ErrPosition)
	f.deleteRecord()
	f.start().stopped(gateway.ErrPosition)
}

// The sealed stream lost what it had acknowledged, as after a power failure, and
// the position record did not: what the source still has is sealed again.
func TestSealedStreamRolledBack(t *testing.T) {
	for _, released := range []bool{false, true} {
		t.Run(fmt.Sprintf("released %v", released), func(t *testing.T) {
			f := newRollback(t, sealed)
			f.sealSome(10)
			f.save()
			if released {
				f.route.Source.AfterSeal = gateway.AfterSealPurge
			}
			f.publish(11, 20)
			run := f.start()
			f.sealedCount(20, 10*time.Second)
			if released {
				f.sourceEmpty()
			}
			run.stop()
			f.back()
			f.sealedCount(10, time.Second)
			f.publish(21, 30)
			if released {
				err := f.start().stopped(gateway.ErrSourceGap)
				if !strings.Contains(err.Error(), "10 messages") {
					t.Errorf("Run = %v, want the 10 messages that were released", err)
				}
				return
			}
			f.start()
			f.sealedCount(30, 10*time.Second)
			f.verify(1, 30)
		})
	}
}

// Restored through the API, it has a new creation time, to which no position is bound.
func TestSealedStreamSnapshotRestored(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(10)
	f.restore(sealed, f.snapshot(sealed))
	f.start().stopped(gateway.ErrPosition)
}

func TestRouteRenamed(t *testing.T) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.sealSome(5)
	f.route.Name = "s"
	f.start().stopped(gateway.ErrDestination) // the stream belongs to route r
}
