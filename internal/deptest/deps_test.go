package deptest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/keyweir/keyweir"

	aws       = "github.com/aws/"
	nats      = "github.com/nats-io/nats.go"
	natsSrv   = "github.com/nats-io/nats-server"
	otelSDK   = "go.opentelemetry.io/otel/sdk"
	otelOut   = "go.opentelemetry.io/otel/exporters"
	otel      = "go.opentelemetry.io/"
	pebble    = "github.com/cockroachdb/"
	prom      = "github.com/prometheus/"
	cobra     = "github.com/spf13/"
	ownCLI    = module + "/internal/cli"
	ownDev    = module + "/internal/devstack"
	keyserver = module + "/keysvc/keyserver"
	authority = module + "/keysvc/authority"
	awskms    = authority + "/awskms"
	local     = authority + "/local"
	transit   = authority + "/transit"
	execplug  = authority + "/execplug"
)

// everything as a forbidden prefix is every package outside the standard library.
const everything = "*"

// client is what nats.go itself links, and nothing more.
var client = []string{
	nats, "github.com/nats-io/nkeys", "github.com/nats-io/nuid", "github.com/klauspost/compress",
	"golang.org/x/crypto", "golang.org/x/sys", // of nkeys
}

// links says what a package may not link, directly or through others. Paths
// are below the module; "" is the main package. A prefix ends at a path element
// or with "/".
var links = []struct {
	pkg    string
	forbid []string
	allow  []string // exceptions from forbid
	why    string
}{
	{"internal/envelope", []string{everything}, nil, "the byte format is a leaf: standard library only, no I/O"},
	{"internal/deadletter", []string{everything}, own("internal/envelope"), "a format is a leaf"},
	{"internal/checkpoint", []string{everything}, own("internal/envelope"), "a format is a leaf"},
	{"internal/strictjson", []string{everything}, nil, "it decodes signed requests in every client: standard library only"},
	{
		"keysvc",
		[]string{everything},
		slices.Concat(client, own("internal/envelope", "internal/strictjson")),
		"contract and client are linked by applications: nats.go and the standard library",
	},
	{
		"streams",
		[]string{everything},
		slices.Concat(client, own("keysvc", "internal/checkpoint", "internal/envelope", "internal/strictjson")),
		"applications link it: Pebble alone would add 28 modules and 8.5 MiB, nats-server 9.9 MiB",
	},
	{"streams", []string{keyserver, authority}, nil, "a reader reaches authorities through a key service only"},
	{
		"streams/streamstest",
		[]string{aws, natsSrv, otel, pebble, prom, keyserver, authority},
		nil,
		"users' tests link it",
	},
	{
		"gateway",
		[]string{aws, natsSrv, otelSDK, otelOut, pebble, prom, keyserver, authority, module + "/internal/keycache", ownCLI, ownDev},
		nil,
		"its host holds no cloud credential and no store: an authority is always reached through a key service",
	},
	{
		"keysvc/keyserver",
		[]string{aws, natsSrv, otelSDK, otelOut, awskms, local, transit, execplug, module + "/gateway", module + "/streams", ownCLI, ownDev},
		nil,
		"providers are chosen by the composition root",
	},
	{"keysvc/authority", []string{everything}, nil, "what an authority is must not depend on any of them"},
	{"keysvc/authority/awskms", []string{module, nats, natsSrv, pebble}, own("keysvc/authority"), "a provider knows the interface and its SDK"},
	{"keysvc/authority/transit", []string{everything}, own("keysvc/authority", "internal/strictjson"), "it speaks HTTP by the standard library: no SDK near its tokens"},
	{"keysvc/authority/execplug", []string{everything}, own("keysvc/authority", "internal/strictjson"), "it runs a program and knows no more than its contract"},
	{"keysvc/authority/execplug/sampleplugin", []string{everything}, nil, "a sample is copied: standard library only"},
	{"keysvc/authority/local", []string{aws, nats, natsSrv, module + "/gateway", module + "/streams", keyserver}, nil, "managed keys never go near a broker"},
	{"internal/keycache", []string{aws, nats, natsSrv, otelSDK, module + "/gateway", module + "/keysvc", module + "/streams"}, nil, "a store knows nothing of what it stores"},
	{"internal/policy", []string{aws, nats, natsSrv, pebble, otel, module + "/gateway", keyserver}, nil, "deciding is pure"},
	{"internal/audit", []string{aws, natsSrv, otelSDK, module + "/gateway", keyserver, ownCLI}, nil, "the record of what a service did does not link the service"},
	{"internal/config", []string{aws, natsSrv, pebble, otelSDK, prom, module + "/gateway", keyserver, authority, ownCLI}, nil, "the file format does not link the services it configures"},
	{"internal/telemetry", []string{aws, nats, natsSrv, pebble, module}, nil, "telemetry observes; it knows no service"},
	{"internal/telemetry/tracecarrier", []string{otelSDK, otelOut, prom, module}, nil, "libraries carry trace context without the SDK"},
	{"internal/embednats", []string{aws, pebble, otel, prom, module}, nil, "a server, and nothing of ours"},
	{"", []string{"pgregory.net/rapid", "go.uber.org/goleak", "github.com/google/go-cmp", "github.com/rogpeppe/go-internal/testscript"}, nil, "the binary holds no test helpers"},
}

// imports says who alone may import a package; tests may, always.
var imports = []struct {
	prefixes []string
	by       []string
	why      string
}{
	{[]string{otelSDK, otelOut, prom + "client_golang"}, []string{"internal/telemetry"}, "all other packages use the OpenTelemetry API"},
	{[]string{aws}, []string{"keysvc/authority/awskms"}, "one place knows the AWS SDK"},
	{[]string{pebble + "pebble"}, []string{"internal/keycache"}, "no Pebble type in a signature"},
	{[]string{natsSrv}, []string{"internal/embednats"}, "the server is embedded in one place"},
	{
		[]string{awskms, local, transit, execplug},
		[]string{"internal/cli", "internal/devstack"},
		"the composition root names the providers, in an explicit map",
	},
	{[]string{cobra}, []string{"internal/cli"}, "the command line is one package"},
	{[]string{module + "/internal/plainrelay"}, []string{"gateway", "bench"}, "a relay that does not seal is the benchmark's alone"},
	{[]string{ownCLI}, []string{""}, "only main starts the command line"},
}

// forTests reports whether pkg of this module is made for tests: packages named
// so, and the one that builds their tools. They may import testing and everything
// a test may, and only tests and each other may import them.
func forTests(pkg string) bool {
	return under(pkg, module) && strings.HasSuffix(pkg, "test") || pkg == full("internal/toolbuild")
}

func own(paths ...string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = module + "/" + p
	}
	return out
}

func full(path string) string { return strings.TrimSuffix(module+"/"+path, "/") }

// under reports whether pkg is prefix or below it.
func under(pkg, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, "/")
	return pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
}

func anyUnder(pkg string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return under(pkg, p) })
}

// listed is what the go command knows of a package.
type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string // of files that are no tests
}

func goList(t *testing.T, args ...string) ([]listed, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Standard,Imports"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			return nil, fmt.Errorf("go list: %s", ee.Stderr)
		}
		return nil, err
	}
	var ps []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			return ps, nil
		} else if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
}

func TestLinks(t *testing.T) {
	for _, rule := range links {
		pkg := full(rule.pkg)
		t.Run(strings.TrimPrefix(pkg, "github.com/keyweir/"), func(t *testing.T) {
			t.Parallel()
			ps, err := goList(t, "-deps", pkg)
			if err != nil {
				t.Fatalf("a package of the table cannot be listed; if it moved, move its rule: %v", err)
			}
			for _, hit := range violations(pkg, ps, rule.forbid, rule.allow) {
				t.Errorf("%s links %s: %s", pkg, hit, rule.why)
			}
		})
	}
}

func violations(pkg string, deps []listed, forbid, allow []string) []string {
	var hits []string
	for _, d := range deps {
		if d.Standard || d.ImportPath == pkg || anyUnder(d.ImportPath, allow) {
			continue
		}
		if slices.Contains(forbid, everything) || anyUnder(d.ImportPath, forbid) {
			hits = append(hits, d.ImportPath)
		}
	}
	return hits
}

func TestImports(t *testing.T) {
	ps, err := goList(t, module+"/...")
	if err != nil {
		t.Fatal(err)
	}
	exists := func(path string) bool {
		return slices.ContainsFunc(ps, func(p listed) bool { return p.ImportPath == full(path) })
	}
	for _, rule := range imports {
		for _, by := range rule.by {
			if !exists(by) {
				t.Errorf("the table lets %s import %s, but there is no such package", full(by), rule.prefixes[0])
			}
		}
		for _, prefix := range rule.prefixes {
			if under(prefix, module) && !slices.ContainsFunc(ps, func(p listed) bool { return under(p.ImportPath, prefix) }) {
				t.Errorf("the table names %s, but there is no such package", prefix)
			}
		}
		for _, p := range ps {
			if forTests(p.ImportPath) || anyUnder(p.ImportPath, own(rule.by...)) && !slices.Contains(rule.by, "") || slices.Contains(rule.by, "") && p.ImportPath == module {
				continue
			}
			for _, imp := range p.Imports {
				if anyUnder(imp, rule.prefixes) && !anyUnder(p.ImportPath, []string{imp}) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imp, rule.why)
				}
			}
		}
	}
	for _, p := range ps {
		if slices.Contains(p.Imports, "C") {
			t.Errorf("%s uses cgo", p.ImportPath)
		}
		if forTests(p.ImportPath) {
			continue
		}
		for _, imp := range p.Imports {
			if imp == "testing" || forTests(imp) {
				t.Errorf("%s imports %s outside of its tests", p.ImportPath, imp)
			}
		}
	}
}

// TestRulesBite gives the rules something to find, so that a mistake in the
// matching does not pass for a clean tree.
func TestRulesBite(t *testing.T) {
	ps, err := goList(t, "-deps", full("internal/embednats"))
	if err != nil {
		t.Fatal(err)
	}
	hits := violations(full("internal/embednats"), ps, []string{everything}, nil)
	for _, want := range []string{nats, natsSrv + "/v2/server"} {
		if !slices.Contains(hits, want) {
			t.Errorf("standard library only: %s not found among %d packages", want, len(hits))
		}
	}
	if hits := violations(full("internal/embednats"), ps, []string{everything}, []string{natsSrv}); slices.Contains(hits, natsSrv+"/v2/server") {
		t.Error("an exception was not honoured")
	}
	if hits := violations(full("internal/embednats"), ps, []string{"github.com/nats-io/nats-serv"}, nil); len(hits) > 0 {
		t.Errorf("a prefix matched within a path element: %v", hits)
	}
	for _, tt := range []struct {
		pkg, prefix string
		want        bool
	}{
		{module + "/keysvc", module + "/keysvc", true},
		{module + "/keysvc/authority", authority, true},
		{module + "/keysvc/authority/local", authority + "/", true},
		{module + "/keysvcs", module + "/keysvc", false},
		{module, module + "/keysvc", false},
	} {
		if got := under(tt.pkg, tt.prefix); got != tt.want {
			t.Errorf("under(%s, %s) = %v", tt.pkg, tt.prefix, got)
		}
	}
}
