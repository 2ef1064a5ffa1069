package gateway_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/envelope"
)

// reservedNames are all headers that nats-server 2.15.2 gives a meaning, and ours.
var reservedNames = []string{
	"Nats-Batch-Commit", "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Expected-Last-Msg-Id", "Nats-Expected-Last-Sequence",
	"Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Subject-Sequence-Subject", "Nats-Expected-Stream",
	"Nats-Marker-Reason", "Nats-Counter-Sources", "Nats-Incr", "Nats-TTL", "Nats-Msg-Id", "Nats-Rollup", "Nats-Msg-Size",
	"Nats-Required-Api-Level", "Nats-Schedule", "Nats-Schedule-Next", "Nats-Schedule-Rollup", "Nats-Schedule-Source",
	"Nats-Schedule-TTL", "Nats-Schedule-Target", "Nats-Schedule-Time-Zone", "Nats-Scheduler", "Nats-Stream-Source",
	"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Last-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending",
	"Nats-Trace-Dest", "Nats-Trace-Hop", "Nats-Trace-Only", "Nats-Trace-Origin-Account", "Nats-Request-Info",
	"Nats-Server-Xkey", "Nats-Pin-Id", "Nats-Reset-Pending", "Nats-Unknown-To-Us",
	"Keyweir", "Keyweir-Source", "Keyweir-Anything",
}

func TestReservedHeaders(t *testing.T) {
	t.Parallel()
	eachEngine(t, testReservedHeaders)
}

func testReservedHeaders(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	var headers []string
	for _, name := range reservedNames {
		headers = append(headers, name, strings.ToLower(name), strings.ToUpper(name))
	}
	// The server refuses some of them from a publisher to the source; then they
	// cannot come in at all. All others are put in by a publisher.
	in := 0
	for _, name := range headers {
		value := map[string]string{"Nats-TTL": "1s", "Nats-Rollup": "all", "Nats-Expected-Stream": source, "Nats-Expected-Last-Sequence": fmt.Sprint(in)}[name]
		if value == "" {
			value = "1"
		}
		if name == "Nats-Trace-Only" {
			continue // the server stores nothing then
		}
		m := &nats.Msg{Subject: "in.a.x", Header: nats.Header{name: {value}, "App": {"kept"}}, Data: []byte(name)}
		if _, err := f.js.PublishMsg(t.Context(), m, jetstream.WithRetryAttempts(0)); err != nil {
			t.Logf("the server itself refuses %s: %v", name, err)
			continue
		}
		in++
	}
	if in < 100 {
		t.Fatalf("only %d of %d headers came in", in, len(headers))
	}
	f.start()
	f.sealedCount(uint64(in), 10*time.Second)
	got := f.open()
	checkChain(t, got)
	if len(got) != in {
		t.Fatalf("%d sealed messages, want %d", len(got), in)
	}
	for _, o := range got {
		want := []envelope.Header{{Name: "App", Value: "kept"}}
		if o.payload == "Nats-Msg-Id" { // exactly so spelled
			want = append(want, envelope.Header{Name: "Nats-Msg-Id", Value: "1"})
		}
		if d := cmp.Diff(want, o.meta.Headers); d != "" {
			t.Errorf("sealed headers of a message with %s (-want +got):\n%s", o.payload, d)
		}
		for name := range o.header {
			switch name {
			case "Keyweir", "Keyweir-Source", "Nats-Expected-Stream", "Nats-Expected-Last-Sequence":
			case "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit": // the durable engine's
				if e != gateway.EngineDurable {
					t.Errorf("a message with %s is sealed with the clear header %s", o.payload, name)
				}
			default:
				t.Errorf("a message with %s is sealed with the clear header %s", o.payload, name)
			}
		}
		if len(o.header["Keyweir"]) != 1 || len(o.header["Keyweir-Source"]) != 1 || len(o.header["Nats-Expected-Last-Sequence"]) > 1 {
			t.Errorf("a message with %s has doubled headers: %v", o.payload, o.header)
		}
	}
}

func TestHeadersSealedAndPassed(t *testing.T) {
	t.Parallel()
	eachEngine(t, testHeadersSealedAndPassed)
}

func testHeadersSealedAndPassed(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	f.route.PassHeaders = []string{"Pass", "Absent"}
	in := nats.Header{"Pass": {"1", "2"}, "pass": {"other"}, "Zed": {"z"}, "Alpha": {"b", "a"}, "Empty": {""}}
	for _, h := range []nats.Header{in, {"Zed": {"second"}}, nil} {
		if _, err := f.js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a.x", Header: h, Data: []byte("p")}); err != nil {
			t.Fatal(err)
		}
	}
	f.start()
	f.sealedCount(3, 10*time.Second)
	got := f.open()
	for _, o := range got { // the engines' own differ
		maps.DeleteFunc(o.header, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-") })
	}
	want := []envelope.Header{{Name: "Alpha", Value: "b"}, {Name: "Alpha", Value: "a"}, {Name: "Empty"}, {Name: "Pass", Value: "1"}, {Name: "Pass", Value: "2"}, {Name: "Zed", Value: "z"}, {Name: "pass", Value: "other"}}
	if d := cmp.Diff(want, got[0].meta.Headers); d != "" {
		t.Errorf("sealed headers (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"1", "2"}, got[0].header["Pass"]); d != "" {
		t.Errorf("clear header Pass (-want +got):\n%s", d)
	}
	if _, ok := got[0].header["Zed"]; ok || len(got[0].header) != 3 {
		t.Errorf("clear headers %v", got[0].header)
	}
	for _, o := range got[1:] {
		if len(o.header) != 2 {
			t.Errorf("message %d inherited clear headers: %v", o.seq, o.header)
		}
	}
	if d := cmp.Diff([]envelope.Header{{Name: "Zed", Value: "second"}}, got[1].meta.Headers); d != "" || got[2].meta.Headers != nil {
		t.Errorf("sealed headers of the second and third message: %v, %v", got[1].meta.Headers, got[2].meta.Headers)
	}
}

func TestTooManyHeaders(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{})
	publish := func(n int) {
		h := nats.Header{}
		for i := range n {
			h.Set(fmt.Sprintf("H%d", i), "v")
		}
		if _, err := f.js.PublishMsg(t.Context(), &nats.Msg{Subject: "in.a.x", Header: h}); err != nil {
			t.Fatal(err)
		}
	}
	publish(envelope.MaxHeaders)
	publish(envelope.MaxHeaders + 1)
	publish(1)
	err := f.start().stopped(gateway.ErrHeaders)
	if !strings.Contains(err.Error(), "message 2 on in.a.x") {
		t.Errorf("Run = %v", err)
	}
	f.sealedCount(1, time.Second) // what came before is sealed, what comes after is not
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	const maxPayload = 64 << 10
	f := newFixture(t, jetstream.StreamConfig{}, maxPayloadOption(maxPayload))
	f.route.Source.AfterSeal = gateway.AfterSealPurge
	publish := func(n int) {
		if _, err := f.js.Publish(t.Context(), "in.a.x", make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	// The largest that goes: found by size, it must really be stored.
	fits := maxPayload - 1000
	publish(10)
	publish(fits)
	publish(maxPayload)
	publish(20)
	run := f.start()
	err := run.stopped(gateway.ErrTooLarge)
	if !strings.Contains(err.Error(), "message 3 on in.a.x") {
		t.Errorf("Run = %v", err)
	}
	f.sealedCount(2, time.Second)
	if got := f.open(); len(got[1].payload) != fits {
		t.Errorf("second message has %d bytes", len(got[1].payload))
	}
	if n := f.info(source).State.Msgs; n != 2 {
		t.Errorf("%d source messages left, want the two not sealed", n)
	}
	// The stream's own limit counts as well.
	g := newFixture(t, jetstream.StreamConfig{})
	g.create(jetstream.StreamConfig{Name: sealed, Subjects: []string{"sealed.in.>"}, MaxMsgSize: 2000, Metadata: map[string]string{"keyweir-mode": "relayed", "keyweir-route": "r"}})
	if _, err := g.js.Publish(t.Context(), "in.a.x", make([]byte, 1900)); err != nil {
		t.Fatal(err)
	}
	g.start().stopped(gateway.ErrTooLarge)
}
