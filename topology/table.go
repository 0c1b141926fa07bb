package topology

import (
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A KTable is a table: the current row of every key, and its updates in order.
// An update knows the row before and after it. A nil row of a pointer, slice,
// map or interface type is no row.
//
// User functions on rows see the row before and the row after each update, and
// rows that are looked up by joins: they must return the same for the same row,
// and must not change it.
type KTable[K, V any] struct {
	b     *Builder
	from  port
	key   serde.Serde[K] // nil if unknown
	value serde.Serde[V] // nil if unknown
	// lookup opens the reader of current rows, uses names the stores it reads.
	lookup func(processors.Task) (processors.Lookup[K, V], error)
	uses   []string
	// open opens the table's own key-value store, and says the serde of its keys; nil if
	// it has none.
	open func(processors.Task) (state.KeyValueStore[K, V], serde.Serde[K], error)
	// store is the name of the table's own store, empty if it has none.
	store string
	// dropper is the node that drops records, if it is not the table's own.
	dropper *node
	// made is the stream the table was made of, nil if it was made otherwise.
	made *KStream[K, V]
	// history is how far back versions reaches, which opens the reader of past
	// rows; nil for a table without history.
	history  time.Duration
	versions func(processors.Task) (processors.VersionLookup[K, V], error)
	// end returns the end of the window of a row's key, and closes is how many ms
	// of stream time later the window closes; nil for a table without windows that
	// close.
	end    func(K) int64
	closes int64
}

// Table reads a topic as a table: the last record of a key is its row, a record
// without a value deletes it. The last one in offset order counts, also if its
// timestamp is older. An update that changes nothing is forwarded as well, and
// so is the deletion of a key never seen. Records without a key are dropped
// ("null-key").
//
// The rows are kept in the key-value store named store, with the changelog
// <app>.<store>-table, so that old values are always known. (Kafka Streams keeps
// them only where a later step needs them.)
func Table[K, V any](b *Builder, topic, store string, key serde.Serde[K], value serde.Serde[V], opts ...TableOption) *KTable[K, V] {
	var o tableOptions
	for _, opt := range opts {
		opt.table(&o)
	}
	n := addSource(b, topic, key, value, o.source...)
	n.source.store = store
	return addTable("table", store, &KStream[K, V]{b: b, from: port{n: n}, key: key, value: value}, o.history)
}

// ToTable makes a table of a stream: the last record of a key is its row, a
// record without a value deletes it. Records without a key are dropped
// ("null-key").
//
// The rows are kept in the key-value store named store, with the changelog
// <app>.<store>-table. If the key may have changed, the records go through the
// repartition topic <app>.<store>-repartition first.
func (s *KStream[K, V]) ToTable(store string, opts ...VersionedOption) *KTable[K, V] {
	var o tableOptions
	for _, opt := range opts {
		opt.table(&o)
	}
	return addTable("to-table", store, repartitioned(s, store, false), o.history)
}

// addTable adds the node that keeps the rows of s.
func addTable[K, V any](op, store string, s *KStream[K, V], history *time.Duration) *KTable[K, V] {
	t := &KTable[K, V]{b: s.b, key: s.key, value: s.value, store: store, made: s}
	n := &node{kind: kindStateful, op: op, name: store, inputs: []input{inputOf(s)}}
	if history != nil {
		t.addHistory(n, *history)
	} else {
		n.stores = t.b.keyValueSpec(op, store, s.key, s.value)
		n.start = func(task processors.Task, out [][]any) ([]any, error) {
			rows, err := openKeyValue(task, store, s.key, s.value)
			if err != nil {
				return nil, err
			}
			return []any{processors.Guard(store, processors.TableSource(task, store, rows, forwards[K, processors.Change[V]](out[0])))}, nil
		}
	}
	t.from = port{n: s.b.addNode(n, s.from)}
	t.ownLookup()
	t.uses = n.uses
	return t
}

// ownLookup makes the table's lookup read its own key-value store.
func (t *KTable[K, V]) ownLookup() {
	store, key, value := t.store, t.key, t.value
	t.uses = []string{store}
	t.open = func(task processors.Task) (state.KeyValueStore[K, V], serde.Serde[K], error) {
		rows, err := openKeyValue(task, store, key, value)
		return rows, key, err
	}
	t.lookup = func(task processors.Task) (processors.Lookup[K, V], error) {
		rows, err := openKeyValue(task, store, key, value)
		if err != nil {
			return nil, err
		}
		return rows.GetTimestamped, nil
	}
}

// Store returns the name of the table's store, by which views read it. It is
// empty for a table made by Filter, FilterNot or TableMapValues, whose rows are
// computed from those of the table before.
func (t *KTable[K, V]) Store() string { return t.store }

// Filter keeps the rows for which keep returns true. A row that passed before an
// update and does not pass after it is deleted; nothing is forwarded for rows
// that pass neither before nor after. (Of a table with history, a deletion is: it
// may end an older version that passed.)
//
// The table has no store: its rows are looked up in the table before it.
func (t *KTable[K, V]) Filter(keep func(K, V) bool, opts ...StepOption) *KTable[K, V] {
	return mapTable(t, "table-filter", processors.FilterRows(func(k K, v V) (bool, error) { return keep(k, v), nil }), true, t.value, opts)
}

// FilterNot drops the rows for which drop returns true; see [KTable.Filter].
func (t *KTable[K, V]) FilterNot(drop func(K, V) bool, opts ...StepOption) *KTable[K, V] {
	return mapTable(t, "table-filter-not", processors.FilterRows(func(k K, v V) (bool, error) { return !drop(k, v), nil }), true, t.value, opts)
}

// TableMapValues replaces the value of every row by f of it. Every update is
// forwarded. A deletion is forwarded without a call.
//
// The table has no store: its rows are looked up in the table before it and
// mapped again. The value takes the serde of the table before if the types are
// equal, else the obvious one of the type; see [KTable.WithValueSerde].
func TableMapValues[K, V, R any](t *KTable[K, V], f func(V) R, opts ...StepOption) *KTable[K, R] {
	m := processors.MapRows(func(_ K, v V) (R, error) { return f(v), nil })
	return mapTable(t, "table-map-values", m, false, serdeFor[V, R](t.value), opts)
}

func mapTable[K, V, R any](t *KTable[K, V], op string, m processors.RowMap[K, V, R], quiet bool, value serde.Serde[R], opts []StepOption) *KTable[K, R] {
	// Stateful, though it has no store: it cannot be copied to where the table
	// before it is not, and may be used by lookups only.
	n := &node{kind: kindStateful, op: op}
	for _, opt := range opts {
		opt.step(n)
	}
	quiet = quiet && t.versions == nil
	n.start = func(_ processors.Task, out [][]any) ([]any, error) {
		return []any{processors.Guard(n.name, processors.TableFilterMap(m, quiet, forwards[K, processors.Change[R]](out[0])))}, nil
	}
	lookup, versions := t.lookup, t.versions
	out := &KTable[K, R]{
		b: t.b, from: port{n: t.b.addNode(n, t.from)}, key: t.key, value: value, uses: t.uses, history: t.history, end: t.end, closes: t.closes,
		lookup: func(task processors.Task) (processors.Lookup[K, R], error) {
			rows, err := lookup(task)
			if err != nil {
				return nil, err
			}
			return processors.MapLookup(m, rows), nil
		},
	}
	if versions != nil {
		out.versions = func(task processors.Task) (processors.VersionLookup[K, R], error) {
			rows, err := versions(task)
			if err != nil {
				return nil, err
			}
			return processors.MapVersions(m, rows), nil
		}
	}
	return out
}

// WithValueSerde sets the serde that sinks, repartitions and stores behind this
// point use for the value. The table's own store keeps its serde.
func (t *KTable[K, V]) WithValueSerde(value serde.Serde[V]) *KTable[K, V] {
	c := *t
	c.value = value
	return &c
}

// ToStream is the stream of the table's updates: the new value of each, a
// deletion as a record without a value.
func (t *KTable[K, V]) ToStream(opts ...StepOption) *KStream[K, V] {
	n := &node{kind: kindStateless, op: "to-stream"}
	for _, opt := range opts {
		opt.step(n)
	}
	n.start = func(_ processors.Task, out [][]any) ([]any, error) {
		return []any{processors.TableToStream(forwards[K, V](out[0]))}, nil
	}
	return &KStream[K, V]{b: t.b, from: port{n: t.b.addNode(n, t.from)}, key: t.key, value: t.value}
}

// A GlobalKTable is a table of which every instance keeps a full copy, so that a
// stream can look up any key in it, whatever its own partitioning.
type GlobalKTable[K, V any] struct {
	b     *Builder
	store string
	key   serde.Serde[K]
	value serde.Serde[V]
}

// GlobalTable reads a topic as a table of which every instance keeps one full
// copy, in the store named store. The copy is complete before the first record is
// processed and is updated on its own from then on: a lookup sees what has been
// committed to the topic so far, whatever its timestamp. Its changes produce no
// output by themselves.
//
// The topic itself is the log of the store; there is no changelog.
func GlobalTable[K, V any](b *Builder, topic, store string, key serde.Serde[K], value serde.Serde[V]) *GlobalKTable[K, V] {
	g := &GlobalKTable[K, V]{b: b, store: store, key: key, value: value}
	what := "global table"
	if err := checkName(topic); err != nil {
		b.fail("%s %q: topic: %v", what, store, err)
	}
	b.claim(store, what+` "`+store+`"`)
	specs := b.keyValueSpec(what, store, key, value)
	if specs == nil {
		return g
	}
	specs[0].SourceTopic = topic
	b.global = append(b.global, GlobalSource{Topic: topic, Store: specs[0], Apply: globalRow(key, value)})
	return g
}

// Store returns the name of the table's store, by which views read it.
func (g *GlobalKTable[K, V]) Store() string { return g.store }

// globalRow returns the Apply of a global table: it checks that key and value
// can be decoded, and keeps their bytes.
func globalRow[K, V any](key serde.Serde[K], value serde.Serde[V]) func(*processors.Raw, func([]byte) ([]byte, error)) ([]byte, []byte, error) {
	return func(rec *processors.Raw, _ func([]byte) ([]byte, error)) (k, row []byte, err error) {
		decode := processors.Decode(processors.Origin[K, V]{Step: "global table", Key: key, Value: value}, func(r processors.Record[K, V]) error {
			if r.NoKey {
				return nil
			}
			k = rec.Key
			if !r.NoValue {
				row = append(state.AppendRow(nil, r.Timestamp), rec.Value...)
			}
			return nil
		})
		if err := decode(rec); err != nil {
			return nil, nil, err
		}
		return k, row, nil
	}
}
