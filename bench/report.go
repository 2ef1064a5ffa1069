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
