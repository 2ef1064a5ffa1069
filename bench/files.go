package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

func configPath(dir string) string { return filepath.Join(dir, "keyweir.yaml") }

// deniedPath is the configuration by which the key service refuses some scopes.
func deniedPath(dir string) string { return filepath.Join(dir, "denied.yaml") }

func profilePath(dir string) string { return filepath.Join(dir, "reader.json") }

// plan is what a fleet runs with.
type plan struct {
	url      string // of the servers, separated by commas
	engine   string
	replicas int
	maxBytes string // of the sealed stream; "" for no limit
	topics   topics // in 1 partition: the route is not split

	// denied are the scopes that the key service refuses while it runs by
	// deniedPath. Nil: that file is not written, and the route does not hold.
	denied []int
	period time.Duration // a data key may be used for; 0: the default
	stale  time.Duration // and how much longer without its authority, if period is set; 0: the default

	shared bool
}

// writeFiles writes identities, domain key, configuration and the reader's
// profile into the launcher's directory.
func (l *launcher) writeFiles(ctx context.Context, p plan) error {
	dir, err := filepath.Abs(l.dir)
	if err != nil {
		return fmt.Errorf("finding directory: %w", err)
	}
	public := map[string]string{}
	for name, kind := range map[string]keysvc.Kind{"keysvc": keysvc.KindService, "gateway": keysvc.KindRequester, "reader": keysvc.KindRequester} {
		id, seed, err := keysvc.NewIdentity(kind)
		if err != nil {
			return err
		}
		err = os.WriteFile(filepath.Join(dir, name+".nk"), seed, 0o600)
		clear(seed)
		if err != nil {
			return fmt.Errorf("writing identity: %w", err)
		}
		public[name] = id.Public()
	}
	argv := append(append([]string(nil), l.command...), "domain-key", "new", filepath.Join(dir, "domain.key"))
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("making domain key: %w: %s", err, out)
	}
	create := fmt.Sprintf("replicas: %d", p.replicas)
	if p.maxBytes != "" {
		create += ", max_bytes: " + p.maxBytes
	}
	subjects := fmt.Sprintf("subjects: [%q]", chaosPrefix+">")
	if p.topics.partitions > 1 {
		parts := make([]string, p.topics.partitions)
		for i := range parts {
			parts[i] = fmt.Sprintf("[%q]", topicFilter(i))
		}
		subjects = "partitions: [" + strings.Join(parts, ", ") + "]"
	}
	share := "false"
	if p.shared {
		share = "true"
	}
	hold, rule, period := "", "", ""
	if p.denied != nil {
		hold = fmt.Sprintf("\n      on_scope_unavailable: hold\n      hold: {create: {replicas: %d}}", p.replicas)
		rule = "\n    - {match: \"keyweir.hold.*\", scope: \"hold/{{wildcard(1)}}\", authorities: [local]}"
	}
	if p.period > 0 {
		period = fmt.Sprintf(", reuse: %v, lease: %v", p.period, p.period)
		if p.stale > 0 {
			period += fmt.Sprintf(", stale: {seal: %v, open: %v}", p.stale, p.stale)
		}
	}
	text := strings.NewReplacer(
		"SUBJECTS", subjects, "HOLDS", hold, "HOLDRULE", rule, "PERIOD", period, "TOPICS", topicRule,
		"DIR", dir, "URL", p.url, "KEYSVC", public["keysvc"], "GATEWAY", public["gateway"], "READER", public["reader"],
		"SOURCE", chaosSource, "SEALED", chaosSealed, "ROUTE", chaosRoute,
		"ENGINE", p.engine, "SHARED", share, "CREATE", create, "REPLICAS", fmt.Sprint(p.replicas),
	).Replace(planYAML)
	files := map[string]string{configPath(dir): strings.ReplaceAll(text, "GRANTED", p.granted(nil))}
	if p.denied != nil {
		files[deniedPath(dir)] = strings.ReplaceAll(text, "GRANTED", p.granted(p.denied))
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return fmt.Errorf("writing configuration: %w", err)
		}
	}
	profile := &streams.Profile{
		Version: 1, Service: "chaos", Pins: []string{public["keysvc"]}, Identity: "reader.nk",
		Scopes: []keysvc.ScopeRule{{Match: topicRule, Scope: "{{wildcard(2)}}"}},
		Accept: streams.ProfileAccept{Rules: []streams.ProfileRule{{
			Scopes: []string{"*"}, Schemes: []string{"single"}, Authorities: [][]string{{"local"}},
		}}},
	}
	return profile.WriteFile(profilePath(dir))
}

// granted are the gateway's grants to seal, for all scopes but those that are
// denied.
func (p *plan) granted(denied []int) string {
	if p.denied == nil {
		return "{to: gateway, may: [generate], scopes: [\"*\"]}"
	}
	var scopes []string
	for i := range p.topics.scopes {
		if !slices.Contains(denied, i) {
			scopes = append(scopes, scopeName(i))
		}
	}
	return "{to: gateway, may: [generate], scopes: [" + strings.Join(scopes, ", ") + "]}\n" +
		"    - {to: gateway, may: [generate, open], scopes: [hold/" + chaosRoute + "]}"
}

// planYAML keeps claims short, so that a successor takes over soon, and purges the
// source as soon as a sealed copy is acknowledged: what is lost is gone.
const planYAML = `service: chaos
gateway:
  identity: "file:DIR/gateway.nk"
  keysvc: {nats: hub, pins: [KEYSVC]}
  claim_ttl: 1s
  routes:
    - name: ROUTE
      source: {nats: hub, stream: SOURCE, SUBJECTS, after_seal: purge, start: first}
      sealed: {nats: hub, stream: SEALED, subject: "sealed.>", shared: SHARED, create: {CREATE}, sync_interval: always}
      engine: ENGINEHOLDS
keysvc:
  nats: hub
  store: "DIR/keysvc"
  identity: "file:DIR/keysvc.nk"
  authorities: {local: "local://DIR/authority?domain-key=file:DIR/domain.key"}
  scopes:HOLDRULE
    - {match: "TOPICS", scope: "{{wildcard(2)}}", authorities: [local]PERIOD}
  principals: {gateway: GATEWAY, reader: READER}
  grants:
    - GRANTED
    - {to: gateway, may: [route-key], scopes: [route/ROUTE]}
    - {to: reader, may: [open], scopes: ["*"]}
  directory: {replicas: REPLICAS}
nats:
  hub: {url: "URL"}
telemetry:
  metrics: {listen: "127.0.0.1:0"}
`
