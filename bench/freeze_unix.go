//go:build unix

package bench

import (
	"fmt"
	"syscall"
)

const canFreeze = true

func (p *process) freeze() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freezing %s: %w", p.name, err)
	}
	return nil
}

func (p *process) wake() error {
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("waking %s: %w", p.name, err)
	}
	return nil
}
