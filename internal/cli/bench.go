package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/bench"
)

func newBench(u *ui) *cobra.Command {
	return group("bench", "Measure what sealing costs", newBenchChaos(u), newBenchRelay(u), newBenchSeal(u), newBenchSoak(u), newBenchWorker(u))
}

func newBenchSeal(u *ui) *cobra.Command {
	var (
		cfg    bench.SealConfig
		asJSON bool
	)
	cmd := &cobra.Command{
		Use: "seal", Short: "Compare sealing and opening with bare AES-256-GCM", Args: noArgs,
		Long: `Measures one core: sealing and opening in memory, against one bare AES-256-GCM
seal of the same bytes. The three take turns and medians are printed, so that
the ratios hold on a busy machine as well.`,
		Example: "  keyweir bench seal --sizes 256,1024 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Time < 0 {
				return usagef("--time must not be negative")
			}
			set, end := u.progress("measuring", int64(max(len(cfg.Sizes), 1)))
			cfg.Progress = func(done, _ int) { set(int64(done)) }
			report, err := bench.Seal(cmd.Context(), cfg)
			end()
			if err != nil {
				return err
			}
			if asJSON {
				return u.json(report)
			}
			return u.printf("%v", report)
		},
	}
	cmd.Flags().IntSliceVar(&cfg.Sizes, "sizes", []int{64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10}, "payload sizes in bytes")
	cmd.Flags().DurationVar(&cfg.Time, "time", 300*time.Millisecond, "time for each size")
	cmd.Flags().BoolVar(&cfg.RandomNonce, "random-nonces", false, "seal with random nonces")
	cmd.Flags().IntVar(&cfg.PadTo, "pad-to", 0, "pad to a multiple of this many bytes")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an array of objects")
	return cmd
}
