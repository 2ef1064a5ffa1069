package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// ModeHold is the mode of a hold stream: one fenced writer, which is also the only
// reader.
const ModeHold = "hold"

// Subjects of held messages are
//
//	keyweir.hold.<route>.<tag of the scope>.<origin subject>
//
// so that one consumer reads, and one purge removes, what is held of a scope. With
// partitions, the number of the partition stands before the tag.
type holdSubjects string // the prefix, with its last dot

func holdSubjectsOf(route string, partition uint32, split bool) holdSubjects {
	p := HoldSubject(route) + "."
	if split {
		p += strconv.FormatUint(uint64(partition), 10) + "."
	}
	return holdSubjects(p)
}

func (w *worker) holdSubjects() holdSubjects {
	return holdSubjectsOf(w.route.Name, w.part.number, w.part.layout.Split)
}

// fenceTag stands in the place of a tag in the subject of a fence, see holds. No
// scope has it.
const fenceTag = "fence-fence-fenc"

func (p holdSubjects) fence() string { return string(p) + fenceTag + ".fence" }

// tag names a scope in a subject: scopes may have characters that subjects have not.
func (holdSubjects) tag(scope string) string {
	sum := sha256.Sum256([]byte("keyweir/v1/hold-tag\x00" + scope))
	return hex.EncodeToString(sum[:8])
}

func (p holdSubjects) all() string                  { return string(p) + ">" }
func (p holdSubjects) of(tag string) string         { return string(p) + tag + ".>" }
func (p holdSubjects) message(tag, o string) string { return string(p) + tag + "." + o }

// parse splits the subject of a held message.
func (p holdSubjects) parse(subject string) (tag, origin string, ok bool) {
	rest, ok := strings.CutPrefix(subject, string(p))
	if !ok {
		return "", "", false
	}
	tag, origin, ok = strings.Cut(rest, ".")
	return tag, origin, ok && len(tag) == 16 && origin != ""
}

// losses are the settings under which a hold stream would lose what it holds, or
// could not be written in batches.
var losses = []struct {
	setting string
	has     func(*jetstream.StreamConfig) bool
	why     string
}{
	{"max_age", func(c *jetstream.StreamConfig) bool { return c.MaxAge > 0 }, "held messages would expire"},
	{"max_msgs_per_subject", func(c *jetstream.StreamConfig) bool { return c.MaxMsgsPerSubject > 0 }, "held messages would be removed"},
	{"discard: old", func(c *jetstream.StreamConfig) bool {
		return c.Discard == jetstream.DiscardOld && (c.MaxMsgs > 0 || c.MaxBytes > 0)
	}, "held messages would be removed; with discard: new the route waits instead"},
	{"allow_msg_ttl", func(c *jetstream.StreamConfig) bool { return c.AllowMsgTTL }, "held messages could expire"},
	{"deny_purge", func(c *jetstream.StreamConfig) bool { return c.DenyPurge }, "what was released could not be removed"},
	{"allow_atomic: false", func(c *jetstream.StreamConfig) bool { return !c.AllowAtomicPublish }, "held messages are written in atomic batches, which servers have from 2.12"},
}

// openHold finds or creates the route's hold stream and checks it. like is the
// sealed stream.
func (w *worker) openHold(ctx context.Context, like *jetstream.StreamConfig) (*destination, error) {
	js, r := w.sealedJS, &w.route
	info, err := streamInfo(ctx, js, r.Hold.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) && r.Hold.Create != nil {
		if info, err = w.createHold(ctx, like); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			info, err = streamInfo(ctx, js, r.Hold.Stream) // another instance was faster
		}
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: stream %s does not exist, and the route does not create it", ErrHold, r.Hold.Stream)
	}
	if err != nil {
		return nil, err
	}
	c := &info.Config
	for _, f := range refusals {
		if f.has(c) {
			return nil, fmt.Errorf("%w: stream %s has %s: %s", ErrHold, c.Name, f.setting, f.why)
		}
	}
	for _, f := range losses {
		if f.has(c) {
			return nil, fmt.Errorf("%w: stream %s has %s: %s", ErrHold, c.Name, f.setting, f.why)
		}
	}
	mode, route := c.Metadata[MetadataMode], c.Metadata[MetadataRoute]
	if mode != ModeHold || route != r.Name {
		return nil, fmt.Errorf("%w: stream %s has the metadata %s=%q, %s=%q, want %q and %q", ErrHold, c.Name, MetadataMode, mode, MetadataRoute, route, ModeHold, r.Name)
	}
	if want := w.holdSubjects().all(); !covered(c.Subjects, []string{want}) {
		return nil, fmt.Errorf("%w: stream %s takes %s, the route publishes to %s", ErrHold, c.Name, strings.Join(c.Subjects, ", "), want)
	}
	return &destination{config: *c, created: info.Created, streamFirst: info.State.FirstSeq, lastSeq: info.State.LastSeq, unused: info.State.Msgs == 0}, nil
}

func (w *worker) createHold(ctx context.Context, like *jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	r, c := &w.route, w.route.Hold.Create
	cfg := jetstream.StreamConfig{
		Name: r.Hold.Stream, Description: "held by Keyweir, route " + r.Name + "; do not edit",
		Subjects: []string{w.holdSubjects().all()}, Replicas: c.Replicas, AllowAtomicPublish: true,
		Metadata: map[string]string{MetadataMode: ModeHold, MetadataRoute: r.Name},
	}
	if c.Replicas == 0 {
		cfg.Replicas = like.Replicas
	}
	if c.Storage == MemoryStorage {
		cfg.Storage = jetstream.MemoryStorage
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := w.sealedJS.CreateStream(ctx, cfg)
	if err != nil {
		var api *jetstream.APIError
		if errors.As(err, &api) && api.Code == 400 && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return nil, fmt.Errorf("%w: creating stream %s: %v", ErrHold, r.Hold.Stream, err)
		}
		return nil, fmt.Errorf("creating stream %s: %w", r.Hold.Stream, err)
	}
	return s.CachedInfo(), nil
}
