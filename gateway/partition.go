package gateway

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/pattern"
)

// part says which partition of its route a worker relays. The worker's own Route
// has the filters and the sealed stream of that partition alone.
type part struct {
	number uint32
	layout *layout // of the whole route, as configured
	share  *share  // nil: the route is not partitioned
}

// count is how many partitions the route has.
func (p *part) count() uint32 { return uint32(len(p.layout.Parts)) }

// sealedStreams are the names of the route's sealed streams.
func (r *Route) sealedStreams() []string {
	if r.Sealed.Shared {
		return []string{r.Sealed.Stream}
	}
	return pattern.StreamNames(r.Sealed.Stream, len(r.Source.Partitions))
}

// split returns a route for each partition of r, which has its defaults.
func (r *Route) split() []Route {
	names := r.sealedStreams()
	if r.Sealed.Shared {
		names = slices.Repeat(names, len(r.Source.Partitions))
	}
	held := r.Hold.streams(r)
	out := make([]Route, len(names))
	for i := range out {
		out[i] = *r
		out[i].Sealed.Stream = names[i]
		if r.Sealed.Shared {
			out[i].shard = &shard{uint32(i), uint32(len(names)), r.Source.Subjects}
		}
		if r.Source.Partitions != nil {
			out[i].Source.Subjects = r.Source.Partitions[i]
		}
		if seq, ok := r.ResumePartitions[i]; ok {
			out[i].ResumeFrom = &seq
		}
		if r.Hold != nil {
			own := *r.Hold
			own.Stream = held[i]
			out[i].Hold = &own
		}
	}
	return out
}

// checkPartitioned refuses source streams that one partition of several cannot
// read safely.
func checkPartitioned(c *jetstream.StreamConfig, r *Route) error {
	removes := r.Source.AfterSeal == AfterSealPurge || c.Retention != jetstream.LimitsPolicy
	if removes && c.Discard == jetstream.DiscardOld && (c.MaxMsgs > 0 || c.MaxBytes > 0) {
		return fmt.Errorf("%w: stream %s drops old messages when it is full, and a partition cannot tell those from what another one released; set discard: new on the stream, or after_seal: keep", ErrSource, c.Name)
	}
	if c.SubjectTransform == nil {
		return nil
	}
	filters := slices.Concat(r.Source.Partitions...)
	for i := range leadingPartitions(c.SubjectTransform.Destination) {
		if s := pattern.Uncovered(strconv.Itoa(i)+".>", filters); s != "" {
			return fmt.Errorf("%w: stream %s puts partition numbers in front of its subjects, and no partition of the route takes %s: it would never be sealed", ErrSource, c.Name, s)
		}
	}
	return nil
}

var leadingPartition = regexp.MustCompile(`(?i)^\{\{\s*partition\s*\(\s*([0-9]+)\s*[,)][^}]*\}\}\.`)

// leadingPartitions is N of a subject transform that begins with the token
// {{partition(N, ...)}}; else 0.
func leadingPartitions(destination string) int {
	m := leadingPartition.FindStringSubmatch(strings.TrimSpace(destination))
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil || n > 1<<16 {
		return 0
	}
	return n
}
