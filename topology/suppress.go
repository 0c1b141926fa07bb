package topology

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/millrace/millrace/processors"
)

// Suppression says how [KTable.Suppress] holds updates back; see [UntilTimeLimit]
// and [UntilWindowCloses].
type Suppression struct {
	final                bool
	wait                 time.Duration
	maxRecords, maxBytes int64
	shutDown             bool
	errs                 []error
}

// A BufferOption bounds what a suppression holds back.
type BufferOption func(*Suppression)

// MaxRecords bounds the number of rows that are held back in a partition. Default:
// no bound; they are on disk.
func MaxRecords(n int64) BufferOption {
	return func(s *Suppression) {
		s.maxRecords = n
		if n < 1 {
			s.errs = append(s.errs, fmt.Errorf("MaxRecords(%d); it must be at least 1, or be left out", n))
		}
	}
}

// MaxBytes bounds the bytes of encoded keys and rows that are held back in a
// partition. Default: no bound; they are on disk.
func MaxBytes(n int64) BufferOption {
	return func(s *Suppression) {
		s.maxBytes = n
		if n < 1 {
			s.errs = append(s.errs, fmt.Errorf("MaxBytes(%d); it must be at least 1, or be left out", n))
		}
	}
}

// ShutDownWhenFull stops the task when more is held back than may be. Default with
// [UntilTimeLimit]: the rows that would be forwarded first are forwarded early.
func ShutDownWhenFull() BufferOption { return func(s *Suppression) { s.shutDown = true } }

// UntilTimeLimit forwards at most one update of a row per d of stream time: the
// wait begins with the first update held back, those that follow replace it.
func UntilTimeLimit(d time.Duration, opts ...BufferOption) Suppression {
	s := Suppression{wait: d}
	for _, opt := range opts {
		opt(&s)
	}
	if d < 0 || d%time.Millisecond != 0 && d != time.Duration(1<<63-1) {
		s.errs = append(s.errs, fmt.Errorf("a time limit of %s; it must be a number of milliseconds, 0 or more", d))
	}
	if s.shutDown && s.maxRecords == 0 && s.maxBytes == 0 {
		s.errs = append(s.errs, errors.New("ShutDownWhenFull without a bound; pass MaxRecords or MaxBytes"))
	}
	return s
}

// UntilWindowCloses forwards one update of each row of a windowed table: the last
// one, when the window's end + grace has been reached (of a session: end + gap +
// grace). Rows that were deleted by then, such as sessions that were merged, are
// left out. If there is more than may be held back, the task stops, since a result
// forwarded early would not be final. See [EmitFinal] for the same without a
// buffer.
func UntilWindowCloses(opts ...BufferOption) Suppression {
	s := Suppression{final: true}
	for _, opt := range opts {
		opt(&s)
	}
	s.shutDown = true
	return s
}

// String describes the suppression, for the fingerprint and Describe.
func (s Suppression) String() string {
	text := fmt.Sprintf("until time limit %s", s.wait)
	if s.final {
		text = "until window closes"
	}
	if s.maxRecords > 0 {
		text += fmt.Sprintf(", at most %d records", s.maxRecords)
	}
	if s.maxBytes > 0 {
		text += fmt.Sprintf(", at most %d bytes", s.maxBytes)
	}
	if s.shutDown && (s.maxRecords > 0 || s.maxBytes > 0) {
		text += ", shut down when full"
	}
	return text
}

// Suppress holds updates of the table back in the store named store, with the
// changelog <app>.<store>-table, and forwards fewer: of each row the last one, with
// its timestamp and headers. Stream time, which ends the wait, is the largest
// timestamp of the table's updates, so that the last ones of idle input wait. Rows
// are forwarded in the order of their deadlines, then of their encoded keys.
//
// The table has no rows of its own: a join that looks one up sees it as it was
// before the updates that are held back.
//
// (In Kafka Streams an update that was held back says that it replaces the last one
// that was held back; here it replaces the row that was forwarded, so that
// aggregations behind it are right.)
func (t *KTable[K, V]) Suppress(store string, s Suppression) *KTable[K, V] {
	n := &node{kind: kindStateful, op: "suppress", name: store, detail: s.String(), timers: true}
	what := fmt.Sprintf("suppress %q", store)
	for _, err := range s.errs {
		t.b.fail("%s: %v", what, err)
	}
	cfg := processors.Suppression[K]{
		Wait: s.wait.Milliseconds(), Final: s.final, MaxRecords: s.maxRecords, MaxBytes: s.maxBytes, ShutDown: s.shutDown,
	}
	if s.final {
		cfg.Time, cfg.Wait = t.end, t.closes
		if t.end == nil {
			t.b.fail("%s: the table has no windows that close; use topology.UntilTimeLimit", what)
		}
	}
	if t.versions != nil {
		t.b.fail("%s: a table with history cannot be suppressed, since its past would be lost; leave topology.Versioned out", what)
	}
	out := &KTable[K, V]{b: t.b, key: t.key, value: t.value, end: t.end, closes: t.closes}
	if t.key == nil || t.value == nil {
		t.b.fail("%s: no serdes for keys of type %s and values of type %s; call WithValueSerde on the table before it", what, reflect.TypeFor[K](), reflect.TypeFor[V]())
		out.from, out.lookup = port{n: t.b.addNode(n, t.from)}, t.lookup
		return out
	}
	keys, rows := processors.HeldKeySerde(t.key), processors.HeldSerde(t.value)
	n.stores = t.b.keyValueSpec(n.op, store, keys, rows)
	n.start = func(task processors.Task, out [][]any) ([]any, error) {
		held, err := openKeyValue(task, store, keys, rows)
		if err != nil {
			return nil, err
		}
		next := forwards[K, processors.Change[V]](out[0])
		return []any{processors.Guard(store, processors.Suppress(task, store, cfg, keys, rows, held, next))}, nil
	}
	lookup := t.lookup
	out.lookup = func(task processors.Task) (processors.Lookup[K, V], error) {
		held, err := openKeyValue(task, store, keys, rows)
		if err != nil {
			return nil, err
		}
		before, err := lookup(task)
		if err != nil {
			return nil, err
		}
		return processors.SuppressedLookup(held, before), nil
	}
	out.from = port{n: t.b.addNode(n, t.from)}
	out.uses = append(append(out.uses, t.uses...), store)
	return out
}
