package cli

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/keyweir/keyweir/internal/devstack/demo"
	"github.com/keyweir/keyweir/streams"
)

func newDemo(u *ui) *cobra.Command {
	var (
		input, field, dir string
		asJSON, verbose   bool
	)
	cmd := &cobra.Command{
		Use: "demo", Short: "Seal real data, read it back, and check every byte", Args: noArgs,
		Long: `Runs everything in this process: two NATS servers, a key authority, the key
service, the gateway and a reader. Publishes every line of the input to
demo.<value of the subject field>, waits until the gateway sealed it, reads it
back and compares. Each value of the field is a scope with a data key of its own;
without --subject-field it is net, and where the first line has no such field all
lines go to demo.all.

Without --input it uses a week of earthquakes that the US Geological Survey
registered (public domain, part of this program), by network.

Plaintext is in memory only. With --dir the sealed stream and the key service's
store stay in DIR; keys are never written anywhere.`,
		Example: "  keyweir demo\n  keyweir demo --input orders.ndjson --subject-field tenant --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, total, what, done, err := demoInput(u, input)
			if err != nil {
				return err
			}
			defer done()
			if os.Getenv("GOGC") == "" {
				// Block caches of the server are large and without pointers: cheap to
				// collect, and not worth twice their size.
				debug.SetGCPercent(25)
			}
			set, end := u.progress("sealing", total)
			log := slog.New(slog.DiscardHandler)
			if verbose {
				log = slog.New(slog.NewTextHandler(u.err, nil))
			}
			r, err := demo.Run(cmd.Context(), demo.Config{Input: in, Field: field, Dir: dir, Logger: log, Progress: set})
			end()
			if err != nil {
				return err
			}
			if asJSON {
				err = u.json(r)
			} else {
				err = writeDemo(u.out, r, what)
			}
			if err == nil && !r.OK() {
				err = withHint(fmt.Errorf("%d mismatched, %d readable; %d published, %d sealed, %d opened",
					r.Mismatched, r.PlaintextHits, r.Published, r.Sealed, r.Opened), "this is a bug of keyweir; please report it")
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&input, "input", "", "file with one JSON object per line, - for standard input (default: earthquakes)")
	fs.StringVar(&field, "subject-field", "", "field whose value becomes subject and scope (default: net; all lines share one if the first has none)")
	fs.StringVar(&dir, "dir", "", "keep the sealed stream and the key service's store in this new directory")
	fs.BoolVar(&asJSON, "json", false, "print an object")
	fs.BoolVar(&verbose, "verbose", false, "print the log of the parts to standard error")
	_ = cmd.MarkFlagFilename("input", "ndjson", "jsonl", "json")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

// demoInput opens the input. total is the number of its lines, -1 if unknown.
func demoInput(u *ui, input string) (in io.Reader, total int64, what string, done func(), err error) {
	if input == "" {
		r, err := demo.BuiltIn()
		return r, demo.BuiltInLines, demo.BuiltInName, func() {}, err
	}
	if input == "-" {
		return u.in, -1, "standard input", func() {}, nil
	}
	f, err := os.Open(input)
	if err != nil {
		return nil, 0, "", nil, fmt.Errorf("opening input: %w", err)
	}
	done = func() { _ = f.Close() } // only read
	total = -1
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
		if total, err = countLines(f); err != nil {
			done()
			return nil, 0, "", nil, fmt.Errorf("reading input: %w", err)
		}
	}
	return f, total, input, done, nil
}

// countLines counts for the progress bar, and goes back to the beginning.
func countLines(f *os.File) (n int64, err error) {
	r := bufio.NewReaderSize(f, 256<<10)
	for {
		b, err := r.ReadSlice('\n')
		if len(b) > 0 && (err == nil || err == io.EOF) {
			n++
		}
		if err == io.EOF {
			break
		}
		if err != nil && err != bufio.ErrBufferFull {
			return 0, err
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return n, err
}

func writeDemo(w io.Writer, r *demo.Result, what string) error {
	var b bytes.Buffer
	s := &r.Sample
	fmt.Fprintf(&b, "One message\n\n")
	fmt.Fprintf(&b, "  published  %s, %d bytes\n", s.Subject, len(s.Before))
	quote(&b, printable(string(s.Before)))
	fmt.Fprintf(&b, "  stored     %s, %d bytes\n", s.SealedSubject, len(s.Sealed))
	dump(&b, s.Sealed)
	if info, err := streams.Inspect(s.Sealed); err == nil && info.Record != nil {
		fmt.Fprintf(&b, "             scope %s, key %s..., wrapped by %s\n", printable(info.Record.Scope), info.KeyID[:16], printable(info.Record.Authorities[0].Name))
	}
	fmt.Fprintf(&b, "  read back  %s, %d bytes\n", s.Subject, len(s.After))
	quote(&b, printable(string(s.After)))

	fmt.Fprintf(&b, "\nAll of %s\n\n", printable(what))
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, figure, remark string, args ...any) {
		fmt.Fprintf(tw, "  %s\t%s\t%s\n", name, figure, fmt.Sprintf(remark, args...))
	}
	row("published", number(r.Published), "messages on %d subjects, %s of payload", r.Subjects, size(r.PayloadBytes))
	row("sealed", number(r.Sealed), "messages in the sealed stream")
	row("opened", number(r.Opened), "messages, every byte compared, in order per subject")
	row("mismatched", number(r.Mismatched), "")
	row("readable", number(r.PlaintextHits), "places with payload: every sealed message and %d files (%s) searched", r.SearchedFiles, size(r.SearchedBytes))
	row("added", fmt.Sprintf("%.0f B", r.OverheadBytesAvg), "per message, envelope and headers")
	row("data keys", number(int64(r.DataKeys)), "one per scope")
	row("authority calls", number(int64(r.AuthorityCalls)), "for %s uses of a key: %s came from a cache", number(r.Sealed+r.Opened), number(r.CacheHits))
	row("time", fmt.Sprintf("%.2f s", r.Seconds), "%s messages per second, published, sealed, stored and read back", number(int64(r.MessagesPerSecond)))
	_ = tw.Flush() // into a buffer
	if r.OK() {
		fmt.Fprintf(&b, "\nEverything came back as it was published, and none of it is readable where it is stored.\n")
	}
	_, err := w.Write(b.Bytes())
	return writeError(err)
}

const sampleWidth = 66

func quote(b *bytes.Buffer, s string) {
	rs := []rune(s)
	if len(rs) > 2*sampleWidth {
		rs = append(rs[:2*sampleWidth-3], []rune("...")...)
	}
	for len(rs) > 0 {
		n := min(len(rs), sampleWidth)
		fmt.Fprintf(b, "             %s\n", string(rs[:n]))
		rs = rs[n:]
	}
}

func dump(b *bytes.Buffer, data []byte) {
	for i := range 3 {
		if i*22 >= len(data) {
			break
		}
		row := data[i*22 : min(len(data), i*22+22)]
		fmt.Fprintf(b, "             %s\n", strings.TrimSpace(hexWords(row)))
	}
	if len(data) > 66 {
		b.WriteString("             ...\n")
	}
}

func hexWords(data []byte) string {
	var b strings.Builder
	for i := 0; i < len(data); i += 2 {
		b.WriteString(hex.EncodeToString(data[i:min(len(data), i+2)]) + " ")
	}
	return b.String()
}

// number writes thousands apart.
func number(n int64) string {
	s := fmt.Sprint(n)
	neg := strings.HasPrefix(s, "-")
	s = strings.TrimPrefix(s, "-")
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if neg {
		return "-" + s
	}
	return s
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
