package sealedcheck

import (
	"errors"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
)

// Limits bound the memory of a check. Zero values mean the defaults, which
// together need about 200 MB when all are reached.
type Limits struct {
	Chains   int // 4096
	Keys     int // 65536
	Sessions int // 262144
	Nonces   int // window in which random nonces are compared: 1048576
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Chains, 4096)
	def(&l.Keys, 1<<16)
	def(&l.Sessions, 1<<18)
	def(&l.Nonces, 1<<20)
	return l
}

const maxHeaderNames = 64

// checker takes in the messages of a stream, in order.
type checker struct {
	r        *Report
	open     bool // mode open
	chains   *chains
	keys     *keys
	nonces   *nonces
	subjects *subjects
	shared   *shared // nil: no partitions share the stream
}

func newChecker(c *jetstream.StreamConfig, limits Limits) *checker {
	limits = limits.withDefaults()
	r := &Report{
		Stream: c.Name, ClearHeaders: make(map[string]uint64), Counts: make(map[Kind]uint64),
		Findings: []Finding{}, Notes: []string{}, NotShown: Unshown,
	}
	checkSettings(r, c)
	open := r.Settings.Mode == modeOpen
	of := newShared(c)
	return &checker{
		shared: of,
		r:      r, open: open,
		chains: &chains{limit: limits.Chains, interleaved: open || r.Settings.Mode == modeHold || of != nil, byID: make(map[envelope.ChainID]*Chain)},
		keys:   newKeys(limits.Keys), nonces: newNonces(limits.Sessions, limits.Nonces), subjects: newSubjects(c.Subjects),
	}
}

// add takes in the next message.
func (c *checker) add(seq uint64, subject string, h nats.Header, data []byte) {
	r := c.r
	r.Messages++
	c.subjects.add(subject)
	if c.r.Settings.Mode == modeHold && len(data) == 0 && strings.HasSuffix(subject, fenceSuffix) {
		return // a fence of the gateway's, for a moment
	}
	if c.shared.add(c, seq, subject, h, data) {
		return
	}
	e, err := envelope.Parse(data)
	if err != nil {
		switch {
		case errors.Is(err, envelope.ErrNotEnvelope):
			r.find(Plaintext, seq, "%d bytes on %s that do not begin like an envelope", len(data), subject)
		case errors.Is(err, envelope.ErrUnsupported):
			r.find(Unsupported, seq, "%v", err)
		default:
			r.find(Malformed, seq, "%v", err)
		}
		return
	}
	r.Envelopes++
	if e.Flags&envelope.FlagLayered != 0 {
		r.Layered++
	}
	for name := range h {
		if name != headerVersion && name != headerSource && !strings.HasPrefix(name, "Nats-") {
			if _, ok := r.ClearHeaders[name]; ok || len(r.ClearHeaders) < maxHeaderNames {
				r.ClearHeaders[name]++
			}
		}
	}
	if wrong := c.keys.add(&e); wrong != "" {
		r.find(Record, seq, "%s", wrong)
	}
	if kind, detail := c.nonces.add(&e); kind != "" {
		r.find(kind, seq, "session %v: %s", e.Salt, detail)
	}
	p, err := readHeaders(h)
	switch {
	case err == nil:
		c.chains.add(r, seq, &p)
	case c.open && errors.Is(err, errNoSource): // an application that seals needs none
	default:
		r.find(Header, seq, "%v", err)
	}
}

// hole says that the messages from first to last are not in the stream.
func (c *checker) hole(first, last uint64) {
	n := last - first + 1
	if c.shared != nil {
		c.r.Replaced += n
		return
	}
	c.r.MissingMsgs += n
	if n == 1 {
		c.r.find(Missing, first, "message %d is missing", first)
		return
	}
	c.r.find(Missing, first, "messages %d to %d are missing", first, last)
}

// expired says that everything up to last left at the front while the stream was
// read, from first on before it could be.
func (c *checker) expired(first, last uint64) {
	c.chains.gone = last
	c.r.note("messages %d to %d left the stream while it was read", first, last)
}

// report ends the check.
func (c *checker) report() *Report {
	r := c.r
	c.chains.report(r)
	c.keys.report(r)
	c.subjects.report(r)
	n := c.nonces
	r.Nonces = Nonces{Sessions: n.begun, Counter: n.counter, Random: n.random, Window: n.window, Forgotten: n.forgotten}
	if n.random > uint64(n.window) {
		r.note("random nonces were compared with those of %d messages before only; a repetition farther away would not have been found", n.window)
	}
	if n.forgotten > 0 {
		r.note("%d sessions were forgotten for want of memory; a nonce used again in one of those would not have been found", n.forgotten)
	}
	if r.Keys.Untracked > 0 {
		r.note("%d messages have keys beyond the %d that were counted", r.Keys.Untracked, c.keys.limit)
	}
	r.finish()
	return r
}
