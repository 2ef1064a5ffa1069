package streams_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
	"github.com/keyweir/keyweir/streams/streamstest"
)

func TestOpen(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	o := w.opener(t)
	c := w.consumer(t)
	before := time.Now().Add(-time.Second)
	headers := nats.Header{"Trace": {"a", "b"}, "nats-like": {"x"}, jetstream.MsgIDHeader: {"order-7"}}
	w.publish(t, w.sealer.Seal(t, "orders.acme.new", nil, nil))
	w.publish(t, w.sealer.Seal(t, "orders.acme.new", headers, []byte("hello")))

	if _, err := c.Next(); err != nil {
		t.Fatal(err)
	}
	raw, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	m, err := o.Open(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject() != "orders.acme.new" || string(m.Data()) != "hello" || m.SealedSubject() != "sealed.orders.acme.new" {
		t.Errorf("opened %q on %q, sealed on %q", m.Data(), m.Subject(), m.SealedSubject())
	}
	if diff := cmp.Diff(headers, m.Headers()); diff != "" {
		t.Errorf("headers differ (-published +opened):\n%s", diff)
	}
	if m.Sequence() != 2 || m.Previous() != 1 || m.Gap() != 0 || m.Chain() != w.sealer.Chain() || m.Layered() {
		t.Errorf("order evidence: sequence %d, previous %d, gap %d, chain %v", m.Sequence(), m.Previous(), m.Gap(), m.Chain())
	}
	if _, kept := m.PreviousOnSubject(); kept {
		t.Error("PreviousOnSubject is kept, want not")
	}
	if m.KeyID() != w.sealer.KeyID() || m.Scope() != "tenant/acme" || m.Published().Before(before) || m.Published().After(time.Now()) {
		t.Errorf("key %v, scope %q, published %v", m.KeyID(), m.Scope(), m.Published())
	}
	meta, err := m.Metadata()
	if err != nil || meta.Sequence.Stream != 2 || meta.Stream != streamName {
		t.Errorf("Metadata() = %+v, %v", meta, err)
	}
	if m.Reply() != raw.Reply() {
		t.Errorf("Reply() = %q, want the delivery's %q", m.Reply(), raw.Reply())
	}
	if err := errors.Join(m.InProgress(), m.DoubleAck(t.Context())); err != nil {
		t.Errorf("acknowledging: %v", err)
	}
	if i := info(t, c); i.NumAckPending != 1 || i.AckFloor.Stream != 0 {
		t.Errorf("%d messages unacknowledged, want the first alone", i.NumAckPending)
	}
}

// Whatever is printed of a message or an opener, neither payload nor headers are
// in it.
func TestRedaction(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	o := w.opener(t)
	c := w.consumer(t)
	const secret, header = "CANARY-PAYLOAD", "CANARY-HEADER"
	msg := w.sealer.Seal(t, "x.orders", nats.Header{header: {header}}, []byte(secret))
	w.publish(t, msg)
	raw, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	m, err := o.Open(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("seen", "m", m, "value", *m, "opener", o)
	out := []string{log.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T"} {
		out = append(out, fmt.Sprintf(verb, m), fmt.Sprintf(verb, *m), fmt.Sprintf(verb, o), fmt.Sprintf(verb, struct{ M *streams.Message }{m}))
	}
	j, err := json.Marshal(map[string]any{"m": m, "v": *m, "o": o})
	out = append(out, string(j), fmt.Sprint(err))
	for _, s := range out {
		for _, canary := range []string{secret, header, fmt.Sprintf("%x", secret), fmt.Sprint([]byte(secret))} {
			if strings.Contains(strings.ToLower(s), strings.ToLower(strings.Trim(canary, "[]"))) {
				t.Errorf("%q shows %q", s, canary)
			}
		}
	}
	if fmt.Sprint(streams.Message{}) == "" {
		t.Error("the zero Message prints as nothing")
	}
}

// badMessage is one way in which a message does not open.
type badMessage struct {
	name string
	want error
	// make returns the message; it may use other sealers and change cfg.
	make func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg
}

func resubject(m *nats.Msg, subject string) *nats.Msg {
	m.Subject = subject
	return m
}

var badMessages = []badMessage{
	{"plaintext", streams.ErrPlaintext, func(*testing.T, *world, *streams.Config) *nats.Msg {
		return &nats.Msg{Subject: "sealed.orders.acme.new", Data: []byte(`{"amount": 12}`)}
	}},
	{"empty", streams.ErrPlaintext, func(*testing.T, *world, *streams.Config) *nats.Msg {
		return &nats.Msg{Subject: "sealed.orders.acme.new"}
	}},
	{"plaintext that begins like an envelope", streams.ErrTampered, func(*testing.T, *world, *streams.Config) *nats.Msg {
		return &nats.Msg{Subject: "sealed.orders.acme.new", Data: []byte("KW\x01\x01 and so on")}
	}},
	{"ciphertext changed", streams.ErrTampered, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		m := w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
		m.Data[len(m.Data)-20] ^= 1
		return m
	}},
	{"truncated", streams.ErrTampered, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		m := w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
		m.Data = m.Data[:len(m.Data)-1]
		return m
	}},
	{"core changed", streams.ErrTampered, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		m := w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
		i := bytes.Index(m.Data, []byte("tenant/acme"))
		copy(m.Data[i:], "tenant/evil")
		return m
	}},
	{"wraps changed", streams.ErrTampered, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		m := w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
		i := bytes.Index(m.Data, []byte("not a real wrap"))
		copy(m.Data[i:], "now")
		return m
	}},
	{"record of another key", streams.ErrTampered, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		other := w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"})
		a, b := w.sealer.Seal(t, "orders.acme.new", nil, []byte("x")), other.Seal(t, "orders.acme.new", nil, []byte("x"))
		ea, _ := envelope.Parse(a.Data)
		eb, _ := envelope.Parse(b.Data)
		ea.Record = eb.Record
		a.Data = ea.Append(nil)
		return a
	}},
	{"version of the future", streams.ErrUnsupported, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		m := w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
		m.Data[2] = 2
		return m
	}},
	{"suite of the future", streams.ErrUnsupported, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		m := w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
		m.Data[3] = 2
		return m
	}},
	{"suite not accepted", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.Suites = []streams.Suite{77}
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"relocated", streams.ErrRelocated, func(t *testing.T, w *world, _ *streams.Config) *nats.Msg {
		return resubject(w.sealer.Seal(t, "orders.acme.new", nil, []byte("x")), "sealed.orders.acme.paid")
	}},
	{"subject unknown to the mapping", streams.ErrRelocated, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.Subjects = func(string) string { return "" }
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"nothing accepted", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept = streams.Accept{}
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"no scope rules", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.ScopeRules = nil
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"scope not accepted", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		return w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/globex"}).Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"key of another tenant", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.Rules[0].Scopes = []string{"tenant/*"}
		cfg.Accept.ScopeRules = rules(t, "orders.*.>", "tenant/{{wildcard(1)}}")
		return w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/globex"}).Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"no rule for the subject", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.ScopeRules = rules(t, "invoices.>", "tenant/acme")
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"scheme not accepted", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.Rules[0].Authorities = [][]string{{"test", "customer"}}
		cfg.Accept.Rules[0].Schemes = []streams.Scheme{streams.SchemeSplit}
		s := streamstest.Sealing{Scope: "tenant/acme", Authorities: []string{"test", "customer"}, Scheme: streams.SchemeAny}
		return w.keys.NewSealer(t, s).Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"authorities in another order", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.Rules[0].Authorities = [][]string{{"test", "customer"}}
		cfg.Accept.Rules[0].Schemes = []streams.Scheme{streams.SchemeSplit}
		s := streamstest.Sealing{Scope: "tenant/acme", Authorities: []string{"customer", "test"}}
		return w.keys.NewSealer(t, s).Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"an authority fewer", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.Rules[0].Authorities = [][]string{{"test", "customer"}}
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"first rule decides", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		loose := cfg.Accept.Rules[0]
		loose.Scopes = []string{"*"}
		strict := streams.AcceptRule{Scopes: []string{"tenant/acme"}, Schemes: []streams.Scheme{streams.SchemeSplit}, Authorities: [][]string{{"a", "b"}}}
		cfg.Accept.Rules = []streams.AcceptRule{strict, loose}
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"chain not accepted", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		cfg.Accept.Chains = []streams.ChainID{{1}}
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"by reference, scope not accepted", streams.ErrNotAccepted, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		s := streamstest.Sealing{Scope: "tenant/globex", Record: "reference"}
		return w.keys.NewSealer(t, s).Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"unknown key", streams.ErrUnknownKey, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		other := streamstest.NewKeys().NewSealer(t, streamstest.Sealing{Scope: "tenant/acme", Record: "reference"})
		return other.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"key destroyed", streams.ErrDestroyed, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		w.keys.Refuse("tenant/acme", keysvc.ErrDestroyed)
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"denied", streams.ErrDenied, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		w.keys.Refuse("tenant/acme", keysvc.ErrDenied)
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"suspended", streams.ErrSuspended, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		w.keys.Refuse("tenant/acme", keysvc.ErrSuspended)
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"key service away", streams.ErrUnavailable, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		w.keys.Refuse("tenant/acme", keysvc.ErrUnavailable)
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
	{"clock skew", streams.ErrClockSkew, func(t *testing.T, w *world, cfg *streams.Config) *nats.Msg {
		w.keys.Refuse("tenant/acme", &keysvc.ClockSkewError{Offset: time.Hour})
		return w.sealer.Seal(t, "orders.acme.new", nil, []byte("x"))
	}},
}

// Every class, as a delivery, read by sequence, and as bytes.
func TestOpenErrors(t *testing.T) {
	server := newWorld(t, streamstest.Sealing{})
	c := server.consumer(t)
	s, err := server.js.Stream(t.Context(), streamName)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range badMessages {
		t.Run(tc.name, func(t *testing.T) {
			w := *server
			w.keys = streamstest.NewKeys()
			w.sealer = w.keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/acme"})
			cfg := streams.Config{Keys: w.keys, Accept: w.sealer.Accept()}
			bad := tc.make(t, &w, &cfg)
			o := w.opener(t, func(c *streams.Config) { *c = cfg })
			w.publish(t, bad)
			raw, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Clone(raw.Data())

			m, err := o.Open(t.Context(), raw)
			oe := wantError(t, err, tc.want)
			meta, _ := raw.Metadata()
			if m != nil || oe.Stream != streamName || oe.Consumer != "reader" || oe.Subject != bad.Subject || oe.Sequence != meta.Sequence.Stream || oe.Sealed() != raw {
				t.Errorf("Open = %v, error with coordinates %+v", m, oe)
			}
			if info, err := streams.Inspect(data); err == nil && oe.KeyID.String() != info.KeyID {
				t.Errorf("error names key %v, the message %v", oe.KeyID, info.KeyID)
			}
			stored, err := s.GetMsg(t.Context(), meta.Sequence.Stream)
			if err != nil {
				t.Fatal(err)
			}
			m, err = o.OpenRaw(t.Context(), streamName, stored)
			oe = wantError(t, err, tc.want)
			if m != nil || oe.Stream != streamName || oe.Sequence != meta.Sequence.Stream || oe.Subject != bad.Subject {
				t.Errorf("OpenRaw = %v, error with coordinates %+v", m, oe)
			}
			if tc.name != "subject unknown to the mapping" { // OpenBytes has no mapping
				b, err := o.OpenBytes(t.Context(), bad.Subject, data)
				wantError(t, err, tc.want)
				if b != nil {
					t.Error("OpenBytes returns data with an error")
				}
			}
			if !bytes.Equal(data, raw.Data()) {
				t.Error("opening wrote into the message")
			}
			if err := raw.Ack(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOpenRaw(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	o := w.opener(t)
	w.seal(t, 3)
	s, err := w.js.Stream(t.Context(), streamName)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := s.GetMsg(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	m, err := o.OpenRaw(t.Context(), streamName, stored)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := m.Metadata()
	if err != nil || meta.Sequence.Stream != 2 || meta.Stream != streamName || !meta.Timestamp.Equal(stored.Time) {
		t.Errorf("Metadata() = %+v, %v", meta, err)
	}
	if string(m.Data()) != "1" || m.Reply() != "" {
		t.Errorf("Data() = %q, Reply() = %q", m.Data(), m.Reply())
	}
	for _, err := range []error{m.Ack(), m.Nak(), m.NakWithDelay(1), m.Term(), m.TermWithReason("x"), m.InProgress(), m.DoubleAck(t.Context())} {
		if !errors.Is(err, jetstream.ErrMsgNotBound) {
			t.Errorf("settling a message without delivery: %v, want ErrMsgNotBound", err)
		}
	}
}

func TestOpenBytes(t *testing.T) {
	keys := streamstest.NewKeys()
	s := keys.NewSealer(t, streamstest.Sealing{Scope: "x"})
	accept := s.Accept()
	accept.Subjects = func(string) string { return "elsewhere" }
	o, err := streams.New(streams.Config{Keys: keys, Accept: accept})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	m := s.Seal(t, "a.b", nil, []byte("hello"))
	b, err := o.OpenBytes(t.Context(), "sealed.a.b", m.Data)
	if err != nil || string(b) != "hello" {
		t.Errorf("OpenBytes = %q, %v", b, err)
	}
	for _, location := range []string{"", "a.b", "sealed.a.", "sealed.a.b.c", "elsewhere"} {
		if b, err := o.OpenBytes(t.Context(), location, m.Data); !errors.Is(err, streams.ErrRelocated) || b != nil {
			t.Errorf("OpenBytes at %q = %q, %v, want ErrRelocated", location, b, err)
		}
	}
}

// A message that a copier publishes on another subject is refused; through a
// mirror with a transform it opens with the mapping and only with it.
func TestRelocation(t *testing.T) {
	w := newWorld(t, streamstest.Sealing{})
	_, err := w.js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "MIRROR", Storage: jetstream.MemoryStorage,
		Mirror: &jetstream.StreamSource{
			Name:              streamName,
			SubjectTransforms: []jetstream.SubjectTransformConfig{{Source: "sealed.>", Destination: "eu.sealed.>"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.seal(t, 1)
	c, err := w.js.CreateConsumer(t.Context(), "MIRROR", jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.Next()
	if err != nil || raw.Subject() != "eu.sealed.orders.acme.new" {
		t.Fatalf("mirror delivers %v, %v", raw, err)
	}
	_, err = w.opener(t).Open(t.Context(), raw)
	wantError(t, err, streams.ErrRelocated)

	mapped := w.opener(t, func(c *streams.Config) {
		c.Accept.Subjects = func(s string) string { return strings.TrimPrefix(s, "eu.") }
	})
	m, err := mapped.Open(t.Context(), raw)
	if err != nil || m.Subject() != "orders.acme.new" || m.SealedSubject() != "sealed.orders.acme.new" {
		t.Errorf("Open with mapping = %v, %v", m, err)
	}
}

// No key is asked for that the reader would not accept.
func TestNoKeyOutsideAccept(t *testing.T) {
	keys := streamstest.NewKeys()
	s := keys.NewSealer(t, streamstest.Sealing{Scope: "tenant/globex", Record: "inline"})
	accept := s.Accept()
	accept.Rules[0].Scopes = []string{"tenant/acme"}
	o, err := streams.New(streams.Config{Keys: keys, Accept: accept})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	m := s.Seal(t, "a", nil, nil)
	_, err = o.OpenBytes(t.Context(), m.Subject, m.Data)
	wantError(t, err, streams.ErrNotAccepted)
	if calls, _ := keys.Calls(); calls != 0 {
		t.Errorf("%d calls for a scope that is not accepted", calls)
	}
}

// Every message owns its bytes.
func TestMessagesShareNothing(t *testing.T) {
	keys := streamstest.NewKeys()
	s := keys.NewSealer(t, streamstest.Sealing{Scope: "x"})
	o, err := streams.New(streams.Config{Keys: keys, Accept: s.Accept()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	var opened [][]byte
	for i := range 50 {
		m := s.Seal(t, "a", nil, fmt.Append(nil, "payload ", i))
		b, err := o.OpenBytes(t.Context(), m.Subject, m.Data)
		if err != nil {
			t.Fatal(err)
		}
		clear(m.Data)
		opened = append(opened, b)
	}
	for i, b := range opened {
		if want := fmt.Sprint("payload ", i); string(b) != want {
			t.Errorf("message %d holds %q, want %q", i, b, want)
		}
		_ = append(b, "overwritten by an append of the application"...)
	}
}

func TestNewChecks(t *testing.T) {
	keys := streamstest.NewKeys()
	for name, cfg := range map[string]streams.Config{
		"no keys":             {},
		"negative Fetch":      {Keys: keys, Fetch: -1},
		"negative FetchBytes": {Keys: keys, FetchBytes: -1},
		"negative MaxKeys":    {Keys: keys, MaxKeys: -1},
		"negative KeyTimeout": {Keys: keys, KeyTimeout: -1},
		"negative threshold":  {Keys: keys, Accept: streams.Accept{Rules: []streams.AcceptRule{{Threshold: -1}}}},
	} {
		if o, err := streams.New(cfg); err == nil || o != nil {
			t.Errorf("New with %s = %v, %v", name, o, err)
		}
	}
	o, err := streams.New(streams.Config{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(o.Close(), o.Close()); err != nil {
		t.Error(err)
	}
	m := keys.NewSealer(t, streamstest.Sealing{Scope: "x"}).Seal(t, "a", nil, nil)
	_, err = o.OpenBytes(t.Context(), m.Subject, m.Data)
	wantError(t, err, streams.ErrClosed)
}

// Every changed bit, every truncation and an extension of an envelope is
// refused, whether the key is held or not, and gives no data.
func TestEveryBit(t *testing.T) {
	for _, cfg := range []streamstest.Sealing{
		{Scope: "x", Record: "inline"}, {Scope: "x", Record: "reference", RandomNonce: true},
	} {
		for _, warm := range []bool{true, false} {
			b := newBench(t, cfg)
			m := b.message(t)
			refused := func(what string, at int, data []byte) {
				t.Helper()
				got, err := b.o.OpenBytes(t.Context(), m.Subject, data)
				if err == nil || got != nil {
					t.Errorf("%s record, warm %v: %s at %d: OpenBytes = %q, %v", cfg.Record, warm, what, at, got, err)
				}
			}
			if warm {
				must(t, b.open(t, m))
			}
			for i := range len(m.Data) * 8 {
				bad := bytes.Clone(m.Data)
				bad[i/8] ^= 1 << (i % 8)
				refused("bit", i, bad)
			}
			for i := range m.Data {
				refused("cut", i, bytes.Clone(m.Data[:i]))
			}
			refused("extension", len(m.Data), append(bytes.Clone(m.Data), 0))
			must(t, b.open(t, m))
			must(t, b.o.Close())
		}
	}
}
