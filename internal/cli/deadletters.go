package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/streams"
)

func newDeadLetters(u *ui) *cobra.Command {
	return group("deadletters", "List, show and send back what the gateway could not seal",
		newDeadLettersList(u), newDeadLettersShow(u), newDeadLettersRetry(u))
}

// deadLetter is one line of "keyweir deadletters list": what stands in clear.
type deadLetter struct {
	ID       uint64     `json:"id"` // sequence in the dead-letter stream
	Route    string     `json:"route"`
	Chain    string     `json:"chain"`
	Stream   string     `json:"stream"`   // the source stream
	Sequence uint64     `json:"sequence"` // in it
	Subject  string     `json:"subject"`
	Reason   string     `json:"reason"`
	Parts    int        `json:"parts"`
	Stored   time.Time  `json:"stored"`
	Retrying *time.Time `json:"retrying,omitempty"` // sending it back began, and did not end
	Retried  *time.Time `json:"retried,omitempty"`

	location string // the subject it is stored on
	prefix   string
	position deadletter.Position
	header   nats.Header
	envelope []byte   // of the first part, once it was read
	intent   uint64   // message that says Retrying; 0: none
	rest     []uint64 // messages of further parts, in no order
}

// describeLetter reads what a message of a dead-letter stream says in clear; ok is
// false for one that is no first part.
func describeLetter(subject string, h nats.Header, seq uint64, stored time.Time) (l deadLetter, ok bool) {
	pos, prefix, part, err := deadletter.ParseSubject(subject)
	if err != nil || part != 1 {
		return deadLetter{}, false
	}
	l = deadLetter{
		ID: seq, Route: pos.Route, Chain: pos.Chain.String(), Stream: h.Get(deadletter.HeaderStream), Sequence: pos.Sequence,
		Subject: h.Get(deadletter.HeaderSubject), Reason: h.Get(deadletter.HeaderError), Parts: 1, Stored: stored.UTC(),
		location: subject, prefix: prefix, position: pos, header: h,
	}
	if _, parts, err := deadletter.ParsePart(h.Get(deadletter.HeaderPart)); err == nil {
		l.Parts = parts
	}
	if v := h.Get(deadletter.HeaderRetried); v != "" {
		at, _ := time.Parse(time.RFC3339, v) // whatever it says, it is one
		l.Retried = &at
	}
	return l, true
}

func newDeadLettersList(u *ui) *cobra.Command {
	var (
		conn        natsFlags
		all, asJSON bool
		route       string
	)
	cmd := &cobra.Command{
		Use: "list STREAM", Short: "List dead letters, without any key", Args: argsBetween(1, 1, "STREAM"),
		Long: `Lists what a dead-letter stream says in clear. It is not authenticated: show
goes by what is sealed.`,
		Example: "  keyweir deadletters list DEAD_LETTERS\n  keyweir deadletters list DEAD_LETTERS --route orders --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			nc, err := conn.dial(cmd.Context(), "deadletters")
			if err != nil {
				return err
			}
			defer nc.Close()
			ls, err := listLetters(cmd.Context(), nc, args[0])
			if err != nil {
				return err
			}
			ls = slices.DeleteFunc(ls, func(l deadLetter) bool {
				return l.Retried != nil && !all || route != "" && l.Route != route
			})
			if asJSON {
				for _, l := range ls {
					if err := u.jsonLine(l); err != nil {
						return err
					}
				}
				return nil
			}
			return writeLetters(u.out, ls)
		},
	}
	conn.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "list those sent back, too")
	cmd.Flags().StringVar(&route, "route", "", "only those of this route")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object per line")
	return cmd
}

func writeLetters(w io.Writer, ls []deadLetter) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(ls) > 0 {
		fmt.Fprintln(tw, "ID\tSTORED\tROUTE\tSOURCE\tREASON\tPARTS\tSUBJECT")
	}
	for _, l := range ls {
		reason := l.Reason
		switch {
		case l.Retried != nil:
			reason += " (sent back)"
		case l.Retrying != nil:
			reason += " (being sent back)"
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s %d\t%s\t%d\t%s\n", l.ID, l.Stored.Format(time.RFC3339), printable(l.Route), printable(l.Stream), l.Sequence, printable(reason), l.Parts, printable(l.Subject))
	}
	return writeError(tw.Flush())
}

// listLetters reads the headers of a dead-letter stream. The letters come in the
// order of their parking; those sent back, of their sending.
func listLetters(ctx context.Context, nc *nats.Conn, stream string) ([]deadLetter, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	c, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return nil, streamError(stream, err)
	}
	info := c.CachedInfo()
	if info == nil {
		return nil, fmt.Errorf("reading stream %s: the server said nothing of the consumer", printable(stream))
	}
	var out []deadLetter
	rest := make(map[string][]uint64)
	type intent struct {
		id uint64
		at time.Time
	}
	intents := make(map[string]intent)
	for left := info.NumPending; left > 0; {
		m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("reading stream %s: %w", printable(stream), err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, fmt.Errorf("reading metadata: %w", err)
		}
		left = meta.NumPending
		if l, ok := describeLetter(m.Subject(), m.Headers(), meta.Sequence.Stream, meta.Timestamp); ok {
			out = append(out, l)
		} else if of, ok := deadletter.ParseRetrySubject(m.Subject()); ok {
			intents[of] = intent{meta.Sequence.Stream, meta.Timestamp.UTC()}
		} else if pos, prefix, part, err := deadletter.ParseSubject(m.Subject()); err == nil && part > 1 {
			of := pos.Subject(prefix, 1)
			rest[of] = append(rest[of], meta.Sequence.Stream)
		}
	}
	for i := range out {
		l := &out[i]
		l.rest = rest[l.location]
		if in := intents[l.location]; in.id != 0 {
			l.intent = in.id
			if l.Retried == nil {
				l.Retrying = &in.at
			}
		}
	}
	return out, nil
}

// letterReader opens dead letters.
type letterReader struct {
	stream jetstream.Stream
	opener *streams.Opener
	nc     *nats.Conn
	js     jetstream.JetStream
}

func (r *letterReader) close() {
	_ = r.opener.Close() // only drops keys
	r.nc.Close()
}

func openLetterReader(ctx context.Context, conn *natsFlags, stream, profile, identity string) (*letterReader, error) {
	if profile == "" {
		return nil, usagef("--profile is required")
	}
	p, err := streams.LoadProfile(profile)
	if err != nil {
		return nil, withHint(err, "keyweir readers add NAME makes a profile")
	}
	nc, err := conn.dial(ctx, "deadletters")
	if err != nil {
		return nil, err
	}
	r := &letterReader{nc: nc}
	err = func() error {
		cfg, err := readerConfig(p, nc, identity)
		if err != nil {
			return err
		}
		if r.js, err = jetstream.New(nc); err != nil {
			return fmt.Errorf("opening JetStream: %w", err)
		}
		if r.stream, err = r.js.Stream(ctx, stream); err != nil {
			return streamError(stream, err)
		}
		r.opener, err = streams.New(cfg)
		return err
	}()
	if err != nil {
		nc.Close()
		return nil, err
	}
	return r, nil
}

// read opens the dead letter at a sequence, all parts of it, and makes sure that
// it is what its place and its headers say.
func (r *letterReader) read(ctx context.Context, id uint64) (deadLetter, *deadletter.Letter, error) {
	fail := func(format string, args ...any) (deadLetter, *deadletter.Letter, error) {
		return deadLetter{}, nil, fmt.Errorf("dead letter %d: "+format, append([]any{id}, args...)...)
	}
	m, err := r.stream.GetMsg(ctx, id)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return fail("no such message")
	}
	if err != nil {
		return fail("reading it: %w", err)
	}
	clear, ok := describeLetter(m.Subject, m.Header, m.Sequence, m.Time)
	if !ok {
		return fail("message on %s is no dead letter", printable(m.Subject))
	}
	if clear.Retried != nil {
		return fail("it was sent back at %s", clear.Retried.Format(time.RFC3339))
	}
	clear.envelope = m.Data
	parts := make([][]byte, clear.Parts)
	for i := range parts {
		if i > 0 {
			location := clear.position.Subject(clear.prefix, i+1)
			if m, err = r.stream.GetLastMsgForSubject(ctx, location); err != nil {
				return fail("reading part %d: %w", i+1, err)
			}
		}
		// Not through Accept.Subjects: a dead letter is read where it was stored.
		if parts[i], err = r.opener.OpenBytes(ctx, m.Subject, m.Data); err != nil {
			return fail("%w", explainOpen(err))
		}
	}
	l, err := deadletter.Join(parts)
	if err != nil {
		return fail("%w", err)
	}
	if l.Route != clear.Route || l.Chain != clear.Chain || l.Sequence != clear.Sequence || l.Stream != clear.Stream || l.Subject != clear.Subject || l.Reason != clear.Reason {
		return fail("its headers in clear are not those it was sealed with: do not trust them")
	}
	return clear, l, nil
}

// shownLetter is what "keyweir deadletters show --json" prints.
type shownLetter struct {
	deadLetter
	Detail     string      `json:"detail"`
	Published  time.Time   `json:"published"`
	Headers    nats.Header `json:"headers,omitempty"`
	Data       *string     `json:"data,omitempty"`        // where it is UTF-8
	DataBase64 *string     `json:"data_base64,omitempty"` // where it is not
}

func newDeadLettersShow(u *ui) *cobra.Command {
	var (
		conn              natsFlags
		profile, identity string
		asJSON, raw       bool
	)
	cmd := &cobra.Command{
		Use: "show STREAM ID", Short: "Open a dead letter", Args: argsBetween(2, 2, "STREAM ID"),
		Long:    "Opens a dead letter as a reader does, and prints why it is one, its headers and its payload. ID is what list prints.",
		Example: "  keyweir deadletters show DEAD_LETTERS 12 --profile ops.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := letterIDs(args[1:])
			if err != nil {
				return err
			}
			if asJSON && raw {
				return usagef("--json excludes --raw")
			}
			r, err := openLetterReader(cmd.Context(), &conn, args[0], profile, identity)
			if err != nil {
				return err
			}
			defer r.close()
			c, l, err := r.read(cmd.Context(), ids[0])
			if err != nil {
				return err
			}
			if raw {
				_, err := u.out.Write(l.Data)
				return writeError(err)
			}
			if asJSON {
				return u.json(shown(c, l))
			}
			return writeLetter(u, c, l)
		},
	}
	conn.add(cmd)
	profileFlags(cmd, &profile, &identity)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	cmd.Flags().BoolVar(&raw, "raw", false, "print the payload only, as it is")
	return cmd
}

func profileFlags(cmd *cobra.Command, profile, identity *string) {
	cmd.Flags().StringVar(profile, "profile", "", "reader's profile, made by keyweir readers add (required)")
	cmd.Flags().StringVar(identity, "identity", "", "seed file to read as, instead of the one the profile names")
	_ = cmd.MarkFlagFilename("profile", "json")
}

func letterIDs(args []string) ([]uint64, error) {
	out := make([]uint64, len(args))
	for i, a := range args {
		n, err := strconv.ParseUint(a, 10, 64)
		if err != nil || n == 0 {
			return nil, usagef("%q is not the ID of a dead letter", a)
		}
		out[i] = n
	}
	return out, nil
}

func shown(c deadLetter, l *deadletter.Letter) shownLetter {
	s := shownLetter{deadLetter: c, Detail: l.Detail, Published: time.Unix(0, l.Published).UTC(), Headers: l.Header}
	if utf8.Valid(l.Data) {
		d := string(l.Data)
		s.Data = &d
	} else {
		d := base64.StdEncoding.EncodeToString(l.Data)
		s.DataBase64 = &d
	}
	return s
}

func writeLetter(u *ui, c deadLetter, l *deadletter.Letter) error {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d %s  %s\n", c.ID, printable(l.Subject), time.Unix(0, l.Published).UTC().Format(time.RFC3339Nano))
	fmt.Fprintf(&b, "reason: %s\ndetail: %s\nsource: %s %d\n", l.Reason, printable(l.Detail), printable(l.Stream), l.Sequence)
	for _, name := range slices.Sorted(maps.Keys(l.Header)) {
		for _, v := range l.Header[name] {
			fmt.Fprintf(&b, "%s: %s\n", printable(name), printable(v))
		}
	}
	b.WriteByte('\n')
	if isTerminal(u.out) && !isText(l.Data) {
		fmt.Fprintf(&b, "(%d bytes of binary payload; --raw prints them)\n", len(l.Data))
	} else {
		b.Write(l.Data)
		b.WriteByte('\n')
	}
	_, err := io.WriteString(u.out, b.String())
	return writeError(err)
}
