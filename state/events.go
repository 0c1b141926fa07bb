package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/millrace/millrace/serde"
)

// EventStore is a typed store that keeps every event of a key, by time: (key,
// time, number) -> value. The number tells events of a key with the same time
// apart and orders them. Events whose time is at or before stream time - retention
// are expired: reads do not return them and puts drop them. Not safe for
// concurrent use.
type EventStore[K, V any] interface {
	// Put adds an event; it replaces one with the same key, time and number. Time
	// is in ms since the epoch; neither may be negative.
	Put(key K, time, number int64, value V) error
	// Fetch iterates over the events of key with a time in [from, to], ordered by
	// time, then by number.
	Fetch(key K, from, to int64) iter.Seq2[Event[V], error]
}

// An Event is a row of an event store.
type Event[V any] struct {
	Time   int64 // ms since the epoch
	Number int64
	Value  V
}

// NewEventStore returns s, of kind [Events], as a typed event store. The stream
// time decides which events have expired, as for [NewWindowStore].
func NewEventStore[K, V any](s *Store, key serde.Serde[K], value serde.Serde[V], streamTime func() int64) EventStore[K, V] {
	if streamTime != nil {
		s.streamTime = streamTime
	}
	return &events[K, V]{store: s, codec: codec[K, V]{s.Spec.Name, key, value}, streamTime: streamTime}
}

// The key of an event is that of a window row with the event's time as its start,
// followed by the number (8 bytes); the row is the encoded value.
type events[K, V any] struct {
	store      *Store
	codec      codec[K, V]
	streamTime func() int64
	key, enc   []byte // scratch
}

func (s *events[K, V]) oldest() int64 {
	if s.streamTime == nil {
		return 0
	}
	return s.store.Spec.OldestStart(s.streamTime())
}

func (s *events[K, V]) Put(key K, time, number int64, value V) (err error) {
	if time < 0 || number < 0 {
		return fmt.Errorf("store %q: event %d at %d: a negative number", s.store.Spec.Name, number, time)
	}
	if time < s.oldest() {
		return nil
	}
	if s.enc, err = s.codec.appendKey(s.enc[:0], key); err != nil {
		return err
	}
	row, err := s.codec.value.Append([]byte{}, value)
	if err != nil {
		return fmt.Errorf("store %q: encode value: %w", s.store.Spec.Name, err)
	}
	s.key = s.store.Spec.appendEventKey(s.key[:0], s.enc, time, number)
	s.store.Put(s.key, row)
	return nil
}

func (s *events[K, V]) Fetch(key K, from, to int64) iter.Seq2[Event[V], error] {
	enc, err := s.codec.appendKey(nil, key)
	if err != nil {
		return fail[Event[V]](err)
	}
	return func(yield func(Event[V], error) bool) {
		from := max(from, s.oldest())
		for segment, err := range segments(&s.store.Spec, s.store.Scan, from, to, false) {
			if err != nil {
				yield(Event[V]{}, err)
				return
			}
			lower := appendWindowPrefix(nil, segment, enc)
			upper := slices.Clone(lower)
			lower = binary.BigEndian.AppendUint64(lower, uint64(from))
			upper = binary.BigEndian.AppendUint64(upper, uint64(to)+1)
			for kv, err := range s.store.Scan(lower, upper, false) {
				e, err := s.decode(kv, err)
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

func (s *events[K, V]) decode(kv KV, err error) (e Event[V], _ error) {
	if err != nil {
		return e, err
	}
	if _, e.Time, e.Number, err = splitEventKey(kv.Key); err == nil {
		e.Value, err = s.codec.value.Decode(bytes.Clone(kv.Value))
	}
	if err != nil {
		err = fmt.Errorf("store %q: decode event: %w", s.store.Spec.Name, err)
	}
	return e, err
}

func (s *Spec) appendEventKey(dst, key []byte, time, number int64) []byte {
	return binary.BigEndian.AppendUint64(s.appendWindowKey(dst, key, time), uint64(number))
}

// splitEventKey returns the user key, in memory of its own with room for 16 bytes,
// time and number. The error is [ErrCorrupt].
func splitEventKey(rowKey []byte) (key []byte, time, number int64, err error) {
	n := len(rowKey) - 8
	if n < 0 {
		return nil, 0, 0, fmt.Errorf("%w: %x is not the key of an event", ErrCorrupt, rowKey)
	}
	if key, time, err = splitWindowKey(rowKey[:n]); err != nil {
		return nil, 0, 0, err
	}
	u := binary.BigEndian.Uint64(rowKey[n:])
	if u > math.MaxInt64 {
		return nil, 0, 0, fmt.Errorf("%w: %x is not the key of an event", ErrCorrupt, rowKey)
	}
	return slices.Grow(key, 16), time, int64(u), nil
}

// appendEventLogKey appends the row key of an event in the changelog: the user
// key followed by time and number, 8 bytes each.
func (s *Spec) appendEventLogKey(dst, key []byte) ([]byte, error) {
	user := len(key) - 16
	if user < 0 {
		return dst, fmt.Errorf("store %q: a changelog key of %d bytes has no time and number", s.Name, len(key))
	}
	time, number := int64(binary.BigEndian.Uint64(key[user:])), int64(binary.BigEndian.Uint64(key[user+8:]))
	if time < 0 || number < 0 {
		return dst, fmt.Errorf("store %q: a changelog key with time %d and number %d", s.Name, time, number)
	}
	return s.appendEventKey(dst, key[:user], time, number), nil
}
