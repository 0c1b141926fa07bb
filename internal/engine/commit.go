package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
)

const (
	// idleCommit is the least time between two commits when input is idle, unless
	// commits take longer: then as long as they do, so that they take at most half
	// of a worker's time and a busy broker is not made busier.
	idleCommit = 5 * time.Millisecond
	// loopCommit is the same for a worker with asynchronous steps, whose calls take
	// far longer: many of their outcomes share a transaction, and the broker is left to
	// the groups beside it.
	loopCommit = 25 * time.Millisecond
	// idlePoll is how long no record must have come for input to count as idle
	// after a busy cycle.
	idlePoll = 2 * time.Millisecond
	// lightCycle is the number of records up to which a cycle is committed as soon
	// as its input is idle; more of them are worth waiting for the interval.
	lightCycle = 1000
	// movedCommit is how often offsets are committed that moved over control
	// records only.
	movedCommit = time.Second
	// refreshCheckpoint is how old the checkpoint of a task gets whose state does not
	// change: one that is too old makes the next start rebuild the state.
	refreshCheckpoint = time.Hour
)

// due reports whether the cycle ends now: after the interval, when nothing is
// left to process, or when the overlays are large.
func (s *session) due(now time.Time) bool {
	since := now.Sub(s.lastCommit)
	if !s.began {
		return since >= movedCommit && (s.moved() || s.refresh(now))
	}
	if s.isolate > 0 || since >= s.interval() {
		return true
	}
	size := 0
	for _, t := range s.tasks {
		size += t.part.Size()
	}
	if size >= s.w.cfg.MaxUncommittedBytes {
		return true
	}
	return since >= s.idleGap() && s.idle(now) && (s.light() || now.Sub(s.lastRecord) >= idlePoll)
}

// A worker that lags by farBehind records commits catchUp times less often: fewer
// commits and fewer writes of the same rows let it catch up sooner, and the delay of a
// commit is nothing against that of the lag.
const (
	farBehind = 50_000
	catchUp   = 3
)

// interval is how long the cycle may last.
func (s *session) interval() time.Duration {
	lag := int64(0)
	for _, t := range s.tasks {
		if t.sub.LoopTopic != "" {
			return s.w.cfg.CommitInterval // answers must not wait
		}
		if t.paused || t.failure != nil {
			continue
		}
		for _, in := range t.inputs {
			lag += in.lag()
		}
	}
	if lag < farBehind {
		return s.w.cfg.CommitInterval
	}
	return catchUp * s.w.cfg.CommitInterval
}

// idleGap is the time to leave between two commits while input is idle.
func (s *session) idleGap() time.Duration {
	for _, t := range s.tasks {
		if t.sub.LoopTopic != "" {
			return max(loopCommit, s.commitTime)
		}
	}
	return max(idleCommit, s.commitTime)
}

func (s *session) moved() bool {
	for _, t := range s.tasks {
		if t.failure == nil && t.moved() {
			return true
		}
	}
	return false
}

// refresh has tasks whose checkpoint gets old take part in a commit, though nothing
// changed: that the group takes it proves that the task is still ours, and that the
// rows lack nothing which another owner wrote.
func (s *session) refresh(now time.Time) (due bool) {
	for _, t := range s.tasks {
		if t.failure == nil && t.oldCheckpoint(now) {
			t.took, due = true, true
		}
	}
	return due
}

// oldCheckpoint reports whether the checkpoint row is so old that it is written anew.
func (t *task) oldCheckpoint(now time.Time) bool {
	return t.sub.NeedsRows && now.Sub(time.UnixMilli(t.checked)) >= refreshCheckpoint
}

// idle reports whether no polled record can be processed, and none is known to
// wait at the broker for a task that would take it.
func (s *session) idle(now time.Time) bool {
	if s.cl.BufferedFetchRecords() > 0 {
		return false
	}
	for _, t := range s.tasks {
		if t.ready(now) || !t.paused && t.backlog() {
			return false
		}
	}
	return true
}

// light reports whether the open cycle has few records.
func (s *session) light() bool {
	n := 0
	for _, t := range s.tasks {
		n += t.records
	}
	return n <= lightCycle
}

// commit ends the cycle: changelogs, flush, offsets and the end of the
// transaction; then, and only then, the state.
func (s *session) commit() error {
	started := time.Now()
	took := s.participants()
	s.mu.Lock()
	fence := s.fence
	s.mu.Unlock()

	offsets := map[string]map[int32]kafka.Offset{}
	for _, t := range took {
		if err := t.part.Err(); err != nil {
			return fmt.Errorf("%w: task %s: %w", errReopen, t.id, err)
		}
		t.offsets(offsets) // first: a strict step writes the position it holds
		if t.took {
			t.logChanges()
		}
	}
	outcome, err := s.endCycle(s.produceCtx, fence, took, offsets)
	s.began, s.lastCommit = false, time.Now()
	s.commitTime += (s.lastCommit.Sub(started) - s.commitTime) / 8
	if outcome == kafka.Committed {
		s.hasCommitted = true
		s.w.inst.metrics.committed(s.w.group, time.Since(started))
		return s.committed(took, offsets)
	}
	s.w.inst.metrics.aborted(s.w.group)
	failure, produce := errors.AsType[*kafka.ProduceError](err)
	switch {
	case outcome == kafka.Unknown:
		return fmt.Errorf("%w: commit: %w", errReopen, err)
	case outcome == kafka.Fenced:
		s.mu.Lock()
		s.stale = time.Now()
		s.mu.Unlock()
		s.log.Info("a rebalance overtook the transaction, its records are processed again", "error", err)
	case produce:
		if err := s.produceFailed(took, failure); err != nil {
			return err
		}
	case forbidden(err):
		// It would be refused again at once: the worker backs off.
		return fmt.Errorf("commit of group %q: %w", s.w.group, err)
	default:
		s.log.Warn("transaction aborted, its records are processed again", "error", err)
	}
	return s.rewind(took)
}

// forbidden reports whether err is about the rights of the instance.
func forbidden(err error) bool { return missingRight(err) != "" }

// missingRight says what to grant to be rid of err, "" if that is not its cause.
func missingRight(err error) string {
	switch {
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		return "grant Read and Describe on the group"
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		return "grant Write and Describe on transactional ids with the application's prefix"
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return "grant Read on the inputs, Write on the outputs, and Read, Write and Delete on topics with the application's prefix"
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		return "grant IdempotentWrite on the cluster"
	}
	return ""
}

// explained adds to err what to grant, if that is missing.
func explained(err error) error {
	if right := missingRight(err); right != "" {
		return fmt.Errorf("%w: %s", err, right)
	}
	return err
}

// participants are the tasks whose offsets the commit names.
func (s *session) participants() []*task {
	var took []*task
	for _, t := range s.tasks {
		if t.took || t.failure == nil && t.moved() {
			took = append(took, t)
		}
	}
	return took
}

// committed applies the committed changes to the state. A task whose batch fails
// must not run on behind its changelog: it stops and is reopened.
func (s *session) committed(took []*task, offsets map[string]map[int32]kafka.Offset) error {
	if s.isolate > 0 {
		s.isolate--
	}
	for _, t := range took {
		for _, in := range t.inputs {
			in.committed = offsets[in.topic][t.id.Partition]
		}
		if !t.took {
			continue
		}
		size := t.part.Size()
		if err := s.apply(t); err != nil {
			return fmt.Errorf("%w: task %s is behind its changelog: %w", errReopen, t.id, err)
		}
		if t.records > 0 {
			delete(s.parked, t.id)
		}
		t.startCalls()
		t.view.streamTime.Store(t.stream.Value())
		s.w.inst.metrics.processed(t, size)
		s.w.inst.observer.committed(t)
		t.endCycle()
	}
	return nil
}

// apply commits the changes of t to its state, and writes back what is due.
func (s *session) apply(t *task) error {
	if !t.sub.NeedsRows {
		return nil // nothing of it is kept
	}
	if err := t.part.Commit(); err != nil {
		return err
	}
	for store, r := range t.logged {
		pos := t.check.Logs[store]
		pos.Next = r.Offset + 1
		t.check.Logs[store] = pos
	}
	for _, in := range t.inputs {
		t.check.Inputs[state.TopicPartition{Topic: in.topic, Partition: t.id.Partition}] = in.committed.At
	}
	now := time.Now()
	t.check.Time = now.UnixMilli()
	if t.writeDue(now) || t.oldCheckpoint(now) {
		return t.writeBack()
	}
	return nil
}

// Committed rows are written back together: a row that changes with every cycle is
// written once for many. What a crash loses is restored from the changelog.
const (
	// writeEvery is how long committed rows may wait.
	writeEvery = time.Second
	// viewedFor is how long after a view has looked at a task its rows do not wait,
	// since views see what was written.
	viewedFor = 10 * time.Second
)

// writeDue reports whether committed rows are to be written back now.
func (t *task) writeDue(now time.Time) bool {
	bytes, since := t.part.Unwritten()
	return bytes > 0 && (t.part.Full() || now.Sub(since) >= writeEvery || t.part.Scanned() ||
		now.Sub(time.UnixMilli(t.view.looked.Load())) < viewedFor)
}

// writeBack writes the committed rows and the checkpoint that belongs to them in one
// batch. The checkpoint is as old as the last commit, which the group took.
func (t *task) writeBack() error {
	b := &state.Batch{}
	if err := t.check.AppendTo(b, t.id); err != nil {
		return err
	}
	if err := t.part.WriteBack(b); err != nil {
		return err
	}
	t.checked = t.check.Time
	return nil
}

// writeBehind writes back the rows that have waited long enough, of tasks that have
// nothing to commit.
func (s *session) writeBehind(now time.Time) error {
	for _, t := range s.tasks {
		if !t.took && t.failure == nil && t.writeDue(now) {
			if err := t.writeBack(); err != nil {
				return fmt.Errorf("%w: task %s cannot write its rows: %w", errReopen, t.id, err)
			}
		}
	}
	return nil
}

// produceFailed looks into records that were not written. A rejection that
// concerns a record is traced to its source record, by replaying one at a time;
// any other is nobody's record and ends the session.
func (s *session) produceFailed(took []*task, failure *kafka.ProduceError) error {
	first := failure.Failures[0]
	if !kafka.IsRecordError(first.Err) {
		return fmt.Errorf("produce to %q: %w: check that the topic exists and that writing to it is allowed", first.Record.Topic, first.Err)
	}
	if s.isolate == 0 {
		s.log.Warn("the broker rejected a record, looking for its source", "topic", first.Record.Topic, "error", first.Err)
		for _, t := range took {
			s.isolate += t.records + 1
		}
		return nil
	}
	err := produceError(first.Record.Topic, "the broker rejected the record: %w", first.Err)
	for _, t := range took {
		switch {
		case !t.took:
			continue
		case t.last.topic == "":
			// An output without a source record, of a punctuation: it is dead-lettered
			// itself when it comes again.
			t.refused = append(t.refused, first.Record)
			continue
		case first.Record.Topic == t.sub.DeadLetterTopic:
			t.refusedDeadLetter = t.last
		}
		if t.condemned == nil {
			t.condemned = map[position]error{}
		}
		t.condemned[t.last] = err
	}
	return nil
}

// rewind takes all tasks that took part back to the committed state and seeks
// their inputs.
func (s *session) rewind(took []*task) error {
	for _, t := range took {
		if err := t.abort(); err != nil {
			return fmt.Errorf("%w: task %s after an abort: %w", errReopen, t.id, err)
		}
	}
	s.seek(took...)
	return nil
}
