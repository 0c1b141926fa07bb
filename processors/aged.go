package processors

import (
	"fmt"
	"math"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// StoreSize is what a store of a task holds: rows, and the bytes of their keys and
// values.
type StoreSize struct {
	Store       string
	Rows, Bytes int64
}

// aged is a key-value store of a task whose rows expire: each is deleted, with a
// tombstone in the changelog, when ttl has passed since it was written, by the task's
// clock. With a ttl of 0 they are kept for ever, and have no places. Keys are encoded
// already.
//
// Their agenda finds them without a look at all. A row gets its place there when it is
// new and, if it has been written since, another when the sweep comes to it. So a place
// may be too early, or that of a row that is gone, but no row is without one.
type aged[V any] struct {
	task    Task
	name    string
	ttl     time.Duration
	written func(V) int64 // when a row was written, ms

	typed       state.KeyValueStore[[]byte, V]
	rows        *state.Store
	places      *agenda
	count, size *state.Cell // minus one: a cell begins at -1
}

// A sweep deletes so many rows at most.
const maxSweep = 10_000

// newAged returns the store of that name. Its rows are looked after by ticks of the
// task.
func newAged[V any](t Task, name string, values serde.Serde[V], ttl time.Duration, written func(V) int64) (*aged[V], error) {
	rows := t.Store(name)
	if rows == nil {
		return nil, fmt.Errorf("store %q: not in this task", name)
	}
	a := &aged[V]{
		task: t, name: name, ttl: ttl, written: written,
		typed: state.NewKeyValueStore(rows, serde.Bytes(), values), rows: rows, places: newAgenda(t, name),
		count: t.Cell("rows/" + name), size: t.Cell("bytes/" + name),
	}
	if ttl > 0 {
		t.Schedule(WallClock, max(time.Second, min(ttl/10, time.Minute)), nil, func(int64) error { return a.sweep() })
	}
	return a, nil
}

func (a *aged[V]) now() int64 { return a.task.Now().UnixMilli() }

// get returns the row of a key that has not expired.
func (a *aged[V]) get(key []byte) (v V, ok bool, err error) {
	v, ok, err = a.typed.Get(key)
	if err != nil || !ok || a.expired(a.written(v)) {
		var zero V
		return zero, false, err
	}
	return v, true, nil
}

func (a *aged[V]) expired(written int64) bool {
	return a.ttl > 0 && a.now()-written >= a.ttl.Milliseconds()
}

// put writes a row, which says itself when that is. Its timestamp is ms since the epoch.
func (a *aged[V]) put(key []byte, v V, timestamp int64) error {
	before, err := a.rows.Get(key)
	if err != nil {
		return err
	}
	old := len(before)
	if err := a.typed.Put(key, v, timestamp); err != nil {
		return err
	}
	row, err := a.rows.Get(key)
	if err != nil {
		return err
	}
	if before == nil {
		a.place(a.written(v), key)
		a.resize(1, len(key)+len(row))
		return nil
	}
	a.resize(0, len(row)-old)
	return nil
}

// delete deletes a row, if it is there.
func (a *aged[V]) delete(key []byte) error {
	row, err := a.rows.Get(key)
	if err != nil || row == nil {
		return err
	}
	a.resize(-1, -len(key)-len(row))
	a.rows.Put(key, nil)
	return nil
}

func (a *aged[V]) resize(rows, bytes int) {
	a.count.Set(a.count.Value() + int64(rows))
	a.size.Set(a.size.Value() + int64(bytes))
}

func (a *aged[V]) held() int64 { return a.count.Value() + 1 }

func (a *aged[V]) sizes() StoreSize { return StoreSize{a.name, a.held(), a.size.Value() + 1} }

// place puts a row at the time at which it was written.
func (a *aged[V]) place(at int64, key []byte) {
	if a.ttl > 0 {
		a.places.put(at, key)
	}
}

// sweep deletes what has expired.
func (a *aged[V]) sweep() error {
	done := 0
	err := a.places.take(a.now()-a.ttl.Milliseconds(), func(key []byte, _ int64) (bool, error) {
		if done == maxSweep {
			return false, nil
		}
		done++
		v, ok, err := a.typed.Get(key)
		switch {
		case err != nil:
			return false, err
		case ok && !a.expired(a.written(v)):
			a.place(a.written(v), key)
		case ok:
			return true, a.delete(key)
		}
		return true, nil
	})
	return Fail(ClassState, a.name, err)
}

// evict deletes the n rows that are the oldest.
func (a *aged[V]) evict(n int) error {
	return a.places.take(math.MaxInt64, func(key []byte, at int64) (bool, error) {
		if n == 0 {
			return false, nil
		}
		v, ok, err := a.typed.Get(key)
		switch {
		case err != nil:
			return false, err
		case ok && a.written(v) > at:
			a.place(a.written(v), key)
		case ok:
			n--
			return true, a.delete(key)
		}
		return true, nil
	})
}
