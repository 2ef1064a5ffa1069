package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// DeadLetters is where a route parks messages that it cannot seal as they are:
// too large once sealed, with too many headers, on a subject without a scope, with
// reserved headers that the route rejects. Each is parked, sealed, before any
// later message leaves the route, and its source message is released like that of
// a sealed one. While it cannot be parked the route retries, or stops where
// retrying does not help.
type DeadLetters struct {
	// Stream is on the connection of the sealed stream; several routes may share
	// it. Its metadata must say keyweir-mode: dead-letters. Required.
	Stream string
	// Subject is what the subjects of dead letters begin with; see package
	// internal/deadletter for the rest. Zero: "deadletters".
	Subject string
	// Create makes the stream if it does not exist, for the subjects Subject + ".>".
	// When it is full it takes no more, rather than drop the oldest. Nil: it must
	// exist.
	Create *CreateSealed
	// Quarantine is a subject: what has no key of its own scope is sealed under
	// the key of this one's. Nothing is published to it, but the key service needs
	// a scope rule for it. Zero: "keyweir.quarantine." + the route's name.
	Quarantine string
	// Refused says what happens to messages of a scope whose key is denied to the
	// gateway by policy, or destroyed. Zero: RefusedWait.
	Refused Refused
}

// Refused says what happens to messages of scopes that policy refuses.
type Refused int

const (
	RefusedWait Refused = iota // the route waits for a grant; a destroyed key stops it
	RefusedPark                // they are parked, under the quarantine key
)

func (r Refused) String() string {
	switch r {
	case RefusedWait:
		return "wait"
	case RefusedPark:
		return "park"
	}
	return fmt.Sprintf("Refused(%d)", int(r))
}

// ParseRefused parses "wait" or "park", and "" as "wait"; anything else is
// [ErrConfig].
func ParseRefused(s string) (Refused, error) {
	switch s {
	case "", "wait":
		return RefusedWait, nil
	case "park":
		return RefusedPark, nil
	}
	return 0, fmt.Errorf("%w: refused %q, want wait or park", ErrConfig, s)
}

const maxDeadPrefix = 100 // bytes; with route, chain, sequence and part it stays below envelope.MaxAffix

// withDefaults checks d for r, whose sealed prefix is given.
func (d DeadLetters) withDefaults(r *Route, prefix string) (*DeadLetters, error) {
	if d.Subject == "" {
		d.Subject = deadletter.DefaultPrefix
	}
	if d.Quarantine == "" {
		d.Quarantine = deadletter.DefaultQuarantine(r.Name)
	}
	for what, s := range map[string]string{"subject": d.Subject, "quarantine": d.Quarantine} {
		if err := checkPattern(s); err != nil || strings.ContainsAny(s, "*>") || strings.HasPrefix(s, "$") || strings.HasPrefix(s, "_") {
			return nil, fmt.Errorf("%s %q, want a subject without wildcards", what, s)
		}
	}
	switch {
	case !streamName.MatchString(d.Stream):
		return nil, fmt.Errorf("stream %q, want 1 to 255 of A-Z a-z 0-9 _ -", d.Stream)
	case d.Stream == r.Sealed.Stream || r.Source.Conn == r.Sealed.Conn && d.Stream == r.Source.Stream:
		return nil, fmt.Errorf("stream %s has another part in the route", d.Stream)
	case len(d.Subject) > maxDeadPrefix:
		return nil, fmt.Errorf("subject of %d bytes, at most %d", len(d.Subject), maxDeadPrefix)
	case len(d.Quarantine) > envelope.MaxAffix:
		return nil, fmt.Errorf("quarantine subject of %d bytes, at most %d", len(d.Quarantine), envelope.MaxAffix)
	case d.Refused != RefusedWait && d.Refused != RefusedPark:
		return nil, fmt.Errorf("refused: %v", d.Refused)
	}
	own := d.patterns()[0]
	for _, s := range sealedPatterns(prefix, r.Source.Subjects) {
		if patternsOverlap(s, own) {
			return nil, fmt.Errorf("subject %q overlaps the sealed subjects", d.Subject)
		}
	}
	for _, s := range r.Source.Subjects {
		if r.Source.Conn == r.Sealed.Conn && patternsOverlap(s, own) {
			return nil, fmt.Errorf("subject %q overlaps the source subjects: the route would relay its own dead letters", d.Subject)
		}
	}
	if c := d.Create; c != nil {
		if c.Replicas < 0 || c.Replicas > 5 || c.MaxAge < 0 || c.MaxBytes < 0 || c.Storage != FileStorage && c.Storage != MemoryStorage {
			return nil, errors.New("create: replicas 0 to 5, and no negative limit")
		}
		copied := *c
		d.Create = &copied
	}
	return &d, nil
}

// patterns returns the subjects of all dead letters; none of a nil d.
func (d *DeadLetters) patterns() []string {
	if d == nil {
		return nil
	}
	return []string{d.Subject + ".>"}
}

// parkReason says why a message becomes a dead letter after err, "" if it does not.
func (w *worker) parkReason(err error) string {
	d := w.route.DeadLetters
	if err == nil || d == nil {
		return ""
	}
	for _, r := range []struct {
		err    error
		reason string
		when   bool
	}{
		{ErrTooLarge, deadletter.ReasonTooLarge, true},
		{ErrHeaders, deadletter.ReasonHeaders, true},
		{ErrReserved, deadletter.ReasonReserved, true},
		{keysvc.ErrNoScope, deadletter.ReasonNoScope, true},
		{keysvc.ErrDenied, deadletter.ReasonDenied, d.Refused == RefusedPark},
		{keysvc.ErrDestroyed, deadletter.ReasonShredded, d.Refused == RefusedPark},
	} {
		if r.when && errors.Is(err, r.err) {
			return r.reason
		}
	}
	return ""
}

// openDeadLetters finds or creates the dead-letter stream and checks it.
func (w *worker) openDeadLetters(ctx context.Context) (*jetstream.StreamInfo, error) {
	d := w.route.DeadLetters
	info, err := streamInfo(ctx, w.sealedJS, d.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) && d.Create != nil {
		if info, err = w.createDeadLetters(ctx); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			info, err = streamInfo(ctx, w.sealedJS, d.Stream) // another route was faster
		}
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: stream %s does not exist, and the route does not create it", ErrDeadLetters, d.Stream)
	}
	if err != nil {
		return nil, fmt.Errorf("opening dead letters: %w", err)
	}
	c := &info.Config
	for _, f := range refusals {
		if f.has(c) {
			return nil, fmt.Errorf("%w: stream %s has %s", ErrDeadLetters, c.Name, f.setting)
		}
	}
	if got := c.Metadata[MetadataMode]; got != deadletter.Mode {
		return nil, fmt.Errorf("%w: stream %s has the metadata %s=%q, want %q", ErrDeadLetters, c.Name, MetadataMode, got, deadletter.Mode)
	}
	if want := d.Subject + "." + w.route.Name + ".>"; !covered(c.Subjects, []string{want}) {
		return nil, fmt.Errorf("%w: stream %s takes %s, the route publishes to %s", ErrDeadLetters, c.Name, strings.Join(c.Subjects, ", "), want)
	}
	return info, nil
}

func (w *worker) createDeadLetters(ctx context.Context) (*jetstream.StreamInfo, error) {
	d := w.route.DeadLetters
	cfg := jetstream.StreamConfig{
		Name: d.Stream, Description: "dead letters of Keyweir, sealed", Subjects: d.patterns(),
		Replicas: max(d.Create.Replicas, 1), MaxAge: d.Create.MaxAge, MaxBytes: -1, AllowDirect: true,
		// One message a subject, so that the mark of one sent back replaces it. A
		// full stream refuses, and the route waits: nothing is dropped for another.
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew,
		AllowAtomicPublish: versionAtLeast(w.route.Sealed.Conn.ConnectedServerVersion(), 2, 12),
		Metadata:           map[string]string{MetadataMode: deadletter.Mode},
	}
	if d.Create.MaxBytes > 0 {
		cfg.MaxBytes = d.Create.MaxBytes
	}
	if d.Create.Storage == MemoryStorage {
		cfg.Storage = jetstream.MemoryStorage
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := w.sealedJS.CreateStream(ctx, cfg)
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == codeInvalidJSON {
		cfg.AllowAtomicPublish = false // see createDestination
		s, err = w.sealedJS.CreateStream(ctx, cfg)
	}
	switch {
	case err == nil:
		return s.CachedInfo(), nil
	case errors.As(err, &api) && api.Code == 400 && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse):
		return nil, fmt.Errorf("%w: creating stream %s: %v", ErrDeadLetters, d.Stream, err)
	}
	return nil, fmt.Errorf("creating stream %s: %w", d.Stream, err)
}

// openParking prepares for dead letters behind p; nil where the route has none.
func (w *worker) openParking(ctx context.Context, p *place) (*parking, error) {
	if w.route.DeadLetters == nil {
		return nil, nil
	}
	info, err := w.openDeadLetters(ctx)
	if err != nil {
		return nil, err
	}
	k := &parking{
		w: w, letters: *w.route.DeadLetters, chain: p.chain, atomic: info.Config.AllowAtomicPublish,
		maxSize: int(w.route.Sealed.Conn.MaxPayload()),
	}
	if m := int(info.Config.MaxMsgSize); m > 0 {
		k.maxSize = min(k.maxSize, m)
	}
	if _, _, err := w.ring.rules.Scope(k.letters.Quarantine); err != nil && w.openings == 0 {
		w.log.Warn("no scope rule covers the quarantine subject: a message without a scope will stop the route", "subject", k.letters.Quarantine, "error", err)
	}
	k.lag, _ = releaseLag(&info.Config, w.route.Sealed.SyncInterval)
	k.known, err = w.parkedBehind(ctx, p)
	return k, err
}

// parkedBehind returns which source messages behind p are parked already. A crash
// leaves some, if it came before the position record was written. They would be
// parked again, and refused as stored; but if the route has become able to seal
// them in the meantime, they must not come twice.
func (w *worker) parkedBehind(ctx context.Context, p *place) (map[uint64]bool, error) {
	d := w.route.DeadLetters
	filter := deadletter.Chain(d.Subject, w.route.Name, p.chain) + ".*"
	last, err := getFromLeader(ctx, w.route.Sealed.Conn, d.Stream, getRequest{LastFor: filter})
	if errors.Is(err, errNoMessage) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", err)
	}
	// They are parked in the order of the source, so that the last one tells,
	// unless it is the mark of one sent back.
	if pos, _, _, err := deadletter.ParseSubject(last.subject); err == nil && pos.Sequence <= p.cursor.scanned && last.header.Get(deadletter.HeaderRetried) == "" {
		return nil, nil
	}
	subjects, err := w.letterSubjects(ctx, filter)
	if err != nil {
		return nil, err
	}
	var known map[uint64]bool
	for subject := range subjects {
		pos, _, _, err := deadletter.ParseSubject(subject)
		if err != nil || pos.Sequence <= p.cursor.scanned {
			continue
		}
		if known == nil {
			known = make(map[uint64]bool)
		}
		known[pos.Sequence] = true
	}
	return known, nil
}

// letterSubjects returns the subjects in the dead-letter stream that match filter.
func (w *worker) letterSubjects(ctx context.Context, filter string) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*requestTimeout) // there may be many
	defer cancel()
	s, err := w.sealedJS.Stream(ctx, w.route.DeadLetters.Stream)
	if err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("reading dead letters: %w", err)
	}
	return info.State.Subjects, nil
}

// releaseLag is like the sealed stream's.
func (p *parking) releaseLag() time.Duration {
	if p == nil {
		return 0
	}
	return p.lag
}
