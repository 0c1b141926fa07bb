package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// rebuilt is logged when the local rows of a task cannot be continued.
const rebuilt = "the local state is rebuilt from the changelogs"

// restore brings the committed rows of a task up to the high watermarks of its
// changelogs, read after the task became ours: from the local checkpoint where it
// can be continued, else from the beginning.
func (inst *Instance) restore(ctx context.Context, t *task) error {
	select {
	case inst.restores <- struct{}{}:
		defer func() { <-inst.restores }()
	case <-ctx.Done():
		return ctx.Err()
	}
	logs := t.sub.Changelogs()
	from, err := state.LoadCheckpoint(inst.db, t.id)
	if unusable, ok := errors.AsType[*state.UnusableError](err); ok {
		t.log.Warn(rebuilt, "reason", unusable)
	} else if err != nil {
		return err
	}
	if len(logs) == 0 {
		t.check = &state.Checkpoint{Logs: map[string]state.LogPosition{}, Inputs: map[state.TopicPartition]int64{}}
		return nil
	}
	asked := time.Now().UnixMilli()
	states, err := inst.logStates(ctx, t, logs)
	if err != nil {
		return err
	}
	from, err = inst.continueFrom(t, from, states)
	if err != nil {
		return err
	}
	r := state.NewRestorer(inst.db, t.id, t.sub.Stores, from)
	if err := inst.readLogs(ctx, t, r, logs, states); err != nil {
		return err
	}
	if err := r.Flush(asked); err != nil {
		return err
	}
	inst.metrics.restored.WithLabelValues(t.id.SubTopology).Add(float64(r.Count()))
	t.check = r.Checkpoint()
	t.check.Time, t.checked = asked, asked
	return nil
}

// logStates asks the broker how far the changelogs of a task go.
func (inst *Instance) logStates(ctx context.Context, t *task, logs []topology.Changelog) (map[string]state.LogState, error) {
	parts := map[string][]int32{}
	for _, log := range logs {
		parts[log.Topic] = []int32{t.id.Partition}
	}
	starts, err := kafka.ListOffsets(ctx, inst.plain, kafka.LogStart, parts)
	if err != nil {
		return nil, err
	}
	ends, err := kafka.ListOffsets(ctx, inst.plain, kafka.HighWatermark, parts)
	if err != nil {
		return nil, err
	}
	switch inst.cfg.planted {
	case bugRestoreStable:
		if ends, err = kafka.ListOffsets(ctx, inst.plain, kafka.LastStable, parts); err != nil {
			return nil, err
		}
	case bugRestoreShort:
		for topic, ps := range ends {
			for p, end := range ps {
				ps[p] = max(starts[topic][p], end-2)
			}
		}
	}
	infos, err := kafka.Describe(ctx, inst.adm, slices.Collect(maps.Keys(parts))...)
	if err != nil {
		return nil, err
	}
	states := map[string]state.LogState{}
	for _, log := range logs {
		info := infos[log.Topic]
		if info.Err != nil {
			return nil, fmt.Errorf("changelog %q of store %q: %w", log.Topic, log.Store.Name, info.Err)
		}
		states[log.Store.Name] = state.LogState{
			Topic: info.ID, Start: starts[log.Topic][t.id.Partition], End: ends[log.Topic][t.id.Partition],
			MaxAge: state.MaxCheckpointAge(kafka.DeleteRetention),
		}
	}
	return states, nil
}

// refuseLostLog fails when a changelog is not the one the local rows came from, or
// has lost records that they lack: a rebuild would silently lose what the group's
// offsets say is done. The local copy is left alone.
func (inst *Instance) refuseLostLog(t *task, from *state.Checkpoint, states map[string]state.LogState) error {
	if from == nil {
		return nil
	}
	for store, log := range states {
		pos, ok := from.Logs[store]
		topic := t.sub.Changelog(store)
		switch {
		case !ok:
		case pos.Topic != log.Topic:
			return fmt.Errorf("changelog %q was deleted or recreated: the state in %s is the only copy of store %q; write it back to the topic, or reset the application: remove its state directories, its internal topics and its group offsets", topic, inst.cfg.StateDir, store)
		case pos.Next < log.Start:
			return fmt.Errorf("changelog %q begins at offset %d, behind offset %d that the state in %s stands at: the task was down for longer than the topic keeps records, or they were deleted; reset the application, or accept the loss by removing the state directory", topic, log.Start, pos.Next, inst.cfg.StateDir)
		}
	}
	return nil
}

// continueFrom returns the checkpoint to restore from. If any store cannot be
// continued, all rows of the task are deleted and it starts at the beginning.
func (inst *Instance) continueFrom(t *task, from *state.Checkpoint, states map[string]state.LogState) (*state.Checkpoint, error) {
	if err := inst.refuseLostLog(t, from, states); err != nil {
		return nil, err
	}
	var unusable error
	for store, log := range states {
		if err := from.Usable(store, log, time.Now()); err != nil {
			unusable = err
			break
		}
	}
	if unusable == nil {
		return from, nil
	}
	if from != nil {
		t.log.Warn(rebuilt, "reason", unusable)
	}
	fresh := &state.Checkpoint{Logs: map[string]state.LogPosition{}, Inputs: map[state.TopicPartition]int64{}, Time: time.Now().UnixMilli()}
	for store, log := range states {
		fresh.Logs[store] = state.LogPosition{Topic: log.Topic, Next: log.Start}
	}
	b := &state.Batch{}
	state.DeleteTask(b, t.id, storeNames(t.sub.Stores))
	return fresh, inst.db.Write(b)
}

// readLogs reads the changelogs from the restorer's positions to their ends.
func (inst *Instance) readLogs(ctx context.Context, t *task, r *state.Restorer, logs []topology.Changelog, states map[string]state.LogState) error {
	stores := map[string]string{}
	positions := r.Checkpoint().Logs
	var ranges []kafka.ReadRange
	var total, done int64
	for _, log := range logs {
		store := log.Store.Name
		stores[log.Topic] = store
		from, to := positions[store].Next, states[store].End
		total += max(0, to-from)
		ranges = append(ranges, kafka.ReadRange{Topic: log.Topic, Partition: t.id.Partition, From: from, To: to})
	}
	if total == 0 {
		return nil
	}
	started := time.Now()
	inst.restoreProgress(t.id, 0, total)
	err := inst.cfg.Kafka.Read(ctx, ranges, func(topic string, _ int32, records []*kgo.Record, next int64) error {
		store := stores[topic]
		for _, rec := range records {
			if err := r.Add(store, rec.Offset, rec.Key, rec.Value, rec.Timestamp.UnixMilli()); err != nil {
				return err
			}
		}
		done += max(0, next-positions[store].Next)
		positions[store] = state.LogPosition{Topic: positions[store].Topic, Next: next}
		r.Skip(store, next)
		inst.restoreProgress(t.id, done, total)
		return nil
	})
	if errors.Is(err, kafka.ErrOutOfRange) {
		return fmt.Errorf("%w: the changelog was truncated while it was read; the next attempt rebuilds the state", err)
	}
	if err == nil {
		t.log.Info("restored", "records", r.Count(), "offsets", total, "in", time.Since(started).Round(time.Millisecond))
	}
	return err
}
