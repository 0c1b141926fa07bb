package processors

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// Timers are the durable timers of a processor on one clock: at most one per key. They
// are rows of the task, so that a failed record's are undone, an abort rolls them back,
// and a restart or another owner of the task goes on with them. Not safe for concurrent
// use: they belong to the processor's task.
type Timers[K any] struct {
	core *timers
	keys serde.Serde[K]
}

// TimerContext is a [Context] of any type, for [NewTimers].
type TimerContext interface {
	timers(name string, kind PunctuationKind, fire func(key []byte, at int64, payload []byte) error) *timers
}

// NewTimers returns the timers of that name, in Init: the processor's own, so that
// another processor may use the same name. fire is called for each that is due, in the
// order of time and then of encoded key, with the time it was set to (ms since the
// epoch) and its payload. The timer is gone then; fire may set it again.
//
// Timers on [StreamTime] fire after the record that makes the task's stream time reach
// them, all that are due; those on [WallClock] between records, soon after their time,
// at most 10,000 in one transaction. What fires is decided by the time of the timers, not
// by when the clock was looked at, and the tick that fired them becomes a row of the
// task with what they did; no later tick of the task, on whatever machine, is earlier.
//
// A firing is a punctuation: it is atomic, has no source record, and its error stops the
// task. keys is the serde of the keys, which are part of the task's rows.
func NewTimers[K any](ctx TimerContext, name string, kind PunctuationKind, keys serde.Serde[K], fire func(key K, at int64, payload []byte) error) (*Timers[K], error) {
	switch {
	case name == "":
		return nil, fmt.Errorf("timers without a name; give them one, by which a restart finds them")
	case keys == nil || fire == nil:
		return nil, fmt.Errorf("timers %q: a nil serde or function", name)
	}
	t := &Timers[K]{keys: keys}
	t.core = ctx.timers(name, kind, func(enc []byte, at int64, payload []byte) error {
		key, err := keys.Decode(enc)
		if err != nil {
			return fmt.Errorf("timers %q: decode key: %w", name, err)
		}
		return fire(key, at, payload)
	})
	return t, nil
}

// Set sets the timer of key to at, in ms since the epoch, in place of the one it has. A
// time that has passed fires as soon as one that comes: after this record, or at the
// next tick. The payload, of any bytes, is copied.
func (t *Timers[K]) Set(key K, at int64, payload []byte) error {
	enc, err := t.encode(key)
	if err != nil {
		return err
	}
	return t.core.set(enc, at, payload)
}

// Cancel takes the timer of key away, if it has one.
func (t *Timers[K]) Cancel(key K) error {
	enc, err := t.encode(key)
	if err != nil {
		return err
	}
	return t.core.cancelKey(enc)
}

// Get returns the time and the payload of the timer of key, and whether it has one.
func (t *Timers[K]) Get(key K) (at int64, payload []byte, ok bool, err error) {
	enc, err := t.encode(key)
	if err != nil {
		return 0, nil, false, err
	}
	return t.core.get(enc)
}

func (t *Timers[K]) encode(key K) ([]byte, error) {
	enc, err := t.keys.Append(nil, key)
	if err != nil {
		return nil, fmt.Errorf("timers %q: encode key: %w", t.core.name, err)
	}
	return enc, nil
}

func (c *Context[K, V]) timers(name string, kind PunctuationKind, fire func(key []byte, at int64, payload []byte) error) *timers {
	t := newTimers(c.t, c.step+"/"+name, kind, func(key []byte, at int64, payload []byte) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = Panicked(ClassProcess, c.step, p)
			}
		}()
		return Fail(ClassProcess, c.step, fire(key, at, payload))
	})
	c.cancels = append(c.cancels, t.close)
	t.reset()
	return t
}

// timers are the timers of a step by encoded key. A timer is two rows of the task: its
// place in the agenda, and 'k' name 0x00 | key -> time (8 bytes, big-endian), payload.
type timers struct {
	task   Task
	name   string
	kind   PunctuationKind
	rows   *state.Store
	prefix []byte
	due    *agenda
	tick   *state.Cell // the wall clock of the last tick that did something
	fire   func(key []byte, at int64, payload []byte) error
	// cancel ends what is scheduled, nil if nothing is; WallClock: at the time next.
	cancel func()
	next   int64
}

// maxFirings bounds how many timers on the wall clock fire in one tick.
const maxFirings = 10_000

// newTimers returns the timers of that name. They fire after reset, until close.
func newTimers(t Task, name string, kind PunctuationKind, fire func(key []byte, at int64, payload []byte) error) *timers {
	return &timers{
		task: t, name: name, kind: kind, rows: t.Store(state.TaskRows), prefix: append(append([]byte{'k'}, name...), 0),
		due: newAgenda(t, name), tick: t.Cell("tick"), fire: fire,
	}
}

// reset begins anew on what the rows say: at the start and after an abort.
func (t *timers) reset() {
	t.close()
	if t.kind == StreamTime {
		t.cancel = t.task.Schedule(StreamTime, time.Millisecond, nil, func(now int64) error {
			_, err := t.run(now, -1)
			return err
		})
		return
	}
	t.schedule()
}

func (t *timers) close() {
	if t.cancel != nil {
		t.cancel()
	}
	t.cancel, t.next = nil, 0
}

// schedule sees to it that the wall clock wakes the step for the earliest timer.
func (t *timers) schedule() {
	first := t.due.first.Value()
	if t.kind != WallClock || first < 0 || t.cancel != nil && t.next <= first {
		return
	}
	t.close()
	t.next = first
	wait := max(time.Duration(first-t.now())*time.Millisecond, time.Millisecond)
	t.cancel = t.task.Schedule(WallClock, wait, nil, func(int64) error {
		now := t.now()
		t.close()
		n, err := t.run(now, maxFirings)
		if n > 0 {
			t.tick.Set(now)
		}
		t.schedule()
		return err
	})
}

// now is the wall clock, which never goes back behind a tick that did something.
func (t *timers) now() int64 { return max(t.tick.Value(), t.task.Now().UnixMilli()) }

// run fires what is due, limit timers at most, and returns how many it did.
func (t *timers) run(now int64, limit int) (n int, err error) {
	err = t.due.take(now, func(key []byte, at int64) (bool, error) {
		if n == limit {
			return false, nil
		}
		was, payload, ok, err := t.get(key)
		if err != nil || !ok || was != at {
			return err == nil, err
		}
		n++
		t.rows.Put(t.row(key), nil)
		return true, t.fire(key, at, payload)
	})
	return n, Fail(ClassState, t.name, err)
}

func (t *timers) row(key []byte) []byte { return slices.Concat(t.prefix, key) }

func (t *timers) get(key []byte) (at int64, payload []byte, ok bool, err error) {
	row, err := t.rows.Get(t.row(key))
	if err != nil || row == nil {
		return 0, nil, false, err
	}
	if len(row) < 8 {
		return 0, nil, false, fmt.Errorf("timers %q: a row of %d bytes has no time", t.name, len(row))
	}
	return int64(binary.BigEndian.Uint64(row)), slices.Clone(row[8:]), true, nil
}

func (t *timers) set(key []byte, at int64, payload []byte) error {
	at = max(at, 0)
	was, _, ok, err := t.get(key)
	if err != nil {
		return err
	}
	if ok && was != at {
		t.due.remove(was, key)
	}
	if !ok || was != at {
		t.due.put(at, key)
	}
	t.rows.Put(t.row(key), append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(payload)), uint64(at)), payload...))
	t.schedule()
	return nil
}

func (t *timers) cancelKey(key []byte) error {
	was, _, ok, err := t.get(key)
	if err != nil || !ok {
		return err
	}
	t.due.remove(was, key)
	t.rows.Put(t.row(key), nil)
	return nil
}
