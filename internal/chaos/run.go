package chaos

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/chaos/workers"
	"github.com/millrace/millrace/internal/checker"
)

// Config says what happens to the application.
type Config struct {
	Brokers    []string
	Partitions int32
	Workers    int // worker processes
	Records    int // input records, spread over the run
	Keys       int
	Kills      int           // SIGKILLs of random workers
	Freezes    int           // SIGSTOPs for FreezeFor
	FreezeFor  time.Duration // longer than the session timeout makes a zombie
	// Restart, if not nil, restarts the broker; it is called Restarts times.
	Restart  func(context.Context) error
	Restarts int
	// Pause is the mean time between two faults; default 1 s.
	Pause time.Duration
	Seed  uint64
	Dir   string // for state directories and logs
	// Command starts worker number n with a state directory.
	Command func(n int, stateDir string) *exec.Cmd
	Log     io.Writer
}

// Run creates the topics, feeds the input, kills and freezes workers while they
// process it, lets them finish, and checks every output record. It also reads
// and checks while the faults go on.
func Run(ctx context.Context, cfg Config) (*checker.Report, error) {
	if cfg.Pause == 0 {
		cfg.Pause = time.Second
	}
	r := &runner{Config: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1))}
	fmt.Fprintf(cfg.Log, "chaos: seed %d, %d records, %d kills, %d freezes, %d broker restarts\n", cfg.Seed, cfg.Records, cfg.Kills, cfg.Freezes, cfg.Restarts)
	if err := r.createTopics(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for n := range cfg.Workers {
		w := &workers.Process{N: n, Dir: filepath.Join(cfg.Dir, fmt.Sprintf("worker-%d", n)), Command: cfg.Command}
		if err := w.Start(); err != nil {
			return nil, err
		}
		defer w.Kill()
		r.workers = append(r.workers, w)
	}
	cl, err := kgo.NewClient(r.clientOpts()...)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	if _, _, err := cl.ProducerID(ctx); err != nil { // it does not try again by itself
		return nil, err
	}
	fed := make(chan error, 1)
	go func() { fed <- r.feed(ctx, cl) }() // ends with the last record or with ctx
	if err := r.faults(ctx); err != nil {
		return nil, err
	}
	r.hurry.Store(true)
	if err := <-fed; err != nil {
		return nil, err
	}
	return r.finish(ctx)
}

type runner struct {
	Config
	rng     *rand.Rand
	workers []*workers.Process
	hurry   atomic.Bool // feed without pauses
}

func (r *runner) clientOpts() []kgo.Opt { return []kgo.Opt{kgo.SeedBrokers(r.Brokers...)} }

func (r *runner) createTopics(ctx context.Context) error {
	cl, err := kgo.NewClient(r.clientOpts()...)
	if err != nil {
		return err
	}
	defer cl.Close()
	forever := "-1"
	_, err = kadm.NewClient(cl).CreateTopics(ctx, r.Partitions, 1, map[string]*string{"retention.ms": &forever}, Topics...)
	return err
}

// feed writes the input: keys at random, timestamps that go on with some records
// late by up to half a minute.
func (r *runner) feed(ctx context.Context, cl *kgo.Client) error {
	var failed atomic.Pointer[error]
	rng := rand.New(rand.NewPCG(r.Seed, 2))
	base := time.UnixMilli(1_700_000_000_000)
	faults := r.Kills + r.Freezes + r.Restarts
	perBurst := max(1, r.Records/max(1, 10*faults))
	for i := range r.Records {
		ts := base.Add(time.Duration(i) * 20 * time.Millisecond)
		if rng.IntN(10) == 0 {
			ts = ts.Add(-time.Duration(rng.IntN(30_000)) * time.Millisecond)
		}
		cl.Produce(ctx, &kgo.Record{
			Topic: Input, Key: fmt.Appendf(nil, "key-%d", rng.IntN(r.Keys)),
			Value: binary.BigEndian.AppendUint64(nil, uint64(i)), Timestamp: ts,
		}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
		if i%perBurst == 0 && !r.hurry.Load() {
			select {
			case <-time.After(r.Pause / 10):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	if err := cl.Flush(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return fmt.Errorf("feed: %w", *err)
	}
	return nil
}

// faults kills, freezes and restarts in random order, and checks what has been
// written so far now and then.
func (r *runner) faults(ctx context.Context) error {
	var todo []func(context.Context) error
	for range r.Kills {
		todo = append(todo, r.killOne)
	}
	for range r.Freezes {
		todo = append(todo, r.freezeOne)
	}
	for range r.Restarts {
		todo = append(todo, func(ctx context.Context) error {
			fmt.Fprintln(r.Log, "chaos: broker restart")
			return r.Restart(ctx)
		})
	}
	r.rng.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	for i, fault := range todo {
		wait := time.Duration(r.rng.Int64N(int64(2 * r.Pause)))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := fault(ctx); err != nil {
			return err
		}
		if i%5 == 4 {
			if err := r.checkSoFar(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *runner) killOne(context.Context) error {
	w := r.workers[r.rng.IntN(len(r.workers))]
	fmt.Fprintf(r.Log, "chaos: kill worker %d\n", w.N)
	w.Kill()
	return w.Start()
}

func (r *runner) freezeOne(ctx context.Context) error {
	w := r.workers[r.rng.IntN(len(r.workers))]
	fmt.Fprintf(r.Log, "chaos: freeze worker %d for %v\n", w.N, r.FreezeFor)
	if err := w.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	select {
	case <-time.After(r.FreezeFor):
	case <-ctx.Done():
	}
	return w.Signal(syscall.SIGCONT)
}

// checkSoFar checks that what can be read now is a prefix of what must be written.
func (r *runner) checkSoFar(ctx context.Context) error {
	// Outputs first: every record of theirs then has its input in what is read next.
	logs, err := checker.Read(ctx, r.clientOpts(), Topics[1:]...)
	if err != nil {
		return err
	}
	in, err := checker.Read(ctx, r.clientOpts(), Input)
	if err != nil {
		return err
	}
	logs[Input] = in[Input]
	if report := Check(logs, true); !report.OK() {
		return errors.Join(fmt.Errorf("while the faults go on: %v", report), r.dump(logs))
	}
	return nil
}

// dump writes what was read into the directory, a file for each topic partition.
func (r *runner) dump(logs map[string]checker.Log) error {
	for topic, log := range logs {
		for p, records := range log {
			var b bytes.Buffer
			for _, rec := range records {
				fmt.Fprintf(&b, "%d\t%s\t%x\t%d\n", rec.Offset, rec.Key, rec.Value, rec.Timestamp)
			}
			if err := os.WriteFile(filepath.Join(r.Dir, fmt.Sprintf("%s-%d.tsv", topic, p)), b.Bytes(), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// Check compares all outputs with the recomputation.
func Check(logs map[string]checker.Log, prefix bool) *checker.Report {
	in := logs[Input]
	report := &checker.Report{Inputs: in.Len()}
	report.Ordered(Echo, checker.Echo(in), logs[Echo], prefix)
	report.Ordered(Counts, checker.Counts(in), logs[Counts], prefix)
	report.Ordered(Windows, checker.Windows(in, WindowSize, WindowGrace), logs[Windows], prefix)
	report.PerKey(Answers, in, logs[Answers], prefix)
	return report
}

// finishPatience is how long the workers get to process what is left.
const finishPatience = 3 * time.Minute

// finish waits until every output has as many records as it must, stops the
// workers and checks.
func (r *runner) finish(ctx context.Context) (*checker.Report, error) {
	deadline := time.Now().Add(finishPatience)
	for {
		logs, err := checker.Read(ctx, r.clientOpts(), Topics...)
		if err != nil {
			return nil, err
		}
		report := Check(logs, false)
		if report.OK() {
			break
		}
		if time.Now().After(deadline) {
			return report, r.dump(logs)
		}
		if p := Check(logs, true); !p.OK() {
			return p, r.dump(logs) // no waiting mends this
		}
		for _, w := range r.workers {
			if err := w.Failed(); err != nil {
				return nil, err
			}
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var errs []error
	for _, w := range r.workers {
		errs = append(errs, w.Stop())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	logs, err := checker.Read(ctx, r.clientOpts(), Topics...)
	if err != nil {
		return nil, err
	}
	report := Check(logs, false)
	if !report.OK() {
		return report, r.dump(logs)
	}
	return report, nil
}
