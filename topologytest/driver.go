// Package topologytest runs a topology without a broker: a test pipes records
// into its topics, reads what it writes, looks into its stores, moves the wall
// clock and answers asynchronous calls by hand.
//
// A [Driver] behaves like the engine, one record at a time: each is processed
// with its outputs, state changes and calls as one transaction, and everything it
// causes, also through repartition topics, ends before Pipe returns. Nothing
// sleeps and nothing runs in the background, so tests are deterministic. A driver
// is not safe for concurrent use; it may be used in a testing/synctest bubble.
package topologytest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/llm/prompt"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// A Driver runs the tasks of a topology.
type Driver struct {
	t      testing.TB
	top    *topology.Topology
	now    time.Time
	parts  int32
	policy func(*processors.Error) processors.Action

	topics  map[string]*topic
	tasks   []*task
	globals *state.Partition
	db      state.Backend
	starts  int // how often the application was started

	calls    []*Call
	drops    []Drop
	reports  []processors.Report
	failures []Failure
}

// A topic is what was written to a topic.
type topic struct {
	partitions [][]processors.Raw
	all        []processors.Raw // in order of arrival
	read       int              // of all, by RawOutput and Output
	keyless    int32            // records without a key so far
}

// A Drop is a record that an operator dropped.
type Drop struct {
	Task   state.TaskID
	Step   string
	Reason string // "null-key", "null-value", "late", ...
}

// A Failure is a record whose processing failed and what became of it.
type Failure struct {
	Task   state.TaskID
	Record processors.Raw // its Topic is empty for a punctuation
	Err    *processors.Error
	Action processors.Action
}

// An Option configures a [Driver].
type Option func(*Driver)

// Partitions sets the partition count of all topics but repartition topics with
// a count of their own. Default: 1.
func Partitions(n int32) Option { return func(d *Driver) { d.parts = n } }

// Now sets the wall clock. Default: 2000-01-01 00:00:00 UTC.
func Now(t time.Time) Option { return func(d *Driver) { d.now = t } }

// OnError sets what becomes of records that fail, unless the step decides itself.
// Default: they are dead-lettered.
func OnError(policy func(*processors.Error) processors.Action) Option {
	return func(d *Driver) { d.policy = policy }
}

// New builds the topology and starts its tasks. A mistake in the topology ends
// the test.
func New(t testing.TB, b *topology.Builder, opts ...Option) *Driver {
	t.Helper()
	top, err := b.Build()
	if err != nil {
		t.Fatalf("topologytest: %v", err)
	}
	d := &Driver{
		t: t, top: top, parts: 1, now: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		policy: func(*processors.Error) processors.Action { return processors.DeadLetter },
		topics: map[string]*topic{}, db: state.NewMemory(),
	}
	for _, opt := range opts {
		opt(d)
	}
	if d.parts < 1 {
		t.Fatalf("topologytest: %d partitions; use 1 or more", d.parts)
	}
	t.Cleanup(d.Close)
	d.start()
	d.run()
	return d
}

// Topology returns the topology that the driver runs.
func (d *Driver) Topology() *topology.Topology { return d.top }

// Close ends the application. It is called at the end of the test, and may be
// called before.
func (d *Driver) Close() { d.stop() }

// Restart ends the application and starts it again on its committed state, as
// after a kill. Calls that were not answered are lost with the process; they are
// dispatched again by the ticks of the next [Driver.Advance], a second is enough.
func (d *Driver) Restart() {
	d.t.Helper()
	d.stop()
	d.calls = nil
	d.start()
	d.run()
}

// RestartWith is [Driver.Restart] with another description of the application, as
// after a deployment: other settings, other steps on the same state.
func (d *Driver) RestartWith(b *topology.Builder) {
	d.t.Helper()
	top, err := b.Build()
	if err != nil {
		d.t.Fatalf("topologytest: %v", err)
	}
	d.stop()
	d.calls, d.top = nil, top
	d.start()
	d.run()
}

func (d *Driver) start() {
	d.t.Helper()
	d.starts++
	for _, s := range d.top.Subs {
		for _, src := range s.Sources {
			if src.Internal != nil && src.Internal.Partitions > 0 {
				d.topic(src.Topic, src.Internal.Partitions)
			}
		}
	}
	var specs []state.Spec
	for _, g := range d.top.Globals {
		specs = append(specs, g.Store)
	}
	d.globals = state.NewPartition(d.db, state.TaskID{SubTopology: "global"}, specs)
	d.registerPrompts()
	old := d.tasks
	d.tasks = nil
	for _, s := range d.top.Subs {
		n := int32(1)
		for _, src := range s.Sources {
			n = max(n, int32(len(d.topic(src.Topic, d.parts).partitions)))
		}
		for p := range n {
			t := d.newTask(s, p)
			for _, o := range old {
				if o.part.ID == t.part.ID {
					t.resume(o)
				}
			}
			d.tasks = append(d.tasks, t)
		}
	}
	for _, t := range d.tasks {
		t.start()
	}
}

// registerPrompts writes what the steps use to the topic of prompts, as an instance
// does when it starts.
func (d *Driver) registerPrompts() {
	d.t.Helper()
	if len(d.top.Prompts) == 0 {
		return
	}
	var reg prompt.Registry
	name := prompt.Topic(d.top.App)
	for _, r := range d.topic(name, 1).all {
		if err := reg.Apply(prompt.Record{Key: string(r.Key), Value: r.Value}); err != nil {
			continue // reported when it came
		}
	}
	list, err := reg.Register(d.top.Prompts, d.now)
	for _, r := range list {
		if err == nil {
			err = d.write(name, 0, processors.Raw{Key: []byte(r.Key), Value: r.Value, Timestamp: d.now.UnixMilli()})
		}
	}
	if err != nil {
		d.t.Fatalf("topologytest: %v", err)
	}
}

func (d *Driver) stop() {
	for _, t := range d.tasks {
		t.stop()
	}
}

// topic returns a topic, made with n partitions if there is none.
func (d *Driver) topic(name string, n int32) *topic {
	tp, ok := d.topics[name]
	if !ok {
		tp = &topic{partitions: make([][]processors.Raw, n)}
		d.topics[name] = tp
	}
	return tp
}

// run processes what the topics hold until the application is quiet.
func (d *Driver) run() {
	d.t.Helper()
	for busy := true; busy; {
		busy = false
		for _, t := range d.tasks {
			for t.step() {
				busy = true
			}
		}
	}
}

// PipeRaw writes a record as bytes to a topic and processes it. With partition
// < 0 it goes to the partition of its key. Its Topic, Partition and Offset are
// set by the driver; nil key and value are nulls. A topic that the topology does
// not read ends the test.
func (d *Driver) PipeRaw(topic string, partition int32, rec processors.Raw) {
	d.t.Helper()
	if !d.reads(topic) {
		d.t.Fatalf("topologytest: the topology does not read topic %q", topic)
	}
	rec.Key, rec.Value = bytes.Clone(rec.Key), bytes.Clone(rec.Value)
	if err := d.write(topic, partition, rec); err != nil {
		d.t.Fatalf("topologytest: %v", err)
	}
	d.run()
}

func (d *Driver) reads(topic string) bool {
	for _, g := range d.top.Globals {
		if g.Topic == topic {
			return true
		}
	}
	for _, s := range d.top.Subs {
		for _, src := range s.Sources {
			if src.Topic == topic {
				return true
			}
		}
	}
	return false
}

// write appends a record to a topic.
func (d *Driver) write(name string, partition int32, rec processors.Raw) error {
	tp := d.topic(name, d.parts)
	n := int32(len(tp.partitions))
	switch {
	case partition >= n:
		return fmt.Errorf("topic %q has %d partitions, the record is for partition %d", name, n, partition)
	case partition < 0 && rec.Key == nil:
		partition = tp.keyless % n
		tp.keyless++
	case partition < 0:
		partition = state.PartitionOf(rec.Key, n)
	}
	rec.Topic, rec.Partition, rec.Offset = name, partition, int64(len(tp.partitions[partition]))
	tp.partitions[partition] = append(tp.partitions[partition], rec)
	tp.all = append(tp.all, rec)
	for _, g := range d.top.Globals {
		if g.Topic == name {
			if err := d.applyGlobal(g, &rec); err != nil {
				return fmt.Errorf("global table %q: %w", g.Store.Name, err)
			}
		}
	}
	return nil
}

func (d *Driver) applyGlobal(g topology.GlobalSource, rec *processors.Raw) error {
	store := d.globals.Store(g.Store.Name)
	key, row, err := g.Apply(rec, store.Get)
	if err != nil {
		e := &processors.Error{Class: processors.ClassDecode, Step: g.Store.Name, Err: err}
		d.failures = append(d.failures, Failure{Task: d.globals.ID, Record: *rec, Err: e, Action: processors.Skip})
	}
	if key == nil {
		return nil
	}
	d.globals.Begin()
	store.Put(bytes.Clone(key), row)
	return errors.Join(d.globals.Commit(), d.globals.WriteBack(&state.Batch{}))
}

// Advance moves the wall clock forward, runs the wall-clock punctuations that are
// due at the new time, and tries again the records that wait for a retry.
func (d *Driver) Advance(by time.Duration) {
	d.t.Helper()
	d.now = d.now.Add(by)
	for _, t := range d.tasks {
		t.retry = false
		t.tick()
	}
	d.run()
}

// Now returns the wall clock.
func (d *Driver) Now() time.Time { return d.now }

// Drops returns the records that operators dropped so far, in order.
func (d *Driver) Drops() []Drop { return slices.Clone(d.drops) }

// Reports returns what asynchronous steps reported, in order: how events ended, and
// which answers were refused.
func (d *Driver) Reports() []processors.Report { return slices.Clone(d.reports) }

// Failures returns the records that failed so far, in order. What they did was
// undone. A record that is retried fails again at every attempt; a task that a
// record stopped takes no more records until Restart.
func (d *Driver) Failures() []Failure { return slices.Clone(d.failures) }

// DeadLetters returns the dead letters so far, in order of topic and arrival.
func (d *Driver) DeadLetters() []processors.Raw {
	var letters []processors.Raw
	for _, name := range d.deadLetterTopics() {
		if tp := d.topics[name]; tp != nil {
			letters = append(letters, tp.all...)
		}
	}
	return letters
}

func (d *Driver) deadLetterTopics() []string {
	var names []string
	for _, s := range d.top.Subs {
		names = append(names, s.DeadLetterTopic)
	}
	slices.SortFunc(names, cmp.Compare[string])
	return slices.Compact(names)
}

// RawOutput returns the records written to a topic since the last call, or since
// an [Output] of the topic last read it.
func (d *Driver) RawOutput(topic string) []processors.Raw {
	tp := d.topics[topic]
	if tp == nil {
		return nil
	}
	recs := slices.Clone(tp.all[tp.read:])
	tp.read = len(tp.all)
	return recs
}
