package keysvc

import (
	"context"
	"crypto/hpke"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
)

const (
	defaultTimeout = 5 * time.Second
	retryAfter     = 250 * time.Millisecond // doubles with every further try
	ephemeralLife  = 5 * time.Second        // a key pair costs 0.2 ms; seconds bound what one theft reveals
)

// ClientConfig says which service a client asks, and as whom.
type ClientConfig struct {
	Conn    *nats.Conn // required; the caller closes it
	Service string     // required: name of the service, a subject token
	// Pins are the public keys (N...) of the service that are accepted, at least
	// one. Two are for rotation: requests are addressed to the one that answered last.
	Pins     []string
	Identity Identity // required: who asks (U...)
	// Timeout bounds a call whose context has no deadline of its own; 0 means 5 s,
	// negative is refused.
	Timeout time.Duration
	// Suite is the exchange suite; "" means [DefaultSuite].
	Suite string
}

// Client asks one key service. Safe for concurrent use; needs no Close.
type Client struct {
	cfg ClientConfig
	kem hpke.KEM
	bad atomic.Uint64
	pin atomic.Uint32 // index of the pin that answered last

	mu        sync.Mutex // guards the ephemeral key
	ephemeral hpke.PrivateKey
	born      time.Time
}

// NewClient checks cfg. It does not connect or block.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Conn == nil || cfg.Identity == nil {
		return nil, fmt.Errorf("%w: client needs Conn and Identity", ErrInvalid)
	}
	if p := cfg.Identity.Public(); checkPublic(p) != nil || p[0] != 'U' {
		return nil, fmt.Errorf("%w: the identity is not one of a requester (U...)", ErrInvalid)
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("%w: timeout of %v", ErrInvalid, cfg.Timeout)
	}
	if err := CheckName(cfg.Service); err != nil {
		return nil, fmt.Errorf("checking service: %w", err)
	}
	if len(cfg.Pins) == 0 {
		return nil, fmt.Errorf("%w: client needs at least one pin", ErrInvalid)
	}
	cfg.Pins = slices.Clone(cfg.Pins)
	for i, p := range cfg.Pins {
		if checkPublic(p) != nil || p[0] != 'N' { // not repeated: it may be a seed
			return nil, fmt.Errorf("%w: pin %d is not the public key of a service (N...)", ErrInvalid, i+1)
		}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Suite == "" {
		cfg.Suite = DefaultSuite()
	}
	kem, err := suiteKEM(cfg.Suite)
	if err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, kem: kem}, nil
}

// BadReplies counts replies that did not verify since the client was made:
// somebody else answers on the service's subjects.
func (c *Client) BadReplies() uint64 { return c.bad.Load() }

// Generate asks for one session grant per subject, at most [MaxBatch]. The
// answers have the order of the subjects, each with an error of its own. Needs
// the permission "generate" on the scopes.
func (c *Client) Generate(ctx context.Context, subjects []string) ([]SealKey, error) {
	for i, s := range subjects {
		if !utf8.ValidString(s) { // JSON would silently make another subject of it
			return nil, fmt.Errorf("%w: subject %d (%.64q) is not UTF-8", ErrInvalid, i+1, s)
		}
	}
	var res GenerateResult
	sent, err := c.call(ctx, OpGenerate, len(subjects), GenerateArgs{subjects}, &res)
	if err != nil {
		return nil, err
	}
	if len(res.Grants) != len(subjects) {
		return nil, fmt.Errorf("%w: %d grants for %d subjects", ErrUnavailable, len(res.Grants), len(subjects))
	}
	out := make([]SealKey, len(res.Grants))
	for i, w := range res.Grants {
		out[i] = sealKey(w, sent)
		clear(w.Subkey)
	}
	return out, nil
}

func sealKey(w WireGrant, sent time.Time) SealKey {
	if w.Error != nil {
		return SealKey{Err: w.Error.Err()}
	}
	if len(w.Salt) != envelope.SaltSize || w.ReuseMs <= 0 || w.Messages == 0 || w.Bytes == 0 {
		return SealKey{Err: fmt.Errorf("%w: malformed grant", ErrUnavailable)}
	}
	g, err := envelope.GrantFromParts(w.Record, envelope.Salt(w.Salt), w.Subkey)
	if err != nil {
		return SealKey{Err: recordError(err)}
	}
	k := SealKey{
		Scope: w.Scope, Grant: g,
		Messages: min(w.Messages, envelope.MaxSessionMessages), Bytes: min(w.Bytes, envelope.MaxSessionBytes),
	}
	k.NotAfter, k.RefreshAt = lease(sent, w.ReuseMs)
	return k
}

// OpenKeys asks for data keys, at most [MaxBatch]. The answers have the order of
// rs, each with an error of its own. Needs the permission "open" on the scopes.
func (c *Client) OpenKeys(ctx context.Context, rs []Record) ([]OpenedKey, error) {
	args := OpenArgs{Keys: make([]WireRecord, len(rs))}
	for i, r := range rs {
		args.Keys[i] = WireRecord{KeyID: r.KeyID.String(), Record: r.Bytes}
	}
	var res OpenResult
	sent, err := c.call(ctx, OpOpen, len(rs), args, &res)
	if err != nil {
		return nil, err
	}
	if len(res.Keys) != len(rs) {
		return nil, fmt.Errorf("%w: %d keys for %d records", ErrUnavailable, len(res.Keys), len(rs))
	}
	out := make([]OpenedKey, len(rs))
	for i, w := range res.Keys {
		out[i] = openedKey(w, rs[i].KeyID, sent)
		clear(w.Key)
	}
	return out, nil
}

func openedKey(w WireKey, id KeyID, sent time.Time) OpenedKey {
	fail := func(err error) OpenedKey { return OpenedKey{KeyID: id, Err: err} }
	if w.Error != nil {
		return fail(w.Error.Err())
	}
	if w.LeaseMs <= 0 {
		return fail(fmt.Errorf("%w: key without a lease", ErrUnavailable))
	}
	// Key ID -> core -> commitment -> key is checked here once, for everybody.
	record, err := envelope.ParseRecord(w.Record)
	if err != nil {
		return fail(recordError(err))
	}
	if record.Core.ID() != id || w.KeyID != id.String() {
		return fail(fmt.Errorf("%w: the record of another key", ErrInvalid))
	}
	key, err := envelope.NewDataKey(w.Key)
	if err == nil {
		err = record.Core.Verify(key)
	}
	if err != nil {
		return fail(fmt.Errorf("%w: %v", ErrInvalid, err))
	}
	k := OpenedKey{KeyID: id, Record: w.Record, Key: key}
	k.NotAfter, k.RefreshAt = lease(sent, w.LeaseMs)
	return k
}

func recordError(err error) error {
	if errors.Is(err, envelope.ErrUnsupported) {
		return fmt.Errorf("%w: %v", ErrUnsupported, err)
	}
	return fmt.Errorf("%w: %v", ErrInvalid, err)
}

// RouteKey asks for the MAC key of a route's positions. Needs the permission
// "route-key" on the route's name.
func (c *Client) RouteKey(ctx context.Context, route string) (RouteKey, error) {
	var res RouteKeyResult
	if _, err := c.call(ctx, OpRouteKey, 1, RouteKeyArgs{route}, &res); err != nil {
		return RouteKey{}, err
	}
	defer clear(res.Key)
	k, err := envelope.NewDataKey(res.Key)
	if err != nil {
		return RouteKey{}, fmt.Errorf("%w: malformed route key", ErrUnavailable)
	}
	return k, nil
}

// Scopes asks for the service's scope rules, so that scopes can be computed
// without a question per subject. The service computes them again itself.
func (c *Client) Scopes(ctx context.Context) (*ScopeRules, error) {
	var res ScopesResult
	if _, err := c.call(ctx, OpScopes, 1, ScopesArgs{}, &res); err != nil {
		return nil, err
	}
	return NewScopeRules(res.Rules)
}

// Status asks the service about itself; any enrolled identity may.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var res Status
	_, err := c.call(ctx, OpStatus, 1, StatusArgs{}, &res)
	return res, err
}

// call sends args, signed, and waits for a reply that verifies. It returns the
// time at which the answered request was sent: leases count from there.
//
// What others can provoke never ends the call: unsigned answers ("no responders"
// too), and signed ones to a copy of the request. A try gets a fresh nonce, and an answer to any of the
// tries counts: all operations here are idempotent.
func (c *Client) call(ctx context.Context, op string, n int, args, result any) (sent time.Time, err error) {
	var none time.Time
	if n < 1 || n > MaxBatch {
		return none, fmt.Errorf("%w: batch of %d, want 1 to %d", ErrInvalid, n, MaxBatch)
	}
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("%w: %s: %w", ErrUnavailable, op, err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.cfg.Timeout)
		defer cancel()
	}
	eph, err := c.ephemeralKey()
	if err != nil {
		return none, err
	}
	inbox := c.cfg.Conn.NewInbox()
	replies := make(chan *nats.Msg, 64)
	sub, err := c.cfg.Conn.ChanSubscribe(inbox+".*", replies)
	if err != nil {
		return none, fmt.Errorf("%w: %s: %w", ErrUnavailable, op, err)
	}
	defer func() { _ = sub.Unsubscribe() }()

	var tries []try
	cause := errors.New("no answer")
	pause := retryAfter
	pin := int(c.pin.Load())
	for {
		start := time.Now() // before anything of the request exists: leases count from here
		data, hash, err := encodeRequest(c.cfg.Identity, c.cfg.Pins[pin], op, c.cfg.Suite, eph, args)
		if err != nil {
			return none, err
		}
		tries = append(tries, try{hash, pin, start})
		reply := inbox + "." + strconv.Itoa(len(tries)-1)
		if err := c.cfg.Conn.PublishRequest(Subject(c.cfg.Service, op), reply, data); err != nil {
			switch {
			case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionDraining):
				return none, fmt.Errorf("%w: %s: %w", ErrUnavailable, op, err)
			case errors.Is(err, nats.ErrMaxPayload):
				return none, fmt.Errorf("%w: %s request of %d bytes: %w", ErrInvalid, op, len(data), err)
			}
			cause = err // reconnecting: a later try tells
		}
		pin = (pin + 1) % len(c.cfg.Pins)
		again := time.NewTimer(pause + rand.N(pause/4))
		for waiting := true; waiting; {
			select {
			case m := <-replies:
				i, err := strconv.Atoi(strings.TrimPrefix(m.Subject, inbox+"."))
				if err != nil || i < 0 || i >= len(tries) {
					continue
				}
				if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
					cause = nats.ErrNoResponders
					continue
				}
				signer, err := c.decode(m.Data, tries[i], eph, result)
				switch {
				case errors.Is(err, ErrBadReply):
					c.bad.Add(1)
					cause = err
				case errors.Is(err, ErrBusy), errors.Is(err, ErrMisdelivered):
					cause = err
				case signer != tries[i].pin && errors.Is(err, ErrInvalid):
					// The service goes by another of its pins, to which the request
					// was not addressed. At once, but only once around.
					cause, pin = fmt.Errorf("%w: %v", ErrMisdelivered, err), signer
					waiting = len(tries) >= len(c.cfg.Pins)
				default:
					again.Stop()
					c.pin.Store(uint32(signer))
					return tries[i].sent, err
				}
			case <-again.C:
				waiting = false
			case <-ctx.Done():
				again.Stop()
				return none, fmt.Errorf("%w: %s from service %q after %d tries: %w (%w)",
					ErrUnavailable, op, c.cfg.Service, len(tries), cause, ctx.Err())
			}
		}
		again.Stop()
		pause = min(2*pause, 2*time.Second)
	}
}

// try is one sending of a request.
type try struct {
	hash [32]byte
	pin  int // index of the pin that is the audience
	sent time.Time
}

// decode checks a reply against the pins, the audience first, and says which of
// them signed it.
func (c *Client) decode(data []byte, t try, eph hpke.PrivateKey, result any) (signer int, err error) {
	for i := range c.cfg.Pins {
		signer = (t.pin + i) % len(c.cfg.Pins)
		if err = decodeReply(data, c.cfg.Pins[signer], t.hash, eph, result); !errors.Is(err, ErrBadReply) {
			break
		}
	}
	return signer, err
}

// ephemeralKey returns the key pair results are sealed to: drawn anew every few
// seconds, used by this principal only.
func (c *Client) ephemeralKey() (hpke.PrivateKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ephemeral == nil || time.Since(c.born) > ephemeralLife {
		k, err := c.kem.GenerateKey()
		if err != nil {
			return nil, fmt.Errorf("drawing ephemeral key: %w", err)
		}
		c.ephemeral, c.born = k, time.Now()
	}
	return c.ephemeral, nil
}

// lease turns a duration from the wire into points in time, counted from the
// sending of the request and carrying its monotonic reading. Refreshing at 80 to
// 90 % keeps a fleet from asking at the same moment.
func lease(sent time.Time, ms int64) (notAfter, refreshAt time.Time) {
	d := time.Duration(min(ms, int64(30*24*time.Hour/time.Millisecond))) * time.Millisecond
	return sent.Add(d), sent.Add(d*8/10 + rand.N(d/10+1))
}
