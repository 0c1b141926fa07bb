package topology

import (
	"fmt"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A KCogroupedStream is several streams grouped by keys of one type, on their way
// to one aggregation: each has a function of its own that adds its values to the
// aggregate of the key, which all share.
type KCogroupedStream[K, A any] struct {
	b      *Builder
	key    serde.Serde[K]
	inputs []cogroupInput[K, A]
}

// cogroupInput is one of the streams. in returns its input, given the name of its
// repartition topic if it needs one.
type cogroupInput[K, A any] struct {
	in       func(name string) (port, input)
	plain    func(t processors.Task, store string, rows *aggregation[K, A]) any
	windowed func(*processors.WindowStep[K, A], func() A) any
}

// Cogroup begins an aggregation of several grouped streams with the first of
// them. add adds a value to the aggregate of its key; it may change the aggregate
// it is given and return it. Where it returns nil, the row is deleted.
func Cogroup[K, V, A any](g *KGroupedStream[K, V], add func(key K, value V, agg A) A) *KCogroupedStream[K, A] {
	return CogroupWith(&KCogroupedStream[K, A]{b: g.s.b, key: g.s.key}, g, add)
}

// CogroupWith adds a grouped stream to those before it. All streams need the same
// number of partitions and the same partitioner; one whose key a step before may
// have changed goes through the repartition topic of its group, if that is named,
// else <app>.<store>-<i>-repartition, where i is its number, from 0.
func CogroupWith[K, V, A any](c *KCogroupedStream[K, A], g *KGroupedStream[K, V], add func(key K, value V, agg A) A) *KCogroupedStream[K, A] {
	if g.s.b != c.b {
		c.b.fail("cogroup: a stream belongs to another builder; build the whole application with one")
	}
	more := *c
	if more.key == nil {
		more.key = g.s.key
	}
	more.inputs = append(append([]cogroupInput[K, A](nil), c.inputs...), cogroupInput[K, A]{
		in: func(name string) (port, input) {
			s := g.in(name)
			return s.from, inputOf(s)
		},
		plain: func(t processors.Task, store string, a *aggregation[K, A]) any {
			return processors.Guard(store, processors.Aggregate(t, store, a.rows, processors.AggregateUpdate(a.start, noError3(add)), a.next))
		},
		windowed: func(step *processors.WindowStep[K, A], start func() A) any {
			return processors.Guard(step.Step, processors.WindowedAggregate(step, processors.AggregateUpdate(start, noError3(add))))
		},
	})
	return &more
}

func (c *KCogroupedStream[K, A]) ports(store string) (from []port, records []input) {
	for i, in := range c.inputs {
		p, r := in.in(fmt.Sprintf("%s-%d", store, i))
		from, records = append(from, p), append(records, r)
	}
	return from, records
}

// Aggregate combines the values of each key in the store named store, with the
// changelog <app>.<store>-table: start returns the aggregate of a new key. Records
// without a key ("null-key") or a value ("null-value") are dropped.
func (c *KCogroupedStream[K, A]) Aggregate(store string, agg serde.Serde[A], start func() A) *KTable[K, A] {
	t := &KTable[K, A]{b: c.b, key: c.key, value: agg, store: store}
	n := &node{kind: kindStateful, op: "cogroup", name: store}
	from, records := c.ports(store)
	n.inputs = records
	n.stores = c.b.keyValueSpec(n.op, store, c.key, agg)
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		rows, err := openKeyValue(task, store, c.key, agg)
		if err != nil {
			return nil, err
		}
		a := &aggregation[K, A]{rows, start, forwards[K, processors.Change[A]](out[0])}
		started := make([]any, len(c.inputs))
		for i, in := range c.inputs {
			started[i] = in.plain(task, store, a)
		}
		return started, nil
	}
	t.from = port{n: c.b.addNode(n, from...)}
	t.ownLookup()
	return t
}

// aggregation is what the inputs of a running cogroup share.
type aggregation[K, A any] struct {
	rows  state.KeyValueStore[K, A]
	start func() A
	next  processors.Forward[K, processors.Change[A]]
}

// WindowedCogroup combines the values of each key and window in the store named
// store: start returns the aggregate of a new window. See [Count] for windows;
// stream time is the largest timestamp of all streams. Sessions need
// [SessionCogroup].
func WindowedCogroup[K, A any](c *KCogroupedStream[K, A], store string, w Windows, agg serde.Serde[A], start func() A) *KTable[Windowed[K], A] {
	return windowedCogroup(c, "windowed-cogroup", store, w, agg, start, nil)
}

// SessionCogroup combines the values of each key and session in the store named
// store; see [SessionAggregate] for merge.
func SessionCogroup[K, A any](c *KCogroupedStream[K, A], store string, w Windows, agg serde.Serde[A], start func() A, merge func(key K, a, b A) A) *KTable[Windowed[K], A] {
	return windowedCogroup(c, "session-cogroup", store, w, agg, start, processors.MergeAggregates(start, noError3(merge)))
}

func windowedCogroup[K, A any](c *KCogroupedStream[K, A], op, store string, w Windows, agg serde.Serde[A], start func() A, merge processors.Merge[K, A]) *KTable[Windowed[K], A] {
	var inputs []windowInput[K, A]
	for _, in := range c.inputs {
		inputs = append(inputs, func(step *processors.WindowStep[K, A]) any { return in.windowed(step, start) })
	}
	from, records := c.ports(store)
	return windowedTable(c.b, op, store, w, c.key, agg, merge, inputs, records, from...)
}
