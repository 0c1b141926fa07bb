// Package engine runs compiled topologies: workers with a Kafka client each,
// tasks, the commit cycle that moves offsets, output and state together, restore,
// and the calls of asynchronous steps.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// An Instance is one running process of an application: its state directory, its
// workers and the calls of its asynchronous steps. All methods are safe for
// concurrent use.
type Instance struct {
	cfg     *Config
	log     *slog.Logger
	metrics *metrics
	// observer and alerts see what happens, and change nothing.
	observer *observer
	alerts   *alerts

	// Set by Run, before any worker starts.
	dir        *state.Dir
	pebble     *state.Pebble
	db         state.Backend // pebble
	id         string        // UUID of the state directory
	owner      processors.Owner
	broker     kafka.BrokerInfo
	plan       *plan
	plain      *kgo.Client // plain idempotent client: restore, loop appends, admin
	adm        *kadm.Client
	limits     map[string]int           // max.message.bytes by topic
	tombstones map[string]time.Duration // delete.retention.ms by topic
	topicInfos map[string]kafka.TopicInfo
	cache      *state.CacheBudget // of encoded rows, for all tasks
	globals    *globals
	calls      *Calls
	records    recordSlab

	ready chan struct{} // closed when Run has set the fields above
	// restores bounds how many tasks are restored at once, and with that the memory
	// that takes.
	restores chan struct{}

	mu     sync.Mutex
	owners map[state.TaskID]chan struct{} // closed when the task is free
	status map[state.TaskID]*TaskStatus
	live   map[state.TaskID]*task // those that views may read
	// waiting are the workers that have not been assigned anything yet.
	waiting map[*worker]bool
	corrupt bool // the database was found damaged: the next start rebuilds it
	paused  map[state.TaskID]bool
	// condemned says which sub-topologies must not run, since a topic changed.
	condemned map[string]*kafka.TopicChange
	losses    map[groupPartition]*loss
}

// maxRestores is how many tasks of an instance are restored at once.
const maxRestores = 4

// New checks cfg and returns an instance that Run starts.
func New(cfg Config) (*Instance, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	inst := &Instance{
		cfg: &cfg, log: cfg.Logger, ready: make(chan struct{}), restores: make(chan struct{}, maxRestores),
		waiting: map[*worker]bool{},
		owners:  map[state.TaskID]chan struct{}{}, status: map[state.TaskID]*TaskStatus{},
		live: map[state.TaskID]*task{}, paused: map[state.TaskID]bool{},
		condemned: map[string]*kafka.TopicChange{}, losses: map[groupPartition]*loss{},
	}
	inst.alerts = newAlerts(inst)
	inst.metrics = newMetrics(inst, cfg.Registry)
	inst.alerts.metrics = inst.metrics.steps
	var err error
	if inst.observer, err = newObserver(inst.cfg, inst.metrics.steps); err != nil {
		return nil, fmt.Errorf("OpenTelemetry: %w", err)
	}
	return inst, nil
}

// Run starts the instance and returns when ctx has ended and everything it
// started has, after a drain: open cycles are committed, running calls get
// HandoverWait to end. It can be called once.
func (inst *Instance) Run(ctx context.Context) (err error) {
	if err := inst.metrics.register(); err != nil {
		return err
	}
	defer inst.metrics.unregister()
	if err := inst.openDir(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inst.closeDir()) }()
	inst.plain, err = kgo.NewClient(inst.cfg.Kafka.PlainOpts(inst.batchBytes)...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer inst.plain.Close()
	inst.adm = kadm.NewClient(inst.plain)
	if err := inst.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return inst.work(ctx)
}

// brokerPatience is how long Run waits for brokers at start.
const brokerPatience = 2 * time.Minute

// prepare connects, makes the plan, and creates and checks internal topics. While
// brokers do not answer it tries again, with a report.
func (inst *Instance) prepare(ctx context.Context) error {
	patient, cancel := context.WithTimeout(ctx, brokerPatience)
	defer cancel()
	for n := 0; ; n++ {
		err := inst.connect(patient)
		if err == nil {
			break
		}
		if !errors.Is(err, kafka.ErrNoBroker) && !kafka.IsUnreachable(err) {
			return err
		}
		inst.log.Warn("no broker answers, trying again", "brokers", inst.cfg.Kafka.Brokers, "error", err)
		select {
		case <-time.After(min(250*time.Millisecond<<min(n, 5), 5*time.Second)):
		case <-patient.Done():
			return fmt.Errorf("no broker of %v answered within %s: check the addresses, TLS and SASL settings: %w", inst.cfg.Kafka.Brokers, brokerPatience, err)
		}
	}
	if err := inst.registerPrompts(ctx); err != nil {
		return err
	}
	inst.calls = NewCalls(CallsConfig{
		Append: inst.appendLoop, Logger: inst.log, Observer: inst.metrics,
	})
	var err error
	inst.globals, err = openGlobals(ctx, inst)
	return err
}

// connect checks the broker and the topics. It can be repeated.
func (inst *Instance) connect(ctx context.Context) (err error) {
	if inst.broker, err = kafka.CheckBroker(ctx, inst.plain); err != nil {
		return err
	}
	// Now, so that the first answer of a call does not wait for it: franz-go asks
	// for the id under a lock that all its writes need.
	if _, _, err := inst.plain.ProducerID(ctx); err != nil {
		return fmt.Errorf("idempotent producer: %w: grant IdempotentWrite on the cluster (brokers before 2.8) or Write on the loop topics", err)
	}
	external, err := inst.externalTopics(ctx)
	if err != nil {
		return err
	}
	if inst.plan, err = newPlan(inst.cfg.Topology, external); err != nil {
		return err
	}
	return inst.ensureTopics(ctx)
}

// callsPatience bounds the end of the calls of an instance: the longest hand-over and
// the appends behind it.
const callsPatience = 15 * time.Second

// work runs the workers and the background jobs until ctx ends or one fails.
func (inst *Instance) work(ctx context.Context) error {
	var workers []*worker
	for _, g := range inst.plan.groups() {
		for i := range inst.cfg.Workers {
			w := newWorker(inst, g, i)
			workers = append(workers, w)
			inst.waiting[w] = true
		}
	}
	close(inst.ready)
	eg, ctx := errgroup.WithContext(ctx)
	for _, w := range workers {
		eg.Go(func() error { return w.run(ctx) })
	}
	eg.Go(func() error { return inst.globals.follow(ctx) })
	eg.Go(func() error { return inst.purge(ctx) })
	eg.Go(func() error { return inst.flush(ctx) })
	eg.Go(func() error { return inst.watchTopics(ctx) })
	eg.Go(func() error { inst.alerts.run(ctx); return nil })
	if inst.cfg.HTTP != "" {
		eg.Go(func() error { return inst.serveHTTP(ctx) })
	}
	err := eg.Wait()
	if errors.Is(err, state.ErrCorrupt) {
		inst.corrupt = true
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), callsPatience)
	defer cancel()
	inst.calls.Drain(drain)
	return err
}

// sub returns the sub-topology of that name.
func (inst *Instance) sub(name string) *topology.SubTopology {
	for _, sub := range inst.cfg.Topology.Subs {
		if sub.Name == name {
			return sub
		}
	}
	return nil
}

// partition returns the state of a task over the instance's backend.
func (inst *Instance) partition(id state.TaskID, sub *topology.SubTopology) *state.Partition {
	return state.NewPartition(inst.db, id, sub.Stores, state.WithCache(inst.cache))
}

// compareTaskIDs orders tasks by sub-topology, then partition.
func compareTaskIDs(a, b state.TaskID) int {
	return cmp.Or(cmp.Compare(a.SubTopology, b.SubTopology), cmp.Compare(a.Partition, b.Partition))
}

// batchBytes bounds the batches that clients write to a topic.
func (inst *Instance) batchBytes(topic string) int32 {
	if n, ok := inst.limits[topic]; ok {
		return int32(min(n, 64<<20))
	}
	return kafka.DefaultBatchBytes
}

// limit returns the most bytes a record of topic may have.
func (inst *Instance) limit(topic string) int {
	if n, ok := inst.limits[topic]; ok {
		return n
	}
	return defaultMaxMessage
}

// acquireTask waits until no worker of this instance owns the task and takes it.
func (inst *Instance) acquireTask(ctx context.Context, id state.TaskID) error {
	for {
		inst.mu.Lock()
		free, taken := inst.owners[id]
		if !taken {
			inst.owners[id] = make(chan struct{})
			inst.mu.Unlock()
			return nil
		}
		inst.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isOwned reports whether a worker of this instance has the task.
func (inst *Instance) isOwned(id state.TaskID) bool {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	_, taken := inst.owners[id]
	return taken
}

// releaseTask gives a task free; it does nothing for a task nobody owns.
func (inst *Instance) releaseTask(id state.TaskID) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if free, taken := inst.owners[id]; taken {
		close(free)
		delete(inst.owners, id)
	}
}

// Pause stops taking records of a task's sources; in-flight calls go on.
func (inst *Instance) Pause(id state.TaskID) { inst.setPaused(id, true) }

// Resume ends a Pause.
func (inst *Instance) Resume(id state.TaskID) { inst.setPaused(id, false) }

func (inst *Instance) setPaused(id state.TaskID, paused bool) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	inst.paused[id] = paused
}

func (inst *Instance) isPaused(id state.TaskID) bool {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	return inst.paused[id]
}

// Tasks returns the state of every task this instance has or had, by task.
func (inst *Instance) Tasks() []TaskStatus {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	out := make([]TaskStatus, 0, len(inst.status))
	for _, id := range slices.SortedFunc(maps.Keys(inst.status), compareTaskIDs) {
		out = append(out, *inst.status[id])
	}
	return out
}
