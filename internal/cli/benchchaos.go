package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/bench"
)

func newBenchChaos(u *ui) *cobra.Command {
	var (
		cfg     bench.ChaosConfig
		pauses  bool
		verbose bool
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use: "chaos", Short: "Kill and freeze gateways at work, and look for damage", Args: noArgs,
		Long: `Runs nats-servers, a key service and two gateways as processes of their own,
publishes messages, kills (kill -9) and freezes (SIGSTOP, until another one took
over) the gateway that works, kills and restarts servers, and then reads the whole
sealed stream: of all messages that the source stream acknowledged, none may be
lost, doubled, reordered or unreadable.

A single server syncs every write if it is to be killed. With three servers all
streams have three replicas, and the leader of the source or of the sealed stream
is killed each time. The seed, also in the result, repeats the order of the faults
and of what is published; not their timing.`,
		Example: "  keyweir bench chaos --messages 60000 --kills 30 --zombies 10 --json\n  keyweir bench chaos --servers 3 --server-kills 20 --kills 10 --messages 300000",
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			cfg.Command, cfg.NoPauses = []string{self}, !pauses
			if err := checkEngine(cfg.Engine); err != nil {
				return err
			}
			if cfg.Servers != 1 && cfg.Servers != 3 {
				return usagef("--servers %d, want 1 or 3", cfg.Servers)
			}
			if verbose {
				cfg.Log = u.err
			}
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
				err = u.printf("%d messages, %d partitions, %d kills, %d zombies, %d server kills, %d pauses, engine %s, seed %d, %.1f s\nlost %d, duplicated %d, out of order %d, undecryptable %d, mismatched %d, broken links %d, unreleased %d\n",
					r.Messages, r.Partitions, r.Kills, r.Zombies, r.ServerKills, r.Pauses, r.Engine, r.Seed, r.Seconds, r.Lost, r.Duplicated, r.OutOfOrder, r.Undecryptable, r.Mismatched, r.BrokenLinks, r.Unreleased)
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
	fs.IntVar(&cfg.ServerKills, "server-kills", 0, "kill -9 and restart of a nats-server")
	fs.IntVar(&cfg.Servers, "servers", 1, "1, or 3 for a cluster with three replicas")
	fs.StringVar(&cfg.Engine, "engine", "auto", "engine of the route: auto, async, durable or fast")
	fs.IntVar(&cfg.Partitions, "partitions", 1, "partitions of the route, shared by two gateways")
	fs.BoolVar(&pauses, "pauses", true, "publish a part in bursts with pauses between them")
	fs.BoolVar(&verbose, "verbose", false, "say on standard error what is done to whom")
	fs.Uint64Var(&cfg.Seed, "seed", 0, "seed of an earlier run (default: random)")
	fs.StringVar(&cfg.Dir, "dir", "", "keep stores and logs in this new directory")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}
