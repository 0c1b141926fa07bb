package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// Join joins every record of a stream with the current row of its key in a table
// and forwards what f makes of both. Only stream records produce output, with
// their own timestamp and headers; a change of the table does not.
//
//	              no row   row
//	record        -        f(key, value, row)
//	null value    dropped ("null-value")
//	null key      dropped ("null-key")
//
// The table's row is the last one the task has read, whatever its timestamp:
// records of both topics are read in the order of their timestamps as far as the
// task has them. Of a table with history ([Versioned]) it is the row as of the
// record's timestamp. With [Grace], such a join holds every record back, in the
// store named by [Named], until a record of the stream is newer by the grace, then
// joins it as of its own timestamp; records come out in the order of their
// timestamps, and one that is late already is joined at once. Records that are
// dropped and updates of the table do not end the wait.
//
// Stream and table must have the same number of partitions and
// partitioner. If a step before it may have changed the stream's key, or is
// asynchronous, the records go through the repartition topic
// <app>.<name>-repartition, whose name the option [Named] gives.
func Join[K, V, T, R any](s *KStream[K, V], t *KTable[K, T], f func(value V, row T) R, opts ...JoinOption) *KStream[K, R] {
	return joinTable(s, t, processors.InnerJoin, func(_ K, v V, row T, _ bool) (R, error) { return f(v, row), nil }, opts)
}

// LeftJoin is [Join], but a record without a row is forwarded too: f then gets
// ok = false and the zero row.
//
//	              no row                 row
//	record        f(value, zero, false)  f(value, row, true)
//	null value    dropped ("null-value")
//	null key      f(value, zero, false)
//
// Records without a key are kept by its repartition topic, if it has one.
func LeftJoin[K, V, T, R any](s *KStream[K, V], t *KTable[K, T], f func(value V, row T, ok bool) R, opts ...JoinOption) *KStream[K, R] {
	return joinTable(s, t, processors.LeftJoin, func(_ K, v V, row T, ok bool) (R, error) { return f(v, row, ok), nil }, opts)
}

// A JoinOption configures a join of a stream with a table. [Named] is one, and
// [Grace] for a table with history.
type JoinOption interface{ join(*joinOptions) }

type joinOptions struct {
	name  string
	grace *time.Duration
}

func joinTable[K, V, T, R any](s *KStream[K, V], t *KTable[K, T], kind processors.JoinKind, f func(K, V, T, bool) (R, error), opts []JoinOption) *KStream[K, R] {
	var o joinOptions
	for _, opt := range opts {
		opt.join(&o)
	}
	n := &node{kind: kindStateful, op: kind.String() + "-join", name: o.name, aligned: true}
	if t.b == s.b {
		n.uses = append(n.uses, t.uses...)
	} else {
		s.b.fail("%s with table %q: the table belongs to another builder; build the whole application with one", n.op, t.store)
	}
	in := repartitioned(s, n.name, kind == processors.LeftJoin)
	if in != s && n.name == "" {
		s.b.fail("%s with table %q: a step before it changes the stream's key or is asynchronous, so it needs a repartition topic; pass topology.Named to name it", n.op, t.store)
	}
	n.inputs = []input{inputOf(in)}
	delay := joinGrace(n, in, t, o.grace)
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		rows, err := t.asOf(task)
		if err != nil {
			return nil, err
		}
		var hold func(processors.Forward[K, V]) processors.Forward[K, V]
		if delay != nil {
			if hold, err = delay(task); err != nil {
				return nil, err
			}
		}
		next := forwards[K, R](out[0])
		return []any{processors.Guard(n.name, processors.StreamTableJoin(task, n.name, kind, processors.RecordKey[K, V], rows, f, hold, next))}, nil
	}
	return &KStream[K, R]{b: s.b, from: port{n: s.b.addNode(n, in.from)}, key: in.key, value: serdeFor[V, R](s.value)}
}

// asOf opens the reader of the table's rows as a stream sees them.
func (t *KTable[K, V]) asOf(task processors.Task) (processors.VersionLookup[K, V], error) {
	if t.versions != nil {
		return t.versions(task)
	}
	rows, err := t.lookup(task)
	if err != nil {
		return nil, err
	}
	return processors.Current(rows), nil
}

// joinGrace gives the join n the store that holds records back, and returns what
// opens it; nil without a grace.
func joinGrace[K, V, T any](n *node, s *KStream[K, V], t *KTable[K, T], grace *time.Duration) func(processors.Task) (func(processors.Forward[K, V]) processors.Forward[K, V], error) {
	if grace == nil {
		return nil
	}
	what, d := fmt.Sprintf("%s %q with table %q", n.op, n.name, t.store), *grace
	switch {
	case n.name == "":
		s.b.fail("%s: a join with grace has a store; pass topology.Named to name it", what)
	case t.versions == nil:
		s.b.fail("%s: a grace needs a table with history; pass topology.Versioned to the table, or leave the grace out", what)
	case d < 0 || d%time.Millisecond != 0:
		s.b.fail("%s: a grace of %s; it must be a number of milliseconds, 0 or more", what, d)
	case d > t.history:
		s.b.fail("%s: a grace of %s, but the table's history is %s; make the history at least as long", what, d, t.history)
	}
	n.detail, n.timers = fmt.Sprintf("grace %s", d), true
	if !needSerdes(s, what) || n.name == "" {
		return nil
	}
	rows := processors.RecordSerde(s.key, s.value)
	n.stores = s.b.keyValueSpec(n.op, n.name, processors.MomentSerde(), rows)
	return func(task processors.Task) (func(processors.Forward[K, V]) processors.Forward[K, V], error) {
		store, err := openKeyValue(task, n.name, processors.MomentSerde(), rows)
		return func(next processors.Forward[K, V]) processors.Forward[K, V] {
			return processors.Delay(task, n.name, d, store, next)
		}, err
	}
}

// GlobalJoin joins every record of a stream with the row of a global table whose
// key keyOf takes from the record, and forwards what f makes of both. Only stream
// records produce output. Nothing is repartitioned: every instance has all rows.
// There is no order between the stream and changes of the table.
//
//	                 no row   row
//	record           -        f(value, row)
//	null value       dropped ("null-value")
//	nil from keyOf   dropped ("null-key")
func GlobalJoin[K, V, KT, T, R any](s *KStream[K, V], g *GlobalKTable[KT, T], keyOf func(K, V) KT, f func(value V, row T) R, opts ...StepOption) *KStream[K, R] {
	return joinGlobal(s, g, keyOf, processors.InnerJoin, func(_ K, v V, row T, _ bool) (R, error) { return f(v, row), nil }, opts)
}

// GlobalLeftJoin is [GlobalJoin], but a record without a row, or for which keyOf
// returns nil, is forwarded too: f then gets ok = false and the zero row.
func GlobalLeftJoin[K, V, KT, T, R any](s *KStream[K, V], g *GlobalKTable[KT, T], keyOf func(K, V) KT, f func(value V, row T, ok bool) R, opts ...StepOption) *KStream[K, R] {
	return joinGlobal(s, g, keyOf, processors.LeftJoin, func(_ K, v V, row T, ok bool) (R, error) { return f(v, row, ok), nil }, opts)
}

func joinGlobal[K, V, KT, T, R any](s *KStream[K, V], g *GlobalKTable[KT, T], keyOf func(K, V) KT, kind processors.JoinKind, f func(K, V, T, bool) (R, error), opts []StepOption) *KStream[K, R] {
	n := &node{kind: kindStateless, op: "global-" + kind.String() + "-join", detail: fmt.Sprintf("table %q", g.store), inputs: []input{inputOf(s)}}
	for _, opt := range opts {
		opt.step(n)
	}
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		store := task.Global(g.store)
		if store == nil {
			return nil, fmt.Errorf("global table %q: not in this instance", g.store)
		}
		rows := state.NewKeyValueStore(store, g.key, g.value)
		next := forwards[K, R](out[0])
		return []any{processors.Guard(n.name, processors.StreamTableJoin(task, n.name, kind, processors.ExtractedKey(keyOf), processors.Current(rows.GetTimestamped), f, nil, next))}, nil
	}
	if g.b != s.b {
		s.b.fail("%s %q: the table belongs to another builder; build the whole application with one", n.op, g.store)
	}
	return &KStream[K, R]{b: s.b, from: port{n: s.b.addNode(n, s.from)}, key: s.key, value: serdeFor[V, R](s.value), changed: s.changed}
}

// TableJoin joins the rows of two tables with the same key, in the store named
// store with the changelog <app>.<store>-table. An update of either table updates
// the joined row, whose timestamp is the larger of the two rows' timestamps.
//
//	                left only   right only   both
//	TableJoin       -           -            f(left, right)
//	TableLeftJoin   f(left)     -            f(left, right)
//	TableOuterJoin  f(left)     f(right)     f(left, right)
//
// An update that leaves no joined row is forwarded as a deletion if the other
// table has the row; of a left or outer join also if it deletes a row that was
// joined alone. A nil result of f is no row. The tables must have the same number
// of partitions and partitioner; nothing is repartitioned.
func TableJoin[K, L, R, V any](left *KTable[K, L], right *KTable[K, R], store string, value serde.Serde[V], f func(left L, right R) V) *KTable[K, V] {
	return joinTables(left, right, store, value, processors.InnerJoin, func(_ K, l L, _ bool, r R, _ bool) (V, error) { return f(l, r), nil })
}

// TableLeftJoin is [TableJoin], but rows of the left table without one of the
// right table are joined too: f then gets ok = false and the zero row.
func TableLeftJoin[K, L, R, V any](left *KTable[K, L], right *KTable[K, R], store string, value serde.Serde[V], f func(left L, right R, ok bool) V) *KTable[K, V] {
	return joinTables(left, right, store, value, processors.LeftJoin, func(_ K, l L, _ bool, r R, ok bool) (V, error) { return f(l, r, ok), nil })
}

// TableOuterJoin is [TableJoin], but rows of either table without one of the
// other are joined too: f then gets hasLeft or hasRight = false and the zero row.
func TableOuterJoin[K, L, R, V any](left *KTable[K, L], right *KTable[K, R], store string, value serde.Serde[V], f func(left L, hasLeft bool, right R, hasRight bool) V) *KTable[K, V] {
	return joinTables(left, right, store, value, processors.OuterJoin, func(_ K, l L, hasL bool, r R, hasR bool) (V, error) { return f(l, hasL, r, hasR), nil })
}

func joinTables[K, L, R, V any](left *KTable[K, L], right *KTable[K, R], store string, value serde.Serde[V], kind processors.JoinKind,
	f func(K, L, bool, R, bool) (V, error),
) *KTable[K, V] {
	op := "table-" + kind.String() + "-join"
	t := &KTable[K, V]{b: left.b, key: left.key, value: value, store: store}
	if t.key == nil {
		t.key = right.key
	}
	n := &node{kind: kindStateful, op: op, name: store, aligned: true, stores: t.b.keyValueSpec(op, store, t.key, value)}
	if left.versions != nil {
		n.inputs = append(n.inputs, tableInput(left))
	}
	if right.versions != nil {
		n.inputs = append(n.inputs, tableInput(right))
	}
	n.uses = append(append(n.uses, left.uses...), right.uses...)
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		l, err := left.lookup(task)
		if err != nil {
			return nil, err
		}
		r, err := right.lookup(task)
		if err != nil {
			return nil, err
		}
		rows, err := openKeyValue(task, store, t.key, value)
		if err != nil {
			return nil, err
		}
		fromLeft, fromRight := processors.TableTableJoin(store, kind, l, r, f, rows, forwards[K, processors.Change[V]](out[0]))
		return []any{
			processors.Guard(store, latestOnly(left, task, store, fromLeft)),
			processors.Guard(store, latestOnly(right, task, store, fromRight)),
		}, nil
	}
	t.from = port{n: t.b.addNode(n, left.from, right.from)}
	t.ownLookup()
	return t
}
