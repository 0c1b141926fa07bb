package engine_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace/millrace/internal/checker"
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// operators uses every operator with state, each with an output topic of its own.
func operators() *topology.Builder {
	b := topology.New("app")
	s := serde.String()
	second := func(n int64) time.Duration { return time.Duration(n) * time.Second }
	left, right := topology.Stream(b, "left", s, s), topology.Stream(b, "right", s, s)
	concat := func(l, r string) string { return l + "+" + r }
	concatOK := func(l, r string, _ bool) string { return l + "+" + r }
	add := func(_, v, agg string) string { return agg + v }
	none := func() string { return "" }

	grouped := left.GroupByKey()
	topology.Count(grouped, "hopping", topology.Hopping(second(20), second(10), topology.Grace(second(5)), topology.EmitFinal())).ToStream().To("hopping-out")
	topology.Count(grouped, "sliding", topology.Sliding(second(15), topology.Grace(second(5)))).ToStream().To("sliding-out")
	sessions := topology.SessionAggregate(grouped, "session", topology.Session(second(8), topology.Grace(second(5))), s, none, add,
		func(_, a, b string) string { return a + b })
	sessions.ToStream().To("session-out")
	sessions.Suppress("session-final", topology.UntilWindowCloses()).ToStream().To("final-out")
	topology.Count(grouped, "unlimited", topology.Unlimited(time.Unix(0, 0))).ToStream().To("unlimited-out")
	both := topology.CogroupWith(topology.Cogroup(grouped, add), right.GroupByKey(), add)
	topology.WindowedCogroup(both, "cogroup", topology.Tumbling(second(10), topology.Grace(0)), s, none).ToStream().To("cogroup-out")

	topology.StreamOuterJoin(left, right, "streams", topology.Between(second(5), second(15), topology.Grace(second(5))),
		func(l string, _ bool, r string, _ bool) string { return l + "+" + r }).To("streams-out")
	history := topology.Table(b, "right", "history", s, s, topology.Versioned(second(60)))
	topology.LeftJoin(left, history, concatOK, topology.Named("as-of"), topology.Grace(second(5))).To("as-of-out")
	rows := left.ToTable("rows")
	rows.Suppress("calm", topology.UntilTimeLimit(second(20), topology.MaxRecords(3))).ToStream().To("calm-out")
	topology.ForeignKeyLeftJoin(rows, history, "foreign", s,
		func(_, v string) (string, bool) { return "k" + v[:1], v[:1] != "3" }, concatOK).ToStream().To("foreign-out")
	topology.TableJoin(rows, history, "tables", s, concat).ToStream().To("tables-out")

	once := topology.DeduplicateBy(left, "once", second(20), s, func(_, v string) string { return v[:1] })
	once.To("once-out")
	topology.Dropped[string, string](once).To("dropped-out")
	left.ToTable("mayflies").TTL(second(3)).ToStream().To("mayflies-out")
	topology.Batch(left, "batch", 4, 24*time.Hour).To("batch-out")
	topology.ProcessValues(left, "echo", func() processors.Processor[string, string, string, string] { return &repeater{} }).To("echo-out")
	return b
}

// repeater forwards the last value of a key again when none came for 5 s of stream time.
type repeater struct {
	timers *processors.Timers[string]
}

func (e *repeater) Init(ctx *processors.Context[string, string]) (err error) {
	e.timers, err = processors.NewTimers(ctx, "silence", processors.StreamTime, serde.String(), func(key string, at int64, last []byte) error {
		return ctx.Forward(processors.Record[string, string]{Key: key, Value: string(last), Timestamp: at})
	})
	return err
}

func (e *repeater) Process(r processors.Record[string, string]) error {
	return e.timers.Set(r.Key, r.Timestamp+5000, []byte(r.Value))
}
func (e *repeater) Close() error { return nil }

// operatorInput makes n records, a third of them late. A late record follows one
// of its topic, so that the order in which a task takes them is theirs.
func operatorInput(rng *rand.Rand, n int, start int64) []processors.Raw {
	var recs []processors.Raw
	now, topic := start, "left"
	for i := range n {
		var at int64
		if i > 0 && rng.IntN(3) == 0 {
			at = max(start, now-rng.Int64N(20_000))
		} else {
			now += 1 + rng.Int64N(4_000)
			at, topic = now, []string{"left", "right"}[rng.IntN(2)]
		}
		rec := processors.Raw{Topic: topic, Key: fmt.Append(nil, "k", rng.IntN(3)), Value: fmt.Append(nil, rng.IntN(5), ",", i, ";"), Timestamp: at}
		if topic == "right" && rng.IntN(6) == 0 {
			rec.Value = nil
		}
		recs = append(recs, rec)
	}
	return recs
}

// TestOperators runs every operator with state on a broker. In the middle it loses
// its disk, so that the second half runs on what the changelogs hold. The outputs
// must be those of the test driver.
func TestOperators(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { runOperators(t, seed) })
	}
}

func runOperators(t *testing.T, seed uint64) {
	outputs := []string{
		"hopping-out", "sliding-out", "session-out", "final-out", "unlimited-out", "cogroup-out",
		"streams-out", "as-of-out", "calm-out", "foreign-out", "tables-out",
		"once-out", "dropped-out", "mayflies-out", "batch-out", "echo-out",
	}
	bubble(t, func(r *rig) {
		t := r.t
		start := time.Now().Add(-time.Hour).UnixMilli()
		input := operatorInput(rand.New(rand.NewPCG(seed, 1)), 400, start)
		d := topologytest.New(r.t, operators())
		for _, rec := range input {
			d.PipeRaw(rec.Topic, 0, rec)
		}
		if f := d.Failures(); len(f) > 0 {
			t.Fatal(f)
		}
		want := map[string][]string{}
		for _, topic := range outputs {
			for _, rec := range d.RawOutput(topic) {
				want[topic] = append(want[topic], line(string(rec.Key), rec.Value, rec.Value == nil, rec.Timestamp-start))
			}
		}
		for _, half := range [][]processors.Raw{input[:200], input[200:]} {
			for _, rec := range half {
				r.produce(rec.Topic, &kgo.Record{Key: rec.Key, Value: rec.Value, Timestamp: time.UnixMilli(rec.Timestamp)})
			}
			app := r.start(operators(), vfs.NewMem())
			app.running(1)
			r.pass(time.Minute)
			app.stop()
		}
		for _, topic := range outputs {
			var got []string
			for _, rec := range r.read(topic) {
				got = append(got, line(rec.Key, rec.Value, rec.Null, rec.Timestamp-start))
			}
			if topic == "foreign-out" { // the way over two topics leaves no order
				compareLast(t, topic, r.read(topic), d, want[topic])
				continue
			}
			if !slices.Equal(got, want[topic]) {
				t.Errorf("%s has %d records, must have %d; %s", topic, len(got), len(want[topic]), firstDifference(got, want[topic]))
			}
			if len(want[topic]) < 10 {
				t.Errorf("%s has %d records only", topic, len(want[topic]))
			}
		}
	}, append([]string{"left", "right"}, outputs...)...)
}

func line(key string, value []byte, null bool, at int64) string {
	if null {
		return fmt.Sprintf("%q null @%d", key, at)
	}
	return fmt.Sprintf("%q %q @%d", key, value, at)
}

func firstDifference(got, want []string) string {
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			return fmt.Sprintf("number %d: got %s\nwant %s", i, strings.Join(got[min(i, len(got)):min(i+3, len(got))], ", "), strings.Join(want[min(i, len(want)):min(i+3, len(want))], ", "))
		}
	}
	return "equal"
}

// compareLast compares the last record of every key.
func compareLast(t *testing.T, topic string, recs []checker.Record, d *topologytest.Driver, want []string) {
	t.Helper()
	got := map[string]string{}
	for _, rec := range recs {
		if got[rec.Key] = string(rec.Value); rec.Null {
			delete(got, rec.Key)
		}
	}
	rows := map[string]string{}
	for _, row := range topologytest.KeyValue(d, "foreign", serde.String(), serde.String()).Rows() {
		rows[row.Key] = row.Value
	}
	if !maps.Equal(got, rows) || len(want) < 10 {
		t.Errorf("%s leaves %v, must leave %v", topic, got, rows)
	}
}
