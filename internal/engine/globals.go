package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// globals are the instance's copies of global tables: one full copy each, loaded
// before any task starts and kept up to date by a reader. There is no time
// synchronisation with the tasks that read them.
type globals struct {
	inst   *Instance
	tables []topology.GlobalSource

	mu   sync.Mutex
	next map[string]map[int32]int64 // offsets behind what was applied
	// loading has the tables that have not reached the ends of their topics, with
	// the age of their rows in ms since the epoch: a load that is cut short is as
	// old as that.
	loading map[string]int64
}

// globalTask is the owner of the rows of global tables.
func globalTask(store string) state.TaskID {
	return state.TaskID{SubTopology: "\x02" + store, Partition: 0}
}

// openGlobals loads all global tables up to the ends of their topics as of now.
func openGlobals(ctx context.Context, inst *Instance) (*globals, error) {
	g := &globals{inst: inst, tables: inst.cfg.Topology.Globals, next: map[string]map[int32]int64{}, loading: map[string]int64{}}
	for i := range g.tables {
		table := &g.tables[i]
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
	err = inst.cfg.Kafka.Read(ctx, ranges, func(topic string, partition int32, records []*kgo.Record, next int64) error {
		return g.apply(table, partition, records, next)
	})
	if err == nil {
		g.mu.Lock()
		delete(g.loading, table.Store.Name)
		g.mu.Unlock()
	}
	return err
}

// positions returns where to go on; it deletes the rows when they cannot be
// continued.
func (g *globals) positions(table *topology.GlobalSource, id state.TaskID, starts, ends map[int32]int64) (map[int32]int64, error) {
	inst := g.inst
	check, err := state.LoadCheckpoint(inst.db, id)
	if unusable, ok := errors.AsType[*state.UnusableError](err); ok {
		inst.log.Warn("the copy of a global table is read anew", "table", table.Store.Name, "reason", unusable)
	} else if err != nil {
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
	g.mu.Lock()
	defer g.mu.Unlock()
	if usable {
		g.loading[table.Store.Name] = check.Time
		return from, nil
	}
	g.loading[table.Store.Name] = time.Now().UnixMilli()
	b := &state.Batch{}
	state.DeleteTask(b, id, []string{table.Store.Name})
	return starts, inst.db.Write(b)
}

// apply writes records of a table's topic and the new position in one batch.
func (g *globals) apply(table *topology.GlobalSource, partition int32, records []*kgo.Record, next int64) error {
	inst := g.inst
	prefix := state.StorePrefix(globalTask(table.Store.Name), table.Store.Name)
	b, pending := &state.Batch{}, map[string][]byte{}
	get := func(key []byte) ([]byte, error) {
		if row, ok := pending[string(key)]; ok {
			return row, nil
		}
		return inst.db.Get(append(slices.Clip(prefix), key...))
	}
	for _, r := range records {
		raw := toRaw(r)
		key, row, err := table.Apply(&raw, get)
		if err != nil {
			inst.metrics.globalError(table.Store.Name)
			inst.log.Error("a record of a global table cannot be used", "left out", key == nil, "table", table.Store.Name, "topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "error", err)
		}
		if key == nil {
			continue
		}
		if table.Internal != nil { // a user's table does not look at its rows
			pending[string(key)] = row
		}
		b.Set(append(slices.Clip(prefix), key...), row)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(records) == 0 && g.next[table.Topic][partition] == next {
		return nil
	}
	set(g.next, table.Topic, partition, next)
	inst.metrics.wrote(len(records) * 64)
	return g.write(table, b)
}

// write adds the checkpoint of a table to a batch and writes it. The caller holds mu.
func (g *globals) write(table *topology.GlobalSource, b *state.Batch) error {
	check := &state.Checkpoint{
		Logs:   map[string]state.LogPosition{table.Store.Name: {Topic: g.inst.topicInfos[table.Topic].ID}},
		Inputs: map[state.TopicPartition]int64{}, Time: time.Now().UnixMilli(),
	}
	if age, ok := g.loading[table.Store.Name]; ok {
		check.Time = age
	}
	for p, at := range g.next[table.Topic] {
		check.Inputs[state.TopicPartition{Topic: table.Topic, Partition: p}] = at
	}
	if err := check.AppendTo(b, globalTask(table.Store.Name)); err != nil {
		return err
	}
	return g.inst.db.Write(b)
}

// follow keeps the tables up to date until ctx ends.
func (g *globals) follow(ctx context.Context) error {
	if len(g.tables) == 0 {
		return nil
	}
	reader := kafka.NewReader(ctx, g.inst.plain, kafka.ReaderConfig{MaxWait: globalWait, Logger: g.inst.log})
	defer reader.Close()
	failed := make(chan error, 1)
	for i := range g.tables {
		if err := g.subscribe(reader, &g.tables[i], failed); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(refreshCheckpoint)
	defer ticker.Stop()
	for {
		if err := g.refresh(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return &FatalError{err}
		case <-ticker.C:
		}
	}
}

// globalWait is how long a broker waits for new records of global tables.
const globalWait = 500 * time.Millisecond

// subscribe has the reader go on where the table was loaded to. failed gets the first
// error.
func (g *globals) subscribe(reader *kafka.Reader, table *topology.GlobalSource, failed chan<- error) error {
	g.mu.Lock()
	positions := maps.Clone(g.next[table.Topic])
	g.mu.Unlock()
	for p, at := range positions {
		err := reader.Add(kafka.Subscription{
			Topic: table.Topic, Partition: p, TopicID: g.inst.topicInfos[table.Topic].ID, Offset: at,
			Deliver: func(b kafka.Batch) error { return g.apply(table, p, b.Records, b.Position) },
			Failed: func(err error) {
				select {
				case failed <- fmt.Errorf("global table %q: %w: a restart loads it anew", table.Store.Name, err):
				default: // another partition has failed
				}
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// refresh writes the checkpoints of the tables that are at the ends of their topics:
// one that gets too old makes the next start load the whole table.
func (g *globals) refresh(ctx context.Context) error {
	parts := map[string][]int32{}
	g.mu.Lock()
	for topic, ps := range g.next {
		parts[topic] = slices.Collect(maps.Keys(ps))
	}
	g.mu.Unlock()
	ends, err := kafka.ListOffsets(ctx, g.inst.plain, kafka.HighWatermark, parts)
	if err != nil {
		g.inst.log.Debug("asking for the ends of global tables", "error", err)
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.tables {
		table := &g.tables[i]
		behind := false
		for p, at := range g.next[table.Topic] {
			behind = behind || at < ends[table.Topic][p]
		}
		if behind {
			continue
		}
		if err := g.write(table, &state.Batch{}); err != nil {
			return err
		}
	}
	return nil
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
