package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/keyweir/keyweir/internal/pattern"
)

// check finds everything that is wrong with the file without reading secrets or
// the network.
func (f *File) check() error {
	c := checker{File: f}
	c.token("service", f.Service)
	if f.Gateway == nil && f.Keysvc == nil && f.Unseal == nil {
		c.fail("", "neither a gateway nor a keysvc nor an unseal section: nothing to do")
	}
	if len(f.NATS) == 0 {
		c.fail("nats", "at least one connection is required")
	}
	for _, name := range sorted(f.NATS) {
		c.connection("nats."+name, f.NATS[name])
	}
	if f.Gateway != nil {
		c.gateway("gateway", f.Gateway)
	}
	if f.Keysvc != nil {
		c.keysvc("keysvc", f.Keysvc)
	}
	if f.Unseal != nil {
		c.unseal("unseal", f.Unseal)
	}
	c.telemetry("telemetry", f.Telemetry)
	return errors.Join(c.errs...)
}

type checker struct {
	*File
	errs []error
}

func (c *checker) fail(path, format string, args ...any) {
	c.errs = append(c.errs, c.places.problem(path, format, args...))
}

// required reports a missing value.
func (c *checker) required(path, v string) bool {
	if v == "" {
		c.fail(path, "required")
	}
	return v != ""
}

// token wants one token of a subject, as package keysvc does of names.
func (c *checker) token(path, v string) {
	if c.required(path, v) && !isToken(v) {
		c.fail(path, "%q must be 1 to 64 letters, digits, - and _", v)
	}
}

func isToken(s string) bool {
	return s != "" && len(s) <= 64 && strings.IndexFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '-' && r != '_'
	}) < 0
}

// streamName wants what JetStream accepts as the name of a stream or bucket.
func (c *checker) streamName(path, v string) {
	if c.required(path, v) && strings.ContainsAny(v, ".*> \t\r\n/\\") {
		c.fail(path, "%q is no stream name: no dots, wildcards, slashes or blanks", v)
	}
}

// pattern wants a NATS subject pattern.
func (c *checker) pattern(path, v string) {
	if !c.required(path, v) {
		return
	}
	tokens := strings.Split(v, ".")
	for i, t := range tokens {
		if t == "" || strings.ContainsAny(t, " \t\r\n") ||
			len(t) > 1 && strings.ContainsAny(t, "*>") || t == ">" && i != len(tokens)-1 {
			c.fail(path, "%q is no subject pattern: tokens separated by dots, each a text or *, > only at the end", v)
			return
		}
	}
}

func (c *checker) natsName(path, v string) {
	if !c.required(path, v) {
		return
	}
	if _, ok := c.NATS[v]; !ok {
		c.fail(path, "no connection %q in the nats section%s", v, didYouMean(v, sorted(c.NATS)))
	}
}

func (c *checker) publicKey(path, v string, kind nkeys.PrefixByte, what string) {
	if !c.required(path, v) {
		return
	}
	// A seed here would be a secret in the file; it is not repeated.
	if strings.HasPrefix(v, "S") {
		c.fail(path, "must be a public key (%c...), not a seed; replace that identity, its secret was written down", what[0])
		return
	}
	if nkeys.Prefix(v) != kind || !nkeys.IsValidPublicKey(v) {
		c.fail(path, "must be the public key of %s", what[2:])
	}
}

func (c *checker) replicas(path string, n int) {
	if n != 0 && n != 1 && n != 3 && n != 5 {
		c.fail(path, "must be 1, 3 or 5")
	}
}

func (c *checker) connection(path string, n Connection) {
	if n.Context != "" {
		if n != (Connection{Context: n.Context}) {
			c.fail(path, "a context excludes the other keys of a connection")
		}
		return
	}
	if n.URL == "" {
		c.fail(path, "url or context is required")
	}
	for u := range strings.SplitSeq(n.URL, ",") {
		if n.URL != "" {
			c.url(path+".url", strings.TrimSpace(u), "nats", "tls", "ws", "wss")
		}
	}
	ways := 0
	for _, set := range []bool{!n.Creds.IsZero(), !n.NKey.IsZero(), n.User != "" || !n.Password.IsZero(), !n.Token.IsZero()} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		c.fail(path, "give only one of creds, nkey, user with password, and token")
	}
	if (n.User == "") != n.Password.IsZero() {
		c.fail(path, "user and password belong together")
	}
	if (n.TLS.Cert == "") != (n.TLS.Key == "") {
		c.fail(path+".tls", "cert and key belong together")
	}
	if n.InboxPrefix != "" {
		c.pattern(path+".inbox_prefix", n.InboxPrefix)
	}
}

func (c *checker) url(path, s string, schemes ...string) {
	u, err := url.Parse(s)
	if err != nil {
		c.fail(path, "not a URL") // the cause would repeat it, password and all
		return
	}
	if u.User != nil {
		c.fail(path, "no user or password in a URL; use the keys for them")
		return
	}
	if !slices.Contains(schemes, u.Scheme) || u.Host == "" {
		c.fail(path, "%q must be a URL with %s://", s, list(schemes))
	}
}

func (c *checker) gateway(path string, g *Gateway) {
	if g.Identity.IsZero() {
		c.fail(path+".identity", "required")
	}
	c.natsName(path+".keysvc.nats", g.Keysvc.NATS)
	if len(g.Keysvc.Pins) == 0 {
		c.fail(path+".keysvc.pins", "at least one public key of the service is required")
	}
	for i, p := range g.Keysvc.Pins {
		c.publicKey(fmt.Sprintf("%s.keysvc.pins[%d]", path, i), p, nkeys.PrefixByteServer, "N a service (N...)")
	}
	if g.ClaimTTL != 0 && g.ClaimTTL < Duration(time.Second) {
		c.fail(path+".claim_ttl", "at least 1s")
	}
	if len(g.Routes) == 0 {
		c.fail(path+".routes", "at least one route is required")
	}
	names, targets := map[string]int{}, map[string]int{}
	prefixes := map[string]string{}
	for i, r := range g.Routes {
		at := fmt.Sprintf("%s.routes[%d]", path, i)
		c.route(at, r)
		if j, ok := names[r.Name]; ok && r.Name != "" {
			c.fail(at+".name", "%q is already the name of routes[%d]", r.Name, j)
		}
		names[r.Name] = i
		if r.Sealed.Stream == "" {
			continue
		}
		for _, stream := range r.SealedStreams() {
			target := r.Sealed.NATS + " " + stream
			if j, ok := targets[target]; ok && (r.Ingest != IngestCore || g.Routes[j].Ingest != IngestCore) {
				c.fail(at+".sealed.stream", "%q is already written by routes[%d]: one route per sealed stream", stream, j)
			}
			targets[target] = i
		}
		if d := r.DeadLetters; d != nil {
			prefix := r.Sealed.NATS + " " + d.Prefix()
			if other, ok := prefixes[prefix]; ok && other != d.Stream {
				c.fail(at+".dead_letters.stream", "%q and %q would store the same subjects; use one stream, or give one a subject of its own", d.Stream, other)
			}
			prefixes[prefix] = d.Stream
		}
	}
	for i, r := range g.Routes {
		if d := r.DeadLetters; d != nil {
			if j, ok := targets[r.Sealed.NATS+" "+d.Stream]; ok {
				c.fail(fmt.Sprintf("%s.routes[%d].dead_letters.stream", path, i), "%q is the sealed stream of routes[%d]", d.Stream, j)
			}
		}
	}
}

func (c *checker) route(path string, r Route) {
	c.token(path+".name", r.Name)
	c.natsName(path+".source.nats", r.Source.NATS)
	subjects := r.Source.Subjects
	if len(subjects) == 0 {
		subjects = slices.Concat(r.Source.Partitions...)
	}
	if len(subjects) == 0 {
		c.fail(path+".source.subjects", "at least one subject is required")
	}
	whole := true
	for i, s := range r.Source.Subjects {
		c.pattern(fmt.Sprintf("%s.source.subjects[%d]", path, i), s)
		whole = whole && pattern.Check(s) == nil
	}
	if r.Source.Partitions != nil && whole {
		if err := pattern.CheckPartitions(subjects, r.Source.Partitions); err != nil {
			c.fail(path+".source.partitions", "%v", err)
		}
	}
	if r.Source.Partitions == nil && strings.Contains(r.Sealed.Stream, pattern.PartitionMark) {
		c.fail(path+".sealed.stream", "%s stands in the name, and the source has no partitions", pattern.PartitionMark)
	}
	c.shared(path, r)
	if r.Ingest == IngestCore {
		c.core(path, r)
	} else {
		c.stream(path, r)
	}
	c.natsName(path+".sealed.nats", r.Sealed.NATS)
	c.streamName(path+".sealed.stream", r.Sealed.Stream)
	if r.Window < 0 || r.Window > 16384 {
		c.fail(path+".window", "must be from 1 to 16384")
	}
	if c.required(path+".sealed.subject", r.Sealed.Subject) {
		c.pattern(path+".sealed.subject", r.Sealed.Subject)
		if prefix, ok := strings.CutSuffix(r.Sealed.Subject, ".>"); !ok || strings.ContainsAny(prefix, "*>") {
			c.fail(path+".sealed.subject", "%q must be a prefix without wildcards that ends in .>", r.Sealed.Subject)
		}
	}
	if r.Source.NATS == r.Sealed.NATS && r.Source.Stream != "" && slices.Contains(r.SealedStreams(), r.Source.Stream) {
		c.fail(path+".sealed.stream", "is the source as well")
	}
	if n := r.Sealed.Create; n != nil {
		c.replicas(path+".sealed.create.replicas", n.Replicas)
	}
	if d := r.DeadLetters; d != nil {
		c.deadLetters(path+".dead_letters", r, d)
	}
	c.hold(path, r)
	if r.PadTo > 4096 {
		c.fail(path+".pad_to", "at most 4KiB")
	}
	for i, h := range r.PassHeaders {
		at := fmt.Sprintf("%s.pass_headers[%d]", path, i)
		l := strings.ToLower(h)
		switch {
		case strings.HasPrefix(l, "nats-"), strings.HasPrefix(l, "keyweir"), l == "kv-operation", l == "status", l == "description":
			c.fail(at, "%q controls NATS or Keyweir and cannot be passed", h)
		case h == "" || strings.ContainsAny(h, ": \t\r\n"):
			c.fail(at, "%q is no header name", h)
		}
	}
}

func (c *checker) deadLetters(path string, r Route, d *DeadLetters) {
	c.streamName(path+".stream", d.Stream)
	if d.Stream == r.Source.Stream && r.Source.NATS == r.Sealed.NATS && d.Stream != "" {
		c.fail(path+".stream", "is the source as well")
	}
	for key, s := range map[string]string{"subject": d.Subject, "quarantine": d.Quarantine} {
		if s == "" {
			continue
		}
		if c.pattern(path+"."+key, s); strings.ContainsAny(s, "*>") {
			c.fail(path+"."+key, "%q must have no wildcard", s)
		}
	}
	if len(d.Subject) > 100 {
		c.fail(path+".subject", "at most 100 bytes")
	}
	if len(d.Quarantine) > 255 {
		c.fail(path+".quarantine", "at most 255 bytes")
	}
	if n := d.Create; n != nil {
		c.replicas(path+".create.replicas", n.Replicas)
	}
}

func (c *checker) keysvc(path string, k *Keysvc) {
	c.natsName(path+".nats", k.NATS)
	c.required(path+".store", k.Store)
	if k.Identity.IsZero() {
		c.fail(path+".identity", "required")
	}
	if len(k.Authorities) == 0 {
		c.fail(path+".authorities", "at least one authority is required")
	}
	for _, name := range sorted(k.Authorities) {
		at := path + ".authorities." + name
		if !isToken(name) {
			c.fail(at, "the name %q must be 1 to 64 letters, digits, - and _", name)
		}
		if scheme, _, ok := strings.Cut(k.Authorities[name], ":"); !ok || scheme == "" {
			c.fail(at, "must be a URI such as awskms:///alias/orders")
		}
	}
	if len(k.Scopes) == 0 {
		c.fail(path+".scopes", "at least one scope rule is required")
	}
	for i, s := range k.Scopes {
		c.scope(fmt.Sprintf("%s.scopes[%d]", path, i), s)
	}
	keys := map[string]string{}
	for _, name := range sorted(k.Principals) {
		at := path + ".principals." + name
		c.publicKey(at, k.Principals[name], nkeys.PrefixByteUser, "U an identity (U...)")
		if other, ok := keys[k.Principals[name]]; ok {
			c.fail(at, "has the same public key as %q", other)
		}
		keys[k.Principals[name]] = name
	}
	for i, g := range k.Grants {
		c.grant(fmt.Sprintf("%s.grants[%d]", path, i), g)
	}
	for i, p := range k.Directory.Signers {
		c.publicKey(fmt.Sprintf("%s.directory.signers[%d]", path, i), p, nkeys.PrefixByteServer, "N a service (N...)")
	}
	for key, n := range map[string]int{"workers": k.Workers, "cache": k.Cache} {
		if n < 0 || n > 1<<24 {
			c.fail(path+"."+key, "must be from 1 to 16777216")
		}
	}
	c.replicas(path+".directory.replicas", k.Directory.Replicas)
}

func (c *checker) scope(path string, s Scope) {
	c.pattern(path+".match", s.Match)
	c.required(path+".scope", s.Scope)
	if len(s.Authorities) != 1 {
		c.fail(path+".authorities", "the scheme single takes one authority, got %d", len(s.Authorities))
	}
	for key, names := range map[string][]string{"authorities": s.Authorities, "accept": s.Accept} {
		for i, a := range names {
			if _, ok := c.Keysvc.Authorities[a]; !ok {
				c.fail(fmt.Sprintf("%s.%s[%d]", path, key, i), "no authority %q in keysvc.authorities%s",
					a, didYouMean(a, sorted(c.Keysvc.Authorities)))
			}
		}
	}
	for _, name := range sorted(s.Context) {
		if strings.HasPrefix(strings.ToLower(name), "keyweir-") {
			c.fail(path+".context."+name, "names starting keyweir- are reserved")
		}
	}
	for key, d := range map[string]Duration{"reuse": s.Reuse, "lease": s.Lease} {
		if d != 0 && (d < Duration(time.Second) || d > Duration(24*time.Hour)) {
			c.fail(path+"."+key, "must be from 1s to 24h")
		}
	}
	for key, d := range map[string]Duration{"seal": s.Stale.Seal, "open": s.Stale.Open} {
		if d > Duration(30*24*time.Hour) {
			c.fail(path+".stale."+key, "at most 30d")
		}
	}
	if s.Budget.Messages < 0 || s.Budget.Messages > 1<<32-1 || s.Budget.Bytes > 64<<30 {
		c.fail(path+".budget", "at most 4294967295 messages and 64GiB")
	}
}

func (c *checker) grant(path string, g Grant) {
	if c.required(path+".to", g.To) {
		if _, ok := c.Keysvc.Principals[g.To]; !ok {
			c.fail(path+".to", "no principal %q in keysvc.principals%s", g.To, didYouMean(g.To, sorted(c.Keysvc.Principals)))
		}
	}
	if len(g.May) == 0 {
		c.fail(path+".may", "at least one operation is required")
	}
	if len(g.Scopes) == 0 {
		c.fail(path+".scopes", "at least one scope is required; \"*\" covers all")
	}
	for i, s := range g.Scopes {
		if at := strings.IndexByte(s, '*'); s == "" || at >= 0 && at != len(s)-1 {
			c.fail(fmt.Sprintf("%s.scopes[%d]", path, i), "%q must be a scope, or the beginning of one ending in *", s)
		}
	}
}

func (c *checker) telemetry(path string, t Telemetry) {
	if l := t.Metrics.Listen; l != "" {
		if _, port, err := net.SplitHostPort(l); err != nil || !isPort(port) {
			c.fail(path+".metrics.listen", "%q must be host:port", l)
		}
	}
	if t.OTLP.Endpoint != "" {
		c.url(path+".otlp.endpoint", t.OTLP.Endpoint, "http", "https")
	}
	if r := t.OTLP.TraceRatio; !(r >= 0 && r <= 1) {
		c.fail(path+".otlp.trace_ratio", "must be from 0 to 1")
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
