package processors

import (
	"slices"
	"time"

	"github.com/millrace/millrace/state"
)

// Punctuations are the scheduled functions of a task. The zero value has none. It
// is not safe for concurrent use.
type Punctuations struct {
	all []*punctuation
}

type punctuation struct {
	kind     PunctuationKind
	interval time.Duration
	next     int64       // WallClock: when it is due, ms since the epoch
	due      *state.Cell // StreamTime: the same, -1 before the first record; nil is always
	fn       func(at int64) error
}

// Add schedules fn, as [Task.Schedule] says; now is the wall clock.
func (p *Punctuations) Add(kind PunctuationKind, interval time.Duration, now time.Time, due *state.Cell, fn func(at int64) error) (cancel func()) {
	one := &punctuation{kind: kind, interval: max(interval, time.Millisecond), due: due, fn: fn}
	if kind == WallClock {
		one.next = now.Add(one.interval).UnixMilli()
	}
	p.all = append(p.all, one)
	return func() { p.all = slices.DeleteFunc(slices.Clone(p.all), func(q *punctuation) bool { return q == one }) }
}

// Any reports whether anything is scheduled.
func (p *Punctuations) Any() bool { return len(p.all) > 0 }

// StreamTime runs what is due at stream time now (ms), in the order in which it
// was scheduled.
func (p *Punctuations) StreamTime(now int64) error {
	for _, one := range p.all {
		if one.kind != StreamTime || now < 0 {
			continue
		}
		if one.due == nil {
			if err := one.fn(now); err != nil {
				return err
			}
			continue
		}
		step := one.interval.Milliseconds()
		next := now - now%step + step
		// A later one is that of a longer interval, before a restart.
		if due := one.due.Value(); now < due && due <= next {
			continue
		}
		one.due.Set(next)
		if err := one.fn(now); err != nil {
			return err
		}
	}
	return nil
}

// WallClock runs what is due at now, in the order in which it was scheduled.
func (p *Punctuations) WallClock(now time.Time) error {
	ms := now.UnixMilli()
	for _, one := range p.all {
		if one.kind != WallClock || ms < one.next {
			continue
		}
		step := one.interval.Milliseconds()
		one.next += (ms-one.next)/step*step + step
		if err := one.fn(ms); err != nil {
			return err
		}
	}
	return nil
}

// NextWallClock returns when the next wall-clock punctuation is due; a time far in
// the future if there is none.
func (p *Punctuations) NextWallClock() time.Time {
	next := int64(1) << 50
	for _, one := range p.all {
		if one.kind == WallClock {
			next = min(next, one.next)
		}
	}
	return time.UnixMilli(next)
}
