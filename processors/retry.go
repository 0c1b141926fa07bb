package processors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/serde"
	"github.com/millrace/millrace/state"
)

// A RetryPolicy says how often a function is called for a record, and when.
type RetryPolicy struct {
	// Attempts is how often it is called in all, at least 1.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles with every further one,
	// up to MaxBackoff.
	Backoff, MaxBackoff time.Duration
	// MaxWaiting is how many records of a partition may wait; at that number no more
	// are read.
	MaxWaiting int
}

// wait is the pause behind attempt number n, from 1.
func (p RetryPolicy) wait(n int) int64 {
	d := p.Backoff
	for ; n > 1 && d < p.MaxBackoff; n-- {
		d *= 2
	}
	return min(d, p.MaxBackoff).Milliseconds()
}

// A Retrying calls a function that may fail, later again, and keeps the order of keys.
type Retrying[K, V, R any] struct {
	Task   Task
	Step   string
	Policy RetryPolicy
	// DeadLetters is the topic of the source records that are given up.
	DeadLetters string
	Keys        serde.Serde[K]
	Store       state.KeyValueStore[Lane, Sourced[K, V]]
	Call        func(Record[K, V]) (R, error)
	Next        Forward[K, R]

	null    func(R) bool
	rows    queue[Sourced[K, V]]
	waiting *state.Cell // minus one: a cell begins at -1
	// timers wake the lanes in which records wait; a payload counts the attempts of
	// the first one.
	timers *timers
}

// maxRetries bounds how many records of a lane are taken in one firing.
const maxRetries = 1000

// Start returns what takes the records. A record whose call succeeds is forwarded with
// the result. One that fails waits in the store, and with it all later ones of its key,
// while other keys go on; records without a key wait together. After the backoff it is
// tried again, in a tick, and when it succeeds those behind it are, in order. One that
// has had all its attempts becomes a dead letter, in the transaction of that tick.
//
// The function steers with [WithAction]: [DeadLetter], [Skip] and [Stop] end the
// attempts.
func (o *Retrying[K, V, R]) Start() Forward[K, V] {
	o.null, o.waiting = NullCheck[R](), o.Task.Cell(o.Step+".waiting")
	o.rows = queue[Sourced[K, V]]{o.Store, o.Task.Cell(o.Step + ".number")}
	o.timers = newTimers(o.Task, o.Step, WallClock, o.again)
	return o.process
}

// Reset is called before the first record and after an abort.
func (o *Retrying[K, V, R]) Reset() { o.timers.reset() }

// Close ends the ticks.
func (o *Retrying[K, V, R]) Close() { o.timers.close() }

// Waiting is how many records wait.
func (o *Retrying[K, V, R]) Waiting() int64 { return o.waiting.Value() + 1 }

func (o *Retrying[K, V, R]) process(r Record[K, V]) error {
	lane, err := queueLane(o.Keys, r)
	var waits bool
	if err == nil {
		_, _, waits, err = o.timers.get(lane)
	}
	if err != nil {
		return Fail(ClassState, o.Step, err)
	}
	if !waits {
		v, err := o.call(r)
		if err == nil {
			return o.Next(WithValue(r, v, o.null(v)))
		}
		if !o.retries(err) {
			return err
		}
		if o.Policy.Attempts <= 1 {
			return WithAction(DeadLetter, err)
		}
		if err := o.sleep(lane, 1); err != nil {
			return err
		}
	}
	o.waiting.Set(o.waiting.Value() + 1)
	return Fail(ClassState, o.Step, o.rows.add(lane, Sourced[K, V]{r, *o.Task.Source()}, r.Timestamp))
}

func (o *Retrying[K, V, R]) call(r Record[K, V]) (v R, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(ClassProcess, o.Step, p)
		}
	}()
	v, err = o.Call(r)
	return v, Fail(ClassProcess, o.Step, err)
}

func (o *Retrying[K, V, R]) retries(err error) bool {
	e, _ := errors.AsType[*Error](err)
	return e.Action == Default || e.Action == Retry
}

func (o *Retrying[K, V, R]) sleep(lane []byte, attempts int) error {
	at := o.timers.now() + o.Policy.wait(attempts)
	return Fail(ClassState, o.Step, o.timers.set(lane, at, binary.AppendUvarint(nil, uint64(attempts))))
}

// again tries the records of a lane.
func (o *Retrying[K, V, R]) again(lane []byte, at int64, payload []byte) error {
	attempts, _ := binary.Uvarint(payload)
	left := maxRetries
	err := o.rows.take(lane, func(s Sourced[K, V], timestamp int64) (bool, error) {
		if left--; left < 0 {
			return false, o.timers.set(lane, at, nil)
		}
		r := s.Record
		r.Timestamp = timestamp
		v, err := o.call(r)
		if err == nil {
			err = o.Next(WithValue(r, v, o.null(v)))
			attempts = 0
			o.waiting.Set(o.waiting.Value() - 1)
			return true, err
		}
		if attempts++; o.retries(err) && attempts < uint64(o.Policy.Attempts) {
			return false, o.sleep(lane, int(attempts))
		}
		attempts = 0
		o.waiting.Set(o.waiting.Value() - 1)
		return true, o.giveUp(r, &s.Source, err)
	})
	return Fail(ClassState, o.Step, err)
}

// giveUp ends a record that failed for good.
func (o *Retrying[K, V, R]) giveUp(r Record[K, V], src *Raw, err error) error {
	e, _ := errors.AsType[*Error](err)
	switch e.Action {
	case Stop:
		return err
	case Skip:
		return Drop(o.Task, o.Step, r, "skipped")
	}
	headers := DeadLetterHeaders(src, e.Step, e.Class, ErrorText(e.Err), o.Task.Now())
	err = o.Task.Produce(o.DeadLetters, -1, Raw{Key: src.Key, Value: src.Value, Headers: headers, Timestamp: max(src.Timestamp, 0)})
	if err != nil {
		return &Error{Class: ClassProduce, Step: o.Step, Action: Stop, Err: fmt.Errorf("dead letter of %s/%d offset %d: %w", src.Topic, src.Partition, src.Offset, err)}
	}
	if task, ok := unwrap(o.Task).(interface{ Report(Report) }); ok {
		task.Report(Report{Step: e.Step, Status: StatusDeadLetter, Class: e.Class})
	}
	return nil
}
