package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/state"
)

// A StoreOption configures [AddKeyValueStore]. [TTL] is one.
type StoreOption interface{ store(*state.Spec) }

type storeOption func(*state.Spec)

func (f storeOption) store(s *state.Spec) { f(s) }

// TTL makes the rows of a store expire d after their timestamps, in the stream time of
// the task: from then on processors do not see them, and after the record that moved
// stream time they are deleted, with a tombstone in the changelog. Only records move
// stream time, so that the rows of an input that has gone idle stay. For tables see
// [KTable.TTL].
func TTL(d time.Duration) StoreOption { return storeOption(func(s *state.Spec) { s.TTL = d }) }

// TTL makes the rows of the table expire d after their timestamps, in the stream time of
// the task, and returns the table. A row that has expired is deleted before the record
// that moved stream time so far is processed, in the store, with a tombstone in the
// changelog, and for the steps behind the table, which see a deletion with the row's
// timestamp + d; those that expire at once come in the order of their ends and then of
// their encoded keys. A row that is written again lives d from its new timestamp. Only
// records move stream time, so that the rows of an input that has gone idle stay.
//
// It fits every table with a key-value store of its own: [Table], [KStream.ToTable],
// aggregations without windows, and joins of tables, whose rows come back when either
// table changes theirs. Windows have [Retention], tables with history [Versioned].
func (t *KTable[K, V]) TTL(d time.Duration) *KTable[K, V] {
	n := t.from.n
	what := fmt.Sprintf("%s %q: TTL", n.op, n.name)
	decl := t.b.stores[t.store]
	switch {
	case t.versions != nil:
		t.b.fail("%s: the table has a history, which says how long rows are kept; leave one out", what)
		return t
	case t.open == nil || n.name != t.store:
		t.b.fail("%s: the table has no key-value store of its own; call it on the table before, or use topology.Retention for windows", what)
		return t
	case decl == nil || !checkTTL(t.b, what, d):
		return t // what is missing has been reported
	case decl.spec.TTL != 0:
		t.b.fail("%s: it has been called before; leave one out", what)
		return t
	}
	decl.spec.TTL = d
	start, open, step := n.start, t.open, t.store
	n.start = nil
	n.run = func(task processors.Task, out [][]any) (*operator, error) {
		rows, keys, err := open(task)
		if err != nil {
			return nil, err
		}
		changes, advance := processors.ExpireRows(task, step, d, keys, rows, forwards[K, processors.Change[V]](out[0]))
		out[0] = []any{changes}
		in, err := start(task, out)
		return &operator{inputs: in, advance: advance}, err
	}
	return t
}

// checkTTL reports a time to live that cannot be.
func checkTTL(b *Builder, what string, d time.Duration) bool {
	if d <= 0 || d%time.Millisecond != 0 {
		b.fail("%s of %s; it must be a positive number of milliseconds", what, d)
		return false
	}
	return true
}
