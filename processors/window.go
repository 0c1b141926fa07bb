package processors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// WindowKind tells how windows are cut.
type WindowKind uint8

// The kinds of windows.
const (
	TimeWindows     WindowKind = iota // tumbling or hopping
	SlidingWindows                    // around records
	SessionWindows                    // between gaps
	UnlimitedWindow                   // one, without an end
)

// Windows say how an aggregation cuts time. All durations are whole milliseconds.
type Windows struct {
	Kind WindowKind
	// Size is the length of windows, of sessions the gap between them.
	//
	// Tumbling and hopping windows are [start, start+Size) for every multiple of
	// Advance from 0 on, so that they are aligned to the epoch and their start is
	// never negative.
	Size    time.Duration
	Advance time.Duration // Size for tumbling windows
	// Start is where an unlimited window begins, in ms since the epoch.
	Start int64
	// Grace is how long after its end, in stream time, a window takes records.
	Grace time.Duration
	// Retention is how long the store keeps a window: from its start on at least
	// Size + Grace, for sliding windows 2 Size + Grace; from its end on at least
	// Size + Grace for sessions.
	Retention time.Duration
	// Final emits one result per window, when it closes, instead of every update.
	Final bool
}

// Windowed is a key in a window. Start and End are ms since the epoch. End is
// exclusive for tumbling and hopping windows, inclusive for sliding windows and
// sessions, and the largest integer for an unlimited window.
type Windowed[K any] struct {
	Key        K
	Start, End int64
}

// String returns the key with its window, [key@start/end].
func (w Windowed[K]) String() string { return fmt.Sprintf("[%v@%d/%d]", w.Key, w.Start, w.End) }

// WindowedSerde encodes a windowed key as the key's encoding followed by the
// window's start as 8 bytes big-endian, as Kafka Streams does for time windows.
// The end is not written: reading takes it from size, which is [Unlimited] for an
// unlimited window.
func WindowedSerde[K any](keys serde.Serde[K], size time.Duration) serde.Serde[Windowed[K]] {
	return windowedSerde[K]{keys, size}
}

// Unlimited is the size of a window without an end.
const Unlimited time.Duration = math.MaxInt64

type windowedSerde[K any] struct {
	keys serde.Serde[K]
	size time.Duration
}

func (s windowedSerde[K]) Append(dst []byte, w Windowed[K]) ([]byte, error) {
	enc, err := s.keys.Append(dst, w.Key)
	if err != nil {
		return dst, err
	}
	return binary.BigEndian.AppendUint64(enc, uint64(w.Start)), nil
}

func (s windowedSerde[K]) Decode(data []byte) (w Windowed[K], err error) {
	n := len(data) - 8
	if n < 0 {
		return w, fmt.Errorf("windowed key of %d bytes: it ends with the window's start, 8 bytes", len(data))
	}
	start := int64(binary.BigEndian.Uint64(data[n:]))
	end := start + s.size.Milliseconds()
	if s.size == Unlimited {
		end = math.MaxInt64
	}
	if start < 0 || end < start {
		return w, errors.New("windowed key: its start is out of range")
	}
	key, err := s.keys.Decode(data[:n:n])
	return Windowed[K]{key, start, end}, err
}

// InnerSerde returns the serde of the keys within a serde made by [WindowedSerde],
// nil for any other.
func InnerSerde[K any](windowed serde.Serde[Windowed[K]]) serde.Serde[K] {
	if w, ok := windowed.(windowedSerde[K]); ok {
		return w.keys
	}
	return nil
}

// PartitionKey implements [PartitionKeyer]: windows of one key share its
// partition.
func (s windowedSerde[K]) PartitionKey(key []byte) []byte { return key[:max(0, len(key)-8)] }

func (s windowedSerde[K]) Name() string {
	if s.size == Unlimited {
		return fmt.Sprintf("windowed(%s,unlimited)", s.keys.Name())
	}
	return fmt.Sprintf("windowed(%s,%s)", s.keys.Name(), s.size)
}

// WindowLookup reads the rows of a windowed table.
func WindowLookup[K, V any](store state.WindowStore[K, V]) Lookup[Windowed[K], V] {
	return func(w Windowed[K]) (V, int64, bool, error) { return store.Get(w.Key, w.Start) }
}

// windowClock is the stream time of a windowed step.
func windowClock(t Task, step string) *state.Cell { return t.Cell(step + ".stream-time") }

// windowClosed is the time up to which a step has emitted the windows that closed.
func windowClosed(t Task, step string) *state.Cell { return t.Cell(step + ".closed") }

// WindowStreamTime returns the stream time of a windowed step.
func WindowStreamTime(t Task, step string) func() int64 { return windowClock(t, step).Value }

// WindowTime returns the stream time that decides which rows in the store of a
// windowed step have expired. With Windows.Final it stays behind the windows
// that are still to be emitted: when stream time leaps, they are needed beyond
// their retention.
func WindowTime(t Task, step string, w Windows) func() int64 {
	if !w.Final {
		return windowClock(t, step).Value
	}
	closed, behind := windowClosed(t, step), w.Grace.Milliseconds()
	if w.Kind == SessionWindows {
		behind += w.Size.Milliseconds()
	}
	return func() int64 { return closed.Value() + behind }
}

// WindowAggregate keeps one aggregate per key and window in store. A record
// counts in every window that contains its timestamp, except those that closed,
// whose end is at or before the step's stream time - grace: for each of these it
// is dropped ("late"). A record without a key is dropped ("null-key"); one
// without a value counts, and update sees the zero value.
//
// Stream time is the largest timestamp the step has accepted, of any key. Every
// change of an aggregate is forwarded, or with Windows.Final each result once,
// when stream time closes its window, ordered by start and then by encoded key.
// The result's timestamp is the largest of the contributing records.
func WindowAggregate[K, V, A any](t Task, step string, w Windows, store state.WindowStore[K, A], update Update[K, V, A], next Forward[Windowed[K], Change[A]]) Forward[K, V] {
	o := &windowAggregate[K, V, A]{
		task: t, step: step, store: store, rows: windowRows(store), update: update, changed: next,
		size: w.Size.Milliseconds(), advance: w.Advance.Milliseconds(), grace: w.Grace.Milliseconds(),
		clock: windowClock(t, step),
	}
	if w.Final {
		o.final, o.closed = next, windowClosed(t, step)
		o.changed = func(Record[Windowed[K], Change[A]]) error { return nil }
		o.rows.reread = false
	}
	return o.process
}

type windowAggregate[K, V, A any] struct {
	task   Task
	step   string
	store  state.WindowStore[K, A]
	rows   rows[Windowed[K], A]
	update Update[K, V, A]
	// changed takes every change; final, if not nil, the last of each window.
	changed, final Forward[Windowed[K], Change[A]]

	size, advance, grace int64

	clock  *state.Cell // stream time of the step
	closed *state.Cell // windows that end at or before it were emitted
}

func (o *windowAggregate[K, V, A]) process(r Record[K, V]) error {
	if r.NoKey {
		return Drop(o.task, o.step, r, "null-key")
	}
	now := o.clock.Value()
	if r.Timestamp > now {
		now = r.Timestamp
		o.clock.Set(now)
	}
	closeTime := now - o.grace
	// The record belongs to none of the windows that close now.
	if o.final != nil {
		if err := o.emit(r, closeTime); err != nil {
			return err
		}
	}
	first := max(0, r.Timestamp-o.size+o.advance) / o.advance * o.advance
	for start := first; start <= r.Timestamp; start += o.advance {
		if start+o.size <= closeTime {
			if err := Drop(o.task, o.step, r, "late"); err != nil {
				return err
			}
			continue
		}
		row := Windowed[K]{r.Key, start, start + o.size}
		if err := changeRow(o.step, o.rows, r, row, o.update, o.changed); err != nil {
			return err
		}
	}
	return nil
}

// emit forwards the windows that end at or before closeTime and were not
// emitted yet.
func (o *windowAggregate[K, V, A]) emit(r Record[K, V], closeTime int64) error {
	to := closeTime - o.size
	if to < 0 {
		return nil
	}
	from := max(0, o.closed.Value()-o.size+1)
	if to/o.advance*o.advance < from {
		return nil // no window starts in [from, to]
	}
	for row, err := range o.store.FetchAll(from, to) {
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		key := Windowed[K]{row.Key, row.Start, row.Start + o.size}
		c := Change[A]{New: row.Value, HasNew: true}
		if err := o.final(withValue(r, key, c, row.Timestamp)); err != nil {
			return err
		}
	}
	o.closed.Set(closeTime)
	return nil
}
