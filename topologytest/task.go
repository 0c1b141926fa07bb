package topologytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// A task is one sub-topology on one partition, as the engine runs it.
type task struct {
	d      *Driver
	sub    *topology.SubTopology
	part   *state.Partition
	pipe   topology.Pipeline
	timers processors.Punctuations
	ctx    context.Context
	cancel context.CancelFunc
	inputs []*input // the loop last
	clock  *state.Cell

	retry   bool // the record at the head waits for the clock to advance
	stopped bool

	// of the record being processed
	raw   processors.Raw
	out   []output
	calls []processors.Call
	drops []Drop
	told  []processors.Report
}

type input struct {
	topic     string
	loop      bool
	position  int
	timestamp func(*processors.Raw, int64) (int64, error)
	time      int64 // largest timestamp so far, for the extractor
	head      *processors.Raw
	at        int64 // event time of head
	err       error // of the extractor on head
}

type output struct {
	topic     string
	partition int32
	rec       processors.Raw
}

func (d *Driver) newTask(s *topology.SubTopology, partition int32) *task {
	t := &task{d: d, sub: s, part: state.NewPartition(d.db, state.TaskID{SubTopology: s.Name, Partition: partition}, s.Stores)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.clock = t.part.Cell("task.stream-time")
	for _, src := range s.Sources {
		t.inputs = append(t.inputs, &input{topic: src.Topic, timestamp: src.Timestamp, time: -1})
	}
	if s.LoopTopic != "" {
		t.inputs = append(t.inputs, &input{topic: s.LoopTopic, loop: true, time: -1})
	}
	return t
}

// resume goes on where the task was before a restart.
func (t *task) resume(before *task) {
	for i, in := range before.inputs {
		t.inputs[i].position, t.inputs[i].time = in.position, in.time
	}
}

func (t *task) start() {
	t.d.t.Helper()
	pipe, err := t.sub.Start(t)
	if err == nil {
		t.pipe = pipe
		err = pipe.Reset()
	}
	if err != nil {
		t.d.t.Fatalf("topologytest: task %s: %v", t.part.ID, err)
	}
	t.commit()
}

func (t *task) stop() {
	t.cancel()
	if t.pipe != nil {
		if err := t.pipe.Close(); err != nil {
			t.d.t.Errorf("topologytest: task %s: close: %v", t.part.ID, err)
		}
		t.pipe = nil
	}
	t.part.Close()
}

// step processes the next record: one of the loop, else the one with the
// smallest timestamp. It reports whether there was one.
func (t *task) step() bool {
	t.d.t.Helper()
	source := -1
	if t.retry || t.stopped {
		return false
	}
	for i, in := range t.inputs {
		t.peek(in)
		if in.head == nil {
			continue
		}
		if in.loop {
			source = i
			break
		}
		if source < 0 || in.at < t.inputs[source].at {
			source = i
		}
	}
	if source < 0 || !t.inputs[source].loop && !t.pipe.Capacity() {
		return false
	}
	in := t.inputs[source]
	if err := t.process(source, in); err != nil && !t.resolve(in.head, err) {
		return false
	}
	in.head = nil
	in.position++
	t.commit()
	return true
}

// peek sets the head of an input and its event time: that of the extractor, which
// the pipeline applies to the record again.
func (t *task) peek(in *input) {
	tp := t.d.topic(in.topic, t.d.parts)
	if in.head != nil || int(t.part.ID.Partition) >= len(tp.partitions) {
		return
	}
	recs := tp.partitions[t.part.ID.Partition]
	if in.position == len(recs) {
		return
	}
	rec := recs[in.position]
	in.head, in.at, in.err = &rec, rec.Timestamp, nil
	if in.timestamp != nil {
		in.at, in.err = in.timestamp(&rec, in.time)
	}
	if in.err == nil {
		in.time = max(in.time, in.at)
	}
}

func (t *task) process(source int, in *input) error {
	t.begin(*in.head)
	err := in.err
	if err == nil {
		if !in.loop && in.at > t.clock.Value() {
			t.clock.Set(in.at)
		}
		err = t.pipe.Process(source, &t.raw)
	}
	if err == nil {
		err = t.punctuate(func() error { return t.timers.StreamTime(t.clock.Value()) })
	}
	if err != nil {
		t.Undo()
	}
	return err
}

// tick runs the wall-clock punctuations that are due.
func (t *task) tick() {
	t.d.t.Helper()
	if t.stopped {
		return
	}
	t.begin(processors.Raw{Partition: t.part.ID.Partition, Offset: -1})
	if err := t.punctuate(func() error { return t.timers.WallClock(t.d.now) }); err != nil {
		t.Undo()
		t.resolve(&t.raw, err)
		return
	}
	t.commit()
}

// punctuate runs punctuations. They have no source record, so that an error of
// theirs stops the task.
func (t *task) punctuate(fn func() error) error {
	if !t.timers.Any() {
		return nil
	}
	t.raw = processors.Raw{Partition: t.part.ID.Partition, Offset: -1}
	if err := fn(); err != nil {
		return &processors.Error{Class: processors.ClassProcess, Step: t.sub.Name, Action: processors.Stop, Err: fmt.Errorf("punctuation: %w", err)}
	}
	return nil
}

func (t *task) begin(raw processors.Raw) {
	t.part.Begin()
	t.raw, t.out, t.calls, t.drops, t.told = raw, nil, nil, nil, nil
}

// resolve applies the error policy to a failed record and reports whether it is
// done with.
func (t *task) resolve(rec *processors.Raw, err error) bool {
	t.d.t.Helper()
	e, ok := errors.AsType[*processors.Error](err)
	if !ok {
		e = &processors.Error{Class: processors.ClassProcess, Step: t.sub.Name, Err: err}
	}
	f := Failure{Task: t.part.ID, Record: *rec, Err: e, Action: t.Decide(e)}
	t.d.failures = append(t.d.failures, f)
	t.d.t.Logf("topologytest: task %s: %s/%d offset %d: %v: %s", t.part.ID, rec.Topic, rec.Partition, rec.Offset, e, f.Action)
	switch f.Action {
	case processors.Skip:
		return true
	case processors.DeadLetter:
		t.out = append(t.out, output{t.sub.DeadLetterTopic, -1, deadLetter(rec, e, t.d.now)})
		return true
	case processors.Retry:
		t.retry = true
		return false
	}
	t.stopped = true
	return false
}

// deadLetter is the dead letter of a record, as the engine writes it.
func deadLetter(rec *processors.Raw, e *processors.Error, now time.Time) processors.Raw {
	headers := processors.DeadLetterHeaders(rec, e.Step, e.Class, processors.ErrorText(e.Err), now)
	return processors.Raw{Key: rec.Key, Value: rec.Value, Headers: headers, Timestamp: max(rec.Timestamp, 0)}
}

// commit writes the outputs and the state changes of the record, then starts its
// calls.
func (t *task) commit() {
	t.d.t.Helper()
	if err := errors.Join(t.part.Commit(), t.part.WriteBack(&state.Batch{})); err != nil {
		t.d.t.Fatalf("topologytest: %v", err)
	}
	for _, o := range t.out {
		if err := t.d.write(o.topic, o.partition, o.rec); err != nil {
			t.d.t.Fatalf("topologytest: %v", err)
		}
	}
	t.d.drops = append(t.d.drops, t.drops...)
	t.d.reports = append(t.d.reports, t.told...)
	for _, c := range t.calls {
		t.d.calls = append(t.d.calls, &Call{Step: c.Step, Entry: c.Entry, Round: c.Round, task: t, call: c})
	}
	t.out, t.calls, t.drops, t.told = nil, nil, nil, nil
}

var (
	_ processors.AsyncTask        = (*task)(nil)
	_ processors.PartitionCounter = (*task)(nil)
)

func (t *task) Context() context.Context { return t.ctx }
func (t *task) Logger() *slog.Logger     { return slog.New(slog.DiscardHandler) }
func (t *task) Partition() int32         { return t.part.ID.Partition }
func (t *task) Source() *processors.Raw  { return &t.raw }
func (t *task) StreamTime() int64        { return t.clock.Value() }
func (t *task) Now() time.Time           { return t.d.now }

func (t *task) Store(name string) *state.Store  { return t.part.Store(name) }
func (t *task) Global(name string) *state.Store { return t.d.globals.Store(name) }
func (t *task) Cell(name string) *state.Cell    { return t.part.Cell(name) }

func (t *task) Produce(topic string, partition int32, rec processors.Raw) error {
	rec.Key, rec.Value = bytes.Clone(rec.Key), bytes.Clone(rec.Value)
	t.out = append(t.out, output{topic, partition, rec})
	return nil
}

func (t *task) Schedule(kind processors.PunctuationKind, interval time.Duration, next *state.Cell, fn func(at int64) error) (cancel func()) {
	return t.timers.Add(kind, interval, t.d.now, next, fn)
}

func (t *task) Dispatch(call processors.Call) { t.calls = append(t.calls, call) }

func (t *task) Drop(step, reason string) {
	t.drops = append(t.drops, Drop{t.part.ID, step, reason})
}

// Partitions implements [processors.PartitionCounter].
func (t *task) Partitions(topic string) (int32, error) {
	return int32(len(t.d.topic(topic, t.d.parts).partitions)), nil
}

func (t *task) Owner() processors.Owner {
	return processors.Owner{Instance: "test", Incarnation: strconv.Itoa(t.d.starts)}
}

// Adopt implements [processors.AsyncTask].
func (t *task) Adopt(step string, asked []processors.AskedCall) []bool {
	known := make([]bool, len(asked))
	for i, a := range asked {
		known[i] = slices.ContainsFunc(t.d.calls, func(c *Call) bool {
			return c.task == t && c.Step == step && c.Entry == a.Entry && c.Round == a.Round && c.call.Ask == a.Ask
		})
	}
	return known
}

// Retire implements [processors.AsyncTask].
func (t *task) Retire(step, entry string) {
	t.d.calls = slices.DeleteFunc(t.d.calls, func(c *Call) bool { return c.task == t && c.Step == step && c.Entry == entry })
}

// Observer implements [processors.AsyncTask]: spans go to OpenTelemetry's global
// tracer provider.
func (t *task) Observer() processors.Observer { return processors.Unobserved{} }

// Report implements [processors.AsyncTask].
func (t *task) Report(r processors.Report) { t.told = append(t.told, r) }

// LoopCaughtUp implements [processors.AsyncTask].
func (t *task) LoopCaughtUp() bool {
	loop := t.inputs[len(t.inputs)-1]
	return loop.position == len(t.d.topic(loop.topic, t.d.parts).partitions[t.part.ID.Partition])
}

// Undo implements [processors.AsyncTask].
func (t *task) Undo() {
	t.part.Rollback()
	t.out, t.calls, t.drops, t.told = nil, nil, nil, nil
}

// Decide implements [processors.AsyncTask].
func (t *task) Decide(e *processors.Error) processors.Action {
	if e.Action != processors.Default {
		return e.Action
	}
	return t.d.policy(e)
}

func (t *task) TopicID(topic string) string { return topic }
func (t *task) MaxRowBytes() int            { return 1_000_000 }
