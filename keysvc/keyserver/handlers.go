package keyserver

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/nats-io/nats.go/micro"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyweir/keyweir/internal/audit"
	"github.com/keyweir/keyweir/internal/keycache"
	"github.com/keyweir/keyweir/keysvc"
)

// requestTime bounds the work on one request: below the time a client waits, so
// that it hears why.
const requestTime = 4 * time.Second

// call is one verified request.
type call struct {
	*keysvc.Request
	who string // configured name of the principal
}

// outcome is what became of a call.
type outcome struct {
	result any            // nil with err
	wipe   func()         // clears key material of result; may be nil
	items  []item         // what the audit log must say
	err    error          // the whole call is refused
	label  string         // for metrics
	extra  []audit.Record // further records of the same commit
}

// item is one key of a call for the audit log.
type item struct {
	scope, keyID, managed string
	note                  string // beside an allowed one
	err                   error  // nil: released
}

// handler hands requests to the pool at once: a micro endpoint runs one handler
// at a time, and a cheap request must not wait behind one that asks a KMS.
func (s *Server) handler(op string) micro.HandlerFunc {
	return func(r micro.Request) {
		if !s.pool.submit(func() { s.serve(op, r) }) {
			s.met.refuse(op, "busy")
			s.replyError(r, keysvc.RequestHash(r.Data()), keysvc.ErrBusy)
		}
	}
}

// serve answers one request: verify, remember the nonce, decide and do, write the
// audit log, reply. In this order; whatever fails ends it.
func (s *Server) serve(op string, r micro.Request) {
	start := time.Now()
	hash := keysvc.RequestHash(r.Data())
	req, err := keysvc.DecodeRequest(r.Data(), keysvc.RequestCheck{
		Op: op, Audience: s.cfg.Identity.Public(), Now: start, NotBefore: s.started,
		Enrolled: func(public string) bool { _, ok := s.people.Name(public); return ok },
	})
	if err != nil {
		// Anybody can send this: it must cost no disk.
		s.met.refuse(op, keysvc.ToWire(err).Code)
		s.replyError(r, hash, err)
		return
	}
	who, _ := s.people.Name(req.Principal)
	c := &call{req, who}
	ctx, cancel := context.WithTimeout(s.ctx, requestTime)
	defer cancel()
	ctx, span := s.cfg.Tracer.Start(ctx, "keysvc."+op, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("keyweir.op", op)))
	defer span.End()

	var out outcome
	switch s.replay.check(req.Principal, req.Nonce, start) {
	case nonceNew:
		out = s.ops[op](ctx, c)
	case nonceReplayed:
		out = outcome{err: errReplayed, items: []item{{err: errReplayed}}}
	case nonceReplayedAgain: // one record is enough: whoever has the bytes can send them for ever
		out = outcome{err: errReplayed}
	default:
		out = outcome{err: errNoncesFull}
	}
	if err := s.record(c, &out); err != nil {
		if out.wipe != nil {
			out.wipe()
		}
		out = outcome{err: err}
	}
	s.reply(r, c, &out)
	label := out.label
	if label == "" {
		label = "ok"
	}
	if out.err != nil {
		label = keysvc.ToWire(out.err).Code
	}
	span.SetAttributes(attribute.String("keyweir.outcome", label))
	s.met.request(op, label, time.Since(start))
}

// record writes the audit log. Nothing is released unless it answers nil.
func (s *Server) record(c *call, out *outcome) error {
	records := append(auditRecords(c, out.items), out.extra...)
	if len(records) == 0 {
		return nil
	}
	var b keycache.Batch
	for _, r := range records {
		b.Attach(r)
	}
	return s.keys.apply(&b)
}

// auditRecords makes one record for all items of a call that met the same fate.
func auditRecords(c *call, items []item) []audit.Record {
	type fate struct {
		scope, managed, code, note string
	}
	var out []audit.Record
	at := map[fate]int{}
	for _, it := range items {
		f := fate{it.scope, it.managed, "", it.note}
		r := audit.Record{
			Principal: c.who, Action: c.Op, Outcome: audit.Allow, Reason: cut(it.note), Scope: cut(it.scope),
			Request: hex.EncodeToString(c.Hash[:]), Nonce: hex.EncodeToString(c.Nonce),
		}
		if len(it.managed) <= audit.MaxField {
			r.ManagedKey = it.managed
		}
		if it.err != nil {
			r.Outcome, r.Reason, f.code = auditOutcome(it.err), cut(it.err.Error()), keysvc.ToWire(it.err).Code
		}
		i, ok := at[f]
		if !ok {
			i = len(out)
			at[f] = i
			out = append(out, r)
		}
		if it.keyID != "" {
			out[i].KeyIDs = append(out[i].KeyIDs, it.keyID)
		}
	}
	return out
}

func cut(s string) string { return s[:min(len(s), audit.MaxField)] }

func auditOutcome(err error) audit.Outcome {
	for _, denial := range []error{keysvc.ErrDenied, keysvc.ErrNoScope, keysvc.ErrSuspended, keysvc.ErrDestroyed} {
		if errors.Is(err, denial) {
			return audit.Deny
		}
	}
	if errors.Is(err, errReplayed) {
		return audit.Deny
	}
	return audit.Error
}

// reply sends the result sealed to the requester, or the error; both signed.
func (s *Server) reply(r micro.Request, c *call, out *outcome) {
	if out.wipe != nil {
		defer out.wipe()
	}
	if out.err != nil {
		s.replyError(r, c.Hash, out.err)
		return
	}
	data, err := keysvc.EncodeReply(s.cfg.Identity, s.cfg.Instance, c.Request, out.result)
	if err != nil {
		s.log.Error("encoding reply failed", "op", c.Op, "err", err)
		s.replyError(r, c.Hash, errInternal)
		return
	}
	s.send(r, data)
}

func (s *Server) replyError(r micro.Request, hash [32]byte, err error) {
	data, err := keysvc.EncodeError(s.cfg.Identity, s.cfg.Instance, hash, err)
	if err != nil {
		s.log.Error("encoding error reply failed", "err", err)
		return
	}
	s.send(r, data)
}

func (s *Server) send(r micro.Request, data []byte) {
	if r.Reply() == "" {
		return
	}
	if err := r.Respond(data); err != nil {
		s.log.Warn("sending reply failed", "err", err)
	}
}
