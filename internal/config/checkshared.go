package config

import (
	"strings"

	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/pattern"
)

// shared checks what a sealed stream that partitions share does not go together with.
func (c *checker) shared(path string, r Route) {
	if !r.Sealed.Shared {
		return
	}
	at := path + ".sealed.shared"
	switch n := len(r.Source.Partitions); {
	case r.Ingest == IngestCore:
		c.fail(at, "does not go together with ingest: core, which has no partitions")
	case n == 0:
		c.fail(at, "the source has no partitions to share the stream")
	case n > checkpoint.MaxPartitions:
		c.fail(at, "%d partitions, at most %d share a sealed stream", n, checkpoint.MaxPartitions)
	}
	if r.Engine != "" && r.Engine != "auto" && r.Engine != "durable" {
		c.fail(path+".engine", "%s does not go together with sealed.shared, which needs durable", r.Engine)
	}
	if r.OnScopeUnavailable == HoldScopes {
		c.fail(path+".on_scope_unavailable", "hold does not go together with sealed.shared")
	}
	if strings.Contains(r.Sealed.Stream, pattern.PartitionMark) {
		c.fail(path+".sealed.stream", "%s stands in the name, and the partitions share one stream", pattern.PartitionMark)
	}
	if p := r.Sealed.Subject; pattern.Check(p) == nil && pattern.Overlap(p, checkpoint.Prefix+">") {
		c.fail(path+".sealed.subject", "%q overlaps the subjects of checkpoints, %s>", p, checkpoint.Prefix)
	}
}
