package cli

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/bench"
)

func newBenchSoak(u *ui) *cobra.Command {
	var (
		cfg     bench.SoakConfig
		minutes float64
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use: "soak", Short: "Watch memory, goroutines and descriptors under load for a long time", Args: noArgs,
		Long: `Runs a nats-server, a key service and two gateways as processes of their own, finds
out how many messages per second they sustain, publishes at a part of that rate for
a long time and follows what the processes need, as their own metrics say.`,
		Example: "  keyweir bench soak --minutes 20 --rate-percent 70 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			if err := checkEngine(cfg.Engine); err != nil {
				return err
			}
			if minutes <= 0 || cfg.RatePercent < 1 || cfg.RatePercent > 100 {
				return usagef("--minutes must be positive, --rate-percent from 1 to 100")
			}
			cfg.Command, cfg.Time = []string{self}, time.Duration(minutes*float64(time.Minute))
			set, end := u.progress("soaking", int64(cfg.Time.Seconds()))
			cfg.Progress = set
			r, err := bench.Soak(cmd.Context(), cfg)
			end()
			if err != nil {
				return err
			}
			if asJSON {
				err = u.json(r)
			} else {
				err = u.printf("%v", r)
			}
			if err == nil && r.Unsealed != 0 {
				err = withHint(fmt.Errorf("%d messages were not sealed", r.Unsealed), "this is a bug of keyweir; please report it")
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.Float64Var(&minutes, "minutes", 20, "how long")
	fs.IntVar(&cfg.RatePercent, "rate-percent", 70, "rate, of the most that is sustained")
	fs.DurationVar(&cfg.Trial, "trial", 15*time.Second, "how long that is measured")
	fs.IntVar(&cfg.Size, "size", 1024, "bytes of payload")
	fs.StringVar(&cfg.Engine, "engine", "auto", "engine of the route: auto, async, durable or fast")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	return cmd
}
