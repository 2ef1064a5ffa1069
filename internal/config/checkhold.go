package config

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
	if len(r.Source.Partitions) > 0 {
		c.fail(path+".source.partitions", "do not go together with on_scope_unavailable: hold")
	}
	if r.DeadLetters != nil || r.ReservedHeaders == "reject" {
		c.fail(path+".on_scope_unavailable", "hold does not go together with dead_letters or reserved_headers: reject")
	}
	if r.Hold == nil {
		return
	}
	if r.Hold.Stream != "" {
		c.streamName(path+".hold.stream", r.Hold.Stream)
		if r.Hold.Stream == r.Sealed.Stream {
			c.fail(path+".hold.stream", "is the sealed stream as well")
		}
	}
	if n := r.Hold.Create; n != nil {
		c.replicas(path+".hold.create.replicas", n.Replicas)
	}
}
