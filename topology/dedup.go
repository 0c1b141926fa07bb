package topology

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// Deduplicate forwards the first record of every key as it is, with its timestamp and
// headers, and drops the others whose timestamps are at most interval before or after it
// ("duplicate"). A record further behind is forwarded, and is the first from then on.
// (Kafka Streams has this as KIP-655.)
//
// The bound is event time: a record that is older than stream time, the largest
// timestamp that came to the step, by more than the interval is dropped too ("late"),
// so that no two records of a key within the interval are ever forwarded. Records
// without a key are forwarded, not deduplicated. [Dropped] gives what was dropped.
//
// The times of first records are kept in the store named name, with the changelog
// <app>.<name>-table, until stream time has passed them by twice the interval. If a
// step before may have changed the key, the records go through the repartition topic
// <app>.<name>-repartition first.
func (s *KStream[K, V]) Deduplicate(name string, interval time.Duration) *KStream[K, V] {
	return deduplicate(s, "deduplicate", name, interval, serde.Bool(), func(processors.Record[K, V]) (bool, bool, error) { return true, true, nil })
}

// DeduplicateBy is [KStream.Deduplicate] for records with the same key and the same id,
// which id takes from the record. One for which it returns nil, of a type that can be
// nil, is forwarded, not deduplicated. ids is the serde of the ids in the store.
func DeduplicateBy[K, V, ID any](s *KStream[K, V], name string, interval time.Duration, ids serde.Serde[ID], id func(key K, value V) ID) *KStream[K, V] {
	null := processors.NullCheck[ID]()
	return deduplicate(s, "deduplicate-by", name, interval, ids, func(r processors.Record[K, V]) (ID, bool, error) {
		what := id(r.Key, r.Value)
		return what, !null(what), nil
	})
}

func deduplicate[K, V, ID any](s *KStream[K, V], op, name string, interval time.Duration, ids serde.Serde[ID], id func(processors.Record[K, V]) (ID, bool, error)) *KStream[K, V] {
	what := fmt.Sprintf("%s %q", op, name)
	if interval <= 0 || interval%time.Millisecond != 0 {
		s.b.fail("%s: an interval of %s; it must be a positive number of milliseconds", what, interval)
	}
	in := repartitioned(s, name, true)
	n := &node{kind: kindStateful, op: op, name: name, detail: fmt.Sprintf("interval %s", interval), inputs: []input{inputOf(in)}}
	if in.key == nil || ids == nil {
		n.stores = s.b.keyValueSpec(op, name, in.key, ids) // which says what is missing
		return in.same(port{n: s.b.addNode(n, in.from)})
	}
	keys := processors.KeyIDSerde(in.key, ids)
	n.stores = s.b.keyValueSpec(op, name, keys, serde.Bytes())
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		rows, err := openKeyValue(task, name, keys, serde.Bytes())
		if err != nil {
			return nil, err
		}
		return []any{processors.Guard(name, processors.Deduplicate(task, name, interval, keys, rows, id, forwards[K, V](out[0])))}, nil
	}
	return in.same(port{n: s.b.addNode(n, in.from)})
}
