package topology

import (
	"fmt"
	"reflect"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// ForeignKeyJoin joins every row of the left table with the row of the right table
// whose key foreignKey takes from it, in the store named store with the changelog
// <app>.<store>-table. Updates of either table update the joined rows, which have
// the keys of the left table; one row of the right table may be joined with many.
//
//	                      ForeignKeyJoin  ForeignKeyLeftJoin
//	both rows             f(left, right)  f(left, right, true)
//	no right row          -               f(left, zero, false)
//	no foreign key        -               f(left, zero, false)
//	the left row deleted  deleted         deleted
//
// foreignKey returns false, or a nil key, for a row that is joined with none; an
// inner join counts it as dropped ("null-foreign-key"). A row that ceases to be
// joined is deleted; the deletion is also forwarded where it cannot be known
// whether there was a joined row: when the left row is deleted or gets another
// foreign key.
//
// The tables may have different numbers of partitions. A left row is sent to the
// partition of the right one over the topic <app>.<store>-subscription-repartition
// and kept there in the store <store>-subscriptions; the right row comes back over
// <app>.<store>-response-repartition. What comes back for a left row that has
// changed meanwhile is dropped ("superseded"), so that the joined rows are those of
// the tables in the end, not at every step, and have no order across keys. A
// result's timestamp is the larger of both rows' when the left row was updated,
// that of the right row when that was.
func ForeignKeyJoin[K, L, FK, R, V any](left *KTable[K, L], right *KTable[FK, R], store string, value serde.Serde[V],
	foreignKey func(key K, left L) (FK, bool), f func(left L, right R) V,
) *KTable[K, V] {
	return joinForeign(left, right, store, value, processors.InnerJoin, foreignKey, func(_ K, l L, r R, _ bool) (V, error) { return f(l, r), nil })
}

// ForeignKeyLeftJoin is [ForeignKeyJoin], but rows of the left table without one of
// the right table are joined too: f then gets ok = false and the zero row.
func ForeignKeyLeftJoin[K, L, FK, R, V any](left *KTable[K, L], right *KTable[FK, R], store string, value serde.Serde[V],
	foreignKey func(key K, left L) (FK, bool), f func(left L, right R, ok bool) V,
) *KTable[K, V] {
	return joinForeign(left, right, store, value, processors.LeftJoin, foreignKey, func(_ K, l L, r R, ok bool) (V, error) { return f(l, r, ok), nil })
}

func joinForeign[K, L, FK, R, V any](left *KTable[K, L], right *KTable[FK, R], store string, value serde.Serde[V], kind processors.JoinKind,
	foreignKey func(K, L) (FK, bool), f func(K, L, R, bool) (V, error),
) *KTable[K, V] {
	b := left.b
	op := "foreign-key-" + kind.String() + "-join"
	what := fmt.Sprintf("%s %q", op, store)
	t := &KTable[K, V]{b: b, key: left.key, value: value, store: store}
	if right.b != b {
		b.fail("%s: the right table belongs to another builder; build the whole application with one", what)
		return t
	}
	if !foreignSerdes(left, right, what) {
		return t
	}
	send, responses := answers(left, right, store, kind, foreignKey)
	n := &node{kind: kindStateful, op: op, name: store, stores: b.keyValueSpec(op, store, t.key, value)}
	n.uses = append(n.uses, left.uses...)
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		l, err := left.lookup(task)
		if err != nil {
			return nil, err
		}
		rows, err := openKeyValue(task, store, t.key, value)
		if err != nil {
			return nil, err
		}
		resolve := processors.ResolveForeign(task, store, kind, left.key, left.value, l, f, rows, forwards[K, processors.Change[V]](out[0]))
		return []any{processors.Guard(store, resolve)}, nil
	}
	t.from, t.dropper = port{n: b.addNode(n, responses.from)}, send
	t.ownLookup()
	return t
}

// foreignSerdes reports the serdes that a foreign-key join needs and its tables do
// not have.
func foreignSerdes[K, L, FK, R any](left *KTable[K, L], right *KTable[FK, R], what string) bool {
	ok := true
	for _, missing := range []struct {
		is   bool
		what string
		typ  reflect.Type
	}{
		{left.key == nil, "keys of the left table", reflect.TypeFor[K]()},
		{left.value == nil, "values of the left table", reflect.TypeFor[L]()},
		{right.key == nil, "keys of the right table", reflect.TypeFor[FK]()},
		{right.value == nil, "values of the right table", reflect.TypeFor[R]()},
	} {
		if missing.is {
			left.b.fail("%s: no serde for %s, of type %s; call WithKeySerde or WithValueSerde before the join", what, missing.what, missing.typ)
			ok = false
		}
	}
	return ok
}

// answers adds the steps from the left table to the right one and back, and
// returns the first of them and the stream of responses.
func answers[K, L, FK, R any](left *KTable[K, L], right *KTable[FK, R], store string, kind processors.JoinKind, foreignKey func(K, L) (FK, bool)) (*node, *KStream[[]byte, processors.Response[R]]) {
	b := left.b
	send := &node{kind: kindStateful, op: "foreign-key-subscribe", inputs: []input{tableInput(left)}}
	send.start = func(task processors.Task, out [][]any) ([]any, error) {
		next := forwards[FK, processors.Subscription](out[0])
		in := processors.SubscribeForeign(task, store, kind, foreignKey, left.key, left.value, right.key, next)
		return []any{processors.Guard(store, latestOnly(left, task, store, in))}, nil
	}
	subs := (&KStream[FK, processors.Subscription]{
		b: b, from: port{n: b.addNode(send, left.from)}, key: right.key, value: processors.SubscriptionSerde(left.key.Name()),
	}).repartition(store+"-subscription", true, nil)

	name := store + "-subscriptions"
	keys := processors.SubscriptionKeySerde(right.key.Name() + "," + left.key.Name())
	answer := &node{kind: kindStateful, op: "foreign-key-answer", name: name, stores: b.keyValueSpec("foreign-key-answer", name, keys, subs.value)}
	answer.uses = append(answer.uses, right.uses...)
	answer.start = func(task processors.Task, out [][]any) ([]any, error) {
		rows, err := right.lookup(task)
		if err != nil {
			return nil, err
		}
		kept, err := openKeyValue(task, name, keys, subs.value)
		if err != nil {
			return nil, err
		}
		next := forwards[[]byte, processors.Response[R]](out[0])
		fromLeft, fromRight := processors.AnswerForeign(name, right.key, kept, rows, next)
		return []any{processors.Guard(name, fromLeft), processors.Guard(name, latestOnly(right, task, name, fromRight))}, nil
	}
	return send, (&KStream[[]byte, processors.Response[R]]{
		b: b, from: port{n: b.addNode(answer, subs.from, right.from)}, key: serde.Bytes(), value: processors.ResponseSerde(right.value),
	}).repartition(store+"-response", true, []RepartitionOption{PartitionBy(func(_ []byte, r processors.Response[R], _ int32) int32 { return r.Partition })})
}
