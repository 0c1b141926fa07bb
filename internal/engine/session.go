package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
)

// errReopen ends a session whose client must not be used any more: the worker
// opens a new one with the same ids, and its tasks start again from the offsets
// on the broker and their local checkpoints.
var errReopen = errors.New("the worker's client has to be replaced")

// A session is one life of a worker's client. Every way to recover from an
// uncertain state is to end it and to open the next.
//
// The worker's goroutine runs loop and owns all fields but those behind mu, which
// the client's rebalance callbacks share.
type session struct {
	w   *worker
	cl  *kgo.Client
	log *slog.Logger
	ctx context.Context
	// ledger ends the cycles; produceCtx is the client's: it outlives ctx, since what
	// is produced is committed or aborted, and ends with cancel.
	ledger     *kafka.Ledger
	produceCtx context.Context
	cancel     context.CancelFunc // ends the client

	mu       sync.Mutex
	fence    kafka.Fence
	owned    map[string]map[int32]bool
	starts   map[string]map[int32]start
	changed  bool                  // owned or starts changed since the worker looked
	lost     map[state.TaskID]bool // tasks that lost a partition since then
	rejoined bool                  // the member id is a new one
	assigned time.Time             // when the last assignment came
	// stale is since when a rebalance has fenced the last cycle: no task gets a turn
	// before the next assignment.
	stale time.Time

	tasks   map[state.TaskID]*task
	opening map[state.TaskID]*opening
	opened  chan *opening
	parked  map[state.TaskID]parked

	// the open transaction
	began        bool
	lastCommit   time.Time
	hasCommitted bool
	commitTime   time.Duration // how long commits take, smoothed
	lastRecord   time.Time     // when the last record was polled

	// the ends of the inputs, see lookAtEnds
	ends   chan endsLook
	asking bool
	asked  time.Time

	// isolate replays one source record per transaction, to find the one whose
	// output the broker rejects.
	isolate int

	plantedTxn atomic.Bool // for bugFailedProduce: the ledger has begun
}

// open connects: it ends the transaction that an earlier life may have left
// open, and joins the group.
func (w *worker) open(ctx context.Context) (*session, error) {
	s := &session{
		w: w, log: w.log, ctx: ctx,
		owned: map[string]map[int32]bool{}, starts: map[string]map[int32]start{},
		tasks: map[state.TaskID]*task{}, opening: map[state.TaskID]*opening{}, opened: make(chan *opening, 16),
		parked: map[state.TaskID]parked{}, lost: map[state.TaskID]bool{}, ends: make(chan endsLook, 1),
		lastCommit: time.Now(),
	}
	opts := w.cfg.Kafka.WorkerOpts(kafka.Worker{
		Group: w.group, TransactionalID: w.transactionalID, InstanceID: w.instanceID, Broker: w.inst.broker,
		Topics: w.topics(), Balancer: w.balancer, BatchBytes: w.inst.batchBytes,
		OnAssigned: s.onAssigned, OnRevoked: s.onRevoked, OnLost: s.onRevoked, AdjustOffsets: s.onOffsets,
	})
	s.produceCtx, s.cancel = outlive(ctx, drainPatience)
	cl, err := kgo.NewClient(append(opts, kgo.KeepControlRecords(), kgo.WithContext(s.produceCtx))...)
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("kafka client of group %q: %w", w.group, err)
	}
	s.cl = cl
	if s.ledger, err = kafka.NewLedger(ctx, cl, w.inst.broker); err != nil {
		s.cancel()
		cl.Close()
		return nil, err
	}
	return s, nil
}

// outlive returns a context that ends by cancel, or for so long after ctx.
func outlive(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(patience, cancel) })
	return longer, func() { stop(); cancel() }
}

// onAssigned records the fence: member and generation as of now, never as read
// at commit time, when the client may have rejoined silently.
func (s *session) onAssigned(_ context.Context, cl *kgo.Client, added map[string][]int32) {
	fence := kafka.FenceOf(cl)
	cl.PauseFetchPartitions(added)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fence.MemberID != "" && s.fence.MemberID != fence.MemberID {
		s.rejoined = true
	}
	s.fence, s.stale, s.assigned = fence, time.Time{}, time.Now()
	s.w.inst.assigned(s.w)
	s.w.rebalanceIfNew(cl)
	for topic, partitions := range added {
		for _, p := range partitions {
			set(s.owned, topic, p, true)
		}
	}
	s.changed = true
}

// onRevoked forgets partitions. Nothing is uncommitted when the client calls it:
// rebalances are blocked from a poll to the end of its transaction.
func (s *session) onRevoked(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for topic, partitions := range gone {
		for _, p := range partitions {
			s.lost[s.w.taskOf(topic, p)] = true
			delete(s.owned[topic], p)
			delete(s.starts[topic], p)
		}
	}
	s.changed = true
}

// onOffsets decides where new partitions begin: at the group's offset, else by
// the source's start policy.
func (s *session) onOffsets(ctx context.Context, fetched map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	starts, err := s.w.startOffsets(ctx, fetched)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for topic, partitions := range fetched {
		for p := range partitions {
			at := starts[topic][p]
			set(s.starts, topic, p, at)
			partitions[p] = kgo.NewOffset().At(max(at.at.At, 0)).WithEpoch(at.at.Epoch)
		}
	}
	s.changed = true
	return fetched, nil
}

func set[V any](m map[string]map[int32]V, topic string, p int32, v V) {
	if m[topic] == nil {
		m[topic] = map[int32]V{}
	}
	m[topic][p] = v
}

// loop polls, processes and commits until ctx ends (nil) or the session must end.
func (s *session) loop(ctx context.Context) error {
	for {
		if err := s.poll(ctx); err != nil {
			return err
		}
		if err := s.adopt(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return s.drain()
		}
		if err := s.turn(); err != nil {
			return err
		}
		if s.due(time.Now()) {
			if err := s.commit(); err != nil {
				return err
			}
		}
		if err := s.writeBehind(time.Now()); err != nil {
			return err
		}
		s.parkFailed()
		s.lookAtEnds(ctx, time.Now())
		s.finishRebalance(time.Now())
		if !s.began {
			s.cl.AllowRebalance()
		}
	}
}

// unfinishedPatience is how long a worker waits for the second round of a rebalance
// before it asks for it itself.
const unfinishedPatience = 5 * time.Second

// finishRebalance asks for the rebalance that must follow the last one, if nobody
// else does: who had to may have died.
func (s *session) finishRebalance(now time.Time) {
	s.mu.Lock()
	assigned := s.assigned
	s.mu.Unlock()
	if assigned.IsZero() || !s.w.balancer.Unfinished() || now.Sub(assigned) < unfinishedPatience {
		return
	}
	s.mu.Lock()
	s.assigned = now
	s.mu.Unlock()
	s.log.Info("tasks were given up for others to take and were not assigned since, asking for a rebalance")
	s.w.balancer.Bump()
	s.cl.ForceRebalance()
}

// pollMax bounds the records of one poll, bufferBytes what a task holds of polled
// records before its sources are paused.
const (
	pollMax     = 10_000
	bufferBytes = 16 << 20
)

// poll waits for records until the next thing is due.
func (s *session) poll(ctx context.Context) error {
	wait := s.patience(time.Now())
	pollCtx, cancel := context.WithTimeout(ctx, wait)
	fetches := s.cl.PollRecords(pollCtx, pollMax)
	cancel()
	if fetches.IsClientClosed() {
		return fmt.Errorf("%w: it was closed", errReopen)
	}
	var failure error
	fetches.EachError(func(topic string, partition int32, err error) {
		switch {
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		case kerr.IsRetriable(err):
			s.log.Warn("fetch failed, retrying", "topic", topic, "partition", partition, "error", err)
		case topic == "":
			failure = fmt.Errorf("%w: fetch: %w", errReopen, err)
		default:
			s.fetchFailed(topic, partition, err)
		}
	})
	if failure != nil {
		return failure
	}
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if failure != nil || len(p.Records) == 0 {
			return
		}
		s.lastRecord = time.Now()
		in := s.input(p.Topic, p.Partition)
		if in == nil {
			return // lost meanwhile, or stopped: whoever opens it seeks its offsets
		}
		if !in.add(p.Records) {
			failure = fmt.Errorf("%w: %s/%d jumped back to offset %d", errReopen, p.Topic, p.Partition, p.Records[0].Offset)
		}
		in.end = max(in.end, p.LastStableOffset)
	})
	return failure
}

// fetchFailed stops the task that reads a partition, and only that.
func (s *session) fetchFailed(topic string, partition int32, err error) {
	if truncated, ok := errors.AsType[*kgo.ErrDataLoss](err); ok {
		s.w.inst.truncated(groupPartition{s.w.group, topic, partition}, truncated)
	}
	if oversized, ok := errors.AsType[*kgo.ErrDecompressTooLarge](err); ok {
		s.w.inst.oversized(groupPartition{s.w.group, topic, partition}, oversized)
	}
	id, err := s.w.taskOf(topic, partition), s.w.fetchError(topic, partition, err)
	s.mu.Lock()
	owned := s.owned[topic][partition]
	s.mu.Unlock()
	switch t, o, p := s.tasks[id], s.opening[id], s.parked[id]; {
	case t != nil && t.failure == nil:
		t.stop(err)
	case o != nil:
		o.failure = err
	case t == nil && p.tries == 0 && owned: // just assigned
		s.parkAs(id, err)
	}
}

func (s *session) input(topic string, partition int32) *input {
	t := s.tasks[s.w.taskOf(topic, partition)]
	if t == nil || t.failure != nil {
		return nil
	}
	for _, in := range t.inputs {
		if in.topic == topic {
			return in
		}
	}
	return nil
}

// housekeeping is the longest a worker waits without looking at its tasks, openingLook the
// same while some are being opened.
const (
	housekeeping = 250 * time.Millisecond
	openingLook  = 20 * time.Millisecond
)

// patience is how long a poll may wait: until the commit is due, a retry or a
// punctuation, and not longer than the housekeeping interval.
func (s *session) patience(now time.Time) time.Duration {
	wait := housekeeping
	if len(s.opening) > 0 {
		wait = openingLook
	}
	if s.began {
		wait = min(wait, s.interval()-now.Sub(s.lastCommit))
		if s.light() {
			wait = min(wait, s.idleGap()-now.Sub(s.lastCommit))
		}
	}
	for _, t := range s.tasks {
		if t.ready(now) {
			return time.Millisecond
		}
		if t.retryAt.After(now) {
			wait = min(wait, t.retryAt.Sub(now))
		}
		if next := t.timers.NextWallClock(); next.After(now) {
			wait = min(wait, next.Sub(now))
		}
	}
	return max(wait, time.Millisecond)
}

// stalePatience is how long a fenced worker waits for its next assignment: a
// rebalance ends before that, unless the answer that told of it was wrong.
const stalePatience = 2 * kafka.RebalanceTimeout

// turn gives every task that has something to do a turn, all at once, and waits
// for them: never for a model call, since calls run elsewhere.
func (s *session) turn() error {
	s.mu.Lock()
	stale := s.stale
	s.mu.Unlock()
	now := time.Now()
	switch {
	case stale.IsZero():
	case now.Sub(stale) > stalePatience:
		return fmt.Errorf("%w: a rebalance fenced it %s ago and no assignment has followed", errReopen, stalePatience)
	default:
		return nil
	}
	deadline := s.lastCommit.Add(s.interval())
	if floor := now.Add(s.w.cfg.CommitInterval / 4); deadline.Before(floor) {
		deadline = floor
	}
	type running struct {
		t    *task
		done <-chan error
	}
	var started []running
	for _, t := range s.tasks {
		if !t.ready(now) {
			continue
		}
		s.began = true
		t.deadline, t.limit = deadline, 0
		if s.isolate > 0 {
			t.limit = 1
		}
		started = append(started, running{t, t.feed.Begin(t.inputs[0].topic, t)})
		if s.isolate > 0 {
			break
		}
	}
	for _, r := range started {
		if err := s.await(r.t, r.done); err != nil && r.t.failure == nil {
			r.t.stop(fmt.Errorf("goka processor: %w", err))
		}
	}
	s.manageFlow()
	return nil
}

// slowCallback is how long a task's callback may run before it is reported.
const slowCallback = 10 * time.Second

// errStuck is the state of a task whose callback does not return.
var errStuck = errors.New("a callback has not returned")

// await waits for a task's turn. A callback that does not return parks the
// worker, which is reported by name.
func (s *session) await(t *task, done <-chan error) error {
	timer := time.NewTimer(slowCallback)
	defer timer.Stop()
	stuck := false
	for {
		select {
		case err := <-done:
			if stuck {
				s.w.inst.setState(t, Running, nil)
			}
			return err
		case <-timer.C:
			stuck = true
			at := t.at.Load()
			if at == nil {
				at = &kgo.Record{}
			}
			s.log.Error("a callback has not returned: its worker waits for it", "task", t.id.String(), "topic", at.Topic, "offset", at.Offset, "for", slowCallback)
			s.w.inst.setState(t, Parked, errStuck)
			timer.Reset(slowCallback)
		}
	}
}

// produce hands a record to the open transaction; a failure is kept for the
// commit.
func (s *session) produce(r *kgo.Record) {
	if s.w.cfg.planted == bugFailedProduce && s.plantedTxn.Swap(true) {
		s.cl.Produce(s.produceCtx, r, nil)
		return
	}
	s.ledger.Produce(s.produceCtx, r)
}

// manageFlow pauses the sources of tasks that take no more records and resumes
// those that do; the loop is never paused.
func (s *session) manageFlow() {
	now := time.Now()
	for _, t := range s.tasks {
		t.observeView(now)
		if err := t.inst.condemnation(t.id.SubTopology); err != nil && t.failure == nil {
			t.stop(err)
		}
		if t.failure != nil {
			continue // parkFailed pauses all of it
		}
		full := !t.pipe.Capacity() || t.inst.isPaused(t.id) || s.tooFarAhead(t)
		if full == t.paused {
			continue
		}
		t.paused = full
		sources := t.partitions()
		delete(sources, t.sub.LoopTopic)
		if full {
			s.cl.PauseFetchPartitions(sources)
		} else {
			s.cl.ResumeFetchPartitions(sources)
		}
	}
}

// tooFarAhead reports whether a task that waits holds so many polled records that
// polling more would only fill memory.
func (s *session) tooFarAhead(t *task) bool {
	records, bytes := t.buffered()
	if t.paused { // resumed when half of it is done
		records, bytes = 2*records, 2*bytes
	}
	return records > 2*pollMax || bytes > bufferBytes
}

// The end of a session does not wait for brokers that do not answer: for drainPatience
// for the last commit, for closePatience for the abort of what is open, which the
// broker else aborts when its time is over, and as long to leave the group.
const (
	drainPatience = 8 * time.Second
	closePatience = 3 * time.Second
)

// drain commits what is open and lets the tasks go: the orderly end.
func (s *session) drain() error {
	if s.began {
		if err := s.commit(); err != nil {
			return err
		}
	}
	s.cl.AllowRebalance()
	return nil
}

// close ends the session's tasks and its client. With leave it lets the tasks go
// and leaves the group, which a static member's client does not by itself; else the
// next session is expected to get them back, and their calls go on.
func (s *session) close(leave bool) {
	for _, t := range s.sorted() {
		if leave {
			s.release(t)
			continue
		}
		s.w.former[t.id] = true
		s.drop(t)
		s.w.inst.setState(t, Rebalancing, nil)
	}
	for _, o := range s.opening {
		o.cancel()
	}
	for len(s.opening) > 0 {
		o := <-s.opened
		delete(s.opening, o.id)
		s.discard(o)
	}
	time.AfterFunc(closePatience, s.cancel)
	if s.began {
		if _, err := s.ledger.Abort(); err != nil {
			s.log.Debug("abort at the end of the session", "error", err)
		}
	}
	// Without this the client waits for the answer to a join that is under way.
	s.cancel()
	s.cl.CloseAllowingRebalance()
	if !leave {
		return
	}
	// Only now: a client that still beats would join again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), closePatience)
	defer cancel()
	if err := kafka.LeaveGroup(ctx, s.w.inst.plain, s.w.group, s.w.instanceID); err != nil {
		s.log.Warn("leaving the group", "error", err)
	}
}
