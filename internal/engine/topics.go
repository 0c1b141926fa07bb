package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// defaultMaxMessage is the broker's default max.message.bytes.
const defaultMaxMessage = 1_048_588

// externalTopics returns the partition counts of the topics that the application
// reads or writes and does not create. Missing sources are reported; a missing
// sink is, too, since the broker may not create topics by itself.
func (inst *Instance) externalTopics(ctx context.Context) (map[string]int32, error) {
	used := map[string]string{}
	for _, sub := range inst.cfg.Topology.Subs {
		for _, src := range sub.Sources {
			if src.Internal == nil {
				used[src.Topic] = "source of " + sub.Name
			}
		}
		for _, sink := range sub.Sinks {
			if sink.Internal == nil {
				used[sink.Topic] = "sink of " + sub.Name
			}
		}
	}
	for _, g := range inst.cfg.Topology.Globals {
		if g.Internal == nil {
			used[g.Topic] = "global table " + g.Store.Name
		}
	}
	infos, err := kafka.Describe(ctx, inst.adm, slices.Sorted(maps.Keys(used))...)
	if err != nil {
		return nil, err
	}
	inst.topicInfos = map[string]kafka.TopicInfo{}
	counts := map[string]int32{}
	var errs []error
	for _, topic := range slices.Sorted(maps.Keys(used)) {
		info := infos[topic]
		if info.Err != nil {
			errs = append(errs, fmt.Errorf("topic %q (%s): %w", topic, used[topic], info.Err))
			continue
		}
		counts[topic] = info.Partitions
		inst.topicInfos[topic] = info
	}
	return counts, errors.Join(errs...)
}

// ensureTopics creates the internal topics and checks those that exist.
func (inst *Instance) ensureTopics(ctx context.Context) error {
	specs := map[string]kafka.TopicSpec{}
	add := func(topic string, kind topology.TopicKind, partitions int32, store state.Spec) {
		specs[topic] = kafka.TopicSpec{
			Name: topic, Kind: topicKind(kind), Partitions: partitions, Replication: inst.cfg.Replication,
			Retention: windowRetention(kind, store),
		}
	}
	for _, sub := range inst.cfg.Topology.Subs {
		n := inst.plan.tasks[sub.Name]
		for _, log := range sub.Changelogs() {
			add(log.Topic, log.Kind, n, log.Store)
		}
		if sub.LoopTopic != "" {
			add(sub.LoopTopic, topology.TopicLoop, n, state.Spec{})
		}
		for _, sink := range sub.Sinks {
			if sink.Internal == nil {
				continue
			}
			count := inst.plan.partitions[sink.Topic]
			if sink.Internal.Kind == topology.TopicDeadLetter {
				count = max(sink.Internal.Partitions, n, specs[sink.Topic].Partitions)
			}
			add(sink.Topic, sink.Internal.Kind, count, state.Spec{})
		}
	}
	for _, g := range inst.cfg.Topology.Globals {
		if g.Internal != nil {
			add(g.Topic, g.Internal.Kind, g.Internal.Partitions, g.Store)
		}
	}
	if err := inst.readLimits(ctx, nil); err != nil {
		return err
	}
	for name, spec := range specs {
		if spec.Kind == kafka.DeadLetter {
			spec.MaxMessageBytes = inst.deadLetterBytes()
			specs[name] = spec
		}
	}
	list := slices.Collect(maps.Values(specs))
	if err := kafka.Ensure(ctx, inst.adm, list); err != nil {
		return err
	}
	infos, err := kafka.Describe(ctx, inst.adm, slices.Collect(maps.Keys(specs))...)
	if err != nil {
		return err
	}
	maps.Copy(inst.topicInfos, infos)
	return inst.readLimits(ctx, specs)
}

// watchTopics looks for topics that were deleted, recreated or got partitions, and
// parks the sub-topologies that use them.
func (inst *Instance) watchTopics(ctx context.Context) error {
	ticker := time.NewTicker(inst.cfg.TopicCheck)
	defer ticker.Stop()
	seen := map[string]string{} // changes of the look before: one look may be of a broker that lags
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now, err := kafka.Describe(ctx, inst.adm, slices.Collect(maps.Keys(inst.topicInfos))...)
		if err != nil {
			inst.log.Debug("looking at topics", "error", err)
			continue
		}
		changes := map[string]string{}
		for _, change := range kafka.Changes(inst.topicInfos, now) {
			changes[change.Topic] = change.What
			if seen[change.Topic] != change.What {
				continue
			}
			if inst.isGlobalTopic(change.Topic) {
				return &FatalError{fmt.Errorf("global table: %w", change)}
			}
			inst.condemnTopic(change)
		}
		seen = changes
	}
}

// condemnTopic notes that a topic is not what it was: the tasks of every
// sub-topology that uses it stop, loudly.
func (inst *Instance) condemnTopic(change *kafka.TopicChange) {
	for _, sub := range inst.cfg.Topology.Subs {
		if !usesTopic(sub, change.Topic) {
			continue
		}
		inst.mu.Lock()
		_, known := inst.condemned[sub.Name]
		inst.condemned[sub.Name] = change
		inst.mu.Unlock()
		if !known {
			inst.log.Error("sub-topology stopped", "subtopology", sub.Name, "error", change)
		}
	}
}

// condemnation is why the tasks of a sub-topology must not run, or nil.
func (inst *Instance) condemnation(sub string) error {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if change, ok := inst.condemned[sub]; ok {
		return change
	}
	return nil
}

func (inst *Instance) isGlobalTopic(topic string) bool {
	return slices.ContainsFunc(inst.cfg.Topology.Globals, func(g topology.GlobalSource) bool { return g.Topic == topic })
}

func usesTopic(sub *topology.SubTopology, topic string) bool {
	for _, log := range sub.Changelogs() {
		if log.Topic == topic {
			return true
		}
	}
	for _, sink := range sub.Sinks {
		if sink.Topic == topic {
			return true
		}
	}
	return slices.Contains(inputTopics(sub), topic)
}

func windowRetention(kind topology.TopicKind, store state.Spec) time.Duration {
	if kind == topology.TopicWindowChangelog {
		return topology.RetentionOf(store)
	}
	return 0
}

// deadLetterBytes is the max.message.bytes of dead-letter topics: any source record
// has to fit, with a MiB of headers.
func (inst *Instance) deadLetterBytes() int {
	largest := max(inst.cfg.MaxRowBytes, defaultMaxMessage)
	for _, sub := range inst.cfg.Topology.Subs {
		for _, src := range sub.Sources {
			largest = max(largest, inst.limit(src.Topic))
		}
	}
	return largest + 1<<20
}

func topicKind(k topology.TopicKind) kafka.TopicKind {
	switch k {
	case topology.TopicWindowChangelog:
		return kafka.WindowChangelog
	case topology.TopicGroupTable:
		return kafka.GroupTable
	case topology.TopicLoop:
		return kafka.Loop
	case topology.TopicRepartition:
		return kafka.Repartition
	case topology.TopicDeadLetter:
		return kafka.DeadLetter
	}
	return kafka.Changelog
}

// readLimits learns max.message.bytes of every topic the instance writes to.
func (inst *Instance) readLimits(ctx context.Context, internal map[string]kafka.TopicSpec) error {
	topics := slices.Collect(maps.Keys(internal))
	for topic := range inst.topicInfos {
		if _, ok := internal[topic]; !ok {
			topics = append(topics, topic)
		}
	}
	configs, err := inst.adm.DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return fmt.Errorf("read the topics' max.message.bytes: %w: grant DescribeConfigs", err)
	}
	inst.limits, inst.tombstones = map[string]int{}, map[string]time.Duration{}
	var errs []error
	for _, rc := range configs {
		if rc.Err != nil {
			errs = append(errs, fmt.Errorf("configuration of topic %q: %w: grant DescribeConfigs", rc.Name, rc.Err))
		}
		for _, c := range rc.Configs {
			n, err := strconv.ParseInt(c.MaybeValue(), 10, 64)
			switch {
			case err != nil:
			case c.Key == "max.message.bytes":
				inst.limits[rc.Name] = int(n)
			case c.Key == "delete.retention.ms":
				inst.tombstones[rc.Name] = time.Duration(n) * time.Millisecond
			}
		}
	}
	return errors.Join(errs...)
}

// partitionCount returns the partition count of a topic that the application
// reads or writes, also one named by a record.
func (inst *Instance) partitionCount(topic string) (int32, error) {
	if n, ok := inst.plan.partitions[topic]; ok {
		return n, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	infos, err := kafka.Describe(ctx, inst.adm, topic)
	if err != nil {
		return 0, err
	}
	return infos[topic].Partitions, infos[topic].Err
}

// purgeEvery is how often consumed records of internal topics are deleted
// (repartition.purge.interval.ms).
const purgeEvery = 30 * time.Second

// purge deletes records of repartition and loop topics up to the lowest offset
// that every group of the application that reads them has committed.
func (inst *Instance) purge(ctx context.Context) error {
	ticker := time.NewTicker(purgeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := inst.purgeOnce(ctx); err != nil && ctx.Err() == nil {
			inst.log.Warn("purging internal topics, will try again", "error", explained(err))
		}
	}
}

func (inst *Instance) purgeOnce(ctx context.Context) error {
	lowest := map[string]map[int32]int64{}
	for _, g := range inst.plan.groups() {
		parts := inst.purgedPartitions(g.subs)
		offsets, err := kafka.FetchOffsets(ctx, inst.plain, g.name, parts)
		if err != nil {
			return err
		}
		for topic, ps := range parts {
			for _, p := range ps {
				at := offsets[topic][p].At // 0 if not committed yet
				if old, ok := lowest[topic][p]; ok {
					at = min(at, old)
				}
				set(lowest, topic, p, at)
			}
		}
	}
	for _, ps := range lowest {
		maps.DeleteFunc(ps, func(_ int32, at int64) bool { return at == 0 })
	}
	return kafka.DeleteRecords(ctx, inst.plain, lowest)
}

// purgedPartitions are the partitions of the topics that only the application
// reads, as far as sub-topologies read them.
func (inst *Instance) purgedPartitions(subs []*topology.SubTopology) map[string][]int32 {
	parts := map[string][]int32{}
	add := func(topic string) {
		for p := range inst.plan.partitions[topic] {
			parts[topic] = append(parts[topic], p)
		}
	}
	for _, sub := range subs {
		for _, src := range sub.Sources {
			if src.Internal != nil && src.Internal.Kind == topology.TopicRepartition {
				add(src.Topic)
			}
		}
		if sub.LoopTopic != "" {
			add(sub.LoopTopic)
		}
	}
	return parts
}

// flushBytes and flushAge say when the state is flushed: the log that a crash
// makes us restore stays below both.
const (
	flushBytes = 32 << 20
	flushAge   = 30 * time.Second
)

// flush forces the state to disk when it is far ahead of what is durable.
func (inst *Instance) flush(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if n := inst.metrics.unflushed(); n == 0 || n < flushBytes && time.Since(last) < flushAge {
			continue
		}
		inst.metrics.flushed()
		if err := inst.db.Flush(); err != nil {
			return &FatalError{fmt.Errorf("flush the state in %s: %w: free or replace the disk and restart", inst.cfg.StateDir, err)}
		}
		last = time.Now()
	}
}
