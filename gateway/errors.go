package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/keysvc"
)

// Why a route stops for good. Everything else is retried with a growing pause
// and shows in [RouteStats].LastError.
var (
	// ErrConfig: the route as configured cannot work. [New], [Gateway.Reconfigure] and
	// [Purge] return it.
	ErrConfig = errors.New("gateway: invalid configuration")
	// ErrSource: the source stream cannot be relayed: its settings contradict the
	// route's, or another consumer stands in the way.
	ErrSource = errors.New("gateway: source stream refused")
	// ErrDestination: the sealed stream is missing, or has a setting that would
	// break the promise.
	ErrDestination = errors.New("gateway: sealed stream refused")
	// ErrEngine: the route demands an engine that the sealed stream, or its server,
	// does not serve.
	ErrEngine = errors.New("gateway: engine not available")
	// ErrSourceChanged: the source stream is not the one the position belongs to:
	// deleted and made again, or restored from an older backup. Going on could
	// skip messages that carry sequences already sealed.
	ErrSourceChanged = errors.New("gateway: source stream changed")
	// ErrSourceGap: limits removed messages from the source stream before they
	// were sealed, and the route says to stop then.
	ErrSourceGap = errors.New("gateway: source messages lost before they were sealed")
	// ErrPosition: where the relay stands cannot be told for certain: the sealed
	// stream's last message was written by somebody else, or is gone without a
	// position record that matches.
	ErrPosition = errors.New("gateway: position unknown")
	// ErrLayout: the partitions of the route are not those it was relayed with, and
	// those were not drained.
	ErrLayout = errors.New("gateway: partitions changed")
	// ErrNoStart: nothing was relayed yet and the route does not say where to begin.
	ErrNoStart = errors.New("gateway: start is required on the first run")
	// ErrTooLarge: one message would exceed what the sealed stream's server takes
	// once it is sealed.
	ErrTooLarge = errors.New("gateway: message too large once sealed")
	// ErrHeaders: one message has more headers than an envelope can carry.
	ErrHeaders = errors.New("gateway: too many headers")
	// ErrReserved: one message has a header that belongs to NATS or Keyweir, and
	// the route rejects those.
	ErrReserved = errors.New("gateway: reserved header")
	// ErrDeadLetters: a message that cannot be sealed as it is cannot be parked
	// either, or the dead-letter stream is missing or set up wrongly.
	ErrDeadLetters = errors.New("gateway: dead letters refused")
	// ErrUndecryptable: one sealed message does not open, or its plaintext cannot
	// be stored as it was published. Only routes that open return it, see [Unseal].
	ErrUndecryptable = errors.New("gateway: message cannot be unsealed")
	// ErrPark: the stream of parked messages is missing or does not take them.
	ErrPark = errors.New("gateway: cannot park messages")
	// ErrConnection: a connection of the route was closed for good.
	ErrConnection = errors.New("gateway: connection closed")
)

// What ends one attempt only.
var (
	// ErrFenced: the sealed stream refused a message because another one was
	// stored first: somebody else relays this route. The worker reads the
	// position again; nothing was stored twice.
	ErrFenced = errors.New("gateway: refused by the fence, another writer was first")
	// ErrKeys: the key service gave no key to seal with, or to open with. The route
	// waits.
	ErrKeys = errors.New("gateway: no key")

	errAckLost     = errors.New("gateway: acknowledgement lost")
	errClaimLost   = errors.New("gateway: claim lost")
	errHandOver    = errors.New("gateway: handing the partition over")
	errDrained     = errors.New("gateway: drained")
	errReopen      = errors.New("gateway: source must be read again")
	errRefused     = errors.New("gateway: sealed stream refused the message")
	errRecordMoved = errors.New("gateway: position record changed by another instance")
)

// RouteError says which route an error belongs to.
type RouteError struct {
	Route string
	Err   error // wraps one sentinel of this package or of keysvc
}

func (e *RouteError) Error() string { return fmt.Sprintf("route %s: %v", e.Route, e.Err) }
func (e *RouteError) Unwrap() error { return e.Err }

// Hint says what an operator can do about the error, in one or two sentences;
// "" where there is nothing to add.
func (e *RouteError) Hint() string {
	for _, h := range hints {
		if errors.Is(e.Err, h.err) {
			return h.text
		}
	}
	return ""
}

var hints = []struct {
	err  error
	text string
}{
	{ErrUndecryptable, "keyweir inspect shows what is stored there; set on_undecryptable: park to put such messages aside, still sealed, and go on"},
	{ErrPark, "make the stream of parked messages, or correct the park section of the route"},
	{ErrSourceChanged, "find out who recreated or restored the source stream; then name the first source sequence to seal with --resume-from"},
	{ErrSourceGap, "the messages are gone; to go on, set on_source_gap: continue, or name the first source sequence to seal with --resume-from"},
	{ErrPosition, "check who else may publish to the sealed subjects or delete from the sealed stream; then name the first source sequence to seal with --resume-from"},
	{errHeld, "run the route as it was, with hold, and see why the scopes have no key; keyweir gateway --drain ends when all of it is released; to give held messages up, purge the hold stream"},
	{errInterest, "stop the gateway, give the stream limits retention (nats stream edit STREAM --retention limits), and drain again; with after_seal: purge the gateway then removes what it sealed, whoever else reads the stream"},
	{ErrLayout, "configure the recorded partitions again; to change them, run them with --drain until it ends, take the subjects from their sealed streams or delete those (hold streams too), then start the new ones with new sealed streams"},
	{ErrNoStart, "set the route's start to first, new, a sequence or a time"},
	{ErrUnsealed, "they came before the route's start, were skipped by --resume-from, or their sealed copies or dead letters are gone: seal or remove those yourself first"},
	{ErrDeadLetters, "see to it that the dead-letter stream exists, takes the route's subjects, allows atomic batches and has room, and that a scope rule covers the quarantine subject"},
	{ErrTooLarge, "give the route dead_letters; or raise max_payload of the sealed stream's server (or the stream's max_msg_size), or remove the message from the source stream"},
	{ErrHeaders, "an envelope carries at most 64 headers of 32 KiB; give the route dead_letters, or remove the message from the source stream"},
	{ErrReserved, "give the route dead_letters or reserved_headers: drop, or remove the message from the source stream"},
	{ErrEngine, "set engine: auto, or update the sealed stream's server and set allow_batched (fast) or allow_atomic (durable) on the stream"},
	{ErrDestination, "change the sealed stream, or let the gateway create a new one (create)"},
	{ErrHold, "change the hold stream or the scope rules as the error says; if held messages were removed, restore the stream, or purge it to give up what it still holds"},
	{ErrSource, "change the source stream or the route"},
	{ErrConnection, "restart the gateway; connections should be made to reconnect for ever"},
	{keysvc.ErrNoScope, "add a scope rule for the subject at the key service, narrow the route's source subjects, or give the route dead_letters"},
	{keysvc.ErrDestroyed, "the scope's key is destroyed; give the subject another scope"},
	{keysvc.ErrUnsupported, "gateway and key service do not fit together; upgrade the older one"},
}

var stopping = []error{
	ErrConfig, ErrSource, ErrDestination, ErrEngine, ErrSourceChanged, ErrSourceGap, ErrPosition, ErrLayout, ErrNoStart, ErrTooLarge,
	ErrHold, ErrHeaders, ErrReserved, ErrDeadLetters, ErrUndecryptable, ErrPark, ErrConnection, nats.ErrConnectionClosed, keysvc.ErrNoScope, keysvc.ErrDestroyed, keysvc.ErrUnsupported,
}

// stops reports whether err ends the route rather than the attempt.
func stops(err error) bool {
	for _, s := range stopping {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// pause is a growing, jittered wait between attempts.
type pause struct{ b backoff.ExponentialBackOff }

func newPause(first, longest time.Duration) *pause {
	return &pause{backoff.ExponentialBackOff{InitialInterval: first, MaxInterval: longest, Multiplier: 2, RandomizationFactor: 0.5}}
}

func (p *pause) reset() { p.b.Reset() }

// wait waits for the next interval; an error means that ctx ended.
func (p *pause) wait(ctx context.Context) error { return sleep(ctx, p.b.NextBackOff()) }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
