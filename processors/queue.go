package processors

import (
	"encoding/binary"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A QueueKey is the key of a queue's store: a lane, the records of one key or of a
// partition, and the number of the record.
type QueueKey = KeyID[[]byte, int64]

// QueueKeySerde encodes the keys of a queue in their order.
func QueueKeySerde() serde.Serde[QueueKey] { return KeyIDSerde(serde.Bytes(), serde.Int64()) }

// A queue keeps records of lanes in the order in which they came.
type queue[V any] struct {
	store  state.KeyValueStore[QueueKey, V]
	number *state.Cell // of the last record
}

func (q *queue[V]) add(lane []byte, v V, timestamp int64) error {
	q.number.Set(q.number.Value() + 1)
	return q.store.Put(QueueKey{lane, q.number.Value()}, v, timestamp)
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
