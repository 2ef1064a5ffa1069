package config

import (
	"strings"
	"time"
)

// stream checks what only a route that reads a stream has.
func (c *checker) stream(path string, r Route) {
	c.streamName(path+".source.stream", r.Source.Stream)
	c.required(path+".source.after_seal", string(r.Source.AfterSeal))
	if c.required(path+".source.start", r.Source.Start) {
		if _, err := ParseStart(r.Source.Start); err != nil {
			c.fail(path+".source.start", "%v", err)
		}
	}
	for _, k := range []struct {
		key string
		set bool
	}{
		{"allow_ttl", r.AllowTTL},
		{"allow_expected_last", r.AllowExpectedLast},
		{"queue_messages", r.QueueMessages != 0},
		{"queue_bytes", r.QueueBytes != 0},
		{"key_wait", r.KeyWait != 0},
	} {
		if k.set {
			c.fail(path+"."+k.key, "only with ingest: core")
		}
	}
}

// core checks what only a route with ingest: core has.
func (c *checker) core(path string, r Route) {
	for _, k := range []struct {
		key string
		set bool
	}{
		{"source.stream", r.Source.Stream != ""},
		{"source.partitions", r.Source.Partitions != nil},
		{"source.after_seal", r.Source.AfterSeal != ""},
		{"source.start", r.Source.Start != ""},
		{"source.on_source_gap", r.Source.OnSourceGap != ""},
		{"sealed.sync_interval", r.Sealed.SyncInterval != SyncInterval{}},
		{"engine", r.Engine != ""},
		{"window", r.Window != 0},
		{"on_scope_unavailable", r.OnScopeUnavailable != ""},
		{"reserved_headers", r.ReservedHeaders != ""},
		{"dead_letters", r.DeadLetters != nil},
	} {
		if k.set {
			c.fail(path+"."+k.key, "not with ingest: core, which reads no stream")
		}
	}
	for _, s := range r.Source.Subjects {
		if first, _, _ := strings.Cut(s, "."); first == "*" || first == ">" || strings.HasPrefix(first, "$") || strings.HasPrefix(first, "_") {
			c.fail(path+".source.subjects", "%q must begin with a word of your own: it would take in messages of NATS itself", s)
		}
	}
	if r.QueueMessages < 0 || r.QueueMessages > 1<<20 {
		c.fail(path+".queue_messages", "must be from 1 to 1048576")
	}
	if r.QueueBytes != 0 && r.QueueBytes < 1<<20 {
		c.fail(path+".queue_bytes", "at least 1MiB")
	}
	if r.KeyWait > Duration(time.Minute) {
		c.fail(path+".key_wait", "at most 1m")
	}
}
