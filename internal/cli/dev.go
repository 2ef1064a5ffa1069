package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/devstack"
	"github.com/keyweir/keyweir/keysvc"
)

const (
	devStream = "ORDERS"
	devSealed = "SEALED_ORDERS"
)

func newDev(u *ui) *cobra.Command {
	var (
		listen, dir string
		verbose     bool
	)
	cmd := &cobra.Command{
		Use: "dev", Short: "Run everything on this machine, to try it with the nats CLI", Args: noArgs,
		Long: `Runs a NATS server, a key authority, the key service and the gateway in this
process until it is interrupted. What any NATS client publishes to orders.> is
sealed into the stream SEALED_ORDERS, with a data key for each second token of
the subject.

NOT FOR PRODUCTION: keys, plaintext and sealed messages share one process, and
the server asks nobody for credentials.`,
		Example: "  keyweir dev\n  nats pub --jetstream orders.eu.created '{\"id\":1}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDev(cmd.Context(), u, listen, dir, verbose)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:4222", "address of the NATS server, host:port; port 0 is a free one")
	cmd.Flags().StringVar(&dir, "dir", "", "keep keys and sealed messages in this directory (default: a temporary one)")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "log what the parts do")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

func runDev(ctx context.Context, u *ui, listen, dir string, verbose bool) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "keyweir-dev-"); err != nil {
			return fmt.Errorf("making directory: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("finding directory: %w", err)
	}
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(u.err, &slog.HandlerOptions{Level: level}))
	s, err := devstack.Start(ctx, devstack.Options{
		Dir: dir, KeepKeys: true, Listen: listen, Logger: log,
		Source: devStream, Sealed: devSealed, Subjects: []string{"orders.>"}, SealedSubject: "sealed.orders.>",
		Scopes: []keysvc.ScopeRule{
			{Match: "orders.*.>", Scope: "tenant/{{wildcard(1)}}"},
			{Match: "orders.*", Scope: "tenant/{{wildcard(1)}}"},
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		err = errors.Join(err, s.Close(stop))
	}()
	profile, err := s.WriteProfile()
	if err != nil {
		return err
	}
	if err := u.printf("%s", devText(s.URL(), profile)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		u.notef("keyweir: stopping")
		return nil
	case <-s.Stopped():
		return fmt.Errorf("the gateway stopped: %w", s.Err())
	}
}

// devText is what "keyweir dev" prints once it is ready. Scripts wait for its
// last line.
func devText(url, profile string) string {
	server := ""
	if url != "nats://127.0.0.1:4222" {
		server = " --server " + url
	}
	return strings.NewReplacer("SERVER", server, "URL", url, "PROFILE", shellQuote(profile)).Replace(
		`keyweir dev: NOT FOR PRODUCTION. Keys and plaintext are in this process.

Publish with any NATS client, for instance
    natsSERVER pub --jetstream orders.eu.created '{"id":1}' -H Trace:7
    keyweir pubSERVER orders.eu.created '{"id":1}'

What is stored
    natsSERVER stream view SEALED_ORDERS
    keyweir inspectSERVER SEALED_ORDERS 1

What a reader sees
    keyweir catSERVER SEALED_ORDERS --profile PROFILE --follow

keyweir dev: ready at URL
`)
}

// shellQuote makes a path safe to paste.
func shellQuote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+:@%,", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
