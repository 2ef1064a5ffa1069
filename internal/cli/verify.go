package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/sealedcheck"
)

func newVerify(u *ui) *cobra.Command {
	var (
		conn   natsFlags
		o      sealedcheck.Options
		asJSON bool
	)
	cmd := &cobra.Command{
		Use: "verify STREAM", Short: "Check a sealed stream, without any key", Args: argsBetween(1, 1, "STREAM"),
		Long: `Reads a whole sealed stream and checks what can be checked without a key: that
every message is an envelope, that each names the one before it on its chain, that
nothing is missing in the middle, that checkpoints name the last message of their
partition, that key records are those of their keys, that no
nonce was used twice, and that the stream is set up as the gateway demands.

The exit code is 0 if nothing is wrong, and 1 otherwise. It needs no more than the
right to read the stream, and changes nothing.

What a stream says in clear is not authenticated without keys, and a cut end does
not show; the output names everything that this check cannot show.`,
		Example: "  keyweir verify SEALED_ORDERS\n  keyweir verify SEALED_ORDERS --from 1000000 --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.To > 0 && o.From > o.To {
				return usagef("--from %d is behind --to %d", o.From, o.To)
			}
			nc, err := conn.dial(cmd.Context(), "verify")
			if err != nil {
				return err
			}
			defer nc.Close()
			o.Stream = args[0]
			var set func(int64)
			end := func() {}
			o.Progress = func(done, total uint64) {
				if set == nil {
					set, end = u.progress("verifying", int64(total))
				}
				set(int64(done))
			}
			r, err := sealedcheck.Check(cmd.Context(), nc, o)
			end()
			if err != nil {
				err = hintFor(err, jetstream.ErrStreamNotFound, "nats stream ls lists the streams of the server")
				return hintFor(err, nats.ErrNoResponders, "the server has no JetStream, or this user may not use it")
			}
			if asJSON {
				err = u.json(r)
			} else {
				err = writeVerified(u.out, r)
			}
			if err != nil || r.OK {
				return err
			}
			return fmt.Errorf("stream %s is not in order: %s", printable(r.Stream), r.Wrong())
		},
	}
	conn.add(cmd)
	fs := cmd.Flags()
	fs.Uint64Var(&o.From, "from", 0, "begin at this sequence of the stream (default its first)")
	fs.Uint64Var(&o.To, "to", 0, "end at this sequence of the stream (default its last)")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

// maxListed is how many scopes and chains the table lists; --json lists all.
const maxListed = 10

// writeVerified prints a report for people.
func writeVerified(w io.Writer, r *sealedcheck.Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	s := &r.Settings
	row("stream", "%s, mode %s, %d replica(s) in %s", r.Stream, orNone(s.Mode), s.Replicas, s.Storage)
	if s.Route != "" {
		row("route", "%s", s.Route)
	}
	if r.Messages > 0 {
		row("sequences", "%d to %d of %d to %d", r.First, r.Last, r.StreamFirst, r.StreamLast)
	}
	row("messages", "%d", r.Messages)
	row("envelopes", "%d", r.Envelopes)
	if s.Shared != "" {
		row("shared", "by %s partitions, %d checkpoints, %d replaced", s.Shared, r.Checkpoints, r.Replaced)
	}
	if r.Layered > 0 {
		row("layered", "%d hold another envelope", r.Layered)
	}
	row("foreign", "%d", r.Foreign)
	row("holes", "%d, %d messages missing", r.Holes, r.MissingMsgs)
	row("broken links", "%d", r.BrokenLinks)
	row("nonces", "%d reused, %d out of order, %d copies, in %d sessions (%d counted, %d random)",
		r.NonceReuse, r.NonceOrder, r.Copies, r.Nonces.Sessions, r.Nonces.Counter, r.Nonces.Random)
	for i, c := range r.Chains {
		if i == maxListed {
			row("chain", "and %d more", uint64(len(r.Chains)-i)+r.ChainsMore)
			break
		}
		from := "from its start"
		if !c.FromStart {
			from = "its start not among them"
		}
		row("chain", "%s: %d messages, source %d to %d, %s", c.ID, c.Messages, c.FirstSource, c.LastSource, from)
	}
	row("keys", "%d, of which %d by reference only", r.Keys.Total, r.Keys.ReferenceOnly)
	tallies(row, "scheme", r.Schemes)
	tallies(row, "authorities", r.Authorities)
	tallies(row, "scope", r.Scopes)
	for _, t := range r.Subjects {
		row("subject", "%s: %d messages", t.Name, t.Messages)
	}
	for _, name := range slices.Sorted(maps.Keys(r.ClearHeaders)) {
		row("header in clear", "%s: %d messages", name, r.ClearHeaders[name])
	}
	for _, n := range r.Notes {
		row("note", "%s", n)
	}
	for _, f := range r.Findings {
		if f.Sequence == 0 {
			row("WRONG", "%s: %s", f.Kind, f.Detail)
		} else {
			row("WRONG", "%d: %s: %s", f.Sequence, f.Kind, f.Detail)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Counts)) {
		if n := r.Counts[k]; n > sealedcheck.MaxFindings {
			row("WRONG", "%s: %d more", k, n-sealedcheck.MaxFindings)
		}
	}
	fmt.Fprintln(tw)
	if r.OK {
		row("verdict", "in order")
	} else {
		row("verdict", "NOT IN ORDER: %s", r.Wrong())
	}
	for _, n := range r.NotShown {
		row("not shown", "%s", n)
	}
	return writeError(tw.Flush())
}

func orNone(s string) string {
	if s == "" {
		return "not stated"
	}
	return s
}

func tallies(row func(name, format string, args ...any), name string, ts []sealedcheck.Tally) {
	for i, t := range ts {
		if i == maxListed {
			row(name, "and %d more (--json lists them)", len(ts)-i)
			return
		}
		row(name, "%s: %d keys, %d messages", strings.TrimSpace(t.Name), t.Keys, t.Messages)
	}
}
