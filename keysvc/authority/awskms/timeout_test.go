package awskms_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
	"github.com/keyweir/keyweir/keysvc/authority/authoritytest"
	"github.com/keyweir/keyweir/keysvc/authority/awskms"
	"github.com/keyweir/keyweir/keysvc/authority/awskms/kmstest"
)

func TestSlowAttemptIsRetried(t *testing.T) {
	s := kmstest.LocalKMS(t)
	p := kmstest.NewProxy(t, s.Endpoint)
	l := quick()
	l.AttemptTimeout = 300 * time.Millisecond
	a := open(t, awskms.Config{KeyID: s.ARNs[0], Endpoint: p.URL, Limits: l})
	for name, slow := range map[string]http.HandlerFunc{"no header": kmstest.Hang, "no body": kmstest.Stall} {
		p.Script(nil, slow)
		if _, err := a.Wrap(t.Context(), "", secret, testContext); err != nil {
			t.Errorf("Wrap after one attempt with %s = %v", name, err)
		}
		if n := p.Calls(); n != 2 {
			t.Errorf("%s: %d attempts, want 2", name, n)
		}
	}
}

func TestTimeLimits(t *testing.T) {
	for name, c := range map[string]struct {
		limits   awskms.Limits
		attempts int // 0: not looked at
	}{
		"attempts": {awskms.Limits{AttemptTimeout: 50 * time.Millisecond, CallTimeout: time.Minute, MaxAttempts: 3, MaxBackoff: time.Millisecond}, 3},
		"call":     {awskms.Limits{AttemptTimeout: time.Minute, CallTimeout: 100 * time.Millisecond, MaxAttempts: 3, MaxBackoff: time.Millisecond}, 1},
	} {
		for what, slow := range map[string]http.HandlerFunc{"hang": kmstest.Hang, "stall": kmstest.Stall} {
			a, p := stubbed(t, c.limits)
			p.Script(slow)
			start := time.Now()
			_, _, err := a.GenerateDataKey(t.Context(), "", testContext)
			if cerr := authoritytest.CheckError(err, authority.ErrUnavailable); cerr != nil {
				t.Errorf("%s, %s: %v", name, what, cerr)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("%s, %s: took %v", name, what, d)
			}
			if n := p.Calls(); n != c.attempts {
				t.Errorf("%s, %s: %d attempts, want %d", name, what, n, c.attempts)
			}
		}
	}
}

func TestPausesEndWithTheCall(t *testing.T) {
	// Pauses of minutes, a call of 200 ms: the call ends, not the pause.
	l := awskms.Limits{AttemptTimeout: time.Minute, CallTimeout: 200 * time.Millisecond, MaxAttempts: 50, MaxBackoff: time.Hour}
	a, p := stubbed(t, l)
	p.Script(kmstest.Exception(400, "ThrottlingException", ""))
	start := time.Now()
	_, err := a.Wrap(t.Context(), "", secret, testContext)
	if !authority.IsOutage(err) {
		t.Errorf("Wrap = %v, want an outage", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestCancelAndCloseDuringCall(t *testing.T) {
	for name, end := range map[string]func(a *awskms.Authority, cancel context.CancelFunc){
		"cancel": func(_ *awskms.Authority, cancel context.CancelFunc) { cancel() },
		"close":  func(a *awskms.Authority, _ context.CancelFunc) { a.Close() },
	} {
		a, p := stubbed(t, awskms.Limits{AttemptTimeout: time.Minute, CallTimeout: time.Minute})
		asked := make(chan struct{}, 8)
		p.Script(func(w http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			kmstest.Hang(w, r)
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := a.Wrap(ctx, "", secret, testContext)
			done <- err
		}()
		<-asked
		start := time.Now()
		end(a, cancel)
		err := <-done
		cancel()
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s: the call ended %v later", name, d)
		}
		if cerr := authoritytest.CheckError(err, authority.ErrUnavailable, secret); cerr != nil {
			t.Errorf("%s: %v", name, cerr)
		}
		if want := name == "cancel"; errors.Is(err, context.Canceled) != want {
			t.Errorf("%s: %v wraps context.Canceled: %v, want %v", name, err, !want, want)
		}
		if n := p.Calls(); n != 1 {
			t.Errorf("%s: %d attempts, want 1", name, n)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	a := open(t, awskms.Config{KeyID: testARN, Endpoint: "http://" + addr, Limits: quick()})
	failAll(t, a, authority.ErrUnavailable, nil)
}
