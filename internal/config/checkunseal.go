package config

import (
	"fmt"
	"strings"
	"time"
)

func (c *checker) unseal(path string, u *Unseal) {
	if u.Identity.IsZero() {
		c.fail(path+".identity", "required")
	} else if c.Gateway != nil && u.Identity == c.Gateway.Identity {
		c.fail(path+".identity", "is that of the gateway: who seals and who opens are two principals")
	}
	c.required(path+".profile", u.Profile)
	c.natsName(path+".nats", u.NATS)
	if u.ClaimTTL != 0 && u.ClaimTTL < Duration(time.Second) {
		c.fail(path+".claim_ttl", "at least 1s")
	}
	if len(u.Routes) == 0 {
		c.fail(path+".routes", "at least one route is required")
	}
	names, targets := map[string]int{}, map[string]int{}
	for i, r := range u.Routes {
		at := fmt.Sprintf("%s.routes[%d]", path, i)
		c.unsealRoute(at, r)
		if j, ok := names[r.Name]; ok && r.Name != "" {
			c.fail(at+".name", "%q is already the name of routes[%d]", r.Name, j)
		}
		names[r.Name] = i
		target := r.Plain.NATS + " " + r.Plain.Stream
		if j, ok := targets[target]; ok && r.Plain.Stream != "" {
			c.fail(at+".plain.stream", "%q is already written by routes[%d]: one route per stream", r.Plain.Stream, j)
		}
		targets[target] = i
	}
}

func (c *checker) unsealRoute(path string, r UnsealRoute) {
	c.token(path+".name", r.Name)
	if len(r.Name) > 57 {
		c.fail(path+".name", "at most 57 characters")
	}
	c.natsName(path+".sealed.nats", r.Sealed.NATS)
	c.streamName(path+".sealed.stream", r.Sealed.Stream)
	c.patterns(path+".sealed.subjects", r.Sealed.Subjects)
	if c.required(path+".sealed.start", r.Sealed.Start) {
		if _, err := ParseStart(r.Sealed.Start); err != nil {
			c.fail(path+".sealed.start", "%v", err)
		}
	}
	c.natsName(path+".plain.nats", r.Plain.NATS)
	c.streamName(path+".plain.stream", r.Plain.Stream)
	c.patterns(path+".plain.subjects", r.Plain.Subjects)
	if p := r.Plain.Prefix; p != "" {
		c.pattern(path+".plain.prefix", strings.TrimSuffix(p, "."))
		if !strings.HasSuffix(p, ".") || strings.ContainsAny(p, "*>") {
			c.fail(path+".plain.prefix", "%q must be without wildcards and end in a dot", p)
		}
	}
	if n := r.Plain.Create; n != nil {
		c.replicas(path+".plain.create.replicas", n.Replicas)
	}
	if r.Window < 0 || r.Window > 16384 {
		c.fail(path+".window", "must be from 1 to 16384")
	}
	switch parks := r.OnUndecryptable == undecryptablePark; {
	case parks && r.Park == nil:
		c.fail(path+".park", "required with on_undecryptable: park")
	case !parks && r.Park != nil:
		c.fail(path+".park", "has no effect without on_undecryptable: park")
	case parks:
		if r.Park.NATS != "" {
			c.natsName(path+".park.nats", r.Park.NATS)
		}
		c.streamName(path+".park.stream", r.Park.Stream)
		c.pattern(path+".park.subject", r.Park.Subject)
		if strings.ContainsAny(r.Park.Subject, "*>") {
			c.fail(path+".park.subject", "%q has a wildcard", r.Park.Subject)
		}
	}
	c.cycle(path, r)
}

// cycle refuses a route whose plaintext would be sealed, or opened, again.
func (c *checker) cycle(path string, r UnsealRoute) {
	if r.Plain.NATS == "" {
		return
	}
	if r.Plain.NATS == r.Sealed.NATS && r.Plain.Stream == r.Sealed.Stream {
		c.fail(path+".plain.stream", "is the sealed stream as well")
	}
	if c.Gateway == nil {
		return
	}
	for i, g := range c.Gateway.Routes {
		if g.Source.NATS != r.Plain.NATS {
			continue
		}
		back := g.Source.Stream != "" && g.Source.Stream == r.Plain.Stream
		for _, s := range r.Plain.Subjects {
			for _, taken := range g.Source.Subjects {
				back = back || patternsMeet(r.Plain.Prefix+s, taken)
			}
		}
		if back {
			c.fail(path+".plain", "gateway.routes[%d] seals what would be stored here: a cycle of routes; use another connection, or a prefix", i)
		}
	}
}

// patternsMeet reports whether some subject matches both patterns.
func patternsMeet(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(as) && i < len(bs); i++ {
		if as[i] == ">" || bs[i] == ">" {
			return true
		}
		if as[i] != bs[i] && as[i] != "*" && bs[i] != "*" {
			return false
		}
	}
	return len(as) == len(bs)
}

// patterns wants at least one subject pattern.
func (c *checker) patterns(path string, subjects []string) {
	if len(subjects) == 0 {
		c.fail(path, "at least one subject is required")
	}
	for i, s := range subjects {
		c.pattern(fmt.Sprintf("%s[%d]", path, i), s)
	}
}
