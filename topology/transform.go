package topology

import (
	"iter"

	"github.com/millrace/millrace/processors"
)

// MapValues replaces every value by f of it. The key stays, so nothing is
// repartitioned.
func MapValues[K, V, R any](s *KStream[K, V], f func(V) R, opts ...StepOption) *KStream[K, R] {
	return TryMapValues(s, func(r processors.Record[K, V]) (R, error) { return f(r.Value), nil }, opts...)
}

// TryMapValues is [MapValues] for a function of the whole record that may fail.
func TryMapValues[K, V, R any](s *KStream[K, V], f func(processors.Record[K, V]) (R, error), opts ...StepOption) *KStream[K, R] {
	p := stateless(s, "map-values", opts, func(next processors.Forward[K, R]) processors.Forward[K, V] {
		return processors.MapValues(f, next)
	})
	return &KStream[K, R]{b: s.b, from: p, key: s.key, value: serdeFor[V, R](s.value), changed: s.changed}
}

// SelectKey replaces every key by f of the record. The key changes: a
// repartition topic is inserted before the next join, aggregation or table.
func SelectKey[K, V, R any](s *KStream[K, V], f func(K, V) R, opts ...StepOption) *KStream[R, V] {
	return TrySelectKey(s, func(r processors.Record[K, V]) (R, error) { return f(r.Key, r.Value), nil }, opts...)
}

// TrySelectKey is [SelectKey] for a function of the whole record that may fail.
func TrySelectKey[K, V, R any](s *KStream[K, V], f func(processors.Record[K, V]) (R, error), opts ...StepOption) *KStream[R, V] {
	p := stateless(s, "select-key", opts, func(next processors.Forward[R, V]) processors.Forward[K, V] {
		return processors.SelectKey(f, next)
	})
	return &KStream[R, V]{b: s.b, from: p, key: serdeFor[K, R](s.key), value: s.value, changed: true}
}

// Map replaces key and value; timestamp and headers stay. The key changes: a
// repartition topic is inserted before the next join, aggregation or table.
func Map[K, V, KR, VR any](s *KStream[K, V], f func(K, V) (KR, VR), opts ...StepOption) *KStream[KR, VR] {
	return TryMap(s, func(r processors.Record[K, V]) (processors.Record[KR, VR], error) {
		k, v := f(r.Key, r.Value)
		return processors.Record[KR, VR]{Key: k, Value: v, Timestamp: r.Timestamp, Headers: r.Headers}, nil
	}, opts...)
}

// TryMap is [Map] for a function of the whole record that may fail. The function
// sets the timestamp and the headers too.
func TryMap[K, V, KR, VR any](s *KStream[K, V], f func(processors.Record[K, V]) (processors.Record[KR, VR], error), opts ...StepOption) *KStream[KR, VR] {
	p := stateless(s, "map", opts, func(next processors.Forward[KR, VR]) processors.Forward[K, V] {
		return processors.Map(f, next)
	})
	return &KStream[KR, VR]{b: s.b, from: p, key: serdeFor[K, KR](s.key), value: serdeFor[V, VR](s.value), changed: true}
}

// FlatMap replaces a record by any number of records, which inherit its
// timestamp and headers; a nil sequence is empty. The key changes: a repartition
// topic is inserted before the next join, aggregation or table.
func FlatMap[K, V, KR, VR any](s *KStream[K, V], f func(K, V) iter.Seq2[KR, VR], opts ...StepOption) *KStream[KR, VR] {
	return TryFlatMap(s, func(r processors.Record[K, V]) (iter.Seq2[KR, VR], error) { return f(r.Key, r.Value), nil }, opts...)
}

// TryFlatMap is [FlatMap] for a function of the whole record that may fail.
func TryFlatMap[K, V, KR, VR any](s *KStream[K, V], f func(processors.Record[K, V]) (iter.Seq2[KR, VR], error), opts ...StepOption) *KStream[KR, VR] {
	p := stateless(s, "flat-map", opts, func(next processors.Forward[KR, VR]) processors.Forward[K, V] {
		return processors.FlatMap(f, next)
	})
	return &KStream[KR, VR]{b: s.b, from: p, key: serdeFor[K, KR](s.key), value: serdeFor[V, VR](s.value), changed: true}
}

// FlatMapValues replaces a record by one for each value of the sequence, with its
// key, timestamp and headers; a nil sequence is empty. Slices become sequences
// by slices.Values.
func FlatMapValues[K, V, R any](s *KStream[K, V], f func(V) iter.Seq[R], opts ...StepOption) *KStream[K, R] {
	return TryFlatMapValues(s, func(r processors.Record[K, V]) (iter.Seq[R], error) { return f(r.Value), nil }, opts...)
}

// TryFlatMapValues is [FlatMapValues] for a function of the whole record that may
// fail.
func TryFlatMapValues[K, V, R any](s *KStream[K, V], f func(processors.Record[K, V]) (iter.Seq[R], error), opts ...StepOption) *KStream[K, R] {
	p := stateless(s, "flat-map-values", opts, func(next processors.Forward[K, R]) processors.Forward[K, V] {
		return processors.FlatMapValues(f, next)
	})
	return &KStream[K, R]{b: s.b, from: p, key: s.key, value: serdeFor[V, R](s.value), changed: s.changed}
}
