package state

import (
	"cmp"
	"iter"
	"slices"
	"time"

	"github.com/millrace/millrace/serde"
)

// SessionStore is a typed store of sessions: (key, start, end) -> value, start
// and end in ms since the epoch, both inclusive. Sessions of one key do not
// overlap, so that the end tells which one it is. Sessions that ended at or before
// stream time - retention are expired: reads do not return them and puts drop
// them. Not safe for concurrent use.
type SessionStore[K, V any] interface {
	// Get returns the value of a session.
	Get(key K, start, end int64) (v V, ok bool, err error)
	// Put sets the value of a session.
	Put(key K, start, end int64, value V) error
	// Delete removes the session of key that ends at end.
	Delete(key K, end int64) error
	// Find iterates over the sessions of key that have a time in [from, to], in
	// ascending order.
	Find(key K, from, to int64) iter.Seq2[Session[K, V], error]
	// Ended iterates over the sessions of all keys that ended in [from, to],
	// ordered by end, then by start, then by encoded key.
	Ended(from, to int64) iter.Seq2[Session[K, V], error]
}

// A Session is a row of a session store.
type Session[K, V any] struct {
	Key        K
	Start, End int64 // ms since the epoch, both inclusive
	Value      V
}

// SessionSpec returns the spec of the window store in which a session store keeps
// its rows: the window's start is the session's end, the row's timestamp its
// start.
func SessionSpec(name, key, value string, gap, retention time.Duration) Spec {
	return Spec{Name: name, Kind: Window, KeySerde: key, ValueSerde: "session(" + value + ")", WindowSize: gap, Retention: retention}
}

// NewSessionStore returns s, which was declared with [SessionSpec], as a typed
// session store. No session ends after streamTime; those expire that expiry, a
// stream time too, has passed (see [NewWindowStore]). A nil streamTime is without
// bound.
func NewSessionStore[K, V any](s *Store, key serde.Serde[K], value serde.Serde[V], streamTime, expiry func() int64) SessionStore[K, V] {
	return &sessions[K, V]{NewWindowStore(s, key, value, expiry), streamTime}
}

type sessions[K, V any] struct {
	rows WindowStore[K, V]
	now  func() int64
}

func (s *sessions[K, V]) Get(key K, start, end int64) (v V, ok bool, err error) {
	value, from, ok, err := s.rows.Get(key, end)
	if err != nil || !ok || from != start {
		return v, false, err
	}
	return value, true, nil
}

func (s *sessions[K, V]) Put(key K, start, end int64, value V) error {
	return s.rows.Put(key, end, value, start)
}

func (s *sessions[K, V]) Delete(key K, end int64) error { return s.rows.Delete(key, end) }

func (s *sessions[K, V]) Find(key K, from, to int64) iter.Seq2[Session[K, V], error] {
	last := int64(1<<63 - 1)
	if s.now != nil {
		last = s.now()
	}
	return func(yield func(Session[K, V], error) bool) {
		for row, err := range s.rows.Fetch(key, from, last) {
			if err == nil && row.Timestamp > to {
				return
			}
			if !yield(session(row), err) || err != nil {
				return
			}
		}
	}
}

func session[K, V any](row WindowRow[K, V]) Session[K, V] {
	return Session[K, V]{row.Key, row.Timestamp, row.Start, row.Value}
}

func (s *sessions[K, V]) Ended(from, to int64) iter.Seq2[Session[K, V], error] {
	return func(yield func(Session[K, V], error) bool) {
		var same []Session[K, V] // that end at the same time, by key
		flush := func() bool {
			slices.SortStableFunc(same, func(a, b Session[K, V]) int { return cmp.Compare(a.Start, b.Start) })
			for _, one := range same {
				if !yield(one, nil) {
					return false
				}
			}
			same = same[:0]
			return true
		}
		for row, err := range s.rows.FetchAll(from, to) {
			if err != nil {
				yield(Session[K, V]{}, err)
				return
			}
			if len(same) > 0 && same[0].End != row.Start && !flush() {
				return
			}
			same = append(same, session(row))
		}
		flush()
	}
}
