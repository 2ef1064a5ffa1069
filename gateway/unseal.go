package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

// UnsealConfig says what [NewUnseal] makes.
type UnsealConfig struct {
	Routes []Unseal // at least one
	// Keys gives the MAC keys of the routes' positions: of "unseal-" followed by
	// the route's name, which no sealing route can have. Required.
	Keys RouteKeys
	// Opener opens the messages. Required; the caller closes it after [Gateway.Run]
	// returned. Its policy is not used: each route has its own.
	Opener *streams.Opener
	// Instance, ClaimTTL, Logger and MeterProvider are as in [Config].
	Instance      string
	ClaimTTL      time.Duration
	Logger        *slog.Logger
	MeterProvider metric.MeterProvider
}

// RouteKeys is the part of [Keys] that a route needs that opens; *keysvc.Client
// is one.
type RouteKeys interface {
	RouteKey(ctx context.Context, route string) (keysvc.RouteKey, error)
}

// Unseal relays one sealed stream, or a part of it, to a stream of plaintext, for
// consumers that cannot link package streams, and as the way out: each message
// once and in order, by the same fence and the same recovery as sealing.
//
// What comes out is what the application published: payload, subject (behind
// Plain.Prefix) and headers. Headers are filtered once more: no Nats-* or
// Keyweir-* of the sealed copy becomes live, except that the publisher's
// Nats-Msg-Id is carried as Keyweir-Msg-Id; as Nats-Msg-Id, the server would drop
// a second message with the same one. Every message also carries its position,
// Keyweir-Source.
//
// A message whose key is out of reach (denied, suspended, unavailable) is waited
// for, with everything behind it.
type Unseal struct {
	// Name is required and unique: up to 57 of A-Z a-z 0-9 _ -. [RouteStats],
	// [RouteError], metadata and grants name the route "unseal-" + Name.
	Name   string
	Sealed UnsealSource
	Plain  Plain
	// OnUndecryptable says what becomes of a message that does not open, or whose
	// plaintext cannot be stored as it was. Zero: UndecryptableStop.
	OnUndecryptable OnUndecryptable
	// Park is where UndecryptablePark puts such messages.
	Park Park
	// ResumeFrom, Engine and Window are as in [Route]; ResumeFrom is a sequence of
	// the sealed stream.
	ResumeFrom *uint64
	Engine     Engine
	Window     int
}

// UnsealSource says what is opened. Nothing is ever removed from it.
type UnsealSource struct {
	Conn     *nats.Conn // required; as in [Source]
	Stream   string     // required
	Subjects []string   // required: filters of sealed subjects that do not overlap
	// Start is required while nothing was relayed yet, and ignored afterwards.
	Start Start
	// OnSourceGap: zero: GapStop.
	OnSourceGap OnSourceGap
}

// Plain says where plaintext goes.
type Plain struct {
	Conn   *nats.Conn // required
	Stream string     // required: up to 255 of A-Z a-z 0-9 _ -
	// Subjects are patterns of the origin subjects that may come out. Required.
	// Whoever may seal chooses the origin subject of a message, and this keeps it
	// from choosing where this process publishes: a message on any other subject is
	// handled like one that does not open.
	Subjects []string
	// Prefix stands before the origin subject in what is published, like "clear."
	// Optional.
	Prefix string
	// Create makes the stream if it does not exist. Nil: it must exist, with the
	// metadata keyweir-mode=unsealed and keyweir-route=unseal-<name>.
	Create *CreateSealed
	// SyncInterval only matters for the choice of the engine; as in [Sealed].
	SyncInterval time.Duration
}

// OnUndecryptable says what to do with a message that cannot be unsealed.
type OnUndecryptable int

const (
	UndecryptableStop OnUndecryptable = iota // the route stops with ErrUndecryptable
	UndecryptablePark                        // it is stored elsewhere, still sealed, and left out
)

var undecryptableNames = [...]string{UndecryptableStop: "stop", UndecryptablePark: "park"}

func (o OnUndecryptable) String() string {
	if o >= 0 && int(o) < len(undecryptableNames) {
		return undecryptableNames[o]
	}
	return fmt.Sprintf("OnUndecryptable(%d)", int(o))
}

// ParseOnUndecryptable parses "stop" or "park", and "" as "stop"; anything else is
// [ErrConfig].
func ParseOnUndecryptable(s string) (OnUndecryptable, error) {
	if s == "" {
		return UndecryptableStop, nil
	}
	for o, name := range undecryptableNames {
		if name == s {
			return OnUndecryptable(o), nil
		}
	}
	return 0, fmt.Errorf("%w: on_undecryptable %q, want stop or park", ErrConfig, s)
}

// unsealPrefix begins the names of routes that open. Sealing routes cannot have
// such a name, so that no grant for one route's key is ever one for the other's.
const unsealPrefix = "unseal-"

// unsealing is what a route that opens has besides a Route.
type unsealing struct {
	opener   *streams.Opener
	subjects []string // origin patterns that may come out
	prefix   string
	policy   OnUndecryptable
	parking  Park
	parkJS   jetstream.JetStream
}

// alike reports whether both open alike; either may be nil. The opener and the
// connection are compared by identity.
func (u *unsealing) alike(o *unsealing) bool {
	if u == nil || o == nil {
		return u == o
	}
	return u.opener == o.opener && slices.Equal(u.subjects, o.subjects) && u.prefix == o.prefix && u.policy == o.policy && u.parking == o.parking
}

// NewUnseal checks cfg and makes a gateway whose routes open instead of sealing.
// It does not block and asks no server. [Gateway.ReconfigureUnseal] changes its
// routes. Errors wrap [ErrConfig].
func NewUnseal(cfg UnsealConfig) (*Gateway, error) {
	if cfg.Keys == nil || cfg.Opener == nil || len(cfg.Routes) == 0 {
		return nil, fmt.Errorf("%w: unsealing needs keys, an opener and at least one route", ErrConfig)
	}
	out := Config{
		Keys: routeKeysOnly{cfg.Keys}, Instance: cfg.Instance, ClaimTTL: cfg.ClaimTTL, Logger: cfg.Logger, MeterProvider: cfg.MeterProvider,
	}
	for _, u := range cfg.Routes {
		out.Routes = append(out.Routes, u.route(cfg.Opener))
	}
	g, err := New(out)
	if err != nil {
		return nil, err
	}
	g.opens = true
	return g, nil
}

// routeKeysOnly makes sure that a route that opens never asks for keys to seal.
type routeKeysOnly struct{ RouteKeys }

func (routeKeysOnly) Scopes(context.Context) (*keysvc.ScopeRules, error) {
	return nil, fmt.Errorf("%w: a route that opens does not seal", keysvc.ErrDenied)
}

func (routeKeysOnly) Generate(context.Context, []string) ([]keysvc.SealKey, error) {
	return nil, fmt.Errorf("%w: a route that opens does not seal", keysvc.ErrDenied)
}

// route is u as the relay sees it: the sealed stream is the source.
func (u *Unseal) route(opener *streams.Opener) Route {
	return Route{
		Name: unsealPrefix + u.Name,
		Source: Source{
			Conn: u.Sealed.Conn, Stream: u.Sealed.Stream, Subjects: slices.Clone(u.Sealed.Subjects),
			AfterSeal: AfterSealKeep, Start: u.Sealed.Start, OnSourceGap: u.Sealed.OnSourceGap,
		},
		Sealed:     Sealed{Conn: u.Plain.Conn, Stream: u.Plain.Stream, Create: u.Plain.Create, SyncInterval: u.Plain.SyncInterval},
		ResumeFrom: u.ResumeFrom, Engine: u.Engine, Window: u.Window,
		unseal: &unsealing{
			opener: opener, subjects: slices.Clone(u.Plain.Subjects), prefix: u.Plain.Prefix,
			policy: u.OnUndecryptable, parking: u.Park,
		},
	}
}

// unsealDefaults is withDefaults of a route that opens.
func (r Route) unsealDefaults() (Route, error) {
	fail := func(format string, args ...any) (Route, error) {
		return Route{}, &RouteError{r.Name, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...)}
	}
	if short := strings.TrimPrefix(r.Name, unsealPrefix); !routeName.MatchString(short) || !routeName.MatchString(r.Name) {
		return fail("name %q, want 1 to 57 of A-Z a-z 0-9 _ -", short)
	}
	u := r.unseal
	for _, p := range u.subjects {
		if err := checkPattern(p); err != nil {
			return fail("plain subject %q: %v", p, err)
		}
	}
	if len(u.subjects) == 0 {
		return fail("no plain subjects")
	}
	if p := u.prefix; p != "" {
		// With a subject behind it, a prefix is a pattern without wildcards.
		if err := checkPattern(p + "x"); err != nil || !strings.HasSuffix(p, ".") || strings.ContainsAny(p, "*>") || strings.HasPrefix(p, "$") || strings.HasPrefix(p, "_") {
			return fail("plain prefix %q, want something like clear.", p)
		}
	}
	if u.policy != UndecryptableStop && u.policy != UndecryptablePark {
		return fail("on_undecryptable %v", u.policy)
	}
	for _, s := range r.Source.Subjects {
		if err := checkPattern(s); err != nil {
			return fail("sealed subject %q: %v", s, err)
		}
	}
	if r.Source.Conn != nil && r.Source.Conn == r.Sealed.Conn {
		if r.Source.Stream == r.Sealed.Stream {
			return fail("stream %s is read and written", r.Source.Stream)
		}
		if anyOverlap(r.targets(""), r.Source.Subjects) {
			return fail("plain subjects overlap the sealed ones: the route would relay its own output")
		}
	}
	own := *u
	if err := own.withPark(&r); err != nil {
		return fail("%v", err)
	}
	// What both kinds of routes have in common is checked as of a sealing route,
	// to which a sealed subject makes no difference here.
	name, subject := r.Name, r.Sealed.Subject
	r.unseal, r.Name, r.Sealed.Subject = nil, strings.TrimPrefix(r.Name, unsealPrefix), "keyweir-unseal.>"
	r, err := r.withDefaults()
	if re := (*RouteError)(nil); errors.As(err, &re) {
		re.Route = name
	}
	if err != nil {
		return Route{}, err
	}
	r.unseal, r.Name, r.Sealed.Subject = &own, name, subject
	return r, nil
}

// prefix is that of sealed subjects; "" where the route opens.
func (r *Route) prefix() (string, error) {
	if r.unseal != nil {
		return "", nil
	}
	return sealedPrefix(r.Sealed.Subject, r.Source.Subjects)
}

// targets are the subjects that the route publishes to.
func (r *Route) targets(prefix string) []string {
	if r.unseal != nil {
		return sealedPatterns(r.unseal.prefix, r.unseal.subjects)
	}
	return sealedPatterns(prefix, r.Source.Subjects)
}

// mode is what the metadata of the route's destination must say.
func (r *Route) mode() string {
	if r.unseal != nil {
		return ModeUnsealed
	}
	if r.Ingest != nil {
		return ModeOpen
	}
	return ModeRelayed
}

// checkOwnOutput refuses a source that was unsealed from the stream the route
// seals to: each message would go round for ever.
func checkOwnOutput(source *jetstream.StreamConfig, sealed string) error {
	if source.Metadata[MetadataMode] == ModeUnsealed && source.Metadata[MetadataFrom] == sealed {
		return fmt.Errorf("%w: stream %s was unsealed from %s: sealing it into %s again would never end", ErrSource, source.Name, sealed, sealed)
	}
	return nil
}
