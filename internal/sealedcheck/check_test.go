package sealedcheck_test

import (
	"crypto/fips140"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/sealedcheck"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// TestGateway checks what a real gateway wrote, where it wrote it. If the gateway
// changes its headers, metadata or stream settings, this fails.
func TestGateway(t *testing.T) {
	err := withStack(func(js jetstream.JetStream) error {
		r, err := sealedcheck.Check(t.Context(), js.Conn(), sealedcheck.Options{Stream: "SEALED"})
		if err != nil {
			return err
		}
		if !r.OK || r.Wrong() != "" {
			t.Errorf("a genuine stream: %s\n%+v", r.Wrong(), r.Findings)
		}
		if r.Messages != count || r.Envelopes != count || r.First != 1 || r.Last != count {
			t.Errorf("%d messages, %d envelopes, from %d to %d", r.Messages, r.Envelopes, r.First, r.Last)
		}
		if len(r.Chains) != 1 || r.Chains[0].Messages != count || !r.Chains[0].FromStart || r.Chains[0].LastSource != count {
			t.Errorf("chains %+v", r.Chains)
		}
		want := []sealedcheck.Tally{{Name: "tenant/a", Keys: 1, Messages: count / 2}, {Name: "tenant/b", Keys: 1, Messages: count / 2}}
		if diff := cmp.Diff(want, r.Scopes); diff != "" {
			t.Errorf("scopes (-want +got):\n%s", diff)
		}
		if r.Keys.Total != 2 || r.Keys.Inline != 2 || len(r.Schemes) != 1 || r.Schemes[0].Name != "single" {
			t.Errorf("keys %+v, schemes %+v", r.Keys, r.Schemes)
		}
		if n := r.Nonces; n.Sessions != 2 || n.Counter+n.Random != count || n.Forgotten != 0 {
			t.Errorf("nonces %+v", n)
		}
		if r.Settings.Mode != "relayed" || r.Settings.Route == "" || len(r.ClearHeaders) != 0 || r.Subjects[0].Messages != count {
			t.Errorf("settings %+v, headers %v, subjects %+v", r.Settings, r.ClearHeaders, r.Subjects)
		}
		if len(r.NotShown) == 0 {
			t.Error("the report does not say what it cannot show")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// withRecord returns a copy of m with the key record of from.
func withRecord(m, from *nats.Msg) *nats.Msg {
	n := int(binary.BigEndian.Uint16(from.Data[6:]))
	c := clone(m)
	c.Data = slices.Concat(m.Data[:56], from.Data[56:56+n], m.Data[56:])
	c.Data[4] |= 1
	binary.BigEndian.PutUint16(c.Data[6:], uint16(n))
	return c
}

// TestDamage damages what a real gateway wrote, on a real server, in one way each.
func TestDamage(t *testing.T) {
	s := newServer(t)
	const at = 20 // index of the damaged message
	type kinds = map[sealedcheck.Kind]uint64
	tests := []struct {
		name   string
		damage func(ms []*nats.Msg) []*nats.Msg
		delete []uint64 // sequences, once stored
		want   kinds
		seq    uint64 // of the first finding
	}{
		{name: "none", damage: func(ms []*nats.Msg) []*nats.Msg { return ms }, want: kinds{}},
		{name: "plaintext injected", damage: func(ms []*nats.Msg) []*nats.Msg {
			return slices.Insert(ms, at, &nats.Msg{Subject: "sealed.in.a", Data: []byte(`{"card":"4111"}`)})
		}, want: kinds{sealedcheck.Plaintext: 1}, seq: at + 1},
		{name: "empty message injected", damage: func(ms []*nats.Msg) []*nats.Msg {
			return slices.Insert(ms, at, &nats.Msg{Subject: "sealed.in.a"})
		}, want: kinds{sealedcheck.Plaintext: 1}, seq: at + 1},
		{name: "plaintext in place of an envelope", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[at].Data = []byte("plain")
			return ms
		}, want: kinds{sealedcheck.Plaintext: 1, sealedcheck.Link: 1}, seq: at + 1},
		{name: "unknown version", damage: func(ms []*nats.Msg) []*nats.Msg {
			m := clone(ms[at])
			m.Data[2] = 9
			return slices.Insert(ms, at, m)
		}, want: kinds{sealedcheck.Unsupported: 1}, seq: at + 1},
		{name: "unknown suite", damage: func(ms []*nats.Msg) []*nats.Msg {
			m := clone(ms[at])
			m.Data[3] = 9
			return slices.Insert(ms, at, m)
		}, want: kinds{sealedcheck.Unsupported: 1}, seq: at + 1},
		{name: "cut envelope", damage: func(ms []*nats.Msg) []*nats.Msg {
			m := clone(ms[at])
			m.Data = m.Data[:60]
			return slices.Insert(ms, at, m)
		}, want: kinds{sealedcheck.Malformed: 1}, seq: at + 1},
		{name: "deleted message", delete: []uint64{at}, want: kinds{sealedcheck.Missing: 1, sealedcheck.Link: 1}, seq: at},
		{name: "deleted messages", delete: []uint64{5, 6, 7, 30}, want: kinds{sealedcheck.Missing: 2, sealedcheck.Link: 2}, seq: 5},
		{name: "deleted last message", delete: []uint64{count}, want: kinds{sealedcheck.Missing: 1}, seq: count},
		{name: "deleted last messages", delete: []uint64{count, count - 1, count - 2}, want: kinds{sealedcheck.Missing: 1}, seq: count - 2},
		{name: "message left out", damage: func(ms []*nats.Msg) []*nats.Msg { // as if the stream was made again
			return slices.Delete(ms, at, at+1)
		}, want: kinds{sealedcheck.Link: 1}, seq: at + 1},
		{name: "copy at the end", damage: func(ms []*nats.Msg) []*nats.Msg {
			return append(ms, clone(ms[at]))
		}, want: kinds{sealedcheck.Copy: 1, sealedcheck.Link: 1}, seq: count + 1},
		{name: "copy under new headers", damage: func(ms []*nats.Msg) []*nats.Msg {
			m := clone(ms[at])
			source(m, 1, count+1)
			source(m, 2, count)
			return append(ms, m)
		}, want: kinds{sealedcheck.Copy: 1}, seq: count + 1},
		{name: "message moved back", damage: func(ms []*nats.Msg) []*nats.Msg {
			m := ms[at]
			return slices.Insert(slices.Delete(ms, at, at+1), at+4, m)
		}, want: kinds{sealedcheck.Link: 2, sealedcheck.NonceOrder: 1}, seq: at + 1},
		{name: "nonce used twice", damage: func(ms []*nats.Msg) []*nats.Msg {
			m := clone(ms[at])
			m.Data[len(m.Data)-20]++
			source(m, 1, count+1)
			source(m, 2, count)
			return append(ms, m)
		}, want: kinds{sealedcheck.NonceReuse: 1}, seq: count + 1},
		{name: "counter out of range", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[count-1].Data[56] = 1 // first byte of the nonce: no record in this message
			return ms
		}, want: kinds{sealedcheck.NonceOrder: 1}, seq: count},
		{name: "no headers", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[at].Header = nil
			return ms
		}, want: kinds{sealedcheck.Header: 1, sealedcheck.Link: 1}, seq: at + 1},
		{name: "header of another version", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[count-1].Header["Keyweir"] = []string{"2"}
			return ms
		}, want: kinds{sealedcheck.Header: 1}, seq: count},
		{name: "two positions", damage: func(ms []*nats.Msg) []*nats.Msg {
			h := ms[count-1].Header
			h["Keyweir-Source"] = append(h["Keyweir-Source"], h["Keyweir-Source"][0])
			return ms
		}, want: kinds{sealedcheck.Header: 1}, seq: count},
		{name: "malformed position", damage: func(ms []*nats.Msg) []*nats.Msg {
			source(ms[count-1], 5, "short")
			return ms
		}, want: kinds{sealedcheck.Header: 1}, seq: count},
		{name: "other predecessor", damage: func(ms []*nats.Msg) []*nats.Msg {
			source(ms[at], 2, 7)
			return ms
		}, want: kinds{sealedcheck.Link: 1}, seq: at + 1},
		{name: "other sequence", damage: func(ms []*nats.Msg) []*nats.Msg {
			source(ms[count-1], 1, 5)
			source(ms[count-1], 2, 4)
			return ms
		}, want: kinds{sealedcheck.Link: 1}, seq: count},
		{name: "other source", damage: func(ms []*nats.Msg) []*nats.Msg {
			source(ms[at], 3, 5)
			return ms
		}, want: kinds{sealedcheck.Link: 1}, seq: at + 1},
		{name: "spliced chain", damage: func(ms []*nats.Msg) []*nats.Msg {
			for _, m := range ms[at:] {
				source(m, 0, strings.Repeat("ab", 16))
			}
			return ms
		}, want: kinds{sealedcheck.Link: 1}, seq: at + 1},
		{name: "chain comes back", damage: func(ms []*nats.Msg) []*nats.Msg {
			for i, m := range ms[at : at+5] {
				source(m, 0, strings.Repeat("ab", 16))
				source(m, 1, i+1)
				source(m, 2, i)
			}
			return ms
		}, want: kinds{sealedcheck.Link: 1}, seq: at + 6},
		{name: "new chain", damage: func(ms []*nats.Msg) []*nats.Msg {
			for i, m := range ms[at:] {
				source(m, 0, strings.Repeat("ab", 16))
				source(m, 1, i+1)
				source(m, 2, i)
			}
			return ms
		}, want: kinds{}},
		{name: "record of the other key", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[at] = withRecord(ms[at], ms[1])
			return ms
		}, want: kinds{sealedcheck.Record: 1}, seq: at + 1},
		{name: "record of its own key", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[at] = withRecord(ms[at], ms[0])
			return ms
		}, want: kinds{}},
		{name: "record changed", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[at] = withRecord(ms[at], ms[0])
			ms[at].Data[56+10]++ // in the record ID: another core
			return ms
		}, want: kinds{sealedcheck.Record: 1}, seq: at + 1},
		{name: "record without sense", damage: func(ms []*nats.Msg) []*nats.Msg {
			ms[at] = withRecord(ms[at], ms[0])
			ms[at].Data[56]++
			return ms
		}, want: kinds{sealedcheck.Record: 1}, seq: at + 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ms := messages(t)
			if tt.damage != nil {
				ms = tt.damage(ms)
			}
			st := s.stream(ms)
			for _, seq := range tt.delete {
				if err := st.DeleteMsg(t.Context(), seq); err != nil {
					t.Fatal(err)
				}
			}
			r := s.check(st)
			if fips140.Enabled() {
				delete(tt.want, sealedcheck.NonceOrder) // no nonce was counted
			}
			if diff := cmp.Diff(tt.want, r.Counts); diff != "" {
				t.Errorf("findings (-want +got):\n%s%+v", diff, r.Findings)
			}
			if r.OK != (len(tt.want) == 0) || (r.Wrong() == "") != r.OK {
				t.Errorf("OK = %v, wrong: %q", r.OK, r.Wrong())
			}
			if len(tt.want) > 0 && r.Findings[0].Sequence != tt.seq {
				t.Errorf("findings %+v, want the first at %d", r.Findings, tt.seq)
			}
			if r.Messages != uint64(len(ms)-len(tt.delete)) || r.MissingMsgs != uint64(len(tt.delete)) {
				t.Errorf("%d messages, %d missing", r.Messages, r.MissingMsgs)
			}
			if _, err := json.Marshal(r); err != nil {
				t.Errorf("as JSON: %v", err)
			}
		})
	}
}

// sealed makes n messages of one random-nonce session.
func sealed(t *testing.T, n int, random bool) []*nats.Msg {
	t.Helper()
	sealer := streamstest.NewKeys().NewSealer(t, streamstest.Sealing{Scope: "x", RandomNonce: random})
	out := make([]*nats.Msg, n)
	for i := range out {
		out[i] = sealer.Seal(t, "in.a", nil, fmt.Append(nil, i))
		setSource(out[i], sealer.Chain().String(), uint64(i+1), uint64(i))
	}
	return out
}

// TestRandomNonces: a repeated random nonce is found within the window, and the
// report says where the window was too short to be sure.
func TestRandomNonces(t *testing.T) {
	s := newServer(t)
	window := func(n int) func(*sealedcheck.Options) {
		return func(o *sealedcheck.Options) { o.Limits.Nonces = n }
	}
	ms := sealed(t, 50, true)
	again := clone(ms[10])
	again.Data[len(again.Data)-1]++
	setSource(again, strings.Repeat("00", 16), 1, 0)
	st := s.stream(append(ms, again))
	if r := s.check(st); r.NonceReuse != 1 || r.Nonces.Random != 51 || len(r.Counts) != 1 {
		t.Errorf("window of all: %+v, nonces %+v", r.Findings, r.Nonces)
	}
	r := s.check(st, window(20))
	if r.NonceReuse != 0 || !r.OK {
		t.Errorf("window of 20: %+v", r.Findings)
	}
	if !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "random nonces were compared") }) {
		t.Errorf("the report hides that its window was too short: %q", r.Notes)
	}
	if fips140.Enabled() {
		t.Log("nonces are never counted in FIPS mode: the rest has nothing to test")
		return
	}
	// Counters are found again however far away.
	ms = sealed(t, 50, false)
	again = clone(ms[10])
	again.Data[len(again.Data)-1]++
	setSource(again, strings.Repeat("00", 16), 1, 0)
	if r := s.check(s.stream(append(ms, again)), window(20)); r.NonceOrder != 1 || len(r.Counts) != 1 {
		t.Errorf("counter beyond the window: %+v", r.Findings)
	}
}

// TestBounds: memory is bounded, and the report says so where it mattered.
func TestBounds(t *testing.T) {
	s := newServer(t)
	var ms []*nats.Msg
	for i := range 12 {
		m := sealed(t, 1, false)[0]
		setSource(m, fmt.Sprintf("%032x", i+1), 1, 0)
		ms = append(ms, m)
	}
	st := s.stream(ms)
	if r := s.check(st); !r.OK || len(r.Chains) != 12 || r.Keys.Total != 12 {
		t.Fatalf("%+v", r.Findings)
	}
	r := s.check(st, func(o *sealedcheck.Options) { o.Limits = sealedcheck.Limits{Chains: 5, Keys: 3, Sessions: 4} })
	if len(r.Chains) != 5 || r.ChainsMore != 7 || r.Counts[sealedcheck.Link] != 7 {
		t.Errorf("%d chains, %d more, %v", len(r.Chains), r.ChainsMore, r.Counts)
	}
	if r.Keys.Total != 3 || r.Keys.Untracked != 9 || r.Nonces.Forgotten != 8 || len(r.Notes) < 3 {
		t.Errorf("keys %+v, nonces %+v, notes %q", r.Keys, r.Nonces, r.Notes)
	}
	var plain []*nats.Msg
	for range 30 {
		plain = append(plain, &nats.Msg{Subject: "x", Data: []byte("plain")})
	}
	if r := s.check(s.stream(plain)); len(r.Findings) != sealedcheck.MaxFindings || r.Foreign != 30 || r.Wrong() != "30 messages are plaintext" {
		t.Errorf("%d findings, %d foreign: %s", len(r.Findings), r.Foreign, r.Wrong())
	}
}

func TestRange(t *testing.T) {
	s := newServer(t)
	st := s.stream(messages(t))
	between := func(from, to uint64) func(*sealedcheck.Options) {
		return func(o *sealedcheck.Options) { o.From, o.To = from, to }
	}
	for _, tt := range []struct{ from, to, messages uint64 }{{0, 0, count}, {5, 0, count - 4}, {0, 9, 9}, {7, 7, 1}, {30, 1000, count - 29}} {
		if r := s.check(st, between(tt.from, tt.to)); !r.OK || r.Messages != tt.messages || r.Last-r.First+1 != tt.messages {
			t.Errorf("from %d to %d: %d messages, %+v", tt.from, tt.to, r.Messages, r.Findings)
		}
	}
	for _, tt := range [][2]uint64{{count + 1, 0}, {9, 8}} {
		o := sealedcheck.Options{Stream: st.CachedInfo().Config.Name, From: tt[0], To: tt[1]}
		if r, err := sealedcheck.Check(t.Context(), s.nc, o); !errors.Is(err, sealedcheck.ErrRange) || r != nil {
			t.Errorf("from %d to %d: %v, %v", tt[0], tt[1], r, err)
		}
	}
	if err := st.Purge(t.Context(), jetstream.WithPurgeSequence(11)); err != nil {
		t.Fatal(err)
	}
	if r := s.check(st); !r.OK || r.Messages != count-10 || r.First != 11 || r.Chains[0].FromStart || !strings.Contains(strings.Join(r.Notes, "\n"), "before 11 are gone") {
		t.Errorf("purged front: %d messages from %d, notes %q, %+v", r.Messages, r.First, r.Notes, r.Findings)
	}
	if err := st.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.check(st); !r.OK || r.Messages != 0 || !slices.Contains(r.Notes, "the stream holds no message") {
		t.Errorf("empty stream: %+v, notes %q", r.Findings, r.Notes)
	}
	if _, err := sealedcheck.Check(t.Context(), s.nc, sealedcheck.Options{Stream: "NONE"}); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("no stream: %v", err)
	}
}

// TestFrontLeavesWhileReading: what limits remove during the check is neither a
// hole nor a broken link.
func TestFrontLeavesWhileReading(t *testing.T) {
	s := newServer(t)
	ms := sealed(t, 3000, false)
	for _, upTo := range []uint64{2500, 3001} {
		t.Run(fmt.Sprint("before ", upTo), func(t *testing.T) {
			st := s.stream(ms)
			purged := false
			r := s.check(st, func(o *sealedcheck.Options) {
				o.Progress = func(uint64, uint64) {
					if purged {
						return
					}
					purged = true
					if err := st.Purge(t.Context(), jetstream.WithPurgeSequence(upTo)); err != nil {
						t.Error(err)
					}
				}
			})
			if !purged || !r.OK || r.Messages >= 3000 || r.Messages < 1024 {
				t.Errorf("purged %v, %d messages, %v", purged, r.Messages, r.Findings)
			}
			if !strings.Contains(strings.Join(r.Notes, "\n"), "left the stream while it was read") {
				t.Errorf("notes %q", r.Notes)
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	srv := natstest.New(b)
	nc := srv.Conn(b)
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"sealed.>"}, Storage: jetstream.MemoryStorage}); err != nil {
		b.Fatal(err)
	}
	sealer := streamstest.NewKeys().NewSealer(b, streamstest.Sealing{Scope: "x"})
	const n = 50_000
	for i := range uint64(n) {
		m := sealer.Seal(b, "in.a", nil, make([]byte, 256))
		setSource(m, sealer.Chain().String(), i+1, i)
		if _, err := js.PublishMsgAsync(m); err != nil {
			b.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
	for b.Loop() {
		r, err := sealedcheck.Check(b.Context(), nc, sealedcheck.Options{Stream: "S"})
		if err != nil || r.BrokenLinks != 0 || r.Messages != n {
			b.Fatal(err, r)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*b.N), "ns/msg")
}
