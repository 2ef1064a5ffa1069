package gateway_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/natstest"
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
	"Nats-Server-Xkey", "Nats-Pin-Id", "Nats-Reset-Pending", "Nats-Unknown-To-Us", "Nats-Stream-Identity", "Nats-Pending-Messages",
	"Nats-Pending-Bytes", "Nats-Last-Consumer", "Nats-Last-Stream", "Nats-Consumer-Stalled", "Nats-Response-Type",
	"Nats-UpTo-Sequence", "Nats-No-Masking",
	"Keyweir", "Keyweir-Source", "Keyweir-Anything",
}

// publishReserved publishes one message with each reserved header in three letter
// cases, and returns what came in. The server refuses some of them from a
// publisher to the source; those cannot come in at all.
func (f *fixture) publishReserved() (in []*nats.Msg) {
	f.t.Helper()
	for _, canonical := range reservedNames {
		for _, name := range []string{canonical, strings.ToLower(canonical), strings.ToUpper(canonical)} {
			value := map[string]string{"Nats-TTL": "1h", "Nats-Rollup": "sub", "Nats-Expected-Stream": source, "Nats-Expected-Last-Sequence": fmt.Sprint(len(in))}[name]
			if value == "" {
				value = "1"
			}
			if name == "Nats-Trace-Only" {
				continue // the server stores nothing then
			}
			m := &nats.Msg{Subject: "in.a.x", Header: nats.Header{name: {value}, "App": {"kept"}}, Data: []byte(name)}
			if _, err := f.js.PublishMsg(f.t.Context(), m, jetstream.WithRetryAttempts(0)); err != nil {
				f.t.Logf("the server itself refuses %s: %v", name, err)
				continue
			}
			m.Header = nats.Header{name: {value}, "App": {"kept"}} // PublishMsg may have added to it
			in = append(in, m)
		}
	}
	if len(in) < 120 {
		f.t.Fatalf("only %d of %d headers came in", len(in), 3*len(reservedNames))
	}
	return in
}

// The list above is what the server's source names, and docs/operations.md says
// of each what happens to it.
func TestReservedNamesComplete(t *testing.T) {
	t.Parallel()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/nats-io/nats-server/v2").Output()
	if err != nil {
		t.Fatalf("finding the server's source: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "server", "*.go"))
	if err != nil || len(files) < 50 {
		t.Fatalf("%d files of the server: %v", len(files), err)
	}
	doc, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := make(map[string]bool)
	literal := regexp.MustCompile(`"((?i:nats)-[A-Z][A-Za-z-]*[a-z])"`)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range literal.FindAllSubmatch(b, -1) {
			named[string(m[1])] = true
		}
	}
	if !named["Nats-Rollup"] || len(named) < 40 {
		t.Fatalf("found only %d headers in the server's source", len(named))
	}
	for name := range named {
		if !slices.Contains(reservedNames, name) {
			t.Errorf("the server knows %s, the tests do not", name)
		}
		if !bytes.Contains(doc, []byte("`"+name+"`")) {
			t.Errorf("docs/operations.md does not say what happens to %s", name)
		}
	}
}

// The source rolls up, the sealed stream, which would be allowed to, does not.
func TestRollups(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{AllowMsgTTL: true, AllowRollup: true, AllowMsgSchedules: true, AllowDirect: true})
	f.create(jetstream.StreamConfig{Name: sealed, Subjects: []string{"sealed.in.>"}, AllowMsgTTL: true, AllowRollup: true, Metadata: map[string]string{"keyweir-mode": "relayed", "keyweir-route": "r"}})
	f.start()
	n := uint64(0)
	send := func(subject string, h nats.Header) {
		t.Helper()
		f.put(&nats.Msg{Subject: subject, Data: []byte("x"), Header: h})
		n++
		f.sealedCount(n, 10*time.Second)
	}
	send("in.a.x", nil)
	send("in.a.x", nats.Header{"Nats-Rollup": {"sub"}})
	send("in.b.x", nats.Header{"Nats-Rollup": {"all"}})
	// At the source they took effect.
	natstest.Eventually(t, 15*time.Second, func() error {
		st := f.info(source).State
		if st.FirstSeq < n {
			return fmt.Errorf("source begins at %d", st.FirstSeq)
		}
		return nil
	})
	if st := f.info(sealed).State; st.Msgs != n || st.FirstSeq != 1 {
		t.Errorf("the sealed stream holds %d messages from %d, want %d", st.Msgs, st.FirstSeq, n)
	}
	for _, o := range f.open() {
		if o.meta.Headers != nil {
			t.Errorf("message %d carries %v", o.seq, o.meta.Headers)
		}
	}
}

// A scheduled message comes in when the source's server sends it, and an expired
// one stays sealed.
func TestScheduledAndExpired(t *testing.T) {
	t.Parallel()
	f := newFixture(t, jetstream.StreamConfig{AllowMsgTTL: true, AllowRollup: true, AllowMsgSchedules: true, AllowDirect: true})
	f.create(jetstream.StreamConfig{Name: sealed, Subjects: []string{"sealed.in.>"}, AllowMsgTTL: true, AllowRollup: true, Metadata: map[string]string{"keyweir-mode": "relayed", "keyweir-route": "r"}})
	f.start()
	f.put(&nats.Msg{Subject: "in.b.x", Header: nats.Header{"Nats-TTL": {"1s"}}})
	f.put(&nats.Msg{Subject: "in.s.schedule", Header: nats.Header{"Nats-Schedule": {"@at " + time.Now().Add(time.Second).UTC().Format(time.RFC3339)}, "Nats-Schedule-Target": {"in.s.target"}}})
	f.sealedCount(3, 15*time.Second)
	natstest.Eventually(t, 15*time.Second, func() error { // the message and the schedule are gone
		if n := f.info(source).State.Msgs; n != 1 {
			return fmt.Errorf("%d source messages", n)
		}
		return nil
	})
	got := f.open()
	if len(got) != 3 || got[2].subject != "sealed.in.s.target" {
		t.Fatalf("sealed messages: %+v", got)
	}
	for _, o := range got {
		if o.meta.Headers != nil {
			t.Errorf("message %d carries %v", o.seq, o.meta.Headers)
		}
	}
}

// With ReservedReject they end as dead letters, headers and all.
func TestReservedHeadersRejected(t *testing.T) {
	t.Parallel()
	f := newPoisonFixture(t, jetstream.StreamConfig{})
	reject(f)
	in := f.publishReserved()
	f.start()
	f.sourceEmpty()
	got := f.letters()
	// One is the application's, spelled exactly so; the other the server takes out
	// of what clients publish.
	var sealedOnes []string
	in = slices.DeleteFunc(in, func(m *nats.Msg) bool {
		if string(m.Data) == "Nats-Trace-Dest" {
			m.Header["Nats-Trace-Dest"][0] = "trace disabled" // the server says so itself
		}
		ok := string(m.Data) == "Nats-Msg-Id" || string(m.Data) == "Nats-Request-Info"
		if ok {
			sealedOnes = append(sealedOnes, string(m.Data))
		}
		return ok
	})
	if len(got) != len(in) {
		t.Fatalf("%d dead letters, want %d", len(got), len(in))
	}
	for i, l := range got {
		f.checkLetter(l, in[i], poison{reason: "reserved", scope: "tenant/a", parts: 1}, l.Sequence)
	}
	var payloads []string
	for _, o := range f.open() {
		payloads = append(payloads, o.payload)
	}
	if !slices.Equal(payloads, sealedOnes) {
		t.Errorf("sealed messages %v, want %v", payloads, sealedOnes)
	}
}

func TestReservedHeaders(t *testing.T) {
	t.Parallel()
	eachEngine(t, testReservedHeaders)
}

func testReservedHeaders(t *testing.T, e gateway.Engine) {
	f := newFixture(t, jetstream.StreamConfig{})
	f.route.Engine = e
	in := uint64(len(f.publishReserved()))
	f.start()
	f.sealedCount(in, 10*time.Second)
	got := f.open()
	checkChain(t, got)
	if len(got) != int(in) {
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
