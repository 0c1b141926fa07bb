package topology

import (
	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// A KStream is a stream of records of one key and one value type.
//
// A record's key or value may be null: functions of (key, value) then see the
// zero value, functions of a [processors.Record] also see NoKey and NoValue. A
// function's nil result of a pointer, slice, map or interface type is null.
//
// User functions run in the task's goroutine, may run again for the same record
// after an abort, and must not keep or change the bytes and headers they see. A
// panic is an error of the record. The Try variants take the whole record and
// may fail; [processors.WithAction] chooses what becomes of the record.
type KStream[K, V any] struct {
	b     *Builder
	from  port
	key   serde.Serde[K] // nil if unknown
	value serde.Serde[V] // nil if unknown
	// changed says that the key may differ from the one the record is
	// partitioned by.
	changed bool
}

// Stream reads a topic as a stream. A second stream of the same topic must have
// the same serdes; both then see every record, in one sub-topology.
func Stream[K, V any](b *Builder, topic string, key serde.Serde[K], value serde.Serde[V], opts ...SourceOption) *KStream[K, V] {
	n := addSource(b, topic, key, value, opts...)
	return &KStream[K, V]{b: b, from: port{n: n}, key: key, value: value}
}

// addSource adds the node that reads topic.
func addSource[K, V any](b *Builder, topic string, key serde.Serde[K], value serde.Serde[V], opts ...SourceOption) *node {
	cfg := &sourceConfig{}
	o := sourceOptions{cfg: cfg}
	for _, opt := range opts {
		opt.source(&o)
	}
	if err := checkName(topic); err != nil {
		b.fail("source %q: %v", topic, err)
	}
	for _, err := range o.errs {
		b.fail("source %q: %v", topic, err)
	}
	n := &node{kind: kindSource, op: "source", name: o.name, topic: topic, source: cfg}
	if key == nil || value == nil {
		b.fail("source %q: a nil serde; pass the serdes of key and value, for example serde.String()", topic)
	} else {
		n.serdes = [2]string{key.Name(), value.Name()}
	}
	origin := processors.Origin[K, V]{Key: key, Value: value, Action: cfg.decode}
	var extract func(processors.Record[K, V], int64) (int64, error)
	if o.extract != nil && key != nil && value != nil {
		var ok bool
		if extract, ok = o.extract.(func(processors.Record[K, V], int64) (int64, error)); !ok {
			b.fail("source %q: the timestamp extractor is a %T, but the records are %T", topic, o.extract, processors.Record[K, V]{})
		}
		n.timers = true
		n.detail = "timestamp extractor"
		cfg.timestamp = timestampOf(n, origin, extract)
	}
	n.read = reader(n, origin, extract)
	return b.addNode(n)
}

// reader returns the function that starts the reading half of a node. With an
// extractor it keeps the partition's time in a row of the task.
func reader[K, V any](n *node, origin processors.Origin[K, V], extract func(processors.Record[K, V], int64) (int64, error)) func(processors.Task, [][]any) (func(*processors.Raw) error, error) {
	return func(t processors.Task, out [][]any) (func(*processors.Raw) error, error) {
		origin := origin
		origin.Step = n.name
		if extract != nil {
			time := t.Cell("time of " + n.topic)
			origin.Timestamp = func(r processors.Record[K, V]) (int64, error) {
				ts, err := extract(r, time.Value())
				if err == nil && ts > time.Value() {
					time.Set(ts)
				}
				return ts, err
			}
		}
		return processors.Decode(origin, forwards[K, V](out[0])), nil
	}
}

// timestampOf wraps a typed extractor for [Source.Timestamp].
func timestampOf[K, V any](n *node, origin processors.Origin[K, V], extract func(processors.Record[K, V], int64) (int64, error)) func(*processors.Raw, int64) (int64, error) {
	return func(raw *processors.Raw, partitionTime int64) (ts int64, err error) {
		origin := origin
		origin.Step = n.name
		origin.Timestamp = func(r processors.Record[K, V]) (int64, error) { return extract(r, partitionTime) }
		err = processors.Decode(origin, func(r processors.Record[K, V]) error { ts = r.Timestamp; return nil })(raw)
		return ts, err
	}
}

// WithKeySerde sets the serde that sinks, repartitions and stores behind this
// point use for the key. Steps that change the key's type know by themselves the
// serdes of string, []byte, int32, int64, float64 and bool.
func (s *KStream[K, V]) WithKeySerde(key serde.Serde[K]) *KStream[K, V] {
	c := *s
	c.key = key
	return &c
}

// WithValueSerde sets the serde that sinks, repartitions and stores behind this
// point use for the value; see [KStream.WithKeySerde].
func (s *KStream[K, V]) WithValueSerde(value serde.Serde[V]) *KStream[K, V] {
	c := *s
	c.value = value
	return &c
}

// stateless adds a stateless step behind s. build makes the running operator; it
// is guarded, so that errors and panics of user functions carry the step's name.
func stateless[K, V, KR, VR any](s *KStream[K, V], op string, opts []StepOption, build func(next processors.Forward[KR, VR]) processors.Forward[K, V]) port {
	n := &node{kind: kindStateless, op: op}
	for _, opt := range opts {
		opt.step(n)
	}
	n.start = func(_ processors.Task, out [][]any) ([]any, error) {
		return []any{processors.Guard(n.name, build(forwards[KR, VR](out[0])))}, nil
	}
	return port{n: s.b.addNode(n, s.from)}
}

// same returns a stream of the same types behind p.
func (s *KStream[K, V]) same(p port) *KStream[K, V] {
	c := *s
	c.from = p
	return &c
}

// Filter keeps the records for which keep returns true.
func (s *KStream[K, V]) Filter(keep func(K, V) bool, opts ...StepOption) *KStream[K, V] {
	return s.filter("filter", func(r processors.Record[K, V]) (bool, error) { return keep(r.Key, r.Value), nil }, opts)
}

// FilterNot drops the records for which drop returns true.
func (s *KStream[K, V]) FilterNot(drop func(K, V) bool, opts ...StepOption) *KStream[K, V] {
	return s.filter("filter-not", func(r processors.Record[K, V]) (bool, error) { return !drop(r.Key, r.Value), nil }, opts)
}

// TryFilter is [KStream.Filter] for a function that may fail.
func (s *KStream[K, V]) TryFilter(keep func(processors.Record[K, V]) (bool, error), opts ...StepOption) *KStream[K, V] {
	return s.filter("filter", keep, opts)
}

func (s *KStream[K, V]) filter(op string, keep func(processors.Record[K, V]) (bool, error), opts []StepOption) *KStream[K, V] {
	return s.same(stateless(s, op, opts, func(next processors.Forward[K, V]) processors.Forward[K, V] {
		return processors.Filter(keep, next)
	}))
}

// Peek calls f on every record. Its side effects may repeat after an abort: they
// are not part of the transaction.
func (s *KStream[K, V]) Peek(f func(K, V), opts ...StepOption) *KStream[K, V] {
	return s.TryPeek(func(r processors.Record[K, V]) error { f(r.Key, r.Value); return nil }, opts...)
}

// TryPeek is [KStream.Peek] for a function that may fail.
func (s *KStream[K, V]) TryPeek(f func(processors.Record[K, V]) error, opts ...StepOption) *KStream[K, V] {
	return s.same(stateless(s, "peek", opts, func(next processors.Forward[K, V]) processors.Forward[K, V] {
		return processors.Peek(f, next)
	}))
}

// ForEach ends the stream by calling f on every record. Its side effects may
// repeat after an abort: they are not part of the transaction. For effects that
// must happen once, use AsyncLookup, or write to a topic.
func (s *KStream[K, V]) ForEach(f func(K, V), opts ...StepOption) {
	s.TryForEach(func(r processors.Record[K, V]) error { f(r.Key, r.Value); return nil }, opts...)
}

// TryForEach is [KStream.ForEach] for a function that may fail.
func (s *KStream[K, V]) TryForEach(f func(processors.Record[K, V]) error, opts ...StepOption) {
	p := stateless(s, "for-each", opts, func(processors.Forward[K, V]) processors.Forward[K, V] { return f })
	p.n.kind = kindSink
}

// Merge joins the records of several streams into one. There is no order between
// the streams; the order within each is kept.
func (s *KStream[K, V]) Merge(others ...*KStream[K, V]) *KStream[K, V] {
	n := &node{kind: kindStateless, op: "merge"}
	n.start = func(_ processors.Task, out [][]any) ([]any, error) {
		return []any{forwards[K, V](out[0])}, nil
	}
	s.b.addNode(n, s.from)
	m := s.same(port{n: n})
	for _, o := range others {
		s.b.connect(o.from, n, 0)
		m.changed = m.changed || o.changed
		if m.key == nil {
			m.key = o.key
		}
		if m.value == nil {
			m.value = o.value
		}
	}
	return m
}
