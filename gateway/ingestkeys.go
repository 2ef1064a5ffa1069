package gateway

import (
	"errors"
	"fmt"
	"time"
)

// maxAsks is how many requests for keys may be on their way at once: one that
// hangs must not keep other scopes from theirs.
const maxAsks = 4

// scopeWait is a scope without a usable session: its key was asked for, or the
// last answer was an error.
type scopeWait struct {
	messages []arrival // in order of arrival
	subject  string    // one of the scope's, to ask with
	wanted   bool      // to be asked for
	asking   bool      // on its way
	err      error     // the last answer; messages are refused at once
	retryAt  time.Time
	retry    *pause
}

// errWait: the message has to wait for a key.
var errWait = errors.New("waiting for a key")

// session finds out, without waiting, whether a message on an origin subject can
// be sealed now. Otherwise the error is errWait, or why it cannot.
func (in *intake) session(origin string, now time.Time) (*subjectKey, error) {
	k := in.ring.subject(origin)
	if k.err != nil {
		in.freshRules(now, time.Second) // its rule may have been added a moment ago
		return nil, k.err
	}
	if w := in.waits[k.scope]; w != nil {
		if w.err == nil {
			return k, errWait
		}
		if !w.asking && now.After(w.retryAt) {
			w.subject, w.wanted = origin, true
			in.ask()
		}
		return nil, w.err
	}
	k.key, _ = in.ring.scopes.Get(k.scope)
	if k.key == nil || !k.key.usable(now) && !k.key.swap(in.ring.config, now) {
		if len(in.waits) >= maxScopes {
			in.forget()
		}
		in.waits[k.scope] = &scopeWait{subject: origin, wanted: true, retry: newPause(in.g.tune.key, in.g.tune.keyMax)}
		in.ask()
		return k, errWait
	}
	if k.key.due(now) && k.key.next == nil {
		in.due[k.scope] = origin
		if !in.ring.refreshing && now.After(in.ring.retryAt) {
			in.ring.refresh(in.ctx, in.due, false)
			in.due = make(map[string]string)
		}
	}
	return k, nil
}

// freshRules asks for the scope rules beside the work if they are older than age.
func (in *intake) freshRules(now time.Time, age time.Duration) {
	if now.Sub(in.ring.rulesAt) > age && !in.ring.refreshing && now.After(in.ring.retryAt) {
		in.ring.refresh(in.ctx, nil, true)
	}
}

// forget drops failed scopes that nobody asks for; their next message asks again.
func (in *intake) forget() {
	for scope, w := range in.waits {
		if !w.asking && !w.wanted && len(w.messages) == 0 {
			delete(in.waits, scope)
		}
	}
}

// ask requests the keys of all scopes that want one, if a request may begin.
func (in *intake) ask() {
	if in.asking >= maxAsks {
		return // the end of one of them asks again
	}
	wanted := make(map[string]string)
	for scope, w := range in.waits {
		if w.wanted && len(wanted) < generateBatch {
			wanted[scope] = w.subject
			w.wanted, w.asking = false, true
		}
	}
	if len(wanted) == 0 {
		return
	}
	in.asking++
	in.asks.Go(func() { in.answers <- in.ring.ask(in.ctx, wanted, false) }) // never blocks: it has room for all
}

// answered takes over the keys of a request and seals, or refuses, what waited
// for them.
func (in *intake) answered(r refreshed) {
	in.asking--
	for scope, subject := range r.asked {
		w := in.waits[scope]
		if w == nil {
			continue
		}
		w.asking = false
		if w.err = in.begin(scope, subject, &r); w.err == nil {
			delete(in.waits, scope)
			for i := range w.messages {
				in.take(&w.messages[i]) // may wait again, in order
			}
			continue
		}
		in.g.log.Warn("no key to seal with", "scope", scope, "error", w.err)
		in.g.board.failed(StateRunning, w.err)
		pause := w.retry.b.NextBackOff()
		if patient(w.err) {
			pause = max(pause, in.g.tune.keySlow)
		}
		w.retryAt = time.Now().Add(pause)
		for i := range w.messages {
			in.refuse(&w.messages[i], refusalOf(w.err), "")
		}
		w.messages = nil
	}
	in.ask()
}

// begin starts the session of a scope with the key that was answered.
func (in *intake) begin(scope, subject string, r *refreshed) error {
	key, err := r.keys[scope], r.err
	if key != nil && key.Err != nil {
		err = key.Err
	}
	switch {
	case key == nil && err == nil:
		err = errors.New("no answer")
	case key != nil && err == nil && key.Scope != scope:
		// The rules changed. If the difference stays, so does the error.
		in.freshRules(time.Now(), 0)
		err = fmt.Errorf("the service puts %s into scope %s, its rules say %s", subject, key.Scope, scope)
	case err == nil:
		entry, _ := in.ring.scopes.Get(scope)
		if entry == nil {
			entry = &scopeKey{scope: scope}
			in.ring.scopes.Add(scope, entry)
		}
		entry.subject = subject
		err = entry.begin(in.ring.config, key)
	}
	if err != nil {
		return fmt.Errorf("%w: scope %s: %w", ErrKeys, scope, err)
	}
	return nil
}

// expire refuses messages that waited too long; their scope's key may still come.
func (in *intake) expire(now time.Time) {
	limit := now.Add(-in.g.route.Ingest.KeyWait)
	for _, w := range in.waits {
		n := 0
		for n < len(w.messages) && w.messages[n].at.Before(limit) {
			in.refuse(&w.messages[n], RefusedKey, "")
			n++
		}
		w.messages = w.messages[n:]
		if n > 0 && w.err == nil {
			// Whoever comes now need not wait, too, to learn that there is no key.
			w.err = fmt.Errorf("%w: no answer within %v", ErrKeys, in.g.route.Ingest.KeyWait)
		}
	}
}

// giveUp refuses everything that waits.
func (in *intake) giveUp() {
	for _, w := range in.waits {
		for i := range w.messages {
			in.refuse(&w.messages[i], RefusedKey, "")
		}
		w.messages = nil
	}
	for {
		select {
		case a := <-in.queue:
			in.refuse(&a, RefusedUnavailable, "")
		default:
			return
		}
	}
}

// refreshed keeps rules and keys fresh beside the work.
func (in *intake) refreshed(now time.Time) {
	in.ring.collect()
	in.freshRules(now, rulesTTL)
}
