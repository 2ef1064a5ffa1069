package cli

import (
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/bench"
)

// newBenchWorker is what the benchmarks start for themselves.
func newBenchWorker(u *ui) *cobra.Command {
	return &cobra.Command{
		Use: "worker", Short: "Run a server or a relay for a benchmark, as standard input says", Args: noArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.Worker(cmd.Context(), u.in, u.out, slog.New(slog.NewTextHandler(u.err, nil)))
		},
	}
}
