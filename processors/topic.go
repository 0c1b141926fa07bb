package processors

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// An Origin says how [Decode] reads a topic.
type Origin[K, V any] struct {
	Step  string
	Key   serde.Serde[K]
	Value serde.Serde[V]
	// Timestamp, if not nil, gives the event time of a record in ms.
	Timestamp func(Record[K, V]) (int64, error)
	// Action is what becomes of records that cannot be decoded.
	Action Action
}

// Decode returns the operator at a source: it decodes a raw record and forwards
// it. A record that cannot be decoded, or whose timestamp is negative, fails
// with [ClassDecode].
func Decode[K, V any](o Origin[K, V], next Forward[K, V]) func(*Raw) error {
	return func(raw *Raw) error {
		r := Record[K, V]{Timestamp: raw.Timestamp, Headers: raw.Headers}
		if err := o.decode(raw, &r); err != nil {
			e, ok := errors.AsType[*Error](Fail(ClassDecode, o.Step, err))
			if ok && e.Action == Default {
				e.Action = o.Action
			}
			return e
		}
		return next(r)
	}
}

func (o *Origin[K, V]) decode(raw *Raw, r *Record[K, V]) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(ClassDecode, o.Step, p)
		}
	}()
	if raw.Key == nil {
		r.NoKey = true
	} else if r.Key, err = o.Key.Decode(raw.Key); err != nil {
		return fmt.Errorf("key of %d bytes as %s: %w", len(raw.Key), o.Key.Name(), err)
	}
	if raw.Value == nil {
		r.NoValue = true
	} else if r.Value, err = o.Value.Decode(raw.Value); err != nil {
		return fmt.Errorf("value of %d bytes as %s: %w", len(raw.Value), o.Value.Name(), err)
	}
	if o.Timestamp != nil {
		if r.Timestamp, err = o.Timestamp(*r); err != nil {
			return fmt.Errorf("timestamp extractor: %w", err)
		}
	}
	if r.Timestamp < 0 {
		return fmt.Errorf("the timestamp %d is negative; set it at the producer, or pass topology.Timestamps to the source", r.Timestamp)
	}
	return nil
}

// A Destination says where [Encode] writes.
type Destination[K, V any] struct {
	Step  string
	Topic string
	// TopicOf, if not nil, names the topic of each record instead of Topic.
	TopicOf func(Record[K, V]) (string, error)
	// Partition, if not nil, chooses the partition of each record; a negative
	// result leaves it to the key.
	Partition func(topic string, r Record[K, V]) (int32, error)
	Key       serde.Serde[K]
	Value     serde.Serde[V]
	// PartitionKey, if not nil, returns the part of an encoded key that decides the
	// partition where nothing else does; Partitions is set with it and returns the
	// partition count of a topic.
	PartitionKey func(key []byte) []byte
	Partitions   func(topic string) (int32, error)
	// Validate, if not nil, checks values before they are produced.
	Validate func(V) error
}

// A PartitionKeyer is a serde of keys of which only a part decides the
// partition: the key without its window.
type PartitionKeyer interface {
	// PartitionKey returns that part of an encoded key.
	PartitionKey(key []byte) []byte
}

// Encode returns the operator at a sink: it encodes records and produces them
// through t. All its failures are of [ClassProduce].
func Encode[K, V any](t Task, d Destination[K, V]) Forward[K, V] {
	e := &encoder[K, V]{Destination: d, t: t}
	return func(r Record[K, V]) error { return Fail(ClassProduce, d.Step, e.produce(&r)) }
}

type encoder[K, V any] struct {
	Destination[K, V]
	t Task
	// free is the rest of a chunk out of which encoded records are cut: one
	// allocation serves many.
	free []byte
}

// chunkSize is the size of chunks. A record that outgrows one gets memory of its
// own.
const chunkSize = 16 << 10

func (e *encoder[K, V]) produce(r *Record[K, V]) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(ClassProduce, e.Step, p)
		}
	}()
	topic, partition := e.Topic, int32(-1)
	if e.TopicOf != nil {
		if topic, err = e.TopicOf(*r); err != nil {
			return err
		}
		if topic == "" {
			return errors.New("the function named no topic for the record")
		}
	}
	if e.Partition != nil {
		if partition, err = e.Partition(topic, *r); err != nil {
			return err
		}
	}
	raw, err := e.encode(r)
	if err != nil {
		return err
	}
	if partition < 0 && raw.Key != nil && e.PartitionKey != nil {
		n, err := e.Partitions(topic)
		if err != nil {
			return err
		}
		partition = state.PartitionOf(e.PartitionKey(raw.Key), n)
	}
	return e.t.Produce(topic, partition, raw)
}

func (e *encoder[K, V]) encode(r *Record[K, V]) (Raw, error) {
	raw := Raw{Timestamp: r.Timestamp, Headers: r.Headers}
	if cap(e.free) < chunkSize/8 {
		e.free = make([]byte, 0, chunkSize)
	}
	buf := e.free
	var err error
	if !r.NoKey {
		if buf, err = e.Key.Append(buf, r.Key); err != nil {
			return raw, fmt.Errorf("encode key as %s: %w", e.Key.Name(), err)
		}
	}
	n := len(buf)
	if !r.NoValue {
		if e.Validate != nil {
			if err := e.Validate(r.Value); err != nil {
				return raw, err
			}
		}
		if buf, err = e.Value.Append(buf, r.Value); err != nil {
			return raw, fmt.Errorf("encode value as %s: %w", e.Value.Name(), err)
		}
	}
	// Both parts end at their length, so that appending to one cannot reach the
	// next record.
	if !r.NoKey {
		raw.Key = buf[:n:n]
	}
	if !r.NoValue {
		raw.Value = buf[n:len(buf):len(buf)]
	}
	if cap(buf) == cap(e.free) { // else it grew out of the chunk
		e.free = buf[len(buf):]
	}
	return raw, nil
}

// A PartitionCounter is a [Task] that knows how many partitions the topics it
// writes have. Sinks with a partitioner of their own need it.
type PartitionCounter interface {
	// Partitions returns the partition count of a topic.
	Partitions(topic string) (int32, error)
}
