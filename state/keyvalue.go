package state

import (
	"bytes"
	"fmt"
	"iter"
	"slices"

	"github.com/millrace/millrace/serde"
)

// NewKeyValueStore returns s as a typed key-value store.
func NewKeyValueStore[K, V any](s *Store, key serde.Serde[K], value serde.Serde[V]) KeyValueStore[K, V] {
	return &keyValue[K, V]{store: s, codec: codec[K, V]{s.Spec.Name, key, value}}
}

type keyValue[K, V any] struct {
	store    *Store
	codec    codec[K, V]
	key, row []byte // scratch
}

func (s *keyValue[K, V]) Get(key K) (V, bool, error) {
	v, _, ok, err := s.GetTimestamped(key)
	return v, ok, err
}

func (s *keyValue[K, V]) GetTimestamped(key K) (v V, timestamp int64, ok bool, err error) {
	if err = s.encode(key); err != nil {
		return v, 0, false, err
	}
	row, err := s.store.Get(s.key)
	if err != nil || row == nil {
		return v, 0, false, err
	}
	v, timestamp, err = s.codec.decodeRow(row)
	return v, timestamp, err == nil, err
}

func (s *keyValue[K, V]) Put(key K, value V, timestamp int64) (err error) {
	if err := s.encode(key); err != nil {
		return err
	}
	if s.row, err = s.codec.appendRow(s.row[:0], value, timestamp); err != nil {
		return err
	}
	s.store.Put(s.key, bytes.Clone(s.row))
	return nil
}

func (s *keyValue[K, V]) Delete(key K) error {
	if err := s.encode(key); err != nil {
		return err
	}
	s.store.Put(s.key, nil)
	return nil
}

func (s *keyValue[K, V]) encode(key K) (err error) {
	s.key, err = s.codec.appendKey(s.key[:0], key)
	return err
}

func (s *keyValue[K, V]) Range(from, to *K) iter.Seq2[Row[K, V], error] {
	lower, upper, err := s.codec.bounds(from, to)
	if err != nil {
		return fail[Row[K, V]](err)
	}
	return s.codec.rows(s.store.Scan(lower, upper, false))
}

func (s *keyValue[K, V]) Prefix(prefix []byte) iter.Seq2[Row[K, V], error] {
	return s.codec.rows(s.store.Scan(prefix, prefixEnd(prefix), false))
}

// A codec turns typed keys and values of a store into bytes and back.
type codec[K, V any] struct {
	store string
	key   serde.Serde[K]
	value serde.Serde[V]
}

func (c *codec[K, V]) appendKey(dst []byte, key K) ([]byte, error) {
	b, err := c.key.Append(dst, key)
	if err != nil {
		return dst, fmt.Errorf("store %q: encode key: %w", c.store, err)
	}
	return b, nil
}

func (c *codec[K, V]) appendRow(dst []byte, value V, timestamp int64) ([]byte, error) {
	b, err := c.value.Append(AppendRow(dst, timestamp), value)
	if err != nil {
		return dst, fmt.Errorf("store %q: encode value: %w", c.store, err)
	}
	return b, nil
}

func (c *codec[K, V]) decodeKey(data []byte) (K, error) {
	k, err := c.key.Decode(data)
	if err != nil {
		err = fmt.Errorf("store %q: decode key: %w", c.store, err)
	}
	return k, err
}

func (c *codec[K, V]) decodeRow(row []byte) (v V, timestamp int64, err error) {
	timestamp, data, err := SplitRow(row)
	if err == nil {
		v, err = c.value.Decode(data)
	}
	if err != nil {
		err = fmt.Errorf("store %q: decode value: %w", c.store, err)
	}
	return v, timestamp, err
}

// bounds returns the encoded interval [lower, upper) of the keys in [from, to].
func (c *codec[K, V]) bounds(from, to *K) (lower, upper []byte, err error) {
	if from != nil {
		if lower, err = c.appendKey(nil, *from); err != nil {
			return nil, nil, err
		}
	}
	if to != nil {
		if upper, err = c.appendKey(nil, *to); err != nil {
			return nil, nil, err
		}
		upper = append(upper, 0) // the smallest key after to
	}
	return lower, upper, nil
}

// rows decodes rows of a key-value store. Keys are as scanned, values are copied,
// since a serde may alias them.
func (c *codec[K, V]) rows(scan iter.Seq2[KV, error]) iter.Seq2[Row[K, V], error] {
	return func(yield func(Row[K, V], error) bool) {
		for kv, err := range scan {
			r, err := c.decode(kv, err)
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func (c *codec[K, V]) decode(kv KV, err error) (r Row[K, V], _ error) {
	if err != nil {
		return r, err
	}
	kv = own(kv)
	if r.Key, err = c.decodeKey(kv.Key); err != nil {
		return r, err
	}
	r.Value, r.Timestamp, err = c.decodeRow(kv.Value)
	return r, err
}

// own returns a copy of a scanned row in memory of its own.
func own(kv KV) KV {
	b := slices.Concat(kv.Key, kv.Value)
	n := len(kv.Key)
	return KV{b[:n:n], b[n:]}
}

func fail[R any](err error) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		var zero R
		yield(zero, err)
	}
}
