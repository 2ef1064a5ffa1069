package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// Config says what an [Opener] reads and how. Keys is required; all other zero
// values are safe: nothing is accepted, and what does not open stops the reader.
type Config struct {
	// Keys opens data keys, as a rule a [keysvc.Client]. Required; the caller
	// closes it, if it needs that, after the Opener.
	Keys KeyOpener
	// Accept is what the reader pins. Zero: nothing is accepted.
	Accept Accept
	// OnUndecryptable is what Messages and Consume do with a message that will
	// not open. Zero: stop.
	OnUndecryptable Policy
	// Logger gets holds, releases and parked messages. Nil discards.
	Logger *slog.Logger
	// OnState is told when Messages or Consume starts and stops holding. It is
	// called from the goroutine that reads and must not block. Optional.
	OnState func(State)
	// Fetch is how many messages a pull asks for; at most twice as many are kept
	// waiting in memory. 0: 256.
	Fetch int
	// FetchBytes bounds the bytes of one pull. 0: 8 MiB.
	FetchBytes int
	// MaxKeys bounds the data keys kept. 0: 1024.
	MaxKeys int
	// KeyTimeout bounds one call to Keys. 0: 10 s.
	KeyTimeout time.Duration
	// UnknownKeyWait is how old a message must be, at least, before a key that
	// the key service does not know makes it undecryptable: its record may still
	// be on its way. 0: 30 s; negative: at once.
	UnknownKeyWait time.Duration
}

// timing holds the pauses of an Opener.
type timing struct {
	keyCall                  time.Duration
	refuseShort, refuseFinal time.Duration // how long an answer is remembered
	refreshRetry             time.Duration
	holdMin, holdMax         time.Duration // pause between tries while holding, doubling
	settle                   time.Duration // wait for a pull to fill before keys are asked for
	unknown                  time.Duration
	heartbeat                time.Duration // of an idle pull
}

func (c *Config) times() timing {
	return timing{
		keyCall:     orDefault(c.KeyTimeout, 10*time.Second),
		refuseShort: 500 * time.Millisecond, refuseFinal: 30 * time.Second,
		refreshRetry: 5 * time.Second,
		holdMin:      250 * time.Millisecond, holdMax: 15 * time.Second,
		settle:    10 * time.Millisecond,
		heartbeat: 3 * time.Second,
		unknown:   max(0, orDefault(c.UnknownKeyWait, 30*time.Second)),
	}
}

func orDefault[T int | time.Duration](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

func (c *Config) check() error {
	if c.Keys == nil {
		return errors.New("checking reader configuration: Keys is required")
	}
	for _, f := range []struct {
		name string
		n    int
	}{{"Fetch", c.Fetch}, {"FetchBytes", c.FetchBytes}, {"MaxKeys", c.MaxKeys}, {"KeyTimeout", int(c.KeyTimeout)}} {
		if f.n < 0 {
			return fmt.Errorf("checking reader configuration: %s is negative", f.name)
		}
	}
	return nil
}

// Opener opens sealed messages. Safe for concurrent use; one per program and
// key service is enough.
type Opener struct {
	accept Accept
	policy Policy
	log    *slog.Logger
	state  func(State)
	fetch  int
	bytes  int
	times  timing
	cache  *keyCache
}

// New makes an Opener. It does not block.
func New(cfg Config) (*Opener, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	accept, err := cfg.Accept.clone()
	if err != nil {
		return nil, err
	}
	o := &Opener{
		accept: accept, policy: cfg.OnUndecryptable, log: cfg.Logger, state: cfg.OnState,
		fetch: orDefault(cfg.Fetch, 256), bytes: orDefault(cfg.FetchBytes, 8<<20), times: cfg.times(),
	}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	o.cache = newKeyCache(cfg.Keys, &o.accept, orDefault(cfg.MaxKeys, 1024), o.times)
	return o, nil
}

// Close drops all keys and waits for background calls. Later opens fail with
// [ErrClosed]; messages already opened stay readable. Safe to call twice.
func (o *Opener) Close() error {
	o.cache.close()
	return nil
}

// String keeps keys out of logs.
func (o *Opener) String() string { return "streams.Opener" }

// Format prints String under every verb.
func (o *Opener) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.String()) }

// Open opens one message. It blocks at most for one call to the key service.
// Errors are [*OpenError]; m is neither changed nor acknowledged.
func (o *Opener) Open(ctx context.Context, m jetstream.Msg) (*Message, error) {
	if len(m.Data()) == 0 && o.isCheckpoint(streamOf(m), m.Subject(), m.Headers(), m.Data()) {
		return nil, openError(m, ErrCheckpoint)
	}
	body, err := o.open(ctx, o.sealedSubject(m.Subject()), m.Data())
	if err != nil {
		return nil, openError(m, err)
	}
	return &Message{raw: m, body: body}, nil
}

// OpenRaw opens a message that was read from a stream by sequence or subject. It
// has metadata, but nothing to acknowledge.
func (o *Opener) OpenRaw(ctx context.Context, stream string, m *jetstream.RawStreamMsg) (*Message, error) {
	if o.isCheckpoint(stream, m.Subject, m.Header, m.Data) {
		return nil, &OpenError{Stream: stream, Subject: m.Subject, Sequence: m.Sequence, Err: ErrCheckpoint}
	}
	body, err := o.open(ctx, o.sealedSubject(m.Subject), m.Data)
	if err != nil {
		return nil, &OpenError{Stream: stream, Subject: m.Subject, Sequence: m.Sequence, KeyID: keyIDOf(m.Data), Err: err}
	}
	meta := &jetstream.MsgMetadata{Stream: stream, Timestamp: m.Time, Sequence: jetstream.SequencePair{Stream: m.Sequence}}
	return &Message{meta: meta, body: body}, nil
}

// Prefetch asks for the keys of sealed messages that the Opener does not hold yet,
// as many in one call as the key service takes, and waits for them. It is for
// programs that open many messages one by one; a failure shows when they do.
func (o *Opener) Prefetch(ctx context.Context, sealed [][]byte) {
	var ws []want
	seen := make(map[envelope.KeyID]bool)
	for _, b := range sealed {
		if _, w, err := o.parse(b); err == nil && !seen[w.id] && !o.cache.holds(w) {
			seen[w.id] = true
			ws = append(ws, w)
		}
	}
	for chunk := range slices.Chunk(ws, keysvc.MaxBatch) {
		o.cache.prefetch(ctx, chunk)
	}
}

// OpenBytes opens an envelope that did not travel as a message. location is the
// subject it was sealed for and must match exactly; Accept.Subjects is not asked.
func (o *Opener) OpenBytes(ctx context.Context, location string, b []byte) ([]byte, error) {
	body, err := o.open(ctx, location, b)
	if err != nil {
		return nil, &OpenError{Subject: location, KeyID: keyIDOf(b), Err: err}
	}
	return body.data, nil
}

// sealedSubject maps a delivered subject to the one to expect in the envelope.
func (o *Opener) sealedSubject(delivered string) string {
	if o.accept.Subjects == nil {
		return delivered
	}
	return o.accept.Subjects(delivered)
}

// open does it all. On an error no plaintext is left in memory by it, and the
// error wraps one sentinel.
func (o *Opener) open(ctx context.Context, sealed string, b []byte) (*body, error) {
	e, w, err := o.parse(b)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		key, err := o.cache.get(ctx, w)
		if err != nil {
			return nil, err
		}
		buf := make([]byte, 0, len(e.Sealed))
		opened, err := key.reader.Open(buf, &e)
		if errors.Is(err, envelope.ErrInvalid) {
			// The lease ended, or the key was displaced, since get.
			if try == 0 {
				continue
			}
			return nil, fmt.Errorf("%w: the key's lease ended", ErrUnavailable)
		}
		if err != nil {
			return nil, ErrTampered
		}
		origin := opened.Meta.OriginSubject()
		if err := o.accept.meta(&opened.Meta, sealed, origin, key.scope); err != nil {
			clear(buf[:cap(buf)])
			return nil, err
		}
		return newBody(&opened, origin, sealed, key), nil
	}
}

// parse reads the clear part and says which key it needs.
func (o *Opener) parse(b []byte) (envelope.Envelope, want, error) {
	e, err := envelope.Parse(b)
	if err != nil {
		return e, want{}, envelopeError(err)
	}
	if !slices.Contains(o.accept.Suites, e.Suite) {
		return e, want{}, fmt.Errorf("%w: suite %v", ErrNotAccepted, e.Suite)
	}
	return e, want{e.KeyID, e.Record}, nil
}

func keyIDOf(b []byte) envelope.KeyID {
	e, err := envelope.Parse(b)
	if err != nil {
		return envelope.KeyID{}
	}
	return e.KeyID
}

// openError adds a message's coordinates.
func openError(m jetstream.Msg, err error) *OpenError {
	e := &OpenError{Subject: m.Subject(), KeyID: keyIDOf(m.Data()), Err: err, raw: m}
	if meta, merr := m.Metadata(); merr == nil {
		e.Stream, e.Consumer, e.Sequence = meta.Stream, meta.Consumer, meta.Sequence.Stream
	}
	return e
}
