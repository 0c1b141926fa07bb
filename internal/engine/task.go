package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// A task is one sub-topology on one partition: one goka processor with its state
// and its operators. Its worker owns it; the goka callback, which runs the
// operators, is the only other goroutine that touches it, and the worker waits
// for that one before it looks.
type task struct {
	id   state.TaskID
	sub  *topology.SubTopology
	inst *Instance
	log  *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	part   *state.Partition
	pipe   topology.Pipeline
	feed   *kafka.Feed
	inputs []*input // the loop last
	stream *state.Cell
	timers processors.Punctuations
	check  *state.Checkpoint

	checked int64 // Time of the checkpoint as it was last written

	maxIdle  time.Duration
	produce  func(*kgo.Record) // hands a record to the worker's open transaction
	deadline time.Time         // when the turn being run has to end
	now      time.Time         // wall clock of the turn being run

	// of the record being processed
	raw        processors.Raw
	out        []*kgo.Record
	newCalls   []processors.Call
	newRetired []retired
	newTold    []processors.Report

	// of the open transaction
	took    bool     // took part in it
	records int      // processed in it
	last    position // the record processed last
	limit   int      // records the turn may take, 0 for no limit
	calls   []processors.Call
	retired []retired
	told    []processors.Report
	logged  map[string]*kgo.Record // the last changelog record by store

	// why the task does not run, if it does not
	failure   error     // it stopped: parked until the worker reopens it
	retryAt   time.Time // it waits to process the record at its head again
	attempts  int       // of the record at its head
	condemned map[position]error
	// maxSize is the most bytes a record of limitOf may have: the topic written last.
	limitOf string
	maxSize int
	// refusedDeadLetter is a record whose dead letter the broker refused, and
	// refused are outputs without a source record that it refused: those become
	// dead letters themselves.
	refusedDeadLetter position
	refused           []*kgo.Record
	aborted           bool // a cycle of it was
	paused            bool // its sources are paused for want of capacity, or by the user

	// at is the record being processed, for whoever reports a callback that does
	// not return.
	at atomic.Pointer[kgo.Record]

	// what views may know, at any time
	view struct {
		streamTime atomic.Int64 // committed
		caughtUp   atomic.Int64 // when it last had processed all of its input, ms
		looked     atomic.Int64 // when a view last looked at it, ms
	}
}

// A position names a record.
type position struct {
	topic     string
	partition int32
	offset    int64
}

// turnRecords is how many records are processed between two looks at the clock,
// unless a record takes longer than slowRecord on average.
const (
	turnRecords = 256
	slowRecord  = 100 * time.Microsecond
)

// run is the goka callback: it processes what the task has, in order, until its
// inputs are empty, it must wait, or its deadline passes.
func (t *task) run(any) {
	t.now = time.Now()
	t.took = true
	look := turnRecords
	for n := 1; t.failure == nil && (t.limit == 0 || n <= t.limit); n++ {
		if n%look == 0 {
			before := t.now
			if t.now = time.Now(); t.now.After(t.deadline) {
				break
			}
			if look = turnRecords; t.now.Sub(before) > slowRecord*turnRecords {
				look = 1 // a turn of slow records must not outlast the transaction
			}
		}
		in := t.next(t.now, t.pipe.Capacity())
		if in == nil {
			break
		}
		if !t.step(in, in.buf[in.head]) {
			break
		}
	}
	if t.limit == 0 || t.records == 0 {
		t.tick() // while records are isolated a tick is a cycle of its own
	}
}

// step processes one record and applies the error policy to its failure. It
// reports whether the task goes on.
func (t *task) step(in *input, r *kgo.Record) bool {
	at := position{r.Topic, r.Partition, r.Offset}
	var err error
	suspect := false
	if len(t.condemned) > 0 {
		err, suspect = t.condemned[at]
	}
	switch {
	case suspect && in.loop:
		// The broker refused what an outcome made: its event takes the blame.
		err = t.record(in, r, func() error { return t.pipe.(topology.Rejecter).Reject(&t.raw, err) })
	case !suspect:
		err = t.record(in, r, func() error { return t.pipe.Process(in.source, &t.raw) })
	}
	if err != nil && !t.resolve(r, err) {
		return false
	}
	if suspect {
		delete(t.condemned, at)
	}
	t.attempts = 0
	t.records++
	t.last = at
	in.advance(r)
	return true
}

// record runs the operators on one record. It is all or nothing: if it fails,
// its outputs, state changes and calls are undone.
func (t *task) record(in *input, r *kgo.Record, process func() error) error {
	t.raw = toRaw(r)
	t.at.Store(r)
	t.part.Begin()
	t.dropOutput()
	in.seen.Set(1)
	if ts := in.eventTime(r); !in.loop {
		in.partitionTime = max(in.partitionTime, ts)
		if ts > t.stream.Value() {
			t.stream.Set(ts)
		}
	}
	err := t.guard(process)
	if err == nil {
		err = t.checkRows()
	}
	if err == nil {
		err = t.punctuate(func() error { return t.timers.StreamTime(t.stream.Value()) })
	}
	if err != nil {
		t.part.Rollback()
		return err
	}
	t.release()
	return nil
}

// release hands the outputs and calls of the record to the open transaction.
func (t *task) release() {
	for _, r := range t.out {
		t.produce(r)
		if t.aborted && t.inst.cfg.planted == bugEmitTwice {
			again := *r
			t.produce(&again)
		}
	}
	if t.inst.cfg.planted == bugDispatchedFirst {
		for _, c := range t.newCalls {
			t.inst.calls.Start(t.id, t.sub.LoopTopic, c)
		}
		t.newCalls = t.newCalls[:0]
	}
	clear(t.out)
	t.out = t.out[:0]
	t.calls = append(t.calls, t.newCalls...)
	t.retired = append(t.retired, t.newRetired...)
	t.told = append(t.told, t.newTold...)
	t.newCalls, t.newRetired, t.newTold = t.newCalls[:0], t.newRetired[:0], t.newTold[:0]
}

// dropOutput forgets the outputs and calls of the record in progress.
func (t *task) dropOutput() {
	t.out, t.newCalls, t.newRetired, t.newTold = t.out[:0], t.newCalls[:0], t.newRetired[:0], t.newTold[:0]
}

// checkRows refuses state rows that the changelog topic would not take.
func (t *task) checkRows() error {
	store, size := t.part.Largest()
	if size <= t.inst.cfg.MaxRowBytes {
		return nil
	}
	return produceError(store, "a row of %d bytes exceeds what its changelog takes (%d): make the value smaller, or raise millrace.MaxRowBytes and max.message.bytes of the topic", size, t.inst.cfg.MaxRowBytes)
}

// tick runs the wall-clock punctuations that are due.
func (t *task) tick() {
	if t.failure != nil || t.timers.NextWallClock().After(t.now) {
		return
	}
	t.part.Begin()
	t.dropOutput()
	t.last = position{}
	if err := t.punctuate(func() error { return t.timers.WallClock(t.now) }); err != nil {
		t.part.Rollback()
		t.stop(err)
		return
	}
	t.release()
}

// punctuate runs punctuations: they have no source record, so that an error of
// theirs stops the task.
func (t *task) punctuate(fn func() error) error {
	if !t.timers.Any() {
		return nil
	}
	t.raw = processors.Raw{Partition: t.id.Partition, Offset: -1}
	err := t.guard(fn)
	if err == nil {
		err = t.checkRows()
	}
	if err != nil {
		return &processors.Error{Class: processors.ClassProcess, Step: t.id.SubTopology, Action: processors.Stop, Err: fmt.Errorf("punctuation: %w", err)}
	}
	return nil
}

// guard runs fn and turns a panic into an error of the step that caused it.
func (t *task) guard(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.log.Error("panic", "panic", p, "stack", string(debug.Stack()))
			err = &processors.Error{Class: processors.ClassProcess, Step: t.id.SubTopology, Err: fmt.Errorf("panic: %v", p)}
		}
	}()
	return fn()
}

// resolve applies the error policy to the failure of r. It reports whether the
// record is done with.
func (t *task) resolve(r *kgo.Record, err error) bool {
	e, ok := errors.AsType[*processors.Error](err)
	if !ok {
		e = &processors.Error{Class: processors.ClassProcess, Step: t.id.SubTopology, Err: err}
	}
	action := t.Decide(e)
	t.inst.metrics.failed(t.id, e, action)
	log := t.log.With("topic", r.Topic, "offset", r.Offset, "class", string(e.Class), "step", e.Step, "action", action.String())
	switch action {
	case processors.Skip:
		log.Warn("record skipped", "error", e.Err)
		return true
	case processors.DeadLetter:
		if r.Topic == t.sub.DeadLetterTopic || t.refusedDeadLetter == (position{r.Topic, r.Partition, r.Offset}) {
			t.stop(fmt.Errorf("the dead letter of %s/%d offset %d is refused by %s: mend that topic; the record: %w", r.Topic, r.Partition, r.Offset, t.sub.DeadLetterTopic, err))
			return false
		}
		dead := deadLetter(t.sub.DeadLetterTopic, r, e, t.now)
		if size, limit := recordSize(dead), t.inst.limit(dead.Topic); size > limit {
			t.stop(fmt.Errorf("dead letter of %s/%d offset %d has %d bytes, %s takes %d: raise its max.message.bytes", r.Topic, r.Partition, r.Offset, size, dead.Topic, limit))
			return false
		}
		log.Warn("record dead-lettered", "error", e.Err)
		t.produce(dead)
		t.told = append(t.told, deadLettered(t.id, e))
		return true
	case processors.Retry:
		t.attempts++
		wait := retryBackoff(t.attempts)
		t.retryAt = t.now.Add(wait)
		log.Warn("record will be retried", "error", e.Err, "in", wait, "attempt", t.attempts)
		return false
	}
	t.stop(fmt.Errorf("%s/%d offset %d: %w", r.Topic, r.Partition, r.Offset, err))
	return false
}

// stop parks the task with a failure.
func (t *task) stop(err error) {
	t.failure = err
	t.log.Error("task stopped", "error", err)
}

// retryBackoff is the wait before attempt n+1 of a record: 100 ms, doubled up to
// 30 s.
func retryBackoff(n int) time.Duration {
	return min(100*time.Millisecond<<min(n-1, 10), 30*time.Second)
}

// ready reports whether the worker should give the task a turn now.
func (t *task) ready(now time.Time) bool {
	if t.failure != nil {
		return false
	}
	if !t.timers.NextWallClock().After(now) {
		return true
	}
	return t.next(now, t.pipe.Capacity()) != nil
}

// backlog reports whether an input is known to hold records not polled yet.
func (t *task) backlog() bool {
	for _, in := range t.inputs {
		if in.fetched.At < in.end {
			return true
		}
	}
	return false
}

// buffered counts the polled records that wait, and their bytes.
func (t *task) buffered() (records, bytes int) {
	for _, in := range t.inputs {
		records += len(in.buf) - in.head
		bytes += in.bytes
	}
	return records, bytes
}

// partitions are the task's inputs as franz-go names them.
func (t *task) partitions() map[string][]int32 {
	parts := map[string][]int32{}
	for _, in := range t.inputs {
		parts[in.topic] = []int32{t.id.Partition}
	}
	return parts
}

// offsets adds the position of every input to what the commit names: also the
// unchanged ones, since the fence of a transaction is in its offsets.
func (t *task) offsets(commit map[string]map[int32]kafka.Offset) {
	for _, in := range t.inputs {
		set(commit, in.topic, t.id.Partition, t.toCommit(in))
	}
}

// toCommit is the offset of an input to commit: its position, unless a strict
// asynchronous step holds it back.
func (t *task) toCommit(in *input) kafka.Offset {
	at := in.position
	if t.inst.cfg.planted == bugOffsetsAhead {
		at = in.fetched
	}
	if h, ok := t.pipe.(topology.Holder); ok && !in.loop {
		if held := h.Hold(in.source, at.At); held < at.At {
			return kafka.Offset{At: held, Epoch: -1}
		}
	}
	return at
}

// moved reports whether a position differs from the committed one.
func (t *task) moved() bool {
	for _, in := range t.inputs {
		if t.toCommit(in).At != in.committed.At {
			return true
		}
	}
	return false
}

// logChanges hands the net changes of the task's stores to the transaction.
func (t *task) logChanges() {
	now := time.Now().UnixMilli()
	for _, s := range t.part.Stores() {
		topic := t.sub.Changelog(s.Spec.Name)
		if topic == "" {
			continue
		}
		for key, row := range s.Changes() {
			k, v, ts := s.Spec.ChangelogRecord(key, row, now)
			r := t.inst.records.get()
			r.Topic, r.Partition, r.Key, r.Value, r.Timestamp = topic, t.id.Partition, k, v, time.UnixMilli(ts)
			t.produce(r)
			t.logged[s.Spec.Name] = r
		}
	}
}

// abort goes back to the committed state and positions.
func (t *task) abort() error {
	t.aborted = true
	if t.inst.cfg.planted != bugCacheKept {
		t.part.Abort()
	}
	for _, in := range t.inputs {
		if !in.loop || t.inst.cfg.planted != bugLoopNotRewound {
			in.rewind()
		}
	}
	t.endCycle()
	return t.pipe.Reset()
}

func (t *task) endCycle() {
	t.took, t.records, t.last = false, 0, position{}
	clear(t.logged)
	clear(t.calls)
	t.calls, t.retired, t.told = t.calls[:0], t.retired[:0], t.told[:0]
}

// close stops the goka processor; it is idempotent.
func (t *task) close() {
	t.cancel()
	if t.feed != nil {
		if err := t.feed.Close(); err != nil {
			t.log.Warn("closing the goka processor", "error", err)
		}
	}
	if t.pipe != nil {
		if err := t.guard(t.pipe.Close); err != nil {
			t.log.Warn("closing the operators", "error", err)
		}
	}
	if t.part == nil {
		return
	}
	if n, _ := t.part.Unwritten(); n > 0 {
		if err := t.writeBack(); err != nil {
			t.log.Warn("committed rows could not be written, the next owner restores them", "error", err)
		}
	}
	t.part.Close()
}
