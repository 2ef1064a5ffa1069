//go:build unix

package bench

import (
	"fmt"
	"syscall"
	"time"
)

// cpuTime is what this process has used, in user mode and in the kernel.
func cpuTime() (time.Duration, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, fmt.Errorf("reading resource usage: %w", err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), nil
}
