package processors

import (
	"math"

	"github.com/millrace/millrace/state"
)

// A WindowStep is an aggregation by key and window: what its inputs share.
type WindowStep[K, A any] struct {
	Task    Task
	Step    string
	Windows Windows
	// Rows is the store of tumbling, hopping and sliding windows, Sessions that of
	// sessions, Forever that of an unlimited window, by key.
	Rows     state.WindowStore[K, A]
	Sessions state.SessionStore[K, A]
	Forever  state.KeyValueStore[K, A]
	// Merge combines the aggregates of sessions.
	Merge Merge[K, A]
	// Next takes every change, or with Windows.Final the result of each window.
	Next Forward[Windowed[K], Change[A]]
}

// A Merge adds the aggregate b of a session to what other sessions gave; ok is
// false for the first one. It returns false where there is no aggregate then.
type Merge[K, A any] func(key K, a A, ok bool, b A) (A, bool, error)

// WindowedAggregate returns an input of the step s, whose records update the
// aggregates of their windows. See [WindowAggregate], [SlidingAggregate] and
// [SessionAggregate].
//
// An unlimited window takes the records from its start on; others are dropped
// ("early").
func WindowedAggregate[K, V, A any](s *WindowStep[K, A], update Update[K, V, A]) Forward[K, V] {
	switch s.Windows.Kind {
	case SlidingWindows:
		return SlidingAggregate(s.Task, s.Step, s.Windows, s.Rows, update, s.Next)
	case SessionWindows:
		return SessionAggregate(s.Task, s.Step, s.Windows, s.Sessions, update, s.Merge, s.Next)
	case UnlimitedWindow:
		return unlimitedAggregate(s, update)
	}
	return WindowAggregate(s.Task, s.Step, s.Windows, s.Rows, update, s.Next)
}

func unlimitedAggregate[K, V, A any](s *WindowStep[K, A], update Update[K, V, A]) Forward[K, V] {
	store := s.Forever
	rows := rows[Windowed[K], A]{
		get:    func(w Windowed[K]) (A, int64, bool, error) { return store.GetTimestamped(w.Key) },
		put:    func(w Windowed[K], v A, timestamp int64) error { return store.Put(w.Key, v, timestamp) },
		del:    func(w Windowed[K]) error { return store.Delete(w.Key) },
		reread: isReference[A](),
	}
	return func(r Record[K, V]) error {
		if r.NoKey {
			return Drop(s.Task, s.Step, r, "null-key")
		}
		if r.Timestamp < s.Windows.Start {
			return Drop(s.Task, s.Step, r, "early")
		}
		return changeRow(s.Step, rows, r, Windowed[K]{r.Key, s.Windows.Start, math.MaxInt64}, update, s.Next)
	}
}

// Lookup reads the rows of the step's table.
func (s *WindowStep[K, A]) Lookup() Lookup[Windowed[K], A] {
	switch s.Windows.Kind {
	case SessionWindows:
		return func(w Windowed[K]) (A, int64, bool, error) {
			v, ok, err := s.Sessions.Get(w.Key, w.Start, w.End)
			return v, w.End, ok, err
		}
	case UnlimitedWindow:
		return func(w Windowed[K]) (v A, timestamp int64, ok bool, err error) {
			if w.Start != s.Windows.Start {
				return v, 0, false, nil
			}
			return s.Forever.GetTimestamped(w.Key)
		}
	}
	return WindowLookup(s.Rows)
}
