package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Metadata of a sealed stream. The mode says who may write to it.
const (
	MetadataMode  = "keyweir-mode"
	MetadataRoute = "keyweir-route"

	// MetadataShared is how many partitions share the stream, absent where none do.
	MetadataShared = "keyweir-shared"

	// MetadataFrom names the sealed stream that an unsealed one comes from.
	MetadataFrom = "keyweir-unsealed-from"

	ModeRelayed  = "relayed"  // one fenced writer
	ModeOpen     = "open"     // core ingest routes and applications that seal, any number
	ModeUnsealed = "unsealed" // plaintext again, one fenced writer
)

// refusals are the settings under which a sealed stream cannot keep the promise
// of a relayed stream, and why. A stream with any of them is ErrDestination.
var refusals = []struct {
	setting string
	has     func(*jetstream.StreamConfig) bool
	why     string
}{
	{"allow_msg_schedules", func(c *jetstream.StreamConfig) bool { return c.AllowMsgSchedules }, "the server would write scheduled messages of its own, with old headers"},
	{"subject_delete_marker_ttl", func(c *jetstream.StreamConfig) bool { return c.SubjectDeleteMarkerTTL != 0 }, "the server would write delete markers, which move the last sequence"},
	{"sources", func(c *jetstream.StreamConfig) bool { return len(c.Sources) > 0 }, "the sources would be further writers"},
	{"mirror", func(c *jetstream.StreamConfig) bool { return c.Mirror != nil }, "a mirror takes no messages"},
	{"subject_transform", func(c *jetstream.StreamConfig) bool { return c.SubjectTransform != nil }, "messages would be stored under another subject than the one that is sealed"},
	{"allow_msg_counter", func(c *jetstream.StreamConfig) bool { return c.AllowMsgCounter }, "the server would replace payloads by sums"},
	{"persist_mode: async", func(c *jetstream.StreamConfig) bool { return c.PersistMode == jetstream.AsyncPersistMode }, "messages would be acknowledged before they are written"},
	{"no_ack", func(c *jetstream.StreamConfig) bool { return c.NoAck }, "nothing would be acknowledged"},
	{"sealed", func(c *jetstream.StreamConfig) bool { return c.Sealed }, "the stream takes no more messages"},
	{"retention", func(c *jetstream.StreamConfig) bool { return c.Retention != jetstream.LimitsPolicy }, "reading would remove messages, or keep them out"},
	{"discard_new_per_subject", func(c *jetstream.StreamConfig) bool { return c.DiscardNewPerSubject }, "one full subject would hold up all others for ever"},
}

// destination is the sealed stream as one tenure found it.
type destination struct {
	config  jetstream.StreamConfig
	created time.Time
	lastSeq uint64 // that the next message must follow: the stream's, or the partition's where several share it
	unused  bool   // nothing was ever stored

	// Where partitions share the stream, see readTip.
	tip                     *tip   // the last checkpoint of this one; nil: none is there
	streamFirst, streamLast uint64 // sequences
}

// openDestination finds or creates the sealed stream and checks it.
func openDestination(ctx context.Context, js jetstream.JetStream, r *Route, prefix string) (*destination, error) {
	info, err := streamInfo(ctx, js, r.Sealed.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) && r.Sealed.Create != nil {
		if info, err = createDestination(ctx, js, r, prefix); errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			info, err = streamInfo(ctx, js, r.Sealed.Stream) // another instance was faster
		}
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: stream %s does not exist, and the route does not create it", ErrDestination, r.Sealed.Stream)
	}
	if err != nil {
		return nil, err
	}
	if err := checkDestination(&info.Config, r, prefix); err != nil {
		return nil, err
	}
	first := max(info.Config.FirstSeq, 1)
	return &destination{
		config: info.Config, created: info.Created, lastSeq: info.State.LastSeq,
		unused:      info.State.LastSeq < first, // a stream with first_seq begins one below it
		streamFirst: info.State.FirstSeq, streamLast: info.State.LastSeq,
	}, nil
}

func createDestination(ctx context.Context, js jetstream.JetStream, r *Route, prefix string) (*jetstream.StreamInfo, error) {
	c := r.Sealed.Create
	cfg := jetstream.StreamConfig{
		Name: r.Sealed.Stream, Description: "sealed by Keyweir, route " + r.Name,
		Subjects: r.bound(prefix),
		Replicas: max(c.Replicas, 1), MaxAge: c.MaxAge, MaxBytes: -1, AllowDirect: true,
		Metadata: map[string]string{MetadataMode: r.mode(), MetadataRoute: r.Name},
	}
	if r.unseal != nil {
		cfg.Description = "unsealed by Keyweir, route " + r.Name
		cfg.Metadata[MetadataFrom] = r.Source.Stream
	}
	r.shard.create(&cfg)
	if r.Ingest != nil {
		delete(cfg.Metadata, MetadataRoute) // others may write, too
		cfg.AllowMsgTTL = r.Ingest.AllowTTL
	}
	if c.MaxBytes > 0 {
		cfg.MaxBytes = c.MaxBytes
	}
	if c.Storage == MemoryStorage {
		cfg.Storage = jetstream.MemoryStorage
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	version := r.Sealed.Conn.ConnectedServerVersion()
	cfg.AllowAtomicPublish, cfg.AllowBatchPublish = versionAtLeast(version, 2, 12), versionAtLeast(version, 2, 14)
	s, err := js.CreateStream(ctx, cfg)
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == codeInvalidJSON {
		// The stream lives on an older server than the connection, which denies
		// settings that it does not know.
		cfg.AllowAtomicPublish, cfg.AllowBatchPublish = false, false
		s, err = js.CreateStream(ctx, cfg)
	}
	if err != nil {
		if errors.As(err, &api) && api.Code == 400 && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return nil, fmt.Errorf("%w: creating stream %s: %v", ErrDestination, r.Sealed.Stream, err)
		}
		return nil, fmt.Errorf("creating stream %s: %w", r.Sealed.Stream, err)
	}
	return s.CachedInfo(), nil
}

// codeInvalidJSON: the server did not understand a request.
const codeInvalidJSON = 10025

// versionAtLeast compares the version of a server, like 2.14.0 or 2.14.0-RC.1.
func versionAtLeast(version string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(version, "%d.%d.", &a, &b); n < 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

func checkDestination(c *jetstream.StreamConfig, r *Route, prefix string) error {
	for _, f := range refusals {
		if f.has(c) {
			return fmt.Errorf("%w: stream %s has %s: %s", ErrDestination, c.Name, f.setting, f.why)
		}
	}
	mode, route := c.Metadata[MetadataMode], c.Metadata[MetadataRoute]
	if mode != r.mode() || r.Ingest == nil && route != r.Name {
		return fmt.Errorf("%w: stream %s has the metadata %s=%q, %s=%q, want %q and %q", ErrDestination, c.Name, MetadataMode, mode, MetadataRoute, route, r.mode(), r.Name)
	}
	if r.Ingest != nil && r.Ingest.AllowTTL && !c.AllowMsgTTL {
		return fmt.Errorf("%w: stream %s has no allow_msg_ttl, which the route grants (allow_ttl)", ErrDestination, c.Name)
	}
	if err := r.shard.check(c); err != nil {
		return err
	}
	if want := r.bound(prefix); !covered(c.Subjects, want) {
		return fmt.Errorf("%w: stream %s takes %s, the route publishes to %s", ErrDestination, c.Name, strings.Join(c.Subjects, ", "), strings.Join(want, ", "))
	}
	return nil
}

// releaseLag is how long after its acknowledgement a sealed copy counts as safe,
// see [Sealed].SyncInterval. warning is for the log, "" for none.
func releaseLag(c *jetstream.StreamConfig, sync time.Duration) (lag time.Duration, warning string) {
	switch {
	case c.Replicas >= 3:
		return 0, ""
	case c.Storage == jetstream.MemoryStorage:
		return 0, "the sealed stream lives in memory: a restart of its server loses what the source no longer holds"
	case sync < 0:
		return 0, ""
	}
	return sync, fmt.Sprintf("the sealed stream has %d replica(s) and no sync_interval: always: a power failure can lose acknowledged messages; source messages are released %v later", c.Replicas, sync)
}
