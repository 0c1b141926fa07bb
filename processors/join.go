package processors

import "github.com/millrace/millrace/state"

// JoinKind says which records of a join are forwarded without a partner.
type JoinKind uint8

// The kinds of join.
const (
	InnerJoin JoinKind = iota
	LeftJoin
	OuterJoin
)

// String returns the kind's name.
func (k JoinKind) String() string {
	return [...]string{"inner", "left", "outer"}[k]
}

// StreamTableJoin joins the records of a stream with rows of a table: the row
// that the table had at the record's timestamp, or the current one. Only stream
// records produce output; its timestamp and headers are theirs. key returns the
// table key of a record, and false if it has none.
//
// A record without a value is dropped ("null-value"). One without a table key is
// dropped ("null-key") by an inner join, and joined with no row by a left join.
// A nil result is forwarded as a record without a value. delay, if not nil, holds
// back the records that are not dropped, as [Delay] does.
func StreamTableJoin[K, V, KT, T, R any](t Task, step string, kind JoinKind, key func(Record[K, V]) (KT, bool),
	table VersionLookup[KT, T], join func(key K, value V, row T, ok bool) (R, error),
	delay func(next Forward[K, V]) Forward[K, V], next Forward[K, R],
) Forward[K, V] {
	null := NullCheck[R]()
	joined := func(r Record[K, V]) error {
		k, ok := key(r)
		if !ok && kind == InnerJoin {
			return Drop(t, step, r, "null-key")
		}
		var row T
		if ok {
			var err error
			if row, _, ok, err = table(k, r.Timestamp); err != nil {
				return Fail(ClassState, step, err)
			}
		}
		if !ok && kind == InnerJoin {
			return nil
		}
		v, err := join(r.Key, r.Value, row, ok)
		if err != nil {
			return err
		}
		return next(WithValue(r, v, null(v)))
	}
	accepted := joined
	if delay != nil {
		delayed := delay(joined)
		accepted = func(r Record[K, V]) error {
			if _, ok := key(r); !ok && kind == InnerJoin {
				return joined(r) // which drops it
			}
			return delayed(r)
		}
	}
	return func(r Record[K, V]) error {
		if r.NoValue {
			return Drop(t, step, r, "null-value")
		}
		return accepted(r)
	}
}

// RecordKey is the table key of a record joined by its own key.
func RecordKey[K, V any](r Record[K, V]) (K, bool) { return r.Key, !r.NoKey }

// ExtractedKey is the table key that fn extracts from a record; nil means none.
func ExtractedKey[K, V, KT any](fn func(K, V) KT) func(Record[K, V]) (KT, bool) {
	null := NullCheck[KT]()
	return func(r Record[K, V]) (KT, bool) {
		k := fn(r.Key, r.Value)
		return k, !null(k)
	}
}

// TableTableJoin joins the rows of two tables with the same key. It returns what
// takes the updates of the left and of the right table; both produce updates of
// the joined row, whose timestamp is the larger of the two rows' timestamps.
//
//	              left only   right only   both
//	InnerJoin     -           -            join
//	LeftJoin      join        -            join
//	OuterJoin     join        join         join
//
// An update that leaves no joined row is forwarded as a deletion if the other
// side has a row, or had one before it (left, outer); else nothing is forwarded.
func TableTableJoin[K, L, R, V any](step string, kind JoinKind, left Lookup[K, L], right Lookup[K, R],
	join func(key K, left L, hasLeft bool, right R, hasRight bool) (V, error), store state.KeyValueStore[K, V], next Forward[K, Change[V]],
) (fromLeft Forward[K, Change[L]], fromRight Forward[K, Change[R]]) {
	swapped := func(key K, r R, hasR bool, l L, hasL bool) (V, error) { return join(key, l, hasL, r, hasR) }
	put := storeRow(step, store, next)
	fromLeft = joinSide(step, kind != InnerJoin, kind == OuterJoin, right, join, put)
	fromRight = joinSide(step, kind == OuterJoin, kind != InnerJoin, left, swapped, put)
	return fromLeft, fromRight
}

// joinSide takes the updates of table A. aloneA says whether a row of A is
// joined without one of B, aloneB the same of B.
func joinSide[K, A, B, V any](step string, aloneA, aloneB bool, lookup Lookup[K, B],
	join func(key K, a A, hasA bool, b B, hasB bool) (V, error), put func(r Record[K, V]) error,
) Forward[K, Change[A]] {
	null := NullCheck[V]()
	return func(r Record[K, Change[A]]) error {
		c := r.Value
		b, ts, hasB, err := lookup(r.Key)
		if err != nil {
			return Fail(ClassState, step, err)
		}
		if !hasB && (!aloneA || !c.HasNew && !c.HasOld) {
			return nil
		}
		if !hasB || ts < r.Timestamp {
			ts = r.Timestamp
		}
		out := Record[K, V]{Key: r.Key, Timestamp: ts, Headers: r.Headers, NoValue: true}
		if c.HasNew && (hasB || aloneA) || hasB && aloneB {
			if out.Value, err = join(r.Key, c.New, c.HasNew, b, hasB); err != nil {
				return err
			}
			out.NoValue = null(out.Value)
		}
		return put(out)
	}
}
