package keyserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/policy"
	"github.com/keyweir/keyweir/keysvc"
)

// operation does one verified call.
type operation func(context.Context, *call) outcome

func (s *Server) operations() map[string]operation {
	return map[string]operation{
		keysvc.OpGenerate: s.generate,
		keysvc.OpOpen:     s.open,
		keysvc.OpRouteKey: s.routeKey,
		keysvc.OpScopes:   s.scopes,
		keysvc.OpStatus:   s.status,
	}
}

// batchWorkers is how many keys of one request are worked on at a time.
const batchWorkers = 8

// each runs f for 0..n-1, some at a time.
func each(n int, f func(int)) {
	if n == 1 {
		f(0)
		return
	}
	var wg sync.WaitGroup
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	for range min(n, batchWorkers) {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	wg.Wait()
}

// refuse is the outcome of a call that is wrong as a whole.
func refuse(err error) outcome { return outcome{err: err, items: []item{{err: err}}} }

// decide asks the policy.
func (s *Server) decide(c *call, scope, subject string, ec map[string]string) error {
	d := s.cfg.Policy.Decide(policy.Request{
		Principal: c.who, Action: c.Op, Scope: scope, Context: ec, Subject: subject, Time: time.Now(),
	})
	if d.Allow {
		return nil
	}
	return fmt.Errorf("%w: %s", keysvc.ErrDenied, d.Reason)
}

// label sums a batch up for metrics.
func label(items []item) string {
	failed := 0
	var first error
	for _, it := range items {
		if it.err != nil {
			failed++
			if first == nil {
				first = it.err
			}
		}
	}
	switch failed {
	case 0:
		return "ok"
	case len(items):
		return keysvc.ToWire(first).Code
	}
	return "partial"
}

func batchSize(n int) error {
	if n < 1 || n > keysvc.MaxBatch {
		return fmt.Errorf("%w: batch of %d, want 1 to %d", keysvc.ErrInvalid, n, keysvc.MaxBatch)
	}
	return nil
}

// generate answers with one session grant per subject.
func (s *Server) generate(ctx context.Context, c *call) outcome {
	var args keysvc.GenerateArgs
	if err := c.Args(&args); err != nil {
		return refuse(err)
	}
	if err := batchSize(len(args.Subjects)); err != nil {
		return refuse(err)
	}
	res := keysvc.GenerateResult{Grants: make([]keysvc.WireGrant, len(args.Subjects))}
	items := make([]item, len(args.Subjects))
	each(len(args.Subjects), func(i int) {
		res.Grants[i], items[i] = s.generateOne(ctx, c, args.Subjects[i])
	})
	return outcome{result: res, items: items, label: label(items), wipe: func() {
		for i := range res.Grants {
			clear(res.Grants[i].Subkey)
		}
	}}
}

func (s *Server) generateOne(ctx context.Context, c *call, subject string) (keysvc.WireGrant, item) {
	fail := func(it item, err error) (keysvc.WireGrant, item) {
		it.err = err
		return keysvc.WireGrant{Error: keysvc.ToWire(err)}, it
	}
	scope, r, err := s.rules.forSubject(subject)
	if err != nil {
		return fail(item{}, err)
	}
	it := item{scope: scope}
	if err := s.decide(c, scope, subject, r.Context); err != nil {
		return fail(it, err)
	}
	g, hit, err := s.keys.seal(ctx, r, scope)
	s.met.lookup(hit)
	if err != nil {
		return fail(it, err)
	}
	it.keyID = g.id.String()
	// Counted from the sending of the request, which is earlier than now; the
	// reply takes time too. Rounding down keeps it on the safe side.
	return keysvc.WireGrant{
		Scope: scope, Record: g.record, Salt: g.salt[:], Subkey: g.subkey,
		Messages: r.Budget.Messages, Bytes: r.Budget.Bytes, ReuseMs: g.reuse.Milliseconds(),
	}, it
}

// open answers with data keys.
func (s *Server) open(ctx context.Context, c *call) outcome {
	var args keysvc.OpenArgs
	if err := c.Args(&args); err != nil {
		return refuse(err)
	}
	if err := batchSize(len(args.Keys)); err != nil {
		return refuse(err)
	}
	res := keysvc.OpenResult{Keys: make([]keysvc.WireKey, len(args.Keys))}
	items := make([]item, len(args.Keys))
	each(len(args.Keys), func(i int) {
		res.Keys[i], items[i] = s.openOne(ctx, c, args.Keys[i])
	})
	return outcome{result: res, items: items, label: label(items), wipe: func() {
		for i := range res.Keys {
			clear(res.Keys[i].Key)
		}
	}}
}

func (s *Server) openOne(ctx context.Context, c *call, w keysvc.WireRecord) (keysvc.WireKey, item) {
	var it item
	fail := func(err error) (keysvc.WireKey, item) {
		it.err = err
		return keysvc.WireKey{KeyID: cut(w.KeyID), Error: keysvc.ToWire(err)}, it
	}
	id, err := envelope.ParseKeyID(w.KeyID)
	if err != nil {
		return fail(fmt.Errorf("%w: key ID", keysvc.ErrInvalid))
	}
	it.keyID = w.KeyID
	if len(w.Record) > envelope.MaxRecordSize {
		return fail(fmt.Errorf("%w: key record of %d bytes", keysvc.ErrInvalid, len(w.Record)))
	}
	rs, err := s.keys.resolve(ctx, id, w.Record)
	if err != nil {
		return fail(err)
	}
	it.scope, it.managed = rs.record.Core.Scope(), rs.record.Wraps[0].ManagedKey
	ec := make(map[string]string, len(rs.record.Core.Context))
	for _, p := range rs.record.Core.Context {
		ec[p.Name] = p.Value
	}
	if err := s.decide(c, it.scope, "", ec); err != nil {
		return fail(err)
	}
	k, err := s.keys.open(ctx, rs, rs.rule.Stale.Open)
	s.met.lookup(err == nil && !k.asked)
	if err != nil {
		return fail(err)
	}
	lease := min(rs.rule.Lease, k.left)
	if lease < time.Millisecond {
		return fail(fmt.Errorf("%w: the stale limit is over", keysvc.ErrUnavailable))
	}
	out := keysvc.WireKey{KeyID: w.KeyID, Record: k.raw, LeaseMs: lease.Milliseconds()}
	if err := k.use(func(key envelope.DataKey) error {
		out.Key = envelope.ExposeDataKey(key)
		return nil
	}); err != nil {
		return fail(fmt.Errorf("%w: %v", keysvc.ErrUnavailable, err))
	}
	return out, it
}

// routeKey answers with the MAC key of a route's positions.
func (s *Server) routeKey(ctx context.Context, c *call) outcome {
	var args keysvc.RouteKeyArgs
	if err := c.Args(&args); err != nil {
		return refuse(err)
	}
	if err := keysvc.CheckName(args.Route); err != nil {
		return refuse(err)
	}
	it := item{scope: "route/" + args.Route}
	err := s.decide(c, it.scope, "", nil)
	var key []byte
	if err == nil {
		var created bool
		if key, created, err = s.keys.routeKey(ctx, args.Route); created {
			it.note = "created"
		}
	}
	if err != nil {
		it.err = err
		return outcome{err: err, items: []item{it}}
	}
	return outcome{result: keysvc.RouteKeyResult{Key: key}, items: []item{it}, wipe: func() { clear(key) }}
}

// scopes answers with the scope rules. It releases no key: only refusals are recorded.
func (s *Server) scopes(_ context.Context, c *call) outcome {
	var args keysvc.ScopesArgs
	if err := c.Args(&args); err != nil {
		return refuse(err)
	}
	h, ok := s.cfg.Policy.(policy.Holder)
	if !ok || !h.Holds(c.who, time.Now(), keysvc.OpGenerate, keysvc.OpOpen) {
		return refuse(fmt.Errorf("%w: neither %q nor %q on any scope", keysvc.ErrDenied, keysvc.OpGenerate, keysvc.OpOpen))
	}
	rules := s.rules.subjects.Rules()
	if rules == nil {
		rules = []keysvc.ScopeRule{}
	}
	return outcome{result: keysvc.ScopesResult{Rules: rules}}
}

// status answers with what the service says about itself, to everybody enrolled.
func (s *Server) status(_ context.Context, c *call) outcome {
	var args keysvc.StatusArgs
	if err := c.Args(&args); err != nil {
		return refuse(err)
	}
	st, err := s.Status()
	if err != nil {
		return refuse(err)
	}
	return outcome{result: st}
}

// Status is what the status operation answers, for a program that runs the server.
func (s *Server) Status() (keysvc.Status, error) {
	end, err := audit.End(s.cfg.Store)
	if err != nil {
		s.log.Error("reading audit position failed", "err", err)
		return keysvc.Status{}, errInternal
	}
	return keysvc.Status{
		Service: s.cfg.Service, Instance: s.cfg.Instance, Version: s.cfg.Version,
		Ops:      []string{keysvc.OpGenerate, keysvc.OpOpen, keysvc.OpRouteKey, keysvc.OpScopes, keysvc.OpStatus},
		Suites:   keysvc.Suites(),
		UptimeMs: time.Since(s.started).Milliseconds(), AuditHead: fmt.Sprintf("%x", end.Hash), AuditCount: end.Seq,
		DataKeys:  s.keys.dataKeys(),
		CacheHits: s.met.hits.Load(), CacheMisses: s.met.misses.Load(),
		AuthorityCalls: s.met.authCalls.Load(), AuthorityErrors: s.met.authErrors.Load(),
	}, nil
}
