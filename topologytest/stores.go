package topologytest

import (
	"cmp"
	"slices"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// stores returns the store of that name in every partition, or the copy of a
// global table.
func (d *Driver) stores(name string) []*state.Store {
	d.t.Helper()
	if s := d.globals.Store(name); s != nil && name != state.TaskRows {
		return []*state.Store{s}
	}
	var found []*state.Store
	for _, t := range d.tasks {
		if s := t.part.Store(name); s != nil && name != state.TaskRows {
			found = append(found, s)
		}
	}
	if found == nil {
		d.t.Fatalf("topologytest: the topology has no store %q", name)
	}
	return found
}

// A KeyValueView reads a key-value store in all partitions.
type KeyValueView[K, V any] struct {
	d      *Driver
	stores []state.KeyValueStore[K, V]
}

// KeyValue returns the key-value store of that name: that of a table, an
// aggregation, a global table, or one of the Processor API. It ends the test if
// there is none. After a Restart ask for it again.
func KeyValue[K, V any](d *Driver, store string, key serde.Serde[K], value serde.Serde[V]) *KeyValueView[K, V] {
	d.t.Helper()
	v := &KeyValueView[K, V]{d: d}
	for _, s := range d.stores(store) {
		v.stores = append(v.stores, state.NewKeyValueStore(s, key, value))
	}
	return v
}

// Get returns the value of key, and whether there is one.
func (v *KeyValueView[K, V]) Get(key K) (V, bool) {
	v.d.t.Helper()
	for _, s := range v.stores {
		value, ok, err := s.Get(key)
		if err != nil {
			v.d.t.Fatalf("topologytest: %v", err)
		}
		if ok {
			return value, true
		}
	}
	var none V
	return none, false
}

// Rows returns all rows, by partition and then by encoded key.
func (v *KeyValueView[K, V]) Rows() []state.Row[K, V] {
	v.d.t.Helper()
	var rows []state.Row[K, V]
	for _, s := range v.stores {
		for row, err := range s.Range(nil, nil) {
			if err != nil {
				v.d.t.Fatalf("topologytest: %v", err)
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// A SessionView reads a session store in all partitions. It also shows expired
// sessions that have not been deleted yet.
type SessionView[K, V any] struct {
	d      *Driver
	stores []state.SessionStore[K, V]
}

// Sessions returns the store of that name of an aggregation by session windows. It
// ends the test if there is none. After a Restart ask for it again.
func Sessions[K, V any](d *Driver, store string, key serde.Serde[K], value serde.Serde[V]) *SessionView[K, V] {
	d.t.Helper()
	v := &SessionView[K, V]{d: d}
	for _, s := range d.stores(store) {
		v.stores = append(v.stores, state.NewSessionStore(s, key, value, nil, nil))
	}
	return v
}

// Rows returns the sessions that ended in [from, to] (ms), by end, then by
// partition, start and encoded key.
func (v *SessionView[K, V]) Rows(from, to int64) []state.Session[K, V] {
	v.d.t.Helper()
	var rows []state.Session[K, V]
	for _, s := range v.stores {
		for row, err := range s.Ended(from, to) {
			if err != nil {
				v.d.t.Fatalf("topologytest: %v", err)
			}
			rows = append(rows, row)
		}
	}
	slices.SortStableFunc(rows, func(a, b state.Session[K, V]) int { return cmp.Compare(a.End, b.End) })
	return rows
}

// A VersionedView reads the store of a table with history in all partitions. Its
// latest rows are also those of [KeyValue].
type VersionedView[K, V any] struct {
	d      *Driver
	stores []state.VersionedStore[K, V]
}

// Versioned returns the store of that name of a table with history. It ends the
// test if there is none. After a Restart ask for it again.
func Versioned[K, V any](d *Driver, store string, key serde.Serde[K], value serde.Serde[V]) *VersionedView[K, V] {
	d.t.Helper()
	v := &VersionedView[K, V]{d: d}
	past := d.stores(state.HistoryStore(store))
	for i, s := range d.stores(store) {
		v.stores = append(v.stores, state.NewVersionedStore(s, past[i], key, value, processors.VersionedClock(d.taskOf(s), store)))
	}
	return v
}

// GetAsOf returns the value that key had at asOf (ms), and whether there was one.
func (v *VersionedView[K, V]) GetAsOf(key K, asOf int64) (V, bool) {
	v.d.t.Helper()
	for _, s := range v.stores {
		value, _, ok, err := s.GetAsOf(key, asOf)
		if err != nil {
			v.d.t.Fatalf("topologytest: %v", err)
		}
		if ok {
			return value, true
		}
	}
	var none V
	return none, false
}

// taskOf returns the task that owns a store.
func (d *Driver) taskOf(s *state.Store) *task {
	d.t.Helper()
	for _, t := range d.tasks {
		if t.part.Store(s.Spec.Name) == s {
			return t
		}
	}
	d.t.Fatalf("topologytest: store %q is in no task", s.Spec.Name)
	return nil
}

// A WindowView reads a window store in all partitions. It also shows expired rows
// that have not been deleted yet.
type WindowView[K, V any] struct {
	d      *Driver
	stores []state.WindowStore[K, V]
}

// Window returns the window store of that name: that of a windowed aggregation,
// or one of the Processor API. It ends the test if there is none. After a Restart
// ask for it again.
func Window[K, V any](d *Driver, store string, key serde.Serde[K], value serde.Serde[V]) *WindowView[K, V] {
	d.t.Helper()
	v := &WindowView[K, V]{d: d}
	for _, s := range d.stores(store) {
		v.stores = append(v.stores, state.NewWindowStore(s, key, value, nil))
	}
	return v
}

// Get returns the value of key in the window that starts at start (ms), and
// whether there is one.
func (v *WindowView[K, V]) Get(key K, start int64) (V, bool) {
	v.d.t.Helper()
	for _, s := range v.stores {
		value, _, ok, err := s.Get(key, start)
		if err != nil {
			v.d.t.Fatalf("topologytest: %v", err)
		}
		if ok {
			return value, true
		}
	}
	var none V
	return none, false
}

// Rows returns the rows whose window start is in [from, to] (ms), by start, then
// by partition and encoded key.
func (v *WindowView[K, V]) Rows(from, to int64) []state.WindowRow[K, V] {
	v.d.t.Helper()
	var rows []state.WindowRow[K, V]
	for _, s := range v.stores {
		for row, err := range s.FetchAll(from, to) {
			if err != nil {
				v.d.t.Fatalf("topologytest: %v", err)
			}
			rows = append(rows, row)
		}
	}
	slices.SortStableFunc(rows, func(a, b state.WindowRow[K, V]) int { return cmp.Compare(a.Start, b.Start) })
	return rows
}

// StoreSizes returns what the stores hold of which rows expire (conversations, cached
// answers, spending), over all partitions, by name.
func (d *Driver) StoreSizes() map[string]processors.StoreSize {
	all := map[string]processors.StoreSize{}
	for _, t := range d.tasks {
		for _, s := range t.pipe.Sizes() {
			sum := all[s.Store]
			all[s.Store] = processors.StoreSize{Store: s.Store, Rows: sum.Rows + s.Rows, Bytes: sum.Bytes + s.Bytes}
		}
	}
	return all
}
