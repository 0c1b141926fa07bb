package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"time"
)

// drainTime is how long a worker may take to stop.
const drainTime = 20 * time.Second

// process is a worker that runs as a process of its own.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr bytes.Buffer
	ready  chan struct{} // closed when it has told that it is ready, or ended
	done   chan struct{} // closed when it has ended
	err    error         // set before done is closed
}

// startProcess starts a worker. It stops when its standard input ends, so it
// does not outlive the demo, whatever happens to it.
func startProcess(cfg workerConfig) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	data, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	p := &process{cmd: exec.Command(self, workerCommandName), ready: make(chan struct{}), done: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	go func() { // ends with the process
		_, _ = bufio.NewReader(stdout).ReadString('\n') // it says nothing but that it is ready
		close(p.ready)
		_, _ = io.Copy(io.Discard, stdout)
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if _, err := p.stdin.Write(append(data, '\n')); err != nil {
		p.kill()
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	return p, nil
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it fails only if the process has ended
	<-p.done
}

// stop lets the process drain.
func (p *process) stop() error {
	_ = p.stdin.Close() // it fails only if the process has ended
	select {
	case <-p.done:
		return p.ended()
	case <-time.After(drainTime):
		p.kill()
		return fmt.Errorf("the worker did not stop within %s and was killed", drainTime)
	}
}

// ended is the error of a process that has ended by itself.
func (p *process) ended() error {
	if p.err == nil {
		return nil
	}
	return fmt.Errorf("the worker ended: %w: %s", p.err, bytes.TrimSpace(p.stderr.Bytes()))
}

// killPlan returns after how many sent events each kill comes: at random, but
// while there is work left.
func killPlan(kills, events int, r *rand.Rand) []int {
	plan := make([]int, kills)
	for i := range plan {
		plan[i] = 1 + r.IntN(max(1, events*9/10))
	}
	slices.Sort(plan)
	return plan
}

// work runs the worker until ctx ends, and then drains it: in this process, or,
// if it is to be killed, as a process of its own.
func (d *demo) work(ctx context.Context) error {
	if d.opts.kill == 0 {
		return runWorker(ctx, d.worker(1), d.ready)
	}
	dice := rand.New(rand.NewPCG(d.opts.seed, 2))
	for n := 1; ; n++ {
		cfg := d.worker(n)
		p, err := startProcess(cfg)
		if err != nil {
			return err
		}
		if n == 1 {
			go func() { // ends with the process
				<-p.ready
				d.ready()
			}()
		}
		if n > d.opts.kill {
			select {
			case <-ctx.Done():
				return p.stop()
			case <-p.done:
				return d.died(p)
			}
		}
		due, cancel := context.WithCancel(ctx)
		moment := make(chan struct{})
		go func() { // ends with due
			d.moment(due, n-1, dice)
			close(moment)
		}()
		select {
		case <-moment:
		case <-p.done:
		}
		cancel()
		<-moment
		select {
		case <-p.done:
			return d.died(p)
		default:
		}
		if ctx.Err() != nil {
			return p.stop()
		}
		// From here on nobody lives who could finish what this worker was asked.
		d.ledger.OwnerDied(cfg.Owner)
		p.kill()
		d.progress.update(func(s *state) { s.kills++ })
	}
}

// ready starts the feed.
func (d *demo) ready() { d.progress.update(func(s *state) { s.ready = true }) }

// died reports a worker that ended though nobody told it to.
func (d *demo) died(p *process) error {
	if err := p.ended(); err != nil {
		return err
	}
	return fmt.Errorf("the worker stopped by itself")
}

// moment waits for the moment of a kill: the planned number of events was sent
// and, but for every fourth kill, which may hit a worker that still restores, the
// worker has done something since it started; then a random while more.
func (d *demo) moment(ctx context.Context, kill int, dice *rand.Rand) {
	start := d.progress.get()
	early := dice.IntN(4) == 0
	ready := func(s state) bool {
		return s.sent >= d.plan[kill] && (early || s.outcomes > start.outcomes || s.sent == d.total && s.outcomes >= s.sent)
	}
	if d.progress.wait(ctx, ready) != nil {
		return
	}
	pause := time.Duration(dice.Int64N(int64(250 * time.Millisecond)))
	if early {
		pause *= 3
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// maySend returns how many events may be sent while the given number of kills
// is done: those of the kill after the next have to wait for the next.
func (d *demo) maySend(kills int) int {
	if kills+1 < len(d.plan) {
		return d.plan[kills+1]
	}
	return d.total
}
