//go:build unix

package cli

import (
	"fmt"
	"syscall"
)

// noCoreDumps keeps keys out of core files, for this process and for good.
func noCoreDumps() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	return nil
}
