package keysvc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/keysvc"
)

func TestNewClientRefused(t *testing.T) {
	requester, service := newIdentity(t, keysvc.KindRequester), newIdentity(t, keysvc.KindService)
	_, seed, err := keysvc.NewIdentity(keysvc.KindService)
	if err != nil {
		t.Fatal(err)
	}
	good := keysvc.ClientConfig{Conn: new(nats.Conn), Service: "prod", Pins: []string{service.Public()}, Identity: requester}
	if _, err := keysvc.NewClient(good); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*keysvc.ClientConfig)
		err    error
	}{
		"no connection":       {func(c *keysvc.ClientConfig) { c.Conn = nil }, keysvc.ErrInvalid},
		"no identity":         {func(c *keysvc.ClientConfig) { c.Identity = nil }, keysvc.ErrInvalid},
		"service as identity": {func(c *keysvc.ClientConfig) { c.Identity = service }, keysvc.ErrInvalid},
		"no service":          {func(c *keysvc.ClientConfig) { c.Service = "" }, keysvc.ErrInvalid},
		"service of tokens":   {func(c *keysvc.ClientConfig) { c.Service = "a.b" }, keysvc.ErrInvalid},
		"service with >":      {func(c *keysvc.ClientConfig) { c.Service = ">" }, keysvc.ErrInvalid},
		"no pins":             {func(c *keysvc.ClientConfig) { c.Pins = nil }, keysvc.ErrInvalid},
		"empty pin":           {func(c *keysvc.ClientConfig) { c.Pins = []string{""} }, keysvc.ErrInvalid},
		"requester as pin":    {func(c *keysvc.ClientConfig) { c.Pins = []string{requester.Public()} }, keysvc.ErrInvalid},
		"second pin wrong":    {func(c *keysvc.ClientConfig) { c.Pins = append(c.Pins[:1:1], "N") }, keysvc.ErrInvalid},
		"seed as pin":         {func(c *keysvc.ClientConfig) { c.Pins = []string{string(seed)} }, keysvc.ErrInvalid},
		"negative timeout":    {func(c *keysvc.ClientConfig) { c.Timeout = -1 }, keysvc.ErrInvalid},
		"unknown suite":       {func(c *keysvc.ClientConfig) { c.Suite = "rot13" }, keysvc.ErrUnsupported},
	} {
		cfg := good
		tt.change(&cfg)
		c, err := keysvc.NewClient(cfg)
		if c != nil || !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, %v; want %v", name, c, err, tt.err)
			continue
		}
		checkHidden(t, name, printed(err), seed, seed[4:20])
	}
}

// TestNoResponders: the client tries again, each time with another nonce, and
// says so in time when nobody comes.
func TestNoResponders(t *testing.T) {
	w := newWorld(t)
	spy := w.nats.Conn(t)
	seen := make(chan *nats.Msg, 64)
	start := time.Now()
	_, err := w.client(t).Status(within(t, 900*time.Millisecond))
	if took := time.Since(start); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if !errors.Is(err, keysvc.ErrUnavailable) || !errors.Is(err, nats.ErrNoResponders) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want ErrUnavailable because of ErrNoResponders and the deadline", err)
	}

	// A service that says nothing: it only counts the requests.
	if _, err := spy.ChanSubscribe("keyweir.v1.test.status", seen); err != nil {
		t.Fatal(err)
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	_, err = w.client(t).Status(within(t, 1200*time.Millisecond))
	if !errors.Is(err, keysvc.ErrUnavailable) || errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("error is %v, want ErrUnavailable without an answer", err)
	}
	nonces := map[string]bool{}
	n := len(seen)
	for range n {
		r, err := keysvc.DecodeRequest((<-seen).Data, keysvc.RequestCheck{
			Op: "status", Audience: w.service.Public(), Now: time.Now(), Enrolled: func(string) bool { return true },
		})
		if err != nil {
			t.Fatal(err)
		}
		nonces[string(r.Nonce)] = true
	}
	if n < 2 || n > 4 || len(nonces) != n {
		t.Errorf("%d tries with %d nonces in 1.2 s, want 2 to 4, all different", n, len(nonces))
	}
}

// TestServiceComesUp starts the service while a call waits for it.
func TestServiceComesUp(t *testing.T) {
	w := newWorld(t)
	spy := w.nats.Conn(t)
	first := make(chan struct{}, 64)
	sub, err := spy.Subscribe("keyweir.v1.test.status", func(*nats.Msg) { first <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	if err := spy.Flush(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	client := w.client(t)
	go func() {
		_, err := client.Status(within(t, 20*time.Second))
		done <- err
	}()
	<-first
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	w.respond(t, w.service, func(r *responder, a asked) { r.ok(a, status) })
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestForgeries races the service with everything somebody else can send; the
// service speaks last and is heard.
func TestForgeries(t *testing.T) {
	w := newWorld(t)
	evil, evilRequester := newIdentity(t, keysvc.KindService), newIdentity(t, keysvc.KindRequester)
	var before []byte // the true reply to an earlier request
	forged := 0
	w.respond(t, w.service, func(r *responder, a asked) {
		if before == nil {
			var err error
			if before, err = keysvc.EncodeReply(r.id, "one", a.req, status); err != nil {
				t.Error(err)
			}
			r.send(a, before)
			return
		}
		hash := keysvc.RequestHash(a.msg.Data)
		signed := func(id keysvc.Identity, purpose, body string) []byte { return sign(t, id, purpose, body) }
		fakes := [][]byte{nil, {0}, random(64), random(65), random(500), []byte("-ERR"), a.msg.Data, before}
		fakes = append(fakes, []byte(`{"status":"ok"}`), make([]byte, 900_000))
		for _, s := range sentinels {
			e, err := keysvc.EncodeError(evil, "one", hash, s)
			if err != nil {
				t.Error(err)
			}
			fakes = append(fakes, e, append(make([]byte, 64), e[64:]...))
		}
		e, err := keysvc.EncodeReply(evil, "one", a.req, status)
		if err != nil {
			t.Error(err)
		}
		fakes = append(fakes, e, signed(evilRequester, keysvc.PurposeReply, string(e[64:])))
		e, err = keysvc.EncodeError(r.id, "one", keysvc.RequestHash(nil), keysvc.ErrDenied)
		if err != nil {
			t.Error(err)
		}
		fakes = append(fakes, e, signed(r.id, keysvc.PurposeDirectory, string(e[64:])))
		for _, f := range fakes {
			r.send(a, f)
			forged++
		}
		no := nats.NewMsg(a.msg.Reply) // a forged "no responders"
		no.Header.Set("Status", "503")
		if err := r.nc.PublishMsg(no); err != nil {
			t.Error(err)
		}
		r.ok(a, status)
	})
	client := w.client(t)
	for range 3 {
		forged = 0
		bad := client.BadReplies()
		got, err := client.Status(within(t, 20*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(status, got); diff != "" {
			t.Error(diff)
		}
		if n := client.BadReplies() - bad; n != uint64(forged) {
			t.Errorf("%d of %d forged replies were counted", n, forged)
		}
	}
}

// TestOnlyForgeries: without the service, forgeries end in ErrUnavailable.
func TestOnlyForgeries(t *testing.T) {
	w := newWorld(t)
	evil := newIdentity(t, keysvc.KindService)
	w.respond(t, evil, func(r *responder, a asked) { r.fail(a, keysvc.ErrDestroyed) })
	client := w.client(t)
	_, err := client.Status(within(t, 700*time.Millisecond))
	if !errors.Is(err, keysvc.ErrUnavailable) || !errors.Is(err, keysvc.ErrBadReply) || errors.Is(err, keysvc.ErrDestroyed) {
		t.Errorf("error is %v, want ErrUnavailable because of ErrBadReply", err)
	}
	if client.BadReplies() < 2 {
		t.Errorf("%d bad replies counted", client.BadReplies())
	}
}

// TestWorthAnotherTry: what may be better a moment later is asked again.
func TestWorthAnotherTry(t *testing.T) {
	for _, first := range []error{keysvc.ErrBusy, keysvc.ErrMisdelivered} {
		w := newWorld(t)
		r := w.respond(t, w.service, func(r *responder, a asked) {
			if a.n < 2 {
				r.fail(a, first)
				return
			}
			r.ok(a, status)
		})
		if _, err := w.client(t).Status(within(t, 20*time.Second)); err != nil {
			t.Errorf("%v twice, then ok: %v", first, err)
		}
		rs := r.requests()
		for i := 1; i < len(rs); i++ {
			if d := rs[i].at.Sub(rs[i-1].at); d < keysvc.RetryAfter*8/10 {
				t.Errorf("%v: try %d came after %v", first, i, d)
			}
			if string(rs[i].req.Nonce) == string(rs[i-1].req.Nonce) {
				t.Errorf("%v: try %d repeats the nonce", first, i)
			}
		}
		_, err := w.client(t, func(c *keysvc.ClientConfig) { c.Service = "nobody" }).Status(within(t, time.Millisecond))
		if !errors.Is(err, keysvc.ErrUnavailable) {
			t.Errorf("a millisecond: %v", err)
		}
	}
}

// TestAlwaysBusy and the like end as unavailable, with the reason inside.
func TestAlwaysBusy(t *testing.T) {
	w := newWorld(t)
	w.respond(t, w.service, func(r *responder, a asked) { r.fail(a, keysvc.ErrBusy) })
	_, err := w.client(t).Status(within(t, 400*time.Millisecond))
	if !errors.Is(err, keysvc.ErrUnavailable) || !errors.Is(err, keysvc.ErrBusy) {
		t.Errorf("error is %v, want ErrUnavailable because of ErrBusy", err)
	}
}

// TestVerdictsEndTheCall: every other error of the service is the answer, at once.
func TestVerdictsEndTheCall(t *testing.T) {
	w := newWorld(t)
	var want error
	r := w.respond(t, w.service, func(r *responder, a asked) { r.fail(a, want) })
	client := w.client(t)
	for code, s := range sentinels {
		if s == keysvc.ErrBusy || s == keysvc.ErrMisdelivered {
			continue
		}
		want = s
		before := len(r.requests())
		if _, err := client.Status(within(t, 20*time.Second)); !errors.Is(err, s) {
			t.Errorf("%s: %v", code, err)
		}
		if n := len(r.requests()) - before; n != 1 {
			t.Errorf("%s: %d tries", code, n)
		}
	}
	want = &keysvc.ClockSkewError{Offset: time.Hour}
	var skew *keysvc.ClockSkewError
	if _, err := client.Status(within(t, 20*time.Second)); !errors.As(err, &skew) || skew.Offset != time.Hour {
		t.Errorf("clock skew: %v", err)
	}
}

// TestProvokedRefusal plays somebody who copies a request to other subjects: the
// service signs a refusal to the very request, before the answer.
func TestProvokedRefusal(t *testing.T) {
	w := newWorld(t)
	w.respond(t, w.service, func(r *responder, a asked) {
		for _, op := range []string{"generate", "open", "scopes"} {
			_, err := keysvc.DecodeRequest(a.msg.Data, keysvc.RequestCheck{
				Op: op, Audience: r.id.Public(), Now: time.Now(), Enrolled: func(string) bool { return true },
			})
			if err == nil {
				t.Error("a request counts on another subject")
			}
			r.fail(a, err)
		}
		r.ok(a, status)
	})
	if _, err := w.client(t).Status(within(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
}
