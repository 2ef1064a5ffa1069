//go:build unix

package execplug

import (
	"os/exec"
	"syscall"
)

// ownGroup puts the program into a process group, so that it can be killed with
// its children and a terminal's interrupt does not reach it.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// kill kills the group. The leader was not waited for yet, so its ID is not
// another's.
func kill(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
