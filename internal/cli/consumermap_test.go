package cli_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/cli"
	"github.com/keyweir/keyweir/internal/natstest"
)

// mapping is a stream IN, its relayed form OUT, written by hand, and a consumer c.
type mapping struct {
	t    *testing.T
	srv  *natstest.Server
	js   jetstream.JetStream
	last map[string]uint64 // source sequence of the last message relayed, by chain
}

func newMapping(t *testing.T) *mapping {
	t.Helper()
	srv := natstest.New(t)
	return &mapping{t, srv, srv.JetStream(t), map[string]uint64{}}
}

func (m *mapping) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// streams makes both streams.
func (m *mapping) streams(in, out string) {
	m.t.Helper()
	for name, subject := range map[string]string{"IN": in, "OUT": out} {
		cfg := jetstream.StreamConfig{Name: name, Subjects: []string{subject}, Storage: jetstream.MemoryStorage}
		if name == "OUT" {
			cfg.Metadata = map[string]string{gateway.MetadataMode: gateway.ModeRelayed}
		}
		_, err := m.js.CreateStream(m.t.Context(), cfg)
		m.check(err)
	}
}

func (m *mapping) stream(name string) jetstream.Stream {
	m.t.Helper()
	s, err := m.js.Stream(m.t.Context(), name)
	m.check(err)
	return s
}

// publish stores n messages in IN, on in.0, in.1, in.0 and so on.
func (m *mapping) publish(n int) {
	m.t.Helper()
	for i := range n {
		_, err := m.js.Publish(m.t.Context(), fmt.Sprintf("in.%d", i%2), nil)
		m.check(err)
	}
}

// position is what the header of a relayed message says.
type position struct {
	chain         string // 32 digits
	seq, previous uint64
	created       int64
	stored        int64
}

// relay writes the copies of some messages of IN, as a route does; change may make
// them something else.
func (m *mapping) relay(from, to uint64, change ...func(*position, *nats.Msg)) {
	m.t.Helper()
	in := m.stream("IN")
	for seq := from; seq <= to; seq++ {
		src, err := in.GetMsg(m.t.Context(), seq)
		m.check(err)
		p := position{strings.Repeat("a", 32), seq, 0, in.CachedInfo().Created.UnixNano(), src.Time.UnixNano()}
		msg := nats.NewMsg("sealed." + src.Subject)
		p.previous = m.last[p.chain]
		for _, c := range change {
			c(&p, msg)
		}
		m.last[p.chain] = p.seq
		msg.Header.Set(gateway.HeaderSource, fmt.Sprintf("%s:%d:%d:%d:%d:%s", p.chain, p.seq, p.previous, p.created, p.stored, base64.RawURLEncoding.EncodeToString(make([]byte, 32))))
		_, err = m.js.PublishMsg(m.t.Context(), msg)
		m.check(err)
	}
}

// consumer makes c on IN and acknowledges up to a sequence.
func (m *mapping) consumer(ack int, filters ...string) {
	m.t.Helper()
	c, err := m.js.CreateConsumer(m.t.Context(), "IN", jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy, FilterSubjects: filters})
	m.check(err)
	for range ack {
		msg, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		m.check(err)
		m.check(msg.DoubleAck(m.t.Context()))
	}
}

// run maps c, and returns the exit code, output and errors.
func (m *mapping) run(args ...string) (int, string, string) {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	all := append([]string{"consumers", "map", "IN/c", "OUT", "--server", m.srv.ClientURL()}, args...)
	code := cli.Main(m.t.Context(), all, strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// usual is ten messages, all relayed, of which c has acknowledged four.
func (m *mapping) usual() {
	m.t.Helper()
	m.streams("in.*", "sealed.in.*")
	m.publish(10)
	m.relay(1, 10)
	m.consumer(4)
}

// Every reason for which there is no twin, and that nothing is made then.
func TestConsumersMapRefuses(t *testing.T) {
	t.Parallel()
	create := func(m *mapping, cfg jetstream.ConsumerConfig) {
		m.t.Helper()
		_, err := m.js.CreateConsumer(m.t.Context(), "IN", cfg)
		m.check(err)
	}
	for name, c := range map[string]struct {
		setUp      func(*mapping)
		args       []string
		want, hint string
	}{
		"no stream": {func(*mapping) {}, nil, "stream not found", ""},
		"no relayed stream": {func(m *mapping) {
			m.usual()
			m.check(m.js.DeleteStream(m.t.Context(), "OUT"))
		}, nil, "stream not found", ""},
		"no consumer": {func(m *mapping) { m.streams("in.*", "sealed.in.*") }, nil, "consumer c of stream IN: ", "nats consumer ls IN"},
		"push consumer": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			nc := m.srv.Conn(m.t)
			_, err := nc.Request("$JS.API.CONSUMER.DURABLE.CREATE.IN.c", []byte(`{"stream_name":"IN","config":{"durable_name":"c","deliver_subject":"d","ack_policy":"explicit"}}`), 5*time.Second)
			m.check(err)
		}, nil, "c is a push consumer", "durable pull consumer"},
		"not durable": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			create(m, jetstream.ConsumerConfig{Name: "c", AckPolicy: jetstream.AckExplicitPolicy, InactiveThreshold: time.Hour})
		}, nil, "c is not durable", "ephemeral"},
		"not relayed": {func(m *mapping) {
			m.usual()
			cfg := m.stream("OUT").CachedInfo().Config
			cfg.Metadata = map[string]string{gateway.MetadataMode: gateway.ModeOpen}
			_, err := m.js.UpdateStream(m.t.Context(), cfg)
			m.check(err)
		}, nil, `has no mode of a relayed stream (keyweir-mode="open")`, "name the sealed stream of a route"},
		"nothing relayed": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(3)
			m.consumer(1)
		}, nil, "stream OUT holds no message", "let the route relay first"},
		"last one removed": {func(m *mapping) {
			m.usual()
			m.check(m.stream("OUT").DeleteMsg(m.t.Context(), 10))
		}, nil, "the last message of stream OUT was removed", "one more message"},
		"another source": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(3)
			m.relay(1, 3, func(p *position, _ *nats.Msg) { p.created++ })
			m.consumer(1)
		}, nil, "comes from a stream made", "deleted and made again"},
		"a stranger's last": {func(m *mapping) {
			m.usual()
			_, err := m.js.Publish(m.t.Context(), "sealed.in.0", nil)
			m.check(err)
		}, nil, "message 11 of stream OUT was not written by a route", "keyweir verify"},
		"a stranger's in between": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(4)
			m.relay(1, 2)
			_, err := m.js.Publish(m.t.Context(), "sealed.in.0", nil)
			m.check(err)
			m.relay(3, 4)
			m.consumer(2)
		}, nil, "message 3 of stream OUT was not written by a route", "keyweir verify"},
		"restored source": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(3)
			m.relay(1, 3, func(p *position, _ *nats.Msg) { p.stored-- })
			m.consumer(1)
		}, nil, "its relayed copy says", "find out who restored"},
		"another message at the place": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(4)
			m.relay(1, 4, func(p *position, _ *nats.Msg) {
				if p.seq == 2 {
					p.stored--
				}
			})
			m.consumer(1)
		}, nil, "message 2 of IN was stored", "find out who restored"},
		"subjects that do not fit": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(4)
			m.relay(1, 4, func(p *position, msg *nats.Msg) {
				if p.seq == 2 {
					msg.Subject = "sealed.in.5"
				}
			})
			m.consumer(1)
		}, nil, "do not fit", "keyweir verify"},
		"nothing in common": {func(m *mapping) {
			m.streams("in.*", "sealed.>")
			m.publish(1)
			m.relay(1, 1, func(_ *position, msg *nats.Msg) { msg.Subject = "sealed.other" })
			m.consumer(0)
		}, nil, "have no part of the subject in common", "what the route relays"},
		"nothing shows how": {func(m *mapping) {
			m.streams("in.one", "sealed.two")
			_, err := m.js.Publish(m.t.Context(), "in.one", nil)
			m.check(err)
			m.relay(1, 1, func(_ *position, msg *nats.Msg) { msg.Subject = "sealed.two" })
			m.consumer(0)
			m.check(m.stream("IN").Purge(m.t.Context()))
		}, nil, "nothing shows how subjects of IN become subjects of OUT", "at least one message first"},
		"not caught up": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(6)
			m.relay(1, 3)
			m.consumer(5)
		}, nil, "acknowledged up to 5 of IN, and only 3 is relayed yet", "caught up"},
		"expired": {func(m *mapping) {
			m.usual()
			m.check(m.stream("OUT").Purge(m.t.Context(), jetstream.WithPurgeSequence(8)))
		}, nil, "what was relayed of 5 to 7 has expired from OUT", "the twin would skip them"},
		"began later": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(10)
			m.relay(7, 10)
			m.consumer(4)
		}, nil, "the route began with 7: message 5 was never relayed", "let a route begin with it"},
		"neighbours that do not follow": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(10)
			m.relay(1, 4)
			m.relay(6, 10, func(p *position, _ *nats.Msg) {
				if p.seq == 6 {
					p.previous = 5
				}
			})
			m.consumer(5)
		}, nil, "message 5 of OUT follows 5 of IN, and the message before it is 4", "keyweir verify"},
		"reads more than is relayed": {func(m *mapping) {
			m.streams("in.*", "sealed.in.0")
			m.publish(10)
			for seq := uint64(1); seq <= 9; seq += 2 {
				m.relay(seq, seq)
			}
			m.consumer(1)
		}, nil, "the consumer reads in.*, and OUT holds only what came from in.0", "all that the consumer reads"},
		"filter that is more than is relayed": {func(m *mapping) {
			m.streams("in.*", "sealed.in.0")
			m.publish(10)
			m.relay(1, 1)
			m.consumer(0, "in.0", "in.1")
		}, nil, "the consumer reads in.1, and OUT holds only", "all that the consumer reads"},
		"in use": {func(m *mapping) {
			m.usual()
			c, err := m.js.Consumer(m.t.Context(), "IN", "c")
			m.check(err)
			for range 6 { // so that the reader waits
				msg, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
				m.check(err)
				m.check(msg.DoubleAck(m.t.Context()))
			}
			it, err := c.Messages()
			m.check(err)
			m.t.Cleanup(it.Stop)
			go func() { _, _ = it.Next() }()
			natstest.Eventually(m.t, 30*time.Second, func() error {
				if info, err := c.Info(m.t.Context()); err != nil || info.NumWaiting == 0 {
					return fmt.Errorf("nobody waits: %v", err)
				}
				return nil
			})
		}, nil, "consumer c of stream IN is in use", "--in-use"},
		"taken name": {func(m *mapping) {
			m.usual()
			_, err := m.js.CreateConsumer(m.t.Context(), "OUT", jetstream.ConsumerConfig{Durable: "other", AckPolicy: jetstream.AckNonePolicy})
			m.check(err)
		}, []string{"--name", "other"}, "creating consumer other on stream OUT", "give another --name"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMapping(t)
			c.setUp(m)
			before := m.consumers()
			code, out, errs := m.run(c.args...)
			if code != 1 || out != "" || !strings.Contains(errs, c.want) || !strings.Contains(errs, c.hint) {
				t.Errorf("exit code %d, output %q, errors:\n%swant %q, and in the hint %q", code, out, errs, c.want, c.hint)
			}
			if after := m.consumers(); !slices.Equal(before, after) {
				t.Errorf("consumers of OUT were %v, are %v", before, after)
			}
		})
	}
}

// consumers are those of OUT.
func (m *mapping) consumers() (names []string) {
	m.t.Helper()
	s, err := m.js.Stream(m.t.Context(), "OUT")
	if err != nil {
		return nil
	}
	l := s.ConsumerNames(m.t.Context())
	for n := range l.Name() {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// What is not refused: an earlier chain that relayed the same messages, holes that
// were never the consumer's, and a consumer in use where that is asked for.
func TestConsumersMapPlaces(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		setUp func(*mapping)
		args  []string
		want  []string
	}{
		"the usual": {(*mapping).usual, nil, []string{"OUT/c, begins at 5", "before it  4, which is 4 of IN"}},
		"an earlier chain": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(6)
			m.relay(1, 6)
			m.relay(3, 6, func(p *position, _ *nats.Msg) { p.chain = strings.Repeat("b", 32); p.previous = m.last[p.chain] })
			m.consumer(4)
		}, nil, []string{"OUT/c, begins at 9"}},
		"all acknowledged": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(6)
			m.relay(1, 6)
			m.consumer(6)
		}, nil, []string{"OUT/c, begins at 7"}},
		"began later, nothing left before": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(6)
			m.consumer(2)
			m.relay(5, 6)
			m.check(m.stream("IN").Purge(m.t.Context(), jetstream.WithPurgeSequence(5)))
		}, nil, []string{"everything up to 4 is acknowledged", "begins at 1"}},
		"filters": {func(m *mapping) {
			m.streams("in.*", "sealed.in.*")
			m.publish(6)
			m.relay(1, 6)
			m.consumer(1, "in.0", "in.1")
		}, nil, []string{"sealed.in.0", "sealed.in.1", "begins at 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMapping(t)
			c.setUp(m)
			code, out, errs := m.run(c.args...)
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in\n%s", w, out)
				}
			}
			if code != 0 || !slices.Equal(m.consumers(), []string{"c"}) {
				t.Errorf("exit code %d, consumers %v, errors %s", code, m.consumers(), errs)
			}
		})
	}
}
