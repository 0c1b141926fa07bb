package topology

import (
	"errors"
	"reflect"
	"time"

	"github.com/millrace/millrace/processors"
	"github.com/millrace/millrace/serde"
)

// A SourceOption configures a topic that is read, as a stream or as a table.
type SourceOption interface {
	TableOption
	source(*sourceOptions)
}

// A TableOption configures a topic that is read as a table.
type TableOption interface{ table(*tableOptions) }

type tableOptions struct {
	source  []SourceOption
	history *time.Duration
}

type sourceOptions struct {
	cfg     *sourceConfig
	name    string
	extract any // func(processors.Record[K, V], int64) (int64, error)
	errs    []error
}

type sourceOption func(*sourceOptions)

func (f sourceOption) source(o *sourceOptions) { f(o) }
func (f sourceOption) table(o *tableOptions)   { o.source = append(o.source, f) }

// From says where a group begins that has no committed offset for the topic.
// Default: [Earliest].
func From(p StartPolicy) SourceOption {
	return sourceOption(func(o *sourceOptions) { o.cfg.start = p })
}

// Timestamps sets the function that gives a record its event time in ms since
// the epoch. partitionTime is the largest timestamp seen in the partition so
// far, -1 before the first. A negative result or an error is a decode error of
// the record. Default: the timestamp Kafka holds.
func Timestamps[K, V any](extract func(rec processors.Record[K, V], partitionTime int64) (int64, error)) SourceOption {
	return sourceOption(func(o *sourceOptions) { o.extract = extract })
}

// OnDecodeError sets what becomes of records of the topic that cannot be decoded
// or have a negative timestamp. Default: the application's policy.
func OnDecodeError(a processors.Action) SourceOption {
	return sourceOption(func(o *sourceOptions) {
		if a == processors.Retry {
			o.errs = append(o.errs, errors.New("OnDecodeError(Retry): the same bytes fail again; use Skip, DeadLetter or Stop"))
		}
		o.cfg.decode = a
	})
}

// A StepOption configures any step.
type StepOption interface{ step(*node) }

// Named gives a step an explicit name, which Describe, metrics and dead letters
// show. Default: made from the step's kind and its place in the topology.
func Named(name string) NameOption { return named(name) }

// A NameOption fits sources, steps, joins and sinks.
type NameOption interface {
	SourceOption
	StepOption
	JoinOption
	SinkOption
}

type named string

func (n named) step(to *node)           { to.name = string(n) }
func (n named) source(o *sourceOptions) { o.name = string(n) }
func (n named) table(o *tableOptions)   { o.source = append(o.source, n) }
func (n named) join(o *joinOptions)     { o.name = string(n) }
func (n named) sink(o *sinkOptions)     { o.name = string(n) }

// serdeFor returns the serde of a value of type R that a step made from a V: the
// one it had if the types are equal, else the obvious one of the type, or nil.
func serdeFor[V, R any](had serde.Serde[V]) serde.Serde[R] {
	if had, ok := any(had).(serde.Serde[R]); ok && had != nil {
		return had
	}
	return obvious[R]()
}

// obvious returns the serde of types that have only one sensible encoding, or
// nil.
func obvious[R any]() serde.Serde[R] {
	for _, s := range []any{serde.String(), serde.Bytes(), serde.Int32(), serde.Int64(), serde.Float64(), serde.Bool()} {
		if s, ok := s.(serde.Serde[R]); ok {
			return s
		}
	}
	return nil
}

// needSerdes reports the serdes that a step needs and its stream does not have.
func needSerdes[K, V any](s *KStream[K, V], what string) bool {
	if s.key == nil {
		s.b.fail("%s: no serde for keys of type %s; call WithKeySerde on the stream before it", what, reflect.TypeFor[K]())
	}
	if s.value == nil {
		s.b.fail("%s: no serde for values of type %s; call WithValueSerde on the stream before it", what, reflect.TypeFor[V]())
	}
	return s.key != nil && s.value != nil
}
