package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A process is one running arm.
type process struct {
	name    string
	cmd     *exec.Cmd
	started time.Time
	ready   chan struct{} // closed at the line "ready"
	exited  chan struct{} // closed when the process has ended, after err is set
	err     error

	mu      sync.Mutex
	restore restore
	stderr  tail
}

// restore is what an arm reported of its restore. Times are ms since the epoch.
type restore struct{ start, end, records int64 }

// startProcess starts an arm's command and follows its lines. The process is
// killed when ctx ends.
func startProcess(ctx context.Context, name string, argv []string) (*process, error) {
	p := &process{
		name:  name,
		cmd:   exec.CommandContext(ctx, argv[0], argv[1:]...),
		ready: make(chan struct{}), exited: make(chan struct{}),
	}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.started = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.follow(out)
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// follow reads the lines of the arm until its output ends.
func (p *process) follow(out io.Reader) {
	ready := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) == 1 && f[0] == "ready":
			if !ready {
				ready = true
				close(p.ready)
			}
		case len(f) == 2 && f[0] == "restore-start":
			p.mu.Lock()
			if p.restore.start == 0 {
				p.restore.start, _ = strconv.ParseInt(f[1], 10, 64)
			}
			p.mu.Unlock()
		case len(f) == 3 && f[0] == "restored":
			p.mu.Lock()
			p.restore.records, _ = strconv.ParseInt(f[1], 10, 64)
			p.restore.end, _ = strconv.ParseInt(f[2], 10, 64)
			p.mu.Unlock()
		}
	}
}

func (p *process) restored() restore {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.restore
}

// failed returns an error if the process has ended.
func (p *process) failed() error {
	select {
	case <-p.exited:
		end := "exit status 0"
		if p.err != nil {
			end = p.err.Error()
		}
		return fmt.Errorf("%s ended too early: %s\n%s", p.name, end, p.stderr.String())
	default:
		return nil
	}
}

// stop ends the process with SIGTERM, or with SIGKILL after 30 s.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(30 * time.Second):
		p.kill()
		return fmt.Errorf("%s did not stop within 30 s of SIGTERM\n%s", p.name, p.stderr.String())
	}
}

// kill ends the process with SIGKILL and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// peakRSS returns the largest resident size of a running process in MiB.
// (Maxrss of wait would count the memory of the parent it was forked from.)
func (p *process) peakRSS() float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "VmHWM:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}

func (p *process) cpu() time.Duration { return cpuTime(p.cmd.Process.Pid) }

// cpuTime returns the user and system time of a process so far, 0 if it is gone.
// Its resolution is 10 ms.
func cpuTime(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, field 2, is in parentheses and may hold spaces.
	_, after, ok := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	if !ok || len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100)
}

// tail keeps the last 4 KiB written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if len(t.b) > 4096 {
		t.b = append([]byte(nil), t.b[len(t.b)-4096:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
