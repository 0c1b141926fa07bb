package processors

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A Suppression says which updates of a table are held back, and for how long.
type Suppression[K any] struct {
	// Time, if not nil, returns the time of a row, ms since the epoch, from which the
	// wait counts: the end of its window. Else it is the timestamp of the update that
	// came first.
	Time func(key K) int64
	// Wait is how long after its time a row is held back, in ms of stream time.
	Wait int64
	// Final leaves out deletions.
	Final bool
	// MaxRecords and MaxBytes bound what is held back; 0 is without bound. Bytes are
	// those of encoded keys and rows. When there is more, the rows that would be
	// forwarded first are, or with ShutDown the task stops.
	MaxRecords, MaxBytes int64
	ShutDown             bool
}

// A HeldKey is the key of a row in the store of a suppression: the held row of a
// key, or a place in the queue.
type HeldKey[K any] struct {
	Key    K
	Queued bool
	Time   int64 // of the place in the queue
	Bound  bool  // the smallest place of its time: the key is not written
}

// Held is an update that is held back: the row before the first one and the one
// after the last. Of a place in the queue it is the zero value.
type Held[V any] struct {
	Time    int64
	Row     Change[V]
	Headers []Header
}

// Suppress holds the updates of a table back in store: of each key, an update
// replaces the one before it, and keeps its time. When stream time, the largest
// timestamp of the updates, has reached a row's time + wait, one update is
// forwarded, with the timestamp and headers of the last one; its old value is the
// row that the steps behind know. Rows are forwarded in the order of their times,
// then of their encoded keys.
func Suppress[K, V any](t Task, step string, s Suppression[K], keys serde.Serde[HeldKey[K]], rows serde.Serde[Held[V]],
	store state.KeyValueStore[HeldKey[K], Held[V]], next Forward[K, Change[V]],
) Forward[K, Change[V]] {
	o := &suppress[K, V]{
		Suppression: s, step: step, keys: keys, rows: rows, store: store, next: next,
		clock: t.Cell(step + ".stream-time"), oldest: t.Cell(step + ".oldest"),
		records: t.Cell(step + ".records"), bytes: t.Cell(step + ".bytes"),
	}
	return o.process
}

type suppress[K, V any] struct {
	Suppression[K]
	step  string
	keys  serde.Serde[HeldKey[K]]
	rows  serde.Serde[Held[V]]
	store state.KeyValueStore[HeldKey[K], Held[V]]
	next  Forward[K, Change[V]]

	clock          *state.Cell
	oldest         *state.Cell // no row has an older time; -1 if there is none
	records, bytes *state.Cell // held, minus one: a cell begins at -1
}

func (o *suppress[K, V]) process(r Record[K, Change[V]]) error {
	o.clock.Set(max(o.clock.Value(), r.Timestamp))
	if err := o.hold(r); err != nil {
		return Fail(ClassState, o.step, err)
	}
	if err := o.release(o.clock.Value() - o.Wait); err != nil || !o.full() {
		return err
	}
	return WithAction(Stop, fmt.Errorf("%d records of %d bytes are held back, at most %d and %d may be (0 is without bound); raise the limit or let rows go early",
		o.records.Value()+1, o.bytes.Value()+1, o.MaxRecords, o.MaxBytes))
}

// hold puts an update in the place of the one before it, or at the end of the
// queue.
func (o *suppress[K, V]) hold(r Record[K, Change[V]]) error {
	key := HeldKey[K]{Key: r.Key}
	held, ok, err := o.store.Get(key)
	if err != nil {
		return err
	}
	if ok {
		if err := o.count(-1, key, held); err != nil {
			return err
		}
	} else {
		held.Time = r.Timestamp
		if o.Time != nil {
			held.Time = o.Time(r.Key)
		}
		held.Row.Old, held.Row.HasOld = r.Value.Old, r.Value.HasOld
		if err := o.store.Put(HeldKey[K]{Key: r.Key, Queued: true, Time: held.Time}, Held[V]{}, held.Time); err != nil {
			return err
		}
		if oldest := o.oldest.Value(); oldest < 0 || held.Time < oldest {
			o.oldest.Set(held.Time)
		}
	}
	held.Row.New, held.Row.HasNew, held.Headers = r.Value.New, r.Value.HasNew, r.Headers
	if err := o.count(1, key, held); err != nil {
		return err
	}
	return o.store.Put(key, held, r.Timestamp)
}

// count adds a held update to the counts, or takes it out.
func (o *suppress[K, V]) count(by int64, key HeldKey[K], held Held[V]) error {
	o.records.Set(o.records.Value() + by)
	if o.MaxBytes == 0 {
		return nil
	}
	enc, err := o.keys.Append(nil, key)
	if err == nil {
		enc, err = o.rows.Append(enc, held)
	}
	o.bytes.Set(o.bytes.Value() + by*int64(len(enc)))
	return err
}

func (o *suppress[K, V]) full() bool {
	return o.MaxRecords > 0 && o.records.Value()+1 > o.MaxRecords || o.MaxBytes > 0 && o.bytes.Value()+1 > o.MaxBytes
}

// release forwards the rows whose time is up to due, and more while too many are
// held back.
func (o *suppress[K, V]) release(due int64) error {
	oldest := o.oldest.Value()
	if oldest < 0 || oldest > due && !o.full() {
		return nil
	}
	from, left := HeldKey[K]{Queued: true, Time: oldest, Bound: true}, int64(-1)
	for place, err := range o.store.Range(&from, nil) {
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		if place.Key.Time > due && (o.ShutDown || !o.full()) {
			left = place.Key.Time
			break
		}
		if err := o.forward(place.Key); err != nil {
			return err
		}
	}
	o.oldest.Set(left)
	return nil
}

func (o *suppress[K, V]) forward(place HeldKey[K]) error {
	key := HeldKey[K]{Key: place.Key}
	held, ts, ok, err := o.store.GetTimestamped(key)
	if err == nil && !ok {
		err = errors.New("the queue holds a row that is not held back")
	}
	if err == nil {
		err = o.store.Delete(place)
	}
	if err == nil {
		err = o.store.Delete(key)
	}
	if err == nil {
		err = o.count(-1, key, held)
	}
	if err != nil {
		return Fail(ClassState, o.step, err)
	}
	if o.Final && !held.Row.HasNew {
		return nil
	}
	return o.next(Record[K, Change[V]]{Key: place.Key, Value: held.Row, Timestamp: ts, Headers: held.Headers})
}

// SuppressedLookup reads the rows of a suppressed table: those that steps behind
// it know. The timestamp of a row whose update is held back is not known: -1.
func SuppressedLookup[K, V any](store state.KeyValueStore[HeldKey[K], Held[V]], lookup Lookup[K, V]) Lookup[K, V] {
	return func(key K) (V, int64, bool, error) {
		held, ok, err := store.Get(HeldKey[K]{Key: key})
		if err != nil || ok {
			return held.Row.Old, -1, held.Row.HasOld, err
		}
		return lookup(key)
	}
}

// HeldKeySerde encodes the keys of a suppression's store: 0 and the key, or for a
// place in the queue 1, the time as 8 bytes big-endian, and the key.
func HeldKeySerde[K any](keys serde.Serde[K]) serde.Serde[HeldKey[K]] { return heldKeySerde[K]{keys} }

type heldKeySerde[K any] struct{ keys serde.Serde[K] }

func (s heldKeySerde[K]) Append(dst []byte, k HeldKey[K]) ([]byte, error) {
	enc := append(dst, 0)
	if k.Queued {
		enc = binary.BigEndian.AppendUint64(append(dst, 1), uint64(k.Time))
		if k.Bound {
			return enc, nil
		}
	}
	enc, err := s.keys.Append(enc, k.Key)
	if err != nil {
		return dst, err
	}
	return enc, nil
}

func (s heldKeySerde[K]) Decode(data []byte) (k HeldKey[K], err error) {
	switch {
	case len(data) > 0 && data[0] == 0:
		data = data[1:]
	case len(data) >= 9 && data[0] == 1:
		k.Queued, k.Time = true, int64(binary.BigEndian.Uint64(data[1:]))
		data = data[9:]
	default:
		return k, errors.New("key of a held row: malformed")
	}
	if k.Key, err = s.keys.Decode(data); err != nil {
		return HeldKey[K]{}, err
	}
	return k, nil
}

func (s heldKeySerde[K]) Name() string { return "held(" + s.keys.Name() + ")" }

// HeldSerde encodes held updates: the time as 8 bytes big-endian, headers as
// [RecordSerde] does, the row as [ChangeSerde] does. A place in the queue is
// nothing.
func HeldSerde[V any](values serde.Serde[V]) serde.Serde[Held[V]] {
	return heldSerde[V]{ChangeSerde(values), values.Name()}
}

type heldSerde[V any] struct {
	rows serde.Serde[Change[V]]
	name string
}

func (s heldSerde[V]) Append(dst []byte, h Held[V]) ([]byte, error) {
	if !h.Row.HasOld && !h.Row.HasNew && h.Time == 0 && h.Headers == nil {
		return dst, nil
	}
	enc := appendHeaders(binary.BigEndian.AppendUint64(dst, uint64(h.Time)), h.Headers)
	enc, err := s.rows.Append(enc, h.Row)
	if err != nil {
		return dst, err
	}
	return enc, nil
}

func (s heldSerde[V]) Decode(data []byte) (h Held[V], err error) {
	if len(data) == 0 {
		return h, nil
	}
	malformed := errors.New("held row: malformed")
	if len(data) < 8 {
		return h, malformed
	}
	h.Time = int64(binary.BigEndian.Uint64(data))
	headers, data, ok := cutHeaders(data[8:])
	if !ok {
		return Held[V]{}, malformed
	}
	h.Headers = headers
	if h.Row, err = s.rows.Decode(data); err != nil {
		return Held[V]{}, err
	}
	return h, nil
}

func (s heldSerde[V]) Name() string { return "held(" + s.name + ")" }
