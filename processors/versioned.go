package processors

import "github.com/millrace/millrace/state"

// A VersionLookup reads the row that a table had at a time (ms since the epoch):
// its value and timestamp, and whether there was one.
type VersionLookup[K, V any] func(key K, asOf int64) (value V, timestamp int64, ok bool, err error)

// Current reads the current row at any time, for tables without history.
func Current[K, V any](lookup Lookup[K, V]) VersionLookup[K, V] {
	return func(key K, _ int64) (V, int64, bool, error) { return lookup(key) }
}

// MapVersions is the lookup of a versioned table behind a TableFilterMap.
func MapVersions[K, V, W any](m RowMap[K, V, W], lookup VersionLookup[K, V]) VersionLookup[K, W] {
	return func(key K, asOf int64) (W, int64, bool, error) {
		return MapLookup(m, func(key K) (V, int64, bool, error) { return lookup(key, asOf) })(key)
	}
}

// VersionedClock is the stream time of the versioned store of that name.
func VersionedClock(t Task, store string) *state.Cell { return t.Cell(store + ".stream-time") }

// VersionedTableSource turns a stream of updates into a versioned table: the
// record with the largest timestamp of a key is its row. An update that is older
// than the row is forwarded with [Change.Past] set; one that is older than the
// store's history is dropped ("expired"), and one without a key too ("null-key").
func VersionedTableSource[K, V any](t Task, step string, store state.VersionedStore[K, V], next Forward[K, Change[V]]) Forward[K, V] {
	return DropNullKeys(t, step, func(r Record[K, V]) error {
		c := Change[V]{New: r.Value, HasNew: !r.NoValue}
		var err error
		if c.Old, _, c.HasOld, err = store.Get(r.Key); err != nil {
			return Fail(ClassState, step, err)
		}
		var placed state.Placement
		if r.NoValue {
			placed, err = store.Delete(r.Key, r.Timestamp)
		} else {
			placed, err = store.Put(r.Key, r.Value, r.Timestamp)
		}
		if err != nil {
			return Fail(ClassState, step, err)
		}
		if placed == state.Expired {
			return Drop(t, step, r, "expired")
		}
		c.Past = placed == state.Past
		return next(withValue(r, r.Key, c, r.Timestamp))
	})
}

// LatestOnly drops updates of past versions ("out-of-order"): they change no row.
func LatestOnly[K, V any](t Task, step string, next Forward[K, Change[V]]) Forward[K, Change[V]] {
	return func(r Record[K, Change[V]]) error {
		if r.Value.Past {
			return dropChange(t, step, r, "out-of-order")
		}
		return next(r)
	}
}
