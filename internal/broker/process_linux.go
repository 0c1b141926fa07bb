package broker

import (
	"os/exec"
	"syscall"
)

// endWithParent also puts the child into a process group of its own, so that
// Ctrl-C on the terminal reaches this process only, which then stops the child.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
