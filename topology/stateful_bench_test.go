package topology_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
	"github.com/millrace/millrace/topology"
)

// benchTask runs a pipeline alone: outputs are counted and dropped.
type benchTask struct {
	processors.Task // what a benchmark does not need

	part     *state.Partition
	raw      processors.Raw
	produced int
}

func (t *benchTask) Context() context.Context                    { return context.Background() }
func (t *benchTask) Logger() *slog.Logger                        { return slog.New(slog.DiscardHandler) }
func (t *benchTask) Partition() int32                            { return 0 }
func (t *benchTask) Source() *processors.Raw                     { return &t.raw }
func (t *benchTask) Now() time.Time                              { return time.UnixMilli(0) }
func (t *benchTask) Store(name string) *state.Store              { return t.part.Store(name) }
func (t *benchTask) Cell(name string) *state.Cell                { return t.part.Cell(name) }
func (t *benchTask) Drop(string, string)                         {}
func (t *benchTask) Partitions(string) (int32, error)            { return 1, nil }
func (t *benchTask) Produce(string, int32, processors.Raw) error { t.produced++; return nil }

// benchPipeline feeds records of keys to the only sub-topology and reports the
// cost of a record. It commits every 10,000 records, outside of the measurement.
func benchPipeline(b *testing.B, keys int, describe func(*topology.Builder)) {
	b.Helper()
	tb := topology.New("bench")
	describe(tb)
	top, err := tb.Build()
	if err != nil {
		b.Fatal(err)
	}
	sub := top.Subs[0]
	t := &benchTask{part: state.NewPartition(state.NewMemory(), state.TaskID{SubTopology: sub.Name}, sub.Stores)}
	pipe, err := sub.Start(t)
	if err != nil {
		b.Fatal(err)
	}
	encoded := make([][]byte, keys)
	for i := range encoded {
		encoded[i] = fmt.Appendf(nil, "key-%08d", i*7919%keys)
	}
	value := make([]byte, 100)
	binary.BigEndian.PutUint64(value, 42)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		t.part.Begin()
		t.raw = processors.Raw{Topic: "in", Offset: int64(n), Key: encoded[n%keys], Value: value, Timestamp: int64(n / 100)}
		if err := pipe.Process(0, &t.raw); err != nil {
			b.Fatal(err)
		}
		if n++; n%10_000 == 0 {
			b.StopTimer()
			if err := errors.Join(t.part.Commit(), t.part.WriteBack(&state.Batch{})); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	if t.produced == 0 {
		b.Fatal("nothing was produced")
	}
}

func BenchmarkPassThrough(b *testing.B) {
	benchPipeline(b, 100_000, func(tb *topology.Builder) {
		topology.Stream(tb, "in", serde.String(), serde.Bytes()).To("out")
	})
}

func BenchmarkCount(b *testing.B) {
	for _, keys := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			benchPipeline(b, keys, func(tb *topology.Builder) {
				topology.Stream(tb, "in", serde.String(), serde.Bytes()).GroupByKey().Count("counts").ToStream().To("out")
			})
		})
	}
}

func BenchmarkWindowedCount(b *testing.B) {
	benchPipeline(b, 100_000, func(tb *topology.Builder) {
		g := topology.Stream(tb, "in", serde.String(), serde.Bytes()).GroupByKey()
		topology.Count(g, "counts", topology.Tumbling(time.Minute, topology.Grace(0))).ToStream().To("out")
	})
}

func BenchmarkTable(b *testing.B) {
	benchPipeline(b, 100_000, func(tb *topology.Builder) {
		topology.Table(tb, "in", "rows", serde.String(), serde.Bytes()).ToStream().To("out")
	})
}

// Each key has a record per 10 ms of stream time.
func BenchmarkWindows(b *testing.B) {
	for name, w := range map[string]topology.Windows{
		"hopping": topology.Hopping(50*time.Millisecond, 10*time.Millisecond, topology.Grace(0)),
		"sliding": topology.Sliding(50*time.Millisecond, topology.Grace(0)),
		"session": topology.Session(20*time.Millisecond, topology.Grace(0)),
		"final":   topology.Tumbling(50*time.Millisecond, topology.Grace(0), topology.EmitFinal()),
	} {
		b.Run(name, func(b *testing.B) {
			benchPipeline(b, 1_000, func(tb *topology.Builder) {
				g := topology.Stream(tb, "in", serde.String(), serde.Bytes()).GroupByKey()
				topology.Count(g, "counts", w).ToStream().To("out")
			})
		})
	}
}

func BenchmarkStreamJoin(b *testing.B) {
	benchPipeline(b, 1_000, func(tb *topology.Builder) {
		in := topology.Stream(tb, "in", serde.String(), serde.Bytes())
		out := in.Filter(func(string, []byte) bool { return true })
		topology.StreamOuterJoin(in, out, "j", topology.Within(10*time.Millisecond, topology.Grace(0)),
			func(l []byte, _ bool, _ []byte, _ bool) []byte { return l }).To("out")
	})
}

func BenchmarkVersionedTable(b *testing.B) {
	benchPipeline(b, 1_000, func(tb *topology.Builder) {
		topology.Table(tb, "in", "rows", serde.String(), serde.Bytes(), topology.Versioned(100*time.Millisecond)).ToStream().To("out")
	})
}

func BenchmarkSuppress(b *testing.B) {
	benchPipeline(b, 1_000, func(tb *topology.Builder) {
		rows := topology.Table(tb, "in", "rows", serde.String(), serde.Bytes())
		rows.Suppress("calm", topology.UntilTimeLimit(50*time.Millisecond)).ToStream().To("out")
	})
}
