package processors

import "github.com/millrace/millrace/state"

// An Update computes the aggregate of a key from a record and the aggregate so
// far; ok is false if there is none yet. It returns the new aggregate, and false
// to delete it. It may change the aggregate it is given and return it.
type Update[K, V, A any] func(r Record[K, V], agg A, ok bool) (A, bool, error)

// CountUpdate counts records.
func CountUpdate[K, V any]() Update[K, V, int64] {
	return func(_ Record[K, V], n int64, _ bool) (int64, bool, error) { return n + 1, true, nil }
}

// UncountUpdate takes back what [CountUpdate] counted.
func UncountUpdate[K, V any]() Update[K, V, int64] {
	return func(_ Record[K, V], n int64, _ bool) (int64, bool, error) { return n - 1, true, nil }
}

// ReduceUpdate combines values with fn; the first value of a key is its first
// aggregate, without a call. A nil result deletes the aggregate.
func ReduceUpdate[K, V any](fn func(agg, value V) (V, error)) Update[K, V, V] {
	null := NullCheck[V]()
	return func(r Record[K, V], agg V, ok bool) (V, bool, error) {
		if !ok {
			return r.Value, !r.NoValue, nil
		}
		agg, err := fn(agg, r.Value)
		return agg, !null(agg), err
	}
}

// AggregateUpdate adds values with add to an aggregate that starts as start(). A
// nil result deletes the aggregate.
func AggregateUpdate[K, V, A any](start func() A, add func(key K, value V, agg A) (A, error)) Update[K, V, A] {
	null := NullCheck[A]()
	return func(r Record[K, V], agg A, ok bool) (A, bool, error) {
		if !ok {
			agg = start()
		}
		agg, err := add(r.Key, r.Value, agg)
		return agg, !null(agg), err
	}
}

// Aggregate keeps one aggregate per key in store and forwards every change of
// it. Its timestamp is the largest of the contributing records. A record without
// a key or a value is dropped ("null-key", "null-value").
func Aggregate[K, V, A any](t Task, step string, store state.KeyValueStore[K, A], update Update[K, V, A], next Forward[K, Change[A]]) Forward[K, V] {
	rows := keyRows(store)
	return func(r Record[K, V]) error {
		if r.NoKey {
			return Drop(t, step, r, "null-key")
		}
		if r.NoValue {
			return Drop(t, step, r, "null-value")
		}
		return changeRow(step, rows, r, r.Key, update, next)
	}
}

// rows is what an aggregation needs of a store with rows under R: keys of a
// key-value store, windowed keys of a window store.
type rows[R, A any] struct {
	get func(row R) (A, int64, bool, error)
	put func(row R, v A, timestamp int64) error
	del func(row R) error
	// reread says that old values are read again after an update, which may have
	// changed what it was given in place.
	reread bool
}

func keyRows[K, A any](s state.KeyValueStore[K, A]) rows[K, A] {
	return rows[K, A]{s.GetTimestamped, s.Put, s.Delete, isReference[A]()}
}

func windowRows[K, A any](s state.WindowStore[K, A]) rows[Windowed[K], A] {
	return rows[Windowed[K], A]{
		get:    func(w Windowed[K]) (A, int64, bool, error) { return s.Get(w.Key, w.Start) },
		put:    func(w Windowed[K], v A, timestamp int64) error { return s.Put(w.Key, w.Start, v, timestamp) },
		del:    func(w Windowed[K]) error { return s.Delete(w.Key, w.Start) },
		reread: isReference[A](),
	}
}

// changeRow updates the aggregate in one row and forwards the change.
func changeRow[K, V, R, A any](step string, s rows[R, A], r Record[K, V], row R, update Update[K, V, A], next Forward[R, Change[A]]) error {
	old, ts, ok, err := s.get(row)
	if err != nil {
		return Fail(ClassState, step, err)
	}
	if !ok || ts < r.Timestamp {
		ts = r.Timestamp
	}
	c := Change[A]{Old: old, HasOld: ok}
	if c.New, c.HasNew, err = update(r, old, ok); err != nil {
		return err
	}
	if ok && s.reread {
		if c.Old, _, _, err = s.get(row); err != nil {
			return Fail(ClassState, step, err)
		}
	}
	if c.HasNew {
		err = s.put(row, c.New, ts)
	} else {
		var none A
		c.New = none
		err = s.del(row)
	}
	if err != nil {
		return Fail(ClassState, step, err)
	}
	return next(withValue(r, row, c, ts))
}
