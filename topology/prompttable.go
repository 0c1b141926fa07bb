package topology

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// A PromptTable is a table whose rows belong to the events of an enrichment with keys
// K and values In: the template of its prompt reads them as .Tables.<name>. Make one
// with [GlobalRow] or [TableRow].
type PromptTable[K, In any] struct {
	builder *Builder
	table   string // for errors
	shape   any    // a zero row
	// join adds the table to the step n, as its next input, and returns what opens it.
	join func(n *node, name string) (from *port, open processors.TableReader[K, In], input any)
}

// GlobalRow is the row of a global table whose key keyOf takes from the event. It is
// looked up when the event is about to be asked about, and stored with the question.
// Without a row, or if keyOf returns nil, the template sees nil: use {{with}}.
func GlobalRow[K, In, KT, T any](g *GlobalKTable[KT, T], keyOf func(key K, value In) KT) PromptTable[K, In] {
	nilKey := processors.NullCheck[KT]()
	join := func(*node, string) (*port, processors.TableReader[K, In], any) {
		return nil, func(t processors.Task) (processors.RowOf[K, In], error) {
			store := t.Global(g.store)
			if store == nil {
				return nil, fmt.Errorf("global table %q: not in this instance", g.store)
			}
			rows := state.NewKeyValueStore(store, g.key, g.value)
			return func(rec processors.Record[K, In]) (any, []byte, error) {
				key := keyOf(rec.Key, rec.Value)
				if nilKey(key) {
					return nil, nil, nil
				}
				row, ok, err := rows.Get(key)
				if err != nil || !ok {
					return nil, nil, err
				}
				return row, nil, nil
			}, nil
		}, nil
	}
	return PromptTable[K, In]{builder: g.b, table: g.store, shape: zeroOf[T](), join: join}
}

// TableRow is the row of a table whose key keyOf takes from the event. The step reads
// the table's topic itself and keeps a copy in the store <step>-<name>, so that the
// rows are those of the event's partition: topic and table need the same number of
// partitions, and a key that keyOf returns must be of the event's partition, for which
// the event's own key is the safe choice; another one fails the event. A table that is
// computed, or whose key was changed, comes through the topic
// <app>.<step>-<name>-repartition.
//
// The row is looked up as that of [GlobalRow] is.
func TableRow[K, In, KT, T any](table *KTable[KT, T], keyOf func(key K, value In) KT) PromptTable[K, In] {
	nilKey := processors.NullCheck[KT]()
	join := func(n *node, name string) (*port, processors.TableReader[K, In], any) {
		rows := table.copied(n.name + "-" + name)
		open := func(t processors.Task) (processors.RowOf[K, In], error) {
			lookup, err := rows.lookup(t)
			if err != nil {
				return nil, err
			}
			return func(rec processors.Record[K, In]) (any, []byte, error) {
				key := keyOf(rec.Key, rec.Value)
				if nilKey(key) {
					return nil, nil, nil
				}
				raw, err := rows.key.Append([]byte{}, key)
				if err != nil {
					return nil, nil, err
				}
				row, _, ok, err := lookup(key)
				if err != nil || !ok {
					return nil, raw, err
				}
				return row, raw, nil
			}, nil
		}
		return &rows.from, open, processors.Forward[KT, processors.Change[T]](func(processors.Record[KT, processors.Change[T]]) error { return nil })
	}
	return PromptTable[K, In]{builder: table.b, table: table.store, shape: zeroOf[T](), join: join}
}

// copied returns a copy of the table in the store of that name, for the asynchronous
// step that is added next.
func (t *KTable[K, V]) copied(store string) *KTable[K, V] {
	from := t.made
	if from == nil || from.key == nil || from.value == nil {
		from = t.ToStream()
	}
	c := addTable("table-copy", store, asyncInput(from, store, true), nil)
	c.from.n.copied = true
	return c
}

// joinPromptTables adds the tables of an enrichment to its step. It returns the ports of
// those that are inputs of it, and their boxed inputs.
func joinPromptTables[K, In any, Out proto.Message](b *Builder, what string, n *node, step *processors.EnrichStep[K, In, Out], tables map[string]PromptTable[K, In]) (from []port, inputs []any) {
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		table := tables[name]
		switch {
		case table.join == nil:
			b.fail("%s: table %q: make it with GlobalRow or TableRow", what, name)
			continue
		case table.builder != b:
			b.fail("%s: table %q: it belongs to another builder; build the whole application with one", what, name)
			continue
		}
		if err := checkName(name); err != nil {
			b.fail("%s: table: %v", what, err)
			continue
		}
		port, open, input := table.join(n, name)
		step.Tables = append(step.Tables, processors.PromptTable[K, In]{Name: name, Open: open, Local: port != nil})
		n.detail = join(n.detail, fmt.Sprintf("table %s: %q", name, table.table))
		if port != nil {
			from, inputs = append(from, *port), append(inputs, input)
			n.aligned = true
		}
	}
	return from, inputs
}

// shapesOf are zero rows of tables, for the check of a template.
func shapesOf[K, In any](tables map[string]PromptTable[K, In]) map[string]any {
	shapes := map[string]any{}
	for name, table := range tables {
		shapes[name] = table.shape
	}
	return shapes
}
