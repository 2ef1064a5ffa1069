package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/pattern"
)

// shard says which partition of several that share a sealed stream a Route is
// reduced to. Methods do what is right for nil, which is any other Route.
//
// Where partitions share a stream, its last sequence is no fence: each of them moves
// it. The fence of a partition is its checkpoint, see [checkpoint.Checkpoint]: every
// batch is atomic, ends with one, and is refused unless the one before is the last
// on its subject. With Nats-Rollup, there is never more than one.
//
// A condition on the last sequence of a subject has a hole: when the message is gone,
// by age or by hand, the server falls back to 0, and whoever expects 0 gets in.
// So no batch ever does. A tenure begins with a checkpoint that is stored alone,
// under a condition on the last sequence of the stream as well, which nothing ever
// sets back: nobody can have written since the tenure read its position, see take.
// And since the sequence is known then, it is under the MAC.
type shard struct {
	number   uint32
	count    uint32
	subjects []string // filters of the whole route
}

// checkShared refuses what a shared sealed stream cannot be had together with.
func (r *Route) checkShared(prefix string) error {
	if !r.Sealed.Shared {
		return nil
	}
	checkpoints := []string{checkpoint.Pattern(r.Sealed.Stream)}
	switch n := len(r.Source.Partitions); {
	case r.Ingest != nil:
		return errors.New("shared: a core ingest route has no partitions to share its sealed stream")
	case n == 0:
		return errors.New("shared: the route has no partitions to share the sealed stream")
	case n > checkpoint.MaxPartitions:
		return fmt.Errorf("shared: %d partitions, at most %d share a sealed stream", n, checkpoint.MaxPartitions)
	case r.Engine != EngineAuto && r.Engine != EngineDurable:
		return fmt.Errorf("shared: needs the engine durable, and the route says %v", r.Engine)
	case r.Hold != nil:
		return errors.New("shared: does not go together with hold")
	case strings.Contains(r.Sealed.Stream, pattern.PartitionMark):
		return fmt.Errorf("shared: the sealed stream is one, so %s has no meaning in its name", pattern.PartitionMark)
	case anyOverlap(checkpoints, sealedPatterns(prefix, r.Source.Subjects)):
		return fmt.Errorf("shared: sealed subjects overlap those of checkpoints, %s", checkpoints[0])
	case r.Source.Conn == r.Sealed.Conn && anyOverlap(checkpoints, r.Source.Subjects):
		return fmt.Errorf("shared: source subjects overlap those of checkpoints, %s: the route would relay its own output", checkpoints[0])
	}
	return nil
}

// bound are the subjects that the route's sealed stream must take.
func (r *Route) bound(prefix string) []string {
	if r.shard == nil {
		return r.targets(prefix)
	}
	return append(sealedPatterns(prefix, r.shard.subjects), checkpoint.Pattern(r.Sealed.Stream))
}

// create changes the settings of a sealed stream that is to be made.
func (s *shard) create(c *jetstream.StreamConfig) {
	if s == nil {
		return
	}
	c.AllowRollup = true
	c.Description += ", shared by its partitions"
	c.Metadata[MetadataShared] = s.metadata()
}

func (s *shard) metadata() string {
	if s == nil {
		return ""
	}
	return strconv.FormatUint(uint64(s.count), 10)
}

// check refuses sealed streams that are set up for another kind of route.
func (s *shard) check(c *jetstream.StreamConfig) error {
	if have := c.Metadata[MetadataShared]; have != s.metadata() {
		return fmt.Errorf("%w: stream %s has the metadata %s=%q, want %q", ErrDestination, c.Name, MetadataShared, have, s.metadata())
	}
	if s != nil && !c.AllowRollup {
		return fmt.Errorf("%w: stream %s has no allow_rollup_hdrs, which a checkpoint replaces the one before with", ErrDestination, c.Name)
	}
	return nil
}

// sized reports whether a stream drops its oldest messages for their number or
// size, so that busy partitions could push out the checkpoint of an idle one.
func sized(c *jetstream.StreamConfig) bool {
	return c.Discard == jetstream.DiscardOld && (c.MaxMsgs > 0 || c.MaxBytes > 0)
}

// takesCheckpoints reports whether a source that several partitions share would
// hand out their checkpoints as well.
func takesCheckpoints(c *jetstream.StreamConfig, filters []string) bool {
	return c.Metadata[MetadataShared] != "" && slices.ContainsFunc(filters, func(f string) bool {
		return pattern.Overlap(f, checkpoint.Prefix+"*.*")
	})
}
