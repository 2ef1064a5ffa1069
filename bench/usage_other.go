//go:build !unix

package bench

import (
	"errors"
	"fmt"
	"time"
)

func cpuTime() (time.Duration, error) {
	return 0, fmt.Errorf("reading resource usage: %w", errors.ErrUnsupported)
}
