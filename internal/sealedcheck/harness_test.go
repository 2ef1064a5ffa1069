package sealedcheck_test

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/internal/devstack"
	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/internal/sealedcheck"
	"github.com/keyweir/keyweir/keysvc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const count = 40 // genuine messages

// genuine is what a real gateway stored: 40 messages of two scopes, as they stand
// in the stream. The stack that made them is gone.
var genuine = sync.OnceValues(func() ([]*nats.Msg, error) {
	var ms []*nats.Msg
	return ms, withStack(func(js jetstream.JetStream) error {
		s, err := js.Stream(timeoutContext(), "SEALED")
		if err != nil {
			return err
		}
		for seq := uint64(1); seq <= count; seq++ {
			m, err := s.GetMsg(timeoutContext(), seq)
			if err != nil {
				return err
			}
			ms = append(ms, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
		}
		return nil
	})
})

// withStack runs f with the hub of a whole stack whose gateway has sealed 40 messages.
func withStack(f func(jetstream.JetStream) error) (err error) {
	ctx := timeoutContext()
	stack, err := devstack.Start(ctx, devstack.Options{
		Source: "IN", Sealed: "SEALED", Subjects: []string{"in.>"}, SealedSubject: "sealed.>",
		Scopes: []keysvc.ScopeRule{{Match: "in.*", Scope: "tenant/{{wildcard(1)}}"}},
	})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := stack.Close(timeoutContext()); err == nil {
			err = cerr
		}
	}()
	nc, err := stack.ConnectHub()
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	for i := range count {
		if _, err := js.Publish(ctx, "in."+string(rune('a'+i%2)), fmt.Append(nil, "message ", i)); err != nil {
			return err
		}
	}
	for end := time.Now().Add(20 * time.Second); ; {
		if s, err := js.Stream(ctx, "SEALED"); err == nil && s.CachedInfo().State.LastSeq == count {
			return f(js)
		}
		if time.Now().After(end) {
			return fmt.Errorf("the gateway did not seal %d messages", count)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// messages returns copies of the genuine messages, to be damaged.
func messages(t *testing.T) []*nats.Msg {
	t.Helper()
	ms, err := genuine()
	if err != nil {
		t.Fatalf("making a sealed stream: %v", err)
	}
	out := make([]*nats.Msg, len(ms))
	for i, m := range ms {
		out[i] = clone(m)
	}
	return out
}

func clone(m *nats.Msg) *nats.Msg {
	h := nats.Header{}
	for k, v := range m.Header {
		if !strings.HasPrefix(k, "Nats-") { // what the gateway expected of its own stream
			h[k] = slices.Clone(v)
		}
	}
	return &nats.Msg{Subject: m.Subject, Header: h, Data: slices.Clone(m.Data)}
}

// source edits one field of the header Keyweir-Source: 0 chain, 1 sequence,
// 2 previous, 3 created, 4 timestamp, 5 MAC.
func source(m *nats.Msg, field int, value any) {
	f := strings.Split(m.Header["Keyweir-Source"][0], ":")
	f[field] = fmt.Sprint(value)
	m.Header["Keyweir-Source"] = []string{strings.Join(f, ":")}
}

// setSource makes headers for a message sealed elsewhere.
func setSource(m *nats.Msg, chain string, seq, previous uint64) {
	mac := make([]byte, 32)
	rand.Read(mac)
	m.Header = nats.Header{"Keyweir": {"1"}, "Keyweir-Source": {
		fmt.Sprintf("%s:%d:%d:1:1:%s", chain, seq, previous, base64.RawURLEncoding.EncodeToString(mac)),
	}}
}

// server is shared by the tests of this package; each makes streams of its own.
type server struct {
	t  *testing.T
	nc *nats.Conn
	js jetstream.JetStream
	n  int
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := natstest.New(t)
	nc := s.Conn(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return &server{t: t, nc: nc, js: js}
}

// stream stores messages as they are, in a stream that a gateway could have made
// but for change.
func (s *server) stream(ms []*nats.Msg, change ...func(*jetstream.StreamConfig)) jetstream.Stream {
	s.t.Helper()
	s.n++
	cfg := jetstream.StreamConfig{
		Name: fmt.Sprintf("S%d", s.n), Subjects: []string{fmt.Sprintf("s%d.>", s.n)}, Replicas: 1,
		Metadata: map[string]string{"keyweir-mode": "relayed", "keyweir-route": "r"},
	}
	for _, f := range change {
		f(&cfg)
	}
	if _, err := s.js.CreateStream(s.t.Context(), cfg); err != nil {
		s.t.Fatalf("creating stream: %v", err)
	}
	for _, m := range ms {
		m := &nats.Msg{Subject: fmt.Sprintf("s%d.%s", s.n, m.Subject), Header: m.Header, Data: m.Data}
		if _, err := s.js.PublishMsgAsync(m); err != nil {
			s.t.Fatalf("publishing: %v", err)
		}
	}
	select {
	case <-s.js.PublishAsyncComplete():
	case <-time.After(20 * time.Second):
		s.t.Fatal("publishing did not complete")
	}
	st, err := s.js.Stream(s.t.Context(), cfg.Name)
	if err != nil {
		s.t.Fatal(err)
	}
	if got := st.CachedInfo().State.LastSeq; got != uint64(len(ms)) {
		s.t.Fatalf("stored %d of %d messages", got, len(ms))
	}
	return st
}

func (s *server) check(st jetstream.Stream, change ...func(*sealedcheck.Options)) *sealedcheck.Report {
	s.t.Helper()
	o := sealedcheck.Options{Stream: st.CachedInfo().Config.Name}
	for _, f := range change {
		f(&o)
	}
	r, err := sealedcheck.Check(s.t.Context(), s.nc, o)
	if err != nil {
		s.t.Fatalf("Check: %v", err)
	}
	return r
}
