package sim

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/internal/chaos"
	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// The outputs of what the simulation adds to the chaos application.
const (
	// Batches has what a processor keeps, and forwards when a wall-clock
	// punctuation says so. Its cycles may move no offset at all.
	Batches = "chaos.batches"
	// Shards has the input under another key, behind a repartition topic.
	Shards = "chaos.shards"
	// PerShard has the running count of every shard.
	PerShard = "chaos.per-shard"
)

// topics are the topics of the application, the input first.
var topics = append(append([]string{}, chaos.Topics...), Batches, Shards, PerShard)

// groups are the application's Kafka groups.
var groups = []string{"chaos", "chaos.lookup"}

// Topology is the application.
func Topology() *topology.Builder {
	b := chaos.Topology()
	in := topology.Stream(b, chaos.Input, serde.String(), serde.Int64())
	topology.AddKeyValueStore(b, "pending", serde.String(), serde.Int64())
	topology.Process(in, "batch", func() processors.Processor[string, int64, string, int64] { return &batcher{} }, topology.Stores("pending")).
		To(Batches)
	sharded := topology.SelectKey(in, func(key string, _ int64) string { return shardOf(key) }).WithKeySerde(serde.String()).Repartition("by-shard")
	sharded.To(Shards)
	sharded.GroupByKey().Count("per-shard").ToStream().To(PerShard)
	return b
}

// shardOf puts the keys of all partitions into a few shards: by the last digit of
// their number.
func shardOf(key string) string { return "shard-" + key[len(key)-1:] }

// batchInterval is how often the batcher forwards what it has.
const batchInterval = 700 * time.Millisecond

type batcher struct {
	ctx   *processors.Context[string, int64]
	store state.KeyValueStore[string, int64]
}

func (p *batcher) Init(ctx *processors.Context[string, int64]) (err error) {
	p.ctx = ctx
	if p.store, err = processors.KeyValueStore[string, int64](ctx, "pending"); err != nil {
		return err
	}
	ctx.Schedule(processors.WallClock, batchInterval, p.flush)
	return nil
}

// Process keeps a record. The key of its row sorts the records of a key by value,
// which is the order of the input.
func (p *batcher) Process(r processors.Record[string, int64]) error {
	return p.store.Put(fmt.Sprintf("%s/%09d", r.Key, r.Value), r.Value, r.Timestamp)
}

func (p *batcher) flush(int64) error {
	var rows []state.Row[string, int64]
	for row, err := range p.store.Range(nil, nil) {
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	for _, row := range rows {
		var key string
		var value int64
		if _, err := fmt.Sscanf(row.Key, "key-%d/%d", new(int), &value); err != nil {
			return err
		}
		key = row.Key[:len(row.Key)-len("/000000000")]
		if err := p.ctx.Forward(processors.Record[string, int64]{Key: key, Value: value, Timestamp: row.Timestamp}); err != nil {
			return err
		}
		if err := p.store.Delete(row.Key); err != nil {
			return err
		}
	}
	return nil
}

func (p *batcher) Close() error { return nil }

// check compares all outputs with the recomputation.
func check(logs map[string]checker.Log, prefix bool) *checker.Report {
	report := chaos.Check(logs, prefix)
	report.PerKey(Batches, logs[chaos.Input], logs[Batches], prefix)
	shard := func(key string) string { return "shard-" + key[len(key)-1:] }
	report.Regrouped(Shards, logs[chaos.Input], logs[Shards], shard, prefix)
	report.Counted(PerShard, logs[chaos.Input], logs[PerShard], shard, prefix)
	return report
}
