package cli

import (
	"fmt"
	"os"
	"time"

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

With --deny the key service refuses some of --scopes for a while, as it does when
grants are taken back, and the route holds their messages. Publishing goes on at
--rate all the time, and faults strike while messages are held and while they are
released. The others must not wait, and what was held must come out in order.

A single server syncs every write if it is to be killed. With three servers all
streams have three replicas, and the leader of the source or of the sealed stream
is killed each time. The seed, also in the result, repeats the order of the faults
and of what is published; not their timing.`,
		Example: "  keyweir bench chaos --messages 60000 --kills 30 --zombies 10 --json\n  keyweir bench chaos --servers 3 --server-kills 20 --kills 10 --messages 300000\n  keyweir bench chaos --scopes 50 --deny 1 --deny-for 5m --rate 400 --kills 6 --zombies 2",
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
			if cfg.Shared && cfg.Partitions < 2 {
				return usagef("--shared needs --partitions")
			}
			if cfg.Shared && cfg.Engine != "auto" && cfg.Engine != "durable" {
				return usagef("--shared needs the engine durable, not %s", cfg.Engine)
			}
			if cfg.Shared && cfg.Deny > 0 {
				return usagef("--shared does not go together with --deny, which needs a route that holds")
			}
			total := int64(cfg.Messages)
			switch changed := cmd.Flags().Changed; {
			case cfg.Deny <= 0:
			case changed("messages"):
				return usagef("--messages does not go together with --deny, which publishes at --rate as long as it takes")
			default:
				cfg.Messages, total = 0, -1 // not known
			}
			if !cmd.Flags().Changed("subjects") && cfg.Scopes > 0 {
				cfg.Subjects = 0 // by the scopes
			}
			if verbose {
				cfg.Log = u.err
			}
			set, end := u.progress("relaying", total)
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
				if d := r.Denial; err == nil && d != nil {
					err = u.printf("%d of %d scopes denied for %.1f s, at most %d messages held, released within %.1f s; of the others %d were published and %d sealed meanwhile\nwhile held %d kills and %d zombies, while releasing %d and %d\n",
						d.DeniedScopes, r.Scopes, d.DeniedSeconds, d.HeldMax, d.DrainSeconds, d.OthersPublished, d.OthersSealed,
						d.KillsWhileHeld, d.ZombiesWhileHeld, d.KillsWhileReleasing, d.ZombiesWhileReleasing)
				}
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
	fs.IntVar(&cfg.Scopes, "scopes", 0, "scopes that the subjects belong to, three each by default (default: one for each subject)")
	fs.IntVar(&cfg.Deny, "deny", 0, "scopes that the key service refuses for a while; the route holds them")
	fs.DurationVar(&cfg.DenyFor, "deny-for", 5*time.Minute, "how long it refuses them")
	fs.IntVar(&cfg.Rate, "rate", 0, "messages per second (default: as many as the relay takes, with --deny 300)")
	fs.IntVar(&cfg.Kills, "kills", 30, "kill -9 of the working gateway")
	fs.IntVar(&cfg.Zombies, "zombies", 10, "freezes of the working gateway")
	fs.IntVar(&cfg.ServerKills, "server-kills", 0, "kill -9 and restart of a nats-server")
	fs.IntVar(&cfg.Servers, "servers", 1, "1, or 3 for a cluster with three replicas")
	fs.StringVar(&cfg.Engine, "engine", "auto", "engine of the route: auto, async, durable or fast")
	fs.IntVar(&cfg.Partitions, "partitions", 1, "partitions of the route, shared by two gateways")
	fs.BoolVar(&cfg.Shared, "shared", false, "partitions share one sealed stream")
	fs.BoolVar(&pauses, "pauses", true, "publish a part in bursts with pauses between them")
	fs.BoolVar(&verbose, "verbose", false, "say on standard error what is done to whom")
	fs.Uint64Var(&cfg.Seed, "seed", 0, "seed of an earlier run (default: random)")
	fs.StringVar(&cfg.Dir, "dir", "", "keep stores and logs in this new directory")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}
