package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// A worker is one member of one Kafka group with one transactional producer. It
// lives as long as the instance; its client is replaced whenever its state is in
// doubt (see session).
type worker struct {
	inst            *Instance
	cfg             *Config
	log             *slog.Logger
	group           string
	index           int
	subs            []*topology.SubTopology
	transactionalID string
	instanceID      string
	balancer        *kafka.Balancer

	byTopic    map[string]*topology.SubTopology // the sub-topology that reads a topic
	ownerless  map[state.TaskID]bool            // tasks that nobody in the group can take, on the leader
	announced  bool                             // rebalanceIfNew has looked
	former     map[state.TaskID]bool            // tasks of the session before, whose calls go on
	changelogs map[string]bool
}

func newWorker(inst *Instance, g groupPlan, index int) *worker {
	id := fmt.Sprintf("%s-%s-%d", g.name, inst.id, index)
	w := &worker{
		inst: inst, cfg: inst.cfg, group: g.name, index: index, subs: g.subs,
		log:             inst.log.With("group", g.name, "worker", index),
		transactionalID: id, instanceID: id,
		byTopic: map[string]*topology.SubTopology{}, changelogs: map[string]bool{}, former: map[state.TaskID]bool{},
	}
	for _, sub := range g.subs {
		for _, topic := range inputTopics(sub) {
			w.byTopic[topic] = sub
		}
		for _, log := range sub.Changelogs() {
			w.changelogs[log.Topic] = true
		}
	}
	w.balancer = kafka.NewBalancer(kafka.BalancerConfig{
		Subs: w.balanced(), Instance: inst.id, Worker: index, Held: w.held, OnUnassigned: w.unassigned, Logger: w.log,
	})
	return w
}

// balanced describes the worker's sub-topologies to the assignor.
func (w *worker) balanced() []kafka.SubTopology {
	var subs []kafka.SubTopology
	for _, sub := range w.subs {
		subs = append(subs, kafka.SubTopology{
			Name: sub.Name, Fingerprint: sub.Fingerprint, Topics: inputTopics(sub), CoPartitioned: sub.CoPartitioned,
			Partitions: w.inst.plan.tasks[sub.Name],
		})
	}
	return subs
}

// held are the tasks of the group whose state the instance has on disk.
func (w *worker) held() []kafka.HeldTask {
	var held []kafka.HeldTask
	for _, sub := range w.subs {
		for p := range w.inst.plan.tasks[sub.Name] {
			check, err := state.LoadCheckpoint(w.inst.db, state.TaskID{SubTopology: sub.Name, Partition: p})
			if err != nil || check == nil {
				continue
			}
			h := kafka.HeldTask{TaskID: kafka.TaskID{Sub: sub.Name, Partition: p}}
			for _, pos := range check.Logs {
				h.Checkpoint += pos.Next
			}
			held = append(held, h)
		}
	}
	return held
}

// unassigned reports tasks that no member of the group can take. It is called on
// the group's leader.
func (w *worker) unassigned(tasks []kafka.Unassigned) {
	before := w.ownerless
	w.ownerless = map[state.TaskID]bool{}
	for _, t := range tasks {
		id := state.TaskID{SubTopology: t.Sub, Partition: t.Partition}
		err := fmt.Errorf("nobody in group %q can take the task: %s", w.group, t.Reason)
		w.log.Error("task without an owner", "task", t.String(), "error", err)
		w.inst.setStateOf(id, Parked, err)
		w.ownerless[id] = true
	}
	for id := range before {
		if !w.ownerless[id] {
			w.inst.setStateOf(id, Rebalancing, nil)
		}
	}
}

// inputTopics are the topics a task of sub reads, the loop last.
func inputTopics(sub *topology.SubTopology) []string {
	var topics []string
	for _, src := range sub.Sources {
		topics = append(topics, src.Topic)
	}
	if sub.LoopTopic != "" {
		topics = append(topics, sub.LoopTopic)
	}
	return topics
}

// taskOf returns the task that reads a topic partition.
func (w *worker) taskOf(topic string, partition int32) state.TaskID {
	if sub := w.byTopic[topic]; sub != nil {
		return state.TaskID{SubTopology: sub.Name, Partition: partition}
	}
	return state.TaskID{}
}

// topics are the topics the worker's group reads.
func (w *worker) topics() []string {
	var topics []string
	for _, sub := range w.subs {
		if w.inst.condemnation(sub.Name) == nil {
			topics = append(topics, inputTopics(sub)...)
		}
	}
	return topics
}

// run opens sessions until ctx ends or an error is final.
func (w *worker) run(ctx context.Context) error {
	failures, fenced := 0, 0
	for {
		opened := time.Now()
		committed, err := w.runSession(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an orderly end; what failed on the way is logged
		}
		long := time.Since(opened) > time.Minute
		if committed || long {
			failures = 0
		}
		if long { // two processes that fence each other commit in between
			fenced = 0
		}
		if kafka.IsFencedByOther(err) {
			if fenced++; fenced > 1 {
				return fmt.Errorf("group %q: another process uses a copy of this state directory (transactional id %q was fenced twice): give each instance a directory of its own: %w", w.group, w.transactionalID, err)
			}
		}
		if errors.Is(err, state.ErrCorrupt) {
			return &FatalError{err}
		}
		if final, ok := errors.AsType[*FatalError](err); ok {
			return final
		}
		wait := time.Duration(0)
		if !errors.Is(err, errReopen) || failures > 0 {
			wait = min(100*time.Millisecond<<min(failures, 10), 30*time.Second)
		}
		failures++
		w.log.Warn("worker reopens its client", "error", explained(err), "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// runSession lives one session, and reports whether it has committed anything.
func (w *worker) runSession(ctx context.Context) (committed bool, err error) {
	s, err := w.open(ctx)
	if err != nil {
		return false, err
	}
	err = s.loop(ctx)
	leave := ctx.Err() != nil && !w.cfg.KeepMembership
	s.close(leave)
	return s.hasCommitted, err
}

// A FatalError stops the instance: going on would serve or write wrong data.
type FatalError struct{ Err error }

func (e *FatalError) Error() string { return e.Err.Error() }
func (e *FatalError) Unwrap() error { return e.Err }

// fetchError explains a fetch error that the client does not get over by itself.
func (w *worker) fetchError(topic string, partition int32, err error) error {
	switch {
	case errors.Is(err, kerr.OffsetOutOfRange):
		return fmt.Errorf("%s/%d: the offset is not in the log any more: %w", topic, partition, err)
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.GroupAuthorizationFailed):
		return fmt.Errorf("not allowed to read %q in group %q: grant Read: %w", topic, w.group, err)
	}
	return fmt.Errorf("fetch %s/%d: %w", topic, partition, err)
}

// A start is where a partition begins: at the group's offset, or, if fresh, where
// the source's start policy says, since the group has none.
type start struct {
	at    kafka.Offset
	fresh bool
	err   error // why it cannot begin
}

// startOffsets decides where the partitions begin that the group was just
// assigned.
func (w *worker) startOffsets(ctx context.Context, fetched map[string]map[int32]kgo.Offset) (map[string]map[int32]start, error) {
	partitions := map[string][]int32{}
	for topic, ps := range fetched {
		partitions[topic] = slices.Collect(maps.Keys(ps))
	}
	begins, err := kafka.ListOffsets(ctx, w.inst.plain, kafka.LogStart, partitions)
	if err != nil {
		return nil, err
	}
	ends, err := kafka.ListOffsets(ctx, w.inst.plain, kafka.HighWatermark, partitions)
	if err != nil {
		return nil, err
	}
	starts := map[string]map[int32]start{}
	for topic, ps := range fetched {
		for p, offset := range ps {
			at := offset.EpochOffset()
			s := w.startOf(topic, p, kafka.Offset{At: at.Offset, Epoch: at.Epoch}, begins[topic][p], ends[topic][p])
			set(starts, topic, p, w.passOversized(topic, p, s))
		}
	}
	return starts, nil
}

func (w *worker) startOf(topic string, p int32, at kafka.Offset, begin, end int64) start {
	in := groupPartition{w.group, topic, p}
	policy := w.startPolicy(topic)
	cut, truncated := w.inst.truncation(in, at)
	switch {
	case at.At > end:
		return start{at: at, err: fmt.Errorf("%s/%d ends at offset %d, before offset %d of group %q: the broker has lost records that were processed; set the group's offset to %d and check the outputs", topic, p, end, at.At, w.group, end)}
	case truncated:
		w.log.Error("the broker has lost records that were processed", "topic", topic, "partition", p, "from", cut, "to", at.At-1, "accepted", w.cfg.SkipLost)
		s := start{at: kafka.Offset{At: max(cut, begin), Epoch: -1}}
		if !w.cfg.SkipLost {
			s.err = fmt.Errorf("%s/%d: the broker has lost records %d to %d, which group %q has processed, and may have others there now (its log was truncated): check the outputs and set the group's offset to %d, or accept the loss with millrace.SkipLost", topic, p, cut, at.At-1, w.group, cut)
		}
		return s
	case at.At >= begin:
		return start{at: at}
	case at.At >= 0:
		if n := w.inst.removed(in, at.At, begin); n > 0 {
			w.inst.metrics.lost(topic, n)
			w.log.Error("retention overtook the group", "topic", topic, "partition", p, "from", at.At, "to", begin-1, "skipped", w.cfg.SkipLost)
		}
		s := start{at: kafka.Offset{At: begin, Epoch: -1}}
		if !w.cfg.SkipLost {
			s.err = fmt.Errorf("%s/%d: records %d to %d are gone (retention overtook group %q): restore them, or accept the loss with millrace.SkipLost", topic, p, at.At, begin-1, w.group)
		}
		return s
	case policy == topology.MustExist:
		return start{err: fmt.Errorf("group %q has no offset for %s/%d and the source says MustExist: set the group's offset, or choose Earliest or Latest", w.group, topic, p)}
	case policy == topology.Latest:
		return start{at: kafka.Offset{At: end, Epoch: -1}, fresh: true}
	}
	return start{at: kafka.Offset{At: begin, Epoch: -1}, fresh: true}
}

// passOversized lets no task begin at a batch that the client does not unpack: it would
// wait for it for ever.
func (w *worker) passOversized(topic string, p int32, s start) start {
	in := groupPartition{w.group, topic, p}
	batch := w.inst.oversizedAt(in, s.at.At)
	if s.err != nil || batch == nil {
		return s
	}
	if !w.cfg.SkipLost {
		s.err = fmt.Errorf("%s/%d: the batch of records %d to %d unpacks to more than %d bytes, which is the most that is read: set the offset of group %q to %d to go on behind it, or pass such batches with millrace.SkipLost",
			topic, p, batch.Offset, batch.NextOffset-1, kafka.MaxDecompressed, w.group, batch.NextOffset)
		return s
	}
	if n := w.inst.removed(in, s.at.At, batch.NextOffset); n > 0 {
		w.inst.metrics.lost(topic, n)
		w.log.Error("a batch that unpacks to more than is read is passed", "topic", topic, "partition", p, "from", s.at.At, "to", batch.NextOffset-1)
	}
	s.at = kafka.Offset{At: batch.NextOffset, Epoch: -1}
	return s
}

func (w *worker) startPolicy(topic string) topology.StartPolicy {
	sub := w.byTopic[topic]
	if sub == nil {
		return topology.Earliest
	}
	for _, src := range sub.Sources {
		if src.Topic == topic {
			return src.Start
		}
	}
	return topology.Earliest // the loop
}

// topologyKey is the row that says which shape of a group's sub-topologies the
// directory was last used with.
func (w *worker) topologyKey() []byte { return []byte("m/topology/" + w.transactionalID) }

// rebalanceIfNew asks for a rebalance when the topology has changed since the
// worker's member was last in the group: a static member that comes back gets its
// old assignment without one, and nobody would own what is new.
func (w *worker) rebalanceIfNew(cl *kgo.Client) {
	if w.announced {
		return
	}
	w.announced = true
	h := sha256.New()
	for _, sub := range w.subs {
		fmt.Fprintln(h, sub.Name, sub.Fingerprint, inputTopics(sub), w.inst.plan.tasks[sub.Name])
	}
	shape := h.Sum(nil)
	before, err := w.inst.db.Get(w.topologyKey())
	if err != nil || bytes.Equal(before, shape) {
		return
	}
	b := &state.Batch{}
	b.Set(w.topologyKey(), shape)
	if err := w.inst.db.Write(b); err != nil {
		w.log.Warn("noting the topology", "error", err)
	}
	if before != nil {
		w.balancer.Bump()
		cl.ForceRebalance()
	}
}
