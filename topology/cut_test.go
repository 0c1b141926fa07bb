package topology

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// lookup adds an asynchronous step as the graph sees one: two outputs, its rows
// in the task.
func lookup(s *KStream[string, string], name string) (results, fallbacks *KStream[string, string]) {
	s = asyncInput(s, name, true)
	n := &node{kind: kindAsync, op: "lookup", name: name, outs: 2, labels: []string{"results", "fallbacks"}}
	s.b.addNode(n, s.from)
	return s.same(port{n, 0}), s.same(port{n, 1})
}

// counted adds a stateful step with a store of its own.
func counted(s *KStream[string, string], name string) *KStream[string, string] {
	s = repartitioned(s, name, false)
	spec := state.Spec{Name: name, KeySerde: "string", ValueSerde: "int64"}
	return s.same(port{n: s.b.addNode(&node{kind: kindStateful, op: "count", name: name, stores: []state.Spec{spec}}, s.from)})
}

func pass(string, string) bool { return true }

func first(_, v string) string { return v[:1] }

var cutCases = []goldenCase{
	{"pass-through", func(b *Builder) { textStream(b).To("out") }},
	{"two streams that share nothing are two sub-topologies", func(b *Builder) {
		textStream(b).To("out")
		Stream(b, "numbers", serde.Int32(), serde.Int64(), From(Latest)).Filter(func(int32, int64) bool { return true }).To("positive")
	}},
	{"a topic read twice is one source", func(b *Builder) {
		textStream(b).To("out")
		textStream(b, From(Earliest)).Filter(pass, Named("some")).To("out-too")
	}},
	{"a merge joins its inputs", func(b *Builder) {
		textStream(b).Merge(Stream(b, "in2", serde.String(), serde.String(), From(MustExist))).To("out")
	}},
	{"branches", func(b *Builder) {
		br := textStream(b).Split(Named("route"))
		br.Branch("some", pass).To("some")
		br.Branch("dropped", pass)
		br.Default("rest").Peek(func(string, string) {}).ForEach(func(string, string) {})
	}},
	{"a topic per record", func(b *Builder) {
		textStream(b).ToEach(func(processors.Record[string, string]) (string, error) { return "out", nil })
	}},
	{"explicit repartition", func(b *Builder) {
		textStream(b).Repartition("spread", Partitions(12)).To("out", PartitionBy(func(_, _ string, n int32) int32 { return 0 }))
	}},
	{"a changed key is repartitioned before a stateful step only", func(b *Builder) {
		s := SelectKey(textStream(b), first)
		s.To("by-first")
		counted(s.Filter(pass), "per-first").To("counts")
	}},
	{"an unchanged key is not repartitioned", func(b *Builder) { counted(textStream(b).Filter(pass), "per-key").To("counts") }},
	{"both halves of a repartition in one sub-topology", func(b *Builder) {
		AddKeyValueStore(b, "shared", serde.String(), serde.String())
		s := textStream(b)
		Process(s, "before", noProcessor, Stores("shared"))
		Process(SelectKey(s, first).Repartition("again"), "after", noProcessor, Stores("shared"))
	}},
	{"a stateful step of two topics is co-partitioned", func(b *Builder) {
		counted(textStream(b).Merge(Stream(b, "in2", serde.String(), serde.String())), "both")
	}},
	{"a shared store joins sub-topologies", func(b *Builder) {
		AddWindowStore(b, "seen", serde.String(), serde.String(), time.Minute, time.Hour)
		ProcessValues(textStream(b), "write", noProcessor, Stores("seen")).To("out")
		Process(Stream(b, "in2", serde.String(), serde.String()), "read", noProcessor, Stores("seen"))
	}},
	{"an asynchronous step between stateless ones costs no topic", func(b *Builder) {
		s := textStream(b).Filter(pass, Named("some"))
		results, fallbacks := lookup(s, "ask")
		results.Filter(pass).To("answered")
		fallbacks.To("unanswered")
	}},
	{"a step before an asynchronous one runs twice if it also leads elsewhere", func(b *Builder) {
		s := textStream(b).Filter(pass, Named("some"))
		results, _ := lookup(s.Filter(pass, Named("asked")), "ask")
		results.To("answered")
		s.To("out")
	}},
	{"source and results are merged into one sink", func(b *Builder) {
		s := textStream(b)
		results, _ := lookup(s, "ask")
		s.Merge(results).To("all")
	}},
	{"a changed key before an asynchronous step", func(b *Builder) {
		results, _ := lookup(SelectKey(textStream(b), first), "ask")
		results.To("answered")
	}},
	{"stateful before asynchronous", func(b *Builder) {
		results, _ := lookup(counted(textStream(b), "per-key").Filter(pass), "ask")
		results.To("answered")
	}},
	{"stateful behind asynchronous", func(b *Builder) {
		results, fallbacks := lookup(textStream(b), "ask")
		counted(results.Filter(pass), "per-key").To("counts")
		Process(fallbacks, "audit", noProcessor)
	}},
	{"asynchronous behind asynchronous", func(b *Builder) {
		results, fallbacks := lookup(textStream(b), "ask")
		again, _ := lookup(results, "ask-again")
		again.Merge(fallbacks).To("answered")
	}},
	{"two asynchronous steps of one source", func(b *Builder) {
		s := textStream(b)
		one, _ := lookup(s, "one")
		two, _ := lookup(s, "two")
		one.Merge(two).To("answers")
	}},
	{"asynchronous behind a repartition that others read too", func(b *Builder) {
		s := SelectKey(textStream(b), first).Repartition("by-first")
		results, _ := lookup(s, "ask")
		results.To("answered")
		counted(s, "per-first")
	}},
	{"a sub-topology named like another's topic", func(b *Builder) {
		textStream(b).To("out")
		counted(Stream(b, "in2", serde.String(), serde.String()), "in")
	}},
	{"tables, windows and joins", func(b *Builder) {
		products := Table(b, "products", "products", serde.String(), serde.String())
		regions := GlobalTable(b, "regions", "regions", serde.String(), serde.String())
		orders := Stream(b, "orders", serde.String(), serde.String())
		named := Join(orders, products, func(o, p string) string { return o + p })
		placed := GlobalJoin(named, regions, func(k, _ string) string { return k }, func(o, r string) string { return o + r })
		placed.To("orders.placed")
		byRegion := GroupBy(placed, "by-region", first)
		perMinute := Count(byRegion, "per-minute", Tumbling(time.Minute, Grace(0)))
		perMinute.ToStream().WithKeySerde(WindowedSerde(serde.String(), time.Minute)).To("counts")
		byRegion.Reduce("last", func(_, v string) string { return v })
	}},
	{"an asynchronous lookup between joins", func(b *Builder) {
		products := Table(b, "products", "products", serde.String(), serde.String())
		asked := AsyncLookup(textStream(b).Filter(pass), "ask", func(context.Context, processors.Record[string, string]) (int64, error) { return 0, nil },
			serde.Int64(), OnFailure(FallbackEvent))
		text := MapValues(asked.Results(), func(a processors.Answer[string, int64]) string { return fmt.Sprint(a.Event, a.Result) })
		Join(text, products, func(t, p string) string { return t + p }, Named("with-product")).To("answered")
		asked.Fallbacks().To("unanswered")
	}},
}

func noProcessor() processors.Processor[string, string, string, string] {
	return processors.ProcessorFunc[string, string, string, string](func(*processors.Context[string, string], processors.Record[string, string]) error { return nil }).New()
}

func TestCut(t *testing.T) { golden(t, "cut.txt", cutCases) }

// TestEveryEdgeIsFollowedOnce checks for all topologies of [cutCases] that no
// stateful step is instantiated twice, that every terminal step is, and that an
// edge out of a step delivers a record once: its copies in different
// sub-topologies must get different records, so only edges that lead to an
// asynchronous step, or out of steps behind one, may repeat.
func TestEveryEdgeIsFollowedOnce(t *testing.T) {
	t.Parallel()
	for _, c := range cutCases {
		b := New("app")
		c.build(b)
		at := map[instance]int{}
		for _, p := range b.cut() {
			place := map[instance]int{}
			for k, i := range p.instances {
				at[i]++
				place[i] = k
			}
			for i, edges := range p.edges {
				for _, e := range edges {
					to := instance{n: e.to}
					if _, ok := place[to]; !ok {
						t.Errorf("%s: %s leads to %s, which is not in its sub-topology", c.name, i.n.name, e.to.name)
					}
					if place[to] <= place[i] {
						t.Errorf("%s: %s comes before %s", c.name, e.to.name, i.n.name)
					}
				}
			}
		}
		for _, n := range b.nodes {
			i := instance{n: n}
			switch n.kind {
			case kindStateful, kindAsync:
				if at[i] != 1 {
					t.Errorf("%s: %s is instantiated %d times, want once", c.name, n.name, at[i])
				}
			case kindSink, kindRepartition:
				if at[i] == 0 {
					t.Errorf("%s: %s is instantiated nowhere", c.name, n.name)
				}
			}
		}
	}
}
