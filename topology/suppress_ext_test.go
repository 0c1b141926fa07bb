package topology_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

func ExampleUntilWindowCloses() {
	b := topology.New("shop")
	visits := topology.Stream(b, "visits", serde.String(), serde.String())
	perMinute := topology.Count(visits.GroupByKey(), "per-minute", topology.Tumbling(time.Minute, topology.Grace(10*time.Second)))
	perMinute.Suppress("final", topology.UntilWindowCloses()).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "visits", serde.String(), serde.String())
	in.Pipe("home", "", 1_000)
	in.Pipe("home", "", 61_000)
	in.Pipe("home", "", 59_000) // late, within the grace
	in.Pipe("home", "", 70_000) // closes the first minute
	printOut(d, topology.WindowedSerde(serde.String(), time.Minute), serde.Int64())
	// Output:
	// [home@0/60000]:2@59000
}

func ExampleUntilTimeLimit() {
	b := topology.New("shop")
	stock := topology.Table(b, "stock", "stock-rows", serde.String(), serde.Int64())
	stock.Suppress("calm", topology.UntilTimeLimit(time.Minute, topology.MaxRecords(10_000))).ToStream().To("out")

	d := topologytest.New(topologytest.NoTest(), b)
	defer d.Close()
	in := topologytest.Input(d, "stock", serde.String(), serde.Int64())
	in.Pipe("tea", 9, 0)
	in.Pipe("tea", 8, 30_000)
	in.Pipe("tea", 7, 50_000)
	in.Pipe("wine", 3, 60_000) // a minute after the first update of tea
	printOut(d, serde.String(), serde.Int64())
	// Output:
	// tea:7@50000
}

func TestSuppressLimits(t *testing.T) {
	t.Parallel()
	suppressed := func(opts ...topology.BufferOption) func(b *topology.Builder) {
		return func(b *topology.Builder) {
			tableOf(b, "in").Suppress("s", topology.UntilTimeLimit(ms(100), opts...)).ToStream().To("out")
		}
	}
	script := `
		in a 1 1
		in b 1 2
		in a 2 3
		in c 1 4
		in d - 5
		in c 222222222222222222222222222222222 6`
	runAll(t, []scenario{
		{"none", suppressed(), script, "", nil},
		{"none, in time", suppressed(), script + "\n in e 1 105", "a:2@3 b:1@2 c:222222222222222222222222222222222@6 d:null@5", nil},
		{"records", suppressed(topology.MaxRecords(2)), script, "a:2@3 b:1@2", nil},
		// A row of a key and a value of one byte is one of 13 bytes.
		{"bytes", suppressed(topology.MaxBytes(40)), script, "a:2@3 b:1@2 c:222222222222222222222222222222222@6", nil},
	})
	for name, opts := range map[string][]topology.BufferOption{
		"records": {topology.MaxRecords(2), topology.ShutDownWhenFull()},
		"bytes":   {topology.MaxBytes(30), topology.ShutDownWhenFull()},
	} {
		t.Run("shut down by "+name, func(t *testing.T) {
			t.Parallel()
			b := topology.New("app")
			suppressed(opts...)(b)
			d := topologytest.New(t, b)
			pipe(t, d, script)
			f := d.Failures()
			if len(f) != 1 || f[0].Action != processors.Stop || f[0].Record.Timestamp != 4 || !strings.Contains(f[0].Err.Error(), "held back") {
				t.Errorf("failures %v", f)
			}
			if out := d.RawOutput("out"); len(out) > 0 {
				t.Errorf("%d rows were forwarded", len(out))
			}
		})
	}
}

// TestSuppressOldValues: an update that is let go replaces the row that was let
// go before it, so that aggregations behind it are right.
func TestSuppressOldValues(t *testing.T) {
	t.Parallel()
	runAll(t, []scenario{{
		"groups", func(b *topology.Builder) {
			calm := tableOf(b, "in").Suppress("s", topology.UntilTimeLimit(ms(10)))
			g := topology.TableGroupBy(calm.Filter(func(k, _ string) bool { return k != "tick" }), "g", func(_, v string) (string, string) { return v, v })
			text(g.Count("n")).To("out")
		}, `
		in a x 1
		in a y 2
		in tick - 12
		in a z 13
		in a x 14
		in tick - 24`,
		"y:1@2 y:0@14 x:1@14", nil,
	}})
}

// TestSuppressMatchesModel holds rows of random keys back, with restarts and a
// bound.
func TestSuppressMatchesModel(t *testing.T) {
	t.Parallel()
	seeds(t, func(t *testing.T, r *rand.Rand) {
		wait, most := r.Int64N(20), 1+r.Int64N(6)
		b := topology.New("app")
		tableOf(b, "in").Suppress("s", topology.UntilTimeLimit(ms(wait), topology.MaxRecords(most))).ToStream().To("out")
		d := topologytest.New(t, b)
		type row struct {
			key, value string
			since, at  int64
		}
		var held []row
		var want []string
		now := int64(-1)
		for i := range 300 {
			one := row{key: fmt.Sprint("k", r.IntN(8)), value: fmt.Sprint(i), at: max(0, now-4+r.Int64N(8))}
			one.since = one.at
			topologytest.Input(d, "in", str, str).Pipe(one.key, one.value, one.at)
			now = max(now, one.at)
			if at := slices.IndexFunc(held, func(h row) bool { return h.key == one.key }); at >= 0 {
				one.since = held[at].since
				held = slices.Delete(held, at, at+1)
			}
			held = append(held, one)
			slices.SortFunc(held, func(a, b row) int { return cmp.Or(cmp.Compare(a.since, b.since), cmp.Compare(a.key, b.key)) })
			for len(held) > 0 && (held[0].since <= now-wait || int64(len(held)) > most) {
				want = append(want, fmt.Sprintf("%s:%s@%d", held[0].key, held[0].value, held[0].at))
				held = held[1:]
			}
			if r.IntN(30) == 0 {
				d.Restart()
			}
		}
		if got := topologytest.Output(d, "out", str, str).Text(); !slices.Equal(got, want) {
			t.Errorf("wait %d, at most %d: got %d rows\n%v\nwant %d\n%v", wait, most, len(got), got, len(want), want)
		}
	})
}
