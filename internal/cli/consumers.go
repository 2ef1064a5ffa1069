package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
)

func newConsumers(u *ui) *cobra.Command {
	return group("consumers", "Move consumers to sealed streams and back", newConsumersMap(u))
}

func newConsumersMap(u *ui) *cobra.Command {
	var (
		conn           natsFlags
		target, named  string
		name           string
		dryRun, asJSON bool
		inUse          bool
	)
	cmd := &cobra.Command{
		Use: "map STREAM/CONSUMER RELAYED", Short: "Make the twin of a consumer on the stream its stream is relayed to",
		Args: argsBetween(2, 2, "STREAM/CONSUMER and RELAYED"),
		Long: `Makes, on a stream that a route writes, the twin of a durable consumer of the stream
that the route reads: it begins with the first message behind what the consumer had
acknowledged, and has the same filters, mapped to the relayed subjects, and the same
settings. RELAYED is the sealed stream of the consumer's stream, or, on the way back,
the plaintext stream that "keyweir unseal" makes of it.

Stop what reads with the consumer first. Messages it had got and not acknowledged are
delivered by the twin, and so is everything else above its acknowledgement floor, even
what was acknowledged out of order.

No key is needed. The positions that are read, in the header Keyweir-Source, can only
be authenticated by their route: what the command relies on is that nobody but the
route may publish to the relayed stream. It checks all it can without: that the
position belongs to this very stream, that neighbours follow each other, and, as far
as the consumer's stream still has the messages, their times and subjects.`,
		Example: "  keyweir consumers map ORDERS/billing SEALED_ORDERS --dry-run\n  keyweir consumers map ORDERS/billing SEALED_ORDERS --server nats://landing --to-server nats://hub",
		RunE: func(cmd *cobra.Command, args []string) error {
			stream, consumer, ok := strings.Cut(args[0], "/")
			if !ok || stream == "" || consumer == "" || strings.Contains(consumer, "/") {
				return usagef("%q is not STREAM/CONSUMER", args[0])
			}
			from, err := conn.dial(cmd.Context(), "consumers")
			if err != nil {
				return err
			}
			defer from.Close()
			to := from
			if target != "" || named != "" {
				other := conn
				other.server, other.context = target, named
				if to, err = other.dial(cmd.Context(), "consumers"); err != nil {
					return err
				}
				defer to.Close()
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), mapTimeout)
			defer cancel()
			m, cfg, err := mapConsumer(ctx, from, to, stream, consumer, args[1], name)
			if err != nil {
				return err
			}
			if m.InUse && !dryRun && !inUse {
				return withHint(fmt.Errorf("consumer %s of stream %s is in use: a reader waits for messages", printable(consumer), printable(stream)),
					"stop what reads with it and try again; --in-use makes the twin all the same, and what is acknowledged from now on is delivered twice")
			}
			if !dryRun {
				if err := createTwin(ctx, to, args[1], cfg); err != nil {
					return err
				}
				m.Created = true
			}
			if asJSON {
				return u.json(m)
			}
			return writeMapped(u.out, m)
		},
	}
	conn.add(cmd)
	fs := cmd.Flags()
	fs.StringVar(&target, "to-server", "", "NATS servers of RELAYED, if it is elsewhere; all other connection flags count for both")
	fs.StringVar(&named, "to-context", "", "context of the nats CLI for RELAYED, if it is elsewhere")
	fs.StringVar(&name, "name", "", "name of the twin (default: that of the consumer)")
	fs.BoolVar(&dryRun, "dry-run", false, "say what would be made, and make nothing")
	fs.BoolVar(&inUse, "in-use", false, "make the twin of a consumer that something reads with")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

// mappedConsumer says what became, or would become, of a consumer.
type mappedConsumer struct {
	Stream   string `json:"stream"`
	Consumer string `json:"consumer"`
	Relayed  string `json:"relayed"`
	Twin     string `json:"twin"`
	Created  bool   `json:"created"`
	// Floor is the last sequence of Stream up to which all is acknowledged; Start
	// the sequence of Relayed at which the twin begins.
	Floor uint64 `json:"ack_floor"`
	Start uint64 `json:"start"`
	// Before is the sequence in Stream of the relayed message before Start, After
	// that of the message at Start; 0: there is none.
	Before  uint64   `json:"before"`
	After   uint64   `json:"after"`
	Filters []string `json:"filters"`
	// Again is the range of Stream that was delivered above the floor and comes
	// again; Unacked how many messages in it were not acknowledged. 0: none.
	AgainFrom uint64   `json:"again_from,omitempty"`
	AgainTo   uint64   `json:"again_to,omitempty"`
	Unacked   int      `json:"unacknowledged"`
	InUse     bool     `json:"in_use"`
	Notes     []string `json:"notes"`
}

func (m *mappedConsumer) notef(format string, args ...any) {
	m.Notes = append(m.Notes, fmt.Sprintf(format, args...))
}

// createTwin refuses a consumer that exists with any other settings.
func createTwin(ctx context.Context, nc *nats.Conn, stream string, cfg *jetstream.ConsumerConfig) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("opening JetStream: %w", err)
	}
	_, err = js.CreateConsumer(ctx, stream, *cfg)
	if err != nil {
		err = fmt.Errorf("creating consumer %s on stream %s: %w", printable(cfg.Durable), printable(stream), err)
		return hintFor(err, jetstream.ErrConsumerExists, "give another --name, or remove that consumer first: where it stands is not changed")
	}
	return nil
}

func writeMapped(w io.Writer, m *mappedConsumer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	row("consumer", "%s/%s, everything up to %d is acknowledged", m.Stream, m.Consumer, m.Floor)
	verb := "would begin"
	if m.Created {
		verb = "begins"
	}
	row("twin", "%s/%s, %s at %d", m.Relayed, m.Twin, verb, m.Start)
	if m.Before > 0 {
		row("before it", "%d, which is %d of %s", m.Start-1, m.Before, m.Stream)
	}
	if m.After > 0 {
		row("first", "%d of %s", m.After, m.Stream)
	}
	for _, f := range m.Filters {
		row("filter", "%s", f)
	}
	if m.AgainTo > 0 {
		row("again", "%d to %d of %s were delivered before, %d of them not acknowledged", m.AgainFrom, m.AgainTo, m.Stream, m.Unacked)
	}
	if m.InUse {
		row("WARNING", "the consumer is in use")
	}
	for _, n := range m.Notes {
		row("note", "%s", n)
	}
	return writeError(tw.Flush())
}

// errNotMapped: the consumer's place cannot be found in the relayed stream.
var errNotMapped = errors.New("cannot map the consumer")

func notMapped(hint, format string, args ...any) error {
	return withHint(fmt.Errorf("%w: "+format, append([]any{errNotMapped}, args...)...), "%s", hint)
}
