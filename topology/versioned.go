package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// Versioned gives a table a history: the record with the largest timestamp of a
// key is its row, whatever the order in which records come, and joins with a
// stream see the row as it was at the time of the stream's record. History is how
// far the past reaches from stream time, in whole milliseconds and at least one;
// stream time is the largest timestamp the table has taken.
//
// A record that is older than the row changes the past only. It is forwarded by
// ToStream, and dropped ("out-of-order") by joins of tables and by groups, whose
// results are those of the rows. A record older than stream time - history is
// dropped ("expired"). Past rows are kept in the window store <store>-history,
// with a changelog of its own.
func Versioned(history time.Duration) VersionedOption { return VersionedOption{history} }

// A VersionedOption is what [Versioned] returns.
type VersionedOption struct{ history time.Duration }

func (v VersionedOption) table(o *tableOptions) { o.history = &v.history }

// addHistory makes n the source of a table with history.
func (t *KTable[K, V]) addHistory(n *node, history time.Duration) {
	store, key, value := t.store, t.key, t.value
	t.history = history
	n.detail, n.timers = fmt.Sprintf("history %s", history), true
	if history < time.Millisecond || history%time.Millisecond != 0 {
		t.b.fail("%s %q: a history of %s; it must be a positive number of milliseconds", n.op, store, history)
		history = time.Millisecond
	}
	if t.b.keyValueSpec(n.op, store, key, value) != nil {
		n.stores = state.VersionedSpecs(store, key.Name(), value.Name(), history)
	}
	open := func(task processors.Task) (state.VersionedStore[K, V], error) {
		latest, past := task.Store(store), task.Store(state.HistoryStore(store))
		if latest == nil || past == nil {
			return nil, fmt.Errorf("store %q: not in this task", store)
		}
		return state.NewVersionedStore(latest, past, key, value, processors.VersionedClock(task, store)), nil
	}
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		rows, err := open(task)
		if err != nil {
			return nil, err
		}
		return []any{processors.Guard(store, processors.VersionedTableSource(task, store, rows, forwards[K, processors.Change[V]](out[0])))}, nil
	}
	t.versions = func(task processors.Task) (processors.VersionLookup[K, V], error) {
		rows, err := open(task)
		if err != nil {
			return nil, err
		}
		return rows.GetAsOf, nil
	}
}

// latestOnly wraps the input of a step that works on rows, not on versions.
func latestOnly[K, V any](t *KTable[K, V], task processors.Task, step string, in processors.Forward[K, processors.Change[V]]) processors.Forward[K, processors.Change[V]] {
	if t.versions == nil {
		return in
	}
	return processors.LatestOnly(task, step, in)
}
