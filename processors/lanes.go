package processors

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A Lane is a place in the queue of a lane: the records of one key, or of a partition.
type Lane = KeyID[[]byte, int64]

// LaneSerde encodes the places of a queue in their order.
func LaneSerde() serde.Serde[Lane] { return KeyIDSerde(serde.Bytes(), serde.Int64()) }

// A queue keeps records of lanes in the order in which they came.
type queue[V any] struct {
	store  state.KeyValueStore[Lane, V]
	number *state.Cell // of the last record
}

func (q *queue[V]) add(lane []byte, v V, timestamp int64) error {
	q.number.Set(q.number.Value() + 1)
	return q.store.Put(Lane{lane, q.number.Value()}, v, timestamp)
}

// take calls f for the records of a lane, the oldest first, until it returns false. One
// for which it returns true is taken out.
func (q *queue[V]) take(lane []byte, f func(v V, timestamp int64) (bool, error)) error {
	prefix := append(binary.AppendUvarint(nil, uint64(len(lane))), lane...)
	for row, err := range q.store.Prefix(prefix) {
		if err != nil {
			return err
		}
		done, err := f(row.Value, row.Timestamp)
		if err != nil || !done {
			return err
		}
		if err := q.store.Delete(row.Key); err != nil {
			return err
		}
	}
	return nil
}

// queueLane is the lane of a record: that of its key, behind a 1; without a key 0.
func queueLane[K, V any](keys serde.Serde[K], r Record[K, V]) ([]byte, error) {
	if r.NoKey {
		return []byte{0}, nil
	}
	return keys.Append([]byte{1}, r.Key)
}

// Sourced is a record with the source record that caused it.
type Sourced[K, V any] struct {
	Record Record[K, V]
	Source Raw
}

// SourcedSerde encodes a record as [RecordSerde] does, behind its length, then its
// source: topic behind its length, partition, offset and timestamp as varints, headers,
// key and value, each behind its length + 1, 0 for null. Of the record, the timestamp is
// not written.
func SourcedSerde[K, V any](keys serde.Serde[K], values serde.Serde[V]) serde.Serde[Sourced[K, V]] {
	return sourcedSerde[K, V]{RecordSerde(keys, values)}
}

type sourcedSerde[K, V any] struct{ records serde.Serde[Record[K, V]] }

func (s sourcedSerde[K, V]) Append(dst []byte, v Sourced[K, V]) ([]byte, error) {
	rec, err := s.records.Append(nil, v.Record)
	if err != nil {
		return dst, err
	}
	dst = append(binary.AppendUvarint(dst, uint64(len(rec))), rec...)
	src := &v.Source
	dst = append(binary.AppendUvarint(dst, uint64(len(src.Topic))), src.Topic...)
	for _, n := range []int64{int64(src.Partition), src.Offset, src.Timestamp} {
		dst = binary.AppendVarint(dst, n)
	}
	return appendHeaders(dst, append([]Header{{Value: src.Key}, {Value: src.Value}}, src.Headers...)), nil
}

var errSourced = errors.New("record with its source: malformed")

func (s sourcedSerde[K, V]) Decode(data []byte) (v Sourced[K, V], err error) {
	rec, data, ok := cutBytes(data)
	if !ok {
		return v, errSourced
	}
	topic, data, ok := cutBytes(data)
	if !ok {
		return v, errSourced
	}
	var numbers [3]int64
	for i := range numbers {
		n, size := binary.Varint(data)
		if size <= 0 {
			return v, errSourced
		}
		numbers[i], data = n, data[size:]
	}
	headers, data, ok := cutHeaders(data)
	if !ok || len(headers) < 2 || len(data) > 0 {
		return v, errSourced
	}
	if v.Record, err = s.records.Decode(rec); err != nil {
		return Sourced[K, V]{}, err
	}
	v.Source = Raw{
		Topic: string(topic), Partition: int32(numbers[0]), Offset: numbers[1], Timestamp: numbers[2],
		Key: headers[0].Value, Value: headers[1].Value,
	}
	if len(headers) > 2 {
		v.Source.Headers = headers[2:]
	}
	return v, nil
}

func (s sourcedSerde[K, V]) Name() string { return fmt.Sprintf("sourced(%s)", s.records.Name()) }

// BatchSerde encodes a list of records: the timestamp of each as a varint, and the
// record as [RecordSerde] does behind its length.
func BatchSerde[K, V any](keys serde.Serde[K], values serde.Serde[V]) serde.Serde[[]Record[K, V]] {
	return batchSerde[K, V]{RecordSerde(keys, values)}
}

type batchSerde[K, V any] struct{ records serde.Serde[Record[K, V]] }

func (s batchSerde[K, V]) Append(dst []byte, batch []Record[K, V]) ([]byte, error) {
	out := dst
	if out == nil {
		out = []byte{}
	}
	for _, r := range batch {
		rec, err := s.records.Append(nil, r)
		if err != nil {
			return dst, err
		}
		out = binary.AppendVarint(out, r.Timestamp)
		out = append(binary.AppendUvarint(out, uint64(len(rec))), rec...)
	}
	return out, nil
}

func (s batchSerde[K, V]) Decode(data []byte) (batch []Record[K, V], err error) {
	for len(data) > 0 {
		at, size := binary.Varint(data)
		if size <= 0 {
			return nil, errors.New("batch: malformed")
		}
		rec, rest, ok := cutBytes(data[size:])
		if !ok {
			return nil, errors.New("batch: malformed")
		}
		r, err := s.records.Decode(rec)
		if err != nil {
			return nil, err
		}
		r.Timestamp = at
		batch, data = append(batch, r), rest
	}
	return batch, nil
}

func (s batchSerde[K, V]) Name() string { return fmt.Sprintf("batch(%s)", s.records.Name()) }
