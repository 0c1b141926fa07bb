// Package chaos is the application that is killed on purpose, and what kills it:
// workers are processes of their own, and an independent checker recomputes every
// record they wrote.
package chaos

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/kafka"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// The topics of the application, all with the same number of partitions. Keys of
// the input stay in their partition in every output.
const (
	Input   = "chaos.in"
	Echo    = "chaos.echo"
	Counts  = "chaos.counts"
	Windows = "chaos.windows"
	Answers = "chaos.answers"
)

// Topics lists them all.
var Topics = []string{Input, Echo, Counts, Windows, Answers}

// The windowed count's window and grace.
const (
	WindowSize  = 10 * time.Second
	WindowGrace = 5 * time.Second
)

// Topology is the application: the input is echoed (stateless), counted per key
// by a processor with a store of its own, counted per key and window with late
// records among them, and looked up asynchronously in the order of the keys.
func Topology() *topology.Builder {
	b := topology.New("chaos")
	in := topology.Stream(b, Input, serde.String(), serde.Int64())
	in.To(Echo)

	topology.AddKeyValueStore(b, "counts", serde.String(), serde.Int64())
	counted := topology.Process(in, "count", func() processors.Processor[string, int64, string, int64] { return &counter{} }, topology.Stores("counts"))
	counted.To(Counts)

	windows := topology.Count(in.GroupByKey(), "per-window", topology.Tumbling(WindowSize, topology.Grace(WindowGrace)))
	named := topology.SelectKey(windows.ToStream(), func(w topology.Windowed[string], _ int64) string {
		return fmt.Sprintf("%s@%d", w.Key, w.Start)
	}).WithKeySerde(serde.String())
	named.To(Windows, topology.PartitionBy(func(key string, _ int64, n int32) int32 {
		inner, _, _ := strings.Cut(key, "@")
		return kafka.PartitionOf([]byte(inner), n)
	}))

	answers := topology.AsyncLookup(in, "lookup", lookup, serde.Int64(),
		topology.Concurrency(32), topology.AttemptTimeout(5*time.Second), topology.Deadline(20*time.Second))
	topology.MapValues(answers.Results(), func(a processors.Answer[int64, int64]) int64 { return a.Event }).
		WithValueSerde(serde.Int64()).To(Answers)
	return b
}

// lookup answers after a few milliseconds, and fails at first for some values.
func lookup(ctx context.Context, r processors.Record[string, int64]) (int64, error) {
	h := fnv.New32a()
	fmt.Fprint(h, r.Key, r.Value)
	select {
	case <-time.After(time.Duration(h.Sum32()%10) * time.Millisecond):
		return r.Value * 2, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// counter counts the records of each key, by hand.
type counter struct {
	ctx   *processors.Context[string, int64]
	store state.KeyValueStore[string, int64]
}

func (c *counter) Init(ctx *processors.Context[string, int64]) (err error) {
	c.ctx = ctx
	c.store, err = processors.KeyValueStore[string, int64](ctx, "counts")
	return err
}

func (c *counter) Process(r processors.Record[string, int64]) error {
	n, latest, _, err := c.store.GetTimestamped(r.Key)
	if err != nil {
		return err
	}
	latest = max(latest, r.Timestamp)
	if err := c.store.Put(r.Key, n+1, latest); err != nil {
		return err
	}
	return c.ctx.Forward(processors.Record[string, int64]{Key: r.Key, Value: n + 1, Timestamp: latest, Headers: r.Headers})
}

func (c *counter) Close() error { return nil }
