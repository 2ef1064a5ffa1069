package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/bench"
	"github.com/keyweir/keyweir/gateway"
)

func newBenchRelay(u *ui) *cobra.Command {
	var (
		cfg     bench.RelayConfig
		storage string
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use: "relay", Short: "Compare the sealed relay with a plain one and with a stream source", Args: noArgs,
		Long: `Copies one stream of messages in three ways, which take turns: the gateway; the
same gateway with its seal switched off, which only this command can do; and the
server's own stream source. Server and gateway are processes of their own, whose
processor time is counted; --embedded runs them in one.

Then messages are published at a fixed rate, and their latency is counted from the
time each was due to be published until a reader of the copy has it.`,
		Example: "  keyweir bench relay --messages 100000 --size 1024 --storage memory --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			cfg.Command = []string{self}
			switch storage {
			case "memory", "file":
				cfg.Memory = storage == "memory"
			default:
				return usagef("--storage %q is none of memory, file", storage)
			}
			if err := checkEngine(cfg.Engine); err != nil {
				return err
			}
			set, end := u.progress("measuring", -1)
			cfg.Progress = func(done, _ int) { set(int64(done)) }
			r, err := bench.Relay(cmd.Context(), cfg)
			end()
			if err != nil {
				return err
			}
			if asJSON {
				return u.json(r)
			}
			return u.printf("%v", r)
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&cfg.Messages, "messages", 50_000, "messages in each round")
	fs.IntVar(&cfg.Size, "size", 1024, "bytes of payload")
	fs.IntVar(&cfg.Rounds, "rounds", 7, "how often each takes its turn")
	fs.StringVar(&storage, "storage", "file", "of all streams: memory or file")
	fs.BoolVar(&cfg.SyncAlways, "sync-always", false, "the server syncs every write before it acknowledges")
	fs.StringVar(&cfg.Engine, "engine", "auto", "engine of the relays: auto, async, durable or fast")
	fs.IntVar(&cfg.Partitions, "partitions", 1, "partitions of the relays, each with a copy of its own")
	fs.BoolVar(&cfg.Embedded, "embedded", false, "run the server in the gateway's process")
	fs.IntVar(&cfg.Rate, "rate", 0, "messages per second while latencies are measured (default: 5000, or a quarter of what the slowest relays)")
	fs.DurationVar(&cfg.LatencyTime, "latency-time", 0, "how long latencies are measured, of each (default 5s; negative: not at all)")
	fs.StringVar(&cfg.Profiles, "profile", "", "put CPU profiles of server and gateway, of each round, into this directory")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}

func checkEngine(name string) error {
	if _, err := gateway.ParseEngine(name); err != nil {
		return usagef("--engine %q is none of auto, async, durable, fast", name)
	}
	return nil
}
