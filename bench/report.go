package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// SealReport has one result per size, in the order asked for. As JSON it is an
// array of objects.
type SealReport []SealResult

// String returns a table for people.
func (r SealReport) String() string {
	var b strings.Builder
	r.write(&b)
	return b.String()
}

func (r SealReport) write(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "payload\tAES-256-GCM\tseal\topen\tseal ratio\topen ratio\tallocs\toverhead\t")
	for _, x := range r {
		fmt.Fprintf(tw, "%d B\t%.0f ns\t%.0f ns\t%.0f ns\t%.2f\t%.2f\t%d + %d\t%d B\t\n",
			x.Size, x.FloorNs, x.SealNs, x.OpenNs, x.SealRatio, x.OpenRatio, x.SealAllocs, x.OpenAllocs, x.OverheadBytes)
	}
	tw.Flush()
}

// String returns a table for people.
func (r *RelayReport) String() string {
	var b strings.Builder
	where := "server and gateway apart"
	if r.Embedded {
		where = "server and gateway in one process"
	}
	fmt.Fprintf(&b, "%d messages of %d B in each of %d rounds, %s storage, engine %s, %d partitions, %s\n",
		r.Messages, r.Size, r.Rounds, r.Storage, r.Engine, r.Partitions, where)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "relay\tmessages/s\tCPU server\tCPU gateway\tCPU in all\tp50\tp99\tp99.9\t")
	for i, x := range []*RelayResult{&r.Plain, &r.Sealed, &r.Source} {
		fmt.Fprintf(tw, "%v\t%.0f\t%.1f us\t%.1f us\t%.1f us\t", relayWay(i), x.MessagesPerSecond, x.CPU.Server, x.CPU.Gateway, x.CPU.Total)
		if l := x.Latency; l != nil {
			fmt.Fprintf(tw, "%d us\t%d us\t%d us\t\n", l.P50, l.P99, l.P999)
		} else {
			fmt.Fprint(tw, "-\t-\t-\t\n")
		}
	}
	tw.Flush()
	fmt.Fprintf(&b, "sealed to plain: %.2f of its messages per second (quartiles %.2f to %.2f), %.2f of its CPU; CPU to stream source: %.2f\n",
		r.SealedToPlain, r.SealedToPlainQuartile[0], r.SealedToPlainQuartile[1], r.CPUToPlain, r.CPUToSource)
	if r.LatencyRate > 0 {
		fmt.Fprintf(&b, "latency at %d messages per second, from when each was due\n", r.LatencyRate)
	}
	return b.String()
}

// String returns a table for people.
func (r *SoakReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.0f messages per second for %.0f s, %d percent of %.0f; %d messages, %d unsealed, %d behind at most\n",
		r.MessagesPerSecond, r.Seconds, r.RatePercent, r.MaxMessagesPerSecond, r.Messages, r.Unsealed, r.MaxBehind)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "process\tmemory\tat the end\tgrowth\tgoroutines\tat the end\tdescriptors\tat the end\tCPU\t")
	for _, p := range r.Processes {
		fmt.Fprintf(tw, "%s\t%.1f MiB\t%.1f MiB\t%.1f %%\t%d\t%d\t%d\t%d\t%.0f %%\t\n", p.Name, float64(p.RSSStart)/(1<<20), float64(p.RSSEnd)/(1<<20),
			p.RSSGrowthPercent, p.GoroutinesStart, p.GoroutinesEnd, p.DescriptorsStart, p.DescriptorsEnd, p.CPUPercent)
	}
	tw.Flush()
	return b.String()
}
