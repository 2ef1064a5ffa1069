package sealedcheck_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/sealedcheck"
	"github.com/keyweir/keyweir/streams/streamstest"
)

// sharedBy stores messages in a stream that n partitions share, those with a nil
// Msg as holes.
func (s *server) sharedBy(n int, ms []*nats.Msg) jetstream.Stream {
	s.t.Helper()
	s.n++
	name := fmt.Sprintf("S%d", s.n)
	st, err := s.js.CreateStream(s.t.Context(), jetstream.StreamConfig{
		Name: name, Subjects: []string{fmt.Sprintf("s%d.>", s.n), checkpoint.Prefix + name + ".>"}, AllowRollup: true,
		Metadata: map[string]string{"keyweir-mode": "relayed", "keyweir-route": "r", "keyweir-shared": fmt.Sprint(n)},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, m := range ms {
		m = clone(m)
		if rest, ok := strings.CutPrefix(m.Subject, "mark."); ok {
			m.Subject = checkpoint.Prefix + name + "." + rest
		} else {
			m.Subject = fmt.Sprintf("s%d.%s", s.n, m.Subject)
		}
		ack, err := s.js.PublishMsg(s.t.Context(), m)
		if err != nil {
			s.t.Fatal(err)
		}
		if m.Header.Get("gone") != "" {
			if err := st.DeleteMsg(s.t.Context(), ack.Sequence); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return st
}

// TestShared checks streams as partitions make them that share one, and with one
// thing wrong each.
func TestShared(t *testing.T) {
	s := newServer(t)
	var chains []envelope.ChainID
	batch := func() (ms []*nats.Msg) { // two partitions, three batches of two messages each
		keys := streamstest.NewKeys()
		sealers := []*streamstest.Sealer{keys.NewSealer(t, streamstest.Sealing{Scope: "x"}), keys.NewSealer(t, streamstest.Sealing{Scope: "x"})}
		chains = []envelope.ChainID{sealers[0].Chain(), sealers[1].Chain()}
		for b := range 3 {
			for p, sealer := range sealers {
				last := uint64(0)
				for i := range 2 {
					m := sealer.Seal(t, "in.a", nil, []byte("x"))
					seq := uint64(b*10 + i*2 + p + 1)
					previous := seq - 2
					if i == 0 {
						previous = seq - 8
						if b == 0 {
							previous = 0
						}
					}
					setSource(m, sealer.Chain().String(), seq, previous)
					ms, last = append(ms, m), seq
				}
				c := checkpoint.Checkpoint{Chain: sealer.Chain(), Position: last, Last: last, Created: 1, Timestamp: 1, Messages: 2, MAC: bytes.Repeat([]byte{1}, 32)}
				m := &nats.Msg{Subject: fmt.Sprintf("mark.%d", p), Header: nats.Header{"Keyweir": {"1"}, checkpoint.Header: {string(c.Append(nil))}}}
				if b < 2 {
					m.Header.Set("gone", "1")
				}
				ms = append(ms, m)
			}
		}
		return ms
	}
	type kinds = map[sealedcheck.Kind]uint64
	last := func(ms []*nats.Msg, change func(*checkpoint.Checkpoint)) []*nats.Msg { // of partition 1
		m := ms[len(ms)-1]
		c, err := checkpoint.Parse(m.Header.Get(checkpoint.Header))
		if err != nil {
			t.Fatal(err)
		}
		change(&c)
		m.Header.Set(checkpoint.Header, string(c.Append(nil)))
		return ms
	}
	for _, tt := range []struct {
		name   string
		damage func(ms []*nats.Msg) []*nats.Msg
		want   kinds
	}{
		{"none", func(ms []*nats.Msg) []*nats.Msg { return ms }, kinds{}},
		{"a message removed", func(ms []*nats.Msg) []*nats.Msg { ms[6].Header.Set("gone", "1"); return ms }, kinds{sealedcheck.Link: 1}},
		{"the last message removed", func(ms []*nats.Msg) []*nats.Msg { ms[16].Header.Set("gone", "1"); return ms }, kinds{sealedcheck.Checkpoint: 1}},
		{"a checkpoint removed", func(ms []*nats.Msg) []*nats.Msg { ms[17].Header.Set("gone", "1"); return ms }, kinds{}},
		{"an old checkpoint at the end", func(ms []*nats.Msg) []*nats.Msg {
			m := clone(ms[5])
			m.Header.Del("gone")
			return append(slices.Delete(ms, 17, 18), m)
		}, kinds{sealedcheck.Checkpoint: 1}},
		{"one that replaced none", func(ms []*nats.Msg) []*nats.Msg { ms[11].Header.Del("gone"); return ms }, kinds{sealedcheck.Checkpoint: 1}},
		{"one that says more", func(ms []*nats.Msg) []*nats.Msg {
			return last(ms, func(c *checkpoint.Checkpoint) { c.Last, c.Position = 99, 99 })
		}, kinds{sealedcheck.Checkpoint: 1}},
		{"one of the other chain", func(ms []*nats.Msg) []*nats.Msg {
			return last(ms, func(c *checkpoint.Checkpoint) { c.Chain = chains[0] })
		}, kinds{sealedcheck.Checkpoint: 1}},
		{"one of another source", func(ms []*nats.Msg) []*nats.Msg {
			return last(ms, func(c *checkpoint.Checkpoint) { c.Created++ })
		}, kinds{sealedcheck.Checkpoint: 1}},
		{"a body", func(ms []*nats.Msg) []*nats.Msg { ms[17].Data = []byte("x"); return ms }, kinds{sealedcheck.Checkpoint: 1}},
		{"no header", func(ms []*nats.Msg) []*nats.Msg { ms[17].Header = nats.Header{}; return ms }, kinds{sealedcheck.Checkpoint: 1}},
		{"another partition", func(ms []*nats.Msg) []*nats.Msg { ms[17].Subject = "mark.2"; return ms }, kinds{sealedcheck.Checkpoint: 1}},
		{"an empty message", func(ms []*nats.Msg) []*nats.Msg {
			return append(ms, &nats.Msg{Subject: "in.a"})
		}, kinds{sealedcheck.Plaintext: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := s.check(s.sharedBy(2, tt.damage(batch())))
			if d := cmp.Diff(tt.want, r.Counts); d != "" {
				t.Errorf("findings (-want +got):\n%s%+v", d, r.Findings)
			}
			if len(tt.want) == 0 && (r.Envelopes != 12 || len(r.Chains) != 2 || r.Holes != 0 || r.Checkpoints+r.Replaced != 6 || r.Settings.Shared != "2") {
				t.Errorf("%+v", r)
			}
		})
	}
	// In a stream that nobody shares, a checkpoint is no envelope.
	st := s.stream(batch()[:1])
	cfg := st.CachedInfo().Config
	cfg.Subjects = append(cfg.Subjects, checkpoint.Prefix+cfg.Name+".>")
	if _, err := s.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	m := clone(batch()[17])
	m.Subject = checkpoint.Subject(cfg.Name, 1)
	if _, err := s.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if r := s.check(st); r.Counts[sealedcheck.Plaintext] != 1 {
		t.Errorf("%+v", r.Findings)
	}
}
