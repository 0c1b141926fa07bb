package processors

import (
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// An expiry finds the rows of a key-value store whose time to live has passed: those
// whose timestamp + ttl is at or before stream time. Rows are put at it when they are
// new; one that was written since gets another place when the first comes up, so that a
// place may be too early, or that of a row that is gone.
type expiry[K, V any] struct {
	keys   serde.Serde[K]
	store  state.KeyValueStore[K, V]
	places *agenda
	ttl    int64
}

func newExpiry[K, V any](t Task, name string, ttl time.Duration, keys serde.Serde[K], store state.KeyValueStore[K, V]) *expiry[K, V] {
	return &expiry[K, V]{keys, store, newAgenda(t, name), ttl.Milliseconds()}
}

func (e *expiry[K, V]) put(key K, timestamp int64) error {
	enc, err := e.keys.Append(nil, key)
	if err != nil {
		return err
	}
	e.places.put(timestamp+e.ttl, enc)
	return nil
}

// sweep deletes what has expired at stream time now, and calls f for each row, in the
// order of their ends and of their encoded keys. It looks at limit places at most, at
// all if that is below 0.
func (e *expiry[K, V]) sweep(now int64, limit int, f func(state.Row[K, V]) error) error {
	return e.places.take(now, func(enc []byte, at int64) (bool, error) {
		if limit == 0 {
			return false, nil
		}
		limit--
		key, err := e.keys.Decode(enc)
		if err != nil {
			return false, err
		}
		v, ts, ok, err := e.store.GetTimestamped(key)
		switch {
		case err != nil || !ok:
			return true, err
		case ts+e.ttl > at:
			e.places.put(ts+e.ttl, enc)
			return true, nil
		}
		if err := e.store.Delete(key); err != nil {
			return false, err
		}
		return true, f(state.Row[K, V]{Key: key, Value: v, Timestamp: ts})
	})
}

// ExpireRows makes the rows of a table expire ttl after their timestamps, in stream time
// of the task. It returns what takes the changes of the table, which it forwards to next,
// and what is called before every record, when stream time includes it: it deletes the
// rows that have expired and forwards each as a deletion whose timestamp is the row's +
// ttl. An error of it stops the task, since it is not the record's.
func ExpireRows[K, V any](t Task, step string, ttl time.Duration, keys serde.Serde[K], store state.KeyValueStore[K, V], next Forward[K, Change[V]]) (changes Forward[K, Change[V]], advance func() error) {
	e := newExpiry(t, step, ttl, keys, store)
	changes = func(r Record[K, Change[V]]) error {
		// A row that is written again keeps its place, unless it may have become older.
		if r.Value.HasNew && (!r.Value.HasOld || r.Timestamp < t.StreamTime()) {
			if err := e.put(r.Key, r.Timestamp); err != nil {
				return Fail(ClassState, step, err)
			}
		}
		return next(r)
	}
	advance = func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = stopped(step, Panicked(ClassProcess, step, p))
			}
		}()
		return stopped(step, e.sweep(t.StreamTime(), -1, func(row state.Row[K, V]) error {
			return next(Record[K, Change[V]]{Key: row.Key, Value: Change[V]{Old: row.Value, HasOld: true}, Timestamp: row.Timestamp + e.ttl})
		}))
	}
	return changes, advance
}

// forgotten is for rows that are only deleted.
func forgotten[K, V any](state.Row[K, V]) error { return nil }

// stopped returns err, of something that is not the record's, as one that stops the task.
func stopped(step string, err error) error {
	if err == nil {
		return nil
	}
	out := &Error{Class: ClassState, Step: step, Action: Stop, Err: fmt.Errorf("expiry: %w", err)}
	if e, ok := errors.AsType[*Error](err); ok {
		out.Class, out.Step = e.Class, e.Step
	}
	return out
}

// expiring is a store of a processor whose rows expire. What has expired is deleted
// after the record, and not seen before.
type expiring[K, V any] struct {
	state.KeyValueStore[K, V]
	e   *expiry[K, V]
	now func() int64
}

func (s *expiring[K, V]) live(timestamp int64) bool { return timestamp+s.e.ttl > s.now() }

func (s *expiring[K, V]) Get(key K) (V, bool, error) {
	v, _, ok, err := s.GetTimestamped(key)
	return v, ok, err
}

func (s *expiring[K, V]) GetTimestamped(key K) (v V, timestamp int64, ok bool, err error) {
	found, timestamp, ok, err := s.KeyValueStore.GetTimestamped(key)
	if err != nil || !ok || !s.live(timestamp) {
		return v, 0, false, err
	}
	return found, timestamp, true, nil
}

func (s *expiring[K, V]) Put(key K, value V, timestamp int64) error {
	_, was, ok, err := s.KeyValueStore.GetTimestamped(key)
	if err != nil {
		return err
	}
	if !ok || timestamp < was {
		if err := s.e.put(key, timestamp); err != nil {
			return err
		}
	}
	return s.KeyValueStore.Put(key, value, timestamp)
}

func (s *expiring[K, V]) Range(from, to *K) iter.Seq2[state.Row[K, V], error] {
	return s.filter(s.KeyValueStore.Range(from, to))
}

func (s *expiring[K, V]) Prefix(prefix []byte) iter.Seq2[state.Row[K, V], error] {
	return s.filter(s.KeyValueStore.Prefix(prefix))
}

func (s *expiring[K, V]) filter(rows iter.Seq2[state.Row[K, V], error]) iter.Seq2[state.Row[K, V], error] {
	return func(yield func(state.Row[K, V], error) bool) {
		for row, err := range rows {
			if err == nil && !s.live(row.Timestamp) {
				continue
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// expire wraps a store of a processor that has a time to live.
func expire[K, V any](c StoreContext, s *state.Store, keys serde.Serde[K], store state.KeyValueStore[K, V]) state.KeyValueStore[K, V] {
	if s.Spec.TTL == 0 {
		return store
	}
	out := &expiring[K, V]{store, newExpiry(c.task(), s.Spec.Name, s.Spec.TTL, keys, store), c.task().StreamTime}
	c.everyRecord(func(now int64) error {
		return Fail(ClassState, s.Spec.Name, out.e.sweep(now, -1, forgotten))
	})
	return out
}
