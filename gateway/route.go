package gateway

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/internal/pattern"
)

// Route relays one source stream, or a part of it, to one sealed stream, or to one
// for each partition.
type Route struct {
	// Name is required and unique: up to 64 of A-Z a-z 0-9 _ -. It is part of
	// every position's MAC, so a renamed route stops at its old position.
	Name   string
	Source Source
	Sealed Sealed
	// Record, PadTo and RandomNonce are settings of the seal, see
	// envelope.SessionConfig. The zero values are right for most.
	Record      envelope.RecordMode
	PadTo       int
	RandomNonce bool
	// PassHeaders are application headers, by exact name, that also travel in
	// clear. Optional; never Nats-* or Keyweir-*.
	PassHeaders []string
	// ResumeFrom is the first source sequence to seal where the route would
	// otherwise stop because its position is unknown, its source changed or
	// messages are missing. It is ignored while the position is sound, so leaving
	// it set does no harm; it counts once per process. Optional. Source messages
	// below it count as done: with AfterSealPurge they are removed unsealed.
	ResumeFrom *uint64
	// ResumePartitions is ResumeFrom for single partitions, by number, of a route
	// that has partitions: the others stop as ever. It excludes ResumeFrom, which
	// counts for every partition.
	ResumePartitions map[int]uint64
	// ReservedHeaders says what happens to input with headers that belong to NATS
	// or Keyweir. Zero: ReservedDrop.
	ReservedHeaders ReservedHeaders
	// DeadLetters is where messages go that cannot be sealed as they are. Nil: the
	// first of them stops the route.
	DeadLetters *DeadLetters
	// Hold is for scopes that have no key for a while: denied, suspended, or their
	// authority is away past the stale limit. With it, their messages, and all later
	// ones of theirs, wait sealed in a hold stream, the other scopes go on, and when
	// the key is back they are released in order before new ones. Nil: the whole
	// route waits. Either way it waits while no key service answers. Needs the
	// engine durable, which EngineAuto then is.
	Hold *Hold
	// Engine is how the sealed stream is written. Zero: EngineAuto.
	Engine Engine
	// Window is how many messages may await their acknowledgement: 1 to 16384;
	// zero: 512. EngineDurable does not use it: it has up to two batches of 1,000.
	Window int
	// Drain ends the route where the source stream ended when the first instance
	// was told to: every partition is sealed up to there and no further, and its
	// worker ends with StateDrained. It is the first step of another partitioning,
	// see [Source].Partitions; a later run without it goes on. Streams with interest
	// retention cannot be drained.
	Drain bool
	// Ingest makes it a core ingest route, which takes plain publishes instead of
	// reading a stream. Nil: a stream is relayed.
	Ingest *CoreIngest

	unseal *unsealing // set where the route opens instead of sealing
	shard  *shard     // set for one partition of several that share a sealed stream
}

// Source says what is read.
type Source struct {
	// Conn is required; the caller closes it, after [Gateway.Run] returned. It
	// should reconnect for ever (nats.MaxReconnects(-1)).
	Conn   *nats.Conn
	Stream string // required
	// Subjects are filters that do not overlap, each with * and >. Required, unless
	// Partitions say them.
	Subjects []string
	// Partitions split the route: each is a list of filters, and every one of
	// Subjects must be in exactly one partition, which New checks. Each partition
	// has a worker, a claim, a chain and a sealed stream of its own, and the
	// instances of a gateway share them evenly. Order per subject holds, as a
	// subject has one partition. For filters "0.>", "1.>" and so on, the subject
	// transform of a landing stream can write partition(N, ...) in front of each
	// subject; origin subjects then have that token. Nil: one partition.
	//
	// Once a partition was relayed, they can only change after the old ones were
	// drained: run the old layout with Drain until Run returns, take the subjects of
	// its sealed streams away (or delete them), then run the new one with new sealed
	// streams. It begins where the old one ended, after it checked that all of the
	// old one ended there. Anything else stops with ErrLayout.
	Partitions [][]string
	// AfterSeal has no default. WorkQueue sources take AfterSealPurge only.
	AfterSeal AfterSeal
	// Start is required while nothing was relayed yet, and ignored afterwards.
	// WorkQueue sources take StartFirst only. With AfterSealPurge it must not leave
	// older messages behind, which a purge would remove unsealed.
	Start Start
	// OnSourceGap: zero: GapStop.
	OnSourceGap OnSourceGap
}

// Sealed says where envelopes go.
type Sealed struct {
	// Conn is required; it may be the connection of the source.
	Conn *nats.Conn
	// Stream is required: up to 255 of A-Z a-z 0-9 _ -. With partitions, {partition}
	// in it stands for the number of the partition, from 0; without it the names are
	// <stream>-0, <stream>-1 and so on.
	Stream string
	// Subject ends in > and gives the prefix of sealed subjects, which are always
	// prefix + origin subject: either "sealed.>" as it stands, or the prefix
	// followed by the route's only source filter, as "sealed.orders.>" for
	// "orders.>". Both turn orders.eu into sealed.orders.eu. Required.
	Subject string
	// Shared makes the partitions of the route, 32 at most, write to one sealed
	// stream, which then has the name Stream: fewer streams, not more messages per
	// second. Each partition keeps its chain and its position, in checkpoints on
	// subjects of their own (keyweir.checkpoint.<stream>.<partition>), which package
	// streams skips. Needs the engine durable, which EngineAuto then is, and a stream
	// with allow_rollup_hdrs; it cannot be had together with Hold.
	Shared bool
	// Create makes the stream if it does not exist. Nil: it must exist.
	Create *CreateSealed
	// SyncInterval is the sync_interval of the sealed stream's server, which a
	// client cannot ask for. A source message is released only that much later
	// than its sealed copy was acknowledged, since until then the copy may not
	// survive a power failure. Zero: 2 minutes, the server's default; SyncAlways
	// (or any negative value): at once. Streams with three replicas or more do
	// not wait, nor do memory streams, where waiting gains nothing. A WorkQueue or
	// interest source delivers at most 1,048,576 messages ahead of the release.
	SyncInterval time.Duration
}

// SyncAlways as a SyncInterval: the server syncs before it acknowledges.
const SyncAlways time.Duration = -1

const defaultSyncInterval = 2 * time.Minute

// StorageType is where a created sealed stream lives.
type StorageType int

const (
	FileStorage StorageType = iota
	MemoryStorage
)

// CreateSealed are the settings of a sealed stream that the gateway makes. The
// zero value is one replica on file without limits.
type CreateSealed struct {
	Replicas int           // zero: 1
	MaxAge   time.Duration // zero: unlimited
	MaxBytes int64         // zero: unlimited
	Storage  StorageType
}

// AfterSeal says what happens to source messages whose sealed copy is safe.
type AfterSeal int

const (
	AfterSealPurge AfterSeal = iota + 1 // they are removed: purged, or acknowledged
	AfterSealKeep                       // the source stream's own limits decide
)

func (a AfterSeal) String() string {
	switch a {
	case AfterSealPurge:
		return "purge"
	case AfterSealKeep:
		return "keep"
	}
	return fmt.Sprintf("AfterSeal(%d)", int(a))
}

// ParseAfterSeal parses "purge" or "keep"; anything else is [ErrConfig].
func ParseAfterSeal(s string) (AfterSeal, error) {
	for a := AfterSealPurge; a <= AfterSealKeep; a++ {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%w: after_seal %q, want purge or keep", ErrConfig, s)
}

// OnSourceGap says what to do when limits removed source messages unsealed.
type OnSourceGap int

const (
	GapStop     OnSourceGap = iota // the route stops with ErrSourceGap
	GapContinue                    // the next envelope states how many are missing
)

func (g OnSourceGap) String() string {
	switch g {
	case GapStop:
		return "stop"
	case GapContinue:
		return "continue"
	}
	return fmt.Sprintf("OnSourceGap(%d)", int(g))
}

// ParseOnSourceGap parses "stop" or "continue", and "" as "stop"; anything else
// is [ErrConfig].
func ParseOnSourceGap(s string) (OnSourceGap, error) {
	switch s {
	case "", "stop":
		return GapStop, nil
	case "continue":
		return GapContinue, nil
	}
	return 0, fmt.Errorf("%w: on_source_gap %q, want stop or continue", ErrConfig, s)
}

type startKind int

const (
	startFirst startKind = iota + 1
	startNew
	startSequence
	startTime
)

// Start is where a route begins that relayed nothing yet. The zero Start is
// none, with which a first run stops.
type Start struct {
	kind startKind
	seq  uint64
	at   time.Time
}

// StartFirst begins with the oldest message the source stream holds.
func StartFirst() Start { return Start{kind: startFirst} }

// StartNew begins with the next message published.
func StartNew() Start { return Start{kind: startNew} }

// StartSequence begins with a source sequence, from 1.
func StartSequence(seq uint64) Start { return Start{kind: startSequence, seq: seq} }

// StartTime begins with the first message stored at t or later.
func StartTime(t time.Time) Start { return Start{kind: startTime, at: t} }

func (s Start) String() string {
	switch s.kind {
	case startFirst:
		return "first"
	case startNew:
		return "new"
	case startSequence:
		return strconv.FormatUint(s.seq, 10)
	case startTime:
		return s.at.Format(time.RFC3339Nano)
	}
	return ""
}

// ParseStart parses "first", "new", a sequence from 1, or a time as RFC 3339;
// "" is the zero Start, anything else [ErrConfig].
func ParseStart(s string) (Start, error) {
	switch s {
	case "":
		return Start{}, nil
	case "first":
		return StartFirst(), nil
	case "new":
		return StartNew(), nil
	}
	if seq, err := strconv.ParseUint(s, 10, 64); err == nil && seq > 0 {
		return StartSequence(seq), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return StartTime(t), nil
	}
	return Start{}, fmt.Errorf("%w: start %q, want first, new, a sequence or a time like 2006-01-02T15:04:05Z", ErrConfig, s)
}

const (
	defaultWindow = 512
	maxWindow     = 16384
)

var (
	routeName  = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	streamName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`)
	headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
)

// withDefaults checks r and fills in what zero values stand for. The result
// shares nothing that the caller could change.
func (r Route) withDefaults() (Route, error) {
	if r.unseal != nil {
		return r.unsealDefaults()
	}
	fail := func(format string, args ...any) (Route, error) {
		return Route{}, &RouteError{r.Name, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...)}
	}
	if !routeName.MatchString(r.Name) {
		return fail("name %q, want 1 to 64 of A-Z a-z 0-9 _ -", r.Name)
	}
	if strings.HasPrefix(r.Name, unsealPrefix) {
		return fail("name %q: names beginning with %s are those of routes that open", r.Name, unsealPrefix)
	}
	if r.Source.Conn == nil || r.Sealed.Conn == nil {
		return fail("source and sealed need a connection each")
	}
	if r.Ingest == nil && r.Source.Stream == "" || strings.ContainsAny(r.Source.Stream, " \t\r\n.*>/\\") {
		return fail("source stream %q", r.Source.Stream)
	}
	for _, s := range r.sealedStreams() {
		if !streamName.MatchString(s) {
			return fail("sealed stream %q, want 1 to 255 of A-Z a-z 0-9 _ -", s)
		}
	}
	if len(r.Source.Subjects) == 0 {
		r.Source.Subjects = slices.Concat(r.Source.Partitions...)
	}
	if len(r.Source.Subjects) == 0 {
		return fail("no source subjects")
	}
	r.Source.Subjects = append([]string(nil), r.Source.Subjects...)
	for i, s := range r.Source.Subjects {
		if err := checkPattern(s); err != nil {
			return fail("source subject %q: %v", s, err)
		}
		for _, o := range r.Source.Subjects[:i] {
			if patternsOverlap(s, o) {
				return fail("source subjects %q and %q overlap", o, s)
			}
		}
	}
	if r.Ingest != nil && (r.Source.Partitions != nil || r.Drain) {
		return fail("a core ingest route has no partitions, and no position to drain to")
	}
	if r.Source.Partitions != nil {
		own := make([][]string, len(r.Source.Partitions))
		for i, filters := range r.Source.Partitions {
			own[i] = slices.Sorted(slices.Values(filters))
		}
		if err := pattern.CheckPartitions(r.Source.Subjects, own); err != nil {
			return fail("%v", err)
		}
		r.Source.Partitions = own
	}
	if r.Ingest == nil && r.Source.AfterSeal != AfterSealPurge && r.Source.AfterSeal != AfterSealKeep {
		return fail("after_seal is required: purge or keep")
	}
	if r.Source.OnSourceGap != GapStop && r.Source.OnSourceGap != GapContinue {
		return fail("on_source_gap %v", r.Source.OnSourceGap)
	}
	if r.Source.Start.kind == startSequence && r.Source.Start.seq == 0 || r.ResumeFrom != nil && *r.ResumeFrom == 0 {
		return fail("source sequences begin at 1")
	}
	if r.ResumeFrom != nil && r.ResumePartitions != nil {
		return fail("told where to resume both the route and its partitions")
	}
	r.ResumePartitions = maps.Clone(r.ResumePartitions)
	for i, seq := range r.ResumePartitions {
		switch {
		case seq == 0:
			return fail("source sequences begin at 1")
		case i < 0 || i >= len(r.Source.Partitions):
			return fail("told where to resume partition %d, of %d", i, len(r.Source.Partitions))
		}
	}
	prefix, err := sealedPrefix(r.Sealed.Subject, r.Source.Subjects)
	if err != nil {
		return fail("%v", err)
	}
	if (r.Source.Conn == r.Sealed.Conn || r.Ingest != nil) && overlapsSource(prefix, r.Source.Subjects) {
		return fail("sealed subjects %q overlap the source subjects: the route would relay its own output", prefix+">")
	}
	if c := r.Sealed.Create; c != nil {
		if c.Replicas < 0 || c.Replicas > 5 || c.MaxAge < 0 || c.MaxBytes < 0 || c.Storage != FileStorage && c.Storage != MemoryStorage {
			return fail("create: replicas 0 to 5, and no negative limit")
		}
		own := *c
		r.Sealed.Create = &own
	}
	if r.Sealed.SyncInterval == 0 {
		r.Sealed.SyncInterval = defaultSyncInterval
	}
	if r.Record > envelope.RecordReference || r.PadTo < 0 || r.PadTo > envelope.MaxPadTo {
		return fail("record mode %v, pad to %d", r.Record, r.PadTo)
	}
	r.PassHeaders = append([]string(nil), r.PassHeaders...)
	for _, h := range r.PassHeaders {
		if !headerName.MatchString(h) || !mayPass(h) {
			return fail("header %q cannot be passed", h)
		}
	}
	if r.Ingest != nil {
		if err := r.ingestDefaults(); err != nil {
			return fail("%v", err)
		}
	}
	if r.ReservedHeaders < ReservedDrop || r.ReservedHeaders > ReservedReject {
		return fail("reserved headers %v", r.ReservedHeaders)
	}
	if r.Ingest != nil && (r.DeadLetters != nil || r.ReservedHeaders != ReservedDrop) {
		return fail("core ingest answers what it cannot seal: it has no dead letters and no reserved headers to reject")
	}
	if r.DeadLetters != nil {
		own, err := r.DeadLetters.withDefaults(&r, prefix)
		if err != nil {
			return fail("dead letters: %v", err)
		}
		r.DeadLetters = own
	}
	if r.Hold, err = r.Hold.withDefaults(&r); err != nil {
		return fail("%v", err)
	}
	if r.Engine < EngineAuto || r.Engine > EngineAsync {
		return fail("engine %v", r.Engine)
	}
	if err := r.checkShared(prefix); err != nil {
		return fail("%v", err)
	}
	if r.Window == 0 {
		r.Window = defaultWindow
	}
	if r.Window < 1 || r.Window > maxWindow {
		return fail("window %d, want 1 to %d", r.Window, maxWindow)
	}
	return r, nil
}
