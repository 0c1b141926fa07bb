package topology_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/topology"
	"github.com/millrace/millrace/topologytest"
)

// Shorthands: in these tests keys and values are strings.
type (
	stream = topology.KStream[string, string]
	table  = topology.KTable[string, string]
)

var str = serde.String()

func streamOf(b *topology.Builder, topic string) *stream { return topology.Stream(b, topic, str, str) }

func tableOf(b *topology.Builder, topic string) *table {
	return topology.Table(b, topic, topic+"-rows", str, str)
}

// A scenario pipes records into a topology and compares what comes out.
type scenario struct {
	name  string
	build func(b *topology.Builder)
	// script holds records "topic key value timestamp", "-" for null.
	script string
	want   string   // records of topic "out" as "key:value@timestamp"
	drops  []string // "step reason"
}

func (s scenario) run(t *testing.T) {
	t.Helper()
	b := topology.New("app")
	s.build(b)
	d := topologytest.New(t, b)
	pipe(t, d, s.script)
	if got, want := topologytest.Output(d, "out", str, str).Text(), strings.Fields(s.want); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	var drops []string
	for _, drop := range d.Drops() {
		drops = append(drops, drop.Step+" "+drop.Reason)
	}
	if !slices.Equal(drops, s.drops) {
		t.Errorf("drops %q, want %q", drops, s.drops)
	}
	if f := d.Failures(); len(f) > 0 {
		t.Errorf("failures: %v", f)
	}
}

// pipe pipes the records of a script.
func pipe(t *testing.T, d *topologytest.Driver, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		ts, err := strconv.ParseInt(f[3], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		raw := processors.Raw{Timestamp: ts}
		if f[1] != "-" {
			raw.Key = []byte(f[1])
		}
		if f[2] != "-" {
			raw.Value = []byte(f[2])
		}
		d.PipeRaw(f[0], -1, raw)
	}
}

func runAll(t *testing.T, all []scenario) {
	t.Helper()
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t)
		})
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	long := func(_, v string) bool { return len(v) > 1 }
	upper := func(v string) *string {
		if v == "nil" {
			return nil
		}
		u := strings.ToUpper(v)
		return &u
	}
	plain := func(v *string) string { return *v }
	runAll(t, []scenario{
		{
			"source", func(b *topology.Builder) { tableOf(b, "in").ToStream().To("out") }, `
			in a 1 10
			in a 1 11
			in a 2 5
			in - 3 12
			in b - 13
			in a - 14`,
			"a:1@10 a:1@11 a:2@5 b:null@13 a:null@14",
			[]string{"in-rows null-key"},
		},
		{
			"stream to table by another key", func(b *topology.Builder) {
				byValue := topology.SelectKey(streamOf(b, "in"), func(_, v string) *string {
					if v == "nokey" {
						return nil
					}
					return &v
				})
				keyed := topology.SelectKey(byValue.Filter(func(k *string, _ string) bool { return k != nil }), func(k *string, _ string) string { return *k })
				keyed.ToTable("rows").ToStream().To("out")
			}, `
			in a x 1
			in b x 2
			in c nokey 3
			in c y 4`,
			"x:x@1 x:x@2 y:y@4", nil,
		},
		{
			"filter", func(b *topology.Builder) { tableOf(b, "in").Filter(long).ToStream().To("out") }, `
			in a 1 1
			in a 11 2
			in a 22 3
			in a 3 4
			in a 4 5
			in a - 6
			in b 55 7
			in b - 8
			in c - 9`,
			"a:11@2 a:22@3 a:null@4 b:55@7 b:null@8", nil,
		},
		{
			"filter not", func(b *topology.Builder) { tableOf(b, "in").FilterNot(long).ToStream().To("out") }, `
			in a 11 1
			in a 1 2
			in a 11 3`,
			"a:1@2 a:null@3", nil,
		},
		{
			"map values", func(b *topology.Builder) {
				mapped := topology.TableMapValues(tableOf(b, "in"), upper)
				topology.MapValues(topology.TableMapValues(mapped, plain).ToStream(), func(v string) string { return v }).To("out")
			}, `
			in a x 1
			in a nil 2
			in a - 3
			in b - 4
			in a y 5`,
			// The second map sees no missing rows; deletions are forwarded. A missing
			// value reaches the stream's map as the zero value.
			"a:X@1 a:@2 a:@3 b:@4 a:Y@5", nil,
		},
		{
			"a table computed from another is looked up", func(b *topology.Builder) {
				rows := topology.TableMapValues(tableOf(b, "t").Filter(long), strings.ToUpper)
				topology.LeftJoin(streamOf(b, "in"), rows, func(v, row string, ok bool) string {
					return fmt.Sprintf("%s,%s,%t", v, row, ok)
				}).To("out")
			}, `
			in a 1 1
			t a xx 2
			in a 2 3
			t a y 4
			in a 3 5`,
			"a:1,,false@1 a:2,XX,true@3 a:3,,false@5", nil,
		},
	})
}

// text makes a stream of strings of any table.
func text[K, V any](t *topology.KTable[K, V]) *stream {
	return topology.Map(t.ToStream(), func(k K, v V) (string, string) {
		return strings.ReplaceAll(fmt.Sprint(k), " ", ""), strings.ReplaceAll(fmt.Sprint(v), " ", "")
	})
}

func TestAggregations(t *testing.T) {
	t.Parallel()
	plus := func(agg, v string) string { return agg + "+" + v }
	grouped := func(b *topology.Builder) *topology.KGroupedStream[string, string] {
		return streamOf(b, "in").GroupByKey()
	}
	runAll(t, []scenario{
		{
			"count", func(b *topology.Builder) { text(grouped(b).Count("n")).To("out") }, `
			in a x 5
			in a x 3
			in - x 6
			in a - 7
			in b x 1
			in a x 8`,
			"a:1@5 a:2@5 b:1@1 a:3@8",
			[]string{"n null-key", "n null-value"},
		},
		{
			"reduce", func(b *topology.Builder) { grouped(b).Reduce("r", plus).ToStream().To("out") }, `
			in a x 5
			in a y 3
			in b z 4`,
			"a:x@5 a:x+y@5 b:z@4", nil,
		},
		{
			"an aggregate that becomes nil is deleted and starts again", func(b *topology.Builder) {
				sum := topology.Aggregate(grouped(b), "s", serde.JSON[[]string](), func() []string { return []string{"0"} },
					func(_, v string, agg []string) []string {
						if v == "clear" {
							return nil
						}
						return append(agg, v)
					})
				text(sum).To("out")
			}, `
			in a x 5
			in a y 6
			in a clear 7
			in a clear 8
			in a z 2`,
			"a:[0x]@5 a:[0xy]@6 a:[]@7 a:[]@8 a:[0z]@2", nil,
		},
		{
			"group by another key", func(b *topology.Builder) {
				g := topology.GroupBy(streamOf(b, "in"), "by-value", func(_, v string) string { return v })
				text(g.Count("n")).To("out")
				text(g.Reduce("r", plus)).To("out")
			}, `
			in a x 1
			in b x 2
			in - x 3
			in a - 4`,
			"x:1@1 x:x@1 x:2@2 x:x+x@2 x:3@3 x:x+x+x@3",
			// The key of a record without a value is the zero value's.
			[]string{"n null-value", "r null-value"},
		},
	})
}

func TestWindows(t *testing.T) {
	t.Parallel()
	count := func(w topology.Windows) func(b *topology.Builder) {
		return func(b *topology.Builder) { text(topology.Count(streamOf(b, "in").GroupByKey(), "n", w)).To("out") }
	}
	ms := time.Millisecond
	runAll(t, []scenario{
		{
			"tumbling", count(topology.Tumbling(10*ms, topology.Grace(5*ms))), `
			in a x 1
			in a x 9
			in a - 5
			in - x 100
			in b x 14
			in a x 2
			in b x 15
			in a x 3
			in b x 12`,
			"[a@0/10]:1@1 [a@0/10]:2@9 [a@0/10]:3@9 [b@10/20]:1@14 [a@0/10]:4@9 [b@10/20]:2@15 [b@10/20]:3@15",
			[]string{"n null-key", "n late"},
		},
		{
			"hopping: late for one window, not for the next", count(topology.Hopping(10*ms, 5*ms, topology.Grace(0))), `
			in a x 3
			in a x 12
			in a x 9
			in a x 4`,
			"[a@0/10]:1@3 [a@5/15]:1@12 [a@10/20]:1@12 [a@5/15]:2@12",
			[]string{"n late", "n late"},
		},
		{
			"hopping with an advance that does not divide the size", count(topology.Hopping(10*ms, 4*ms, topology.Grace(0))), `
			in a x 13`,
			"[a@4/14]:1@13 [a@8/18]:1@13 [a@12/22]:1@13", nil,
		},
		{
			"final results in order of start, then key", count(topology.Tumbling(10*ms, topology.Grace(5*ms), topology.EmitFinal())), `
			in b x 1
			in a x 12
			in a x 2
			in c x 3
			in c x 14
			in c x 15
			in c x 24
			in c x 25
			in c x 26`,
			"[a@0/10]:1@2 [b@0/10]:1@1 [c@0/10]:1@3 [a@10/20]:1@12 [c@10/20]:2@15", nil,
		},
		{
			"final results of windows that a leap takes beyond their retention", count(topology.Tumbling(10*ms, topology.Grace(0), topology.EmitFinal())), `
			in a x 1
			in b x 1000000
			in b x 2000000`,
			"[a@0/10]:1@1 [b@1000000/1000010]:1@1000000", nil,
		},
		{
			"reduce", func(b *topology.Builder) {
				text(topology.Reduce(streamOf(b, "in").GroupByKey(), "r", topology.Tumbling(10*ms, topology.Grace(0)), func(agg, v string) string { return agg + "+" + v })).To("out")
			}, `
			in a x 1
			in a y 0
			in a - 2
			in b - 3
			in a z 10`,
			"[a@0/10]:x@1 [a@0/10]:x+y@1 [a@0/10]:x+y+@2 [b@0/10]:@3 [a@10/20]:z@10", nil,
		},
	})
}

func TestWindowedAcrossRestart(t *testing.T) {
	t.Parallel()
	b := topology.New("app")
	w := topology.Tumbling(10*time.Millisecond, topology.Grace(5*time.Millisecond), topology.EmitFinal())
	text(topology.Count(streamOf(b, "in").GroupByKey(), "n", w)).To("out")
	d := topologytest.New(t, b)
	out := topologytest.Output(d, "out", str, str)
	pipe(t, d, "in a x 1\nin b x 15\n")
	if got := out.Text(); !slices.Equal(got, []string{"[a@0/10]:1@1"}) {
		t.Fatal(got)
	}
	d.Restart()
	// Stream time is durable: the record is late, and nothing is emitted again.
	pipe(t, d, "in a x 2\nin b x 16\n")
	if got := out.Text(); len(got) != 0 {
		t.Errorf("emitted %v after the restart", got)
	}
	if drops := d.Drops(); len(drops) != 1 || drops[0].Reason != "late" {
		t.Errorf("drops %v, want one late record", drops)
	}
	pipe(t, d, "in b x 25\n")
	if got := out.Text(); !slices.Equal(got, []string{"[b@10/20]:2@16"}) {
		t.Error(got)
	}
}

func TestGroupedTables(t *testing.T) {
	t.Parallel()
	// A row "group,value" counts in its group; "-,value" is in no group.
	byGroup := func(b *topology.Builder) *topology.KGroupedTable[*string, string] {
		return topology.TableGroupBy(tableOf(b, "in"), "groups", func(_, v string) (*string, string) {
			group, value, _ := strings.Cut(v, ",")
			if group == "none" {
				return nil, value
			}
			return &group, value
		}, topology.GroupSerdes(pointers{}, str))
	}
	keyed := func(t *topology.KTable[*string, string]) *stream {
		return topology.SelectKey(t.ToStream(), func(k *string, _ string) string { return *k })
	}
	start := func() string { return "0" }
	add := func(_ *string, v, agg string) string { return agg + "+" + v }
	subtract := func(_ *string, v, agg string) string { return agg + "-" + v }
	script := `
		in a g,1 10
		in b g,2 8
		in a g,3 9
		in a h,4 12
		in a none,5 13
		in b - 7`
	runAll(t, []scenario{
		{
			"aggregate", func(b *topology.Builder) {
				keyed(topology.TableAggregate(byGroup(b), "agg", str, start, add, subtract)).To("out")
			}, script,
			"g:0+1@10 g:0+1+2@10 g:0+1+2-1+3@10 g:0+1+2-1+3-3@12 h:0+4@12 h:0+4-4@13 g:0+1+2-1+3-3-2@12", nil,
		},
		{
			"count", func(b *topology.Builder) {
				counts := byGroup(b).Count("n")
				keyed(topology.TableMapValues(counts, func(n int64) string { return strconv.FormatInt(n, 10) })).To("out")
			}, script,
			"g:1@10 g:2@10 g:2@10 g:1@12 h:1@12 h:0@13 g:0@12", nil,
		},
		{
			"reduce", func(b *topology.Builder) {
				keyed(byGroup(b).Reduce("r", func(agg, v string) string { return agg + "+" + v }, func(agg, v string) string { return agg + "-" + v })).To("out")
			}, script,
			"g:1@10 g:1+2@10 g:1+2-1+3@10 g:1+2-1+3-3@12 h:4@12 h:4-4@13 g:1+2-1+3-3-2@12", nil,
		},
		{
			"a subtractor that returns nil deletes; nothing is subtracted from nothing", func(b *topology.Builder) {
				agg := topology.TableAggregate(byGroup(b), "agg", serde.JSON[[]string](), func() []string { return []string{} },
					func(_ *string, v string, agg []string) []string { return append(agg, v) },
					func(*string, string, []string) []string { return nil })
				topology.Map(agg.ToStream(), func(k *string, v []string) (string, string) { return *k, strings.Join(v, "") }).To("out")
			}, `
			in a g,1 1
			in b g,2 2
			in a - 3
			in b - 4
			in c g,3 5`,
			"g:1@1 g:12@2 g:@3 g:@4 g:3@5", nil,
		},
	})
}

// pointers is the serde of *string, so that nil is a null key.
type pointers struct{}

func (pointers) Append(dst []byte, v *string) ([]byte, error) { return append(dst, *v...), nil }
func (pointers) Decode(data []byte) (*string, error)          { s := string(data); return &s, nil }
func (pointers) Name() string                                 { return "pointers" }
