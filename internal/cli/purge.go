package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/gateway"
	"github.com/keyweir/keyweir/internal/config"
	"github.com/keyweir/keyweir/internal/telemetry"
)

func newPurge(u *ui) *cobra.Command {
	var (
		path           string
		dryRun, asJSON bool
	)
	cmd := &cobra.Command{
		Use: "purge ROUTE", Short: "Remove from a route's source what its sealed stream holds", Args: argsBetween(1, 1, "ROUTE"),
		Long: `Removes plaintext from the source stream of a route that keeps it (after_seal:
keep), once its history is sealed. The gateway may run meanwhile.

Only messages of the route's subjects go, and only those of which the sealed
stream, or the dead-letter stream, was seen to hold a copy, older than the sync
interval. If the route's position is not certain, or a message below it has no sealed copy, nothing is
removed and the exit code is 1. Of a route with partitions, each is purged by
itself: orders/0, orders/1.

The connection of the source needs the right to purge it, which the gateway's own
user has under after_seal: purge only: $JS.API.STREAM.PURGE.<stream>.`,
		Example: "  keyweir purge orders --config keyweir.yaml --dry-run\n  keyweir purge orders --config keyweir.yaml --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := loadConfig(path)
			if err != nil {
				return err
			}
			r, err := purge(cmd.Context(), u, f, args[0], dryRun)
			if err != nil {
				return err
			}
			if asJSON {
				return u.json(r)
			}
			return u.printf("%s", r)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "say what would be removed, and remove nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

func purge(ctx context.Context, u *ui, f *config.File, name string, dryRun bool) (*purged, error) {
	if f.Gateway == nil {
		return nil, errors.New("the configuration has no gateway section")
	}
	name, number, _ := strings.Cut(name, "/")
	route, err := findRoute(f, name)
	if err != nil {
		return nil, err
	}
	partition := 0
	if n := len(route.SealedStreams()); route.Source.Partitions != nil || number != "" {
		if partition, err = strconv.Atoi(number); err != nil || partition < 0 || partition >= n {
			return nil, withHint(fmt.Errorf("route %s has %d partitions, each purged by itself", name, n), "name one of %s/0 to %s/%d", name, name, n-1)
		}
	}
	if err := noCoreDumps(); err != nil {
		return nil, err
	}
	if err := f.CheckSecrets(); err != nil {
		return nil, err
	}
	log, err := telemetry.NewLogger(u.err, string(f.Telemetry.Log.Format), slog.LevelWarn)
	if err != nil {
		return nil, err
	}
	conns := newConnections(f, "purge", log)
	conns.dial = dialOnce
	defer conns.close()
	id, err := loadIdentity(f.Gateway.Identity)
	if err != nil {
		return nil, fmt.Errorf("loading gateway identity: %w", err)
	}
	keys, err := newKeysClient(f, id, conns)
	if err != nil {
		return nil, err
	}
	r, err := toRoute(route, conns)
	if err != nil {
		return nil, err
	}
	var set func(int64)
	end := func() {}
	report, err := gateway.Purge(ctx, gateway.PurgeConfig{
		Route: r, Keys: keys, Partition: partition, DryRun: dryRun, Logger: log,
		Progress: func(done, total uint64) {
			if set == nil {
				set, end = u.progress("comparing", int64(total))
			}
			set(int64(done))
		},
	})
	end()
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = withHint(err, "may the user of connection %q read and purge it? purging takes $JS.API.STREAM.PURGE.%s", route.Source.NATS, route.Source.Stream)
		}
		return nil, err
	}
	return &purged{
		Route: report.Route, Source: report.Source, Subjects: report.Subjects, Sealed: report.Sealed, Position: report.Position,
		UpTo: report.UpTo, Messages: report.Messages, Parked: report.Parked, Young: report.Young, Purged: report.Purged,
	}, nil
}

func findRoute(f *config.File, name string) (config.Route, error) {
	var have []string
	for _, r := range f.Gateway.Routes {
		if r.Name == name {
			return r, nil
		}
		have = append(have, r.Name)
	}
	return config.Route{}, withHint(fmt.Errorf("the configuration has no route %q", name), "it has %s", strings.Join(have, ", "))
}

// purged is what the command prints.
type purged struct {
	Route    string   `json:"route"`
	Source   string   `json:"source"`
	Subjects []string `json:"subjects"`
	Sealed   string   `json:"sealed"`
	Position uint64   `json:"position"` // source sequence up to which the route is sealed
	UpTo     uint64   `json:"up_to"`    // last source sequence that may go; 0: none
	Messages uint64   `json:"messages"` // of the source, that may go
	Parked   uint64   `json:"parked"`   // of messages, those that are dead letters
	Young    uint64   `json:"young"`    // sealed or parked, but for less than the sync interval
	Purged   bool     `json:"purged"`
}

func (p *purged) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "route %s: sealed up to sequence %d of stream %s\n", p.Route, p.Position, p.Source)
	switch {
	case p.Messages == 0:
		b.WriteString("nothing to remove\n")
	case p.Purged:
		fmt.Fprintf(&b, "removed %d messages on %s, up to sequence %d\n", p.Messages, strings.Join(p.Subjects, ", "), p.UpTo)
	default:
		fmt.Fprintf(&b, "would remove %d messages on %s, up to sequence %d\n", p.Messages, strings.Join(p.Subjects, ", "), p.UpTo)
	}
	if p.Parked > 0 {
		fmt.Fprintf(&b, "%d of them are dead letters\n", p.Parked)
	}
	if p.Young > 0 {
		fmt.Fprintf(&b, "%d sealed messages or dead letters are younger than the sync interval: what they are copies of stays for now\n", p.Young)
	}
	return printableLines(b.String())
}

// printableLines is printable for text of several lines.
func printableLines(s string) string {
	lines := strings.SplitAfter(s, "\n")
	for i, l := range lines {
		body, nl := strings.CutSuffix(l, "\n")
		lines[i] = printable(body)
		if nl {
			lines[i] += "\n"
		}
	}
	return strings.Join(lines, "")
}

// dialOnce connects for a command: a server that is away is an error.
func dialOnce(n config.Connection, name, what string, _ *slog.Logger) (*nats.Conn, error) {
	e, err := configEndpoint(n)
	if err != nil {
		return nil, fmt.Errorf("connection %q: %w", name, err)
	}
	nc, err := nats.Connect(e.url, append(e.opts, nats.Name("keyweir "+what), nats.MaxReconnects(-1))...)
	if err != nil {
		return nil, fmt.Errorf("connection %q: %w", name, connectError(e.url, err))
	}
	return nc, nil
}
