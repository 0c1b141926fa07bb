// Package processors holds what runs on a record: one file per operator, each a
// generic function that wraps a typed user function and forwards to the next
// operator. The package knows neither Kafka nor the topology that wires it.
package processors

import "time"

// A Record is a typed record on its way through a task.
//
// Kafka's nulls are flags: NoKey and NoValue say that the record has no key or
// no value (a tombstone); Key and Value are then zero values.
type Record[K, V any] struct {
	Key       K
	Value     V
	Timestamp int64 // ms since the epoch
	Headers   []Header
	NoKey     bool
	NoValue   bool
}

// Time returns the record's timestamp.
func (r Record[K, V]) Time() time.Time { return time.UnixMilli(r.Timestamp) }

// A Header is one header of a record. Keys may repeat; order is kept.
type Header struct {
	Key   string
	Value []byte
}

// A Raw is a record as bytes, as it was read from a topic or will be written to
// one. A nil Key or Value is Kafka's null.
type Raw struct {
	Topic     string
	Partition int32
	Offset    int64
	Key       []byte
	Value     []byte
	Timestamp int64 // ms since the epoch
	Headers   []Header
}

// Forward hands a record to the next operator. An error ends the processing of
// the source record, undoes all it did, and goes to the error policy.
type Forward[K, V any] func(Record[K, V]) error

// A Change is an update of a table row: the value before and after. A missing
// value means that there is or was no row.
type Change[V any] struct {
	Old, New       V
	HasOld, HasNew bool
	// Past says that a versioned table got a version older than the row, which
	// stays as it is: New is that version, Old the row.
	Past bool
}

// Fanout forwards to every child in order, in the order in which they were
// added to the topology.
func Fanout[K, V any](children []Forward[K, V]) Forward[K, V] {
	switch len(children) {
	case 0:
		return func(Record[K, V]) error { return nil }
	case 1:
		return children[0]
	}
	return func(r Record[K, V]) error {
		for _, next := range children {
			if err := next(r); err != nil {
				return err
			}
		}
		return nil
	}
}
