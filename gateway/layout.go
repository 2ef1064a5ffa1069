package gateway

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// layout says how a route is split, as PositionsBucket holds it under
// route.<name>.layout. Positions are bound to a sealed stream and a partition
// number; what no position can say is that the same subjects were sealed under
// other partitions before. Written by compare and swap.
type layout struct {
	Version int          `json:"v"`
	Route   string       `json:"route"`
	Source  string       `json:"source"`
	Prefix  string       `json:"prefix"` // of sealed subjects
	Split   bool         `json:"split"`  // false: the route is not partitioned
	Parts   []layoutPart `json:"partitions"`

	// Shared: all of them have one sealed stream. Unused is the creation time of it
	// (unix nanoseconds) if it held nothing when this was written, and never had: then
	// a partition without a checkpoint and without a record has not begun.
	Shared bool  `json:"shared,omitempty"`
	Unused int64 `json:"unused,omitempty"`

	// Begin is where partitions begin that were never relayed; nil: where the
	// route's start says.
	Begin *beginning `json:"begin,omitempty"`
	// Drain is where all of them shall end; nil: nowhere.
	Drain *beginning `json:"drain,omitempty"`
	MAC   string     `json:"mac"`
}

type layoutPart struct {
	Stream   string   `json:"stream"`
	Subjects []string `json:"subjects"` // filters of the source
}

// beginning is a place in the source stream.
type beginning struct {
	SourceCreated int64  `json:"source_created"` // unix nanoseconds
	After         uint64 `json:"after"`          // sequence
	Since         int64  `json:"since"`          // see cursor
	Gap           uint64 `json:"gap"`            // lost messages that no envelope has stated yet
}

const (
	layoutVersion = 1
	labelLayout   = "keyweir/v1/layout"
)

func newLayout(r *Route, parts []Route, prefix string) *layout {
	l := &layout{Version: layoutVersion, Route: r.Name, Source: r.Source.Stream, Prefix: prefix, Split: r.Source.Partitions != nil, Shared: r.Sealed.Shared}
	for _, p := range parts {
		l.Parts = append(l.Parts, layoutPart{p.Sealed.Stream, p.Source.Subjects})
	}
	return l
}

// same reports whether both split the route in the same way.
func (l *layout) same(o *layout) bool {
	return l.Route == o.Route && l.Source == o.Source && l.Prefix == o.Prefix && l.Split == o.Split && l.Shared == o.Shared &&
		slices.EqualFunc(l.Parts, o.Parts, func(a, b layoutPart) bool {
			return a.Stream == b.Stream && slices.Equal(a.Subjects, b.Subjects)
		})
}

// changed reports whether going on from the recorded layout l to o needs a drain.
// A route that is not partitioned, and was not, may change its filters or its
// sealed stream at any time, as positions say all there is to say.
func (l *layout) changed(o *layout) bool {
	return !l.same(o) && (l.Split || o.Split || l.Drain != nil)
}

func (l *layout) String() string {
	if !l.Split {
		return "one sealed stream, " + l.Parts[0].Stream
	}
	if l.Shared {
		return fmt.Sprintf("%d partitions that share sealed stream %s", len(l.Parts), l.Parts[0].Stream)
	}
	return fmt.Sprintf("%d partitions, the first in sealed stream %s", len(l.Parts), l.Parts[0].Stream)
}

// encode returns the entry: the MAC is over everything else in it.
func (l layout) encode(key keysvc.RouteKey) ([]byte, error) {
	l.MAC = ""
	b, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encoding layout: %w", err)
	}
	raw := envelope.ExposeDataKey(key)
	defer clear(raw)
	m := hmac.New(sha256.New, raw)
	m.Write(appendString(nil, labelLayout))
	m.Write(b)
	l.MAC = b64.EncodeToString(m.Sum(nil))
	if b, err = json.Marshal(l); err != nil {
		return nil, fmt.Errorf("encoding layout: %w", err)
	}
	return b, nil
}

var errInterest = errors.New("gateway: a stream with interest retention cannot be drained")

var errBadLayout = errors.New("the recorded layout was not written by this route")

// decodeLayout reads and authenticates an entry. Whatever is wrong is errBadLayout.
func decodeLayout(key keysvc.RouteKey, route string, b []byte) (*layout, error) {
	var l layout
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, errBadLayout
	}
	if _, err := d.Token(); err != io.EOF || l.Version != layoutVersion || l.Route != route || len(l.Parts) == 0 {
		return nil, errBadLayout
	}
	again, err := l.encode(key)
	if err != nil || !hmac.Equal(again, b) {
		return nil, errBadLayout
	}
	return &l, nil
}

func (w *worker) layoutKey() string { return "route." + w.route.Name + ".layout" }

// readLayout returns the recorded layout and its revision; nil if there is none.
func (w *worker) readLayout(ctx context.Context, b *bucket) (*layout, uint64, error) {
	raw, revision, err := b.get(ctx, w.layoutKey())
	if err != nil || raw == nil {
		return nil, revision, err
	}
	l, err := decodeLayout(w.routeKey, w.route.Name, raw)
	if errors.Is(err, errBadLayout) {
		if !w.part.layout.Split {
			w.log.Warn("overwriting a layout of somebody else")
			return nil, revision, nil
		}
		err = fmt.Errorf("%w: %w", ErrLayout, err)
	}
	return l, revision, err
}

func (w *worker) writeLayout(ctx context.Context, b *bucket, l *layout, revision uint64) error {
	raw, err := l.encode(w.routeKey)
	if err == nil {
		_, err = b.put(ctx, w.layoutKey(), raw, revision)
	}
	if err != nil {
		return fmt.Errorf("writing layout: %w", err)
	}
	return nil
}

// admit compares the configured layout with the recorded one before anything of
// the route is touched, and carries out the change to this one if it may be.
func (w *worker) admit(ctx context.Context) error {
	info, err := streamInfo(ctx, w.sealedJS, "KV_"+PositionsBucket)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // the first run of all
	}
	if err != nil {
		return err
	}
	if info.Config.MaxMsgsPerSubject != 1 {
		return fmt.Errorf("opening bucket %s: %w", PositionsBucket, errBadBucket)
	}
	b := &bucket{nc: w.route.Sealed.Conn, js: w.sealedJS, name: PositionsBucket}
	recorded, revision, err := w.readLayout(ctx, b)
	if err != nil || recorded == nil || !recorded.changed(w.part.layout) {
		return err
	}
	next, err := w.repartition(ctx, b, recorded)
	if err != nil {
		return err
	}
	if err := w.writeLayout(ctx, b, next, revision); err != nil {
		return err // another instance may have done it; look again
	}
	w.log.Info("began a new layout", "layout", next.String(), "after", next.Begin.After)
	return nil
}

// agree makes sure, under the claim, that the recorded layout is the configured
// one, and records what this run has to say about it.
func (w *worker) agree(ctx context.Context, b *bucket, d *destination, info *jetstream.StreamInfo) (*layout, error) {
	recorded, revision, err := w.readLayout(ctx, b)
	if err != nil {
		return nil, err
	}
	var next layout
	switch {
	case recorded == nil:
		next = *w.part.layout
		if next.Begin, err = w.begin(ctx, info); err != nil {
			return nil, err
		}
	case recorded.changed(w.part.layout):
		return nil, fmt.Errorf("%w: recorded are %v; configured are %v", ErrLayout, recorded, w.part.layout)
	case !recorded.same(w.part.layout):
		next = *w.part.layout
	default:
		next = *recorded
	}
	marked := next.Shared && next.Unused == 0 && d.unused
	if marked {
		next.Unused = d.created.UnixNano()
	}
	switch {
	case w.route.Drain && next.Drain == nil:
		if info.Config.Retention == jetstream.InterestPolicy {
			return nil, fmt.Errorf("%w: %w: stream %s: what nobody waits for while the layouts change would be lost", ErrLayout, errInterest, info.Config.Name)
		}
		next.Drain = &beginning{SourceCreated: info.Created.UnixNano(), After: info.State.LastSeq, Since: sinceOf(info, info.State.LastSeq)}
		w.log.Info("draining", "up_to", next.Drain.After)
	case !w.route.Drain && next.Drain != nil:
		next.Drain = nil
		w.log.Warn("this route was being drained and now goes on")
	case recorded != nil && recorded.same(&next) && !marked:
		return recorded, nil
	}
	return &next, w.writeLayout(ctx, b, &next, revision)
}

// begin is where partitions begin that do not start with the oldest message: the
// first one to run decides for all of them.
func (w *worker) begin(ctx context.Context, info *jetstream.StreamInfo) (*beginning, error) {
	if w.part.share == nil || w.route.Source.Start.kind == startFirst {
		return nil, nil
	}
	scanned, err := w.start(ctx, info)
	if err != nil {
		return nil, err
	}
	return &beginning{SourceCreated: info.Created.UnixNano(), After: scanned, Since: sinceOf(info, scanned)}, nil
}
