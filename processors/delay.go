package processors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A Moment is a time (ms since the epoch) and a number that orders what has the
// same time.
type Moment struct{ Time, Number int64 }

// MomentSerde encodes moments in their order: two numbers of 8 bytes, big-endian.
func MomentSerde() serde.Serde[Moment] { return momentSerde{} }

type momentSerde struct{}

func (momentSerde) Append(dst []byte, m Moment) ([]byte, error) {
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.Time))
	return binary.BigEndian.AppendUint64(dst, uint64(m.Number)), nil
}

func (momentSerde) Decode(data []byte) (Moment, error) {
	if len(data) != 16 {
		return Moment{}, fmt.Errorf("moment of %d bytes, not 16", len(data))
	}
	return Moment{int64(binary.BigEndian.Uint64(data)), int64(binary.BigEndian.Uint64(data[8:]))}, nil
}

func (momentSerde) Name() string { return "moment" }

// Delay holds each record back in store until stream time has reached its
// timestamp + grace, and forwards records in the order of their timestamps, those
// with equal ones in the order in which they came. A record that comes later than
// that is forwarded at once.
//
// Stream time is the largest timestamp that came to the step.
func Delay[K, V any](t Task, step string, grace time.Duration, store state.KeyValueStore[Moment, Record[K, V]], next Forward[K, V]) Forward[K, V] {
	clock, number := t.Cell(step+".stream-time"), t.Cell(step+".number")
	wait := grace.Milliseconds()
	return func(r Record[K, V]) error {
		before := clock.Value()
		now := max(before, r.Timestamp)
		if r.Timestamp < now-wait {
			return next(r)
		}
		clock.Set(now)
		number.Set(number.Value() + 1)
		if err := store.Put(Moment{r.Timestamp, number.Value()}, r, r.Timestamp); err != nil {
			return Fail(ClassState, step, err)
		}
		// What is older than before - wait has been forwarded.
		from, to := Moment{Time: max(0, before-wait)}, Moment{now - wait, math.MaxInt64}
		if to.Time < 0 {
			return nil
		}
		for row, err := range store.Range(&from, &to) {
			if err == nil {
				err = store.Delete(row.Key)
			}
			if err != nil {
				return Fail(ClassState, step, err)
			}
			row.Value.Timestamp = row.Timestamp
			if err := next(row.Value); err != nil {
				return err
			}
		}
		return nil
	}
}

// RecordSerde encodes records that a step keeps, without their timestamp, which
// is that of the row: one byte of flags (1: a key, 2: a value), the number of
// headers as an unsigned varint, each header's key and value behind their lengths
// (0 for a null value, else the length + 1), the key behind its length, the value.
func RecordSerde[K, V any](keys serde.Serde[K], values serde.Serde[V]) serde.Serde[Record[K, V]] {
	return recordSerde[K, V]{keys, values}
}

type recordSerde[K, V any] struct {
	keys   serde.Serde[K]
	values serde.Serde[V]
}

const (
	recordHasKey = 1 << iota
	recordHasValue
)

func (s recordSerde[K, V]) Append(dst []byte, r Record[K, V]) ([]byte, error) {
	var flags byte
	if !r.NoKey {
		flags |= recordHasKey
	}
	if !r.NoValue {
		flags |= recordHasValue
	}
	enc := appendHeaders(append(dst, flags), r.Headers)
	var err error
	if !r.NoKey {
		key, err := s.keys.Append(nil, r.Key)
		if err != nil {
			return dst, err
		}
		enc = append(binary.AppendUvarint(enc, uint64(len(key))), key...)
	}
	if !r.NoValue {
		if enc, err = s.values.Append(enc, r.Value); err != nil {
			return dst, err
		}
	}
	return enc, nil
}

var errRecord = errors.New("kept record: malformed")

func (s recordSerde[K, V]) Decode(data []byte) (r Record[K, V], err error) {
	if len(data) == 0 || data[0] > recordHasKey|recordHasValue {
		return r, errRecord
	}
	flags := data[0]
	r.NoKey, r.NoValue = flags&recordHasKey == 0, flags&recordHasValue == 0
	headers, data, ok := cutHeaders(data[1:])
	if !ok {
		return Record[K, V]{}, errRecord
	}
	r.Headers = headers
	if !r.NoKey {
		key, rest, ok := cutBytes(data)
		if !ok {
			return Record[K, V]{}, errRecord
		}
		if r.Key, err = s.keys.Decode(key); err != nil {
			return Record[K, V]{}, err
		}
		data = rest
	}
	switch {
	case !r.NoValue:
		if r.Value, err = s.values.Decode(data); err != nil {
			return Record[K, V]{}, err
		}
	case len(data) > 0:
		return Record[K, V]{}, errRecord
	}
	return r, nil
}

func (s recordSerde[K, V]) Name() string {
	return fmt.Sprintf("record(%s,%s)", s.keys.Name(), s.values.Name())
}

func appendHeaders(dst []byte, headers []Header) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(headers)))
	for _, h := range headers {
		dst = append(binary.AppendUvarint(dst, uint64(len(h.Key))), h.Key...)
		if h.Value == nil {
			dst = append(dst, 0)
		} else {
			dst = append(binary.AppendUvarint(dst, uint64(len(h.Value))+1), h.Value...)
		}
	}
	return dst
}

// cutHeaders reads what appendHeaders wrote and returns the rest.
func cutHeaders(data []byte) (headers []Header, rest []byte, ok bool) {
	n, size := binary.Uvarint(data)
	if size <= 0 || n > uint64(len(data)) {
		return nil, nil, false
	}
	data = data[size:]
	for range n {
		var key []byte
		if key, data, ok = cutBytes(data); !ok {
			return nil, nil, false
		}
		h := Header{Key: string(key)}
		length, size := binary.Uvarint(data)
		if size <= 0 || length > uint64(len(data)-size)+1 {
			return nil, nil, false
		}
		data = data[size:]
		if length > 0 {
			h.Value, data = data[:length-1:length-1], data[length-1:]
		}
		headers = append(headers, h)
	}
	return headers, data, true
}

// cutBytes reads bytes behind their length as an unsigned varint.
func cutBytes(data []byte) (b, rest []byte, ok bool) {
	n, size := binary.Uvarint(data)
	if size <= 0 || n > uint64(len(data)-size) {
		return nil, nil, false
	}
	end := size + int(n)
	return data[size:end:end], data[end:], true
}
