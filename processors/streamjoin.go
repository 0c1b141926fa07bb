package processors

import (
	"time"

	"github.com/millrace/millrace/state"
)

// JoinWindows say which records of two streams are joined: those of the right
// stream from Before ahead of to After behind the left one, both inclusive. All
// are whole milliseconds; one of Before and After may be negative, but not their
// sum.
type JoinWindows struct {
	Before, After time.Duration
	// Grace is how much later than the window's end a record may come.
	Grace time.Duration
}

// Retention is how long records wait for partners.
func (w JoinWindows) Retention() time.Duration { return w.Before + w.After + w.Grace }

// A StreamStreamJoin joins the records of two streams that have the same key and
// are not too far apart, each pair once.
//
// Stream time is the largest timestamp that came to either side. A result without
// a partner, of a left or outer join, is forwarded once, when stream time has
// passed the end of the record's window by more than the grace and a record comes
// that is not older than stream time: with the record's own timestamp and headers,
// ordered by timestamp, then the right side before the left one, then by encoded
// key, and before what the coming record joins. One whose window has ended when it
// comes is forwarded at once.
//
// A record without a value is dropped ("null-value"). One without a key is dropped
// ("null-key"), or forwarded at once if its side is joined without a partner.
type StreamStreamJoin[K, L, R, V any] struct {
	Task    Task
	Step    string
	Kind    JoinKind
	Windows JoinWindows
	// Left and Right keep the records of the sides; their stream times are those
	// of [JoinTime].
	Left  state.EventStore[K, L]
	Right state.EventStore[K, R]
	// Unmatched keeps the records without a partner; nil for an inner join.
	Unmatched state.KeyValueStore[Alone[K], Record[K, Either[L, R]]]
	Join      func(key K, left L, hasLeft bool, right R, hasRight bool) (V, error)
	Next      Forward[K, V]
}

// Alone identifies a record that has no partner yet.
type Alone[K any] struct {
	Time   int64
	Left   bool // the side it is of
	Key    K
	Number int64
	// Bound makes it the smallest of its time: the rest is not written.
	Bound bool
}

// Either is a value of one of two types.
type Either[L, R any] struct {
	Left   L
	Right  R
	IsLeft bool
}

// JoinTime returns the stream time of one side of a join: the largest timestamp
// that was kept.
func JoinTime(t Task, step string, left bool) func() int64 { return joinTime(t, step, left).Value }

func joinTime(t Task, step string, left bool) *state.Cell {
	if left {
		return t.Cell(step + ".left-time")
	}
	return t.Cell(step + ".right-time")
}

// Inputs returns what takes the records of the left and of the right stream. It
// is called once.
func (j *StreamStreamJoin[K, L, R, V]) Inputs() (Forward[K, L], Forward[K, R]) {
	shared := &pairing[K, L, R, V]{
		StreamStreamJoin: j, null: NullCheck[V](),
		clock: j.Task.Cell(j.Step + ".stream-time"), number: j.Task.Cell(j.Step + ".number"), oldest: j.Task.Cell(j.Step + ".oldest"),
		before: j.Windows.Before.Milliseconds(), after: j.Windows.After.Milliseconds(), grace: j.Windows.Grace.Milliseconds(),
	}
	left := &joinInput[K, L, R, L, R, V]{
		p: shared, left: true, alone: j.Kind != InnerJoin, mine: j.Left, others: j.Right, time: joinTime(j.Task, j.Step, true),
		back: shared.before, ahead: shared.after,
		join:   func(key K, a L, b R, ok bool) (V, error) { return j.Join(key, a, true, b, ok) },
		either: func(a L) Either[L, R] { return Either[L, R]{Left: a, IsLeft: true} },
	}
	right := &joinInput[K, L, R, R, L, V]{
		p: shared, alone: j.Kind == OuterJoin, mine: j.Right, others: j.Left, time: joinTime(j.Task, j.Step, false),
		back: shared.after, ahead: shared.before,
		join:   func(key K, a R, b L, ok bool) (V, error) { return j.Join(key, b, ok, a, true) },
		either: func(a R) Either[L, R] { return Either[L, R]{Right: a} },
	}
	return left.process, right.process
}

// pairing is what both inputs of a join share.
type pairing[K, L, R, V any] struct {
	*StreamStreamJoin[K, L, R, V]
	null                 func(V) bool
	before, after, grace int64

	clock  *state.Cell // stream time of both sides
	number *state.Cell // of the last record
	oldest *state.Cell // no unmatched record is older; -1 if there is none
}

// joinInput takes the records of side A, whose partners are of side B.
type joinInput[K, L, R, A, B, V any] struct {
	p    *pairing[K, L, R, V]
	left bool
	// alone says that records of A are joined without one of B.
	alone       bool
	mine        state.EventStore[K, A]
	others      state.EventStore[K, B]
	time        *state.Cell // stream time of mine
	back, ahead int64       // partners are in [timestamp-back, timestamp+ahead]
	join        func(key K, a A, b B, ok bool) (V, error)
	either      func(a A) Either[L, R]
}

func (in *joinInput[K, L, R, A, B, V]) process(r Record[K, A]) error {
	p := in.p
	now := max(p.clock.Value(), r.Timestamp)
	p.clock.Set(now)
	switch {
	case r.NoValue:
		return Drop(p.Task, p.Step, r, "null-value")
	case r.NoKey && in.alone:
		return in.forwardAlone(r)
	case r.NoKey:
		return Drop(p.Task, p.Step, r, "null-key")
	}
	if r.Timestamp == now && p.Unmatched != nil {
		if err := p.closeWindows(now); err != nil {
			return err
		}
	}
	p.number.Set(p.number.Value() + 1)
	matched, err := in.pair(r)
	if err != nil {
		return err
	}
	if in.alone && !matched {
		if r.Timestamp+in.ahead < now {
			err = in.forwardAlone(r)
		} else {
			err = in.wait(r)
		}
		if err != nil {
			return err
		}
	}
	in.time.Set(max(in.time.Value(), r.Timestamp))
	return Fail(ClassState, p.Step, in.mine.Put(r.Key, r.Timestamp, p.number.Value(), r.Value))
}

// pair joins r with its partners.
func (in *joinInput[K, L, R, A, B, V]) pair(r Record[K, A]) (matched bool, err error) {
	p := in.p
	for other, err := range in.others.Fetch(r.Key, r.Timestamp-in.back, r.Timestamp+in.ahead) {
		if err != nil {
			return matched, Fail(ClassState, p.Step, err)
		}
		matched = true
		if err := p.match(Alone[K]{Time: other.Time, Left: !in.left, Key: r.Key, Number: other.Number}); err != nil {
			return matched, err
		}
		v, err := in.join(r.Key, r.Value, other.Value, true)
		if err != nil {
			return matched, err
		}
		out := WithValue(r, v, p.null(v))
		out.Timestamp = max(r.Timestamp, other.Time)
		if err := p.Next(out); err != nil {
			return matched, err
		}
	}
	return matched, nil
}

func (in *joinInput[K, L, R, A, B, V]) forwardAlone(r Record[K, A]) error {
	var none B
	v, err := in.join(r.Key, r.Value, none, false)
	if err != nil {
		return err
	}
	return in.p.Next(WithValue(r, v, in.p.null(v)))
}

// wait keeps r until it is matched or its window closes.
func (in *joinInput[K, L, R, A, B, V]) wait(r Record[K, A]) error {
	p := in.p
	if oldest := p.oldest.Value(); oldest < 0 || r.Timestamp < oldest {
		p.oldest.Set(r.Timestamp)
	}
	key := Alone[K]{Time: r.Timestamp, Left: in.left, Key: r.Key, Number: p.number.Value()}
	// The key is in the row's key.
	row := Record[K, Either[L, R]]{NoKey: true, Value: in.either(r.Value), Headers: r.Headers}
	return Fail(ClassState, p.Step, p.Unmatched.Put(key, row, r.Timestamp))
}

// match notes that a record has a partner.
func (p *pairing[K, L, R, V]) match(key Alone[K]) error {
	oldest := int64(-1)
	if p.Unmatched != nil {
		oldest = p.oldest.Value()
	}
	if oldest < 0 || key.Time < oldest {
		return nil
	}
	_, waits, err := p.Unmatched.Get(key)
	if err == nil && waits {
		err = p.Unmatched.Delete(key)
	}
	return Fail(ClassState, p.Step, err)
}

// closeWindows forwards the unmatched records whose windows have closed.
func (p *pairing[K, L, R, V]) closeWindows(now int64) error {
	soonest := p.after
	if p.Kind == OuterJoin {
		soonest = min(p.after, p.before)
	}
	oldest := p.oldest.Value()
	if oldest < 0 || oldest+soonest+p.grace >= now {
		return nil
	}
	from, left := Alone[K]{Time: oldest, Bound: true}, int64(-1)
	for row, err := range p.Unmatched.Range(&from, nil) {
		if err != nil {
			return Fail(ClassState, p.Step, err)
		}
		closed := p.before
		if row.Key.Left {
			closed = p.after
		}
		if row.Key.Time+closed+p.grace >= now {
			if left < 0 {
				left = row.Key.Time
			}
			if row.Key.Time+soonest+p.grace >= now {
				break
			}
			continue
		}
		if err := p.Unmatched.Delete(row.Key); err != nil {
			return Fail(ClassState, p.Step, err)
		}
		one := row.Value.Value
		v, err := p.Join(row.Key.Key, one.Left, one.IsLeft, one.Right, !one.IsLeft)
		if err != nil {
			return err
		}
		out := Record[K, V]{Key: row.Key.Key, Value: v, NoValue: p.null(v), Timestamp: row.Key.Time, Headers: row.Value.Headers}
		if err := p.Next(out); err != nil {
			return err
		}
	}
	p.oldest.Set(left)
	return nil
}
