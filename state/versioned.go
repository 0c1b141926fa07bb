package state

import (
	"errors"
	"time"

	"github.com/millrace/millrace/serde"
)

// A VersionedStore is a typed key-value store that knows what the value of a key
// was at every time of its history. Not safe for concurrent use.
//
// A version of a key is valid from its own timestamp to that of the next one;
// deletions are versions too. Versions may be put in any order. Those that ended
// at or before stream time - history are forgotten; the latest version of a key
// never is. Stream time is the largest timestamp that was put, of any key.
type VersionedStore[K, V any] interface {
	// Get returns the latest version of key and its timestamp (ms since the
	// epoch). ok is false if there is none or it is a deletion.
	Get(key K) (v V, timestamp int64, ok bool, err error)
	// GetAsOf returns the version of key that was valid at asOf (ms since the
	// epoch) and its timestamp. ok is false if there was none, it was a deletion,
	// or asOf is before stream time - history and before the latest version.
	GetAsOf(key K, asOf int64) (v V, timestamp int64, ok bool, err error)
	// Put sets the version of key at timestamp, which replaces one with the same
	// timestamp.
	Put(key K, value V, timestamp int64) (Placement, error)
	// Delete sets the version of key at timestamp to a deletion.
	Delete(key K, timestamp int64) (Placement, error)
}

// Placement tells where a version went.
type Placement uint8

const (
	// Latest: the version is the latest of its key.
	Latest Placement = iota
	// Past: the key has a later version, which stays the latest.
	Past
	// Expired: the version is older than stream time - history and was dropped.
	Expired
)

// VersionedSpecs returns the specs of the two stores that a versioned store
// keeps its rows in: the latest versions in a key-value store of that name, with
// a changelog that any reader can open, and those that ended in a window store
// named by [HistoryStore], by the time at which they ended. History is at least
// 1 ms.
func VersionedSpecs(name, key, value string, history time.Duration) []Spec {
	return []Spec{
		{Name: name, Kind: KeyValue, KeySerde: key, ValueSerde: value},
		{
			Name: HistoryStore(name), Kind: Window, KeySerde: key, ValueSerde: versionName(value),
			WindowSize: time.Millisecond, Retention: history,
		},
	}
}

// HistoryStore is the name of the store of past versions of a versioned store.
func HistoryStore(name string) string { return name + "-history" }

// NewVersionedStore returns the versioned store over two stores, which were
// declared with [VersionedSpecs]. clock holds its stream time.
func NewVersionedStore[K, V any](latest, history *Store, key serde.Serde[K], value serde.Serde[V], clock *Cell) VersionedStore[K, V] {
	return &versioned[K, V]{
		latest: NewKeyValueStore(latest, key, value),
		past:   NewWindowStore(history, key, serde.Serde[version[V]](versionSerde[V]{value}), clock.Value),
		clock:  clock, history: history.Spec.Retention.Milliseconds(),
	}
}

// versioned keeps ended versions in past under (key, end): the row's timestamp is
// the version's start. A row without a value, which starts where it ends, says
// that a deletion begins there and that no version ended. Another deletion shows
// as a gap between two versions.
type versioned[K, V any] struct {
	latest  KeyValueStore[K, V]
	past    WindowStore[K, version[V]]
	clock   *Cell
	history int64
}

func (s *versioned[K, V]) Get(key K) (V, int64, bool, error) { return s.latest.GetTimestamped(key) }

func (s *versioned[K, V]) GetAsOf(key K, asOf int64) (v V, timestamp int64, ok bool, err error) {
	last, at, ok, err := s.latest.GetTimestamped(key)
	if err != nil || ok && at <= asOf {
		return last, at, ok, err
	}
	now := s.clock.Value()
	if asOf < now-s.history {
		return v, 0, false, nil
	}
	if !ok {
		at = now
	}
	row, found, err := s.next(key, asOf, at)
	if err != nil || !found || row.Timestamp > asOf || !row.Value.ok {
		return v, 0, false, err
	}
	return row.Value.value, row.Timestamp, true, nil
}

// next returns the first version of key that ended after t and not after limit.
func (s *versioned[K, V]) next(key K, t, limit int64) (row WindowRow[K, version[V]], ok bool, err error) {
	for row, err = range s.past.Fetch(key, t+1, limit) {
		return row, err == nil, err
	}
	return row, false, nil
}

func (s *versioned[K, V]) Put(key K, value V, timestamp int64) (Placement, error) {
	return s.set(key, version[V]{value, true}, timestamp)
}

func (s *versioned[K, V]) Delete(key K, timestamp int64) (Placement, error) {
	return s.set(key, version[V]{}, timestamp)
}

func (s *versioned[K, V]) set(key K, v version[V], ts int64) (Placement, error) {
	now := s.clock.Value()
	if ts < now-s.history {
		return Expired, nil
	}
	if ts > now {
		now = ts
		s.clock.Set(now)
	}
	last, at, ok, err := s.latest.GetTimestamped(key)
	if err != nil {
		return Latest, err
	}
	if ok && at <= ts {
		return Latest, s.succeed(key, version[V]{last, true}, at, v, ts)
	}
	limit := now
	if ok {
		limit = at
	}
	row, found, err := s.next(key, ts, limit)
	switch {
	case err != nil:
		return Latest, err
	case found:
		return Past, s.insert(key, row, v, ts)
	case ok: // between the last version that ended and the latest
		return Past, s.end(key, v, ts, at)
	case v.ok:
		return Latest, s.latest.Put(key, v.value, ts)
	}
	return Latest, s.mark(key, ts)
}

// succeed replaces the latest version, of time at, by v.
func (s *versioned[K, V]) succeed(key K, last version[V], at int64, v version[V], ts int64) error {
	if at < ts {
		if err := s.past.Put(key, ts, last, at); err != nil {
			return err
		}
	}
	if v.ok {
		return s.latest.Put(key, v.value, ts)
	}
	if err := s.latest.Delete(key); err != nil {
		return err
	}
	return s.mark(key, ts)
}

// insert puts v before the end of row, which is the first version to end after
// ts.
func (s *versioned[K, V]) insert(key K, row WindowRow[K, version[V]], v version[V], ts int64) error {
	if !row.Value.ok || row.Timestamp > ts { // v begins in a gap
		return s.end(key, v, ts, row.Timestamp)
	}
	if row.Timestamp < ts { // v divides row
		if err := s.past.Put(key, ts, row.Value, row.Timestamp); err != nil {
			return err
		}
	}
	if v.ok {
		return s.past.Put(key, row.Start, v, ts)
	}
	if err := s.past.Put(key, row.Start, version[V]{}, row.Start); err != nil {
		return err
	}
	return s.mark(key, ts)
}

// end puts a version that ended at end.
func (s *versioned[K, V]) end(key K, v version[V], ts, end int64) error {
	if v.ok {
		return s.past.Put(key, end, v, ts)
	}
	return s.mark(key, ts)
}

// mark notes that a deletion of key begins at ts, unless the end of a version
// says so.
func (s *versioned[K, V]) mark(key K, ts int64) error {
	if _, _, ok, err := s.past.Get(key, ts); ok || err != nil {
		return err
	}
	return s.past.Put(key, ts, version[V]{}, ts)
}

// A version is a past value, or the mark of a deletion if it is not ok.
type version[V any] struct {
	value V
	ok    bool
}

// versionSerde encodes the mark of a deletion as nothing, and a value as the byte
// 1 followed by its encoding.
type versionSerde[V any] struct{ values serde.Serde[V] }

func (s versionSerde[V]) Append(dst []byte, v version[V]) ([]byte, error) {
	if !v.ok {
		return dst, nil
	}
	return s.values.Append(append(dst, 1), v.value)
}

func (s versionSerde[V]) Decode(data []byte) (v version[V], err error) {
	if len(data) == 0 {
		return v, nil
	}
	if data[0] != 1 {
		return v, errVersion
	}
	v.value, err = s.values.Decode(data[1:])
	v.ok = err == nil
	return v, err
}

var errVersion = errors.New("past version: it begins with neither a value nor a deletion")

func (s versionSerde[V]) Name() string { return versionName(s.values.Name()) }

func versionName(value string) string { return "version(" + value + ")" }
