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

// openTask restores the state of a task and starts its operators.
func (s *session) openTask(ctx context.Context, id state.TaskID, starts map[string]start) (_ *task, err error) {
	inst := s.w.inst
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
			timestamp: timestampOf(t.sub, i), partitionTime: -1, headOffset: -1, position: at.at, committed: at.at, fetched: at.at, end: ends[topic][t.id.Partition], looked: time.Now(),
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
