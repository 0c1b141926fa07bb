package engine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// globals are the instance's copies of global tables: one full copy each, loaded
// before any task starts and kept up to date by one goroutine. There is no time
// synchronisation with the tasks that read them.
type globals struct {
	inst   *Instance
	tables []topology.GlobalSource
	next   map[string]map[int32]int64 // offsets behind what was applied
	topic  map[string]*topology.GlobalSource
}

// globalTask is the owner of the rows of global tables.
func globalTask(store string) state.TaskID {
	return state.TaskID{SubTopology: "\x02" + store, Partition: 0}
}

// openGlobals loads all global tables up to the ends of their topics as of now.
func openGlobals(ctx context.Context, inst *Instance) (*globals, error) {
	g := &globals{inst: inst, tables: inst.cfg.Topology.Globals, next: map[string]map[int32]int64{}, topic: map[string]*topology.GlobalSource{}}
	for i := range g.tables {
		table := &g.tables[i]
		g.topic[table.Topic] = table
		if err := g.load(ctx, table); err != nil {
			return nil, fmt.Errorf("global table %q from topic %q: %w", table.Store.Name, table.Topic, err)
		}
	}
	return g, nil
}

// load reads a table's topic from the checkpoint, or anew if that cannot be
// continued, to its end.
func (g *globals) load(ctx context.Context, table *topology.GlobalSource) error {
	inst := g.inst
	id := globalTask(table.Store.Name)
	var partitions []int32
	for p := range inst.plan.partitions[table.Topic] {
		partitions = append(partitions, p)
	}
	parts := map[string][]int32{table.Topic: partitions}
	starts, err := kafka.ListOffsets(ctx, inst.plain, kafka.LogStart, parts)
	if err != nil {
		return err
	}
	ends, err := kafka.ListOffsets(ctx, inst.plain, kafka.HighWatermark, parts)
	if err != nil {
		return err
	}
	from, err := g.positions(table, id, starts[table.Topic], ends[table.Topic])
	if err != nil {
		return err
	}
	var ranges []kafka.ReadRange
	for p, at := range from {
		set(g.next, table.Topic, p, at)
		ranges = append(ranges, kafka.ReadRange{Topic: table.Topic, Partition: p, From: at, To: ends[table.Topic][p]})
	}
	return inst.cfg.Kafka.Read(ctx, ranges, func(topic string, partition int32, records []*kgo.Record, next int64) error {
		return g.apply(table, partition, records, next)
	})
}

// positions returns where to go on; it deletes the rows when they cannot be
// continued.
func (g *globals) positions(table *topology.GlobalSource, id state.TaskID, starts, ends map[int32]int64) (map[int32]int64, error) {
	inst := g.inst
	check, err := state.LoadCheckpoint(inst.db, id)
	if err != nil {
		return nil, err
	}
	log := state.LogState{Topic: inst.topicInfos[table.Topic].ID, MaxAge: state.MaxCheckpointAge(inst.tombstones[table.Topic])}
	usable := check != nil && check.Usable(table.Store.Name, log, time.Now()) == nil
	from := map[int32]int64{}
	for p, start := range starts {
		from[p] = start
		if !usable {
			continue
		}
		at, ok := check.Inputs[state.TopicPartition{Topic: table.Topic, Partition: p}]
		if ok && (at < start || at > ends[p]) {
			usable = false
		}
		if ok {
			from[p] = at
		}
	}
	if usable {
		return from, nil
	}
	b := &state.Batch{}
	state.DeleteTask(b, id, []string{table.Store.Name})
	return starts, inst.db.Write(b)
}

// apply writes records of a table's topic and the new position in one batch.
func (g *globals) apply(table *topology.GlobalSource, partition int32, records []*kgo.Record, next int64) error {
	inst := g.inst
	id := globalTask(table.Store.Name)
	prefix := state.StorePrefix(id, table.Store.Name)
	b := &state.Batch{}
	for _, r := range records {
		raw := toRaw(r)
		key, row, err := table.Apply(&raw)
		if err != nil {
			inst.metrics.globalError(table.Store.Name)
			inst.log.Error("a record of a global table cannot be read and is left out", "table", table.Store.Name, "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
			continue
		}
		if key == nil {
			continue
		}
		b.Set(append(slices.Clip(prefix), key...), row)
	}
	set(g.next, table.Topic, partition, next)
	check := &state.Checkpoint{
		Logs:   map[string]state.LogPosition{table.Store.Name: {Topic: inst.topicInfos[table.Topic].ID}},
		Inputs: map[state.TopicPartition]int64{}, Time: time.Now().UnixMilli(),
	}
	for p, at := range g.next[table.Topic] {
		check.Inputs[state.TopicPartition{Topic: table.Topic, Partition: p}] = at
	}
	if err := check.AppendTo(b, id); err != nil {
		return err
	}
	if err := inst.db.Write(b); err != nil {
		return err
	}
	inst.metrics.wrote(len(records) * 64)
	return nil
}

// follow keeps the tables up to date until ctx ends.
func (g *globals) follow(ctx context.Context) error {
	if len(g.tables) == 0 {
		return nil
	}
	parts := map[string]map[int32]kgo.Offset{}
	for topic, ps := range g.next {
		for p, at := range ps {
			set(parts, topic, p, kgo.NewOffset().At(at))
		}
	}
	cl, err := kgo.NewClient(append(g.inst.cfg.Kafka.PlainOpts(nil), kgo.ConsumePartitions(parts))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var failed error
		fetches.EachError(func(topic string, partition int32, err error) {
			if kerr.IsRetriable(err) {
				g.inst.log.Warn("fetch of a global table failed, retrying", "topic", topic, "partition", partition, "error", err)
				return
			}
			failed = &FatalError{fmt.Errorf("global table from %s/%d: %w", topic, partition, err)}
		})
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if failed != nil || len(p.Records) == 0 {
				return
			}
			next := p.Records[len(p.Records)-1].Offset + 1
			var data []*kgo.Record
			for _, r := range p.Records {
				if !r.Attrs.IsControl() {
					data = append(data, r)
				}
			}
			failed = g.apply(g.topic[p.Topic], p.Partition, data, next)
		})
		if failed != nil {
			return failed
		}
	}
}

// store returns a handle of its own on a global table: it reads committed rows and
// caches none.
func (g *globals) store(name string) *state.Store {
	for i := range g.tables {
		if g.tables[i].Store.Name == name {
			part := state.NewPartition(g.inst.db, globalTask(name), []state.Spec{g.tables[i].Store}, state.WithCache(state.NewCacheBudget(0)))
			return part.Store(name)
		}
	}
	return nil
}
