package gateway

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

func testRouteKey(t testing.TB, b byte) keysvc.RouteKey {
	t.Helper()
	k, err := envelope.NewDataKey(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// knownMAC was computed by an independent implementation.
const knownMAC = "KXcaaCRtQn7QtUq1uZIexz6G-73jd3Du5oBbMT2y0Ws"

// The MAC is part of what is stored for years: this value must never change.
func TestPositionKnownAnswer(t *testing.T) {
	h := &home{route: "orders", sealed: "SEALED", sealedCreated: 1700000000000000001, source: "ORDERS"}
	chain := envelope.ChainID{0: 1, 15: 0xff}
	got := newSigner(testRouteKey(t, 7), h, chain, 1600000000000000002).header(43, 1042, 1041, 1650000000000000003)
	const want = "010000000000000000000000000000ff:1042:1041:1600000000000000002:1650000000000000003:"
	mac, ok := strings.CutPrefix(got, want)
	if !ok || mac != knownMAC {
		t.Errorf("header = %s, want %s%s", got, want, knownMAC)
	}
}

func TestPositionBindings(t *testing.T) {
	key := testRouteKey(t, 1)
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[A-Za-z0-9_-]{1,20}`)
		h := home{name.Draw(t, "route"), name.Draw(t, "sealed"), rapid.Int64().Draw(t, "created"), rapid.Uint32().Draw(t, "partition"), name.Draw(t, "source"), false}
		p := position{
			chain: envelope.ChainID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "chain")), created: rapid.Int64().Draw(t, "source created"),
			sequence: rapid.Uint64Min(1).Draw(t, "sequence"), timestamp: rapid.Int64().Draw(t, "timestamp"),
		}
		p.previous = rapid.Uint64Max(p.sequence-1).Draw(t, "previous")
		seq := rapid.Uint64().Draw(t, "sealed sequence")
		s := newSigner(key, &h, p.chain, p.created)
		value := s.header(seq, p.sequence, p.previous, p.timestamp)
		if len(value) > maxSourceHeader {
			t.Fatalf("header of %d bytes, at most %d", len(value), maxSourceHeader)
		}
		if again := s.header(seq, p.sequence, p.previous, p.timestamp); again != value {
			t.Fatalf("a signer used twice gives %s and %s", value, again)
		}
		got, err := readPosition(key, &h, seq, value)
		if err != nil || got != p {
			t.Fatalf("readPosition(%s) = %+v, %v, want %+v", value, got, err, p)
		}
		for what, try := range map[string]func() error{
			"another sealed sequence": func() error { _, err := readPosition(key, &h, seq+1, value); return err },
			"another key":             func() error { _, err := readPosition(testRouteKeyByte(2), &h, seq, value); return err },
			"another route":           func() error { o := h; o.route += "x"; _, err := readPosition(key, &o, seq, value); return err },
			"a shared stream":         func() error { o := h; o.shared = true; _, err := readPosition(key, &o, seq, value); return err },
			"another sealed stream":   func() error { o := h; o.sealed += "x"; _, err := readPosition(key, &o, seq, value); return err },
			"another incarnation":     func() error { o := h; o.sealedCreated++; _, err := readPosition(key, &o, seq, value); return err },
			"another partition":       func() error { o := h; o.partition++; _, err := readPosition(key, &o, seq, value); return err },
			"another source":          func() error { o := h; o.source += "x"; _, err := readPosition(key, &o, seq, value); return err },
			"moved boundary": func() error {
				o := h
				o.route, o.sealed = h.route+h.sealed[:1], h.sealed[1:]
				_, err := readPosition(key, &o, seq, value)
				return err
			},
		} {
			if err := try(); !errors.Is(err, errBadPosition) {
				t.Fatalf("%s: %v, want errBadPosition", what, err)
			}
		}
		// Any other byte anywhere.
		i := rapid.IntRange(0, len(value)-1).Draw(t, "place")
		b := []byte(value)
		b[i] = rapid.Byte().Draw(t, "byte")
		if string(b) != value {
			if _, err := readPosition(key, &h, seq, string(b)); !errors.Is(err, errBadPosition) {
				t.Fatalf("accepted %s for %s", b, value)
			}
		}
	})
}

func testRouteKeyByte(b byte) keysvc.RouteKey {
	k, err := envelope.NewDataKey(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		panic(err)
	}
	return k
}

func TestRecordCodec(t *testing.T) {
	key := testRouteKey(t, 1)
	r := record{Route: "r", Partitions: 1, Source: "IN", SourceCreated: 5, Sealed: "OUT", SealedCreated: 6, LastSeq: 7, Chain: strings.Repeat("ab", 16), Position: 9, Previous: 8, Timestamp: 3, Gap: 2, Resumed: true}
	raw, err := r.encode(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(key, raw)
	if err != nil || *got != r {
		t.Fatalf("decodeRecord = %+v, %v, want %+v", got, err, r)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "cut": raw[:len(raw)-1], "trailing": append(slices.Clone(raw), '1'), "unknown field": []byte(strings.Replace(string(raw), `{`, `{"x":1,`, 1)),
		"version": []byte(strings.Replace(string(raw), `"v":1`, `"v":2`, 1)), "array": []byte("[]"), "null": []byte("null"),
	} {
		if _, err := decodeRecord(key, b); !errors.Is(err, errBadRecord) {
			t.Errorf("%s: %v, want errBadRecord", name, err)
		}
	}
	if _, err := decodeRecord(testRouteKey(t, 2), raw); !errors.Is(err, errBadRecord) {
		t.Errorf("another key: %v", err)
	}
}

// A position's MAC cannot stand in for a record's, nor the other way round: the
// inputs begin with different labels.
func TestLabelsDiffer(t *testing.T) {
	if strings.HasPrefix(string(appendString(nil, labelRecord)), string(appendString(nil, labelPosition))) {
		t.Error("one label with its length begins like the other")
	}
}

func TestAckedSequence(t *testing.T) {
	for s, want := range map[string]uint64{
		`{"stream":"S","seq":7}`:                               7,
		`{"stream":"S", "seq":18446744073709551}`:              18446744073709551,
		`{"stream":"S","domain":"hub","seq":12}`:               12,
		`{"stream":"a\"seq\":5","seq":12}`:                     12,
		`{"error":{"code":400},"stream":"S","seq":0}`:          0,
		`{"stream":"S","seq":7,"duplicate":true}`:              0,
		`{"stream":"S","seq":}`:                                0,
		`{"stream":"S"}`:                                       0,
		`{"stream":"S","seq":99999999999999999999999999999999`: 0,
		``:                       0,
		`{"seq":7,"stream":"S"}`: 0, // not what a server writes
	} {
		got, ok := ackedSequence([]byte(s))
		if ok != (want != 0) || ok && got != want {
			t.Errorf("ackedSequence(%s) = %d, %v, want %d", s, got, ok, want)
		}
	}
	for body, want := range map[string]error{
		`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 4"},"stream":"S","seq":0}`: ErrFenced,
		`{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"},"stream":"S","seq":0}`:    ErrFenced,
		`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}`:                   errRefused,
		`garbage`: errRefused,
	} {
		if err := refusal(&nats.Msg{Data: []byte(body)}); !errors.Is(err, want) {
			t.Errorf("refusal(%s) = %v, want %v", body, err, want)
		}
	}
	if err := refusal(&nats.Msg{Header: nats.Header{"Status": {"503"}}}); !errors.Is(err, errRefused) {
		t.Errorf("refusal of no responders = %v", err)
	}
}

func TestParseReply(t *testing.T) {
	for reply, want := range map[string]item{
		"$JS.ACK.IN.c.1.10.20.30.40":                {seq: 10, timestamp: 30, pending: 40},
		"$JS.ACK.hub.ACCHASH.IN.c.1.10.20.30.40":    {seq: 10, timestamp: 30, pending: 40},
		"$JS.ACK._.ACCHASH.IN.c.3.10.20.30.40.rand": {seq: 10, timestamp: 30, pending: 40},
		"$JS.ACK.IN.c.1.0.20.30.40":                 {},
		"$JS.ACK.IN.c.1.x.20.30.40":                 {},
		"$JS.ACK.IN.c.1.10.20.30":                   {},
		"$JS.ACK.IN.c.1.10.20.30.40.50":             {},
		"_INBOX.x":                                  {},
		"":                                          {},
	} {
		consumer, got, dseq, ok := parseReply(&nats.Msg{Reply: reply})
		if ok != (want.seq != 0) {
			t.Errorf("parseReply(%s) ok = %v", reply, ok)
			continue
		}
		if got.msg = nil; ok && (consumer != "c" || dseq != 20 || got != want) {
			t.Errorf("parseReply(%s) = %s, %+v, %d", reply, consumer, got, dseq)
		}
	}
}

// A heartbeat counts only if nothing it speaks of is missing here.
func TestHeard(t *testing.T) {
	heartbeat := func(delivered, looked string) nats.Header {
		return nats.Header{headerLastConsumer: {delivered}, headerLastStream: {looked}}
	}
	p := puller{delivered: 5, looked: 50}
	for _, c := range []struct {
		header nats.Header
		want   uint64
	}{
		{heartbeat("6", "60"), 50}, // one message is still to come, or lost
		{heartbeat("4", "60"), 50},
		{heartbeat("", "60"), 50},
		{heartbeat("5", ""), 50},
		{heartbeat("5", "-1"), 50},
		{nats.Header{}, 50},
		{heartbeat("5", "49"), 50},
		{heartbeat("5", "60"), 60},
	} {
		if p.heard(c.header); p.looked != c.want {
			t.Errorf("after %v: looked at %d, want %d", c.header, p.looked, c.want)
		}
	}
}

func TestPatterns(t *testing.T) {
	patterns := []string{">", "a", "a.>", "a.*", "a.b", "*.b", "*.*", "a.b.c", "a.*.c", "b.>", "*", "*.>"}
	subjects := []string{"a", "b", "a.b", "a.c", "b.b", "a.b.c", "a.x.c", "b.x.y.z"}
	for _, p := range patterns {
		for _, q := range patterns {
			overlap, covers := false, true
			for _, s := range subjects {
				mp, mq := keysvc.SubjectMatches(p, s), keysvc.SubjectMatches(q, s)
				overlap = overlap || mp && mq
				covers = covers && (!mq || mp)
			}
			// The subjects tell all these patterns apart.
			if got := patternsOverlap(p, q); got != overlap {
				t.Errorf("patternsOverlap(%s, %s) = %v", p, q, got)
			}
			if got := patternCovers(p, q); got && !covers {
				t.Errorf("patternCovers(%s, %s) = true", p, q)
			}
			if p == q && !patternCovers(p, q) {
				t.Errorf("%s does not cover itself", p)
			}
		}
	}
}

func TestSealedPrefix(t *testing.T) {
	for _, c := range []struct {
		subject, want string
		source        []string
	}{
		{"sealed.>", "sealed.", []string{"orders.>"}},
		{"sealed.orders.>", "sealed.", []string{"orders.>"}},
		{"sealed.orders.>", "sealed.orders.", []string{"orders.eu.>"}},
		{"sealed.orders.>", "sealed.orders.", []string{"orders.>", "returns.>"}},
		{"a.b.>", "a.b.", []string{"b.c.>"}},
		{"x.>", "x.", []string{">"}},
		{"sealed.orders.eu.>", "sealed.", []string{"orders.eu.>"}},
		{"sealed.xorders.>", "sealed.xorders.", []string{"orders.>"}},
	} {
		if got, err := sealedPrefix(c.subject, c.source); err != nil || got != c.want {
			t.Errorf("sealedPrefix(%s, %v) = %q, %v, want %q", c.subject, c.source, got, err, c.want)
		}
	}
}

func TestTrimmable(t *testing.T) {
	now := time.Unix(1000, 0)
	old, young := cursor{timestamp: now.Add(-2 * time.Hour).UnixNano()}, cursor{timestamp: now.Add(-time.Minute).UnixNano()}
	all, part := []string{"in.>"}, []string{"in.a.>"}
	for name, c := range map[string]struct {
		cfg      jetstream.StreamConfig
		subjects []string
		cur      cursor
		want     bool
	}{
		"takes everything":             {jetstream.StreamConfig{Subjects: []string{"in.>"}}, all, young, true},
		"filter, no limits":            {jetstream.StreamConfig{Subjects: []string{"in.>"}}, part, old, false},
		"filter, too young to expire":  {jetstream.StreamConfig{Subjects: []string{"in.>"}, MaxAge: time.Hour}, part, young, false},
		"filter, old enough":           {jetstream.StreamConfig{Subjects: []string{"in.>"}, MaxAge: time.Hour}, part, old, true},
		"filter, age unknown":          {jetstream.StreamConfig{Subjects: []string{"in.>"}, MaxAge: time.Hour}, part, cursor{}, true},
		"filter, limited number":       {jetstream.StreamConfig{Subjects: []string{"in.>"}, MaxMsgs: 5}, part, young, true},
		"filter, limited size":         {jetstream.StreamConfig{Subjects: []string{"in.>"}, MaxBytes: 5}, part, young, true},
		"filter, full takes no more":   {jetstream.StreamConfig{Subjects: []string{"in.>"}, MaxMsgs: 5, Discard: jetstream.DiscardNew}, part, young, false},
		"sourced stream, own subjects": {jetstream.StreamConfig{Subjects: []string{"in.>"}, Sources: []*jetstream.StreamSource{{}}}, all, young, false},
	} {
		if got := trimmable(&c.cfg, c.subjects, c.cur, now); got != c.want {
			t.Errorf("%s: trimmable = %v, want %v", name, got, c.want)
		}
	}
}

func TestReleaseLag(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  jetstream.StreamConfig
		sync time.Duration
		want time.Duration
		warn bool
	}{
		"one replica":    {jetstream.StreamConfig{Replicas: 1}, 2 * time.Minute, 2 * time.Minute, true},
		"sync always":    {jetstream.StreamConfig{Replicas: 1}, SyncAlways, 0, false},
		"three replicas": {jetstream.StreamConfig{Replicas: 3}, 2 * time.Minute, 0, false},
		"memory":         {jetstream.StreamConfig{Replicas: 1, Storage: jetstream.MemoryStorage}, 2 * time.Minute, 0, true},
	} {
		if lag, warning := releaseLag(&c.cfg, c.sync); lag != c.want || (warning != "") != c.warn {
			t.Errorf("%s: releaseLag = %v, %q", name, lag, warning)
		}
	}
	if r, err := (Route{}).withDefaults(); err == nil {
		t.Errorf("an empty route is valid: %+v", r)
	}
}

// The releaser allows what was sampled at least a lag ago, and nothing newer.
func TestReleaserSamples(t *testing.T) {
	start := time.Unix(1000, 0)
	r := &releaser{lag: 10 * time.Second}
	for i := range 100 {
		now := start.Add(time.Duration(i) * time.Second)
		r.sealed(now, uint64(i*5))
		want := uint64(0)
		if i >= 10 {
			want = uint64((i - 10) * 5)
		}
		if r.safe != want {
			t.Fatalf("after %d s safe = %d, want %d", i, r.safe, want)
		}
	}
	r.sealed(start.Add(time.Hour), 0)
	if r.safe != 99*5 || len(r.samples) != 0 {
		t.Errorf("long after: safe = %d with %d samples", r.safe, len(r.samples))
	}
}

func TestPauseEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if err := newPause(time.Hour, time.Hour).wait(ctx); !errors.Is(err, cause) {
		t.Errorf("wait = %v, want the cause", err)
	}
}
