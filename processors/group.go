package processors

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// Regroup gives the rows of a table other keys and values: the first half of a
// grouped table, before the repartition topic. An update that keeps the new key
// is forwarded as one update; one that moves a row first takes it from its old
// group, then adds it to the new one. Half an update is left out where there is
// no row or choose returns a nil key or value.
func Regroup[K, V, K2, V2 any](step string, choose func(K, V) (K2, V2, error), keys serde.Serde[K2], next Forward[K2, Change[V2]]) Forward[K, Change[V]] {
	nullKey, nullValue := NullCheck[K2](), NullCheck[V2]()
	half := func(key K, v V, ok bool) (k K2, w V2, _ bool, err error) {
		if !ok {
			return k, w, false, nil
		}
		k, w, err = choose(key, v)
		return k, w, err == nil && !nullKey(k) && !nullValue(w), err
	}
	var a, b []byte
	return func(r Record[K, Change[V]]) error {
		oldKey, old, hasOld, err := half(r.Key, r.Value.Old, r.Value.HasOld)
		if err != nil {
			return err
		}
		newKey, v, hasNew, err := half(r.Key, r.Value.New, r.Value.HasNew)
		if err != nil {
			return err
		}
		if hasOld && hasNew {
			if a, err = keys.Append(a[:0], oldKey); err == nil {
				b, err = keys.Append(b[:0], newKey)
			}
			if err != nil {
				return Fail(ClassProduce, step, err)
			}
			if bytes.Equal(a, b) {
				return next(withValue(r, newKey, Change[V2]{Old: old, New: v, HasOld: true, HasNew: true}, r.Timestamp))
			}
		}
		if hasOld {
			if err := next(withValue(r, oldKey, Change[V2]{Old: old, HasOld: true}, r.Timestamp)); err != nil {
				return err
			}
		}
		if hasNew {
			return next(withValue(r, newKey, Change[V2]{New: v, HasNew: true}, r.Timestamp))
		}
		return nil
	}
}

// TableAggregate keeps one aggregate per group of a grouped table. An update
// first subtracts the old value, if there is an aggregate, then adds the new
// one. The aggregate stays when its last row has gone, unless subtract deletes
// it. Its timestamp never goes back. Every update is forwarded.
func TableAggregate[K, V, A any](step string, store state.KeyValueStore[K, A], add, subtract Update[K, V, A], next Forward[K, Change[A]]) Forward[K, Change[V]] {
	rows := keyRows(store)
	update := func(r Record[K, Change[V]], agg A, ok bool) (A, bool, error) {
		c := r.Value
		if c.HasOld && ok {
			var err error
			if agg, ok, err = subtract(withValue(r, r.Key, c.Old, r.Timestamp), agg, true); err != nil {
				return agg, false, err
			}
		}
		if !c.HasNew {
			return agg, ok, nil
		}
		return add(withValue(r, r.Key, c.New, r.Timestamp), agg, ok)
	}
	return func(r Record[K, Change[V]]) error { return changeRow(step, rows, r, r.Key, update, next) }
}

// ChangeSerde encodes updates for a repartition topic: one byte of flags (1: an
// old value, 2: a new value), the length of the old value as an unsigned varint
// if both are there, the old value, the new value.
func ChangeSerde[V any](values serde.Serde[V]) serde.Serde[Change[V]] { return changeSerde[V]{values} }

type changeSerde[V any] struct{ values serde.Serde[V] }

const (
	changeHasOld = 1 << iota
	changeHasNew
)

func (s changeSerde[V]) Append(dst []byte, c Change[V]) ([]byte, error) {
	var flags byte
	if c.HasOld {
		flags |= changeHasOld
	}
	if c.HasNew {
		flags |= changeHasNew
	}
	enc := append(dst, flags)
	if c.HasOld {
		old, err := s.values.Append(nil, c.Old)
		if err != nil {
			return dst, err
		}
		if c.HasNew {
			enc = binary.AppendUvarint(enc, uint64(len(old)))
		}
		enc = append(enc, old...)
	}
	if c.HasNew {
		var err error
		if enc, err = s.values.Append(enc, c.New); err != nil {
			return dst, err
		}
	}
	return enc, nil
}

var errChange = errors.New("update of a grouped table: malformed; was the repartition topic written by another program?")

func (s changeSerde[V]) Decode(data []byte) (c Change[V], err error) {
	if len(data) == 0 || data[0] > changeHasOld|changeHasNew {
		return c, errChange
	}
	flags, data := data[0], data[1:]
	c.HasOld, c.HasNew = flags&changeHasOld != 0, flags&changeHasNew != 0
	old := data
	switch {
	case c.HasOld && c.HasNew:
		n, size := binary.Uvarint(data)
		if size <= 0 || n > uint64(len(data)-size) {
			return Change[V]{}, errChange
		}
		end := size + int(n)
		old, data = data[size:end:end], data[end:]
	case flags == 0 && len(data) > 0:
		return Change[V]{}, errChange
	}
	if c.HasOld {
		if c.Old, err = s.values.Decode(old); err != nil {
			return Change[V]{}, err
		}
	}
	if c.HasNew {
		if c.New, err = s.values.Decode(data); err != nil {
			return Change[V]{}, err
		}
	}
	return c, nil
}

func (s changeSerde[V]) Name() string { return "change(" + s.values.Name() + ")" }
