package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
)

// An opening is a task being opened: its state is restored while the worker goes
// on with its other tasks.
type opening struct {
	id     state.TaskID
	cancel context.CancelFunc
	void   bool // a partition was revoked meanwhile: what it read may be old
	seek   bool // its partitions are not at its starts: it was parked before
	owned  bool // the task was acquired
	// failure is a fetch error of a partition of it: the client is not where the task
	// would begin. The worker's goroutine sets it.
	failure error
	task    *task
	err     error
}

// adopt brings the tasks in line with the assignment: it releases those that lost
// a partition, opens those whose partitions are all here, and starts those that
// have been restored.
func (s *session) adopt() error {
	s.mu.Lock()
	rejoined, changed, lost := s.rejoined, s.changed, s.lost
	s.changed, s.lost = false, map[state.TaskID]bool{}
	s.mu.Unlock()
	if rejoined && s.w.cfg.planted != bugOldPositions {
		return fmt.Errorf("%w: the group has given this worker a new member id", errReopen)
	}
	// Also a partition that came back since is not what it was: another owner may
	// have committed in between.
	for id := range lost {
		delete(s.parked, id)
		t, o := s.tasks[id], s.opening[id]
		switch {
		case t != nil:
			s.release(t)
		case o != nil: // admit hands its calls over
			o.void = true
			o.cancel()
		default: // it was parked
			s.w.handOver(id)
		}
	}
	if changed {
		s.reassign()
	}
	for {
		select {
		case o := <-s.opened:
			s.admit(o)
		default:
			s.reopen(time.Now())
			return nil
		}
	}
}

func (s *session) reassign() {
	wanted := s.wanted()
	for id := range s.parked {
		if _, ok := wanted[id]; !ok {
			delete(s.parked, id)
		}
	}
	for id, starts := range wanted {
		if _, waits := s.parked[id]; waits {
			continue // the client is not at its starts any more
		}
		if s.tasks[id] == nil && s.opening[id] == nil {
			s.startOpening(&opening{id: id}, func(context.Context) (map[string]start, error) { return starts, nil })
		}
	}
	s.w.disown(wanted)
}

// wanted returns the tasks all of whose partitions are owned and have a known
// start, with the starts by topic.
func (s *session) wanted() map[state.TaskID]map[string]start {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[state.TaskID]map[string]start{}
	for _, sub := range s.w.subs {
		for p := range s.w.inst.plan.tasks[sub.Name] {
			starts := map[string]start{}
			all := true
			for _, topic := range s.w.inst.topicsOf(sub, p) {
				at, known := s.starts[topic][p]
				all = all && known && s.owned[topic][p]
				starts[topic] = at
			}
			if all {
				wanted[state.TaskID{SubTopology: sub.Name, Partition: p}] = starts
			}
		}
	}
	return wanted
}

func (s *session) startOpening(o *opening, starts func(context.Context) (map[string]start, error)) {
	var ctx context.Context
	ctx, o.cancel = context.WithCancel(s.ctx)
	s.opening[o.id] = o
	go func() { // ends with the opening, which s.opened takes
		if o.err = s.w.inst.acquireTask(ctx, o.id); o.err == nil {
			o.owned = true
			o.task, o.err = s.openFrom(ctx, o.id, starts)
		}
		s.opened <- o
	}()
}

// openFrom opens a task at the starts that are looked up for it. What condemns its
// sub-topology goes before: without its topics nothing can be looked up, which says less.
func (s *session) openFrom(ctx context.Context, id state.TaskID, starts func(context.Context) (map[string]start, error)) (*task, error) {
	if err := s.w.inst.condemnation(id.SubTopology); err != nil {
		return nil, err
	}
	at, err := starts(ctx)
	if err != nil {
		return nil, err
	}
	return s.openTask(ctx, id, at)
}

// admit takes over an opened task and lets its partitions flow.
func (s *session) admit(o *opening) {
	delete(s.opening, o.id)
	if o.err == nil {
		o.err = o.failure
	}
	_, wanted := s.wanted()[o.id]
	switch {
	case !wanted || o.void:
		s.discard(o)
		s.w.handOver(o.id)
		s.w.inst.setStateOf(o.id, Rebalancing, nil)
		if wanted { // it came back
			s.mu.Lock()
			s.changed = true
			s.mu.Unlock()
		}
		return
	case o.err != nil:
		s.discard(o)
		s.parkAs(o.id, o.err)
		return
	}
	t := o.task
	s.tasks[o.id] = t
	if o.seek {
		s.seek(t)
	}
	s.cl.ResumeFetchPartitions(t.partitions())
	t.view.streamTime.Store(t.stream.Value())
	t.view.caughtUp.Store(time.Now().UnixMilli())
	s.w.inst.goesLive(t)
	s.w.inst.setState(t, Running, nil)
}

// seek moves the client to the committed positions of a task.
func (s *session) seek(tasks ...*task) {
	to := map[string]map[int32]kgo.EpochOffset{}
	for _, t := range tasks {
		for _, in := range t.inputs {
			if in.loop && s.w.cfg.planted == bugLoopNotRewound {
				continue
			}
			set(to, in.topic, t.id.Partition, kgo.EpochOffset{Epoch: in.committed.Epoch, Offset: in.committed.At})
		}
	}
	s.cl.SetOffsets(to)
}

// discard undoes an opening.
func (s *session) discard(o *opening) {
	o.cancel()
	if o.task != nil {
		o.task.close()
	}
	if o.owned {
		s.w.inst.releaseTask(o.id)
	}
}

// A parked task waits to be opened again. It is remembered until it has committed a
// record: one that opens well and stops at its first record has not come back.
type parked struct {
	at    time.Time
	tries int
}

// Parked tasks are tried again after parkedFor, doubled up to parkedMax.
const (
	parkedFor = time.Second
	parkedMax = time.Minute
)

// parkAs parks a task that is not open.
func (s *session) parkAs(id state.TaskID, err error) {
	s.log.Error("task cannot be opened, it is parked", "task", id.String(), "error", err)
	s.w.inst.setStateOf(id, Parked, err)
	s.park(id)
}

func (s *session) park(id state.TaskID) {
	p := s.parked[id]
	p.tries++
	p.at = time.Now().Add(min(parkedFor<<min(p.tries-1, 6), parkedMax))
	s.parked[id] = p
}

// parkFailed takes tasks that stopped, once nothing of them is uncommitted, out of
// the session until they are tried again. Their partitions stay paused.
func (s *session) parkFailed() {
	if s.began {
		return
	}
	for _, t := range s.tasks {
		if t.failure == nil {
			continue
		}
		s.cl.PauseFetchPartitions(t.partitions())
		err := t.failure
		s.drop(t)
		s.w.inst.setState(t, Parked, err)
		s.park(t.id)
	}
}

// reopen tries parked tasks again when it is time, from the offsets on the broker.
func (s *session) reopen(now time.Time) {
	for id, p := range s.parked {
		if now.Before(p.at) || s.opening[id] != nil || s.tasks[id] != nil {
			continue
		}
		s.startOpening(&opening{id: id, seek: true}, func(ctx context.Context) (map[string]start, error) {
			return s.w.currentStarts(ctx, id)
		})
	}
}

// currentStarts reads where a task's partitions begin now: the group's offsets may
// have been mended since they were assigned.
func (w *worker) currentStarts(ctx context.Context, id state.TaskID) (map[string]start, error) {
	parts := map[string][]int32{}
	fetched := map[string]map[int32]kgo.Offset{}
	for _, topic := range w.inst.topicsOf(w.inst.sub(id.SubTopology), id.Partition) {
		parts[topic] = []int32{id.Partition}
		set(fetched, topic, id.Partition, kgo.NewOffset().AtStart())
	}
	committed, err := kafka.FetchOffsets(ctx, w.inst.plain, w.group, parts)
	if err != nil {
		return nil, err
	}
	for topic, ps := range committed {
		for p, at := range ps {
			set(fetched, topic, p, kgo.NewOffset().At(at.At).WithEpoch(at.Epoch))
		}
	}
	all, err := w.startOffsets(ctx, fetched)
	if err != nil {
		return nil, err
	}
	starts := map[string]start{}
	for topic, ps := range all {
		starts[topic] = ps[id.Partition]
	}
	return starts, nil
}

// drop closes a task and gives it free. Its running calls go on: the task may come
// back to this instance.
func (s *session) drop(t *task) {
	delete(s.tasks, t.id)
	s.w.inst.leaves(t)
	t.close()
	s.w.inst.releaseTask(t.id)
}

// release lets a task go to another owner. Its running calls get the time of the
// hand-over to end.
func (s *session) release(t *task) {
	s.drop(t)
	s.w.inst.calls.HandOver(t.id)
	s.w.inst.setState(t, Rebalancing, nil)
}

// disown hands over the calls of tasks that a former session had and this one was
// not given, unless another worker of the instance has them.
func (w *worker) disown(wanted map[state.TaskID]map[string]start) {
	for id := range w.former {
		if _, ok := wanted[id]; !ok {
			w.handOver(id)
		}
	}
	clear(w.former)
}

// handOver gives up the calls of a task that this worker had and has not open, unless
// another worker of the instance has it: the next owner asks again what nobody
// answers or releases in time.
func (w *worker) handOver(id state.TaskID) {
	if !w.inst.isOwned(id) {
		w.inst.calls.HandOver(id)
	}
}

// sorted returns the session's tasks in order.
func (s *session) sorted() []*task {
	return slices.SortedFunc(maps.Values(s.tasks), func(a, b *task) int { return compareTaskIDs(a.id, b.id) })
}
