package processors

import "iter"

// Filter forwards the records for which keep returns true.
func Filter[K, V any](keep func(Record[K, V]) (bool, error), next Forward[K, V]) Forward[K, V] {
	return func(r Record[K, V]) error {
		ok, err := keep(r)
		if err != nil || !ok {
			return err
		}
		return next(r)
	}
}

// MapValues replaces the value; key, timestamp and headers stay. A nil result of
// a nilable type is null.
func MapValues[K, V, R any](f func(Record[K, V]) (R, error), next Forward[K, R]) Forward[K, V] {
	null := NullCheck[R]()
	return func(r Record[K, V]) error {
		v, err := f(r)
		if err != nil {
			return err
		}
		return next(WithValue(r, v, null(v)))
	}
}

// WithValue returns r with another value.
func WithValue[K, V, R any](r Record[K, V], v R, null bool) Record[K, R] {
	return Record[K, R]{Key: r.Key, NoKey: r.NoKey, Value: v, NoValue: null, Timestamp: r.Timestamp, Headers: r.Headers}
}

// SelectKey replaces the key; value, timestamp and headers stay.
func SelectKey[K, V, R any](f func(Record[K, V]) (R, error), next Forward[R, V]) Forward[K, V] {
	null := NullCheck[R]()
	return func(r Record[K, V]) error {
		k, err := f(r)
		if err != nil {
			return err
		}
		return next(Record[R, V]{Key: k, NoKey: null(k), Value: r.Value, NoValue: r.NoValue, Timestamp: r.Timestamp, Headers: r.Headers})
	}
}

// Map replaces the record. The nil flags of the result are set from its key and
// value where their types are nilable.
func Map[K, V, KR, VR any](f func(Record[K, V]) (Record[KR, VR], error), next Forward[KR, VR]) Forward[K, V] {
	nullKey, nullValue := NullCheck[KR](), NullCheck[VR]()
	return func(r Record[K, V]) error {
		m, err := f(r)
		if err != nil {
			return err
		}
		m.NoKey = m.NoKey || nullKey(m.Key)
		m.NoValue = m.NoValue || nullValue(m.Value)
		return next(m)
	}
}

// FlatMap replaces a record by any number of records, which inherit its
// timestamp and headers.
func FlatMap[K, V, KR, VR any](f func(Record[K, V]) (iter.Seq2[KR, VR], error), next Forward[KR, VR]) Forward[K, V] {
	nullKey, nullValue := NullCheck[KR](), NullCheck[VR]()
	return func(r Record[K, V]) error {
		seq, err := f(r)
		if err != nil || seq == nil {
			return err
		}
		for k, v := range seq {
			m := Record[KR, VR]{Key: k, NoKey: nullKey(k), Value: v, NoValue: nullValue(v), Timestamp: r.Timestamp, Headers: r.Headers}
			if err := next(m); err != nil {
				return err
			}
		}
		return nil
	}
}

// FlatMapValues replaces a record by one for each value, with its key, timestamp
// and headers.
func FlatMapValues[K, V, R any](f func(Record[K, V]) (iter.Seq[R], error), next Forward[K, R]) Forward[K, V] {
	null := NullCheck[R]()
	return func(r Record[K, V]) error {
		seq, err := f(r)
		if err != nil || seq == nil {
			return err
		}
		for v := range seq {
			if err := next(WithValue(r, v, null(v))); err != nil {
				return err
			}
		}
		return nil
	}
}

// Peek calls f on each record and forwards the record unchanged.
func Peek[K, V any](f func(Record[K, V]) error, next Forward[K, V]) Forward[K, V] {
	return func(r Record[K, V]) error {
		if err := f(r); err != nil {
			return err
		}
		return next(r)
	}
}

// Split forwards each record to the branch of the first predicate that holds. A
// nil predicate always holds. A record that no predicate takes is dropped.
func Split[K, V any](preds []func(K, V) bool, branches []Forward[K, V]) Forward[K, V] {
	return func(r Record[K, V]) error {
		for i, pred := range preds {
			if pred == nil || pred(r.Key, r.Value) {
				return branches[i](r)
			}
		}
		return nil
	}
}

// DropNullKeys drops, and counts at task t, records without a key.
func DropNullKeys[K, V any](t Task, step string, next Forward[K, V]) Forward[K, V] {
	return func(r Record[K, V]) error {
		if r.NoKey {
			return Drop(t, step, r, "null-key")
		}
		return next(r)
	}
}
