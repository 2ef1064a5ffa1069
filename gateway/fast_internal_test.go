package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/natstest"
)

func (r *rig) fast() *fastEngine {
	r.t.Helper()
	e, err := newFast(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(e.close)
	return e
}

// open reports whether a batch of the engine is open.
func (e *fastEngine) open() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sent > 0
}

// Whatever the source promised: what is published is acknowledged soon, and no
// batch stays open, which the server would forget.
func TestFastQuiet(t *testing.T) {
	r := newRig(t)
	e := r.fast()
	total := uint64(0)
	for _, n := range []int{1, 3, int(e.flow), int(e.flow) + 1, 2 * int(e.flow), 512, 700} {
		if err := r.publish(e, n, 10, false); err != nil {
			t.Fatal(err)
		}
		total += uint64(n)
		r.acked(e, total)
		natstest.Eventually(t, 5*time.Second, func() error {
			if e.open() {
				return fmt.Errorf("the batch of %d is still open", n)
			}
			return nil
		})
	}
	r.stored(total, 10)
}

// The last message ends its batch by itself: no end of batch is published, of
// which replicas would not learn.
func TestFastLast(t *testing.T) {
	r := newRig(t)
	e := r.fast()
	e.quiet = never
	all, err := r.nc.SubscribeSync("s.>")
	if err != nil {
		t.Fatal(err)
	}
	total := uint64(0)
	for _, n := range []int{1, 1, 2, 600, 1} {
		if err := r.publish(e, n, 10, true); err != nil {
			t.Fatal(err)
		}
		total += uint64(n)
	}
	r.acked(e, total)
	for i := range total {
		if _, err := all.NextMsg(5 * time.Second); err != nil {
			t.Fatalf("message %d: %v", i+1, err)
		}
	}
	if m, err := all.NextMsg(50 * time.Millisecond); err == nil {
		t.Errorf("also published: %+v", m)
	}
	r.stored(total, 10)
}

func TestFastDrain(t *testing.T) {
	r := newRig(t)
	e := r.fast()
	e.quiet = never
	if err := r.publish(e, 200, 10, false); err != nil {
		t.Fatal(err)
	}
	if err := e.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e.open() {
		t.Error("the batch is still open")
	}
	if err := e.drain(t.Context()); err != nil { // with nothing open
		t.Fatal(err)
	}
	r.acked(e, 200)
	r.stored(200, 10)
}

// Windows of any size pass everything.
func TestFastWindows(t *testing.T) {
	for _, window := range []int{1, 2, 3, 5, 64, 16384} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			r := newRig(t)
			r.cfg.window = window
			e := r.fast()
			if err := r.publish(e, 300, 10, true); err != nil {
				t.Fatal(err)
			}
			r.acked(e, 300)
		})
	}
}

// flowOf asks what the server grants a new batch: 1 message while another is open.
func (r *rig) flowOf(id string, fence string) uint16 {
	r.t.Helper()
	inbox := r.nc.NewInbox()
	sub, err := r.nc.SubscribeSync(inbox + ".>")
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	m := &nats.Msg{Subject: "s.b", Reply: inbox + "." + id + ".10.fail.1.0.$FI", Header: nats.Header{"Nats-Expected-Last-Sequence": {fence}}}
	if err := r.nc.PublishMsg(m); err != nil {
		r.t.Fatal(err)
	}
	answer, err := sub.NextMsg(5 * time.Second)
	if err != nil {
		r.t.Fatal(err)
	}
	var flow struct {
		Messages uint16 `json:"msgs"`
	}
	if err := json.Unmarshal(answer.Data, &flow); err != nil || flow.Messages == 0 {
		r.t.Fatalf("answer %q, %v", answer.Data, err)
	}
	return flow.Messages
}

// Others that write batches to the stream make the server slow us down, to any
// number of messages between acknowledgements; that is all.
func TestFastBesideOtherBatches(t *testing.T) {
	r := newRig(t)
	for i := range 7 {
		if got := r.flowOf(fmt.Sprint("other", i), strconv.Itoa(i)); (got == 1) != (i > 0) {
			t.Fatalf("batch %d is granted %d messages", i, got)
		}
	}
	r.cfg.lastSeq = 7
	e := r.fast()
	total := uint64(0)
	for _, n := range []int{1000, 333, 128} {
		if err := r.publish(e, n, 10, false); err != nil {
			t.Fatal(err)
		}
		total += uint64(n)
		r.acked(e, total)
	}
}

// Another writer comes first in the middle of a batch: nothing of ours is stored
// behind its message, though later ones of ours would fit again.
func TestFastRefusedInTheMiddle(t *testing.T) {
	r := newRig(t)
	e := r.fast()
	e.quiet = never
	if err := r.publish(e, int(e.flow)+5, 10, false); err != nil {
		t.Fatal(err)
	}
	stored := e.flow + 5
	natstest.Eventually(t, 5*time.Second, func() error {
		s, err := r.js.Stream(t.Context(), "S")
		if err != nil {
			return err
		}
		if got := s.CachedInfo().State.LastSeq; got != stored {
			return fmt.Errorf("stored %d", got)
		}
		return nil
	})
	r.stranger()
	if err := r.publish(e, 50, 10, false); err != nil && !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	r.refused(e, stored+1, e.flow)
}

// The first message is refused.
func TestFastRefusedAtOnce(t *testing.T) {
	for _, last := range []bool{false, true} {
		r := newRig(t)
		r.stranger()
		e := r.fast()
		if err := r.publish(e, 1, 10, last); err != nil {
			t.Fatal(err)
		}
		r.refused(e, 1, 0)
	}
}

// The server forgets a batch of a gateway that was frozen; what comes then is
// refused, not stored over a hole.
func TestFastBatchForgotten(t *testing.T) {
	r := newRig(t, serverLimits(func(l *server.JSLimitOpts) { l.MaxBatchTimeout = 50 * time.Millisecond }))
	e := r.fast()
	e.quiet = never
	if err := r.publish(e, 10, 10, false); err != nil {
		t.Fatal(err)
	}
	probe := 0
	natstest.Eventually(t, 10*time.Second, func() error {
		probe++ // of a batch that the fence refuses at once
		if got := r.flowOf(fmt.Sprint("probe", probe), "99999"); got == 1 {
			return errors.New("the batch is still open")
		}
		return nil
	})
	if err := r.publish(e, 10, 10, false); err != nil && !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	select {
	case <-e.failed():
	case <-time.After(10 * time.Second):
		t.Fatal("the engine did not fail")
	}
	if err := e.err(); !errors.Is(err, errRefused) {
		t.Errorf("engine failed with %v", err)
	}
	r.stored(10, 10)
}

// What a server may say, and what else may come to the inbox.
func TestFastAnswers(t *testing.T) {
	const batch = 10
	r := newRig(t)
	for name, c := range map[string]struct {
		subject, data string
		acked         uint64
		want          error // nil: the engine goes on
	}{
		"flow":               {"", `{"type":"ack","seq":4,"msgs":4}`, 4, nil},
		"flow of nothing":    {"", `{"type":"ack","seq":0,"msgs":4}`, 0, nil},
		"flow of all":        {"", `{"type":"ack","seq":10,"msgs":4}`, 10, nil},
		"flow beyond":        {"", `{"type":"ack","seq":11,"msgs":4}`, 0, errRefused},
		"gap":                {"", `{"type":"gap","last_seq":3,"seq":5}`, 0, errAckLost},
		"error":              {"", `{"type":"err","seq":5,"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 9"}}`, 0, ErrFenced},
		"clustered error":    {"", `{"type":"err","seq":5,"error":{"code":400,"err_code":10164,"description":"wrong last sequence"}}`, 0, ErrFenced},
		"other error":        {"", `{"type":"err","seq":5,"error":{"code":400,"err_code":10077,"description":"maximum messages exceeded"}}`, 0, errRefused},
		"publish error":      {"", `{"stream":"S","seq":0,"error":{"code":400,"err_code":10208,"description":"batch publish ID unknown"}}`, 0, errRefused},
		"ended by server":    {"", `{"stream":"S","seq":4,"batch":"x","count":4}`, 0, errAckLost},
		"acknowledged alone": {"", `{"stream":"S","seq":10}`, 0, errAckLost},
		"nothing":            {"", ``, 0, errRefused},
		"no JSON":            {"", `{`, 0, errRefused},
		"unknown":            {"", `{"type":"new"}`, 0, errRefused},
		"older batch":        {"older", `{"stream":"S","seq":4,"batch":"x","count":4}`, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := r.fast() // publishes nothing: we speak for the server
			e.mu.Lock()
			for i := uint64(1); i <= batch; i++ {
				e.enter(&outgoing{source: i})
			}
			e.sent, e.reply = batch, e.inbox+".b.4.fail."
			subject := e.reply + "5.1.$FI"
			e.mu.Unlock()
			if c.subject != "" {
				subject = e.inbox + "." + c.subject + ".4.fail.5.1.$FI"
			}
			e.receive(&nats.Msg{Subject: subject, Data: []byte(c.data)})
			if err := e.err(); !errors.Is(err, c.want) {
				t.Errorf("engine failed with %v, want %v", err, c.want)
			}
			if a := e.acked(); a.sealed != c.acked || a.source != c.acked {
				t.Errorf("acknowledged up to %+v, want %d", a, c.acked)
			}
		})
	}
}
