package processors

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// SessionSerde encodes the windowed keys of sessions as Kafka Streams does: the
// key's encoding, then the session's end and its start, 8 bytes big-endian each.
func SessionSerde[K any](keys serde.Serde[K]) serde.Serde[Windowed[K]] { return sessionSerde[K]{keys} }

type sessionSerde[K any] struct{ keys serde.Serde[K] }

func (s sessionSerde[K]) Append(dst []byte, w Windowed[K]) ([]byte, error) {
	enc, err := s.keys.Append(dst, w.Key)
	if err != nil {
		return dst, err
	}
	enc = binary.BigEndian.AppendUint64(enc, uint64(w.End))
	return binary.BigEndian.AppendUint64(enc, uint64(w.Start)), nil
}

func (s sessionSerde[K]) Decode(data []byte) (w Windowed[K], err error) {
	n := len(data) - 16
	if n < 0 {
		return w, fmt.Errorf("key of a session of %d bytes: it ends with the session's end and start, 16 bytes", len(data))
	}
	end, start := int64(binary.BigEndian.Uint64(data[n:])), int64(binary.BigEndian.Uint64(data[n+8:]))
	if start < 0 || end < start {
		return w, errors.New("key of a session: it ends before it starts")
	}
	key, err := s.keys.Decode(data[:n:n])
	return Windowed[K]{key, start, end}, err
}

// PartitionKey implements [PartitionKeyer]: sessions of one key share its
// partition.
func (s sessionSerde[K]) PartitionKey(key []byte) []byte { return key[:max(0, len(key)-16)] }

func (s sessionSerde[K]) Name() string { return "session(" + s.keys.Name() + ")" }

// MergeReduce merges the results of sessions with the function that combines
// values.
func MergeReduce[K, V any](fn func(agg, value V) (V, error)) Merge[K, V] {
	null := NullCheck[V]()
	return func(_ K, a V, ok bool, b V) (V, bool, error) {
		if !ok {
			return b, true, nil
		}
		a, err := fn(a, b)
		return a, !null(a), err
	}
}

// MergeAggregates merges the aggregates of sessions with fn, beginning with
// start().
func MergeAggregates[K, A any](start func() A, fn func(key K, a, b A) (A, error)) Merge[K, A] {
	null := NullCheck[A]()
	return func(key K, a A, ok bool, b A) (A, bool, error) {
		if !ok {
			a = start()
		}
		a, err := fn(key, a, b)
		return a, !null(a), err
	}
}

// SessionAggregate keeps one aggregate per key and session in store. A session is
// all records of a key that are not further apart than Windows.Size, the gap; a
// record that is at most the gap before or after a session extends it, and merges
// sessions that it connects: each of them is deleted, then the new one is put. Its
// aggregate is what merge makes of theirs, updated by the record.
//
// A session closes when the step's stream time passes its end by more than gap +
// grace; a record is dropped ("late") if its session would be closed. A record
// without a key is dropped ("null-key"); one without a value counts.
//
// Every change is forwarded with the session's end as its timestamp, or with
// Windows.Final each session once, when it closes, ordered by end, by start and
// then by encoded key.
func SessionAggregate[K, V, A any](t Task, step string, w Windows, store state.SessionStore[K, A], update Update[K, V, A], merge Merge[K, A], next Forward[Windowed[K], Change[A]]) Forward[K, V] {
	o := &sessionAggregate[K, V, A]{
		task: t, step: step, store: store, update: update, merge: merge, changed: next,
		gap: w.Size.Milliseconds(), grace: w.Grace.Milliseconds(), clock: windowClock(t, step), reread: isReference[A](),
	}
	if w.Final {
		o.final, o.closed = next, windowClosed(t, step)
		o.changed = func(Record[Windowed[K], Change[A]]) error { return nil }
		o.reread = false
	}
	return o.process
}

type sessionAggregate[K, V, A any] struct {
	task           Task
	step           string
	store          state.SessionStore[K, A]
	update         Update[K, V, A]
	merge          Merge[K, A]
	changed, final Forward[Windowed[K], Change[A]]
	gap, grace     int64
	reread         bool

	clock  *state.Cell // stream time of the step
	closed *state.Cell // sessions that ended before it were emitted
	found  []state.Session[K, A]
}

func (o *sessionAggregate[K, V, A]) process(r Record[K, V]) error {
	if r.NoKey {
		return Drop(o.task, o.step, r, "null-key")
	}
	now := max(o.clock.Value(), r.Timestamp)
	o.clock.Set(now)
	closeTime := now - o.grace - o.gap
	merged := Windowed[K]{r.Key, r.Timestamp, r.Timestamp}
	o.found = o.found[:0]
	for s, err := range o.store.Find(r.Key, r.Timestamp-o.gap, r.Timestamp+o.gap) {
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		merged.Start, merged.End = min(merged.Start, s.Start), max(merged.End, s.End)
		o.found = append(o.found, s)
	}
	if merged.End < closeTime {
		if err := Drop(o.task, o.step, r, "late"); err != nil {
			return err
		}
	} else if err := o.put(r, merged); err != nil {
		return err
	}
	clear(o.found)
	if o.final == nil {
		return nil
	}
	return o.emit(r, closeTime)
}

// put replaces the sessions that were found by the one that they make with r.
func (o *sessionAggregate[K, V, A]) put(r Record[K, V], merged Windowed[K]) error {
	var agg A
	var ok bool
	var err error
	c := Change[A]{}
	for _, s := range o.found {
		old := Change[A]{Old: s.Value, HasOld: true}
		if agg, ok, err = o.merge(r.Key, agg, ok, s.Value); err != nil {
			return err
		}
		if o.reread { // the merge may have changed it in place
			if old.Old, _, err = o.store.Get(r.Key, s.Start, s.End); err != nil {
				return Fail(ClassState, o.step, err)
			}
		}
		if s.Start == merged.Start && s.End == merged.End && len(o.found) == 1 {
			if s.Start == s.End {
				c.Old, c.HasOld = old.Old, true // the session stays as it is
				continue
			}
		}
		if err := o.store.Delete(r.Key, s.End); err != nil {
			return Fail(ClassState, o.step, err)
		}
		if err := o.changed(withValue(r, Windowed[K]{r.Key, s.Start, s.End}, old, s.End)); err != nil {
			return err
		}
	}
	if c.New, c.HasNew, err = o.update(r, agg, ok); err != nil {
		return err
	}
	if c.HasNew {
		err = o.store.Put(r.Key, merged.Start, merged.End, c.New)
	} else {
		var none A
		c.New = none
		err = o.store.Delete(r.Key, merged.End)
	}
	if err != nil {
		return Fail(ClassState, o.step, err)
	}
	return o.changed(withValue(r, merged, c, merged.End))
}

// emit forwards the sessions that ended before closeTime and were not emitted
// yet.
func (o *sessionAggregate[K, V, A]) emit(r Record[K, V], closeTime int64) error {
	if closeTime <= max(0, o.closed.Value()) {
		return nil
	}
	for s, err := range o.store.Ended(max(0, o.closed.Value()), closeTime-1) {
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		c := Change[A]{New: s.Value, HasNew: true}
		if err := o.final(withValue(r, Windowed[K]{s.Key, s.Start, s.End}, c, s.End)); err != nil {
			return err
		}
	}
	o.closed.Set(closeTime)
	return nil
}
