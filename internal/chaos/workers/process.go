// Package workers runs the processes that are killed on purpose.
package workers

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Process is a worker process with its state directory. Start comes first; the
// methods are not safe for concurrent use.
type Process struct {
	N   int    // its number
	Dir string // its state directory; what it prints goes to Dir.log
	// Command makes the command of process number n with a state directory.
	Command func(n int, stateDir string) *exec.Cmd
	// OnLine, if not nil, is told each line that the process prints.
	OnLine func(string)

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error

	mu   sync.Mutex
	tail []string // its last lines of output
}

// Start starts the process, also again after it has ended.
func (p *Process) Start() error {
	p.cmd = p.Command(p.N, p.Dir)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	p.cmd.Stderr = p.cmd.Stdout
	logFile, err := os.OpenFile(p.Dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		_ = logFile.Close() // nothing was written
		return err
	}
	done := make(chan struct{})
	p.done = done
	go func() { // ends with the process
		defer close(done)
		defer logFile.Close()
		p.copy(logFile, out)
		p.err = p.cmd.Wait()
	}()
	return nil
}

func (p *Process) copy(log io.Writer, out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(log, lines.Text())
		p.mu.Lock()
		p.tail = append(p.tail, lines.Text())
		p.tail = p.tail[max(0, len(p.tail)-20):]
		p.mu.Unlock()
		if p.OnLine != nil {
			p.OnLine(lines.Text())
		}
	}
	_, _ = io.Copy(log, out) // behind a line that is too long: the process must not block
}

// Signal sends the process a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// Failed reports that the process has ended by itself.
func (p *Process) Failed() error {
	select {
	case <-p.done:
		return fmt.Errorf("worker %d has ended (%w); its last lines:\n%s", p.N, p.err, p.last())
	default:
		return nil
	}
}

func (p *Process) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.tail, "\n")
}

// stopPatience bounds an orderly stop.
const stopPatience = 20 * time.Second

// Stop ends the process with SIGTERM; it must drain and exit with 0.
func (p *Process) Stop() error {
	if err := p.Failed(); err != nil {
		return err
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(stopPatience):
		// A Go program ends on SIGQUIT with the stacks of its goroutines.
		if err := p.Signal(syscall.SIGQUIT); err != nil {
			return err
		}
		<-p.done
		return fmt.Errorf("worker %d has not drained within %v of SIGTERM; its goroutines are in %s.log", p.N, stopPatience, p.Dir)
	}
	if p.err != nil {
		return fmt.Errorf("worker %d: %w; its last lines:\n%s", p.N, p.err, p.last())
	}
	return nil
}
