package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// ui is what a command talks through.
//
// The rules: data goes to out, everything else to err; nothing is written to out
// that a failed command would leave half done, except by commands that stream;
// colours are not used; progress shows on a terminal only.
type ui struct {
	in  io.Reader
	out io.Writer
	err io.Writer // every Write is whole lines, and serialised
}

func newUI(in io.Reader, out, err io.Writer) *ui {
	return &ui{in: in, out: out, err: &lockedWriter{w: err}}
}

// lockedWriter serialises the log, messages and the progress bar.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func (u *ui) errorf(format string, args ...any)   { u.say("error", format, args...) }
func (u *ui) hintf(format string, args ...any)    { u.say("hint", format, args...) }
func (u *ui) warningf(format string, args ...any) { u.say("warning", format, args...) }

// say writes one line per line of the message, each with its kind in front.
func (u *ui) say(kind, format string, args ...any) {
	var b strings.Builder
	for l := range strings.SplitSeq(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n") {
		fmt.Fprintf(&b, "keyweir: %s: %s\n", kind, printable(l))
	}
	io.WriteString(u.err, b.String())
}

// notef writes a line that is neither data nor an error.
func (u *ui) notef(format string, args ...any) {
	fmt.Fprintf(u.err, format+"\n", args...)
}

// fail reports an error, then the hints of all errors inside it.
func (u *ui) fail(err error) {
	u.errorf("%v", err)
	seen := map[string]bool{}
	var walk func(error)
	walk = func(err error) {
		if h, ok := err.(interface{ Hint() string }); ok {
			if t := h.Hint(); t != "" && !seen[t] {
				seen[t] = true
				u.hintf("%s", t)
			}
		}
		switch x := err.(type) {
		case interface{ Unwrap() error }:
			if e := x.Unwrap(); e != nil {
				walk(e)
			}
		case interface{ Unwrap() []error }:
			for _, e := range x.Unwrap() {
				walk(e)
			}
		}
	}
	walk(err)
}

// hinted is an error with advice.
type hinted struct {
	err  error
	text string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }
func (h *hinted) Hint() string  { return h.text }

// withHint adds advice to an error; nil stays nil.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// hintFor adds advice to an error that is target.
func hintFor(err, target error, format string, args ...any) error {
	if !errors.Is(err, target) {
		return err
	}
	return withHint(err, format, args...)
}

// json writes v to out as one indented object.
func (u *ui) json(v any) error {
	enc := json.NewEncoder(u.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}

// jsonLine writes v to out as one line.
func (u *ui) jsonLine(v any) error {
	enc := json.NewEncoder(u.out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}

// printf writes to out.
func (u *ui) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(u.out, format, args...); err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (u *ui) errIsTerminal() bool {
	l, ok := u.err.(*lockedWriter)
	return ok && isTerminal(l.w)
}

// progress returns a function that shows how much of total is done, and one that
// ends the display. Without a terminal both do nothing. A negative total is an
// unknown one.
func (u *ui) progress(what string, total int64) (set func(done int64), end func()) {
	if !u.errIsTerminal() {
		return func(int64) {}, func() {}
	}
	bar := progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(u.err), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
		progressbar.OptionShowIts(), progressbar.OptionSetItsString("msg"), progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100e6), progressbar.OptionClearOnFinish(), progressbar.OptionUseANSICodes(true),
	)
	return func(done int64) { _ = bar.Set64(done) }, func() { _ = bar.Clear(); _ = bar.Exit() }
}

// printable replaces control characters, which could rewrite a terminal, in text
// that others may have chosen.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}
