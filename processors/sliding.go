package processors

import (
	"slices"

	"github.com/millrace/millrace/state"
)

// SlidingAggregate keeps one aggregate per key and sliding window in store: the
// windows [start, end], both inclusive, of the length Windows.Size that end at a
// record, and those that start 1 ms behind a record and hold one. Records before
// the time Windows.Size share the window [0, Windows.Size].
//
// A window closes when the step's stream time passes its end by more than the
// grace. A record updates the windows that hold it and are open; for each that is
// closed, or once if none can be open, it is dropped ("late"). A record without a
// key ("null-key") or a value ("null-value") is dropped.
//
// Every change is forwarded, or with Windows.Final each result once, when its
// window closes, ordered by start and then by encoded key. The result's timestamp
// is the largest of the contributing records.
func SlidingAggregate[K, V, A any](t Task, step string, w Windows, store state.WindowStore[K, A], update Update[K, V, A], next Forward[Windowed[K], Change[A]]) Forward[K, V] {
	o := &slidingAggregate[K, V, A]{
		task: t, step: step, store: store, rows: windowRows(store), update: update, changed: next,
		size: w.Size.Milliseconds(), grace: w.Grace.Milliseconds(), clock: windowClock(t, step),
	}
	if w.Final {
		o.final, o.closed = next, windowClosed(t, step)
		o.changed = func(Record[Windowed[K], Change[A]]) error { return nil }
		o.rows.reread = false
	}
	return o.process
}

type slidingAggregate[K, V, A any] struct {
	task           Task
	step           string
	store          state.WindowStore[K, A]
	rows           rows[Windowed[K], A]
	update         Update[K, V, A]
	changed, final Forward[Windowed[K], Change[A]]
	size, grace    int64

	clock  *state.Cell // stream time of the step
	closed *state.Cell // windows that ended before it were emitted
	found  neighbours
}

// neighbours are the windows around a record at time at, by their starts; none is
// -1.
type neighbours struct {
	at int64
	// holding are those that hold the record, in the order of their updates.
	holding []int64
	// right holds records behind the record only but for the record: what the
	// window that starts behind the record is made of. rightTime is its last one's.
	right, rightTime int64
	hasRight         bool // that window is there already
	// left is the last window that ended before the record.
	left    int64
	hasLeft bool // the window that ends at the record is there already
	// previous is the time of the last record before this one in a window seen,
	// and hasPrevious says that the window that starts behind it is there.
	previous    int64
	hasPrevious bool
	repeated    bool // the time had a record before: no window is new
}

func (o *slidingAggregate[K, V, A]) process(r Record[K, V]) error {
	if r.NoKey || r.NoValue {
		reason := "null-value"
		if r.NoKey {
			reason = "null-key"
		}
		return Drop(o.task, o.step, r, reason)
	}
	now := max(o.clock.Value(), r.Timestamp)
	o.clock.Set(now)
	closeTime := now - o.grace
	if r.Timestamp+o.size < closeTime {
		return Drop(o.task, o.step, r, "late")
	}
	o.found = neighbours{at: r.Timestamp, holding: o.found.holding[:0], right: -1, left: -1, previous: -1}
	if r.Timestamp < o.size {
		return o.early(r, closeTime)
	}
	if err := o.regular(r, closeTime); err != nil || o.final == nil {
		return err
	}
	return o.emit(r, closeTime)
}

// regular takes a record at or behind the time size.
func (o *slidingAggregate[K, V, A]) regular(r Record[K, V], closeTime int64) error {
	n := &o.found
	if err := o.look(r.Key); err != nil {
		return err
	}
	right, err := o.copyRight(r)
	if err != nil {
		return err
	}
	for _, start := range n.holding {
		if err := o.change(r, start, closeTime); err != nil {
			return err
		}
	}
	if n.repeated {
		return nil
	}
	if n.previous >= 0 && !n.hasPrevious && n.previous+1+o.size >= n.at {
		if err := o.change(r, n.previous+1, closeTime); err != nil {
			return err
		}
	}
	if !n.hasLeft {
		if err := o.createLeft(r, closeTime); err != nil {
			return err
		}
	}
	return o.forward(right)
}

// look finds the neighbours of a record.
func (o *slidingAggregate[K, V, A]) look(key K) error {
	n := &o.found
	for row, err := range o.store.FetchReverse(key, max(0, n.at-2*o.size), n.at+1) {
		if err != nil {
			return Fail(ClassState, o.step, err)
		}
		end := row.Start + o.size
		switch {
		case row.Start == n.at+1:
			n.hasRight = true
			continue
		case end > n.at && n.right < 0:
			n.right, n.rightTime = row.Start, row.Timestamp
		case end == n.at:
			n.hasLeft = true
			if n.repeated = row.Timestamp >= n.at; !n.repeated {
				n.previous = row.Timestamp
			}
		}
		if end < n.at {
			n.left, n.previous = row.Start, row.Timestamp
			break
		}
		n.holding = append(n.holding, row.Start)
		if n.repeated {
			break
		}
	}
	n.hasPrevious = n.left == n.previous+1 || slices.Contains(n.holding, n.previous+1)
	return nil
}

// early takes a record before the time size, whose left window would begin before
// 0: the window [0, size] stands for those of all such records.
func (o *slidingAggregate[K, V, A]) early(r Record[K, V], closeTime int64) error {
	n := &o.found
	first := int64(-1) // the time of the last record in [0, size]
	for row, err := range o.store.Fetch(r.Key, 0, n.at+1) {
		switch {
		case err != nil:
			return Fail(ClassState, o.step, err)
		case row.Start == 0:
			if first = row.Timestamp; first < n.at {
				n.previous = first
			}
		case row.Start <= n.at:
			n.right, n.rightTime = row.Start, row.Timestamp
			n.holding = append(n.holding, row.Start)
		default:
			n.hasRight = true
		}
		n.hasPrevious = n.hasPrevious || row.Start == n.previous+1
	}
	if n.right < 0 && first > n.at {
		n.right, n.rightTime = 0, first // no record lies before this one
	}
	right, err := o.copyRight(r)
	if err != nil {
		return err
	}
	for _, start := range n.holding {
		if err := o.change(r, start, closeTime); err != nil {
			return err
		}
	}
	if err := o.forward(right); err != nil {
		return err
	}
	if n.previous >= 0 && !n.hasPrevious {
		if err := o.change(r, n.previous+1, closeTime); err != nil {
			return err
		}
	}
	return o.change(r, 0, closeTime)
}

// change updates the window that starts at start, if it is open.
func (o *slidingAggregate[K, V, A]) change(r Record[K, V], start, closeTime int64) error {
	if start+o.size < closeTime {
		return Drop(o.task, o.step, r, "late")
	}
	return changeRow(o.step, o.rows, r, Windowed[K]{r.Key, start, start + o.size}, o.update, o.changed)
}

// createLeft makes the window that ends at the record, out of the one before it
// if that holds records of it. It may be the window behind the previous record,
// which is updated a second time then, as in Kafka Streams, to the same value.
func (o *slidingAggregate[K, V, A]) createLeft(r Record[K, V], closeTime int64) error {
	n := &o.found
	start := n.at - o.size
	if n.at < closeTime || n.previous+1 != start && (n.left < 0 || n.previous < start) {
		return o.change(r, start, closeTime)
	}
	var agg A
	var ok bool
	if n.left >= 0 && n.previous >= start {
		var err error
		if agg, _, ok, err = o.store.Get(r.Key, n.left); err != nil {
			return Fail(ClassState, o.step, err)
		}
	}
	old, _, hasOld, err := o.store.Get(r.Key, start)
	if err != nil {
		return Fail(ClassState, o.step, err)
	}
	rows := o.rows
	rows.get = func(Windowed[K]) (A, int64, bool, error) { return agg, n.at, ok, nil }
	rows.reread = false
	return changeRow(o.step, rows, r, Windowed[K]{r.Key, start, n.at}, o.update, func(out Record[Windowed[K], Change[A]]) error {
		out.Value.Old, out.Value.HasOld = old, hasOld
		return o.changed(out)
	})
}

// copyRight makes the window that starts behind the record, before the record is
// added to the one it is made of. It returns the change to forward, nil if there
// is nothing behind the record or the window is there.
func (o *slidingAggregate[K, V, A]) copyRight(r Record[K, V]) (*Record[Windowed[K], Change[A]], error) {
	n := &o.found
	if n.hasRight || n.repeated || n.right < 0 || n.rightTime <= n.at {
		return nil, nil
	}
	agg, ts, ok, err := o.store.Get(r.Key, n.right)
	if err == nil && ok {
		err = o.store.Put(r.Key, n.at+1, agg, ts)
	}
	if err != nil || !ok {
		return nil, Fail(ClassState, o.step, err)
	}
	out := withValue(r, Windowed[K]{r.Key, n.at + 1, n.at + 1 + o.size}, Change[A]{New: agg, HasNew: true}, ts)
	return &out, nil
}

func (o *slidingAggregate[K, V, A]) forward(out *Record[Windowed[K], Change[A]]) error {
	if out == nil {
		return nil
	}
	return o.changed(*out)
}

// emit forwards the windows that ended before closeTime and were not emitted
// yet.
func (o *slidingAggregate[K, V, A]) emit(r Record[K, V], closeTime int64) error {
	from, to := max(0, o.closed.Value()-o.size), closeTime-o.size-1
	if to < from || closeTime <= o.closed.Value() {
		return nil
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
