package topology_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// TestTableTTL lets rows of tables and aggregates expire, and sees that the steps
// behind them get the deletions: a count of a grouped table must go down.
func TestTableTTL(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	s := topology.Stream(b, "in", str, str)
	rows := s.ToTable("rows").TTL(10 * time.Millisecond)
	rows.ToStream().To("rows-out")
	topology.TableGroupBy(rows, "by-value", func(k, v string) (string, string) { return v, k }).Count("per-value").ToStream().To("counts")
	s.GroupByKey().Count("n").TTL(20 * time.Millisecond).ToStream().To("n-out")
	d := topologytest.New(t, b)
	in := topologytest.Input(d, "in", str, str)
	out, counts, n := topologytest.Output(d, "rows-out", str, str), topologytest.Output(d, "counts", str, serde.Int64()), topologytest.Output(d, "n-out", str, serde.Int64())
	in.Pipe("b", "x", 0)
	in.Pipe("a", "x", 0)
	in.Pipe("c", "x", 1)
	in.Pipe("a", "x", 5) // lives on
	expect(t, out.Text(), "b:x@0", "a:x@0", "c:x@1", "a:x@5")
	d.Restart()
	in.Pipe("d", "y", 11) // before it b and c go
	expect(t, out.Text(), "b:null@10", "c:null@11", "d:y@11")
	in.Pipe("a", "x", 15) // a was gone
	expect(t, out.Text(), "a:null@15", "a:x@15")
	in.Pipe("b", "late", 3) // has expired: it goes with the next record
	in.Delete("a", 16)
	expect(t, out.Text(), "b:late@3", "b:null@13", "a:null@16")
	if got := fmt.Sprint(topologytest.KeyValue(d, "rows", str, str).Rows()); got != "[{d y 11}]" {
		t.Errorf("rows %s", got)
	}
	if last := counts.Text(); last[len(last)-1] != "x:0@16" {
		t.Errorf("counts %q", last)
	}
	in.Pipe("a", "x", 35) // begins anew
	got := n.Text()
	expect(t, got[len(got)-4:], "b:null@23", "d:null@31", "a:null@35", "a:1@35")
	if f := d.Failures(); len(f) != 0 {
		t.Error(f)
	}
}

// seen counts how often it has seen a key, in a store whose rows expire.
func seen(ctx *processors.Context[string, string]) (func(processors.Record[string, string]) error, error) {
	counts, err := processors.KeyValueStore[string, int64](ctx, "counts")
	return func(r processors.Record[string, string]) error {
		n, _, err := counts.Get(r.Key)
		if err == nil {
			err = counts.Put(r.Key, n+1, r.Timestamp)
		}
		all := 0
		for _, err := range counts.Range(nil, nil) {
			if err != nil {
				return err
			}
			all++
		}
		if err != nil {
			return err
		}
		return ctx.Forward(processors.Record[string, string]{Key: r.Key, Value: fmt.Sprintf("%d of %d", n+1, all), Timestamp: r.Timestamp})
	}, err
}

func TestStoreTTL(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	topology.AddKeyValueStore(b, "counts", str, serde.Int64(), topology.TTL(10*time.Millisecond))
	topology.ProcessValues(topology.Stream(b, "in", str, str), "count", func() processors.Processor[string, string, string, string] { return &step{start: seen} },
		topology.Stores("counts")).To("out")
	d := topologytest.New(t, b)
	in, out := topologytest.Input(d, "in", str, str), topologytest.Output(d, "out", str, str)
	in.Pipe("a", "", 0)
	in.Pipe("b", "", 1)
	in.Pipe("b", "", 9)
	d.Restart()
	in.Pipe("a", "", 10)
	expect(t, out.Text(), "a:1 of 1@0", "b:1 of 2@1", "b:2 of 2@9", "a:1 of 2@10")
	in.Pipe("c", "", 30)
	if got := fmt.Sprint(topologytest.KeyValue(d, "counts", str, serde.Int64()).Rows()); got != "[{c 1 30}]" {
		t.Errorf("rows %s", got)
	}
}

func ExampleKTable_TTL() {
	b := topology.New("shop")
	carts := topology.Table(b, "carts", "open-carts", serde.String(), serde.String()).TTL(30 * time.Minute)
	carts.ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "carts", serde.String(), serde.String())
	minute := time.Minute.Milliseconds()
	in.Pipe("ada", "tea", 0)
	in.Pipe("bob", "milk", 20*minute)
	in.Pipe("cem", "cake", 40*minute) // nothing came from ada for half an hour
	printOut(d, serde.String(), serde.String())
	// Output:
	// ada:tea@0
	// bob:milk@1200000
	// ada:null@1800000
	// cem:cake@2400000
}
