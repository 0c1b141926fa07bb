package topology

import (
	"fmt"
	"reflect"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/millrace/millrace/processors"
)

// A SinkOption configures a topic that is written.
type SinkOption interface{ sink(*sinkOptions) }

type sinkOptions struct {
	name       string
	partition  any // func(K, V, int32) int32
	unchecked  bool
	partitions int32
	errs       []error
}

type sinkOption func(*sinkOptions)

func (f sinkOption) sink(o *sinkOptions) { f(o) }

// PartitionBy sets the function that chooses the partition of each record out of
// n. A negative result leaves the choice to the key; a result of n or more is an
// error of the record. Default: Kafka's murmur2 of the key, and any partition
// for a null key. Of a windowed key only the key counts, not the window.
func PartitionBy[K, V any](partition func(key K, value V, n int32) int32) SinkOption {
	return sinkOption(func(o *sinkOptions) { o.partition = partition })
}

// Unvalidated writes Protobuf values without checking their protovalidate rules.
// Default: values are checked, and a violation is a produce error of the record.
func Unvalidated() SinkOption { return sinkOption(func(o *sinkOptions) { o.unchecked = true }) }

// To writes the stream to a topic, which must exist. Keys and values are encoded
// with the stream's serdes; Protobuf values are validated with protovalidate
// first (see [Unvalidated]). The topic is written in the transaction of the
// source record's offset.
func (s *KStream[K, V]) To(topic string, opts ...SinkOption) {
	if err := checkName(topic); err != nil {
		s.b.fail("sink %q: %v", topic, err)
	}
	s.to(&node{kind: kindSink, op: "sink", topic: topic}, nil, opts)
}

// ToEach writes each record to the topic that topicOf names for it. The topics
// must exist; an error, or an empty or invalid name, is a produce error of the
// record.
func (s *KStream[K, V]) ToEach(topicOf func(processors.Record[K, V]) (string, error), opts ...SinkOption) {
	if topicOf == nil {
		s.b.fail("sink: ToEach needs a function that names the topic")
		return
	}
	s.to(&node{kind: kindSink, op: "sink", detail: "topic per record"}, func(r processors.Record[K, V]) (string, error) {
		topic, err := topicOf(r)
		if err == nil && topic != "" {
			err = checkName(topic)
		}
		return topic, err
	}, opts)
}

func (s *KStream[K, V]) to(n *node, topicOf func(processors.Record[K, V]) (string, error), opts []SinkOption) {
	var o sinkOptions
	for _, opt := range opts {
		opt.sink(&o)
	}
	n.name = o.name
	what := fmt.Sprintf("sink %q", n.topic)
	if n.topic == "" {
		what = "sink with a topic per record"
	}
	if o.partitions != 0 {
		s.b.fail("%s: Partitions is for Repartition only; create the topic with the partitions it needs", what)
	}
	d := processors.Destination[K, V]{Topic: n.topic, TopicOf: topicOf, Key: s.key, Value: s.value}
	if needSerdes(s, what) {
		n.serdes = [2]string{s.key.Name(), s.value.Name()}
	}
	if !o.unchecked {
		var err error
		if d.Validate, err = validation[V](); err != nil {
			s.b.fail("%s: %v", what, err)
		} else if d.Validate != nil {
			n.detail = join(n.detail, "validated")
		}
	}
	n.start = writer(s.b, n, what, d, o.partition)
	s.b.addNode(n, s.from)
}

// writer returns the start function of a node that produces to a topic.
func writer[K, V any](b *Builder, n *node, what string, d processors.Destination[K, V], partition any) func(processors.Task, [][]any) ([]any, error) {
	var choose func(K, V, int32) int32
	if partition != nil {
		n.detail = join(n.detail, "custom partitioner")
		var ok bool
		if choose, ok = partition.(func(K, V, int32) int32); !ok {
			b.fail("%s: PartitionBy got a %T, but the records are %s; use their types", what, partition, reflect.TypeFor[processors.Record[K, V]]())
		}
	}
	return func(t processors.Task, _ [][]any) ([]any, error) {
		d := d
		d.Step = n.name
		keyer, ok := d.Key.(processors.PartitionKeyer)
		if ok && n.kind == kindSink {
			d.PartitionKey = keyer.PartitionKey
		}
		if choose == nil && d.PartitionKey == nil {
			return []any{processors.Encode(t, d)}, nil
		}
		counts, ok := t.(processors.PartitionCounter)
		if !ok {
			return nil, fmt.Errorf("step %q: the task does not know partition counts, which partitioning needs", n.name)
		}
		d.Partitions = counts.Partitions
		if choose != nil {
			d.Partition = func(topic string, r processors.Record[K, V]) (int32, error) {
				count, err := counts.Partitions(topic)
				if err != nil {
					return 0, err
				}
				p := choose(r.Key, r.Value, count)
				if p >= count {
					return 0, fmt.Errorf("the partitioner chose partition %d, but topic %q has %d", p, topic, count)
				}
				return max(p, -1), nil
			}
		}
		return []any{processors.Encode(t, d)}, nil
	}
}

// validation returns the protovalidate check of values of type V, or nil if V is
// no Protobuf message.
func validation[V any]() (func(V) error, error) {
	typ := reflect.TypeFor[V]()
	if !typ.Implements(reflect.TypeFor[proto.Message]()) {
		return nil, nil
	}
	var opts []protovalidate.ValidatorOption
	var zero V
	if m, ok := any(zero).(proto.Message); ok { // a concrete type: compile its rules now
		opts = append(opts, protovalidate.WithMessages(m), protovalidate.WithDisableLazy())
	}
	v, err := protovalidate.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("the protovalidate rules of %s: %w", typ, err)
	}
	return func(value V) error {
		if err := v.Validate(any(value).(proto.Message)); err != nil {
			return fmt.Errorf("value violates its protovalidate rules: %w", err)
		}
		return nil
	}, nil
}

// join appends a detail to a list of details.
func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}
