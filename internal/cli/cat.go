package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/checkpoint"
	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

// catFlags say what "keyweir cat" reads and how it prints.
type catFlags struct {
	conn                natsFlags
	profile, identity   string
	count, last, start  uint64
	subject             string
	follow, keepGoing   bool
	asJSON, raw, forced bool
}

func newCat(u *ui) *cobra.Command {
	var f catFlags
	cmd := &cobra.Command{
		Use: "cat STREAM", Short: "Print the plaintext of a sealed stream", Args: argsBetween(1, 1, "STREAM"),
		Long: `Reads a sealed stream as the identity that the profile names, and prints what was
published: origin subject, headers and payload. It stops at the end of the
stream, or follows it with --follow. Nothing is acknowledged or changed.`,
		Example: `  keyweir cat SEALED_ORDERS --profile billing.json --last 10
  keyweir cat SEALED_ORDERS --profile billing.json --follow --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.profile == "" {
				return usagef("--profile is required")
			}
			if f.last > 0 && (f.start > 0 || f.subject != "") {
				return usagef("--last excludes --start and --subject")
			}
			if f.asJSON && f.raw {
				return usagef("--json excludes --raw")
			}
			return runCat(cmd.Context(), u, args[0], &f)
		},
	}
	f.conn.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.profile, "profile", "", "reader's profile, made by keyweir readers add (required)")
	fs.StringVar(&f.identity, "identity", "", "seed file to read as, instead of the one the profile names")
	fs.Uint64VarP(&f.count, "count", "n", 0, "stop after this many messages")
	fs.Uint64Var(&f.last, "last", 0, "begin this many messages before the end")
	fs.Uint64Var(&f.start, "start", 0, "begin at this sequence of the sealed stream")
	fs.StringVar(&f.subject, "subject", "", "only sealed subjects that match this pattern")
	fs.BoolVarP(&f.follow, "follow", "f", false, "go on as messages arrive, and wait while keys are out of reach")
	fs.BoolVar(&f.keepGoing, "keep-going", false, "report a message that does not open and go on")
	fs.BoolVar(&f.asJSON, "json", false, "print one object per line")
	fs.BoolVar(&f.raw, "raw", false, "print payloads only, one per line")
	fs.BoolVar(&f.forced, "force", false, "print binary payloads to a terminal")
	_ = cmd.MarkFlagFilename("profile", "json")
	return cmd
}

func runCat(ctx context.Context, u *ui, stream string, f *catFlags) error {
	p, err := streams.LoadProfile(f.profile)
	if err != nil {
		return withHint(err, "keyweir readers add NAME makes a profile")
	}
	nc, err := f.conn.dial(ctx, "cat")
	if err != nil {
		return err
	}
	defer nc.Close()
	cfg, err := readerConfig(p, nc, f.identity)
	if err != nil {
		return withHint(err, "the profile names the file of the reader's identity; --identity names another one")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cfg.OnState = func(s streams.State) {
		switch {
		case !s.Held:
			u.notef("keyweir: the keys are back")
		case f.follow:
			u.warningf("waiting: %v", s.Err)
		default:
			cancel(s.Err)
		}
	}
	if f.keepGoing {
		cfg.OnUndecryptable = streams.Deliver(nil)
	}
	opener, err := streams.New(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = opener.Close() }() // only drops keys
	consumer, pending, err := catConsumer(ctx, nc, stream, f)
	if err != nil {
		return err
	}
	if pending == 0 && !f.follow {
		u.hintf("no message in %s matches", printable(stream))
		return nil
	}
	c := catter{u: u, catFlags: f, toTerminal: isTerminal(u.out)}
	failed := 0
	for m, err := range opener.Messages(ctx, consumer) {
		var meta *jetstream.MsgMetadata
		if err == nil {
			if err := c.print(m); err != nil {
				return err
			}
			if meta, err = m.Metadata(); err != nil {
				return fmt.Errorf("reading metadata: %w", err)
			}
		} else {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if f.follow && errors.Is(err, errInterrupted) {
				return nil // the way to end it
			}
			oe := (*streams.OpenError)(nil)
			if !f.keepGoing || !errors.As(err, &oe) || oe.Sealed() == nil || streams.Verdict(err) != streams.Reject {
				return explainOpen(err)
			}
			u.errorf("%v", err)
			failed++
			if meta, err = oe.Sealed().Metadata(); err != nil {
				return fmt.Errorf("reading metadata: %w", err)
			}
		}
		if f.count > 0 && c.printed == f.count || !f.follow && meta.NumPending == 0 {
			break
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d messages did not open", failed)
	}
	return nil
}

func readerConfig(p *streams.Profile, nc *nats.Conn, identity string) (streams.Config, error) {
	if identity == "" {
		return p.Config(nc)
	}
	id, err := keysvc.LoadIdentity(identity)
	if err != nil {
		return streams.Config{}, err
	}
	return p.ConfigAs(nc, id)
}

// catConsumer makes an ordered consumer, and says how many messages it will get
// that are there already.
func catConsumer(ctx context.Context, nc *nats.Conn, stream string, f *catFlags) (jetstream.Consumer, uint64, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, 0, fmt.Errorf("opening JetStream: %w", err)
	}
	cfg := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}
	s, err := js.Stream(ctx, stream)
	if err != nil && (f.last > 0 || errors.Is(err, jetstream.ErrStreamNotFound)) {
		return nil, 0, streamError(stream, err)
	}
	switch {
	case f.subject != "":
		cfg.FilterSubjects = []string{f.subject}
	case err == nil && s.CachedInfo().Config.Metadata[gateway.MetadataShared] != "":
		// Without checkpoints, one of which is the last message.
		for _, subject := range s.CachedInfo().Config.Subjects {
			if !strings.HasPrefix(subject, checkpoint.Prefix) {
				cfg.FilterSubjects = append(cfg.FilterSubjects, subject)
			}
		}
	}
	start := f.start
	if f.last > 0 {
		if st := s.CachedInfo().State; st.LastSeq >= f.last {
			start = max(st.FirstSeq, st.LastSeq-f.last+1)
		}
	}
	if start > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, start
	}
	c, err := js.OrderedConsumer(ctx, stream, cfg)
	if err != nil {
		return nil, 0, streamError(stream, err)
	}
	if info := c.CachedInfo(); info != nil {
		return c, info.NumPending, nil
	}
	return c, math.MaxUint64, nil
}

// explainOpen adds to the error of a message what its reader can do.
func explainOpen(err error) error {
	for _, h := range []struct {
		is   error
		text string
	}{
		{streams.ErrPlaintext, "somebody published past the gateway, or this is not a sealed stream; --keep-going goes on"},
		{streams.ErrTampered, "the message cannot be trusted; --keep-going goes on without it"},
		{streams.ErrRelocated, "a mirror with a subject transform? read the stream it mirrors"},
		{streams.ErrNotAccepted, "the profile does not accept this scope, scheme or authority; ask for a newer profile"},
		{streams.ErrDenied, "the key service needs a grant for this identity: {to: NAME, may: [open], scopes: [...]}"},
		{streams.ErrSuspended, "the owner of the key suspended it; --follow waits until it is back"},
		{streams.ErrDestroyed, "the key was destroyed, and with it what it sealed"},
		{streams.ErrClockSkew, "set this machine's clock"},
		{streams.ErrUnavailable, "is the key service running on this server, and are the profile's pins its public key? --follow waits for it"},
		{streams.ErrUnsupported, "a newer release of keyweir may open it"},
	} {
		if errors.Is(err, h.is) {
			return withHint(err, "%s", h.text)
		}
	}
	return err
}

// catter prints messages.
type catter struct {
	*catFlags
	u          *ui
	toTerminal bool
	printed    uint64
}

// catMessage is one line of "keyweir cat --json".
type catMessage struct {
	Sequence      uint64      `json:"sequence"` // in the sealed stream
	Subject       string      `json:"subject"`
	SealedSubject string      `json:"sealed_subject"`
	Headers       nats.Header `json:"headers,omitempty"`
	Published     time.Time   `json:"published"`
	Scope         string      `json:"scope"`
	KeyID         string      `json:"key_id"`
	Chain         string      `json:"chain"`
	SourceSeq     uint64      `json:"source_sequence"`
	Gap           uint64      `json:"gap,omitempty"`
	Data          *string     `json:"data,omitempty"`        // where it is UTF-8
	DataBase64    *string     `json:"data_base64,omitempty"` // where it is not
}

func (c *catter) print(m *streams.Message) error {
	c.printed++
	if c.asJSON {
		return c.printJSON(m)
	}
	if c.toTerminal && !c.forced && !isText(m.Data()) {
		return withHint(fmt.Errorf("the payload of %s is binary and would garble the terminal", printable(m.Subject())),
			"--json prints it as base64, --force as it is")
	}
	if c.raw {
		_, err := c.u.out.Write(append(slices.Clip(m.Data()), '\n'))
		return writeError(err)
	}
	var b strings.Builder
	seq := uint64(0)
	if meta, err := m.Metadata(); err == nil {
		seq = meta.Sequence.Stream
	}
	fmt.Fprintf(&b, "#%d %s  %s\n", seq, printable(m.Subject()), m.Published().UTC().Format(time.RFC3339Nano))
	for _, name := range slices.Sorted(maps.Keys(m.Headers())) {
		for _, v := range m.Headers()[name] {
			fmt.Fprintf(&b, "%s: %s\n", printable(name), printable(v))
		}
	}
	if len(m.Headers()) > 0 {
		b.WriteByte('\n')
	}
	b.Write(m.Data())
	b.WriteString("\n\n")
	_, err := io.WriteString(c.u.out, b.String())
	return writeError(err)
}

func (c *catter) printJSON(m *streams.Message) error {
	o := catMessage{
		Subject: m.Subject(), SealedSubject: m.SealedSubject(), Headers: m.Headers(), Published: m.Published().UTC(),
		Scope: m.Scope(), KeyID: m.KeyID().String(), Chain: m.Chain().String(), SourceSeq: m.Sequence(), Gap: m.Gap(),
	}
	if meta, err := m.Metadata(); err == nil {
		o.Sequence = meta.Sequence.Stream
	}
	if utf8.Valid(m.Data()) {
		s := string(m.Data())
		o.Data = &s
	} else {
		s := base64.StdEncoding.EncodeToString(m.Data())
		o.DataBase64 = &s
	}
	return c.u.jsonLine(o)
}

func writeError(err error) error {
	if err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}

// isText reports whether b can be shown on a terminal without harm.
func isText(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	for _, r := range string(b) {
		if unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' {
			return false
		}
	}
	return true
}
