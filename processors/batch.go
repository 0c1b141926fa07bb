package processors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A Batching collects records of a lane until there are Size of them, or Wait of wall
// clock has passed since the first one.
type Batching struct {
	Size int
	Wait time.Duration
	// AcrossKeys makes one lane of the whole partition, else there is one per key.
	AcrossKeys bool
}

// Batch collects the records of each lane, in the order in which they came, and forwards
// them as one record: when there are Size of them, in the place of the last one, or at
// the first tick when Wait has passed since the first one came. Its timestamp is the
// largest of theirs, its key theirs, none across keys; its headers are those of the
// last one. A record without a key is dropped ("null-key"), but across keys it is not.
//
// The records wait in store; reset is called before the first record and after an abort,
// and closing ends the ticks.
func Batch[K, V any](t Task, step string, b Batching, keys serde.Serde[K], store state.KeyValueStore[QueueKey, Record[K, V]], next Forward[K, []Record[K, V]]) (in Forward[K, V], reset, closing func()) {
	o := &batch[K, V]{Batching: b, task: t, step: step, keys: keys, rows: queue[Record[K, V]]{store, t.Cell(step + ".number")}, next: next}
	o.timers = newTimers(t, step, WallClock, func(lane []byte, _ int64, _ []byte) error { return o.flush(lane) })
	return o.process, o.timers.reset, o.timers.close
}

type batch[K, V any] struct {
	Batching
	task Task
	step string
	keys serde.Serde[K]
	rows queue[Record[K, V]]
	// timers say when a lane has waited long enough; a payload counts its records.
	timers *timers
	next   Forward[K, []Record[K, V]]
}

func (o *batch[K, V]) process(r Record[K, V]) error {
	lane, err := []byte{}, error(nil)
	if !o.AcrossKeys {
		if r.NoKey {
			return Drop(o.task, o.step, r, "null-key")
		}
		lane, err = queueLane(o.keys, r)
	}
	if err != nil {
		return Fail(ClassState, o.step, err)
	}
	at, payload, waits, err := o.timers.get(lane)
	if err == nil {
		err = o.rows.add(lane, r, r.Timestamp)
	}
	if err != nil {
		return Fail(ClassState, o.step, err)
	}
	n := uint64(1)
	if waits {
		held, _ := binary.Uvarint(payload)
		n += held
	} else {
		at = o.timers.now() + o.Wait.Milliseconds()
	}
	if n < uint64(o.Size) {
		return Fail(ClassState, o.step, o.timers.set(lane, at, binary.AppendUvarint(nil, n)))
	}
	if err := o.timers.cancelKey(lane); err != nil {
		return Fail(ClassState, o.step, err)
	}
	return o.flush(lane)
}

// flush forwards the records of a lane.
func (o *batch[K, V]) flush(lane []byte) error {
	var out Record[K, []Record[K, V]]
	err := o.rows.take(lane, func(r Record[K, V], timestamp int64) (bool, error) {
		r.Timestamp = timestamp
		out.Key, out.NoKey, out.Headers = r.Key, r.NoKey, r.Headers
		out.Value, out.Timestamp = append(out.Value, r), max(out.Timestamp, timestamp)
		return true, nil
	})
	if err != nil || len(out.Value) == 0 {
		return Fail(ClassState, o.step, err)
	}
	if o.AcrossKeys {
		var none K
		out.Key, out.NoKey = none, true
	}
	return o.next(out)
}

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
