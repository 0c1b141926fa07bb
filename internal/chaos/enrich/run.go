package enrich

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/chaos/workers"
	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/internal/modelserver"
	"github.com/millrace/millrace/llm/llmtest"
)

// Config says what happens to the application.
type Config struct {
	Brokers   []string
	Events    int // each is one call or more
	Keys      int
	FaultRate float64 // of the calls, spread over all kinds
	Kills     int     // SIGKILLs of random workers
	// Pause is the mean time between two kills; default 2 s.
	Pause time.Duration
	// Patience is how long the workers get to start, and for what is left after the last
	// kill and the last event; default 5 min.
	Patience time.Duration
	Strict   bool // PARTITION strict order, and no conversations
	Seed     uint64
	Dir      string // for state directories and logs
	// Command makes the command of a worker process: one that has the configuration of
	// [Worker] in the environment variable [Env] already.
	Command func() *exec.Cmd
	Log     io.Writer
}

// The run has two workers, and topics of four partitions.
const (
	partitions = 4
	processes  = 2
)

// A Summary is what a run came to.
type Summary struct {
	Seed   uint64 `json:"seed"`
	Strict bool   `json:"strict"`
	OK     bool   `json:"ok"`

	Events        int            `json:"events"`
	Enriched      int            `json:"enriched"`
	Fallbacks     int            `json:"fallbacks"`
	DeadLetters   int            `json:"dead_letters"`
	DeadLettersBy map[string]int `json:"dead_letters_by_class"`
	Lost          int            `json:"lost"`
	Duplicated    int            `json:"duplicated"`
	Violations    int            `json:"violations"` // refused answers in the raw topic
	Conversations int            `json:"conversations"`

	Calls modelserver.Stats `json:"calls"`
	Fates map[fate]int      `json:"calls_by_fate"`
	Kills int               `json:"kills"`
	// InFlight are the rounds that were out at the kills: Calls.Interrupted is no more.
	InFlight int      `json:"in_flight_at_kills"`
	Seconds  float64  `json:"seconds"`
	Stall    float64  `json:"longest_stall_seconds"` // in which this process did not run
	Problems []string `json:"problems,omitempty"`
}

// String returns the summary as JSON.
func (s *Summary) String() string {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Run feeds the events, kills workers while they ask, lets them finish and checks
// everything. The error says why it could not be checked.
func Run(ctx context.Context, cfg Config) (*Summary, error) {
	if cfg.Pause == 0 {
		cfg.Pause = 2 * time.Second
	}
	if cfg.Patience == 0 {
		cfg.Patience = 5 * time.Minute
	}
	r := &runner{
		Config: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)), script: newScript(cfg.Seed, cfg.FaultRate), ledger: modelserver.NewLedger(nil),
		sum: &Summary{Seed: cfg.Seed, Strict: cfg.Strict, DeadLettersBy: map[string]int{}, Fates: map[fate]int{}},
	}
	fmt.Fprintf(cfg.Log, "chaos: seed %d, %d events of %d keys, %g of the calls fail, %d kills\n", cfg.Seed, cfg.Events, cfg.Keys, cfg.FaultRate, cfg.Kills)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := time.Now()
	stall := make(chan time.Duration, 1)
	go func() { stall <- watchStalls(ctx) }() // ends with ctx
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	cancel()
	r.sum.Seconds, r.sum.Stall = time.Since(start).Seconds(), (<-stall).Seconds()
	return r.sum, nil
}

// watchStalls returns the longest time in which the process was not run: a run on a
// machine that stops for seconds says little about timeouts.
func watchStalls(ctx context.Context) time.Duration {
	const every = 100 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	longest := time.Duration(0)
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return longest
		case <-tick.C:
			now := time.Now()
			longest = max(longest, now.Sub(last)-every)
			last = now
		}
	}
}

type runner struct {
	Config
	rng     *rand.Rand
	script  *script
	ledger  *modelserver.Ledger
	url     string // of the model
	client  *kgo.Client
	workers []*workers.Process
	owners  []string // the present incarnation of each
	ready   [processes]atomic.Bool
	ended   atomic.Int64
	hurry   atomic.Bool // feed without pauses
	sum     *Summary
}

func (r *runner) run(ctx context.Context) (err error) {
	if r.client, err = kgo.NewClient(kgo.SeedBrokers(r.Brokers...)); err != nil {
		return err
	}
	defer r.client.Close()
	if _, _, err := r.client.ProducerID(ctx); err != nil { // it does not try again by itself
		return err
	}
	if _, err := kadm.NewClient(r.client).CreateTopics(ctx, partitions, 1, map[string]*string{"retention.ms": new("-1")}, inputTopic, enrichedTopic, fallbackTopic); err != nil {
		return err
	}
	stop, err := r.serve(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := r.startWorkers(ctx); err != nil {
		return err
	}
	defer func() {
		for _, w := range r.workers {
			w.Kill()
		}
	}()
	if err := r.clockOutputs(ctx); err != nil {
		return err
	}
	watching := make(chan error, 1)
	watchCtx, done := context.WithCancel(ctx)
	go func() { watching <- r.watch(watchCtx) }() // ends with watchCtx
	defer func() {
		done()
		err = errors.Join(err, <-watching)
	}()
	fed := make(chan error, 1)
	go func() { fed <- r.feed(ctx) }() // ends with the last event, or with ctx
	if err := r.kills(ctx); err != nil {
		return err
	}
	r.hurry.Store(true)
	if err := <-fed; err != nil {
		return err
	}
	return r.finish(ctx)
}

// serve starts the model.
func (r *runner) serve(ctx context.Context) (stop func(), err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.url = "http://" + l.Addr().String()
	h := llmtest.NewHandler(llmtest.Config{Steps: []llmtest.Step{r.script.step}, Ledger: r.ledger, Keep: -1})
	srv := modelserver.HTTPServer(h)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }() // ends with Close
	return func() {
		h.Close()
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(r.Log, "chaos: the model:", err)
		}
	}, nil
}

// startWorkers starts the workers and waits until all tasks run: what moves between
// them later has been killed.
func (r *runner) startWorkers(ctx context.Context) error {
	r.owners = make([]string, processes)
	incarnations := make([]int, processes)
	command := func(n int, dir string) *exec.Cmd {
		incarnations[n]++
		r.ready[n].Store(false)
		r.owners[n] = fmt.Sprintf("worker-%d.%d", n, incarnations[n])
		cfg, err := json.Marshal(WorkerConfig{Brokers: r.Brokers, StateDir: dir, ModelURL: r.url, Owner: r.owners[n], Strict: r.Strict})
		if err != nil {
			panic(err) // strings
		}
		cmd := r.Command()
		cmd.Env = append(cmd.Environ(), Env+"="+string(cfg))
		return cmd
	}
	for n := range processes {
		w := &workers.Process{N: n, Dir: filepath.Join(r.Dir, fmt.Sprintf("worker-%d", n)), Command: command}
		w.OnLine = func(line string) {
			if line == readyLine {
				r.ready[n].Store(true)
			}
		}
		if err := w.Start(); err != nil {
			return err
		}
		r.workers = append(r.workers, w)
	}
	return r.await(ctx, "all tasks to run", r.allReady)
}

// allReady reports whether the tasks of all workers run.
func (r *runner) allReady() bool {
	for n := range r.ready {
		if !r.ready[n].Load() {
			return false
		}
	}
	return true
}

var errPatience = errors.New("waited in vain")

// await waits for a condition, as long as no worker ends by itself.
func (r *runner) await(ctx context.Context, what string, ok func() bool) error {
	deadline := time.After(r.Patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		for _, w := range r.workers {
			if err := w.Failed(); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("%w: %s for %s", errPatience, r.Patience, what)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// clockOutputs has the broker stamp enriched records and fallbacks with its clock, so
// that their order over several topics can be told; dead letters say when they failed.
func (r *runner) clockOutputs(ctx context.Context) error {
	changes := []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "message.timestamp.type", Value: new("LogAppendTime")}}
	res, err := kadm.NewClient(r.client).AlterTopicConfigs(ctx, changes, enrichedTopic, fallbackTopic)
	if err != nil {
		return err
	}
	for _, one := range res {
		if one.Err != nil {
			return fmt.Errorf("topic %s: %w", one.Name, one.Err)
		}
	}
	return nil
}

// feed writes the events: keys at random and some without, times that go on with some
// late ones.
func (r *runner) feed(ctx context.Context) error {
	var failed atomic.Pointer[error]
	rng := rand.New(rand.NewPCG(r.Seed, 2))
	base := time.UnixMilli(1_700_000_000_000)
	perBurst := max(1, r.Events/max(1, 10*r.Kills))
	for i := range r.Events {
		rec := &kgo.Record{Topic: inputTopic, Timestamp: base.Add(time.Duration(i) * 20 * time.Millisecond)}
		if rng.IntN(10) == 0 {
			rec.Timestamp = rec.Timestamp.Add(-time.Duration(rng.IntN(20_000)) * time.Millisecond)
		}
		rec.Value = fmt.Appendf(nil, "e%06d of %d", i, r.Events)
		if rng.IntN(50) > 0 {
			rec.Key = fmt.Appendf(nil, "key-%d", rng.IntN(r.Keys))
		}
		r.client.Produce(ctx, rec, func(_ *kgo.Record, err error) {
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
	if err := r.client.Flush(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return fmt.Errorf("feed: %w", *err)
	}
	return nil
}

// lastWords is how long a request that a worker sent before it died may take to be seen.
const lastWords = 100 * time.Millisecond

// kills kills workers at random moments, also while they restore.
func (r *runner) kills(ctx context.Context) error {
	for range r.Kills {
		select {
		case <-time.After(time.Duration(r.rng.Int64N(int64(2 * r.Pause)))):
		case <-ctx.Done():
			return ctx.Err()
		}
		n := r.rng.IntN(processes)
		w := r.workers[n]
		if err := w.Failed(); err != nil {
			return err
		}
		w.Kill()
		select {
		case <-time.After(lastWords):
		case <-ctx.Done():
			return ctx.Err()
		}
		flying := r.ledger.InFlight(r.owners[n])
		r.ledger.OwnerDied(r.owners[n])
		r.sum.Kills++
		r.sum.InFlight += flying
		fmt.Fprintf(r.Log, "chaos: killed %s with %d calls in flight; %d of %d events have ended\n", r.owners[n], flying, r.ended.Load(), r.Events)
		if err := w.Start(); err != nil {
			return err
		}
	}
	return nil
}

// finish waits until as many outcomes as events are there, stops the workers and
// checks.
func (r *runner) finish(ctx context.Context) error {
	err := r.await(ctx, "every event to end", func() bool { return r.ended.Load() >= int64(r.Events) })
	if err != nil && !errors.Is(err, errPatience) { // the check says what is missing
		return err
	}
	if err := r.await(ctx, "all tasks to run", r.allReady); err != nil { // a worker killed last may have nothing left to do
		return err
	}
	var errs []error
	for _, w := range r.workers {
		errs = append(errs, w.Stop())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return r.check(ctx)
}

// check reads everything and compares.
func (r *runner) check(ctx context.Context) error {
	topics := append([]string{inputTopic, rawTopic, entriesTopic}, outputs...)
	if !r.Strict {
		topics = append(topics, talksTopic)
	}
	logs, err := checker.Read(ctx, []kgo.Opt{kgo.SeedBrokers(r.Brokers...)}, topics...)
	if err != nil {
		return err
	}
	s := r.sum
	a := &audit{strict: r.Strict, logs: logs, calls: r.script.calls, sum: s}
	a.check()
	for _, calls := range r.script.calls {
		for _, c := range calls {
			s.Fates[c.fate]++
		}
	}
	s.Calls = r.ledger.Stats()
	if s.Calls.PaidTwice > 0 || s.Calls.Unlabeled > 0 {
		a.fail("%d calls were paid twice, and %d had no labels", s.Calls.PaidTwice, s.Calls.Unlabeled)
	}
	if s.Calls.Interrupted > s.InFlight {
		a.fail("%d calls were interrupted, and %d in flight at the kills", s.Calls.Interrupted, s.InFlight)
	}
	if most := s.Kills * slots; s.InFlight > most {
		fmt.Fprintf(r.Log, "chaos: %d calls in flight at %d kills; outcomes are seen late\n", s.InFlight, s.Kills)
	}
	s.Problems = append(r.script.problems, a.problems...)
	s.OK = len(s.Problems) == 0
	if !s.OK {
		return r.dump(a)
	}
	return nil
}

// dump writes what the model was asked into the directory.
func (r *runner) dump(a *audit) error {
	f, err := os.Create(filepath.Join(r.Dir, "calls.txt"))
	if err != nil {
		return err
	}
	for _, e := range a.order {
		fmt.Fprintf(f, "%s key %q offset %d/%d entry %s\n", e.id, e.key, e.partition, e.number, a.entries[e.id])
		for _, c := range a.calls[a.entries[e.id]] {
			fmt.Fprintf(f, "\t%+v\n", c)
		}
		for _, o := range e.outcomes {
			fmt.Fprintf(f, "\t%s %q %v\n", o.place, o.record.Value, o.record.Headers)
		}
	}
	return f.Close()
}
