// Package sim runs the engine through schedules of random faults, in the fake time
// of a testing/synctest bubble: a broker in memory, state on a file system in
// memory that forgets what was not synced, and a few instances of one application
// that are cut off, slowed down, evicted, stopped and killed while they process
// their input. When the faults are over everything must be as if there had been
// none, which an independent checker recomputes.
//
// The order of goroutines is not part of a schedule: a seed repeats the faults, not
// the run. A failed run is told by its trace.
package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/internal/chaos"
	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/internal/engine"
	"github.com/millrace/millrace/internal/kafka"
)

// Config describes a run. The zero value of all but Seed stands for a default.
type Config struct {
	Seed       uint64
	Records    int   // input records; default 300
	Keys       int   // default 12
	Partitions int32 // of every topic; default 3
	Instances  int   // at the beginning; default 1 to 3, by seed
	Faults     int   // default 4 to 15, by seed
	// Mix weighs the kinds of faults; default [Everything].
	Mix Mix
	// TransactionVersion is the cluster's transaction.version; default 1 for every
	// third seed and 2 for the others.
	TransactionVersion int16
	// Verbose has the trace tell what the Kafka clients do.
	Verbose bool
	// Tweak may change the configuration of every instance.
	Tweak func(*engine.Config)
}

// patience bounds, in fake time, how long the application may take to finish when
// the faults are over.
const patience = 10 * time.Minute

// A run is one schedule.
type run struct {
	Config
	rng       *rand.Rand
	cluster   *kfake.Cluster
	net       *kfake.VirtualNetwork
	cl        *kgo.Client // feeds and administers; faults of instances spare it
	adm       *kadm.Client
	nodes     []*node
	dead      []*node // killed, winding down
	trace     trace
	installed []*kfake.FaultHandle
	spoiled   bool // a record was rejected: a second one may condemn an innocent

	muteMu sync.Mutex
	muted  map[string]bool // instances whose heartbeats the broker ignores
}

// Run runs a schedule; the caller is in a bubble. The error tells what was lost,
// duplicated or stuck, with the trace.
func Run(ctx context.Context, cfg Config) error {
	r := &run{Config: cfg, muted: map[string]bool{}, rng: rand.New(rand.NewPCG(cfg.Seed, 7))}
	r.trace.start = time.Now()
	def(&r.Records, 300)
	def(&r.Keys, 12)
	def(&r.Partitions, 3)
	def(&r.Instances, 1+r.rng.IntN(3))
	def(&r.Faults, 4+r.rng.IntN(12))
	if r.TransactionVersion == 0 {
		r.TransactionVersion = 2
		if r.Seed%3 == 0 {
			r.TransactionVersion = 1
		}
	}
	if r.Mix == nil {
		r.Mix = Everything
	}
	err := r.run(ctx)
	if err != nil {
		return fmt.Errorf("seed %d: %w\ntrace:\n%s", cfg.Seed, err, &r.trace)
	}
	return nil
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (r *run) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := r.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	for n := range r.Instances {
		r.nodes = append(r.nodes, r.newNode(n))
		r.nodes[n].start()
	}
	fed := make(chan error, 1)
	go func() { fed <- r.feed(ctx) }() // ends with the last record or with ctx
	if err := r.faults(ctx); err != nil {
		cancel()
		return errors.Join(err, <-fed)
	}
	r.heal()
	if err := <-fed; err != nil {
		return err
	}
	if err := r.finish(ctx); err != nil {
		return err
	}
	return r.verify(ctx)
}

// open starts the cluster and creates the topics.
func (r *run) open(ctx context.Context) error {
	r.net = new(kfake.VirtualNetwork)
	var err error
	r.cluster, err = kfake.NewCluster(kfake.NumBrokers(3), kfake.Ports(9092, 9093, 9094), kfake.ListenFn(r.net.Listen))
	if err != nil {
		return err
	}
	if r.cl, err = kgo.NewClient(r.clientOpts()...); err != nil {
		r.cluster.Close()
		return err
	}
	r.cluster.ControlKey(int16(kmsg.OffsetForLeaderEpoch), r.offsetForLeaderEpoch)
	r.cluster.ControlKey(int16(kmsg.Heartbeat), r.heartbeat)
	r.adm = kadm.NewClient(r.cl)
	if r.TransactionVersion < 2 {
		down := kadm.FeatureUpdate{Feature: "transaction.version", MaxVersionLevel: r.TransactionVersion, UpgradeType: 2}
		if _, err := r.adm.UpdateFeatures(ctx, false, down); err != nil {
			return fmt.Errorf("transaction.version %d: %w", r.TransactionVersion, err)
		}
	}
	r.trace.add("transaction.version %d", r.TransactionVersion)
	forever := "-1"
	_, err = r.adm.CreateTopics(ctx, r.Partitions, 1, map[string]*string{"retention.ms": &forever}, topics...)
	return err
}

func (r *run) clientOpts() []kgo.Opt {
	return []kgo.Opt{kgo.SeedBrokers(r.cluster.ListenAddrs()...), kgo.Dialer(r.net.DialContext), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil))}
}

// close stops all that still runs, and waits for it.
func (r *run) close() error {
	for _, n := range r.nodes {
		n.stop()
		n.link.setCut(true) // ends connections that a client left while they were made
	}
	for _, n := range r.dead {
		<-n.done
	}
	r.cl.Close()
	r.cluster.Close()
	return nil
}

// feed writes the input in bursts: keys at random, timestamps that go on with some
// records late by up to half a minute.
func (r *run) feed(ctx context.Context) error {
	rng := rand.New(rand.NewPCG(r.Seed, 11))
	base := time.Now()
	var mu sync.Mutex
	var failed error
	for i := range r.Records {
		ts := base.Add(time.Duration(i) * 100 * time.Millisecond)
		if rng.IntN(10) == 0 {
			ts = ts.Add(-time.Duration(rng.IntN(30_000)) * time.Millisecond)
		}
		r.cl.Produce(ctx, &kgo.Record{
			Topic: chaos.Input, Key: fmt.Appendf(nil, "key-%d", rng.IntN(r.Keys)),
			Value: binary.BigEndian.AppendUint64(nil, uint64(i)), Timestamp: ts,
		}, func(_ *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
		if rng.IntN(15) == 0 {
			if err := pause(ctx, time.Duration(rng.IntN(4000))*time.Millisecond); err != nil {
				return err
			}
		}
	}
	if err := r.cl.Flush(ctx); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if failed != nil {
		return fmt.Errorf("feed: %w", failed)
	}
	r.trace.add("all %d records are fed", r.Records)
	return nil
}

// faults lets faults happen, and checks now and then what has been written so far.
func (r *run) faults(ctx context.Context) error {
	for i := range r.Faults {
		if err := pause(ctx, time.Duration(r.rng.IntN(6000))*time.Millisecond); err != nil {
			return err
		}
		r.Mix.pick(r.rng)(r)
		r.revive()
		if i%4 == 3 {
			if err := r.checkSoFar(ctx); err != nil {
				return err
			}
		}
	}
	return pause(ctx, time.Duration(r.rng.IntN(60))*time.Second)
}

// heal ends all faults.
func (r *run) heal() {
	r.trace.add("healed")
	r.faultsOver()
	for _, n := range r.nodes {
		n.heal()
	}
	r.revive()
}

// finish waits until every output is what it must be.
func (r *run) finish(ctx context.Context) error {
	healed := time.Now()
	deadline := healed.Add(patience)
	for wait := time.Second; ; wait = min(2*wait, 20*time.Second) {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		r.revive()
		if time.Since(healed) > kafka.SessionTimeout {
			r.bury(ctx)
		}
		logs, err := r.read(ctx, topics...)
		if err != nil {
			return err
		}
		report := check(logs, false)
		if report.OK() {
			r.trace.add("finished")
			return nil
		}
		if p := check(logs, true); !p.OK() {
			return fmt.Errorf("%v", p) // no waiting mends this
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not finished %v after the faults: %v\n%s", patience, report, r.tasks())
		}
	}
}

// tasks says what the tasks of all instances do, and what the groups know of them.
func (r *run) tasks() string {
	var b strings.Builder
	for _, group := range groups {
		if g := r.cluster.GroupInfo(group); g != nil {
			fmt.Fprintf(&b, "group %s is %s, generation %d\n", group, g.State, g.Epoch)
			for _, m := range g.Members {
				fmt.Fprintf(&b, "  %s: %v\n", m.MemberID, m.Assignment)
			}
		}
	}
	for _, n := range r.nodes {
		for _, t := range n.inst.Tasks() {
			fmt.Fprintf(&b, "%s: task %s is %s, lag %d, pending %d: %v\n", n.name, t.Task, t.State, t.Lag, t.Pending, t.Err)
		}
	}
	return b.String()
}

// checkSoFar checks that what can be read now is a prefix of what must be written.
func (r *run) checkSoFar(ctx context.Context) error {
	// Outputs first: every record of theirs then has its input in what is read next.
	logs, err := r.read(ctx, topics[1:]...)
	if err != nil {
		return err
	}
	in, err := r.read(ctx, chaos.Input)
	if err != nil {
		return err
	}
	logs[chaos.Input] = in[chaos.Input]
	if report := check(logs, true); !report.OK() {
		return fmt.Errorf("while the faults go on: %v", report)
	}
	return nil
}

// read reads committed records. Injected faults may hit the reading too.
func (r *run) read(ctx context.Context, topics ...string) (logs map[string]checker.Log, err error) {
	for range 20 {
		if logs, err = checker.Read(ctx, r.clientOpts(), topics...); err == nil {
			return logs, nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return nil, err
		}
	}
	return nil, err
}

// pause lets fake time pass.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A trace is what happened, in fake time. It is safe for concurrent use.
type trace struct {
	start time.Time
	mu    sync.Mutex
	lines []string
}

// traceLines bounds a trace; the oldest lines are dropped.
const traceLines = 3000

func (t *trace) add(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, fmt.Sprintf("%9.3fs %s", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...)))
	if len(t.lines) > traceLines {
		t.lines = t.lines[traceLines/2:]
	}
}

func (t *trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

// logger writes what an instance logs into the trace.
func (t *trace) logger(name string, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(traceWriter{t, name}, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

type traceWriter struct {
	t    *trace
	name string
}

func (w traceWriter) Write(p []byte) (int, error) {
	w.t.add("%s %s", w.name, strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}
