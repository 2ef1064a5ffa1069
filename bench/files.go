package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

func configPath(dir string) string  { return filepath.Join(dir, "keyweir.yaml") }
func profilePath(dir string) string { return filepath.Join(dir, "reader.json") }

// plan is what a fleet runs with.
type plan struct {
	url      string // of the servers, separated by commas
	engine   string
	replicas int
	maxBytes string // of the sealed stream; "" for no limit

	partitions int // 1: the route is not split
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
	if p.partitions > 1 {
		parts := make([]string, p.partitions)
		for i := range parts {
			parts[i] = fmt.Sprintf("[%q]", fmt.Sprintf("%sp%d.*", chaosPrefix, i))
		}
		subjects = "partitions: [" + strings.Join(parts, ", ") + "]"
	}
	text := strings.NewReplacer(
		"SUBJECTS", subjects,
		"DIR", dir, "URL", p.url, "KEYSVC", public["keysvc"], "GATEWAY", public["gateway"], "READER", public["reader"],
		"SOURCE", chaosSource, "SEALED", chaosSealed, "PREFIX", chaosPrefix, "ROUTE", chaosRoute,
		"ENGINE", p.engine, "CREATE", create, "REPLICAS", fmt.Sprint(p.replicas),
	).Replace(planYAML)
	if err := os.WriteFile(configPath(dir), []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	profile := &streams.Profile{
		Version: 1, Service: "chaos", Pins: []string{public["keysvc"]}, Identity: "reader.nk",
		Scopes: []keysvc.ScopeRule{{Match: chaosPrefix + "*.*", Scope: "{{wildcard(2)}}"}},
		Accept: streams.ProfileAccept{Rules: []streams.ProfileRule{{
			Scopes: []string{"*"}, Schemes: []string{"single"}, Authorities: [][]string{{"local"}},
		}}},
	}
	return profile.WriteFile(profilePath(dir))
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
      sealed: {nats: hub, stream: SEALED, subject: "sealed.>", create: {CREATE}, sync_interval: always}
      engine: ENGINE
keysvc:
  nats: hub
  store: "DIR/keysvc"
  identity: "file:DIR/keysvc.nk"
  authorities: {local: "local://DIR/authority?domain-key=file:DIR/domain.key"}
  scopes:
    - {match: "PREFIX*.*", scope: "{{wildcard(2)}}", authorities: [local]}
  principals: {gateway: GATEWAY, reader: READER}
  grants:
    - {to: gateway, may: [generate], scopes: ["*"]}
    - {to: gateway, may: [route-key], scopes: [route/ROUTE]}
    - {to: reader, may: [open], scopes: ["*"]}
  directory: {replicas: REPLICAS}
nats:
  hub: {url: "URL"}
telemetry:
  metrics: {listen: "127.0.0.1:0"}
`
