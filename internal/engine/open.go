package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// An opening is a task being opened: its state is restored while the worker goes
// on with its other tasks.
type opening struct {
	id     state.TaskID
	cancel context.CancelFunc
	owned  bool // the task was acquired
	task   *task
	err    error
}

// adopt brings the tasks in line with the assignment: it releases those whose
// partitions are gone, opens those whose partitions are all here, and starts
// those that have been restored.
func (s *session) adopt() error {
	s.mu.Lock()
	rejoined, changed := s.rejoined, s.changed
	s.changed = false
	s.mu.Unlock()
	if rejoined {
		return fmt.Errorf("%w: the group has given this worker a new member id", errReopen)
	}
	if changed {
		s.reassign()
	}
	for {
		select {
		case o := <-s.opened:
			s.admit(o)
		default:
			return s.reopenFailed(time.Now())
		}
	}
}

func (s *session) reassign() {
	s.mu.Lock()
	wanted := s.complete()
	s.mu.Unlock()
	for id, t := range s.tasks {
		if _, ok := wanted[id]; !ok {
			s.release(t)
		}
	}
	for id, o := range s.opening {
		if _, ok := wanted[id]; !ok {
			o.cancel()
		}
	}
	for id, starts := range wanted {
		if s.tasks[id] == nil && s.opening[id] == nil {
			s.startOpening(id, starts)
		}
	}
}

// complete returns the tasks all of whose partitions are owned and have a known
// start, with the starts by topic. The caller holds mu.
func (s *session) complete() map[state.TaskID]map[string]start {
	wanted := map[state.TaskID]map[string]start{}
	for _, sub := range s.w.subs {
		for p := range s.w.inst.plan.tasks[sub.Name] {
			starts := map[string]start{}
			all := true
			for _, topic := range inputTopics(sub) {
				if p >= s.w.inst.plan.partitions[topic] {
					continue
				}
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

func (s *session) startOpening(id state.TaskID, starts map[string]start) {
	ctx, cancel := context.WithCancel(s.ctx)
	o := &opening{id: id, cancel: cancel}
	s.opening[id] = o
	go func() {
		if o.err = s.w.inst.acquireTask(ctx, id); o.err == nil {
			o.owned = true
			o.task, o.err = s.openTask(ctx, id, starts)
		}
		s.opened <- o
	}()
}

// admit takes over an opened task and lets its partitions flow.
func (s *session) admit(o *opening) {
	delete(s.opening, o.id)
	s.mu.Lock()
	_, wanted := s.complete()[o.id]
	s.mu.Unlock()
	if o.err != nil || !wanted {
		s.discard(o)
		if wanted {
			s.log.Error("task cannot be opened", "task", o.id.String(), "error", o.err)
			s.w.inst.setStateOf(o.id, Parked, o.err)
			s.park(o.id)
		}
		return
	}
	s.tasks[o.id] = o.task
	partitions := map[string][]int32{}
	for _, in := range o.task.inputs {
		partitions[in.topic] = []int32{o.id.Partition}
	}
	s.cl.ResumeFetchPartitions(partitions)
	o.task.view.streamTime.Store(o.task.stream.Value())
	s.w.inst.goesLive(o.task)
	s.w.inst.setState(o.task, Running, nil)
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

// reopenAfter is how long a task that failed stays parked before it is tried
// again; it doubles up to a minute.
const reopenAfter = time.Second

// A parked task waits to be opened again.
type parked struct {
	at    time.Time
	tries int
}

func (s *session) park(id state.TaskID) {
	p := s.parked[id]
	p.tries++
	p.at = time.Now().Add(min(reopenAfter<<min(p.tries-1, 6), time.Minute))
	s.parked[id] = p
}

// reopenFailed ends the session when it is time to try a parked task again and
// nothing is open: all tasks then start from the broker's offsets.
func (s *session) reopenFailed(now time.Time) error {
	for id, p := range s.parked {
		if now.Before(p.at) || s.began {
			continue
		}
		s.mu.Lock()
		starts, wanted := s.complete()[id]
		s.mu.Unlock()
		if !wanted {
			delete(s.parked, id)
			continue
		}
		if s.opening[id] == nil && s.tasks[id] == nil {
			p.at = now.Add(time.Hour) // set anew by park if it fails again
			s.parked[id] = p
			s.startOpening(id, starts)
		}
	}
	return nil
}

// release closes a task and gives it free for another worker or instance. Its
// running calls get the time of the hand-over to end.
func (s *session) release(t *task) {
	delete(s.tasks, t.id)
	s.w.inst.leaves(t)
	s.w.inst.calls.HandOver(t.id)
	t.close()
	s.w.inst.releaseTask(t.id)
	s.w.inst.setState(t, Rebalancing, nil)
}

// openTask restores the state of a task and starts its operators.
func (s *session) openTask(ctx context.Context, id state.TaskID, starts map[string]start) (_ *task, err error) {
	inst := s.w.inst
	if err := inst.condemnation(id.SubTopology); err != nil {
		return nil, err
	}
	inst.setStateOf(id, Restoring, nil)
	sub := inst.sub(id.SubTopology)
	t := &task{
		id: id, sub: sub, inst: inst, maxIdle: inst.cfg.MaxTaskIdle, produce: s.produce, logged: map[string]*kgo.Record{},
		log: inst.log.With("task", id.String()),
	}
	t.ctx, t.cancel = context.WithCancel(s.produceCtx) // not s.ctx: a drain lets callbacks finish
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if err := t.begin(ctx, starts); err != nil {
		return nil, err
	}
	if err := inst.restore(ctx, t); err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	t.part = inst.partition(id, sub)
	t.stream = t.part.Cell("stream-time")
	for _, in := range t.inputs {
		in.seen = t.part.Cell("read:" + in.topic)
	}
	if err := t.refuseStartOver(starts); err != nil {
		return nil, err
	}
	if t.pipe, err = sub.Start(t); err != nil {
		return nil, fmt.Errorf("start the operators: %w", err)
	}
	t.feed, err = kafka.NewFeed(kafka.FeedConfig{
		Group: sub.GokaGroup, Inputs: t.feedInputs(), Loop: sub.LoopTopic != "", Outputs: sinkTopics(sub), Persist: sub.NeedsRows,
		Partition: id.Partition, Logger: t.log, Handle: t.run,
	})
	if err != nil {
		return nil, err
	}
	if err := t.feed.Start(ctx); err != nil {
		return nil, err
	}
	t.now = time.Now()
	if err := t.guard(t.pipe.Reset); err != nil {
		return nil, fmt.Errorf("rebuild the operators: %w", err)
	}
	return t, nil
}

// begin sets up the inputs at their starts.
func (t *task) begin(ctx context.Context, starts map[string]start) error {
	partitions := map[string][]int32{}
	for topic := range starts {
		partitions[topic] = []int32{t.id.Partition}
	}
	ends, err := kafka.ListOffsets(ctx, t.inst.plain, kafka.LastStable, partitions)
	if err != nil {
		return err
	}
	var errs []error
	for i, topic := range inputTopics(t.sub) {
		at, ok := starts[topic]
		if !ok {
			continue // the topic has fewer partitions
		}
		errs = append(errs, at.err)
		t.inputs = append(t.inputs, &input{
			topic: topic, source: i, loop: topic == t.sub.LoopTopic,
			timestamp: timestampOf(t.sub, i), position: at.at, committed: at.at, fetched: at.at, end: ends[topic][t.id.Partition],
		})
	}
	return errors.Join(errs...)
}

// timestampOf is the timestamp extractor of a source, nil for the loop and for
// sources that use the record's own.
func timestampOf(sub *topology.SubTopology, source int) func(*processors.Raw, int64) (int64, error) {
	if source < len(sub.Sources) {
		return sub.Sources[source].Timestamp
	}
	return nil
}

// refuseStartOver fails when the state has read a topic for which the group has no
// offset any more: to start over would count everything twice.
func (t *task) refuseStartOver(starts map[string]start) error {
	for _, in := range t.inputs {
		if t.sub.NeedsRows && starts[in.topic].fresh && in.seen.Value() >= 0 {
			return fmt.Errorf("group %q has no offset for %s/%d, but the state of task %s has read that topic: set the group's offset back, or remove the state directory and the changelogs to start over",
				t.sub.KafkaGroup, in.topic, t.id.Partition, t.id)
		}
	}
	return nil
}

// feedInputs are the topics of the goka group's Input edges.
func (t *task) feedInputs() []string {
	var topics []string
	for _, src := range t.sub.Sources {
		topics = append(topics, src.Topic)
	}
	return topics
}

func sinkTopics(sub *topology.SubTopology) []string {
	var topics []string
	for _, sink := range sub.Sinks {
		topics = append(topics, sink.Topic)
	}
	return topics
}
