package keycache

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// pebbleLogger is what Pebble logs to. Pebble's own Fatalf exits the process;
// this one stops the store, calls OnFatal and then parks the goroutine for
// good: Fatalf must not return (Pebble would acknowledge the failed commit),
// and a panic could not be recovered on Pebble's own goroutines. What waits for
// a parked goroutine is released through the stop channel.
type pebbleLogger struct{ s *Store }

var _ pebble.Logger = pebbleLogger{}

func (l pebbleLogger) Infof(format string, args ...any) {
	l.s.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.s.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.s.fail(fmt.Errorf(format, args...))
	select {}
}

// listener stops the store on damage and on every failed background write. The
// default listener would exit the process from a reader's goroutine.
func (s *Store) listener() *pebble.EventListener {
	cleaned := func() {
		select {
		case s.cleaned <- struct{}{}:
		default:
		}
	}
	return &pebble.EventListener{
		BackgroundError: func(err error) { s.fail(fmt.Errorf("writing in the background: %w", err)) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			s.fail(fmt.Errorf("reading %s: damaged data: %w", i.Path, i.Details))
		},
		DiskSlow:     func(i pebble.DiskSlowInfo) { s.log.Warn("disk is slow", "op", i.String()) },
		TableDeleted: func(pebble.TableDeleteInfo) { cleaned() },
		WALDeleted:   func(pebble.WALDeleteInfo) { cleaned() },
	}
}
