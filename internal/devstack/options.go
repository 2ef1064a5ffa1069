package devstack

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/keyweir/keyweir/keysvc"
)

// Options says what to run.
type Options struct {
	// Dir keeps the state: the sealed stream and the key service's store. It is
	// created if missing. Empty: a temporary directory that Close removes.
	Dir string
	// KeepKeys keeps the keys in Dir, too, so that another start opens what this
	// one sealed. False: keys live in memory only, no file has one, and Dir must
	// be empty.
	KeepKeys bool
	// Listen is where the hub listens, host:port. Empty: nowhere, only
	// in-process connections.
	Listen string
	// OwnLanding gives the plaintext stream a server of its own, which listens
	// nowhere. False: it is on the hub.
	OwnLanding bool
	// MaxPayload is the largest plaintext message. 0: 1 MiB. The hub takes a
	// little more, for the seal.
	MaxPayload int
	// Source is the plaintext stream, in memory always; Sealed the sealed one.
	// Required.
	Source, Sealed string
	// Subjects are the plaintext subjects. Required.
	Subjects []string
	// SealedSubject is where envelopes are published, "sealed.>" for instance.
	// Required.
	SealedSubject string
	// Scopes say which subjects share a data key. Required.
	Scopes []keysvc.ScopeRule
	// Reuse is how long a data key seals new messages. 0: 5 minutes.
	Reuse time.Duration
	// Logger gets what the parts log. Nil discards.
	Logger *slog.Logger
	// Meter gets their metrics. Nil discards.
	Meter metric.MeterProvider
}

func (o *Options) check() error {
	switch {
	case o.Source == "" || o.Sealed == "" || len(o.Subjects) == 0 || o.SealedSubject == "" || len(o.Scopes) == 0:
		return errors.New("starting stack: streams, subjects and scopes are required")
	case o.KeepKeys && o.Dir == "":
		return errors.New("starting stack: keys are kept only in a directory")
	case o.MaxPayload < 0 || o.MaxPayload > 32<<20:
		return fmt.Errorf("starting stack: largest payload %d is not from 0 to 32 MiB", o.MaxPayload)
	}
	return nil
}

func (o *Options) maxPayload() int {
	if o.MaxPayload == 0 {
		return 1 << 20
	}
	return o.MaxPayload
}

func (o *Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}
