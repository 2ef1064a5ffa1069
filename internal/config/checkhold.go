package config

import (
	"slices"
	"strings"

	"github.com/keyweir/keyweir/internal/pattern"
)

// hold checks what a route says about scopes without a key.
func (c *checker) hold(path string, r Route) {
	holds := r.OnScopeUnavailable == HoldScopes
	if !holds {
		if r.Hold != nil {
			c.fail(path+".hold", "needs on_scope_unavailable: hold")
		}
		return
	}
	if r.Engine != "" && r.Engine != "auto" && r.Engine != "durable" {
		c.fail(path+".engine", "on_scope_unavailable: hold needs the engine durable")
	}
	if r.DeadLetters != nil && slices.Contains(r.HoldStreams(), r.DeadLetters.Stream) {
		c.fail(path+".dead_letters.stream", "%q is the hold stream as well", r.DeadLetters.Stream)
	}
	if r.Hold == nil {
		return
	}
	if r.Hold.Stream != "" {
		c.streamName(path+".hold.stream", r.Hold.Stream)
		if r.Source.Partitions == nil && strings.Contains(r.Hold.Stream, pattern.PartitionMark) {
			c.fail(path+".hold.stream", "%s stands in the name, and the source has no partitions", pattern.PartitionMark)
		}
		for _, s := range r.HoldStreams() {
			if slices.Contains(r.SealedStreams(), s) {
				c.fail(path+".hold.stream", "%q is a sealed stream as well", s)
			}
		}
	}
	if n := r.Hold.Create; n != nil {
		c.replicas(path+".hold.create.replicas", n.Replicas)
	}
}
