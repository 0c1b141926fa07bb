package topologytest

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// An InputTopic pipes typed records into a topic.
type InputTopic[K, V any] struct {
	d     *Driver
	topic string
	key   serde.Serde[K]
	value serde.Serde[V]
}

// Input returns the input topic of that name. A topic that the topology does not
// read ends the test.
func Input[K, V any](d *Driver, topic string, key serde.Serde[K], value serde.Serde[V]) *InputTopic[K, V] {
	d.t.Helper()
	if !d.reads(topic) {
		d.t.Fatalf("topologytest: the topology does not read topic %q", topic)
	}
	return &InputTopic[K, V]{d, topic, key, value}
}

// Pipe writes a record and processes it and all it causes. The timestamp is in ms
// since the epoch. A nil key or value of a nilable type is null.
func (in *InputTopic[K, V]) Pipe(key K, value V, timestamp int64) {
	in.d.t.Helper()
	in.PipeRecord(processors.Record[K, V]{
		Key: key, NoKey: processors.NullCheck[K]()(key),
		Value: value, NoValue: processors.NullCheck[V]()(value), Timestamp: timestamp,
	})
}

// Delete writes a record without a value and processes it and all it causes.
func (in *InputTopic[K, V]) Delete(key K, timestamp int64) {
	in.d.t.Helper()
	in.PipeRecord(processors.Record[K, V]{Key: key, NoValue: true, Timestamp: timestamp})
}

// PipeRecord writes a record with headers, or without key or value, and processes
// it and all it causes.
func (in *InputTopic[K, V]) PipeRecord(r processors.Record[K, V]) {
	in.d.t.Helper()
	raw := processors.Raw{Timestamp: r.Timestamp, Headers: r.Headers}
	var err error
	if !r.NoKey {
		if raw.Key, err = in.key.Append([]byte{}, r.Key); err != nil {
			in.d.t.Fatalf("topologytest: topic %q: key: %v", in.topic, err)
		}
	}
	if !r.NoValue {
		if raw.Value, err = in.value.Append([]byte{}, r.Value); err != nil {
			in.d.t.Fatalf("topologytest: topic %q: value: %v", in.topic, err)
		}
	}
	in.d.PipeRaw(in.topic, -1, raw)
}

// An OutputTopic reads typed records of a topic, each once.
type OutputTopic[K, V any] struct {
	d     *Driver
	topic string
	key   serde.Serde[K]
	value serde.Serde[V]
}

// Output returns the output topic of that name. Repartition topics and dead
// letters can be read too.
func Output[K, V any](d *Driver, topic string, key serde.Serde[K], value serde.Serde[V]) *OutputTopic[K, V] {
	return &OutputTopic[K, V]{d, topic, key, value}
}

// Read returns the records written since the last read, in order. A record that
// cannot be decoded ends the test.
func (out *OutputTopic[K, V]) Read() []processors.Record[K, V] {
	out.d.t.Helper()
	var recs []processors.Record[K, V]
	for _, raw := range out.d.RawOutput(out.topic) {
		r := processors.Record[K, V]{Timestamp: raw.Timestamp, Headers: raw.Headers, NoKey: raw.Key == nil, NoValue: raw.Value == nil}
		var errKey, errValue error
		if !r.NoKey {
			r.Key, errKey = out.key.Decode(raw.Key)
		}
		if !r.NoValue {
			r.Value, errValue = out.value.Decode(raw.Value)
		}
		if err := errors.Join(errKey, errValue); err != nil {
			out.d.t.Fatalf("topologytest: topic %q offset %d: %v", out.topic, raw.Offset, err)
		}
		recs = append(recs, r)
	}
	return recs
}

// Text returns the records written since the last read, each as
// "key:value@timestamp" with null for nulls.
func (out *OutputTopic[K, V]) Text() []string {
	out.d.t.Helper()
	var lines []string
	for _, r := range out.Read() {
		key, value := "null", "null"
		if !r.NoKey {
			key = fmt.Sprint(r.Key)
		}
		if !r.NoValue {
			value = fmt.Sprint(r.Value)
		}
		lines = append(lines, fmt.Sprintf("%s:%s@%d", key, value, r.Timestamp))
	}
	return lines
}
