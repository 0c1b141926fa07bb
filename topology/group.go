package topology

import (
	"fmt"
	"reflect"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// A KGroupedStream is a stream on its way to an aggregation, partitioned by its
// key. Aggregations drop records without a key ("null-key"); those without
// windows also drop records without a value ("null-value").
type KGroupedStream[K, V any] struct {
	s *KStream[K, V]
	// name is that of the repartition topic; empty leaves it to the aggregation.
	name  string
	ready *KStream[K, V] // behind the repartition topic, once there is one
}

// GroupByKey groups the stream by its present key. If a step before it changed
// the key, the records go through a repartition topic first:
// <app>.<name>-repartition with the option [Named], which all aggregations of the
// group share, else one per aggregation, <app>.<store>-repartition. If no step
// changed it, there is none.
func (s *KStream[K, V]) GroupByKey(opts ...StepOption) *KGroupedStream[K, V] {
	n := &node{}
	for _, opt := range opts {
		opt.step(n)
	}
	return &KGroupedStream[K, V]{s: s, name: n.name}
}

// GroupBy groups the stream by the key that f computes; records for which it
// returns nil are dropped ("null-key"). They go through the repartition topic
// <app>.<name>-repartition, which all aggregations of the group share.
//
// The key takes the obvious serde of its type; for other types use [SelectKey],
// WithKeySerde and GroupByKey.
func GroupBy[K, V, R any](s *KStream[K, V], name string, f func(K, V) R) *KGroupedStream[R, V] {
	return SelectKey(s, f).GroupByKey(Named(name))
}

// in returns the input of an aggregation with the given store.
func (g *KGroupedStream[K, V]) in(store string) *KStream[K, V] {
	if g.name == "" {
		return repartitioned(g.s, store, false)
	}
	if g.ready == nil {
		if g.ready = repartitioned(g.s, g.name, false); g.ready != g.s {
			g.s.b.claim(g.name, fmt.Sprintf("group %q", g.name))
		}
	}
	return g.ready
}

// Count counts the records of each key in the store named store, with the
// changelog <app>.<store>-table.
func (g *KGroupedStream[K, V]) Count(store string) *KTable[K, int64] {
	return aggregate(g, "count", store, serde.Int64(), processors.CountUpdate[K, V]())
}

// Reduce combines the values of each key with f in the store named store, with
// the changelog <app>.<store>-table. The first value of a key is its first
// result, without a call of f. Where f returns nil, the row is deleted.
func (g *KGroupedStream[K, V]) Reduce(store string, f func(agg, value V) V) *KTable[K, V] {
	return aggregate(g, "reduce", store, g.s.value, processors.ReduceUpdate[K](noError2(f)))
}

// Aggregate combines the values of each key in the store named store, with the
// changelog <app>.<store>-table: start returns the aggregate of a new key, add
// adds a value to it. add may change the aggregate it is given and return it.
// Where it returns nil, the row is deleted.
//
// The old value of a key's first update is missing; in Kafka Streams it is what
// start returned.
func Aggregate[K, V, A any](g *KGroupedStream[K, V], store string, agg serde.Serde[A], start func() A, add func(key K, value V, agg A) A) *KTable[K, A] {
	return aggregate(g, "aggregate", store, agg, processors.AggregateUpdate(start, noError3(add)))
}

func aggregate[K, V, A any](g *KGroupedStream[K, V], op, store string, agg serde.Serde[A], update processors.Update[K, V, A]) *KTable[K, A] {
	s := g.in(store)
	t := &KTable[K, A]{b: s.b, key: s.key, value: agg, store: store}
	n := &node{kind: kindStateful, op: op, name: store, stores: t.b.keyValueSpec(op, store, s.key, agg), inputs: []input{inputOf(s)}}
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		rows, err := openKeyValue(task, store, s.key, agg)
		if err != nil {
			return nil, err
		}
		return []any{processors.Guard(store, processors.Aggregate(task, store, rows, update, forwards[K, processors.Change[A]](out[0])))}, nil
	}
	t.from = port{n: t.b.addNode(n, s.from)}
	t.ownLookup()
	return t
}

// Count counts the records of each key and window in the store named store.
// Records without a value count too, but for [Sliding] windows.
//
// This function and its siblings [Reduce], [WindowedAggregate] and
// [SessionAggregate] count a record in every window that contains its timestamp,
// except windows that have closed. Those of [Tumbling] and [Hopping] are closed
// when their end + grace is at or before stream time, the largest timestamp the
// step has accepted; see [EmitFinal] for the others. For each of these the record
// is dropped ("late"). Every update is forwarded, or with [EmitFinal] the last
// one. A result's timestamp is the largest of the contributing records. The
// changelog is <app>.<store>-table.
//
// Counting without windows is the method [KGroupedStream.Count].
func Count[K, V any](g *KGroupedStream[K, V], store string, w Windows) *KTable[Windowed[K], int64] {
	plus := func(_ K, a, b int64) (int64, error) { return a + b, nil }
	return windowed(g, "windowed-count", store, w, serde.Int64(), processors.CountUpdate[K, V](), processors.MergeAggregates(func() int64 { return 0 }, plus))
}

// Reduce combines the values of each key and window with f in the store named
// store; see [Count] for windows and [KGroupedStream.Reduce] for f, which sees the
// zero value for a record without a value. The results of sessions that merge are
// combined with f too.
func Reduce[K, V any](g *KGroupedStream[K, V], store string, w Windows, f func(agg, value V) V) *KTable[Windowed[K], V] {
	return windowed(g, "windowed-reduce", store, w, g.s.value, processors.ReduceUpdate[K](noError2(f)), processors.MergeReduce[K](noError2(f)))
}

// WindowedAggregate combines the values of each key and window in the store named
// store; see [Count] for windows and [Aggregate] for the functions. add sees the
// zero value for a record without a value. Sessions need [SessionAggregate].
func WindowedAggregate[K, V, A any](g *KGroupedStream[K, V], store string, w Windows, agg serde.Serde[A], start func() A, add func(key K, value V, agg A) A) *KTable[Windowed[K], A] {
	return windowed(g, "windowed-aggregate", store, w, agg, processors.AggregateUpdate(start, noError3(add)), nil)
}

// SessionAggregate combines the values of each key and session in the store named
// store; see [Session] for sessions and [Aggregate] for start and add. merge
// combines the aggregates of sessions that a record connects: beginning with
// start(), each of them in the order of time; then the record is added.
func SessionAggregate[K, V, A any](g *KGroupedStream[K, V], store string, w Windows, agg serde.Serde[A], start func() A, add func(key K, value V, agg A) A, merge func(key K, a, b A) A) *KTable[Windowed[K], A] {
	return windowed(g, "session-aggregate", store, w, agg, processors.AggregateUpdate(start, noError3(add)), processors.MergeAggregates(start, noError3(merge)))
}

func windowed[K, V, A any](g *KGroupedStream[K, V], op, store string, w Windows, agg serde.Serde[A], update processors.Update[K, V, A], merge processors.Merge[K, A]) *KTable[Windowed[K], A] {
	s := g.in(store)
	in := func(step *processors.WindowStep[K, A]) any {
		return processors.Guard(store, processors.WindowedAggregate(step, update))
	}
	return windowedTable(s.b, op, store, w, s.key, agg, merge, []windowInput[K, A]{in}, []input{inputOf(s)}, s.from)
}

// A windowInput starts an input of a windowed aggregation.
type windowInput[K, A any] func(*processors.WindowStep[K, A]) any

// windowedTable adds the step that aggregates by key and window.
func windowedTable[K, A any](b *Builder, op, store string, w Windows, key serde.Serde[K], agg serde.Serde[A], merge processors.Merge[K, A], inputs []windowInput[K, A], records []input, from ...port) *KTable[Windowed[K], A] {
	t := &KTable[Windowed[K], A]{b: b, value: agg, store: store, uses: []string{store}}
	if w.Kind != processors.UnlimitedWindow {
		t.end, t.closes = func(k Windowed[K]) int64 { return k.End }, w.closes()
	}
	switch sessions := w.Kind == processors.SessionWindows; {
	case sessions && merge == nil:
		b.fail("%s %q: sessions merge; use topology.SessionAggregate or topology.SessionCogroup", op, store)
	case !sessions && (op == "session-aggregate" || op == "session-cogroup"):
		b.fail("%s %q: the windows are no sessions; pass topology.Session, or use topology.WindowedAggregate or topology.WindowedCogroup", op, store)
	case key == nil:
	case sessions:
		t.key = SessionSerde(key)
	default:
		t.key = WindowedSerde(key, w.Size)
	}
	n := &node{kind: kindStateful, op: op, name: store, detail: w.String(), timers: true, stores: b.windowSpec(op, store, w, key, agg), inputs: records}
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		step, err := openWindowed(task, store, w, key, agg)
		if err != nil {
			return nil, err
		}
		step.Merge, step.Next = merge, forwards[Windowed[K], processors.Change[A]](out[0])
		started := make([]any, len(inputs))
		for i, in := range inputs {
			started[i] = in(step)
		}
		return started, nil
	}
	t.lookup = func(task processors.Task) (processors.Lookup[Windowed[K], A], error) {
		step, err := openWindowed(task, store, w, key, agg)
		if err != nil {
			return nil, err
		}
		return step.Lookup(), nil
	}
	t.from = port{n: b.addNode(n, from...)}
	return t
}

// A KGroupedTable is a table whose rows have been given new keys, on its way to
// an aggregation.
type KGroupedTable[K, V any] struct {
	changes *KStream[K, processors.Change[V]]
	value   serde.Serde[V]
	broken  bool // a mistake has been reported
}

// TableGroupBy gives every row of a table a new key and value, to aggregate the
// rows with the same new key. An update of a row that keeps its new key is one
// update of the aggregate, first taking out the old value, then adding the new
// one; a row that moves is taken out of its old group first and added to its new
// one then, which may be in another partition, so that for a moment neither
// holds it. A row for which choose returns a nil key or value is in no group.
//
// The updates go through the repartition topic <app>.<name>-repartition, which
// all aggregations of the group share. Key and value take the serdes of the table
// if their types are equal, else the obvious ones of the types; see
// [KGroupedTable.WithSerdes].
func TableGroupBy[K, V, KR, VR any](t *KTable[K, V], name string, choose func(K, V) (KR, VR), opts ...GroupOption[KR, VR]) *KGroupedTable[KR, VR] {
	key, value := serdeFor[K, KR](t.key), serdeFor[V, VR](t.value)
	for _, opt := range opts {
		key, value = opt.key, opt.value
	}
	what := fmt.Sprintf("group %q", name)
	t.b.claim(name, what)
	if key == nil || value == nil {
		t.b.fail("%s: no serdes for keys of type %s and values of type %s; pass topology.GroupSerdes", what, reflect.TypeFor[KR](), reflect.TypeFor[VR]())
		return &KGroupedTable[KR, VR]{changes: &KStream[KR, processors.Change[VR]]{b: t.b, from: t.from}, broken: true}
	}
	n := &node{kind: kindStateless, op: "table-group-by"}
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		next := forwards[KR, processors.Change[VR]](out[0])
		return []any{processors.Guard(n.name, latestOnly(t, task, name, processors.Regroup(name, noErrorKV(choose), key, next)))}, nil
	}
	s := &KStream[KR, processors.Change[VR]]{b: t.b, from: port{n: t.b.addNode(n, t.from)}, key: key, value: processors.ChangeSerde(value), changed: true}
	return &KGroupedTable[KR, VR]{changes: repartitioned(s, name, false), value: value}
}

// A GroupOption configures [TableGroupBy].
type GroupOption[K, V any] struct {
	key   serde.Serde[K]
	value serde.Serde[V]
}

// GroupSerdes sets the serdes of the new keys and values.
func GroupSerdes[K, V any](key serde.Serde[K], value serde.Serde[V]) GroupOption[K, V] {
	return GroupOption[K, V]{key, value}
}

// Count counts the rows of each group in the store named store, with the
// changelog <app>.<store>-table. A group that has lost its last row stays, with a
// count of 0.
func (g *KGroupedTable[K, V]) Count(store string) *KTable[K, int64] {
	return tableAggregate(g, "table-count", store, serde.Int64(), processors.CountUpdate[K, V](), processors.UncountUpdate[K, V]())
}

// Reduce combines the values of each group in the store named store, with the
// changelog <app>.<store>-table: add adds a value, subtract takes it out. The
// first value of a group is its first result, without a call of add. Where a
// function returns nil, the row is deleted.
func (g *KGroupedTable[K, V]) Reduce(store string, add, subtract func(agg, value V) V) *KTable[K, V] {
	return tableAggregate(g, "table-reduce", store, g.value, processors.ReduceUpdate[K](noError2(add)), processors.ReduceUpdate[K](noError2(subtract)))
}

// TableAggregate combines the values of each group in the store named store,
// with the changelog <app>.<store>-table: start returns the aggregate of a new
// group, add adds a value, subtract takes it out. An aggregate stays when its
// group has lost its last row, unless subtract returns nil, which deletes it.
// Values are not subtracted where there is no aggregate.
func TableAggregate[K, V, A any](g *KGroupedTable[K, V], store string, agg serde.Serde[A], start func() A, add, subtract func(key K, value V, agg A) A) *KTable[K, A] {
	return tableAggregate(g, "table-aggregate", store, agg,
		processors.AggregateUpdate(start, noError3(add)), processors.AggregateUpdate(start, noError3(subtract)))
}

func tableAggregate[K, V, A any](g *KGroupedTable[K, V], op, store string, agg serde.Serde[A], add, subtract processors.Update[K, V, A]) *KTable[K, A] {
	s := g.changes
	t := &KTable[K, A]{b: s.b, from: s.from, key: s.key, value: agg, store: store}
	if g.broken {
		return t
	}
	n := &node{kind: kindStateful, op: op, name: store, stores: t.b.keyValueSpec(op, store, s.key, agg)}
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		rows, err := openKeyValue(task, store, s.key, agg)
		if err != nil {
			return nil, err
		}
		return []any{processors.Guard(store, processors.TableAggregate(store, rows, add, subtract, forwards[K, processors.Change[A]](out[0])))}, nil
	}
	t.from = port{n: t.b.addNode(n, s.from)}
	t.ownLookup()
	return t
}

func noError2[A, B, R any](f func(A, B) R) func(A, B) (R, error) {
	return func(a A, b B) (R, error) { return f(a, b), nil }
}

func noError3[A, B, C, R any](f func(A, B, C) R) func(A, B, C) (R, error) {
	return func(a A, b B, c C) (R, error) { return f(a, b, c), nil }
}

func noErrorKV[A, B, R, S any](f func(A, B) (R, S)) func(A, B) (R, S, error) {
	return func(a A, b B) (R, S, error) {
		r, s := f(a, b)
		return r, s, nil
	}
}
