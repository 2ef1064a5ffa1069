package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/keysvc/keyserver"
)

// permission is what one NATS user of one connection needs, and nothing more.
type permission struct {
	Who       string   `json:"who"`       // a process or a principal
	NATS      string   `json:"nats"`      // name of the connection
	Publish   []string `json:"publish"`   // subjects it may publish to
	Subscribe []string `json:"subscribe"` // subjects it may subscribe to
	Responses bool     `json:"responses"` // answers requests
	Why       string   `json:"why"`       // for people
	inbox     string   // prefix of its reply subjects
	set       []string // publish, while it is put together
}

func newConfigPermissions(u *ui) *cobra.Command {
	var (
		path   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use: "permissions", Short: "Print the NATS permissions that each process needs", Args: noArgs,
		Long: `Prints, as users of a nats-server configuration, what the gateway, the key service,
each reader and an operator of dead letters ("deadletters") may do on each
connection: exactly what they need. Nobody else
should be allowed to publish to the sealed subjects.`,
		RunE: func(*cobra.Command, []string) error {
			f, err := loadConfig(path)
			if err != nil {
				return err
			}
			ps := permissions(f)
			if asJSON {
				return u.json(ps)
			}
			return writePermissions(u.out, ps)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an array of objects")
	return cmd
}

// permissions lists who needs what, ordered by connection and name.
func permissions(f *config.File) []permission {
	by := map[[2]string]*permission{}
	user := func(who, nats, why string) *permission {
		p := by[[2]string{nats, who}]
		if p == nil {
			p = &permission{Who: who, NATS: nats, Why: why, inbox: cmp.Or(f.NATS[nats].InboxPrefix, "_INBOX")}
			by[[2]string{nats, who}] = p
		}
		return p
	}
	if g := f.Gateway; g != nil {
		why := "reads plaintext, writes sealed streams"
		keys := user("gateway", g.Keysvc.NATS, why)
		for _, op := range []string{keysvc.OpGenerate, keysvc.OpRouteKey, keysvc.OpScopes, keysvc.OpStatus} {
			keys.publish(keysvc.Subject(f.Service, op))
		}
		for _, r := range g.Routes {
			user("gateway", r.Source.NATS, why).source(r)
			user("gateway", r.Sealed.NATS, why).sealed(r)
			if r.OnScopeUnavailable == config.HoldScopes {
				keys.publish(keysvc.Subject(f.Service, keysvc.OpOpen)) // of the holding scope
				user("gateway", r.Sealed.NATS, why).hold(r)
			}
			if r.DeadLetters != nil {
				letterOperator(f, r, user)
			}
		}
	}
	if un := f.Unseal; un != nil {
		unsealer(f, un, func(nats string) *permission { return user("unseal", nats, "opens sealed streams into plaintext ones") })
	}
	if k := f.Keysvc; k != nil {
		p := user("keysvc", k.NATS, "answers requests for keys, keeps the key directory")
		bucket := keyserver.DirectoryBucket(f.Service)
		p.stream("KV_"+bucket, "STREAM.INFO", "STREAM.CREATE", "STREAM.MSG.GET")
		p.publish("$JS.API.DIRECT.GET.KV_"+bucket+".>", "$JS.API.INFO", "$KV."+bucket+".>")
		p.Responses = true
		p.Subscribe = append(p.Subscribe, "keyweir.v1."+f.Service+".>", "$SRV.>")
		for _, name := range slices.Sorted(maps.Keys(k.Principals)) {
			if mayOpen(k, name) {
				reader(user(name, k.NATS, "reads sealed streams"), f)
			}
		}
	}
	out := make([]permission, 0, len(by))
	for _, p := range by {
		slices.Sort(p.set)
		p.Publish = slices.Compact(p.set)
		p.Subscribe = append(p.Subscribe, p.inbox+".>")
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b permission) int { return cmp.Or(cmp.Compare(a.NATS, b.NATS), cmp.Compare(a.Who, b.Who)) })
	return out
}

func mayOpen(k *config.Keysvc, principal string) bool {
	return slices.ContainsFunc(k.Grants, func(g config.Grant) bool {
		held := !slices.ContainsFunc(g.Scopes, func(s string) bool { return !strings.HasPrefix(s, "hold/") })
		return g.To == principal && slices.Contains(g.May, keysvc.OpOpen) && !held // of a gateway
	})
}

func (p *permission) publish(subjects ...string) { p.set = append(p.set, subjects...) }

// stream allows JetStream API calls that end in the stream's name.
func (p *permission) stream(name string, calls ...string) {
	for _, c := range calls {
		p.publish("$JS.API." + c + "." + name)
	}
}

// consumers allows to make, read and remove consumers of a stream.
func (p *permission) consumers(stream string) {
	p.publish("$JS.API.CONSUMER.CREATE."+stream+".>", "$JS.API.CONSUMER.INFO."+stream+".*",
		"$JS.API.CONSUMER.DELETE."+stream+".*", "$JS.API.CONSUMER.MSG.NEXT."+stream+".*",
		"$JS.API.CONSUMER.LIST."+stream, "$JS.API.CONSUMER.NAMES."+stream)
}

func (p *permission) source(r config.Route) {
	if r.Ingest == config.IngestCore {
		// It makes sure that no stream stores what publishers send, and answers them.
		p.publish("$JS.API.STREAM.NAMES")
		for _, s := range r.Source.Subjects {
			p.Subscribe = append(p.Subscribe, s+" "+gateway.QueueGroup(r.Name))
		}
		p.Responses = true
		return
	}
	p.stream(r.Source.Stream, "STREAM.INFO", "STREAM.MSG.GET")
	p.consumers(r.Source.Stream)
	p.publish("$JS.ACK." + r.Source.Stream + ".>") // WorkQueue and interest streams
	if r.Source.AfterSeal == config.AfterSealPurge {
		p.stream(r.Source.Stream, "STREAM.PURGE")
	}
}

func (p *permission) sealed(r config.Route) {
	for _, stream := range r.SealedStreams() {
		p.stream(stream, "STREAM.INFO", "STREAM.MSG.GET")
		// After a crash the end of the stream is read back.
		p.publish("$JS.API.CONSUMER.CREATE."+stream+".>", "$JS.API.CONSUMER.DELETE."+stream+".*", "$JS.API.CONSUMER.MSG.NEXT."+stream+".*")
		if r.Sealed.Create != nil {
			p.stream(stream, "STREAM.CREATE")
		}
	}
	p.publish(r.Sealed.Subject)
	if r.Sealed.Shared {
		p.publish(checkpoint.Pattern(r.Sealed.Stream))
	}
	if r.Ingest == config.IngestCore {
		return // no position, no claim
	}
	if d := r.DeadLetters; d != nil {
		p.stream(d.Stream, "STREAM.INFO", "STREAM.MSG.GET")
		if d.Create != nil {
			p.stream(d.Stream, "STREAM.CREATE")
		}
		p.publish(d.Prefix() + "." + r.Name + ".>")
	}
	p.tail(r.Sealed.Stream)
	p.buckets()
}

// letterOperator allows what "keyweir deadletters" does with those of a route.
func letterOperator(f *config.File, r config.Route, user func(who, nats, why string) *permission) {
	const who, why = "deadletters", "opens dead letters and sends them back"
	d := r.DeadLetters
	p := user(who, r.Sealed.NATS, why)
	p.publish(keysvc.Subject(f.Service, keysvc.OpOpen), keysvc.Subject(f.Service, keysvc.OpStatus))
	p.stream(d.Stream, "STREAM.INFO", "STREAM.MSG.GET", "STREAM.MSG.DELETE", "DIRECT.GET")
	p.publish("$JS.API.DIRECT.GET." + d.Stream + ".>")
	p.consumers(d.Stream)
	p.publish(d.Prefix() + "." + r.Name + ".>")
	p = user(who, r.Source.NATS, why)
	p.stream(r.Source.Stream, "STREAM.INFO")
	p.publish(r.Source.Subjects...)
}

// tail allows to read the end of a stream back, which a crash calls for.
func (p *permission) tail(stream string) {
	p.publish("$JS.API.CONSUMER.CREATE."+stream+".>", "$JS.API.CONSUMER.DELETE."+stream+".*", "$JS.API.CONSUMER.MSG.NEXT."+stream+".*")
}

// buckets allows to keep claims and position records.
func (p *permission) buckets() {
	for _, b := range []string{gateway.ClaimsBucket, gateway.PositionsBucket} {
		p.stream("KV_"+b, "STREAM.INFO", "STREAM.MSG.GET", "STREAM.CREATE")
		p.publish("$KV." + b + ".>")
	}
}

// unsealer allows what "keyweir unseal" does.
func unsealer(f *config.File, u *config.Unseal, user func(nats string) *permission) {
	for _, op := range []string{keysvc.OpOpen, keysvc.OpRouteKey, keysvc.OpStatus} {
		user(u.NATS).publish(keysvc.Subject(f.Service, op))
	}
	for _, r := range u.Routes {
		p := user(r.Sealed.NATS)
		p.stream(r.Sealed.Stream, "STREAM.INFO", "STREAM.MSG.GET")
		p.consumers(r.Sealed.Stream)
		p = user(r.Plain.NATS)
		p.stream(r.Plain.Stream, "STREAM.INFO", "STREAM.MSG.GET")
		if r.Plain.Create != nil {
			p.stream(r.Plain.Stream, "STREAM.CREATE")
		}
		for _, s := range r.Plain.Subjects {
			p.publish(r.Plain.Prefix + s)
		}
		p.tail(r.Plain.Stream)
		p.buckets()
		if k := r.Park; k != nil {
			p = user(cmp.Or(k.NATS, r.Sealed.NATS))
			p.stream(k.Stream, "STREAM.INFO", "STREAM.MSG.GET")
			p.publish(k.Subject + ".>")
		}
	}
}

// hold allows to keep and release the messages of scopes without a key.
func (p *permission) hold(r config.Route) {
	for _, stream := range r.HoldStreams() {
		p.stream(stream, "STREAM.INFO", "STREAM.MSG.GET", "STREAM.PURGE")
		if r.Hold != nil && r.Hold.Create != nil {
			p.stream(stream, "STREAM.CREATE")
		}
		p.consumers(stream)
	}
	for _, stream := range r.SealedStreams() {
		p.consumers(stream)
	}
	p.publish(gateway.HoldSubject(r.Name) + ".>")
}

// reader allows what package streams does; acknowledging needs $JS.ACK of the
// application's consumers.
func reader(p *permission, f *config.File) {
	p.publish(keysvc.Subject(f.Service, keysvc.OpOpen), keysvc.Subject(f.Service, keysvc.OpStatus))
	if f.Gateway == nil {
		return
	}
	for _, r := range f.Gateway.Routes {
		if r.Sealed.NATS == p.NATS {
			for _, stream := range r.SealedStreams() {
				p.stream(stream, "STREAM.INFO", "STREAM.MSG.GET")
				p.consumers(stream)
				p.publish("$JS.ACK." + stream + ".>")
			}
		}
	}
}

func writePermissions(w io.Writer, ps []permission) error {
	var b bytes.Buffer
	last := ""
	for _, p := range ps {
		if p.NATS != last {
			fmt.Fprintf(&b, "# connection %q\n", p.NATS)
			last = p.NATS
		}
		responses := ""
		if p.Responses {
			responses = "\n    allow_responses: true"
		}
		fmt.Fprintf(&b, "# %s: %s\n{\n  user: %s\n  permissions: {\n    publish: { allow: [%s] }\n    subscribe: { allow: [%s] }%s\n  }\n}\n",
			p.Who, p.Why, p.Who, natsList(p.Publish), natsList(p.Subscribe), responses)
	}
	_, err := w.Write(b.Bytes())
	return writeError(err)
}

func natsList(subjects []string) string {
	var b strings.Builder
	for _, s := range subjects {
		fmt.Fprintf(&b, "\n      %q", s)
	}
	return b.String() + "\n    "
}
