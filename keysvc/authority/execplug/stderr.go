package execplug

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"time"
)

const (
	// maxLogged bounds what is logged of one line.
	maxLogged = 512
	// logBurst lines a minute are logged; the others are counted.
	logBurst = 120
)

// logStderr logs what the program writes to standard error, until it ends.
func logStderr(stderr io.Reader, log *slog.Logger) {
	r := bufio.NewReaderSize(stderr, maxLogged)
	var (
		since   time.Time
		logged  int
		dropped int
		cut     bool // within a line whose beginning was logged
	)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 && !cut {
			if now := time.Now(); now.Sub(since) > time.Minute {
				if dropped > 0 {
					log.Warn("plug-in wrote more than is logged", "lines", dropped)
				}
				since, logged, dropped = now, 0, 0
			}
			if text := printable(line); logged < logBurst {
				log.Info("plug-in says", "line", text, "shortened", errors.Is(err, bufio.ErrBufferFull))
				logged++
			} else {
				dropped++
			}
		}
		cut = errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !cut {
			return
		}
	}
}

// printable replaces what could change a terminal or break a line.
func printable(line []byte) string {
	out := make([]rune, 0, len(line))
	for _, c := range string(line) {
		if c == '\n' || c == '\r' {
			continue
		}
		if c < ' ' || c >= 0x7f && c < 0xa0 {
			c = '?'
		}
		out = append(out, c)
	}
	return string(out)
}
