package topology_test

import (
	"testing"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
)

// TestWindowDrops: what each kind of window does not take, and why.
func TestWindowDrops(t *testing.T) {
	t.Parallel()
	count := func(w topology.Windows) func(b *topology.Builder) {
		return func(b *topology.Builder) { text(topology.Count(streamOf(b, "in").GroupByKey(), "n", w)).To("out") }
	}
	runAll(t, []scenario{
		{
			"sliding", count(topology.Sliding(ms(5), topology.Grace(ms(2)))), `
			in - v 10
			in a - 10
			in a v 10
			in a v 2
			in a v 20
			in a v 13`,
			// The last record could be in an open window, if there were another behind it;
			// the one behind the record before it and the one that ends at it are closed.
			"[a@5/10]:1@10 [a@15/20]:1@20",
			[]string{"n null-key", "n null-value", "n late", "n late", "n late"},
		},
		{
			// [a@33/36] lies behind a record whose own window is 3 differences + grace old.
			"sliding, as late as may be", count(topology.Sliding(ms(3), topology.Grace(ms(1)))), `
			in a v 32
			in b v 37
			in a v 34`,
			"[a@29/32]:1@32 [b@34/37]:1@37 [a@33/36]:1@34",
			[]string{"n late"},
		},
		{
			"session", count(topology.Session(ms(5), topology.Grace(ms(2)))), `
			in - v 10
			in a - 10
			in b v 20
			in a v 12
			in a v 13
			in a v 14`,
			"[a@10/10]:1@10 [b@20/20]:1@20 [a@13/13]:1@13 [a@13/13]:0@13 [a@13/14]:2@14",
			[]string{"n null-key", "n late"},
		},
		{
			"unlimited", count(topology.Unlimited(time.UnixMilli(5))), `
			in - v 10
			in a v 4
			in a - 5
			in a v 100
			in a v 50`,
			"[a@5/9223372036854775807]:1@5 [a@5/9223372036854775807]:2@100 [a@5/9223372036854775807]:3@100",
			[]string{"n null-key", "n early"},
		},
	})
}

// TestSessionUpdates: what a session's update tells the steps behind it, which
// take out what it replaces.
func TestSessionUpdates(t *testing.T) {
	t.Parallel()
	total := func(b *topology.Builder, w topology.Windows) {
		counts := topology.Count(streamOf(b, "in").GroupByKey(), "n", w)
		all := topology.TableGroupBy(counts, "g", func(w topology.Windowed[string], n int64) (string, int64) { return w.Key, n })
		text(topology.TableAggregate(all, "sum", serde.Int64(), func() int64 { return 0 },
			func(_ string, n, sum int64) int64 { return sum + n }, func(_ string, n, sum int64) int64 { return sum - n })).To("out")
	}
	runAll(t, []scenario{
		{
			"sessions", func(b *topology.Builder) {
				total(b, topology.Session(ms(5), topology.Grace(ms(100))))
			}, `
			in a v 10
			in a v 10
			in a v 20
			in a v 15`,
			"a:1@10 a:2@10 a:3@20 a:1@20 a:0@20 a:4@20", nil,
		},
		{
			"sliding windows", func(b *topology.Builder) {
				total(b, topology.Sliding(ms(5), topology.Grace(ms(100))))
			}, `
			in a v 0
			in a v 6`,
			// The window [1, 6] is the one behind 0 and the one that ends at 6: it is
			// updated twice, to 1.
			"a:1@0 a:2@6 a:2@6", nil,
		},
	})
}
