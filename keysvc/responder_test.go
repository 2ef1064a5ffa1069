package keysvc_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/keyweir/keyweir/internal/natstest"
	"github.com/keyweir/keyweir/keysvc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const serviceName = "test"

// world is one server, one requester and one service that follows a script.
type world struct {
	nats               *natstest.Server
	nc                 *nats.Conn // of the client
	requester, service keysvc.Identity
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s := natstest.New(t)
	w := &world{nats: s, nc: s.Conn(t), requester: newIdentity(t, keysvc.KindRequester), service: newIdentity(t, keysvc.KindService)}
	t.Cleanup(func() {
		if n := w.nc.NumSubscriptions(); n != 0 && !w.nc.IsClosed() {
			t.Errorf("the client left %d subscriptions behind", n)
		}
	})
	return w
}

// client returns a client, with changes.
func (w *world) client(t *testing.T, change ...func(*keysvc.ClientConfig)) *keysvc.Client {
	t.Helper()
	cfg := keysvc.ClientConfig{
		Conn: w.nc, Service: serviceName, Pins: []string{w.service.Public()}, Identity: w.requester,
		Timeout: 20 * time.Second, Suite: keysvc.SuiteX25519,
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := keysvc.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// asked is one request that reached the service.
type asked struct {
	n   int // from 0
	msg *nats.Msg
	req *keysvc.Request // nil if err
	err error
	at  time.Time
}

// responder is a service whose script is a function.
type responder struct {
	t  *testing.T
	id keysvc.Identity
	nc *nats.Conn

	mu    sync.Mutex
	asked []asked
}

// respond starts a responder on every operation. The script runs in order of
// arrival and may keep what it is given.
func (w *world) respond(t *testing.T, id keysvc.Identity, script func(*responder, asked)) *responder {
	t.Helper()
	r := &responder{t: t, id: id, nc: w.nats.Conn(t)}
	started := time.Now().Add(-time.Minute)
	_, err := r.nc.Subscribe(keysvc.Subject(serviceName, "*"), func(m *nats.Msg) {
		a := asked{msg: m, at: time.Now()}
		a.req, a.err = keysvc.DecodeRequest(m.Data, keysvc.RequestCheck{
			Op: m.Subject[strings.LastIndex(m.Subject, ".")+1:], Audience: id.Public(), Now: a.at, NotBefore: started,
			Enrolled: func(p string) bool { return p == w.requester.Public() },
		})
		r.mu.Lock()
		a.n = len(r.asked)
		r.asked = append(r.asked, a)
		r.mu.Unlock()
		script(r, a)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return r
}

// requests returns what arrived so far.
func (r *responder) requests() []asked {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

// send answers a with whatever bytes.
func (r *responder) send(a asked, data []byte) {
	// The connection ends with the test, perhaps before a client's last try is answered.
	if err := a.msg.Respond(data); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		r.t.Errorf("responding: %v", err)
	}
}

// ok answers a with a result.
func (r *responder) ok(a asked, result any) {
	if a.err != nil {
		r.t.Errorf("request %d does not verify: %v", a.n, a.err)
		return
	}
	data, err := keysvc.EncodeReply(r.id, "one", a.req, result)
	if err != nil {
		r.t.Error(err)
		return
	}
	r.send(a, data)
}

// fail answers a with an error.
func (r *responder) fail(a asked, err error) {
	data, e := keysvc.EncodeError(r.id, "one", keysvc.RequestHash(a.msg.Data), err)
	if e != nil {
		r.t.Error(e)
		return
	}
	r.send(a, data)
}

// status is the result the scripts give for status.
var status = keysvc.Status{Service: serviceName, Instance: "one", Ops: []string{}, Suites: []string{}}

// within is a context that a broken test runs into.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
