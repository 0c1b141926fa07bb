package processors

import "github.com/millrace/millrace/state"

// A Lookup reads the current row of a table: its value and timestamp (ms since
// the epoch), and whether there is one. It sees what the task has processed so
// far, the open transaction included.
type Lookup[K, V any] func(key K) (value V, timestamp int64, ok bool, err error)

// StoreLookup reads the rows of store.
func StoreLookup[K, V any](store state.KeyValueStore[K, V]) Lookup[K, V] {
	return store.GetTimestamped
}

// TableSource turns a stream of updates into a table: the last record of a key
// in offset order is its row, also if its timestamp is older. A record without a
// value deletes the row and is forwarded even for a key never seen; one that
// changes nothing is forwarded too. A record without a key is dropped
// ("null-key").
func TableSource[K, V any](t Task, step string, store state.KeyValueStore[K, V], next Forward[K, Change[V]]) Forward[K, V] {
	return DropNullKeys(t, step, storeRow(step, store, next))
}

// storeRow writes a row to store, or deletes it if the record has no value, and
// forwards the update.
func storeRow[K, V any](step string, store state.KeyValueStore[K, V], next Forward[K, Change[V]]) Forward[K, V] {
	return func(r Record[K, V]) error {
		c := Change[V]{New: r.Value, HasNew: !r.NoValue}
		var err error
		if c.Old, c.HasOld, err = store.Get(r.Key); err != nil {
			return Fail(ClassState, step, err)
		}
		if r.NoValue {
			err = store.Delete(r.Key)
		} else {
			err = store.Put(r.Key, r.Value, r.Timestamp)
		}
		if err != nil {
			return Fail(ClassState, step, err)
		}
		return next(withValue(r, r.Key, c, r.Timestamp))
	}
}

// withValue is the record of key with an update, caused by r.
func withValue[K, V, K2, V2 any](r Record[K, V], key K2, v V2, timestamp int64) Record[K2, V2] {
	return Record[K2, V2]{Key: key, Value: v, Timestamp: timestamp, Headers: r.Headers}
}

// A RowMap maps a row of a table, and returns false where there is none then. It
// must return the same for the same row: it is called again when the row is
// updated or looked up.
type RowMap[K, V, W any] func(key K, v V) (W, bool, error)

// FilterRows keeps the rows for which keep returns true.
func FilterRows[K, V any](keep func(K, V) (bool, error)) RowMap[K, V, V] {
	return func(key K, v V) (V, bool, error) {
		ok, err := keep(key, v)
		return v, ok, err
	}
}

// MapRows maps values with fn; where it returns nil there is no row.
func MapRows[K, V, W any](fn func(K, V) (W, error)) RowMap[K, V, W] {
	null := NullCheck[W]()
	return func(key K, v V) (W, bool, error) {
		w, err := fn(key, v)
		return w, err == nil && !null(w), err
	}
}

// row applies m where there is a row.
func (m RowMap[K, V, W]) row(key K, v V, ok bool) (w W, _ bool, err error) {
	if ok {
		if w, ok, err = m(key, v); !ok {
			var none W
			w = none
		}
	}
	return w, ok, err
}

// TableFilterMap maps the rows of a table. With quiet, an update of a row that
// was not there before and is not now is not forwarded.
func TableFilterMap[K, V, W any](m RowMap[K, V, W], quiet bool, next Forward[K, Change[W]]) Forward[K, Change[V]] {
	return func(r Record[K, Change[V]]) error {
		c := Change[W]{Past: r.Value.Past}
		var err error
		if c.New, c.HasNew, err = m.row(r.Key, r.Value.New, r.Value.HasNew); err != nil {
			return err
		}
		if c.Old, c.HasOld, err = m.row(r.Key, r.Value.Old, r.Value.HasOld); err != nil {
			return err
		}
		if quiet && !c.HasNew && !c.HasOld {
			return nil
		}
		return next(withValue(r, r.Key, c, r.Timestamp))
	}
}

// MapLookup is the lookup of a table behind a TableFilterMap.
func MapLookup[K, V, W any](m RowMap[K, V, W], lookup Lookup[K, V]) Lookup[K, W] {
	return func(key K) (w W, timestamp int64, ok bool, err error) {
		v, ts, ok, err := lookup(key)
		if err != nil || !ok {
			return w, 0, false, err
		}
		w, ok, err = m.row(key, v, true)
		return w, ts, ok, err
	}
}

// TableToStream forwards the new value of every update, a deletion as a record
// without a value.
func TableToStream[K, V any](next Forward[K, V]) Forward[K, Change[V]] {
	return func(r Record[K, Change[V]]) error {
		out := withValue(r, r.Key, r.Value.New, r.Timestamp)
		out.NoValue = !r.Value.HasNew
		return next(out)
	}
}
