package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/bench"
)

func newBenchChaos(u *ui) *cobra.Command {
	var (
		cfg    bench.ChaosConfig
		asJSON bool
	)
	cmd := &cobra.Command{
		Use: "chaos", Short: "Kill and freeze gateways at work, and look for damage", Args: noArgs,
		Long: `Runs a key service and two gateways as processes of their own, publishes messages,
kills (kill -9) and freezes (SIGSTOP, until another one took over) the gateway
that works, and then reads the whole sealed stream: lost, doubled, reordered and
unreadable messages must all be 0. The seed in the result repeats the order of
the faults.`,
		Example: "  keyweir bench chaos --messages 60000 --kills 30 --zombies 10 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			cfg.Command = []string{self}
			set, end := u.progress("relaying", int64(cfg.Messages))
			cfg.Progress = set
			r, err := bench.Chaos(cmd.Context(), cfg)
			end()
			if err != nil {
				return err
			}
			if asJSON {
				err = u.json(r)
			} else {
				err = u.printf("%d messages, %d kills, %d zombies, seed %d, %.1f s\nlost %d, duplicated %d, out of order %d, undecryptable %d, mismatched %d, broken links %d, unreleased %d\n",
					r.Messages, r.Kills, r.Zombies, r.Seed, r.Seconds, r.Lost, r.Duplicated, r.OutOfOrder, r.Undecryptable, r.Mismatched, r.BrokenLinks, r.Unreleased)
			}
			if err == nil && !r.OK() {
				err = withHint(fmt.Errorf("the sealed stream is damaged"), "this is a bug of keyweir; please report it with the seed %d", r.Seed)
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Messages, "messages", 60_000, "messages to publish")
	fs.IntVar(&cfg.Subjects, "subjects", 32, "subjects to spread them over")
	fs.IntVar(&cfg.Kills, "kills", 30, "kill -9 of the working gateway")
	fs.IntVar(&cfg.Zombies, "zombies", 10, "freezes of the working gateway")
	fs.Uint64Var(&cfg.Seed, "seed", 0, "seed of an earlier run (default: random)")
	fs.StringVar(&cfg.Dir, "dir", "", "keep stores and logs in this new directory")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}
